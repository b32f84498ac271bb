"""GGUF files, written by the `gguf` package as llama.cpp's converter does, and read by transformers as the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import plait
from models import read, save
from plait.checkpoints import Checkpoint
from plait.errors import CheckpointError, QuantizedCheckpointError
from plait.reports._reproduce import reproduce

gguf = pytest.importorskip("gguf")
State = dict[str, Tensor]
HEADS, PAIRS, LAYERS, WIDTH = 4, 2, 2, 64


def _state(seed: int, family: str) -> State:
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng) * 0.1

    state = {"model.embed_tokens.weight": draw(96, WIDTH), "model.norm.weight": 1 + draw(WIDTH)}
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        sizes = {"q": WIDTH, "k": WIDTH // 2, "v": WIDTH // 2}
        state |= {f"{p}self_attn.{k}_proj.weight": draw(n, WIDTH) for k, n in sizes.items()}
        if family == "qwen2":
            state |= {f"{p}self_attn.{k}_proj.bias": draw(n) for k, n in sizes.items()}
        if family == "qwen3":
            state |= {f"{p}self_attn.{k}_norm.weight": 1 + draw(WIDTH // HEADS) for k in "qk"}
        state |= {f"{p}self_attn.o_proj.weight": draw(WIDTH, WIDTH), f"{p}mlp.down_proj.weight": draw(WIDTH, 96)}
        state |= {f"{p}mlp.{k}_proj.weight": draw(96, WIDTH) for k in ("gate", "up")}
        state |= {f"{p}{k}_layernorm.weight": 1 + draw(WIDTH) for k in ("input", "post_attention")}
    state["lm_head.weight"] = draw(96, WIDTH)
    return state


def _permuted(name: str, weight: Tensor) -> Tensor:
    """Rows of queries and keys as llama.cpp wants them."""
    heads = HEADS if "q_proj" in name else PAIRS if "k_proj" in name else 0
    if not heads:
        return weight
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _write(path: Path, state: State, family: str, numbers: str, **more: Any) -> Path:
    kind = gguf.GGMLQuantizationType[numbers]
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(PAIRS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(96)
    writer.add_file_type({"F32": 0, "F16": 1}.get(numbers, 7))
    table = gguf.get_tensor_name_map({n: k for k, n in gguf.MODEL_ARCH_NAMES.items()}[family], LAYERS)
    for name, weight in (state | more).items():
        called = table.get_name(name, try_suffixes=(".weight", ".bias")) or name
        values = (_permuted(name, weight) if family == "llama" else weight).numpy()
        if weight.ndim == 1:
            writer.add_tensor(called, values)
        else:
            writer.add_tensor(called, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("numbers", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_every_type_of_numbers_is_what_the_package_makes_of_it(numbers: str, tmp_path: Path) -> None:
    """Names of Hugging Face, rows of queries and keys in their own order, values by the package."""
    state = _state(0, "llama")
    checkpoint = Checkpoint.open(_write(tmp_path / "m.gguf", state, "llama", numbers))
    assert set(checkpoint.tensors) == set(state) and numbers in checkpoint.quantized
    kind = gguf.GGMLQuantizationType[numbers]
    for name, weight in state.items():
        wanted = weight
        if weight.ndim == 2:  # the permutation moves whole rows, and so commutes with the blocks of a row
            wanted = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)).float()
        got = checkpoint[name].load()
        assert got.shape == weight.shape and torch.equal(got, wanted), name
        flat = wanted.reshape(-1)
        for start, stop in ((0, 1), (5, 5), (17, min(1000, flat.numel())), (flat.numel() - 3, flat.numel())):
            assert torch.equal(checkpoint[name].read(start, stop), flat[start:stop])


@pytest.mark.parametrize("numbers", ["Q4_K", "Q5_K", "Q6_K"])
def test_types_that_the_package_reads_only(numbers: str, tmp_path: Path) -> None:
    """Bytes drawn at random: the same bits as the package gives for the rows in their own order."""
    kind = gguf.GGMLQuantizationType[numbers]
    width = gguf.GGML_QUANT_SIZES[kind][1]
    raw = torch.randint(0, 256, (16, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_tensor("blk.0.attn_q.weight", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    wanted = torch.from_numpy(gguf.quants.dequantize(raw, kind)).view(HEADS, 2, 2, 256).transpose(1, 2).reshape(16, 256)
    got = Checkpoint.open(tmp_path / "m.gguf")["model.layers.0.self_attn.q_proj.weight"].load()
    assert torch.equal(got.view(torch.int32), wanted.contiguous().view(torch.int32))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_families_are_read_as_transformers_reads_them(family: str, tmp_path: Path) -> None:
    """The same names and the same numbers as transformers' own reader."""
    pytest.importorskip("transformers")
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = _write(tmp_path / "m.gguf", _state(0, family), family, "Q8_0")
    about = load_gguf_checkpoint(str(path), return_tensors=False)["config"]
    about |= {"head_dim": WIDTH // HEADS}
    config = transformers.AutoConfig.for_model(about.pop("model_type"), **about)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    checkpoint = Checkpoint.open(path)
    assert set(checkpoint.tensors) == set(theirs)
    for name, wanted in theirs.items():
        assert torch.equal(checkpoint[name].load(), wanted.float()), name


def test_a_gguf_expert_merges_into_a_model(tmp_path: Path) -> None:
    """A base with config and files, and an expert that exists as GGUF only."""
    base = {k: v.bfloat16() for k, v in _state(0, "llama").items()}
    save(tmp_path / "base", base, torch_dtype="bfloat16")
    path = _write(tmp_path / "m.gguf", _state(1, "llama"), "llama", "Q8_0")
    recipe = {"method": "linear", "experts": {"a": str(tmp_path / "base"), "b": str(path)}}
    plait.merge(recipe, tmp_path / "out", threads=2)
    got, expert = read(tmp_path / "out"), Checkpoint.open(path)
    assert set(got) == set(base) and all(t.dtype == torch.bfloat16 for t in got.values())
    for name, weight in base.items():
        assert torch.equal(got[name], ((weight.float() + expert[name].load()) / 2).bfloat16()), name
    assert reproduce(tmp_path / "out").identical


def test_what_is_not_read_is_refused_by_name(tmp_path: Path) -> None:
    """Families whose conversion changes values, tensors that are unknown, and files that are none."""
    state = _state(0, "llama")
    with pytest.raises(QuantizedCheckpointError, match="family 'gemma'"):
        Checkpoint.open(_write(tmp_path / "g.gguf", state, "gemma", "F16"))
    odd = {"blk.0.ffn_gate_exps.weight": torch.zeros(2, 4, 32)}
    with pytest.raises(QuantizedCheckpointError, match=r"blk\.0\.ffn_gate_exps"):
        Checkpoint.open(_write(tmp_path / "e.gguf", state, "llama", "F16", **odd))
    (tmp_path / "no.gguf").write_bytes(b"GGUF, but nothing behind it")
    with pytest.raises(CheckpointError, match="cannot be read as GGUF"):
        Checkpoint.open(tmp_path / "no.gguf")
    whole = (tmp_path / "g.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError):
        Checkpoint.open(tmp_path / "cut.gguf")
