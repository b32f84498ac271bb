"""Recipes: strict YAML, values, steps, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import plait
from plait.architectures import Role, roles_of
from plait.errors import RecipeError
from plait.recipes import json_schema, load_recipe, parse_size, read_yaml, resolve_chain
from plait.recipes._values import Gradient, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E3", 1000.0),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("012", 12),
        ("0o14", 12),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("~", None),
        (".5", 0.5),
        ("'1'", "1"),
        ('"true"', "true"),
        ("-.inf", float("-inf")),
        ("=", "="),
    ],
)
def test_yaml_means_what_version_1_2_says(text: str, value: Any) -> None:
    found = read_yaml(f"key: {text}", "r.yaml").data["key"]
    assert found == value and type(found) is type(value)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text crashes the reader."""
    try:
        load_recipe_text(text)
    except RecipeError:
        pass


def load_recipe_text(text: str) -> Any:
    from plait.recipes._load import _validate

    return _validate(read_yaml(text, "r.yaml"))


def test_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("method: ties\nbase: a\nexperts:\n  x: b\nparameters:\n  density: 0.2\n  lamda: 1\n")
    with pytest.raises(RecipeError, match=r"r\.yaml, line 7: unknown parameter 'lamda'.*'lambda'"):
        resolve_chain(load_recipe(path))
    path.write_text("method: ties\nbase: a\nexperts:\n  x: {model: b, densty: 0.2}\n")
    with pytest.raises(RecipeError, match=r"line 4: unknown parameter 'densty'"):
        resolve_chain(load_recipe(path))
    path.write_text("method: ties\nslices:\n  - {modle: a, layers: [0, 1]}\n")
    with pytest.raises(RecipeError, match=r"line 3: unknown key 'modle'.*'model'"):
        load_recipe(path)


def test_paths_start_at_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    (tmp_path / "there").mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "there" / "m.safetensors")
    (tmp_path / "there" / "r.yaml").write_text("method: passthrough\nexperts: {a: m.safetensors}\n")
    monkeypatch.chdir(tmp_path)
    assert plait.plan("there/r.yaml").parameters == 2


def test_forms_of_experts_and_weights() -> None:
    recipe = load_recipe(
        {
            "method": "linear",
            "experts": {"a": "x", "b": {"model": "y", "weight": 0.5}, "c": {"model": "z", "weight": [0, 1]}},
            "parameters": {"weight": 2},
        }
    )
    chain = resolve_chain(recipe)
    assert chain.weights_at("w", Role("mlp", "l", 1, 3, None, 0.5)) == (2.0, 0.5, 0.5)
    listed = load_recipe({"method": "linear", "experts": ["x", {"model": "y", "weight": 3}]})
    assert resolve_chain(listed).experts == ("expert0", "expert1")
    by_name = load_recipe({"method": "linear", "experts": {"a": "x", "b": "y"}, "parameters": {"weight": {"b": 4}}})
    assert resolve_chain(by_name).weights_at("w", Role("mlp")) == (1.0, 4.0)


def test_parameters_find_their_step() -> None:
    def chain(**parameters: Any) -> Any:
        names = {"base": "b", "experts": {"a": "x", "b": "y"}}
        return resolve_chain(load_recipe({"method": "dare_ties", **names, "parameters": parameters}))

    dare, ties = chain(**{"dare.density": 0.5, "ties.density": {"a": 0.25}, "lambda": 2}).steps
    role = Role("mlp")
    assert dare.at("w", role, ("a", "b")).density == 0.5
    assert ties.at("w", role, ("a", "b")).density == (0.25, 0.2)
    assert ties.at("w", role, ("a", "b")).lambda_ == 2.0
    with pytest.raises(RecipeError, match=r"say dare\.density or ties\.density"):
        chain(density=0.5)
    with pytest.raises(RecipeError, match=r"'dario' in 'dario.density' is no step"):
        chain(**{"dario.density": 0.5})


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=6), st.floats(0, 1))
def test_gradients_are_straight_lines_between_points(points: list[float], depth: float) -> None:
    import numpy as np

    value = parse_value(list(points), "x")
    assert isinstance(value, Gradient)
    wanted = np.interp(depth, np.linspace(0, 1, len(points)), points)
    assert value.at("w", Role("mlp", depth=depth)) == pytest.approx(wanted, abs=1e-9)


def test_sizes() -> None:
    assert parse_size("5GB", "x") == 5 * 10**9
    assert parse_size("512MiB", "x") == 512 * 2**20
    assert parse_size("1.5 gib", "x") == int(1.5 * 2**30)
    assert parse_size(1024, "x") == 1024
    for bad in ("", "many", "-1GB", "0", "1 parsec"):
        with pytest.raises(RecipeError):
            parse_size(bad, "x")


def test_the_schema_accepts_recipes_and_refuses_typos() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(json.dumps(json_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good: dict[str, Any] = {
        "method": "ties",
        "base": "b",
        "experts": {
            "a": "x",
            "c": {"model": "y", "weight": 0.5, "density": 0.1},
            "n": {"method": "linear", "experts": ["p"]},
        },
        "parameters": {"density": {"a": 0.5}, "lambda": [0.1, 0.9], "scope": "tensor"},
        "copy": [{"role": "embedding", "from": "base"}],
        "drop": ["*.bias"],
        "dtype": "bfloat16",
        "tokenizer": "union",
    }
    validator.validate(good)
    load_recipe(good)
    asked = {"source": "base", "tokens": {"<a>": {"from": "a", "force": True}}, "pad_to_multiple_of": 8}
    validator.validate({**good, "tokenizer": asked, "chat_template": "auto"})
    load_recipe({**good, "tokenizer": asked, "chat_template": "auto"})
    for bad in (
        {**good, "paramters": {}},
        {**good, "tokenizer": {"sauce": "base"}},
        {**good, "method": "tise"},
        {**good, "parameters": {"densty": 0.5}},
        {**good, "parameters": {"density": 1.5}},
        {**good, "parameters": {"scope": "galaxy"}},
    ):
        assert list(validator.iter_errors(bad)), bad


ROLES = {
    "model.embed_tokens.weight": ("embedding", 0.0),
    "model.layers.0.self_attn.q_proj.weight": ("attention", 0.0),
    "model.layers.4.self_attn.q_norm.weight": ("norm", 1.0),
    "model.layers.2.mlp.experts.7.down_proj.weight": ("mlp", 0.5),
    "model.layers.2.mlp.gate.weight": ("router", 0.5),
    "model.layers.2.mlp.gate_proj.weight": ("mlp", 0.5),
    "model.norm.weight": ("norm", 1.0),
    "lm_head.weight": ("head", 1.0),
    "transformer.h.0.ln_1.weight": ("norm", 0.0),
    "transformer.h.2.attn.c_attn.weight": ("attention", 1.0),
    "transformer.wpe.weight": ("embedding", 0.0),
    "bert.embeddings.LayerNorm.bias": ("norm", 0.0),
    "bert.encoder.layer.1.attention.output.dense.weight": ("attention", 1.0),
    "bert.encoder.layer.0.intermediate.dense.weight": ("mlp", 0.0),
    "bert.encoder.layer.0.output.dense.weight": ("mlp", 0.0),
    "bert.pooler.dense.weight": ("head", 1.0),
    "encoder.block.1.layer.0.SelfAttention.q.weight": ("attention", 1.0),
    "encoder.block.0.layer.1.DenseReluDense.wo.weight": ("mlp", 0.0),
    "visual.transformer.resblocks.3.mlp.c_fc.weight": ("mlp", 1.0),
    "vit.embeddings.patch_embeddings.projection.weight": ("embedding", 0.0),
    "classifier.weight": ("head", 1.0),
}


@pytest.mark.parametrize("name", ROLES)
def test_roles_are_inferred_from_names(name: str) -> None:
    role = roles_of(ROLES)[name]
    assert (role.kind, role.depth) == ROLES[name]
