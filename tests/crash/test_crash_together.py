"""Several processes on one output, and meddling with the folder while it grows."""

from __future__ import annotations

import fcntl
import os

import pytest
from places import Place
from warm import Fault

from models import tree


def test_a_lock_that_is_held(place: Place) -> None:
    """The other process is named as the reason, and nothing of it is touched."""
    assert place.run("ties", Fault(at=30)).killed
    before = tree(place.out.parent)
    with place.out.with_name(".out.plait-lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for name in ("ties", "other"):
            ending = place.run(name)
            assert ending.error == "OutputError" and ending.exit_code == 1
            assert "another process is writing" in ending.message and "wait for it" in ending.message
            assert tree(place.out.parent) == before
    place.finish("ties")


def test_a_lock_that_a_killed_process_left(place: Place) -> None:
    place.out.with_name(".out.plait-lock").touch()
    place.finish("ties")
    place.out.with_name(".out.plait-lock").touch()
    ending = place.run("ties")
    assert "exists already" in ending.message and place.left() == []
    assert tree(place.out) == place.want("ties")


@pytest.mark.parametrize("overwrite", [False, True])
def test_four_at_once(place: Place, overwrite: bool) -> None:
    """One wins; the others say why they do not, whenever they come."""
    for _ in range(6):
        runs = [(place.recipe("linear"), place.out, None, {"overwrite": overwrite})] * 4
        endings = place.warm.run_many(runs)
        assert sum(not e.error for e in endings) >= 1, endings
        for ending in endings:
            known = "another process is writing" in ending.message or "exists already" in ending.message
            assert not ending.error or (ending.error == "OutputError" and known), ending
        assert overwrite or sum(not e.error for e in endings) == 1
        assert tree(place.out) == place.want("linear") and place.left() == []
        place.clear()


def test_two_recipes_at_once(place: Place) -> None:
    """The result is one or the other, never some of each."""
    wanted = (place.want("linear"), place.want("other"))
    for _ in range(6):
        runs = [(place.recipe(name), place.out, None, {"overwrite": True}) for name in ("linear", "other")]
        endings = place.warm.run_many(runs)
        assert any(not e.error for e in endings), endings
        assert tree(place.out) in wanted and place.left() == []


def test_one_is_killed_while_another_waits_for_it(place: Place) -> None:
    """Retrying takes over where the killed one stopped."""
    runs = [(place.recipe("ties"), place.out, Fault(at=45), {}), (place.recipe("ties"), place.out, Fault(at=45), {})]
    endings = place.warm.run_many(runs)
    assert any(e.killed for e in endings) and not any(e.error.startswith(("!", "signal")) for e in endings), endings
    assert place.finish("ties").resumed > 0


@pytest.mark.parametrize("how", ["removed", "replaced by a link", "replaced by another run's"])
def test_the_folder_is_taken_away_while_it_grows(place: Place, how: str) -> None:
    """A tidying job in the background: nothing incomplete gets to the target, nothing is written through a link."""
    calls = [call for call, _ in place.run("ties").calls]
    place.clear()
    partial, spare = str(place.partial), place.home / "spare"
    (spare / "inside").mkdir(parents=True)
    link = place.home / "link"
    link.symlink_to(spare)
    place.want("ties")
    assert place.run("other", Fault(at=30)).killed
    place.partial.rename(place.home / "another")
    replaced = {"removed": (), "replaced by a link": ((str(link), partial),)}
    steps = replaced.get(how, ((str(place.home / "another"), partial),))
    for at in (calls.index("pwrite") + 12, calls.index("fsync") - 12, calls.index("fsync")):
        place.clear()
        ending = place.run("ties", Fault(at=at, swap=((partial, str(place.home / f"away{at}")), *steps)))
        assert ending.error == "OutputError" and ".out.plait-partial" in ending.message, ending
        assert not place.out.exists() and [p.name for p in spare.iterdir()] == ["inside"]
        if os.path.lexists(partial):
            os.rename(partial, steps[0][0])  # noqa: PTH104 - a link is moved, not what it points to
    place.finish("ties")
