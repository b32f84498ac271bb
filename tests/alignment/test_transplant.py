"""Transplanted tokenizers: the mathematics against golden vectors and laws, and whole models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import golden_store as store
import plait
from alignment.speakers import TOKENS, ids_of, speaker, words
from models import read
from plait.alignment._tokenizer import Tokenizer
from plait.alignment._words import meanings
from plait.cli import app
from plait.errors import RecipeError
from plait.tensors.pursuit import between_neighbours, matching_pursuit

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize("k", [1, 4, 8, 16])
def test_pursuit_is_mergekits(k: int) -> None:
    golden = store.expected("tokensurgeon")
    if golden is None:
        pytest.skip("the vectors are not here")
    donor, model = store.load("align_in_independent")[EMBED], store.load("expert0")[EMBED]
    picks, shares = matching_pursuit(donor[28:], donor[:28], k)
    assert torch.equal(picks, golden[f"omp.k{k}.indices"])
    torch.testing.assert_close(shares, golden[f"omp.k{k}.coeff"], rtol=1e-4, atol=1e-5)
    rows = torch.einsum("bk,bkd->bd", shares, model[:28][picks])
    torch.testing.assert_close(rows, golden[f"omp.k{k}.rows"], rtol=1e-4, atol=1e-5)


def test_neighbours_are_mergekits() -> None:
    golden = store.expected("tokensurgeon")
    if golden is None:
        pytest.skip("the vectors are not here")
    donor, name = store.load("align_in_independent")[EMBED], "interp.euclidean.distance_proportional.k6"
    picks, shares = between_neighbours(donor[28:], donor[:28], 6)
    assert torch.equal(picks.sort(1).values, golden[f"{name}.indices"].sort(1).values)
    rows = torch.einsum("bk,bkd->bd", shares, store.load("expert0")[EMBED][:28][picks])
    torch.testing.assert_close(rows, golden[f"{name}.rows"], rtol=1e-4, atol=1e-5)


def test_laws_of_the_pursuit() -> None:
    rng = torch.Generator().manual_seed(0)
    atoms = torch.randn(20, 8, generator=rng)
    targets = torch.randn(5, 8, generator=rng)
    picks, shares = matching_pursuit(targets, atoms, 1)
    best = (targets @ atoms.mT).abs().argmax(1)
    assert torch.equal(picks[:, 0], best)
    torch.testing.assert_close(shares[:, 0], (targets * atoms[best]).sum(1) / atoms[best].square().sum(1))
    picks, shares = matching_pursuit(targets, atoms, 8)
    assert all(len(set(line)) == 8 for line in picks.tolist())
    torch.testing.assert_close(torch.einsum("bk,bkd->bd", shares, atoms[picks]), targets, rtol=1e-3, atol=1e-4)
    # more atoms than dimensions: those that add nothing get nothing, the sum stays
    picks, shares = matching_pursuit(targets, atoms, 16)
    assert torch.isfinite(shares).all() and float(shares.abs().max()) < 100
    torch.testing.assert_close(torch.einsum("bk,bkd->bd", shares, atoms[picks]), targets, rtol=1e-3, atol=1e-4)
    _, shares = between_neighbours(atoms[:3], atoms, 4)
    torch.testing.assert_close(shares[:, 0], torch.ones(3), rtol=1e-4, atol=1e-4)  # an atom is its own neighbour


def test_tokens_are_known_by_what_they_mean() -> None:
    """Whatever marks the start of a word, and however the special tokens are called."""
    files = {"tokenizer_config.json": json.dumps({"eos_token": {"content": "<|end|>"}}).encode()}
    bytes_ = Tokenizer("a", {"Ġthe": 0, "the": 1, "<|end|>": 2, "Ġof": 3, "far": 9}, files)
    pieces = Tokenizer(
        "b", {"▁the": 7, "the": 8, "</s>": 2, "▁on": 5}, {"tokenizer_config.json": b'{"eos_token": "</s>"}'}
    )
    one, two = meanings(bytes_, 9), meanings(pieces, 9)
    assert {m: (one[m], two[m]) for m in one if m in two} == {
        ("word", "the"): (0, 7),
        ("part", "the"): (1, 8),
        ("special", "eos_token"): (2, 2),
    }
    assert ("part", "far") not in one  # it has no row


def recipe(home: Path, **more: Any) -> dict[str, Any]:
    return {
        "method": "passthrough",
        "experts": {"model": str(home / "model")},
        "tokenizer": {"transplant": str(home / "donor"), **more},
    }


def two(home: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A model of 256 words; a donor with half of them under other numbers, and 300 of its own."""
    model = speaker(home / "model", 0, TOKENS, words())
    mixed = (
        {"</s>": 0, "<s>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, 128)} | {f"v{i}": i for i in range(128, 428)}
    )
    return model, speaker(home / "donor", 1, 448, mixed)


@pytest.mark.parametrize("by", ["omp", "nearest", "mean", "zero"])
def test_known_rows_stay_and_new_ones_follow_the_donor(by: str, tmp_path: Path) -> None:
    model, donor = two(tmp_path)
    plait.merge(recipe(tmp_path, by=by, **({"k": 8} if by in ("omp", "nearest") else {})), tmp_path / "out")
    out = read(tmp_path / "out")
    known = torch.tensor([1, 0, *range(2, 128)])
    for table in (EMBED, HEAD):
        assert out[table].shape == (428, 32)
        assert torch.equal(out[table][:128], model[table][known])
        new = donor[table][128:428]
        if by == "omp":
            parts = [matching_pursuit(part, donor[table][:128], 8) for part in new.split(256)]
        elif by == "nearest":
            parts = [between_neighbours(part, donor[table][:128], 8) for part in new.split(256)]
        else:
            wanted = torch.zeros(300, 32) if by == "zero" else model[table][known].mean(0).expand(300, -1)
            torch.testing.assert_close(out[table][128:], wanted)
            continue
        rows = torch.cat([torch.einsum("bk,bkd->bd", c, model[table][known][i]) for i, c in parts])
        torch.testing.assert_close(out[table][128:], rows, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(out[k], model[k]) for k in model if k not in (EMBED, HEAD))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == 428 and ids_of(tmp_path / "out") == ids_of(tmp_path / "donor")
    assert not plait.reproduce(tmp_path / "out").differing


def test_by_subword_a_new_token_is_the_mean_of_its_pieces(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    model = speaker(tmp_path / "model", 0, TOKENS, words())
    theirs = {"<s>": 0, "</s>": 1, "<unk>": 2, "w7": 3, "w10 w20 w30": 4, "w5": 5, "zzz": 6}
    speaker(tmp_path / "donor", 1, 16, theirs)
    plait.merge(recipe(tmp_path, by="subword"), tmp_path / "out")
    out = read(tmp_path / "out")
    for table in (EMBED, HEAD):
        assert out[table].shape == (7, 32)
        assert torch.equal(out[table][[0, 1, 2, 3, 5]], model[table][[0, 1, 2, 7, 5]])
        torch.testing.assert_close(out[table][4], model[table][[10, 20, 30]].mean(0))
        assert torch.equal(out[table][6], model[table][2])  # a word it has not, read as <unk>


def test_ones_own_tokenizer_changes_nothing(tmp_path: Path) -> None:
    model = speaker(tmp_path / "model", 0, TOKENS, words())
    content = {**recipe(tmp_path), "tokenizer": {"transplant": str(tmp_path / "model")}}
    plait.merge(content, tmp_path / "out")
    out = read(tmp_path / "out")
    assert all(torch.equal(out[k], model[k]) for k in model)


def test_the_verb(tmp_path: Path) -> None:
    two(tmp_path)
    runner = CliRunner()
    words_ = [
        "transplant",
        str(tmp_path / "model"),
        str(tmp_path / "donor"),
        "-o",
        str(tmp_path / "out"),
        "--pad",
        "64",
    ]
    done = runner.invoke(app, words_, catch_exceptions=False)
    assert done.exit_code == 0 and "128 tokens keep their rows, 300 get new ones (omp)" in done.output
    assert read(tmp_path / "out")[EMBED].shape[0] == 448


def test_what_cannot_be_transplanted(tmp_path: Path) -> None:
    two(tmp_path)
    speaker(tmp_path / "foreign", 2, 64, {f"z{i}": i for i in range(64)})
    other = {**recipe(tmp_path), "tokenizer": {"transplant": str(tmp_path / "foreign")}}
    (tmp_path / "foreign" / "tokenizer_config.json").unlink()
    with pytest.raises(RecipeError, match="no token in common"):
        plait.plan(other)
    with pytest.raises(RecipeError, match="leave out source"):
        plait.plan(recipe(tmp_path, source="union"))
    with pytest.raises(RecipeError, match="k is for a transplant"):
        plait.plan({**recipe(tmp_path), "tokenizer": {"source": "base", "k": 3}})
