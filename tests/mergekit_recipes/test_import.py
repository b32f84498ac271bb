"""What is refused, what is said, and the command line."""

from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import plait
from models import family, save_family
from plait.cli import app
from plait.errors import OutputError, RecipeError
from plait.recipes import Document, Imported, import_documents, load_recipe, read_documents, recipe_yaml

CORPUS = Path(__file__).parent.parent / "data" / "mergekit"
TWO = "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\n"


def imported(text: str, stage: str | None = None) -> Imported:
    return import_documents(read_documents(text, "m.yml"), stage)


REFUSED: dict[str, tuple[str, str]] = {
    "unknown method": ("merge_method: tise\n" + TWO, r"line 1: 'tise' is no method of mergekit. Did you mean 'ties'"),
    "typo in a parameter": (
        "merge_method: ties\nbase_model: c\n" + TWO + "parameters: {densty: 0.2}\n",
        r"line 4: unknown parameter 'densty' of ties. Did you mean 'density'\? mergekit would ignore it in silence",
    ),
    "typo in a model's parameter": (
        "merge_method: linear\nmodels: [{model: a, parameters: {wieght: 1}}]\n",
        r"line 2: unknown parameter 'wieght' of linear. Did you mean 'weight'",
    ),
    "typo in a key": ("merge_method: linear\nbase_modle: c\n" + TWO, r"line 2: unknown key 'base_modle'"),
    "two kinds of models": ("merge_method: linear\nslices: [{}]\n" + TWO, "models and slices is given"),
    "no models": ("merge_method: linear\n", "none of them is given"),
    "no weight": ("merge_method: linear\nmodels: [{model: a}]\n", "linear needs 'weight' of a"),
    "no t": ("merge_method: slerp\nbase_model: a\nmodels: [a, b]\n", "slerp needs 't'"),
    "t beside a model": (
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b, parameters: {t: 0.5}}]\n",
        "slerp needs 't'",
    ),
    "no base": ("merge_method: ties\n" + TWO, "ties needs base_model"),
    "base not among the sources": (
        "merge_method: ties\nbase_model: c\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n",
        "base_model c must be among the sources",
    ),
    "one model twice": ("merge_method: linear\nmodels: [a, a]\nparameters: {weight: 1}\n", "a stands twice"),
    "three models for slerp": (
        "merge_method: slerp\nbase_model: a\nmodels: [a, b, c]\nparameters: {t: 0.5}\n",
        "slerp merges two models",
    ),
    "two models for passthrough": ("merge_method: passthrough\nmodels: [a, b]\n", "passthrough takes one model"),
    "unequal layers": (
        "merge_method: linear\nslices:\n"
        "- sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]\n",
        "equally many layers",
    ),
    "no layer": (
        "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [3, 3]}]}]\n",
        "holds no layer",
    ),
    "a switch that varies": (
        "merge_method: linear\n" + TWO + "parameters: {normalize: [{filter: mlp, value: true}, {value: false}]}\n",
        "parameter 'normalize' takes 2 values",
    ),
    "dtype": ("merge_method: linear\ndtype: bf16\n" + TWO, "line 2: dtype is 'bf16'.*Did you mean 'bfloat16'"),
    "word for a number": (
        "merge_method: ties\nbase_model: c\n" + TWO + "parameters: {density: lots}\n",
        "parameter 'density' of a is 'lots'; it must be a number",
    ),
    "mixture of experts": ("experts: []\ngate_mode: hidden\nbase_model: a\n", "mergekit-moe"),
    "two adapters": ("merge_method: passthrough\nmodels: [a+b+c]\n", r"cannot be read as MODEL"),
    "numbered filter in moved slices": (
        "merge_method: linear\nslices:\n- sources: [{model: a, layer_range: [2, 4]}, {model: b, layer_range: [2, 4]}]\n"
        "parameters: {weight: [{filter: layers.3., value: 1}, {value: 2}]}\n",
        "names a layer by its number",
    ),
    "merge keys": ("merge_method: linear\nx: &x {weight: 1}\nmodels: [{model: a, <<: *x}]\n", r"merge keys \(<<\)"),
    "modules": (
        "merge_method: linear\nmodules: {encoder: {models: [a, b]}, decoder: {models: [a]}}\n",
        "merging the modules encoder, decoder",
    ),
    "circle": (
        "name: x\nmerge_method: passthrough\nmodels: [y]\n---\nname: y\nmerge_method: passthrough\nmodels: [x]\n---\n"
        "merge_method: passthrough\nmodels: [x]\n",
        "in a circle: x → y → x|in a circle: y → x → y",
    ),
    "two results": (
        "name: x\nmerge_method: passthrough\nmodels: [a]\n---\nname: y\nmerge_method: passthrough\nmodels: [b]\n",
        "which of x, y is the result",
    ),
    "two documents of one name": (
        "name: x\nmerge_method: passthrough\nmodels: [a]\n---\nname: x\nmerge_method: passthrough\nmodels: [b]\n",
        "two documents are called 'x'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused_with_its_place(case: str) -> None:
    text, message = REFUSED[case]
    with pytest.raises(RecipeError, match=message):
        imported(text)


def test_values_out_of_bounds_are_refused(tmp_path: Path) -> None:
    """mergekit takes a density of 20 for 1, and one of −0.2 for 0."""
    path = tmp_path / "m.yml"
    home = save_family(tmp_path, *family(2))
    models = ", ".join(home["experts"].values())
    for density in (1.5, 0, -0.2):
        path.write_text(
            f"merge_method: ties\nbase_model: {home['base']}\nmodels: [{models}]\n"
            f"parameters: {{weight: 1, density: {density}}}\n"
        )
        with pytest.raises(RecipeError, match=r"m\.yml: parameter 'density' of 'ties'"):
            plait.plan(path)


ODD: list[Any] = [None, 0, -1, 1.5, "x", "", [], {}, [1, 2], [None], {"a": 1}, True, "+", "a@b@c", [[]], float("nan")]
ODD += [{"value": None}, {"filter": 1, "value": 2}, [{"filter": "x", "value": [1, 2]}], "1e-3", 10**400]


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a document."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.yml"))[::4], ids=lambda p: p.stem)
def test_whatever_stands_in_a_recipe_is_read_or_refused(path: Path) -> None:
    """No value in any place crashes the import."""
    documents = list(yaml.safe_load_all(path.read_text()))
    for number, document in enumerate(documents):
        for place in places(document)[1:]:
            for odd in ODD:
                changed = copy.deepcopy(documents)
                inside = changed[number]
                for key in place[:-1]:
                    inside = inside[key]
                inside[place[-1]] = odd
                with suppress(RecipeError):
                    import_documents([Document(d, "m.yml") for d in changed])


SAID: dict[str, tuple[str, str]] = {
    "parameter of another method": (
        "merge_method: model_stock\nbase_model: c\nmodels: [{model: a, parameters: {weight: 1}}, b]\n",
        "weight is left out: model_stock has no such parameter",
    ),
    "without effect": (
        "merge_method: task_arithmetic\nbase_model: c\n" + TWO + "parameters: {density: 0.5}\n",
        "density is left out: task_arithmetic does nothing with it",
    ),
    "unknown key": ("merge_method: linear\nauthor: me\n" + TWO, "author is no key of mergekit"),
    "at the base": (
        "merge_method: ties\nbase_model: c\nmodels: [{model: c, parameters: {weight: 3}}, a]\n"
        "parameters: {weight: 1}\n",
        "weight of c has no effect: it is the base",
    ),
    "one value for all": (
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1, normalize: false}}]\n",
        "normalize of a has no effect",
    ),
    "random masks": (
        "merge_method: dare_ties\nbase_model: c\n" + TWO,
        "random masks are drawn from plait's own generator",
    ),
    "rounding": ("merge_method: linear\ndtype: bfloat16\n" + TWO, "plait computes in float32 and rounds"),
    "values for some tensors": (
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: [{filter: mlp, value: 1}]}}]\n",
        "weight of a is given for some tensors only",
    ),
    "config of another model": (
        "merge_method: passthrough\nbase_model: c\nslices: [{sources: [{model: a, layer_range: [0, 1]}]},"
        " {sources: [{model: b, layer_range: [0, 1]}]}]\n",
        "config and tokenizer come from a, the first model",
    ),
    "only the base": ("merge_method: ties\nbase_model: c\nmodels: [c]\n", "the result is the base"),
}


@pytest.mark.parametrize("case", SAID)
def test_what_differs_is_said(case: str) -> None:
    text, message = SAID[case]
    notes = imported(text).notes
    assert any(message in note for note in notes), notes


def test_notes_reach_the_plan_and_the_output(tmp_path: Path) -> None:
    home = save_family(tmp_path, *family(2))
    path = tmp_path / "m.yml"
    models = ", ".join(home["experts"].values())
    path.write_text(
        f"merge_method: model_stock\nbase_model: {home['base']}\nmodels: [{models}]\nparameters: {{weight: 1}}\n"
    )
    assert any("weight is left out" in note for note in plait.plan(path).notes)
    runner = CliRunner()
    done = runner.invoke(app, ["merge", str(path), "-o", str(tmp_path / "out")], catch_exceptions=False)
    assert done.exit_code == 0 and "note: weight is left out" in done.output
    written = yaml.safe_load((tmp_path / "out" / "plait.yaml").read_text())
    assert written["method"] == "model_stock" and written["parameters"]["clamp"] is False


def test_import_prints_or_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths lead to the same models from the recipe's own folder; Hub ids stay."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    Path("m.yml").write_text(
        "merge_method: linear\n"
        "models: [{model: a, parameters: {weight: 1}}, {model: org/b@main, parameters: {weight: 2}}]\n"
    )
    runner = CliRunner()
    printed = runner.invoke(app, ["import", "m.yml"], catch_exceptions=False)
    assert yaml.safe_load(printed.output) == {
        "method": "linear",
        "experts": {"a": {"model": "a", "weight": 1}, "b": {"model": "org/b@main", "weight": 2}},
        "parameters": {"normalize": True},
    }
    (tmp_path / "deep").mkdir()
    runner.invoke(app, ["import", "m.yml", "-o", "deep/r.yaml"], catch_exceptions=False)
    written = load_recipe("deep/r.yaml").recipe
    assert (written.experts["a"].model, written.experts["b"].model) == ("../a", "org/b@main")
    with pytest.raises(OutputError, match="exists"):
        runner.invoke(app, ["import", "m.yml", "-o", "deep/r.yaml"], catch_exceptions=False)
    Path("p.yml").write_text("method: linear\nexperts: [a]\n")
    with pytest.raises(RecipeError, match="no mergekit recipe"):
        plait.import_mergekit("p.yml")


def test_a_stage_can_be_asked_for() -> None:
    text = (
        "name: x\nmerge_method: passthrough\nmodels: [a]\n---\nname: y\nmerge_method: passthrough\nmodels: [x]\n"
        "parameters: {scale: 2}\n"
    )
    assert imported(text, "x").recipe == {"method": "passthrough", "experts": {"a": "a"}}
    inner: dict[str, Any] = imported(text).recipe["experts"]["x"]
    assert inner == {"method": "passthrough", "experts": {"a": "a"}}
    with pytest.raises(RecipeError, match="no document is called 'z'"):
        imported(text, "z")


def test_adapters_stand_beside_their_models() -> None:
    text = "merge_method: ties\nbase_model: m\nmodels: [m+l@v2, x]\nparameters: {weight: 1}\n"
    found = imported(text)
    assert found.recipe["base"] == "m"
    assert found.recipe["experts"]["l"] == {
        "model": "m",
        "adapter": "l@v2",
        "weight": 1,
    }
    assert any("rounds m+l@v2 to the model's dtype" in note for note in found.notes)
    sliced = "merge_method: passthrough\nslices: [{sources: [{model: m+l, layer_range: [0, 2]}]}]\n"
    ((_, stack),) = imported(sliced).recipe["experts"].items()
    inner = {"method": "passthrough", "experts": {"l": {"model": "m", "adapter": "l"}}}
    assert stack == {"method": "passthrough", "slices": [{"model": inner, "layers": [0, 2]}]}


def test_filters_are_texts_not_patterns() -> None:
    """A filter's own stars and brackets mean themselves."""
    text = "merge_method: passthrough\nmodels: [{model: a, parameters: {scale: [{filter: 'x[*]?', value: 2}]}}]\n"
    rules = imported(text).recipe["parameters"]["scale"]
    assert rules == [{"value": 1.0}, {"match": "*x[[][*]][?]*", "value": 2, "optional": True}]


def test_yaml_is_read_back_as_it_was() -> None:
    text = (
        "merge_method: ties\nbase_model: c\nmodels: [{model: a, parameters: {weight: [0, 1], density: 0.5}}, b]\n"
        "parameters: {weight: [{filter: mlp, value: [0.1, 0.2, 0.3]}, {value: 1}]}\ndtype: bfloat16\n"
    )
    found = imported(text)
    written = recipe_yaml(found, "m.yml")
    assert yaml.safe_load(written) == found.recipe
    assert written.startswith("# imported by plait from m.yml\n# - ") and "&id" not in written
