"""Mixture-of-Experts models whose experts lie fused in one file and one by one in another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from models import read

from .hf_models import TEXT, load, logits, make

pytest.importorskip("transformers")


def _config(kind: str) -> Any:
    import transformers

    if kind == "Mixtral":
        return transformers.MixtralConfig(**TEXT, num_local_experts=4, num_experts_per_tok=2)
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    if kind == "Qwen2Moe":
        return transformers.Qwen2MoeConfig(**TEXT, **moe, shared_expert_intermediate_size=40)
    return transformers.Qwen3MoeConfig(**TEXT, **moe, head_dim=8)


@pytest.mark.parametrize(
    ("kind", "fused"),
    [
        ("Mixtral", ()),
        ("Mixtral", ("a",)),
        ("Mixtral", ("b",)),
        ("Qwen2Moe", ("a",)),
        ("Qwen2Moe", ("b",)),
        ("Qwen3Moe", ("a", "b")),
    ],
)
def test_experts_merge_whatever_the_layout(kind: str, fused: tuple[str, ...], tmp_path: Path) -> None:
    """The output has the first model's layout, loads, and answers as a merge by hand of the modules in memory."""
    cls = f"{kind}ForCausalLM"
    a = make(tmp_path / "a", cls, _config(kind), 0, save_original_format="a" not in fused)
    b = make(tmp_path / "b", cls, _config(kind), 1, save_original_format="b" not in fused)
    recipe = {"method": "linear", "experts": {n: str(tmp_path / n) for n in "ab"}}
    plait.merge(recipe, tmp_path / "out", threads=1)
    assert set(read(tmp_path / "out")) == set(read(tmp_path / "a"))
    merged = load(tmp_path / "out", cls)
    with torch.no_grad():
        for mine, other in zip(a.parameters(), b.parameters(), strict=True):
            mine.copy_((mine + other) / 2)
    for (name, got), (_, want) in zip(merged.named_parameters(), a.named_parameters(), strict=True):
        torch.testing.assert_close(got, want, msg=name)
    torch.testing.assert_close(logits(merged), logits(a))


def test_views_change_no_bit(tmp_path: Path) -> None:
    """One model against itself in the other layout: a merge of the two is the model, in either layout."""
    for name, original in (("single", True), ("fused", False)):
        make(tmp_path / name, "MixtralForCausalLM", _config("Mixtral"), 0, save_original_format=original)
    for first, second in (("single", "fused"), ("fused", "single")):
        recipe = {
            "method": "task_arithmetic",
            "base": str(tmp_path / first),
            "experts": {"other": str(tmp_path / second)},
        }
        plait.merge(recipe, tmp_path / f"out-{first}", threads=1)
        got, had = read(tmp_path / f"out-{first}"), read(tmp_path / first)
        assert set(got) == set(had) and all(torch.equal(got[n], had[n]) for n in had)


def test_input_hashes_are_those_of_the_files_whatever_the_view(tmp_path: Path) -> None:
    """Provenance names what lies on disk, so that the merge can be rebuilt."""
    import json

    from plait.reports._reproduce import reproduce

    make(tmp_path / "a", "MixtralForCausalLM", _config("Mixtral"), 0, save_original_format=False)
    make(tmp_path / "b", "MixtralForCausalLM", _config("Mixtral"), 1)
    plait.merge({"method": "ties", "base": str(tmp_path / "a"), "experts": [str(tmp_path / "b")]}, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "plait.json").read_text())
    assert record["inputs"]["expert0"]["tensors"] == len(read(tmp_path / "b"))
    assert reproduce(tmp_path / "out").identical


def test_numbers_of_experts_that_differ_are_an_error(tmp_path: Path) -> None:
    """A fused tensor of four experts is never filled from six."""
    from transformers import MixtralConfig

    from plait.errors import IncompatibleModelsError

    make(tmp_path / "a", "MixtralForCausalLM", _config("Mixtral"), 0, save_original_format=False)
    six = MixtralConfig(**TEXT, num_local_experts=6, num_experts_per_tok=2)
    make(tmp_path / "b", "MixtralForCausalLM", six, 1)
    with pytest.raises(IncompatibleModelsError, match=r"experts"):
        plait.plan({"method": "linear", "experts": [str(tmp_path / "a"), str(tmp_path / "b")]})
