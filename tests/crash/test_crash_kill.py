"""kill -9 at every call that changes the file system, before it and in the middle of a write."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from places import Place
from warm import Fault

from models import tree


def _landed_or_finished(place: Place, name: str) -> str:
    """What the same command does after a kill; in the end the bytes are right and nothing is left over."""
    wanted = place.want(name)
    if not place.out.exists():
        return "resumed" if place.finish(name).resumed else "begun again"
    assert tree(place.out) == wanted
    again = place.run(name)
    # complete, and tidied up but for a trifle, it is an output like any other
    assert not again.error or "exists already" in again.message, again
    assert tree(place.out) == wanted
    assert place.left() == []
    return "exists" if again.error else "landed"


@pytest.mark.parametrize("name", ["linear", "ties"])
def test_a_new_output(place: Place, name: str) -> None:
    """Nothing at the target, or all of it."""
    points = place.points(name, halves=name == "ties")
    seen: list[str] = []
    for fault in points:
        assert place.run(name, fault).killed, fault
        seen.append(_landed_or_finished(place, name))
        place.clear()
    assert len(points) >= (45 if name == "linear" else 90)
    assert seen.count("resumed") > 15 and seen.count("landed") >= 2 and seen.count("exists") <= 3


def test_an_output_that_is_replaced(place: Place) -> None:
    """The old model is there until the new one is, but for the moment between two renames, which the next run heals."""
    assert not place.run("other").error
    old, wanted = place.want("other"), place.want("linear")
    kept = shutil.copytree(place.out, place.home / "kept")
    healed = replaced = 0
    for fault in place.points("linear", halves=False, overwrite=True):
        assert place.run("linear", fault, overwrite=True).killed
        if not place.out.exists():
            (aside,) = place.out.parent.glob(".out.plait-old-*")
            assert tree(aside) == old
            # any command heals it, even one that is not allowed to replace anything
            refused = place.run("other")
            assert "exists already" in refused.message, refused
            assert tree(place.out) == old
            healed += 1
        replaced += tree(place.out) == wanted
        assert tree(place.out) in (old, wanted)
        place.finish("linear", overwrite=True)
        place.clear()
        shutil.copytree(kept, place.out)
    assert healed == 1 and replaced > 3


def test_killed_twice(place: Place) -> None:
    """The run that continues is killed as well."""
    points, rng = place.points("ties"), random.Random(1)
    for first in points[3::12]:
        for second in rng.sample(points, 2):
            place.run("ties", first)
            place.run("ties", second)
            _landed_or_finished(place, "ties")
            place.clear()


def test_killed_and_then_another_recipe(place: Place) -> None:
    """Nothing of the killed run gets into the other one's output."""
    for fault in place.points("ties", halves=False)[::5]:
        assert place.run("ties", fault).killed
        ending = place.run("other")
        if ending.error:
            assert "exists already" in ending.message
            assert tree(place.out) == place.want("ties")
        else:
            assert ending.resumed == 0 and tree(place.out) == place.want("other")
        assert place.left() == []
        place.clear()


def test_at_random_moments_with_threads(place: Place) -> None:
    """A timer kills; several threads write. Whatever the moment, runs in a row end in the right bytes."""
    rng, kills = random.Random(2), 0
    for _ in range(14):
        for _ in range(3):
            ending = place.run("ties", Fault(delay=rng.uniform(0.002, 0.04)), threads=3)
            kills += ending.killed
            if not ending.killed:
                break
        _landed_or_finished(place, "ties")
        place.clear()
    assert kills > 3


def test_a_complete_output_that_was_changed_since_is_not_taken_for_ones_own(place: Place) -> None:
    """Killed after the rename, then someone edits the model: it is theirs, and stays as it is."""
    after = next(i for i, (call, file) in enumerate(place.run("ties").calls) if call == "rename" and "partial" in file)
    place.clear()
    assert place.run("ties", Fault(at=after + 3)).killed and place.journal.exists()
    weights = sorted(place.out.glob("*.safetensors"))[1]
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    changed = tree(place.out)
    ending = place.run("ties")
    assert ending.error == "OutputError" and "exists already" in ending.message
    assert tree(place.out) == changed and place.left() == []


def test_half_of_an_old_output_is_never_put_back(place: Place) -> None:
    """Killed while the replaced model is removed; then the new one is moved elsewhere."""
    assert not place.run("other").error
    calls = place.run("linear", overwrite=True).calls
    gone = next(i for i, (call, file) in enumerate(calls) if call == "rename" and "plait-old" in file)
    place.clear()
    assert not place.run("other").error
    assert place.run("linear", Fault(at=gone + 4), overwrite=True).killed
    place.out.rename(place.home / "elsewhere")
    assert any("plait-gone" in name for name in place.left())
    place.finish("linear")


def test_everything_is_stored_before_the_rename(place: Place) -> None:
    """After a loss of power, too, the target holds all of a model: files and folders are synced."""
    (place.home / "base" / "1_Pooling").mkdir()
    (place.home / "base" / "modules.json").write_text("[]")
    (place.home / "base" / "1_Pooling" / "config.json").write_text("{}")
    ending = place.run("ties")
    assert not ending.error, ending
    calls = ending.calls
    rename = calls.index(("rename", str(place.partial)))
    assert ("rename", str(place.partial)) not in calls[rename + 1 :]
    everything = [place.out, *place.out.rglob("*")]
    assert any(p.name == "1_Pooling" for p in everything)
    for path in everything:
        inode = f"#{path.stat().st_ino}"
        touched = [i for i, (call, where) in enumerate(calls) if where == inode and call != "fsync"]
        synced = [i for i, (call, where) in enumerate(calls) if where == inode and call == "fsync"]
        assert synced and max(touched, default=0) < max(synced) < rename, path
    parent = ("fsync", f"#{Path(place.out.parent).stat().st_ino}")
    assert parent in calls[rename:]
