"""The collector of garbage rests while libraries are loaded, and works again afterwards."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from plait.cli._collector import loading


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_it_rests_while_libraries_are_loaded() -> None:
    with loading():
        assert not gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count()


def test_it_stays_off_where_it_was_off() -> None:
    gc.disable()
    with loading():
        pass
    assert not gc.isenabled()


def test_nothing_is_collected_at_the_end_of_a_command() -> None:
    program = (
        "import atexit, gc, sys; sys.argv = ['plait', '--version']; from plait.cli import main; "
        "atexit.register(lambda: print('frozen', gc.get_freeze_count() > 0, gc.isenabled())); main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "frozen True False"
