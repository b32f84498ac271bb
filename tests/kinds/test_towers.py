"""A language model merged into the text tower of a vision-language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import plait
from models import read
from plait.errors import IncompatibleModelsError, RecipeError

from .hf_models import TEXT, load, logits, make

pytest.importorskip("transformers")


def _llama(**changes: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**{**TEXT, **changes})


def _llava(**changes: Any) -> Any:
    from transformers import CLIPVisionConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    return LlavaConfig(vision_config=vision, text_config=_llama(), image_token_index=63, **changes)


def _qwen_vl() -> Any:
    from transformers import Qwen2VLConfig

    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = {**TEXT, "rope_parameters": rope, "tie_word_embeddings": False}
    vision = {"depth": 2, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2, "patch_size": 4}
    return Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)


def test_a_llama_merges_into_the_text_tower_of_a_llava(tmp_path: Path) -> None:
    """The tower's weights are the average, everything else is LLaVA's, and the result loads and answers so."""
    vlm = make(tmp_path / "vlm", "LlavaForConditionalGeneration", _llava(), 0)
    llm = make(tmp_path / "llm", "LlamaForCausalLM", _llama(), 1)
    recipe = {"method": "linear", "experts": {"vlm": str(tmp_path / "vlm"), "llm": str(tmp_path / "llm")}}
    found = plait.check(recipe)  # in the tower, too, a model that does not descend from the other is found
    assert [f.kind for f in found.findings if f.level == "blocks"] == ["ancestry"]
    plan = plait.plan(recipe)
    assert any("llm is seen in the names of" in note and "language_model" in note for note in plan.notes), plan.notes
    assert any("kept as they are" in note and "vision_tower" in note for note in plan.notes)
    plait.merge(recipe, tmp_path / "out", threads=1)
    merged = load(tmp_path / "out", "LlavaForConditionalGeneration")
    with torch.no_grad():  # by hand: average the tower and the head
        tower, text = vlm.model.language_model, llm.model
        for mine, other in zip(tower.parameters(), text.parameters(), strict=True):
            mine.copy_((mine + other) / 2)
        vlm.lm_head.weight.copy_((vlm.lm_head.weight + llm.lm_head.weight) / 2)
    for (name, got), (_, want) in zip(merged.named_parameters(), vlm.named_parameters(), strict=True):
        torch.testing.assert_close(got, want, msg=name)
    torch.testing.assert_close(logits(merged), logits(vlm))


def test_the_larger_model_gives_the_files_also_where_the_base_is_the_language_model(tmp_path: Path) -> None:
    """A task vector of a reasoning model on top of a vision-language model, from their common ancestor."""
    make(tmp_path / "base", "LlamaForCausalLM", _llama(), 1)
    make(tmp_path / "math", "LlamaForCausalLM", _llama(), 2)
    make(tmp_path / "vlm", "Qwen2VLForConditionalGeneration", _qwen_vl(), 0)
    make(tmp_path / "llama-vlm", "LlavaForConditionalGeneration", _llava(), 3)
    recipe = {
        "method": "task_arithmetic",
        "base": str(tmp_path / "base"),
        "experts": {"math": str(tmp_path / "math"), "vlm": str(tmp_path / "llama-vlm")},
    }
    plan = plait.plan(recipe)
    assert plan.config is not None and plan.config["model_type"] == "llava"
    plait.merge(recipe, tmp_path / "out", threads=1)
    load(tmp_path / "out", "LlavaForConditionalGeneration")
    got, base = read(tmp_path / "out"), read(tmp_path / "base")
    vlm, math = read(tmp_path / "llama-vlm"), read(tmp_path / "math")
    name = next(n for n in vlm if n.endswith("layers.1.mlp.down_proj.weight"))
    own = "model.layers.1.mlp.down_proj.weight"
    torch.testing.assert_close(got[name], vlm[name] + math[own] - base[own])
    rest = [n for n in vlm if "vision" in n or "projector" in n]
    assert rest and all(torch.equal(got[n], vlm[n]) for n in rest)


def test_a_qwen_merges_into_a_qwen_vl(tmp_path: Path) -> None:
    """The same without a word in the recipe for another family's prefixes."""
    from transformers import Qwen2Config

    vlm = make(tmp_path / "vlm", "Qwen2VLForConditionalGeneration", _qwen_vl(), 0)
    llm = make(tmp_path / "llm", "Qwen2ForCausalLM", Qwen2Config(**TEXT, tie_word_embeddings=False), 1)
    recipe = {"method": "linear", "experts": [str(tmp_path / "vlm"), str(tmp_path / "llm")]}
    plait.merge(recipe, tmp_path / "out", threads=1)
    merged = load(tmp_path / "out", "Qwen2VLForConditionalGeneration")
    wanted = (vlm.model.language_model.layers[0].mlp.up_proj.weight + llm.model.layers[0].mlp.up_proj.weight) / 2
    torch.testing.assert_close(merged.model.language_model.layers[0].mlp.up_proj.weight, wanted)
    assert torch.equal(merged.model.visual.patch_embed.proj.weight, vlm.model.visual.patch_embed.proj.weight)


def _twins(home: Path) -> tuple[Path, Path]:
    """A model with two towers alike, and one that fits both."""
    rng = torch.Generator().manual_seed(0)
    for name, prefixes in (("two", ("left.blocks", "right.blocks")), ("one", ("layers",))):
        (home / name).mkdir()
        state = {f"{p}.{i}.w": torch.randn(4, 4, generator=rng) for p in prefixes for i in range(2)}
        save_file(state, home / name / "model.safetensors")
    return home / "two", home / "one"


def test_what_is_ambiguous_is_refused_until_the_recipe_says_which(tmp_path: Path) -> None:
    """Two towers with the same names and shapes inside."""
    two, one = _twins(tmp_path)
    recipe: dict[str, Any] = {"method": "linear", "experts": {"two": str(two), "one": str(one)}}
    with pytest.raises(IncompatibleModelsError, match=r"left\.blocks or right\.blocks.*`tower: left`"):
        plait.plan(recipe)
    plait.merge({**recipe, "tower": "right"}, tmp_path / "out", threads=1)
    got, had, single = read(tmp_path / "out"), read(two), read(one)
    torch.testing.assert_close(got["right.blocks.1.w"], (had["right.blocks.1.w"] + single["layers.1.w"]) / 2)
    assert torch.equal(got["left.blocks.1.w"], had["left.blocks.1.w"])


def test_a_tower_that_is_none_is_an_error(tmp_path: Path) -> None:
    """A prefix under which nothing fits."""
    two, one = _twins(tmp_path)
    recipe = {"method": "linear", "experts": {"two": str(two), "one": str(one)}, "tower": "middle"}
    with pytest.raises(RecipeError, match="tower: middle"):
        plait.plan(recipe)


def test_what_two_models_have_and_a_third_lacks_is_not_chosen_in_silence(tmp_path: Path) -> None:
    """Vision towers of two models, and a language model: whose vision is wanted has to be said."""
    make(tmp_path / "a", "LlavaForConditionalGeneration", _llava(), 0)
    make(tmp_path / "b", "LlavaForConditionalGeneration", _llava(), 1)
    make(tmp_path / "llm", "LlamaForCausalLM", _llama(), 2)
    recipe: dict[str, Any] = {"method": "linear", "experts": {n: str(tmp_path / n) for n in ("a", "b", "llm")}}
    with pytest.raises(IncompatibleModelsError, match="missing from llm"):
        plait.plan(recipe)
    said = {**recipe, "copy": [{"match": ["*vision*", "*projector*"], "from": "b"}]}
    plait.merge(said, tmp_path / "out", threads=1)
    got, b = read(tmp_path / "out"), read(tmp_path / "b")
    name = next(n for n in b if "projector" in n)
    assert torch.equal(got[name], b[name])
