"""Calls that fail: a full disk, a broken disk, a limit on file sizes, a folder that cannot be written to."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import Place
from warm import SOURCE, Fault

from models import tree

MAKE_ROOM = "make room and run the same command again"


def test_the_disk_is_full_from_some_call_on(place: Place) -> None:
    """Wherever it fills up: one message, nothing at the target, and the same command continues once there is room."""
    calls = ("pwrite", "write", "ftruncate", "create", "mkdir")
    count = sum(call in calls for call, _ in place.run("ties").calls)
    place.clear()
    assert count > 40
    resumed = 0
    for at in range(1, count + 1, 3):
        ending = place.run("ties", Fault(at=at, error=errno.ENOSPC, calls=calls, half=at % 2 == 0))
        assert ending.error == "DiskSpaceError" and ending.exit_code == 1, (at, ending)
        assert MAKE_ROOM in ending.message and "out" in ending.message
        assert not place.out.exists()
        resumed += place.finish("ties").resumed > 0
        place.clear()
    assert resumed > 5


@pytest.mark.parametrize("overwrite", [False, True])
def test_any_one_call_fails(place: Place, overwrite: bool) -> None:
    """An error of the disk at every second or third call: one of plait's errors, or none; never half an output."""
    wanted = place.want("linear")
    old = place.want("other") if overwrite else None
    messages = set()
    if overwrite:
        assert not place.run("other").error
    count = len(place.run("linear", overwrite=overwrite).calls)
    place.clear()
    for at in range(1, count + 1, 2 + overwrite):
        if overwrite:
            assert not place.run("other").error
        ending = place.run("linear", Fault(at=at, error=errno.EIO), overwrite=overwrite)
        assert ending.error in ("", "OutputError"), ending
        messages.add(ending.message)
        if ending.error:
            assert "Input/output error" in ending.message and "out" in ending.message
        # all later calls fail too, so that an old model may be left aside; the next run puts it back
        assert not place.out.exists() or tree(place.out) in (wanted, old)
        again = place.run("linear", overwrite=overwrite)
        assert not again.error or "exists already" in again.message, (at, ending, again)
        assert tree(place.out) == wanted and place.left() == [], (at, ending)
        place.check_inputs()
        place.clear()
    # a write that fails is told from a flush that fails; what is only tidying up does not stop the run
    assert "" in messages
    assert all(any(kind in message for message in messages) for kind in ("cannot be written", "could not store"))


def test_a_disk_that_cannot_store_what_it_took(place: Place) -> None:
    """An error of fsync is reported once and forgotten: nothing of that run may be trusted by the next."""
    count = sum(call == "fsync" for call, _ in place.run("ties").calls)
    place.clear()
    for at in range(1, count):  # the last one is that of the folder above, after the rename
        for number, error in ((errno.EIO, "OutputError"), (errno.ENOSPC, "DiskSpaceError")):
            ending = place.run("ties", Fault(at=at, error=number, calls=("fsync",)))
            assert ending.error == error and "Nothing of it is kept" in ending.message, ending
            assert place.left() == [] and not place.out.exists()
    assert place.finish("ties").resumed == 0


def test_a_limit_on_file_sizes_is_found_before_the_work(place: Place) -> None:
    ending = place.run("ties", Fault(limit=3000))
    assert ending.error == "DiskSpaceError" and "File too large" in ending.message
    assert [call for call, _ in ending.calls].count("pwrite") == 0
    assert place.left() == [] and not place.out.exists()
    place.finish("ties")


def test_a_folder_that_cannot_be_written_to(place: Place) -> None:
    for file in place.home.glob("*/*.safetensors"):
        file.chmod(0o644)
    place.out.parent.chmod(0o555)
    ending = place.run("linear", Fault(user=65534 if os.geteuid() == 0 else 0))
    place.out.parent.chmod(0o755)
    assert ending.error == "OutputError" and "cannot be written to" in ending.message
    assert str(place.out.parent) in ending.message and place.left() == []
    place.finish("linear")


FULL = """
import json, os, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
import torch
from models import save, tree
from places import RECIPES, state
import plait
from plait.engine import Silent, compile_recipe, execute
from plait.errors import DiskSpaceError
from plait.reports import describe_output

disk = Path(sys.argv[2])
home = Path(sys.argv[3])
experts = [str(save(home / f"e{i}", state(i + 1))) for i in (0, 1)]
names = {"base": str(save(home / "base", state(0))), "experts": experts}
recipe = {**RECIPES["ties"], **names}
plait.merge(recipe, home / "wanted", threads=1)

def fill():
    with (disk / "ballast").open("wb", buffering=0) as stream:
        try:
            while stream.write(bytes(4096)):
                pass
        except OSError:
            pass

def refused(**options):
    try:
        execute(compile_recipe(recipe), disk / "out", **options)
    except DiskSpaceError as error:
        assert "make room" in str(error), error
        (disk / "ballast").unlink(missing_ok=True)
        return sorted(p.name for p in disk.iterdir())
    raise AssertionError("it fitted")

def late(plan, result):
    if not result.inputs:
        fill()
    return describe_output(plan, result)

# another program fills the disk after its size was looked at: found before any work, and nothing is left
print(refused(describe=late))

class Filling(Silent):
    def phase(self, name, total):
        fill()

# it fills up while the merge runs: the tensors have their room; the small files have not
print(refused(describe=describe_output, progress=Filling()))
result = plait.merge(recipe, disk / "out", threads=1)
print(result.resumed, tree(disk / "out") == tree(home / "wanted"), sorted(p.name for p in disk.iterdir()))
"""


def test_a_small_disk(tmp_path: Path) -> None:
    """A real one, of 2 MB; skipped where an unprivileged process cannot mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o size=2m tmpfs '{disk}' && exec \"$@\"", "sh"]
    try:
        subprocess.run([*mount, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot mount a file system here")
    paths = f"{Path(__file__).parents[1]}{os.pathsep}{SOURCE}"
    found = subprocess.run(
        [*mount, sys.executable, "-c", FULL, str(Path(__file__).parent), str(disk), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == ["[]", "['.out.plait-partial', '.out.plait-work']", "7 True ['out']"]
