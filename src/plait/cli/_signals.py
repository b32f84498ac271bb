"""Ctrl-C and SIGTERM: the first one stops a run so that it can be continued, the second one ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from plait.errors import InterruptedRunError, TerminatedRunError

__all__ = ["listening", "stoppable"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: what the message says of a merge
_KEPT = "What is finished is kept: run the same command again to continue."


class _Stop(BaseException):
    """Raised in the main thread by a signal; not a KeyboardInterrupt, which the command-line library would catch."""

    def __init__(self, number: int) -> None:
        self.number = number


class _State:
    inside = False  # a run that must be unwound
    stopping = False


def _handle(number: int, _: FrameType | None) -> None:
    if _State.inside and not _State.stopping:
        _State.stopping = True
        if sys.stderr.isatty():
            _say("stopping; once more to stop at once")
        raise _Stop(number)
    _say("error: stopped at once. Run the same command again." if _State.stopping else "error: interrupted.")
    os._exit(128 + number)  # as safe as a kill: what is on disk is good at any moment


def _say(text: str) -> None:
    shown = "\r\033[?25h\033[K" if sys.stderr.isatty() else ""  # a progress bar hides the cursor
    os.write(2, f"{shown}{text}\n".encode())


@contextmanager
def listening() -> Iterator[None]:
    """Handle the signals, in the main thread, unless the shell has told us to ignore them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stoppable(remedy: str = _KEPT) -> Iterator[None]:
    """Turn the first signal during a run into one of our errors, once the run is unwound.

    Raises:
        InterruptedRunError, TerminatedRunError: with the remedy.
    """
    _State.inside, _State.stopping = True, False
    try:
        yield
    except KeyboardInterrupt:  # where nobody listens
        raise InterruptedRunError(f"interrupted. {remedy}") from None
    except _Stop as stop:
        if stop.number == signal.SIGTERM:
            raise TerminatedRunError(f"terminated. {remedy}") from None
        raise InterruptedRunError(f"interrupted. {remedy}") from None
    finally:
        _State.inside = False
