"""`plait push` against a Hub on this machine; `plait export gguf` with a converter of the test's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import plait
from hub_server import Hub, serve
from models import family, save_family
from plait.cli import app
from plait.errors import (
    CheckpointError,
    MissingExtraError,
    MissingModelError,
    OutputError,
    RecipeError,
    UnreachableError,
)
from plait.reports import export_gguf, push


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as running:
        yield running


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    base, experts = family(2)
    plait.merge({"method": "task_arithmetic", **save_family(tmp_path, base, experts)}, tmp_path / "out")
    return tmp_path / "out"


def test_everything_is_uploaded_in_one_commit_to_a_private_repository(hub: Hub, merged: Path) -> None:
    (merged / ".notes").write_text("not meant for anybody")
    done = push(merged, "me/merged", endpoint=hub.address, token="hf_x")
    assert hub.private["me/merged"] and done.private and len(hub.messages) == 1
    sent = {name: content for name, content in hub.files["me/merged"].items() if name != ".gitattributes"}
    here = {str(p.relative_to(merged)): p.read_bytes() for p in merged.rglob("*") if p.is_file() and p.name[0] != "."}
    assert sent == here and done.files == len(here)
    assert done.url.startswith(f"{hub.address}/me/merged/commit/")


def test_a_repository_with_a_model_is_left_alone(hub: Hub, merged: Path) -> None:
    hub.files["me/merged"] = {".gitattributes": b"", "model.safetensors": b"precious"}
    hub.private["me/merged"] = False
    with pytest.raises(OutputError, match=r"already holds 1 files \(model.safetensors\)"):
        push(merged, "me/merged", endpoint=hub.address, token="hf_x")
    assert hub.files["me/merged"]["model.safetensors"] == b"precious"
    assert not push(merged, "me/merged", endpoint=hub.address, token="hf_x", overwrite=True).private
    assert hub.files["me/merged"]["model.safetensors"] == (merged / "model.safetensors").read_bytes()


def test_what_is_damaged_is_not_uploaded(hub: Hub, merged: Path) -> None:
    state = load_file(merged / "model.safetensors")
    save_file({k: v + 1 for k, v in state.items()}, merged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="is not uploaded: hashes"):
        push(merged, "me/merged", endpoint=hub.address, token="hf_x")
    (merged / "README.md").unlink()
    with pytest.raises(CheckpointError, match=r"no README\.md with front matter"):
        push(merged, "me/merged", endpoint=hub.address, token="hf_x")
    assert not hub.files


def test_who_may_not_write_is_told_so(hub: Hub, merged: Path) -> None:
    hub.locked = True
    with pytest.raises(OutputError, match="hf auth login"):
        push(merged, "me/merged", endpoint=hub.address, token="hf_x")


def test_a_hub_that_is_not_there_and_names_that_are_none(merged: Path, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="Nothing was published"):
        push(merged, "me/merged", endpoint="http://127.0.0.1:9", token="hf_x")
    with pytest.raises(RecipeError, match="OWNER/NAME"):
        push(merged, "merged")
    with pytest.raises(MissingModelError, match="nowhere"):
        push(tmp_path / "nowhere", "me/merged")


def test_the_push_command(hub: Hub, merged: Path) -> None:
    arguments = ["push", str(merged), "me/merged", "--endpoint", hub.address, "--token", "hf_x", "--public"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "public" in result.stdout and not hub.private["me/merged"]


_CONVERTER = """
import json, sys
class ModelBase:
    @staticmethod
    def register(*names):
        return lambda cls: cls
@ModelBase.register("LlamaForCausalLM", "MistralForCausalLM")
class Llama: ...
arguments = sys.argv[1:]
if "q8_0" in arguments:
    sys.exit("cannot do that today")
open(arguments[arguments.index("--outfile") + 1], "w").write(json.dumps(arguments))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").write_text(_CONVERTER)
    return tmp_path / "llama.cpp"


@pytest.fixture
def complete(merged: Path) -> Path:
    """A merged model with a tokenizer."""
    (merged / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {f"w{i}": i for i in range(64)}}}))
    return merged


def test_the_converter_is_run_on_the_folder(complete: Path, checkout: Path) -> None:
    made = export_gguf(complete, outtype="bf16", llama_cpp=checkout)
    assert made == complete.parent / "out-bf16.gguf"
    arguments = json.loads(made.read_text())
    assert arguments[0] == str(complete) and arguments[-2:] == ["--outtype", "bf16"]
    with pytest.raises(OutputError, match="exists"):
        export_gguf(complete, outtype="bf16", llama_cpp=checkout)
    export_gguf(complete, outtype="bf16", llama_cpp=checkout, overwrite=True)


def test_a_converter_that_fails_leaves_nothing(complete: Path, checkout: Path) -> None:
    with pytest.raises(OutputError, match="cannot do that today"):
        export_gguf(complete, outtype="q8_0", llama_cpp=checkout)
    assert not list(complete.parent.glob("*.gguf*")) and not list(complete.parent.glob(".*.part"))


def test_what_is_known_to_break_is_said_before(complete: Path, checkout: Path) -> None:
    config = json.loads((complete / "config.json").read_text())
    (complete / "config.json").write_text(json.dumps({**config, "architectures": ["NewForCausalLM"], "vocab_size": 63}))
    with pytest.raises(CheckpointError) as caught:
        export_gguf(complete, llama_cpp=checkout)
    assert "knows no NewForCausalLM" in str(caught.value) and "uses number 63" in str(caught.value)
    (complete / "config.json").write_text(json.dumps({**config, "model_type": "gemma2", "vocab_size": 70}))
    with pytest.raises(CheckpointError) as caught:
        export_gguf(complete, llama_cpp=checkout)
    assert "tokenizer.model for gemma2" in str(caught.value) and "the embedding has 64 rows" in str(caught.value)
    (complete / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        export_gguf(complete, llama_cpp=checkout)


def test_without_llama_cpp_the_way_to_it_is_told(
    complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    with pytest.raises(MissingExtraError, match="--llama-cpp"):
        export_gguf(complete)
    with pytest.raises(MissingExtraError, match="elsewhere"):
        export_gguf(complete, llama_cpp=tmp_path / "elsewhere")
    with pytest.raises(RecipeError, match="choose one of"):
        export_gguf(complete, outtype="f8")


def test_the_export_command(complete: Path, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP", str(checkout))
    result = CliRunner().invoke(app, ["export", "gguf", str(complete), "-o", str(tmp_path / "m.gguf")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "m.gguf").is_file()
