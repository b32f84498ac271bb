"""Encoders, encoder–decoders, vision, speech and state-space models: merged, loaded, compared with averages by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.errors import IncompatibleModelsError

from .hf_models import load, make

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
STACKS = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
TOWER = {**SMALL, "image_size": 8, "patch_size": 4}

FAMILIES: dict[str, tuple[str, Callable[[], Any]]] = {
    "encoder": ("BertForMaskedLM", lambda: transformers.BertConfig(**SMALL, vocab_size=32)),
    "encoder-decoder": (
        "T5ForConditionalGeneration",
        lambda: transformers.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=32),
    ),
    "vision": ("ViTForImageClassification", lambda: transformers.ViTConfig(**TOWER)),
    "two towers": (
        "CLIPModel",
        lambda: transformers.CLIPConfig(
            text_config={**SMALL, "vocab_size": 32}, vision_config=TOWER, projection_dim=8
        ),
    ),
    "speech to text": (
        "WhisperForConditionalGeneration",
        lambda: transformers.WhisperConfig(
            **STACKS, d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=32, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, max_source_positions=8, max_target_positions=8,
        ),
    ),
    "speech": (
        "Wav2Vec2ForCTC",
        lambda: transformers.Wav2Vec2Config(
            **SMALL, vocab_size=32, conv_dim=(8, 8), conv_stride=(2, 2), conv_kernel=(3, 3),
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        ),
    ),
    "state space": (
        "MambaForCausalLM",
        lambda: transformers.MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=32, state_size=4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_merges_and_loads(family: str, tmp_path: Path) -> None:
    """Nothing in the recipe, nothing in the code: the average of every parameter."""
    cls, config = FAMILIES[family]
    a, b = (make(tmp_path / name, cls, config(), seed) for seed, name in enumerate("ab"))
    plait.merge(
        {"method": "linear", "experts": [str(tmp_path / "a"), str(tmp_path / "b")]}, tmp_path / "out", threads=1
    )
    merged = load(tmp_path / "out", cls)
    other = dict(b.named_parameters())
    for name, mine in a.named_parameters():
        wanted = (mine + other[name]) / 2
        torch.testing.assert_close(dict(merged.named_parameters())[name], wanted, msg=name)


def test_an_encoder_merges_into_its_task_model(tmp_path: Path) -> None:
    """A bare encoder and one with a head: the names differ by a prefix, the missing head has to be spoken for."""
    config = transformers.BertConfig(**SMALL, vocab_size=32)
    task = make(tmp_path / "task", "BertForSequenceClassification", config, 0)
    bare = make(tmp_path / "bare", "BertModel", config, 1)
    recipe: dict[str, Any] = {"method": "linear", "experts": {n: str(tmp_path / n) for n in ("task", "bare")}}
    with pytest.raises(IncompatibleModelsError) as told:
        plait.plan(recipe)
    assert "classifier.weight: missing from bare" in str(told.value)
    recipe["copy"] = [{"match": "classifier.*", "from": "task"}]
    plait.merge(recipe, tmp_path / "out", threads=1)
    merged = load(tmp_path / "out", "BertForSequenceClassification")
    own = bare.encoder.layer[1].output.dense.weight
    wanted = (task.bert.encoder.layer[1].output.dense.weight + own) / 2
    torch.testing.assert_close(merged.bert.encoder.layer[1].output.dense.weight, wanted)
