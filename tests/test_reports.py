"""What a merged folder says about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from typer.testing import CliRunner

import plait
from models import family, llama, read, save, save_family
from plait.cli import app
from plait.errors import ReproductionError
from plait.reports._card import strictest_licence


@pytest.fixture
def merged(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    base, experts = family(2)
    names = save_family(tmp_path, base, experts)
    (tmp_path / "base" / "README.md").write_text(
        "---\nlicense: apache-2.0\npipeline_tag: text-generation\n---\n# Base\n"
    )
    (tmp_path / "expert0" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (tmp_path / "base" / name).write_text(json.dumps({"from": "base", "name": name}))
    (tmp_path / "base" / "optimizer.pt").write_bytes(b"not ours")
    (tmp_path / "expert0" / "tokenizer.json").write_text("{}")
    recipe = {
        "method": "ties",
        "shard_size": "60KB",
        "parameters": {"lambda": [0.5, 1.0]},
        **names,
        "experts": {"math": {"model": names["experts"]["e0"], "weight": 0.7}, "code": names["experts"]["e1"]},
    }
    plait.merge(recipe, tmp_path / "out")
    return tmp_path, recipe


def test_files_are_those_of_a_model_repository(merged: tuple[Path, dict[str, Any]]) -> None:
    home, _ = merged
    out = home / "out"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    tensors = read(out)
    assert index["metadata"]["total_parameters"] == sum(t.numel() for t in tensors.values())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert set(index["weight_map"]) == set(tensors)
    for file in set(index["weight_map"].values()):
        with safe_open(out / file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert set(opened.keys()) == {n for n, f in index["weight_map"].items() if f == file}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (home / "base" / name).read_bytes()
    assert not (out / "optimizer.pt").exists()
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_files_come_from_the_model_the_recipe_names(merged: tuple[Path, dict[str, Any]]) -> None:
    home, recipe = merged
    plait.merge({**recipe, "files_from": "math"}, home / "other")
    assert (home / "other" / "tokenizer.json").read_text() == "{}"


def test_the_card_is_valid_front_matter(merged: tuple[Path, dict[str, Any]]) -> None:
    from huggingface_hub import ModelCard

    home, _ = merged
    card = ModelCard.load(home / "out" / "README.md")
    assert card.data.base_model == ["base", "expert0", "expert1"]
    assert card.data.to_dict()["base_model_relation"] == "merge"
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.pipeline_tag == "text-generation"
    assert "merge" in (card.data.tags or [])
    assert "0.7" in card.text and "TIES" in card.text and "expert1" in card.text.split("licence")[0]


@pytest.mark.parametrize(
    ("parents", "result"),
    [
        (["mit", "apache-2.0"], "apache-2.0"),
        (["apache-2.0", "cc-by-nc-4.0", "mit"], "cc-by-nc-4.0"),
        (["mit", None], "mit"),
        ([None], None),
        (["strange", "mit"], "other"),
        (["strange", "strange"], "strange"),
    ],
)
def test_licences(parents: list[str | None], result: str | None) -> None:
    assert strictest_licence(parents) == result


def test_provenance_says_what_was_done(merged: tuple[Path, dict[str, Any]]) -> None:
    home, _ = merged
    record = json.loads((home / "out" / "plait.json").read_text())
    assert set(record["inputs"]) == {"base", "math", "code"}
    assert record["versions"]["torch"] == torch.__version__
    assert set(record["tensors"]) == set(read(home / "out"))
    steps = {name: g["steps"][0] for g in record["resolved"] for name in g["names"]}
    assert steps["model.embed_tokens.weight"]["lambda"] == 0.5
    assert steps["lm_head.weight"]["lambda"] == 1.0
    assert all(g["weights"] == {"math": 0.7, "code": 1.0} for g in record["resolved"])
    recipe = yaml.safe_load((home / "out" / "plait.yaml").read_text())
    assert recipe["experts"]["code"] == str(home / "expert1")
    # the same inputs elsewhere have the same hash, others have another
    plait.merge({"method": "linear", "experts": {"a": str(home / "base"), "b": str(home / "expert0")}}, home / "two")
    other = json.loads((home / "two" / "plait.json").read_text())["inputs"]
    assert other["a"]["hash"] == record["inputs"]["base"]["hash"] != other["b"]["hash"]


def test_reproduce(merged: tuple[Path, dict[str, Any]]) -> None:
    home, _ = merged
    found = plait.reproduce(home / "out")
    assert found.identical and found.tensors == len(read(home / "out"))
    result = CliRunner().invoke(app, ["reproduce", str(home / "out"), "-q"])
    assert result.exit_code == 0
    (home / "expert1").rename(home / "moved")
    found = plait.reproduce(home / "out", models={"code": str(home / "moved")})
    assert found.identical
    save(home / "moved", llama(77))
    found = plait.reproduce(home / "out", models={"code": str(home / "moved")})
    assert found.changed_inputs == ("code",) and found.differing
    with pytest.raises(ReproductionError, match="code"):
        found.check()
    assert not [p for p in home.iterdir() if "reproduce" in p.name]


def test_reproduce_notices_a_changed_output(merged: tuple[Path, dict[str, Any]]) -> None:
    home, _ = merged
    shard = next((home / "out").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    found = plait.reproduce(home / "out")
    assert len(found.damaged) == 1 and not found.differing
    with pytest.raises(ReproductionError, match="changed after it was made"):
        found.check()


def test_single_files_without_a_config_merge_too(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    base, experts = family(1)
    save_file(base, tmp_path / "b.safetensors")
    save_file(experts[0], tmp_path / "e.safetensors")
    recipe = {
        "method": "task_arithmetic",
        "base": str(tmp_path / "b.safetensors"),
        "experts": {"e": str(tmp_path / "e.safetensors")},
    }
    plait.merge(recipe, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md",
        "model.safetensors",
        "plait.json",
        "plait.yaml",
    ]
