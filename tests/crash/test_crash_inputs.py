"""Inputs that cannot be read, end early, change, or go away, while a merge runs or between a kill and the next run."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
from places import Place
from warm import Fault

from models import tree


def _middle(place: Place, name: str = "ties") -> list[int]:
    """Some calls from the first write of a tensor to the last: during surveys and during the merge."""
    calls = [call for call, _ in place.run(name).calls]
    place.clear()
    writes = [i for i, call in enumerate(calls, start=1) if call == "pwrite"]
    return list(range(writes[0], writes[-7], 2))


def test_an_input_that_cannot_be_read_now(place: Place) -> None:
    """What is finished is kept, for the disk or the connection may come back."""
    resumed = 0
    for at in _middle(place):
        ending = place.run("ties", Fault(at=at, read=str(errno.EIO), under="expert1"))
        assert ending.error == "ReadError" and ending.exit_code == 1, ending
        assert "expert1/model.safetensors" in ending.message and "Input/output error" in ending.message
        assert "tensor 'model." in ending.message and "run the same command again" in ending.message
        assert not place.out.exists()
        resumed += place.finish("ties").resumed > 0
        place.clear()
    assert resumed > 3


def test_an_input_that_ends_early(place: Place) -> None:
    """It is not what its header says: nothing of the merge is kept."""
    for at in _middle(place)[::4]:
        ending = place.run("ties", Fault(at=at, read="short", under="expert1"))
        assert ending.error == "CheckpointError" and "cut short" in ending.message, ending
        assert "expert1/model.safetensors" in ending.message
        assert place.left() == [] and not place.out.exists()


def test_an_input_that_is_written_to_while_it_is_read(place: Place) -> None:
    file = place.home / "expert1" / "model.safetensors"
    for at in _middle(place)[::4]:
        ending = place.run("ties", Fault(at=at, append=str(file)))
        os.truncate(file, file.stat().st_size - 1)
        assert ending.error == "CheckpointError" and "was changed while it was being read" in ending.message, ending
        assert str(file) in ending.message
        assert place.left() == [] and not place.out.exists()
    place.finish("ties")


def test_an_input_that_is_moved_away_while_it_is_read(place: Place) -> None:
    """An open file is read to its end."""
    expert = place.home / "expert1"
    at = _middle(place)[-1]
    ending = place.run("ties", Fault(at=at, swap=((str(expert), str(place.home / "away")),)))
    (place.home / "away").rename(expert)
    assert not ending.error and tree(place.out) == place.want("ties")


def test_the_donor_is_moved_away_while_it_is_read(place: Place) -> None:
    """Its tokenizer is missed at the end: it is asked for, and nothing is merged again."""
    donor = place.home / "expert0"
    at = _middle(place, "linear")[-1]
    ending = place.run("linear", Fault(at=at, swap=((str(donor), str(place.home / "away")),)))
    assert ending.error == "ReadError" and str(donor) in ending.message and "Put it back" in ending.message, ending
    (place.home / "away").rename(donor)
    assert place.finish("linear").resumed == 7


@pytest.mark.parametrize("how", ["in place", "in place, the time set back", "replaced, the time set back"])
def test_an_input_that_changes_between_a_kill_and_the_next_run(place: Place, how: str) -> None:
    """The merge starts anew: old and new are never mixed."""
    file = place.home / "expert1" / "model.safetensors"
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    data[-2000] ^= 1
    assert place.run("ties", Fault(at=_middle(place)[-1])).killed
    if "replaced" in how:
        file.unlink()
    file.write_bytes(data)
    if "time" in how:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    ending = place.run("ties")
    assert not ending.error and ending.resumed == 0
    fresh = place.home / "fresh"
    assert not place.warm.run(place.recipe("ties"), fresh).error
    assert tree(place.out) == tree(fresh) and place.left() == []


def test_an_input_that_is_gone_between_a_kill_and_the_next_run(place: Place) -> None:
    assert place.run("ties", Fault(at=_middle(place)[-1])).killed
    kept = place.left()
    (place.home / "expert1").rename(place.home / "away")
    ending = place.run("ties")
    assert ending.error == "MissingModelError" and str(place.home / "expert1") in ending.message
    assert place.left() == kept
    (place.home / "away").rename(place.home / "expert1")
    assert place.finish("ties").resumed > 0


def test_another_output_beside_it(place: Place) -> None:
    """Two outputs in one folder know nothing of one another."""
    assert place.run("ties", Fault(at=20)).killed
    beside = place.out.with_name("out2")
    assert not place.warm.run(place.recipe("ties"), beside).error
    assert tree(beside) == place.want("ties") and place.journal.exists()
    shutil.rmtree(beside)
    place.finish("ties")
