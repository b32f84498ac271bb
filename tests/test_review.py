"""Hostile inputs, odd names and kills in the middle: what a second pair of eyes tried."""

from __future__ import annotations

import errno
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import plait
from models import CONFIG, HEARS, family, llama, read, save, save_family, size_of, tree
from plait.errors import CheckpointError, DiskSpaceError, PlaitError, RecipeError, UnsafeFileError
from plait.reports._card import front_matter

ENTRY: dict[str, Any] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def _file(path: Path, header: Any, data: bytes = bytes(4)) -> Path:
    """A safetensors file with any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def _one(path: Path | str) -> dict[str, Any]:
    return {"method": "passthrough", "experts": {"a": str(path)}}


@pytest.mark.parametrize(
    "header",
    [
        {"a": None},
        {"a": [1]},
        {"a": {**ENTRY, "shape": "ab"}},
        {"a": {**ENTRY, "shape": {"1": 2}}},
        {"a": {**ENTRY, "shape": [2**40, 2**40]}},
        {"a": {**ENTRY, "shape": [True]}},
        {"a": {**ENTRY, "data_offsets": [0.0, 4]}},
        {"a": {**ENTRY, "data_offsets": {"x": 0, "y": 4}}},
        {"a": {**ENTRY, "dtype": "C64", "data_offsets": [0, 8]}},
        b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}',
        b"[" * 200_000,
        b"",
        b"null",
    ],
    ids=lambda header: str(header)[:40],
)
def test_a_hostile_header_is_one_message_that_names_the_file(tmp_path: Path, header: Any) -> None:
    path = _file(tmp_path / "m.safetensors", header)
    with pytest.raises(CheckpointError, match=r"m\.safetensors"):
        plait.merge(_one(path), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize(
    "name",
    ["", "a\n\x1b[31mb", "[bold]x[/bold]", "a/../b", "ü🙂", "layers.99999999999999999999.w", "layers.٣.w", "x" * 5000],
    ids=lambda name: repr(name)[:30],
)
def test_any_tensor_name_survives(tmp_path: Path, name: str) -> None:
    path = _file(tmp_path / "m.safetensors", {name: ENTRY}, struct.pack("<f", 2.5))
    plait.merge(_one(path), tmp_path / "out")
    assert plait.Checkpoint.open(tmp_path / "out")[name].load().tolist() == [2.5]


@pytest.mark.parametrize("place", ["/etc/passwd", "..", "a/../../b", "C:\\x", "sub/\0x"])
def test_an_index_cannot_leave_its_folder(tmp_path: Path, place: str) -> None:
    folder = save(tmp_path / "m", llama(0), shards=2)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = place
    index.write_text(json.dumps(content))
    with pytest.raises(UnsafeFileError, match="outside its folder"):
        plait.merge(_one(folder), tmp_path / "out")


@pytest.mark.parametrize("content", [[], {}, {"weight_map": None}, {"weight_map": {}}, {"weight_map": {"a": 3}}])
def test_an_index_of_another_shape_is_refused(tmp_path: Path, content: Any) -> None:
    folder = save(tmp_path / "m", llama(0), shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError):
        plait.merge(_one(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["null", "[]", "3", '"x"', "", "{"])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    folder = save(tmp_path / "m", llama(0), None)
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        plait.merge(_one(folder), tmp_path / "out")


@pytest.mark.parametrize(
    "config",
    [
        {"text_config": None, "tie_word_embeddings": "yes"},
        {"text_config": [1]},
        {"model_type": ["bert"]},
        {"quantization_config": {}},
        {"num_hidden_layers": True},
    ],
    ids=str,
)
def test_a_config_of_odd_values_is_carried(tmp_path: Path, config: dict[str, Any]) -> None:
    plait.merge(_one(save(tmp_path / "m", llama(0), config)), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {**config, "dtype": "float32"}


@pytest.mark.parametrize(
    "text",
    [
        "---\nlicense: [\n---\n",
        "---\n- a\n---\n",
        "---\nlicense: {a: b}\n---\n",
        "---\nlicense: 3\n---\n",
        "---\n? [a]\n: b\n---\n",
        "---\nlicense: !!python/object/apply:os.system ['touch ran']\n---\n",
    ],
    ids=repr,
)
def test_a_broken_card_of_a_parent_does_no_harm(tmp_path: Path, text: str) -> None:
    folder = save(tmp_path / "m", llama(0))
    (folder / "README.md").write_text(text)
    plait.merge(_one(folder), tmp_path / "out")
    head = front_matter(tmp_path / "out")
    assert head["base_model"] == ["m"]
    assert head["base_model_relation"] == "merge"
    assert "license" not in head
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "&a [*a]",
        "method: linear\nexperts: &a {x: *a}",
        "method: ties\n---\nexperts: {}",
        "method:\tties",
        "method: ties\0",
        "? [a]\n: b",
        "~: 3",
        "method: [[ties]]",
        "method: [{ties: {}, linear: {}}]",
        "method: linear\nexperts: {a: }",
        "method: linear\nexperts: {a: 3}",
        "method: linear\nseed: true\nexperts: {a: x}",
    ],
    ids=repr,
)
def test_a_recipe_of_another_shape_is_one_message(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        plait.plan(recipe)


def test_a_recipe_with_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    save(tmp_path / "m", llama(0))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(b"\xef\xbb\xbfmethod: passthrough\r\nexperts: {a: m}\r\n")
    assert len(plait.plan(recipe).jobs) == len(llama(0))


@pytest.mark.parametrize("name", ["a b\tc", "ü🙂", "-x", "[bold]x", "x\ny", ".hidden", "new/deep/er"])
def test_any_output_name(tmp_path: Path, name: str) -> None:
    model = save(tmp_path / "m", llama(0))
    plait.merge(_one(model), tmp_path / name)
    assert read(tmp_path / name).keys() == llama(0).keys()
    assert not [p for p in (tmp_path / name).parent.iterdir() if "plait-" in p.name]


def test_an_output_under_a_link_and_one_that_is_a_link(tmp_path: Path) -> None:
    model = save(tmp_path / "m", llama(0))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    for target in ("link", "nowhere"):
        with pytest.raises(PlaitError, match="will not be overwritten"):
            plait.merge(_one(model), tmp_path / target, overwrite=True)
    plait.merge(_one(model), tmp_path / "link" / "out")
    assert (tmp_path / "real" / "out" / "model.safetensors").is_file()


def test_dtypes_scalars_and_empty_tensors(tmp_path: Path) -> None:
    first = {
        "w": torch.ones(3, dtype=torch.bfloat16),
        "s": torch.tensor(2.0),
        "z": torch.zeros(0, 4),
        "i": torch.tensor([1, 2]),
    }
    second = {
        "w": torch.full((3,), 3.0, dtype=torch.float16),
        "s": torch.tensor(4.0, dtype=torch.float64),
        "z": torch.zeros(0, 4),
        "i": torch.tensor([3, 4]),
    }
    save(tmp_path / "a", first, None)
    save(tmp_path / "b", second, None)
    for method in ("linear", "karcher", "multislerp"):
        out = tmp_path / method
        recipe = {"method": method, "experts": [str(tmp_path / "a"), str(tmp_path / "b")]}
        plan = plait.plan(recipe)
        assert any("never averaged" in note for note in plan.notes)
        plait.merge(plan, out)
        got = load_file(out / "model.safetensors")
        assert got["w"].dtype == torch.float32 and got["w"].tolist() == [2.0] * 3
        assert got["s"].dtype == torch.float64 and got["s"].shape == () and float(got["s"]) == 3.0
        assert got["z"].shape == (0, 4)
        assert got["i"].tolist() == [1, 2]


def test_one_model_in_every_place(tmp_path: Path) -> None:
    """Base and both experts are one folder: every delta is zero, and the model comes back."""
    model = str(save(tmp_path / "m", llama(0)))
    plait.merge({"method": "ties", "base": model, "experts": {"a": model, "b": model}}, tmp_path / "out")
    for name, values in read(tmp_path / "out").items():
        assert torch.equal(values, llama(0)[name]), name


@pytest.mark.parametrize("donor", ["tied", "untied"])
def test_a_missing_tied_head_is_the_embedding(tmp_path: Path, donor: str) -> None:
    tied = str(save(tmp_path / "tied", llama(0, tied=True), tie_word_embeddings=True))
    full = llama(1)
    if donor == "tied":
        full["lm_head.weight"] = full["model.embed_tokens.weight"].clone()
    untied = str(save(tmp_path / "untied", full, tie_word_embeddings=donor == "tied"))
    order = [tied, untied] if donor == "tied" else [untied, tied]
    plait.merge({"method": "linear", "experts": order}, tmp_path / "out")
    got = read(tmp_path / "out")
    assert ("lm_head.weight" in got) == (donor == "untied")
    if donor == "untied":
        want = (full["lm_head.weight"] + llama(0, tied=True)["model.embed_tokens.weight"]) / 2
        assert torch.equal(got["lm_head.weight"], want)


def _nested(home: Path) -> dict[str, Any]:
    base, experts = family(3)
    names = save_family(home, base, experts)
    inner = {
        "method": "tsv_merge",
        "base": names["base"],
        "experts": {"x": names["experts"]["e0"], "y": names["experts"]["e1"]},
    }
    return {
        "method": ["dare", "task_arithmetic"],
        "seed": 5,
        "shard_size": "40KB",
        "parameters": {"density": 0.5},
        "base": names["base"],
        "experts": {"inner": inner, "e2": names["experts"]["e2"], "same": names["base"]},
    }


def test_a_nested_recipe_does_not_depend_on_threads_blocks_or_memory(tmp_path: Path) -> None:
    recipe = _nested(tmp_path)
    plait.merge(recipe, tmp_path / "wanted", threads=1)
    for number, options in enumerate(({"threads": 4, "memory": "2MiB"}, {"threads": 3, "block": 1 << 16})):
        plait.merge(recipe, tmp_path / f"out{number}", **options)
        assert tree(tmp_path / f"out{number}") == tree(tmp_path / "wanted")


def test_a_nested_model_is_reproduced_after_an_input_has_moved(tmp_path: Path) -> None:
    plait.merge(_nested(tmp_path), tmp_path / "out")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(PlaitError, match="base"):
        plait.reproduce(tmp_path / "out")
    found = plait.reproduce(tmp_path / "out", models={"base": str(tmp_path / "moved")})
    assert found.identical and found.tensors == len(llama(0))


SLOW = """
import sys, time
from plait.engine import _execute
from plait.cli import main
write = _execute.GrowingOutput.write
def slowly(self, *a):
    time.sleep(0.02)
    write(self, *a)
_execute.GrowingOutput.write = slowly
sys.argv = ["plait", "merge", *sys.argv[1:], "--overwrite", "--threads", "2", "-q"]
main()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_a_killed_overwrite_of_a_nested_recipe_keeps_the_old_output_and_resumes(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(_nested(tmp_path)))
    plait.merge(recipe, tmp_path / "wanted")
    out = save(tmp_path / "out", llama(7), CONFIG)
    old = tree(out)
    journal = tmp_path / ".out.plait-work" / "journal"
    for sent, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        before = size_of(journal)
        process = subprocess.Popen(
            [sys.executable, "-c", HEARS + SLOW, str(recipe), "-o", str(out)], stderr=subprocess.PIPE
        )
        while process.poll() is None and not size_of(journal) > before + 500:
            time.sleep(0.005)
        process.send_signal(sent)
        _, said = process.communicate()
        assert process.returncode == code, said.decode()
        assert b"Traceback" not in said
        assert tree(out) == old
    result = plait.merge(recipe, out, overwrite=True)
    assert result.resumed > 0
    assert tree(out) == tree(tmp_path / "wanted")
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_disk_that_fills_up_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _nested(tmp_path)
    plait.merge(recipe, tmp_path / "wanted")
    write, calls = os.pwrite, [0]

    def full(handle: int, data: Any, offset: int) -> int:
        calls[0] += 1
        if calls[0] > 15:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(DiskSpaceError, match="run the same command again"):
            plait.merge(recipe, tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()
    assert plait.merge(recipe, tmp_path / "out").resumed > 0
    assert tree(tmp_path / "out") == tree(tmp_path / "wanted")
