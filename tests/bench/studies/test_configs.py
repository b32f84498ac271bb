"""Studies as files: strict, with the line of every mistake; subsets that are drawn once and for all."""

from __future__ import annotations

from pathlib import Path

import pytest

from plait.bench.studies import StudyConfig, built_in, entrant, entrants, load_config
from plait.bench.studies._pools import subsets_of
from plait.errors import RecipeError, UnknownMethodError
from plait.methods import Sparsifier, compositions, methods
from plait.recipes import load_recipe


@pytest.mark.parametrize("name", built_in())
def test_protocols_are_valid(name: str) -> None:
    config, _ = load_config(name)
    assert config.arms
    entrants([m if isinstance(m, str) else m.model_dump() for m in config.methods])


def test_protocols_are_those_that_are_documented() -> None:
    assert set(built_in()) == {"mergebench", "in_the_wild", "at_scale"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arms:\n  a: {testbed: t}\nmethds: [ties]\n", r"line 3: unknown key 'methds'. Did you mean 'methods'\?"),
        ("arms:\n  a: {testbd: t}\n", r"line 2: unknown key 'arms.a.testbd'. Did you mean 'testbed'\?"),
        ("methods: [ties]\n", "the key 'arms' is missing"),
        ("arms:\n  a: {}\n", "line 2: arms.a: an arm has either a testbed or models"),
        ("arms:\n  a: {testbed: t}\nseeds: []\n", "seeds"),
        ("arms:\n  a: {testbed: t}\nbootstrap: 3\n", "line 3: bootstrap"),
        ("arms:\n  a: {testbed: t}\nrecipe: {method: ties}\n", "'method' is what a study fills in itself"),
        ("arms:\n  a: {testbed: t}\nlandscape: 2\n", "needs 4 points or more"),
        ("- 1\n", "a study is a mapping"),
        ("arms:\n  a:\n    models: {base: b, experts: {x: x, y: y}}\n", "there is no task"),
    ],
)
def test_mistakes_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_config(path)


def test_an_unknown_study(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"Did you mean 'mergebench'\?"):
        load_config("mergebnch")
    with pytest.raises(UnknownMethodError):
        entrants(["tise"])
    with pytest.raises(RecipeError, match="two methods of the study are called 'ties'"):
        entrants(["ties", {"name": "ties"}])


@pytest.mark.parametrize("name", [*methods(), *compositions()])
def test_every_method_can_enter(name: str) -> None:
    one = entrant(name)
    setting = one.settings()[0]
    recipe = one.recipe("base", {"a": "a", "b": "b"}, setting, 0)
    source = load_recipe(recipe)
    assert list(source.recipe.experts) == ["a", "b"]
    if name in methods() and issubclass(methods()[name], Sparsifier):
        assert isinstance(one.method, list)


def test_subsets_are_drawn_without_repetition_and_once() -> None:
    names = list("abcdef")
    config = StudyConfig.model_validate(
        {"arms": {"a": {"testbed": "t"}}, "subsets": {"sizes": [2, 3, 6], "per_size": 4, "seed": 1}}
    )
    found = subsets_of(names, config)
    assert [len(subset) for subset in found] == [2] * 4 + [3] * 4 + [6]
    assert len(set(found)) == len(found) and found == subsets_of(names, config)
    other = (
        config.model_copy(update={"subsets": config.subsets.model_copy(update={"seed": 2})})
        if config.subsets
        else config
    )
    assert subsets_of(names, other) != found
    with pytest.raises(RecipeError, match="the pool has 5"):
        subsets_of(names[:5], config)


def test_many_experts_have_subsets_too() -> None:
    names = [f"e{i}" for i in range(40)]
    config = StudyConfig.model_validate({"arms": {"a": {"testbed": "t"}}, "subsets": {"sizes": [12], "per_size": 3}})
    found = subsets_of(names, config)
    assert len(set(found)) == 3 and all(len(set(subset)) == 12 for subset in found)
