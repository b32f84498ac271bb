"""The engine's promises: the same bytes everywhere, resume after a kill, nothing dropped, nothing cast in silence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from models import CONFIG, HEARS, State, family, llama, read, save, save_family, size_of, tree
from plait.engine import Options, compile_recipe, execute
from plait.errors import IncompatibleModelsError, MemoryBudgetError, NonFiniteError, OutputError


def _ties(base: State, experts: list[State], density: float = 0.2) -> State:
    """TIES over the whole model in a few lines, written independently of the package."""
    names = sorted(base)
    flat = torch.stack([torch.cat([(e[n].float() - base[n].float()).flatten() for n in names]) for e in experts])
    k = int(flat.shape[1] * density)
    limits = flat.abs().kthvalue(flat.shape[1] - k, dim=1, keepdim=True).values
    kept = flat * (flat.abs() >= limits)
    sign = kept.sum(0).sign()
    sign[sign == 0] = sign.sum().sign()
    chosen = torch.where(sign > 0, kept > 0, kept < 0)
    merged = (kept * chosen).sum(0) / chosen.sum(0).clamp(min=1)
    result, offset = {}, 0
    for n in names:
        count = base[n].numel()
        result[n] = base[n].float() + merged[offset : offset + count].view_as(base[n])
        offset += count
    return result


METHODS: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "ties": {"method": "ties"},
    "ties_rows": {"method": "ties", "parameters": {"scope": "row"}},
    "dare_ties": {"method": [{"dare": {"density": 0.4, "rescale": "l1"}}, {"ties": {"scope": "tensor"}}], "seed": 3},
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Models with tensors of several blocks, in bfloat16."""
    base, experts = family(3, torch.bfloat16, vocab=9001)
    return save_family(tmp_path_factory.mktemp("wide"), base, experts)


@pytest.mark.parametrize("name", METHODS)
def test_threads_blocks_shards_and_budgets_do_not_show(wide: dict[str, Any], tmp_path: Path, name: str) -> None:
    recipe = {**METHODS[name], **wide}
    if METHODS[name]["method"] == "linear":
        recipe.pop("base")
    plait.merge(recipe, tmp_path / "one", threads=1)
    wanted = read(tmp_path / "one")
    variants: list[dict[str, Any]] = [
        {"threads": 4},
        {"threads": 1, "block": 1 << 16},
        {"threads": 3, "block": 1 << 20, "memory": "4GiB"},
        {"threads": 2, "memory": "40MiB"},
    ]
    for i, options in enumerate(variants):
        plait.merge(recipe, tmp_path / str(i), **options)
        assert tree(tmp_path / str(i)) == tree(tmp_path / "one"), options
    plait.merge({**recipe, "shard_size": "8KB"}, tmp_path / "shards", threads=2)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) >= 10
    found = read(tmp_path / "shards")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_ties_over_files_equals_a_reference_in_memory(tmp_path: Path) -> None:
    base, experts = family(3)
    plait.merge({"method": "ties", **save_family(tmp_path, base, experts)}, tmp_path / "out")
    wanted, found = _ties(base, experts), read(tmp_path / "out")
    assert all(torch.allclose(found[k], wanted[k], rtol=0, atol=1e-7) for k in wanted)


def test_transformers_loads_the_result_and_agrees(tmp_path: Path) -> None:
    """Logits equal those of a model merged by hand."""
    transformers = pytest.importorskip("transformers")
    base, experts = family(3, torch.bfloat16)
    recipe = {"method": "ties", "dtype": "float32", "shard_size": "60KB", **save_family(tmp_path, base, experts)}
    plait.merge(recipe, tmp_path / "out")
    by_hand = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))
    by_hand.load_state_dict(_ties(base, experts), strict=True)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    assert loaded.dtype == torch.float32
    tokens = torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert torch.allclose(loaded(tokens).logits, by_hand(tokens).logits, atol=1e-5)


def test_nothing_is_cast_in_silence(tmp_path: Path) -> None:
    """Without a dtype the widest input decides; with one, config and tensors agree with it."""
    base, experts = family(1)
    save(tmp_path / "base", {k: v.bfloat16() for k, v in base.items()}, torch_dtype="bfloat16")
    save(tmp_path / "expert", experts[0])
    recipe = {"method": "task_arithmetic", "base": str(tmp_path / "base"), "experts": {"a": str(tmp_path / "expert")}}
    plait.merge(recipe, tmp_path / "wide")
    assert {t.dtype for t in read(tmp_path / "wide").values()} == {torch.float32}
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["torch_dtype"] == "float32"
    plait.merge({**recipe, "dtype": "float16"}, tmp_path / "half")
    assert {t.dtype for t in read(tmp_path / "half").values()} == {torch.float16}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "float16"
    with pytest.raises(NonFiniteError, match=r"does not fit into torch.float16"):
        big = {**recipe, "dtype": "float16", "parameters": {"lambda": 1e9}}
        plait.merge(big, tmp_path / "overflow")
    assert not (tmp_path / "overflow").exists()


def test_float64_models_are_merged_in_float64() -> None:
    base = {"w": torch.full((8,), 1.0, dtype=torch.float64)}
    expert = {"w": torch.full((8,), 1.0 + 2.0**-40, dtype=torch.float64)}
    merged = plait.merge_state_dicts("task_arithmetic", [expert], base)
    assert torch.equal(merged["w"], expert["w"])


def test_integers_and_booleans_are_copied() -> None:
    base = {"w": torch.ones(2), "ids": torch.arange(3), "mask": torch.tensor([True, False])}
    other = {"w": torch.zeros(2), "ids": torch.arange(3) + 7, "mask": torch.tensor([False, False])}
    merged = plait.merge_state_dicts("task_arithmetic", [other], base)
    assert torch.equal(merged["ids"], base["ids"])
    assert torch.equal(merged["mask"], base["mask"])
    assert torch.equal(merged["w"], other["w"])


def test_tied_heads(tmp_path: Path) -> None:
    """A missing lm_head is the embedding; a tied copy is written once."""
    tied, untied = llama(0, tied=True), llama(1)
    save(tmp_path / "base", tied, tie_word_embeddings=True)
    redundant = {**llama(2, tied=True)}
    redundant["lm_head.weight"] = redundant["model.embed_tokens.weight"].clone()
    save(tmp_path / "copy", redundant, tie_word_embeddings=True)
    recipe = {"method": "linear", "experts": {"a": str(tmp_path / "base"), "b": str(tmp_path / "copy")}}
    plait.merge(recipe, tmp_path / "out")
    assert "lm_head.weight" not in read(tmp_path / "out")
    save(tmp_path / "untied", untied)
    recipe = {"method": "linear", "experts": {"a": str(tmp_path / "untied"), "b": str(tmp_path / "base")}}
    plait.merge(recipe, tmp_path / "mixed")
    wanted = (untied["lm_head.weight"] + tied["model.embed_tokens.weight"]) / 2
    assert torch.allclose(read(tmp_path / "mixed")["lm_head.weight"], wanted)
    with pytest.raises(IncompatibleModelsError, match="lm_head"):
        plait.merge(
            {"method": "linear", "experts": {"a": str(tmp_path / "base"), "b": str(tmp_path / "untied")}},
            tmp_path / "x",
        )


def test_every_tensor_is_accounted_for(tmp_path: Path) -> None:
    base, experts = family(2)
    experts[0]["model.layers.0.self_attn.q_proj.bias"] = torch.ones(32)
    names = save_family(tmp_path, base, experts)
    with pytest.raises(IncompatibleModelsError, match=r"q_proj\.bias \(only in e0"):
        plait.merge({"method": "ties", **names}, tmp_path / "out")
    plait.merge({"method": "ties", "drop": ["*.q_proj.bias"], **names}, tmp_path / "dropped")
    assert set(read(tmp_path / "dropped")) == set(base)
    copied = {"method": "ties", "copy": [{"match": "*.q_proj.bias", "from": "e0"}], **names}
    plait.merge(copied, tmp_path / "copied")
    assert torch.equal(read(tmp_path / "copied")["model.layers.0.self_attn.q_proj.bias"], torch.ones(32))


def test_copy_rules_exclude_by_role() -> None:
    base, experts = family(2)
    recipe = {"copy": [{"role": ["embedding", "head"], "from": "base"}]}
    merged = plait.merge_state_dicts("task_arithmetic", experts, base, recipe=recipe)
    assert torch.equal(merged["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert torch.equal(merged["lm_head.weight"], base["lm_head.weight"])
    assert not torch.equal(merged["model.norm.weight"], base["model.norm.weight"])


def test_values_by_depth_role_and_name() -> None:
    base, experts = family(1)
    rules = [
        {"value": [0.0, 1.0]},
        {"role": "norm", "value": 0.25},
        {"match": "*.down_proj.*", "value": 0.5},
        {"layers": [2, 2], "match": "*.down_proj.*", "value": 0.75},
    ]
    merged = plait.merge_state_dicts("task_arithmetic", experts, base, lambda_=rules)

    def share(name: str) -> float:
        delta = experts[0][name] - base[name]
        return float(((merged[name] - base[name]) * delta).sum() / delta.square().sum())

    wanted = {
        "model.embed_tokens.weight": 0.0,
        "model.layers.0.self_attn.q_proj.weight": 0.0,
        "model.layers.1.self_attn.q_proj.weight": 0.5,
        "model.layers.2.self_attn.q_proj.weight": 1.0,
        "lm_head.weight": 1.0,
        "model.layers.1.input_layernorm.weight": 0.25,
        "model.layers.1.mlp.down_proj.weight": 0.5,
        "model.layers.2.mlp.down_proj.weight": 0.75,
    }
    for name, value in wanted.items():
        assert share(name) == pytest.approx(value, abs=1e-4), name


def test_nested_recipes_equal_two_merges(tmp_path: Path) -> None:
    """A merge of merges needs no intermediate on disk and gives the same as one."""
    base, experts = family(3, vocab=3000)
    names = save_family(tmp_path, base, experts)
    for inner in ({"method": "ties"}, {"method": "ties", "parameters": {"scope": "row"}}):
        inner = {**inner, "base": names["base"], "experts": {k: names["experts"][k] for k in ("e0", "e1")}}
        nested = {
            "method": "slerp",
            "experts": {"pair": inner, "third": names["experts"]["e2"]},
            "parameters": {"t": 0.3},
        }
        plait.merge(nested, tmp_path / "nested", overwrite=True, threads=2)
        plait.merge(inner, tmp_path / "pair", overwrite=True)
        staged = {**nested, "experts": {"pair": str(tmp_path / "pair"), "third": names["experts"]["e2"]}}
        plait.merge(staged, tmp_path / "staged", overwrite=True)
        a, b = read(tmp_path / "nested"), read(tmp_path / "staged")
        assert all(torch.equal(a[k], b[k]) for k in b)
    inputs = json.loads((tmp_path / "nested" / "plait.json").read_text())["inputs"]
    assert len(inputs) == 4 and all(entry["hash"] for entry in inputs.values())


def test_stacked_layers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    a, b = llama(1), llama(2)
    save(tmp_path / "a", a, layer_types=["x", "y", "z"])
    save(tmp_path / "b", b)
    slices = [{"model": str(tmp_path / "a"), "layers": [0, 2]}, {"model": str(tmp_path / "b"), "layers": [1, 3]}]
    plait.merge({"method": "passthrough", "slices": slices}, tmp_path / "out")
    found = read(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 4 and config["layer_types"] == ["x", "y", "y", "z"]
    for new, (model, old) in enumerate([(a, 0), (a, 1), (b, 1), (b, 2)]):
        name = "mlp.down_proj.weight"
        assert torch.equal(found[f"model.layers.{new}.{name}"], model[f"model.layers.{old}.{name}"])
    assert torch.equal(found["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    assert torch.equal(found["lm_head.weight"], b["lm_head.weight"])
    save(tmp_path / "a", a)
    plait.merge({"method": "passthrough", "slices": slices}, tmp_path / "out", overwrite=True)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    assert len(loaded.model.layers) == 4


def test_seeds_and_names_decide_random_masks() -> None:
    """Not the order of models or tensors, nor which others are there."""
    base, experts = family(2)
    both = plait.merge_state_dicts(["dare", "task_arithmetic"], {"a": experts[0], "b": experts[1]}, base, density=0.5)
    swapped = plait.merge_state_dicts(
        ["dare", "task_arithmetic"], {"b": experts[1], "a": experts[0]}, base, density=0.5
    )
    assert all(torch.allclose(both[k], swapped[k], atol=1e-6) for k in both)


def test_nan_is_allowed_only_when_asked(tmp_path: Path) -> None:
    base, experts = family(1)
    experts[0]["model.norm.weight"][3] = float("inf")
    names = save_family(tmp_path, base, experts)
    recipe = {"method": "task_arithmetic", **names}
    with pytest.raises(NonFiniteError, match=r"model\.norm\.weight.*infinity"):
        plait.merge(recipe, tmp_path / "out")
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]
    plait.merge({**recipe, "allow_nonfinite": True}, tmp_path / "out")
    found = read(tmp_path / "out")["model.norm.weight"]
    assert not torch.isfinite(found[3]) and torch.isfinite(found).sum() == 31


def test_a_budget_too_small_is_said_before_anything_is_written(tmp_path: Path) -> None:
    base, experts = family(2, vocab=9001)
    recipe = {"method": "ties", **save_family(tmp_path, base, experts)}
    with pytest.raises(MemoryBudgetError, match=r"--memory \d+MiB"):
        plait.merge(recipe, tmp_path / "out", memory="1KiB")
    assert not (tmp_path / "out").exists()


def test_overwriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    base, experts = family(2)
    names = save_family(tmp_path, base, experts)
    plait.merge({"method": "ties", "shard_size": "60KB", **names}, tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        plait.merge({"method": "ties", **names}, tmp_path / "out")
    plait.merge({"method": "ties", **names}, tmp_path / "out", overwrite=True)
    assert [p.name for p in (tmp_path / "out").glob("*.safetensors*")] == ["model.safetensors"]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_two_processes_on_one_output(tmp_path: Path) -> None:
    from plait.engine._output import GrowingOutput

    base, experts = family(1)
    plan = compile_recipe({"method": "task_arithmetic", **save_family(tmp_path, base, experts)})
    first = GrowingOutput(tmp_path / "out", plan.layout, plan.fingerprint())
    with pytest.raises(OutputError, match="another process"):
        execute(plan, tmp_path / "out", Options())
    first.abandon(keep=False)


SLOW = """
import sys, time, plait
from plait.engine import _execute
write = _execute.GrowingOutput.write
def slowly(self, *a):
    time.sleep(0.004)
    write(self, *a)
_execute.GrowingOutput.write = slowly
plait.merge(sys.argv[1], sys.argv[2], threads=2)
"""


def test_killed_and_continued_gives_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL at many moments, the same command again, identical files in the end."""
    base, experts = family(3)
    names = save_family(tmp_path, base, experts)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"method": "ties", "shard_size": "60KB", **names}))
    plait.merge(recipe, tmp_path / "wanted")
    out = tmp_path / "out"
    command = [sys.executable, "-c", SLOW, str(recipe), str(out)]
    kills = resumed = 0
    for _ in range(40):
        process = subprocess.Popen(command)
        journal = tmp_path / ".out.plait-work" / "journal"
        before = size_of(journal)
        while process.poll() is None:
            time.sleep(0.002)
            if size_of(journal) > before + 400:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                resumed += before > 0
                break
        if process.wait() == 0:
            break
        assert not out.exists()
    assert kills >= 2 and resumed >= 1
    assert tree(out) == tree(tmp_path / "wanted")


def test_surveys_are_not_repeated_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The totals of every method's finished rounds are kept as they are."""
    from plait.engine._evaluate import Evaluator

    base, experts = family(3)
    names = save_family(tmp_path, base, experts)

    class Stop(BaseException):
        pass

    def stop(*_: Any) -> Any:
        raise Stop

    counted: list[int] = []
    survey = Evaluator.survey
    monkeypatch.setattr(
        Evaluator, "survey", lambda self, jobs, step, *more: (counted.append(step), survey(self, jobs, step, *more))[1]
    )
    for method in ("ties", "pcb", "frank", "ram_plus", "opcm", [{"lines": {}}]):
        experts_ = dict(list(names["experts"].items())[: 2 if method == "frank" else 3])
        recipe = {"method": ["task_arithmetic", *method] if isinstance(method, list) else method, **names}
        plan = compile_recipe({**recipe, "experts": experts_})
        plait.merge(plan, tmp_path / "wanted", overwrite=True)
        with monkeypatch.context() as patch:
            patch.setattr(Evaluator, "computing", stop)
            with pytest.raises(Stop):
                plait.merge(plan, tmp_path / "out", overwrite=True)
        counted.clear()
        plait.merge(plan, tmp_path / "out", overwrite=True)
        assert not counted, method
        assert tree(tmp_path / "out") == tree(tmp_path / "wanted")
        plait.merge(plan, tmp_path / "out", overwrite=True)
        assert counted, method


def test_a_journal_of_other_inputs_or_damaged_bytes_is_not_trusted(tmp_path: Path) -> None:
    base, experts = family(2)
    names = save_family(tmp_path, base, experts)
    plan = compile_recipe({"method": "ties", **names})
    plait.merge(plan, tmp_path / "wanted")

    # a run that stops after everything is written, before the rename
    class Stop(BaseException):
        pass

    def stop(_: Any, result: Any) -> Any:
        if result.inputs:  # not the rehearsal before the run
            raise Stop
        return {}

    with pytest.raises(Stop):
        execute(plan, tmp_path / "out", Options(), describe=stop)
    partial = tmp_path / ".out.plait-partial"
    weights = partial / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 0xFF
    weights.write_bytes(data)
    with (tmp_path / ".out.plait-work" / "journal").open("a") as stream:
        stream.write('{"tensor": "torn')
    result = plait.merge(plan, tmp_path / "out")
    assert 0 < result.resumed < len(plan.jobs)
    assert tree(tmp_path / "out") == tree(tmp_path / "wanted")
    # another recipe does not continue from it
    with pytest.raises(Stop):
        execute(plan, tmp_path / "again", Options(), describe=stop)
    other = plait.merge({"method": "ties", "parameters": {"density": 0.5}, **names}, tmp_path / "again")
    assert other.resumed == 0


def _merged(tmp_path: Path) -> tuple[dict[str, Any], Path]:
    base, experts = family(2)
    return {"method": "ties", **save_family(tmp_path, base, experts)}, tmp_path / "out"


def test_an_output_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    recipe, out = _merged(tmp_path)

    def meddle(_: Any, result: Any) -> Any:
        if result.inputs:
            out.mkdir()
            (out / "thesis.txt").write_text("years of work")
        return {}

    with pytest.raises(OutputError, match="appeared while it was being made"):
        execute(compile_recipe(recipe), out, Options(), describe=meddle)
    assert (out / "thesis.txt").read_text() == "years of work"
    (out / "thesis.txt").unlink()
    out.rmdir()
    result = execute(compile_recipe(recipe), out, Options())
    assert result.resumed == len(result.digests)
    assert sorted(p.name for p in tmp_path.iterdir() if "plait" in p.name) == []


def test_what_another_recipe_left_is_gone_before_this_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at that very moment, no total of another recipe is ever taken for this one's."""
    from plait.engine._evaluate import Evaluator
    from plait.engine._journal import Journal

    class Stop(BaseException):
        pass

    def stop(*_: Any) -> Any:
        raise Stop

    recipe, out = _merged(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Evaluator, "computing", stop)
        plait.merge(recipe, out)
    work = tmp_path / ".out.plait-work"
    assert list(work.glob("facts-*"))
    other = {**recipe, "parameters": {"density": 0.9}}
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Journal, "start", stop)
        plait.merge(other, out)
    assert not list(work.glob("facts-*")) and not (work / "journal").exists()
    plait.merge(other, out)
    plait.merge(other, tmp_path / "wanted")
    assert tree(out) == tree(tmp_path / "wanted")


def test_an_old_output_that_a_kill_left_aside_is_put_back(tmp_path: Path) -> None:
    recipe, out = _merged(tmp_path)
    plait.merge(recipe, out)
    before = tree(out)
    out.rename(tmp_path / ".out.plait-old-1-2")
    with pytest.raises(OutputError, match="exists already"):
        plait.merge({**recipe, "parameters": {"density": 0.9}}, out)
    assert tree(out) == before
    out.rename(tmp_path / ".out.plait-old-1-2")
    plait.merge({**recipe, "parameters": {"density": 0.9}}, out, overwrite=True)
    assert tree(out) != before
    assert not [p for p in tmp_path.iterdir() if "plait" in p.name]


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    recipe, out = _merged(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.safetensors").write_text("mine")
    (tmp_path / ".out.plait-partial").symlink_to(tmp_path / "mine")
    with pytest.raises(OutputError, match="in the way"):
        plait.merge(recipe, out)
    assert (tmp_path / "mine" / "model.safetensors").read_text() == "mine"


def test_a_stopped_run_says_so_and_continues(tmp_path: Path) -> None:
    recipe, out = _merged(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**recipe, "shard_size": "60KB"}))
    code = HEARS + SLOW.split("plait.merge(")[0] + "from plait.cli import main\nmain()"
    command = [sys.executable, "-c", code, "merge", str(path), "-o", str(out), "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / ".out.plait-work" / "journal"
    while process.poll() is None and not size_of(journal) > 400:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "run the same command again" in said and "Traceback" not in said
    assert not out.exists()
    assert plait.merge(path, out, threads=1).resumed > 0


def test_a_head_of_its_own_is_not_dropped_for_a_tied_donor_that_stores_one(tmp_path: Path) -> None:
    tied = llama(0, tied=True)
    tied["lm_head.weight"] = tied["model.embed_tokens.weight"].clone()
    save(tmp_path / "a", tied, tie_word_embeddings=True)
    save(tmp_path / "b", llama(1))
    recipe = {"method": "linear", "experts": {"a": str(tmp_path / "a"), "b": str(tmp_path / "b")}}
    with pytest.raises(IncompatibleModelsError, match=r"lm_head\.weight \(only in b"):
        plait.merge(recipe, tmp_path / "out")
