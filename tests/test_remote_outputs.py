"""Outputs behind URLs: the same bytes, nothing overwritten, finished shards kept, published last."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import plait
from models import family, save_family, tree
from plait.checkpoints import _retry
from plait.checkpoints._store import Store
from plait.engine import Options, compile_recipe, execute
from plait.engine._evaluate import Evaluator
from plait.engine._shard_file import RemoteSink
from plait.errors import CheckpointError, DiskSpaceError, NonFiniteError, OutputError, UnreachableError

pytest.importorskip("s3fs")
pytest.importorskip("moto")

from remote_servers import Faltering, faltering, remote_tree, s3_server, upload


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_retry, "FIRST_PAUSE", 0.001)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def shaky() -> Iterator[type[Faltering]]:
    with faltering() as found:
        yield found


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    base, experts = family(3)
    names = save_family(tmp_path, base, experts)
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    return {"method": "ties", "shard_size": "20KB", "files_from": "base", **names}


def _finished(url: str) -> int:
    names = [name for name in remote_tree(url) if name.startswith(".plait-work/model")]
    return sum(name.endswith(".safetensors.json") for name in names)


class Stop(BaseException):
    """A kill, as far as the program can tell."""


def test_the_bytes_are_those_of_a_local_run(
    s3: str, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most two shards lie in the spool at once, and nothing in the end."""
    plait.merge(recipe, tmp_path / "wanted")
    spool = tmp_path / "spool"
    most = 0
    begin = RemoteSink.begin

    def counted(self: RemoteSink, shard: Any, resume: bool = False) -> Any:
        nonlocal most
        file = begin(self, shard, resume)
        most = max(most, len(list(spool.glob("*/*"))))
        return file

    monkeypatch.setattr(RemoteSink, "begin", counted)
    result = plait.merge(recipe, "s3://models/out", spool=spool, threads=2)
    assert remote_tree("s3://models/out") == tree(tmp_path / "wanted")
    assert len(list((tmp_path / "wanted").glob("*.safetensors"))) > 4
    assert most == 2 and not list(spool.iterdir())
    assert result.digests == plait.merge(recipe, tmp_path / "again").digests
    plait.merge({**recipe, "shard_size": "5GB"}, tmp_path / "single")
    plait.merge({**recipe, "shard_size": "5GB"}, "s3://models/single")
    assert remote_tree("s3://models/single") == tree(tmp_path / "single")
    # what came out is a model that goes in again
    assert set(plait.Checkpoint.open("s3://models/out")) == set(plait.Checkpoint.open(tmp_path / "wanted"))


def test_what_exists_is_not_overwritten_unasked(s3: str, recipe: dict[str, Any], tmp_path: Path) -> None:
    url = "s3://models/taken"
    plait.merge(recipe, url)
    before = remote_tree(url)
    other = {**recipe, "parameters": {"density": 0.9}}
    with pytest.raises(OutputError, match=r"s3://models/taken exists already"):
        plait.merge(other, url)
    assert remote_tree(url) == before
    plait.merge(other, url, overwrite=True)
    plait.merge(other, tmp_path / "wanted")
    assert remote_tree(url) == tree(tmp_path / "wanted")
    single = {**other, "shard_size": "5GB"}
    plait.merge(single, url, overwrite=True)
    plait.merge(single, tmp_path / "wanted", overwrite=True)
    assert remote_tree(url) == tree(tmp_path / "wanted")
    Store("s3://models/thesis").write("models/thesis/thesis.txt", b"years of work")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"exists already|without a model"):
            plait.merge(recipe, "s3://models/thesis", overwrite=overwrite)
    with pytest.raises(OutputError, match="same place"):
        plait.merge({**recipe, "base": url}, f"{url}/inside")
    with pytest.raises(OutputError, match=r"no-such-bucket.*bucket"):
        plait.merge(recipe, "s3://no-such-bucket/out")


@pytest.mark.parametrize("replacing", [False, True])
def test_stopped_anywhere_it_continues_to_the_same_bytes(
    shaky: type[Faltering],
    recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    replacing: bool,
) -> None:
    """The run ends at every write to the storage in turn; an old model stands until the new one is complete."""
    url = "faltering://out"
    old = {**recipe, "method": "linear", "shard_size": "40KB"}
    old.pop("base")
    old["files_from"] = "e0"
    plait.merge(recipe, tmp_path / "wanted")
    wanted, first = tree(tmp_path / "wanted"), {}
    if replacing:
        plait.merge(old, url)
        first = remote_tree(url)
    steps = {name: getattr(Store, name) for name in ("write", "upload", "copy", "remove")}
    left = stopped = resumed = 0

    def limited(name: str) -> Any:
        def step(self: Store, *given: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Stop
            left -= 1
            return steps[name](self, *given)

        return step

    for allowed in range(200):
        left = allowed
        with monkeypatch.context() as patch:
            for name in steps:
                patch.setattr(Store, name, limited(name))
            try:
                result = plait.merge(recipe, url, threads=1, overwrite=replacing)
            except Stop:
                stopped += 1
                there = remote_tree(url)
                if ".plait-unfinished" not in there and there:
                    seen = {k: v for k, v in there.items() if not k.startswith(".plait-")}
                    assert seen in (first, wanted)
                    if seen:
                        plait.Checkpoint.open(url)
                elif there:
                    with pytest.raises(CheckpointError, match="unfinished"):
                        plait.Checkpoint.open(url)
                continue
            resumed = max(resumed, result.resumed)
            break
    assert stopped > 5 and resumed > 0
    assert remote_tree(url) == wanted


def test_a_finished_model_is_not_taken_for_what_a_kill_has_left(
    shaky: type[Faltering], recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the last file and clearing away, the model is complete: another recipe must not replace it."""
    url = "faltering://out"
    remove, calls = Store.remove, []

    def once(self: Store, paths: Any) -> None:
        calls.append(paths)
        if len(calls) == 3:
            raise Stop
        remove(self, paths)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Store, "remove", once)
        plait.merge(recipe, url)
    before = remote_tree(url)
    assert ".plait-unfinished" not in before and ".plait-work/run.json" in before
    with pytest.raises(OutputError, match="exists already"):
        plait.merge({**recipe, "parameters": {"density": 0.9}}, url)
    assert remote_tree(url) == before
    assert plait.merge(recipe, url).resumed > 0
    assert not [name for name in remote_tree(url) if name.startswith(".plait")]


def test_killed_processes_continue(s3: str, recipe: dict[str, Any], tmp_path: Path) -> None:
    """SIGKILL in the middle of an upload; what is left in the spool goes, finished shards stay."""
    path, url, spool = tmp_path / "recipe.yaml", "s3://models/killed", tmp_path / "spool"
    path.write_text(json.dumps(recipe))
    plait.merge(path, tmp_path / "wanted")
    code = (
        "import sys, time\n"
        "from plait.checkpoints._store import Store\n"
        "upload, done = Store.upload, []\n"
        "def slowly(self, *given):\n"
        "    if len(done) == 2:\n"
        "        print('uploading', flush=True)\n"
        "        time.sleep(60)\n"
        "    done.append(upload(self, *given))\n"
        "    return done[-1]\n"
        "Store.upload = slowly\n"
        "from plait.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "merge", str(path), "-o", url, "--spool", str(spool), "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "uploading\n"
    while _finished(url) < 2:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert list(spool.glob("plait-spool-*/*.safetensors"))
    assert "config.json" not in remote_tree(url)
    counted: list[str] = []
    survey = Evaluator.survey
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Evaluator, "survey", lambda self, job, step: (counted.append(job.name), survey(self, job, step))[1]
        )
        result = plait.merge(path, url, spool=spool, threads=1)
    assert result.resumed >= 2 and not counted  # totals of the survey are kept beside the shards
    assert remote_tree(url) == tree(tmp_path / "wanted")
    assert not list(spool.iterdir())


def test_a_shard_that_changed_is_made_again(shaky: type[Faltering], recipe: dict[str, Any], tmp_path: Path) -> None:
    plan = compile_recipe(recipe)

    def stop(_: Any, result: Any) -> Any:
        if result.inputs:
            raise Stop
        return {}

    with pytest.raises(Stop):
        execute(plan, "faltering://out", Options(threads=1), describe=stop)
    shard = plan.layout.shards[1].name
    data = bytes(shaky.store[f"/out/{shard}"].getbuffer())
    shaky().pipe_file(f"/out/{shard}", data[:-1] + b"x")
    result = plait.merge(plan, "faltering://out")
    assert result.resumed == len(plan.jobs) - len(plan.layout.shards[1].entries)
    plait.merge(plan, tmp_path / "wanted")
    assert remote_tree("faltering://out") == tree(tmp_path / "wanted")


def test_what_another_recipe_left_is_cleared_away(
    shaky: type[Faltering], recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "faltering://out"
    upload_ = Store.upload
    with monkeypatch.context() as patch, pytest.raises(Stop):
        uploads: list[str] = []

        def second(self: Store, source: Path, path: str) -> Any:
            uploads.append(path)
            if len(uploads) > 3:
                raise Stop
            return upload_(self, source, path)

        patch.setattr(Store, "upload", second)
        plait.merge(recipe, url)
    assert len([name for name in remote_tree(url) if name.endswith(".safetensors")]) == 3
    other = {**recipe, "parameters": {"density": 0.9}, "shard_size": "1MB"}
    assert plait.merge(other, url).resumed == 0
    plait.merge(other, tmp_path / "wanted")
    assert remote_tree(url) == tree(tmp_path / "wanted")


def test_two_runs_on_one_target(shaky: type[Faltering], recipe: dict[str, Any]) -> None:
    """One that another recipe has taken the target from does not publish."""
    url, plan = "faltering://out", compile_recipe(recipe)

    def meddle(_: Any, result: Any) -> Any:
        if result.inputs:
            Store(url).write("/out/.plait-work/run.json", b'{"fingerprint": "other", "staged": false, "files": []}')
        return {}

    with pytest.raises(OutputError, match="another process"):
        execute(plan, url, Options(), describe=meddle)


def test_errors_of_uploads(
    shaky: type[Faltering], recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passing ones are tried again, lasting ones keep what is finished, mistakes of the merge leave nothing."""
    plait.merge(recipe, tmp_path / "wanted")
    put, errors = Faltering.put_file, [ConnectionResetError("reset"), TimeoutError("slow")]

    def falter(self: Faltering, *given: Any, **named: Any) -> Any:
        if errors:
            raise errors.pop(0)
        return put(self, *given, **named)

    monkeypatch.setattr(Faltering, "put_file", falter)
    plait.merge(recipe, "faltering://a")
    assert not errors and remote_tree("faltering://a") == tree(tmp_path / "wanted")

    def fail(after: int, error: Exception) -> None:
        count = 0

        def put_some(self: Faltering, *given: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count > after:
                raise error
            return put(self, *given, **named)

        monkeypatch.setattr(Faltering, "put_file", put_some)

    fail(3, PermissionError("Access Denied"))
    with pytest.raises(OutputError, match=r"uploading faltering://b/model-00004.* refused \(Access Denied\)"):
        plait.merge(recipe, "faltering://b", spool=tmp_path / "spool")
    assert not list((tmp_path / "spool").iterdir())
    fail(2, ConnectionResetError("reset"))
    with pytest.raises(UnreachableError, match="what is finished is kept"):
        plait.merge(recipe, "faltering://b")
    monkeypatch.setattr(Faltering, "put_file", put)
    assert plait.merge(recipe, "faltering://b").resumed > 0
    assert remote_tree("faltering://b") == tree(tmp_path / "wanted")

    def cut(self: Faltering, source: str, path: str, **_: Any) -> None:
        self.pipe_file(path, Path(source).read_bytes()[:-1])

    monkeypatch.setattr(Faltering, "put_file", cut)
    with pytest.raises(OutputError, match=r"faltering://c/model-00001.* bytes after .* bytes were written"):
        plait.merge(recipe, "faltering://c")
    monkeypatch.setattr(Faltering, "put_file", put)
    overflow = {**recipe, "dtype": "float16", "method": "task_arithmetic", "parameters": {"lambda": 1e9}}
    with pytest.raises(NonFiniteError):
        plait.merge(overflow, "faltering://d")
    assert remote_tree("faltering://d") == {}


def test_a_spool_too_small_is_said_before_anything_is_written(
    shaky: type[Faltering], recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from plait.engine import _targets

    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(_targets.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskSpaceError, match=r"--spool"):
        plait.merge(recipe, "faltering://out")
    assert remote_tree("faltering://out") == {}


def test_the_command_line_takes_urls(s3: str, recipe: dict[str, Any], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from plait.cli import app

    path = tmp_path / "recipe.yaml"
    far = {**recipe, "base": upload(tmp_path / "base", "s3://models/cli/base")}
    path.write_text(json.dumps(far))
    run = CliRunner()
    plan = run.invoke(app, ["merge", str(path), "-o", "s3://models/cli/out", "--dry-run"], catch_exceptions=False)
    assert plan.exit_code == 0 and "s3://models/cli/base" in plan.output
    assert remote_tree("s3://models/cli/out") == {}
    done = run.invoke(app, ["merge", str(path), "-o", "s3://models/cli/out"], catch_exceptions=False)
    assert done.exit_code == 0 and "s3://models/cli/out" in done.output
    assert "plait.json" in remote_tree("s3://models/cli/out")
    shown = run.invoke(app, ["inspect", "s3://models/cli/out", "--json"], catch_exceptions=False)
    assert json.loads(shown.output)["model"] == "s3://models/cli/out"


def test_workers_on_one_spool_leave_each_other_alone(recipe: dict[str, Any], tmp_path: Path) -> None:
    """Clearing away what killed processes have left never takes a file that another worker has just begun."""
    from concurrent.futures import ThreadPoolExecutor

    shard = compile_recipe(recipe).layout.shards[0]
    sink = RemoteSink("faltering://out", "", tmp_path / "spool")
    left = tmp_path / "spool" / "plait-spool-left"
    left.mkdir(parents=True)
    (left / shard.name).write_bytes(b"of a killed process")

    def work(_: int) -> None:
        for _ in range(60):
            file = sink.begin(shard)
            assert file.path.read_bytes()[: len(shard.header)] == shard.header
            file.discard()

    with ThreadPoolExecutor(8) as workers:
        list(workers.map(work, range(8)))
    assert not list((tmp_path / "spool").iterdir())
