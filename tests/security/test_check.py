"""`plait check` on prepared models: each cause has a sentence and an exit code of its own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import plait
from models import CONFIG, State, family, llama, save
from plait.cli import app
from plait.errors import RecipeError
from plait.security import EXIT_CODES, sample_of

_WORDS = {f"w{i}": i for i in range(64)}


def _model(folder: Path, state: State, *, words: dict[str, int] | None = None, card: str = "", **config: Any) -> None:
    save(folder, state, **config)
    tokenizer = {"model": {"type": "BPE", "vocab": words or _WORDS}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "README.md").write_text(f"---\nlicense: {card or 'apache-2.0'}\n---\n")


def _near(base: State, seed: int, size: float = 0.02) -> State:
    rng = torch.Generator().manual_seed(seed)
    return {k: v + size * v.norm() / v.numel() ** 0.5 * torch.randn(v.shape, generator=rng) for k, v in base.items()}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A base and two fine-tunes of it that nothing is wrong with, and a recipe."""
    base = llama(0)
    _model(tmp_path / "base", base)
    for i in (1, 2):
        _model(tmp_path / f"e{i}", _near(base, i))
    recipe = {"method": "ties", "base": "./base", "experts": {"e1": "./e1", "e2": "./e2"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def _check(home: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["check", str(home / "recipe.yaml"), *options], env={"COLUMNS": "400"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout


def test_a_good_set_is_fit(home: Path) -> None:
    code, text = _check(home, "--strict")
    assert code == 0, text
    assert "fit: nothing speaks against this merge" in text
    for word in ("e1 from base", "2 % of the size", "e1 ~ e2", "cosine", "memory", "disk", "suits", "all tensors"):
        assert word in text, word


def _unlike(home: Path) -> None:
    _model(home / "e2", llama(7))


def _locked(home: Path) -> None:
    """Every key head's pairs turned and scaled, every value head mixed; all of it undone by its counterpart."""
    state = {k: v.double() for k, v in _near(llama(0), 2).items()}
    rng = torch.Generator().manual_seed(3)
    for i in range(3):
        p = f"model.layers.{i}.self_attn."
        q, k, v, o = (state[f"{p}{x}_proj.weight"].clone() for x in "qkvo")
        for kv in range(2):
            mix = torch.randn(8, 8, generator=rng, dtype=torch.float64)
            v[8 * kv : 8 * kv + 8] = mix @ v[8 * kv : 8 * kv + 8]
            angle, scale = 6.3 * torch.rand(4, generator=rng), 0.5 + torch.rand(4, generator=rng)
            turn = torch.zeros(8, 8, dtype=torch.float64)
            for j in range(4):  # the pair (j, j + 4) of rotate-half
                c, s = torch.cos(angle[j]), torch.sin(angle[j])
                turn[j, j], turn[j, j + 4], turn[j + 4, j], turn[j + 4, j + 4] = c, -s, s, c
            size = torch.diag(scale.repeat(2).double())
            k[8 * kv : 8 * kv + 8] = turn @ size @ k[8 * kv : 8 * kv + 8]
            for head in (2 * kv, 2 * kv + 1):
                rows = slice(8 * head, 8 * head + 8)
                q[rows] = turn @ size.inverse() @ q[rows]
                o[:, rows] = o[:, rows] @ mix.inverse()
        for x, value in zip("qkvo", (q, k, v, o), strict=True):
            state[f"{p}{x}_proj.weight"] = value
    _model(home / "e2", {k: v.float() for k, v in state.items()})


def _permuted(home: Path) -> None:
    """Hidden units of every MLP in another order."""
    state = _near(llama(0), 2)
    for i in range(3):
        p = f"model.layers.{i}.mlp."
        order = torch.randperm(48, generator=torch.Generator().manual_seed(i))
        state[f"{p}gate_proj.weight"] = state[f"{p}gate_proj.weight"][order]
        state[f"{p}up_proj.weight"] = state[f"{p}up_proj.weight"][order]
        state[f"{p}down_proj.weight"] = state[f"{p}down_proj.weight"][:, order].contiguous()
    _model(home / "e2", state)


def _other_words(home: Path) -> None:
    swapped = {**_WORDS, "w3": 4, "w4": 3}
    _model(home / "e2", _near(llama(0), 2), words=swapped)


def _more_rows(home: Path) -> None:
    state = _near(llama(0), 2)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], torch.zeros(3, 32)])
    _model(home / "e2", state, vocab_size=67)


def _rope(home: Path) -> None:
    for name, theta in (("base", 10000.0), ("e1", 10000), ("e2", 1e6)):
        (home / name / "config.json").write_text(json.dumps({**CONFIG, "rope_theta": theta}))


def _activation(home: Path) -> None:
    for name, act in (("base", "silu"), ("e1", "silu"), ("e2", "gelu")):
        (home / name / "config.json").write_text(json.dumps({**CONFIG, "hidden_act": act}))


def _nan(home: Path) -> None:
    state = _near(llama(0), 2)
    state["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    _model(home / "e2", state)


def _quantised(home: Path) -> None:
    changed = {**CONFIG, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (home / "e2" / "config.json").write_text(json.dumps(changed))


class _Bomb:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (os.system, ("exit 1",))


def _pickle(home: Path) -> None:
    (home / "e2" / "model.safetensors").unlink()
    torch.save({"w": _Bomb()}, home / "e2" / "pytorch_model.bin")


def _missing(home: Path) -> None:
    shutil.rmtree(home / "e2")


def _layers(home: Path) -> None:
    _model(home / "e2", _near(llama(0, layers=2), 2))


@pytest.mark.parametrize(
    ("prepare", "kind", "sentence"),
    [
        (_unlike, "ancestry", "e2 does not descend from base"),
        (_locked, "locked", "e2 looks locked or permuted"),
        (_permuted, "locked", "e2 looks locked or permuted"),
        (_other_words, "vocabulary", "rows of the embedding mean other tokens in e2 than in base: 2 tokens"),
        (_more_rows, "vocabulary", "different numbers of rows: 64 in base, 64 in e1, 67 in e2"),
        (_rope, "rope", "rope_theta is 1e+06 in e2 and 10000 in base"),
        (_activation, "settings", "hidden_act is 'gelu' in e2 and 'silu' in base"),
        (_nan, "nonfinite", "tensor 'model.layers.1.mlp.up_proj.weight' of e2"),
        (_quantised, "quantised", "is a gptq model"),
        (_pickle, "unsafe", "e2 cannot be used"),
        (_missing, "missing", "there is no model at ./e2"),
        (_layers, "architecture", "the merge cannot be planned"),
    ],
)
def test_every_cause_has_a_sentence_and_a_code(
    home: Path, prepare: Callable[[Path], None], kind: str, sentence: str
) -> None:
    prepare(home)
    code, text = _check(home)
    assert code == EXIT_CODES[kind], text
    assert sentence in text
    assert f"\nunfit: {kind}" in text
    found = json.loads(_check(home, "--json")[1])
    assert not found["fit"]
    blocking = [f for f in found["findings"] if f["level"] == "blocks"]
    assert any(f["kind"] == kind and sentence in f["sentence"] for f in blocking)


def _licence(home: Path) -> None:
    _model(home / "e2", _near(llama(0), 2), card="llama3.1")


def _gated(home: Path) -> None:
    card = "---\nlicense: apache-2.0\nextra_gated_prompt: please agree\n---\n"
    (home / "e2" / "README.md").write_text(card)


def _template(home: Path) -> None:
    (home / "e2" / "chat_template.jinja").write_text("{{ messages }}")


def _special(home: Path) -> None:
    for name, token in (("base", "w1"), ("e1", "w1"), ("e2", {"content": "w2"})):
        (home / name / "tokenizer_config.json").write_text(json.dumps({"eos_token": token}))


def _code(home: Path) -> None:
    (home / "e2" / "config.json").write_text(json.dumps({**CONFIG, "auto_map": {"AutoModel": "x.Y"}}))


def _far(home: Path) -> None:
    _model(home / "e2", _near(llama(0), 2, size=0.6))


def _opposed(home: Path) -> None:
    base, near = llama(0), _near(llama(0), 1)
    _model(home / "e2", {k: 2 * base[k] - v for k, v in near.items()})


def _twin(home: Path) -> None:
    _model(home / "e2", _near(llama(0), 1))


def _unmoved(home: Path) -> None:
    _model(home / "e2", llama(0))


@pytest.mark.parametrize(
    ("prepare", "kind", "sentence"),
    [
        (_licence, "licence", "of which llama3.1 is the strictest"),
        (_gated, "licence", "e2 is gated"),
        (_template, "template", "e2 has a chat template, base has none"),
        (_special, "vocabulary", "eos_token is 'w2' in e2 and 'w1' in base"),
        (_code, "unsafe", "names code of its own"),
        (_far, "ancestry", "e2 is far from base: its matrices moved by 59 %"),
        (_opposed, "conflict", "e1 ~ e2 moved in opposite directions"),
        (_twin, "conflict", "e1 ~ e2 changed the same"),
        (_unmoved, "conflict", "e2 equals the base"),
    ],
)
def test_what_is_only_worth_a_look_is_fit(
    home: Path, prepare: Callable[[Path], None], kind: str, sentence: str
) -> None:
    prepare(home)
    code, text = _check(home)
    assert code == 0, text
    assert sentence in text and "fit, with" in text
    assert _check(home, "--strict")[0] == EXIT_CODES[kind]


def test_models_without_a_base_are_compared_with_the_first(home: Path) -> None:
    recipe = {"method": "slerp", "experts": {"e1": "./e1", "e2": "./e2"}}
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    found = plait.check(home / "recipe.yaml")
    assert found.fit and found.compared == "e1"
    assert found.evidence["e2"].distance == pytest.approx(2**0.5 * 0.02, rel=0.1)
    assert [s.method for s in found.suggestions] == ["linear", "slerp"]
    _unlike(home)
    assert not plait.check(home / "recipe.yaml").fit


def test_three_different_experts_suit_spectral_methods_and_alike_ones_an_average(home: Path) -> None:
    base = llama(0)
    _model(home / "e3", _near(base, 3))
    recipe: dict[str, Any] = {"method": "ties", "base": "./base", "experts": {f"e{i}": f"./e{i}" for i in (1, 2, 3)}}
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert plait.check(home / "recipe.yaml").suggestions[0].method == "tsv_merge"
    for i in (2, 3):
        _model(home / f"e{i}", {k: v + 0.3 * (_near(base, i)[k] - base[k]) for k, v in _near(base, 1).items()})
    assert plait.check(home / "recipe.yaml").suggestions[0].method == "linear"


def test_nested_recipes_and_slices_are_looked_into(home: Path) -> None:
    inner = {"method": "ties", "base": "./base", "experts": {"e1": "./e1", "e2": "./e2"}}
    recipe = {"method": "slerp", "experts": {"both": inner, "one": "./e1"}, "parameters": {"t": 0.5}}
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert _check(home)[0] == 0
    _unlike(home)
    code, text = _check(home)
    assert code == EXIT_CODES["ancestry"] and "both/e2 does not descend" in text


def test_a_recipe_that_cannot_be_read_is_an_error(home: Path) -> None:
    (home / "recipe.yaml").write_text("method: ties\nbase: ./base\nexperts: {e1: ./e1}\nparameters: {dense: 1}\n")
    code, text = _check(home)
    assert code == EXIT_CODES["recipe"] and "dense" in text
    (home / "recipe.yaml").write_text("methd: ties\n")
    with pytest.raises(RecipeError, match="methd"):
        plait.check(home / "recipe.yaml")


def test_large_models_are_sampled() -> None:
    base, _ = family(1, layers=9)
    sample = sample_of(plait.Checkpoint.open(base))
    assert {name.split(".")[2] for layer in sample.layers for name in layer} == {"0", "4", "8"}
    assert "model.norm.weight" in sample.names and "model.layers.5.input_layernorm.weight" in sample.names
    assert "model.layers.5.mlp.up_proj.weight" not in sample.names
    assert len(sample.matrices) == 3 * 7
