"""Reading models of every form, and refusing damaged and hostile ones by name."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from models import CONFIG, llama, save
from plait import Checkpoint
from plait.checkpoints import Entry, Layout
from plait.errors import (
    CheckpointError,
    MissingModelError,
    QuantizedCheckpointError,
    UnsafeFileError,
)

STATE = llama(0, layers=1)


def _same(checkpoint: Checkpoint, state: dict[str, torch.Tensor]) -> None:
    assert set(checkpoint) == set(state)
    for name, tensor in state.items():
        assert checkpoint[name].shape == tuple(tensor.shape)
        assert checkpoint[name].dtype == tensor.dtype
        assert torch.equal(checkpoint[name].load(), tensor)
        if tensor.numel() > 5:
            assert torch.equal(checkpoint[name].read(2, 5), tensor.reshape(-1)[2:5])


@pytest.mark.parametrize("shards", [1, 3])
def test_safetensors_folders(tmp_path: Path, shards: int) -> None:
    _same(Checkpoint.open(save(tmp_path / "m", STATE, shards=shards)), STATE)


def test_single_files(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "m.safetensors")
    _same(Checkpoint.open(tmp_path / "m.safetensors"), STATE)
    for name in ("m.bin", "m.pt", "m.pth"):
        torch.save(STATE, tmp_path / name)
        _same(Checkpoint.open(tmp_path / name), STATE)


def test_torch_shards_and_nested_state_dicts(tmp_path: Path) -> None:
    names = list(STATE)
    parts = {"pytorch_model-00001-of-00002.bin": names[:4], "pytorch_model-00002-of-00002.bin": names[4:]}
    for file, part in parts.items():
        torch.save({n: STATE[n] for n in part}, tmp_path / file)
    weight_map = {n: file for file, part in parts.items() for n in part}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    _same(Checkpoint.open(tmp_path), STATE)
    torch.save({"state_dict": STATE, "epoch": 3}, tmp_path / "nested.pt")
    _same(Checkpoint.open(tmp_path / "nested.pt"), STATE)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool],
    ids=str,
)
def test_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"a": torch.arange(12).reshape(3, 4).to(dtype), "scalar": torch.tensor(1).to(dtype)}
    save_file(state, tmp_path / "m.safetensors")
    torch.save(state, tmp_path / "m.bin")
    _same(Checkpoint.open(tmp_path / "m.safetensors"), state)
    _same(Checkpoint.open(tmp_path / "m.bin"), state)
    _same(Checkpoint.open(state), state)


def test_hub_ids_are_found_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "hub"
    repo = cache / "models--someone--tiny"
    save(repo / "snapshots" / "abc123", STATE)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for reference in ("someone/tiny", "hf://someone/tiny", "someone/tiny@main"):
        checkpoint = Checkpoint.open(reference)
        _same(checkpoint, STATE)
        assert (checkpoint.hub_id, checkpoint.revision) == ("someone/tiny", "abc123")
    with pytest.raises(MissingModelError, match="someone/other"):
        Checkpoint.open("someone/other")


def test_tied_weights_come_from_the_config(tmp_path: Path) -> None:
    state = llama(0, tied=True)
    tied = Checkpoint.open(save(tmp_path / "tied", state, tie_word_embeddings=True))
    found = tied.find("lm_head.weight")
    assert found is tied["model.embed_tokens.weight"]
    untied = Checkpoint.open(save(tmp_path / "untied", state))
    assert untied.find("lm_head.weight") is None


def _header(path: Path, header: dict[str, Any] | bytes, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def _f32(begin: int, end: int, shape: list[int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty": (lambda p: _write(p, b""), "fewer than a header"),
    "huge header": (lambda p: _write(p, struct.pack("<Q", 1 << 60) + b"{}"), "claims"),
    "not json": (lambda p: _header(p, b"nonsense"), "not JSON"),
    "a list": (lambda p: _header(p, b"[1]"), "not a JSON object"),
    "truncated": (lambda p: _header(p, {"a": _f32(0, 16, [4])}, b"\0" * 8), "cut short"),
    "overlap": (lambda p: _header(p, {"a": _f32(0, 16, [4]), "b": _f32(8, 24, [4])}, b"\0" * 24), "overlaps"),
    "hole": (lambda p: _header(p, {"a": _f32(0, 4, [1]), "b": _f32(8, 12, [1])}, b"\0" * 12), "belong to no tensor"),
    "tail": (lambda p: _header(p, {"a": _f32(0, 4, [1])}, b"\0" * 9), "belong to no tensor"),
    "out of range": (lambda p: _header(p, {"a": _f32(100, 104, [1])}, b"\0" * 4), "cut short"),
    "negative": (lambda p: _header(p, {"a": _f32(-4, 0, [1])}, b"\0" * 4), "natural numbers"),
    "wrong size": (lambda p: _header(p, {"a": _f32(0, 8, [1])}, b"\0" * 8), "does not fill"),
    "twice": (lambda p: _header(p, b'{"a":1,"a":2}'), "twice"),
    "unknown dtype": (lambda p: _header(p, {"a": {**_f32(0, 4, [1]), "dtype": "X9"}}, b"\0" * 4), "unknown dtype"),
    "incomplete entry": (lambda p: _header(p, {"a": {"dtype": "F32"}}), "incomplete"),
    "boolean shape": (lambda p: _header(p, {"a": _f32(0, 4, [True])}, b"\0" * 4), "natural numbers"),
}


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("case", HOSTILE)
def test_damaged_headers_are_refused(tmp_path: Path, case: str) -> None:
    make, message = HOSTILE[case]
    path = make(tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.open(path)
    assert str(path) in str(caught.value)


@given(st.binary(max_size=200), st.integers(0, 64))
def test_no_bytes_crash_the_reader(tmp_path_factory: pytest.TempPathFactory, noise: bytes, length: int) -> None:
    """Whatever the file holds, the answer is a checkpoint or one of our errors."""
    path = tmp_path_factory.mktemp("noise") / "n.safetensors"
    path.write_bytes(struct.pack("<Q", length) + noise)
    try:
        Checkpoint.open(path)
    except CheckpointError as error:
        assert str(path) in str(error)


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('ran')",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt"])
def test_a_pickle_that_runs_code_is_not_opened(tmp_path: Path, name: str) -> None:
    torch.save({"w": torch.ones(2), "x": _Payload()}, tmp_path / name)
    with pytest.raises(UnsafeFileError, match=r"would run code"):
        Checkpoint.open(tmp_path / name)


def test_old_and_broken_torch_files(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before version 1\.6"):
        Checkpoint.open(tmp_path / "old.bin")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"a": _Payload()}))
    with pytest.raises(CheckpointError, match=r"before version 1\.6"):
        Checkpoint.open(tmp_path / "pickle.pt")
    torch.save(STATE, tmp_path / "cut.bin")
    (tmp_path / "cut.bin").write_bytes((tmp_path / "cut.bin").read_bytes()[:-400])
    with pytest.raises(CheckpointError, match="again"):
        Checkpoint.open(tmp_path / "cut.bin")


def _index(folder: Path, target: str) -> Path:
    save_file(STATE, folder / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(STATE, "model-00001-of-00001.safetensors")
    weight_map["model.norm.weight"] = target
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("target", ["../outside.safetensors", "/etc/passwd", "a/../../b.safetensors", "..\\x"])
def test_an_index_that_leaves_its_folder_is_unsafe(tmp_path: Path, target: str) -> None:
    with pytest.raises(UnsafeFileError, match="points outside its folder"):
        Checkpoint.open(_index(tmp_path, target))


def test_an_index_that_lies(tmp_path: Path) -> None:
    with pytest.raises(MissingModelError, match="no-such"):
        Checkpoint.open(_index(tmp_path, "no-such.safetensors"))
    other = tmp_path / "other"
    other.mkdir()
    save_file({"a": torch.ones(1)}, other / "x.safetensors")
    index = other / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}))
    with pytest.raises(CheckpointError, match="b \\(should be in x"):
        Checkpoint.open(other)
    save_file({"a": torch.ones(1), "c": torch.ones(1)}, other / "x.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}))
    with pytest.raises(CheckpointError, match="c \\(in"):
        Checkpoint.open(other)


def test_two_models_in_one_folder_are_ambiguous(tmp_path: Path) -> None:
    save(tmp_path, STATE, shards=2)
    save_file(STATE, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="two models"):
        Checkpoint.open(tmp_path)


def test_quantised_models_are_refused_with_the_remedy(tmp_path: Path) -> None:
    fp8 = {"w": torch.ones(4, 4).to(torch.float8_e4m3fn)}
    save_file(fp8, tmp_path / "fp8.safetensors")
    with pytest.raises(QuantizedCheckpointError, match="F8_E4M3"):
        Checkpoint.open(tmp_path / "fp8.safetensors")
    torch.save(fp8, tmp_path / "fp8.pt")
    with pytest.raises(QuantizedCheckpointError, match="bfloat16"):
        Checkpoint.open(tmp_path / "fp8.pt")
    config = {**CONFIG, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    with pytest.raises(QuantizedCheckpointError, match="gptq"):
        Checkpoint.open(save(tmp_path / "gptq", STATE, config))
    packed = {"model.layers.0.q.qweight": torch.ones(2, 2, dtype=torch.int32)}
    with pytest.raises(QuantizedCheckpointError, match="qweight"):
        Checkpoint.open(save(tmp_path / "packed", packed))


def test_missing_models_and_folders_without_weights(tmp_path: Path) -> None:
    with pytest.raises(MissingModelError, match="no model at"):
        Checkpoint.open(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingModelError, match="holds no weights"):
        Checkpoint.open(tmp_path / "empty")


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30), st.integers(64, 2000))
def test_layouts_fill_shards_without_holes(sizes: list[int], limit: int) -> None:
    """Every tensor has its place, places do not overlap, and a shard exceeds the limit only for one tensor."""
    entries = [Entry(f"t{i}", (n,), torch.bfloat16 if i % 2 else torch.float32) for i, n in enumerate(sizes)]
    layout = Layout.plan(entries, limit)
    assert sorted(e.name for e in layout.entries) == sorted(e.name for e in entries)
    for shard in layout.shards:
        assert len(shard.entries) == 1 or sum(e.nbytes for e in shard.entries) <= limit
        offset = len(shard.header)
        for entry in shard.entries:
            assert layout.places[entry.name] == (shard, offset)
            assert offset % entry.dtype.itemsize == 0
            offset += entry.nbytes
        assert offset == shard.size
