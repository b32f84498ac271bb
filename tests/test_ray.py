"""The same plan on a cluster: the same bytes, lost workers and nodes replaced, errors that travel back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from models import family, save, save_family, tree
from plait.engine import Options, compile_recipe
from plait.engine._evaluate import Evaluator
from plait.errors import (
    ClusterError,
    MemoryBudgetError,
    MissingExtraError,
    NonFiniteError,
    OutputError,
    PlaitError,
    RecipeError,
)

pytest.importorskip("ray")
pytest.importorskip("s3fs")
pytest.importorskip("moto")

import ray
from ray.cluster_utils import Cluster

from remote_servers import remote_tree, s3_server, upload, web_server

pytestmark = [
    # the cluster's own handles of a node that is killed
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "memory": 4 << 30, "include_dashboard": False}


#: a lost node is noticed in a second or two
SOON = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 3}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture(scope="module")
def cluster(s3: str) -> Iterator[Cluster]:
    """A head that does no work, and two nodes that do; they know the way to the S3 server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("PYTHONWARNINGS", "ignore")
        found = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "_system_config": SOON})
        for _ in range(2):
            found.add_node(**NODE)
        found.wait_for_nodes()
        ray.init(address=found.address, log_to_driver=False, logging_level="ERROR")
        try:
            yield found
        finally:
            ray.shutdown()
            found.shutdown()


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    base, experts = family(3, torch.bfloat16)
    return {"method": "ties", "shard_size": "10KB", **save_family(tmp_path, base, experts)}


def _on_ray(recipe: Any, out: Any, **options: Any) -> Any:
    return plait.merge(recipe, out, executor="ray", memory="256MiB", **options)


@contextmanager
def _at(place: Callable[[], bool], act: Callable[[], None]) -> Iterator[None]:
    """Do something in another thread as soon as a run has come to a place."""
    failed: list[BaseException] = []

    def watch() -> None:
        try:
            for _ in range(3000):
                if place():
                    act()
                    return
                time.sleep(0.01)
            raise AssertionError("the run never came there")
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join()
    if failed:
        raise failed[0]


def _workers(cluster: Cluster) -> list[int]:
    """Processes of this cluster that are at work on a task of ours."""
    raylets = {process.process.pid for node in cluster.list_all_nodes() for process in node.all_processes["raylet"]}
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            if command.startswith(b"ray::plait") and parent in raylets:
                found.append(int(entry.name))
    return found


def _journalled(out: Path) -> int:
    try:
        return len((out.parent / f".{out.name}.plait-work" / "journal").read_text().splitlines())
    except OSError:
        return 0


def test_the_bytes_are_those_of_a_local_run(cluster: Cluster, recipe: dict[str, Any], tmp_path: Path) -> None:
    """Surveys of several rounds and scopes, random masks, nested recipes; shared folders and URLs."""
    names = {key: recipe[key] for key in ("base", "experts")}
    inner = {"method": "ties", "base": names["base"], "experts": {k: names["experts"][k] for k in ("e0", "e1")}}
    nested = {"method": "linear", "shard_size": "30KB", "experts": {"pair": inner, "third": names["experts"]["e2"]}}
    dare = {"method": [{"dare": {"density": 0.4}}, {"ties": {"scope": "tensor"}}], "seed": 3, **names}
    for i, given in enumerate([recipe, dare, nested]):
        plait.merge(given, tmp_path / f"wanted{i}")
        result = _on_ray(given, tmp_path / f"out{i}")
        assert tree(tmp_path / f"out{i}") == tree(tmp_path / f"wanted{i}")
        assert result.digests.keys() == plait.Checkpoint.open(tmp_path / f"out{i}").tensors.keys()
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    far = {**recipe, "base": upload(tmp_path / "base", "s3://models/ray/base")}
    plait.merge(far, tmp_path / "wanted-far")
    _on_ray(far, "s3://models/ray/out", spool=tmp_path / "spool")
    assert remote_tree("s3://models/ray/out") == tree(tmp_path / "wanted-far")
    assert not list((tmp_path / "spool").iterdir())


def test_lost_workers_and_nodes_are_replaced(cluster: Cluster, recipe: dict[str, Any], tmp_path: Path) -> None:
    """A worker is killed in a survey, another in a merge, then a whole node: the run goes on to the same bytes."""
    with web_server(tmp_path) as server:
        server.delay = 0.02  # so that there is a middle
        slow = {**recipe, "base": f"{server.url}/base"}
        plait.merge(slow, tmp_path / "wanted", threads=8)
        out, lost = tmp_path / "out", list[str]()

        def kill_worker() -> None:
            for _ in range(500):
                for pid in _workers(cluster)[:1]:
                    os.kill(pid, signal.SIGKILL)
                    lost.append("worker")
                    return
                time.sleep(0.01)
            raise AssertionError("no worker is at work")

        def kill_node() -> None:
            kill_worker()
            cluster.remove_node(next(n for n in cluster.list_all_nodes() if not n.head), allow_graceful=False)
            lost.append("node")

        with _at(lambda: bool(_workers(cluster)), kill_worker), _at(lambda: _journalled(out) > 1, kill_node):
            _on_ray(slow, out)
        assert tree(out) == tree(tmp_path / "wanted")
    assert lost == ["worker", "worker", "node"]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    cluster.add_node(**NODE)
    cluster.wait_for_nodes()


def test_a_driver_that_is_killed_is_continued(cluster: Cluster, recipe: dict[str, Any], tmp_path: Path) -> None:
    """The command line joins a cluster by its address; SIGKILL, and the same command goes on."""
    with web_server(tmp_path) as server:
        server.delay = 0.02
        path, out = tmp_path / "recipe.yaml", tmp_path / "out"
        path.write_text(json.dumps({**recipe, "base": f"{server.url}/base"}))
        code = "from plait.cli import main; main()"
        command = [sys.executable, "-c", code, "merge", str(path), "-o", str(out), "--memory", "256MiB"]
        process = subprocess.Popen([*command, "--executor", "ray", "--address", cluster.address])
        while process.poll() is None and _journalled(out) < 3:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and not out.exists()
        server.delay = 0.0
        assert _on_ray(path, out).resumed > 0
        plait.merge(path, tmp_path / "wanted")
        assert tree(out) == tree(tmp_path / "wanted")
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_cluster_that_loses_too_much_keeps_what_is_finished(
    cluster: Cluster, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plait.engine import _ray

    monkeypatch.setattr(_ray, "RETRIES", 0)
    with web_server(tmp_path) as server:
        server.delay = 0.02
        slow, out = {**recipe, "base": f"{server.url}/base"}, tmp_path / "out"

        def kill() -> None:
            for _ in range(100):  # one kill could come just after a task's end
                for pid in _workers(cluster):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.01)

        with _at(lambda: _journalled(out) > 1, kill), pytest.raises(ClusterError, match=r"finished is kept") as found:
            _on_ray(slow, out)
        assert found.value.exit_code == 1
        server.delay = 0.0
        assert plait.merge(slow, out).resumed > 0


def test_errors_travel_back_as_themselves(cluster: Cluster, recipe: dict[str, Any], tmp_path: Path) -> None:
    """With their class, message and exit code; the run stops and leaves nothing behind."""
    state = {key: value.clone() for key, value in family(3, torch.bfloat16)[1][0].items()}
    state["model.norm.weight"][3] = float("nan")
    save(tmp_path / "expert0", state)
    with pytest.raises(NonFiniteError, match=r"model\.norm\.weight.*expert0.*NaN") as found:
        _on_ray(recipe, tmp_path / "out")
    assert type(found.value) is NonFiniteError and found.value.exit_code == 1
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]
    # found while merging, after shards were uploaded
    good = {key: value.clone() for key, value in state.items()}
    good["model.norm.weight"][3] = 1.0
    save(tmp_path / "expert0", good)
    overflow = {**recipe, "method": "task_arithmetic", "dtype": "float16", "parameters": {"lambda": 1e9}}
    with pytest.raises(NonFiniteError, match=r"does not fit into torch\.float16"):
        _on_ray(overflow, "s3://models/ray/overflow")
    assert remote_tree("s3://models/ray/overflow") == {}


@pytest.mark.parametrize("remote", [False, True])
def test_stopped_and_continued(
    cluster: Cluster, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:
    """The driver keeps the journal: a later run, on Ray or here, continues with what is finished."""
    from plait.engine import _execute

    class Stop(BaseException):
        pass

    plan = compile_recipe(recipe)
    plait.merge(plan, tmp_path / "wanted")
    out: Any = "s3://models/ray/stopped" if remote else tmp_path / "out"
    whole = {shard.name: len(shard.entries) for shard in plan.layout.shards}
    kind = _execute.RemoteOutput if remote else _execute.GrowingOutput
    delivered, count = kind.delivered, 0

    def third(self: Any, shard: Any, receipt: Any) -> None:
        nonlocal count
        delivered(self, shard, receipt)
        count += whole[shard.name]
        if count > 6:
            raise Stop

    for executor in ("ray",) if remote else ("ray", "threads"):
        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(kind, "delivered", third)
            _on_ray(plan, out)
        finished, count = count, 0
        surveyed: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(Evaluator, "survey", lambda *given, kept=surveyed: kept.append(given))
            options = {"executor": executor, "memory": "256MiB"}
            result = plait.merge(plan, out, **options)
        assert result.resumed == finished and not surveyed
        assert (remote_tree(out) if remote else tree(out)) == tree(tmp_path / "wanted")
        out = tmp_path / "again"


def test_a_shard_that_threads_left_half_finished_is_completed(
    cluster: Cluster, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plait.engine._journal import Journal

    class Stop(BaseException):
        pass

    one = {**recipe, "shard_size": "5GB"}
    plait.merge(one, tmp_path / "wanted")
    finish, count = Journal.finish, []

    def some(self: Journal, *given: Any) -> None:
        finish(self, *given)
        count.append(given[0])
        if len(count) == 9:
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Journal, "finish", some)
        plait.merge(one, tmp_path / "out", threads=1)
    result = _on_ray(one, tmp_path / "out")
    assert result.resumed == 9
    assert tree(tmp_path / "out") == tree(tmp_path / "wanted")


def test_what_a_cluster_cannot_do_is_refused(cluster: Cluster, recipe: dict[str, Any], tmp_path: Path) -> None:
    from plait.engine import execute
    from plait.engine._ray import RayExecutor

    with pytest.raises(MemoryBudgetError, match="no node of the cluster offers"):
        plait.merge(recipe, tmp_path / "out", executor="ray", memory="64GiB")
    base, experts = family(1)
    content = {"method": "task_arithmetic", "base": "memory:b", "experts": {"a": "memory:a"}}
    held = compile_recipe(content, state_dicts={"memory:b": base, "memory:a": experts[0]})
    with pytest.raises(RecipeError, match="in memory"):
        _on_ray(held, tmp_path / "out")
    with RayExecutor() as executor, pytest.raises(RecipeError, match="replayed"):
        execute(compile_recipe(recipe), tmp_path / "out", Options(replay=lambda *_: torch.zeros(1)), executor=executor)
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]
    assert ray.is_initialized()  # a cluster that others have joined is left joined


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from plait.engine._ray import RayExecutor

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(ClusterError, match=rf"{address} cannot be joined.*--address"), RayExecutor(address):
            pass


def test_workers_that_see_other_inputs_or_versions_are_not_trusted(recipe: dict[str, Any], tmp_path: Path) -> None:
    """What a worker checks before it begins, without a cluster."""
    from plait._versions import versions
    from plait.engine._ray_tasks import Spec, make_shard, stamps_of, survey_bundle
    from plait.engine._shard_file import FolderSink

    plan = compile_recipe(recipe)

    def spec(**changes: Any) -> Spec:
        facts: dict[str, Any] = {
            "recipe": plan.recipe,
            "folder": tmp_path,
            "options": Options(threads=1),
            "fingerprint": plan.fingerprint(),
            "versions": versions(),
            "stamps": stamps_of(plan),
        }
        return Spec(**{**facts, **changes})

    job = plan.jobs[0].name
    assert not isinstance(survey_bundle(spec(), [{}], 0, 0, [job]), PlaitError)
    old = survey_bundle(spec(versions={**versions(), "torch": "1.0"}, fingerprint="other"), [{}], 0, 0, [job])
    assert isinstance(old, ClusterError) and "torch" in str(old) and "instead of 1.0" in str(old)
    os.utime(tmp_path / "expert1" / "model.safetensors", (1, 1))
    before = {**stamps_of(plan), "e1": "another"}
    other = survey_bundle(spec(fingerprint="yet another", stamps=before), [{}], 0, 0, [job])
    assert isinstance(other, ClusterError) and "e1" in str(other) and "share" in str(other)
    sink = FolderSink(tmp_path / "nowhere", tmp_path / "work")
    shard = plan.layout.shards[0]
    now = compile_recipe(recipe)
    fresh = spec(fingerprint=now.fingerprint(), stamps=stamps_of(now))
    unseen = make_shard(fresh, [{0: [None, None, None]}], sink, shard.name, [e.name for e in shard.entries])
    assert isinstance(unseen, OutputError) and "share" in str(unseen)


def test_the_command_line_names_executors(
    cluster: Cluster, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from plait.cli import app

    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    command = ["merge", str(path), "-o", str(tmp_path / "out"), "--executor"]
    done = CliRunner().invoke(app, [*command, "ray", "--memory", "256MiB"], catch_exceptions=False)
    assert done.exit_code == 0 and (tmp_path / "out" / "plait.json").is_file()
    with pytest.raises(RecipeError, match="no executor 'dask'"):
        CliRunner().invoke(app, [*command, "dask"], catch_exceptions=False)
    with pytest.raises(RecipeError, match="--executor ray"):
        CliRunner().invoke(app, [*command, "threads", "--address", "auto"], catch_exceptions=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'plait\[ray\]'"):
        CliRunner().invoke(app, [*command, "ray"], catch_exceptions=False)
