"""Ctrl-C and SIGTERM, through the real program: the signal comes from within, at a known moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from places import Place
from warm import SOURCE

PROGRAM = """
import os, signal, sys, threading, time
phase, number, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
signal.signal(signal.SIGUSR1, lambda *_: None)
from plait.cli import _progress, _signals, main
advance, sent = _progress.Display.advance, []

def nudge():
    # a signal that comes just before the main thread falls asleep does not wake it up; this one does
    time.sleep(0.005)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

def tell(self, count):
    advance(self, count)
    if self._name.startswith(phase) and not sent:
        assert threading.current_thread() is not threading.main_thread()
        for _ in range(times):
            sent.append(1)
            os.kill(os.getpid(), number)
            while not _signals._State.stopping:
                nudge()
        while times > 1:  # a job that does not end: only the second signal can
            nudge()

_progress.Display.advance = tell
sys.argv = ["plait", *sys.argv[4:]]
main()
"""

EARLY = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from plait.cli import app, main
app.callback()(lambda: os.kill(os.getpid(), NUMBER))
main()
"""

CASES = [
    ("surveying for ties (2", signal.SIGINT, 1, 130, ["interrupted", "run the same command again"]),
    ("merging", signal.SIGTERM, 1, 143, ["terminated", "run the same command again"]),
    ("merging", signal.SIGINT, 2, 130, ["stopped at once", "same command again"]),
    ("surveying for ties (2", signal.SIGTERM, 2, 143, ["stopped at once", "same command again"]),
]


@pytest.mark.parametrize(("phase", "number", "times", "code", "words"), CASES)
def test_a_signal(place: Place, phase: str, number: int, times: int, code: int, words: list[str]) -> None:
    """One message, the exit code of the signal, nothing at the target; the same command continues."""
    recipe = place.home / "recipe.yaml"
    recipe.write_text(json.dumps(place.recipe("ties")))
    command = [sys.executable, "-c", PROGRAM, phase, str(int(number)), str(times)]
    found = subprocess.run(
        [*command, "merge", str(recipe), "-o", str(place.out), "--threads", "1", "-q"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        timeout=100,
        check=False,
    )
    assert found.returncode == code, found
    assert found.stdout == "" and found.stderr.count("\n") == 1 and found.stderr.startswith("error: "), found.stderr
    for word in words:
        assert word in found.stderr
    assert not place.out.exists() and place.journal.exists()
    ending = place.warm.run(recipe, place.out)
    assert not ending.error and place.left() == []
    weights = sorted(p.name for p in place.out.glob("*.safetensors"))
    assert [(place.out / w).read_bytes() for w in weights] == [place.want("ties")[w] for w in weights]


def test_a_signal_before_anything_is_written() -> None:
    """While the program loads and plans there is nothing to unwind: it ends at once."""
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        found = subprocess.run(
            [sys.executable, "-c", EARLY.replace("NUMBER", str(int(number))), "methods"],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            check=False,
        )
        assert (found.returncode, found.stdout, found.stderr) == (code, "", "error: interrupted.\n"), found
