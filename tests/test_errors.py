"""Bad input: one clear message, exit code 1 or 2, no traceback, no output; tried through the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from models import family, llama, save, save_family
from plait.cli import app, main
from plait.errors import PlaitError

Setting = tuple[Path, dict[str, Any]]


def _recipe(names: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"method": "ties", **names, **changes}


def _missing_model(home: Path, names: dict[str, Any]) -> Any:
    names["experts"]["e1"] = str(home / "nowhere")
    return _recipe(names)


def _shape(home: Path, names: dict[str, Any]) -> Any:
    other = llama(9)
    other["model.norm.weight"] = torch.ones(7)
    other["model.layers.1.mlp.up_proj.weight"] = torch.ones(5, 5)
    save(home / "expert1", other)
    return _recipe(names)


def _vocabulary(home: Path, names: dict[str, Any]) -> Any:
    save(home / "expert1", llama(9, vocab=70))
    return _recipe(names)


def _absent_tensor(home: Path, names: dict[str, Any]) -> Any:
    other = llama(9)
    del other["model.layers.1.mlp.up_proj.weight"]
    save(home / "expert1", other)
    return _recipe(names)


def _other_depth(home: Path, names: dict[str, Any]) -> Any:
    save(home / "expert1", llama(9, layers=2))
    return _recipe(names)


def _truncated(home: Path, names: dict[str, Any]) -> Any:
    path = home / "expert1" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return _recipe(names)


def _pickle(home: Path, names: dict[str, Any]) -> Any:
    (home / "expert1" / "model.safetensors").unlink()

    torch.save({"w": _Payload()}, home / "expert1" / "pytorch_model.bin")
    return _recipe(names)


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("open('ran', 'w')",))


def _outside(home: Path, names: dict[str, Any]) -> Any:
    folder = home / "expert1"
    (folder / "model.safetensors").rename(home / "outside.safetensors")
    weight_map = dict.fromkeys(llama(9), "../outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return _recipe(names)


def _missing_shard(home: Path, names: dict[str, Any]) -> Any:
    shutil.rmtree(home / "expert1")
    save(home / "expert1", llama(9), shards=3)
    (home / "expert1" / "model-00002-of-00003.safetensors").unlink()
    return _recipe(names)


def _nan(home: Path, names: dict[str, Any]) -> Any:
    other = llama(9)
    other["model.layers.2.mlp.up_proj.weight"][3, 4] = float("nan")
    save(home / "expert1", other)
    return _recipe(names)


def _fp8(home: Path, names: dict[str, Any]) -> Any:
    other = {k: v.to(torch.float8_e4m3fn) for k, v in llama(9).items()}
    save(home / "expert1", other)
    return _recipe(names, dtype="float32")


def _gptq(home: Path, names: dict[str, Any]) -> Any:
    save(home / "expert1", llama(9), quantization_config={"quant_method": "gptq"})
    return _recipe(names)


def _text(text: str) -> Callable[[Path, dict[str, Any]], Any]:
    def make(home: Path, names: dict[str, Any]) -> Any:
        listed = ", ".join(f"{k}: {v}" for k, v in names["experts"].items())
        return text.replace("MODELS", f"base: {names['base']}\nexperts: {{{listed}}}")

    return make


def _changed(**changes: Any) -> Callable[[Path, dict[str, Any]], Any]:
    return lambda home, names: _recipe(names, **changes)


def _without_base(home: Path, names: dict[str, Any]) -> Any:
    return {"method": "ties", "experts": names["experts"]}


# what is wrong → how to make it, the exit code, and what the message must say
CASES: dict[str, tuple[Callable[[Path, dict[str, Any]], Any], int, list[str]]] = {
    "missing model": (_missing_model, 1, ["nowhere", "neither a folder nor a file"]),
    "shapes": (_shape, 1, ["model.norm.weight", "up_proj.weight", "[7]", "[32]", "expert1"]),
    "vocabulary": (_vocabulary, 1, ["embed_tokens", "lm_head", "[70, 32]", "vocabularies differ"]),
    "absent tensor": (_absent_tensor, 1, ["layers.1.mlp.up_proj.weight", "missing from e1", "copy:"]),
    "another depth": (_other_depth, 1, ["layers.2", "missing from e1"]),
    "truncated shard": (_truncated, 1, ["expert1", "cut short"]),
    "pickle with code": (_pickle, 1, ["pytorch_model.bin", "would run code"]),
    "index leaves folder": (_outside, 1, ["../outside.safetensors", "outside its folder"]),
    "missing shard": (_missing_shard, 1, ["model-00002-of-00003.safetensors", "missing"]),
    "nan": (_nan, 1, ["layers.2.mlp.up_proj.weight", "NaN", "expert1", "allow_nonfinite"]),
    "fp8": (_fp8, 1, ["F8_E4M3", "scales", "expert1"]),
    "gptq": (_gptq, 1, ["gptq", "dequantise"]),
    "unknown method": (_changed(method="tise"), 2, ["'tise'", "Did you mean 'ties'"]),
    "a chain as a step": (
        _changed(method=[{"dare_ties": {"density": 0.2}}]),
        2,
        ["'dare_ties' stands for a whole chain, [dare, ties]"],
    ),
    "unknown parameter": (_changed(parameters={"densty": 0.2}), 2, ["'densty'", "Did you mean 'density'"]),
    "unknown key": (_text("method: ties\nMODELS\nparamters: {}\n"), 2, ["line 4", "'paramters'", "'parameters'"]),
    "duplicate key": (_text("method: ties\nMODELS\nmethod: linear\n"), 2, ["line 4", "'method'", "twice"]),
    "not yaml": (_text("method: [ties\nMODELS"), 2, ["line", "not YAML"]),
    "not a mapping": (_text("- ties\n"), 2, ["mapping"]),
    "empty": (_text(""), 2, ["empty"]),
    "mergekit": (_text("merge_method: ties\n"), 2, ["line 1", "mergekit"]),
    "no method": (_text("MODELS\n"), 2, ["'method'", "missing"]),
    "density 1.5": (_changed(parameters={"density": 1.5}), 2, ["density", "1.5", "(0, 1]"]),
    "density 20": (_changed(parameters={"density": 20}), 2, ["density", "20", "(0, 1]"]),
    "density -0.2": (_changed(parameters={"density": -0.2}), 2, ["density", "-0.2", "(0, 1]"]),
    "a word for a number": (_changed(parameters={"density": "much"}), 2, ["density", "'much'", "number"]),
    "no means a word": (_text("method: ties\nMODELS\nparameters: {density: no}\n"), 2, ["'no'", "number"]),
    "choice": (_changed(parameters={"scope": "modle"}), 2, ["scope", "Did you mean 'model'"]),
    "choice that varies": (_changed(parameters={"scope": ["model", "row"]}), 2, ["scope", "mixes kinds"]),
    "bad rule": (_changed(parameters={"density": [{"rol": "mlp", "value": 0.1}]}), 2, ["'rol'", "'role'"]),
    "unknown role": (_changed(parameters={"lambda": [{"role": "mpl", "value": 0.1}]}), 2, ["'mpl'", "mlp"]),
    "rule without a tensor": (
        _changed(parameters={"lambda": [{"match": "*.mlpp.*", "value": 0.1}]}),
        2,
        ["mlpp", "pick no tensor"],
    ),
    "density by depth over a model": (_changed(parameters={"density": [0.1, 0.9]}), 2, ["density", "scope: tensor"]),
    "slerp t": (
        lambda home, names: {"method": "slerp", "experts": names["experts"], "parameters": {"t": 3}},
        2,
        ["'t'", "[0, 1]"],
    ),
    "slerp of three": (
        lambda home, names: {"method": "slerp", "experts": {**names["experts"], "e3": names["base"]}},
        2,
        ["exactly 2", "3 given"],
    ),
    "weights add up to 0": (
        lambda home, names: {
            "method": "linear",
            "experts": {
                k: {"model": v, "weight": w} for (k, v), w in zip(names["experts"].items(), (1, -1), strict=True)
            },
        },
        2,
        ["add up to 0", "normalize"],
    ),
    "weights of slerp": (
        lambda home, names: {"method": "slerp", "experts": names["experts"], "parameters": {"weight": 0.5}},
        2,
        ["slerp", "no weights"],
    ),
    "no base": (_without_base, 2, ["'ties'", "base"]),
    "sparsifier alone": (_changed(method="dare"), 2, ["dare", "sparsifier", "task_arithmetic"]),
    "two combiners": (_changed(method=["ties", "linear"]), 2, ["two combiners"]),
    "wrong order": (_changed(method=["ties", "dare"]), 2, ["out of order"]),
    "dtype": (_changed(dtype="float12"), 2, ["float12", "bfloat16"]),
    "seed": (_changed(seed=-1), 2, ["seed"]),
    "shard size": (_changed(shard_size="5 apples"), 2, ["shard_size", "5 apples"]),
    "drop picks nothing": (_changed(drop=["nothing.*"]), 2, ["drop", "picks no tensor"]),
    "copy from nobody": (_changed(copy=[{"match": "*", "from": "e7"}]), 2, ["'e7'", "no model"]),
    "an expert called base": (
        lambda home, names: {"method": "linear", "experts": {"base": names["base"]}},
        2,
        ["'base'"],
    ),
    "slices beyond the model": (
        lambda home, names: {"method": "passthrough", "slices": [{"model": names["base"], "layers": [1, 9]}]},
        2,
        ["[1, 9]", "3 layers"],
    ),
    "slices of ties": (
        lambda home, names: {"method": "ties", "slices": [{"model": names["base"], "layers": [0, 1]}]},
        2,
        ["passthrough", "nested"],
    ),
    "fp16 overflow": (_changed(dtype="float16", parameters={"lambda": 1e9}), 1, ["does not fit", "bfloat16"]),
}


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    base, experts = family(2)
    return tmp_path, save_family(tmp_path, base, experts)


def _run(*arguments: str) -> tuple[int, str]:
    """Run the program in this process the way its entry point does."""
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, PlaitError):
        return result.exception.exit_code, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result.exit_code, result.output


@pytest.mark.parametrize("case", CASES)
def test_bad_input(setting: Setting, case: str) -> None:
    home, names = setting
    make, code, words = CASES[case]
    content = make(home, names)
    recipe = home / "recipe.yaml"
    recipe.write_text(content if isinstance(content, str) else json.dumps(content))
    before = sorted(p.name for p in home.iterdir())
    exit_code, message = _run("merge", str(recipe), "-o", str(home / "out"), "--threads", "1")
    assert exit_code == code, message
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
    assert sorted(p.name for p in home.iterdir()) == before, "something was left behind"
    assert not Path("ran").exists()


def test_no_recipe(tmp_path: Path) -> None:
    code, message = _run("merge", str(tmp_path / "none.yaml"), "-o", str(tmp_path / "out"))
    assert code == 2 and "none.yaml" in message


def test_output_is_an_input(setting: Setting) -> None:
    home, names = setting
    recipe = home / "recipe.yaml"
    recipe.write_text(json.dumps(_recipe(names)))
    weights = (home / "expert0" / "model.safetensors").read_bytes()
    for target in (home / "expert0", home / "expert0" / "inside", home):
        code, message = _run("merge", str(recipe), "-o", str(target), "--overwrite")
        assert code == 1 and "same place or lie in one another" in message
    assert (home / "expert0" / "model.safetensors").read_bytes() == weights


def test_output_exists_or_is_no_model(setting: Setting) -> None:
    home, names = setting
    recipe = home / "recipe.yaml"
    recipe.write_text(json.dumps(_recipe(names)))
    (home / "mine").mkdir()
    (home / "mine" / "thesis.txt").write_text("years of work")
    code, message = _run("merge", str(recipe), "-o", str(home / "mine"))
    assert code == 1 and "exists already" in message
    code, message = _run("merge", str(recipe), "-o", str(home / "mine"), "--overwrite")
    assert code == 1 and "without a model" in message
    assert (home / "mine" / "thesis.txt").read_text() == "years of work"
    code, message = _run("merge", str(recipe), "-o", str(recipe), "--overwrite")
    assert code == 1 and "not a folder" in message


def test_disk_too_small(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    home, names = setting
    recipe = home / "recipe.yaml"
    recipe.write_text(json.dumps(_recipe(names)))
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    code, message = _run("merge", str(recipe), "-o", str(home / "out"))
    assert code == 1 and "make room" in message
    assert not (home / "out").exists()


def test_options(setting: Setting) -> None:
    home, names = setting
    recipe = home / "recipe.yaml"
    recipe.write_text(json.dumps(_recipe(names)))
    for arguments, word in (
        (["--memory", "lots"], "memory"),
        (["--threads", "0"], "threads"),
        (["--device", "abacus"], "abacus"),
        ([], "-o FOLDER"),
    ):
        target = [] if not arguments else ["-o", str(home / "out")]
        code, message = _run("merge", str(recipe), *target, *arguments)
        assert code == 2 and word in message


def test_the_program_prints_no_traceback(tmp_path: Path) -> None:
    """The real program, once: message on standard error, exit code, nothing else."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: tise\nexperts: {a: x}\n")
    command = [
        sys.executable,
        "-c",
        "from plait.cli import main; main()",
        "merge",
        str(recipe),
        "-o",
        str(tmp_path / "o"),
    ]
    found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}, check=False)
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.startswith("error: unknown method 'tise'")
    assert "Traceback" not in found.stderr
    assert callable(main)


def test_the_default_donor_does_not_depend_on_hashing(setting: Setting) -> None:
    """Without a base, config and tokenizer come from the first expert, whatever the hash seed."""
    home, names = setting
    for i, name in enumerate(("e0", "e1")):
        (home / f"expert{i}" / "tokenizer.json").write_text(json.dumps({"of": name}))
    recipe = home / "recipe.yaml"
    recipe.write_text(json.dumps({"method": "linear", "experts": names["experts"]}))
    for seed in ("0", "1", "2"):
        command = [sys.executable, "-c", "from plait.cli import main; main()", "merge", str(recipe), "--overwrite"]
        env = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([*command, "-q", "-o", str(home / "out")], check=True, env=env)
        assert json.loads((home / "out" / "tokenizer.json").read_text()) == {"of": "e0"}


def test_stray_weight_files_beside_a_model(tmp_path: Path) -> None:
    """Two single files without an index are ambiguous, not a silent choice."""
    save_file(llama(0), tmp_path / "a.safetensors")
    save_file(llama(1), tmp_path / "b.safetensors")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"method": "passthrough", "experts": {"x": str(tmp_path)}}))
    code, message = _run("merge", str(recipe), "-o", str(tmp_path.parent / "out-stray"))
    assert code == 1 and "several weight files" in message
