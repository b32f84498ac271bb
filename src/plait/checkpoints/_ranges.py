"""Files that one can read ranges of: what safetensors needs of the place a file lies in, and files of this machine."""

from __future__ import annotations

import os
import stat
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from plait.errors import CheckpointError, MissingModelError, ReadError

__all__ = ["LocalFile", "RangedFile"]

READ_AGAIN = "Download or copy the file again."


class RangedFile(ABC):
    """An open file of known size.

    Attributes:
        label: what messages call it.
        size: its bytes.
    """

    label: str
    size: int

    @abstractmethod
    def read_bytes(self, offset: int, view: memoryview, what: str) -> None:
        """Fill `view` from an absolute offset; safe from any thread.

        Raises:
            CheckpointError: naming `what`, if the file ends early or cannot be read.
        """

    def advise(self, offset: int, length: int) -> None:
        """Read ahead, if that helps."""
        del offset, length

    def learn(self, spans: Sequence[tuple[int, int, str]]) -> None:
        """Take note of where the tensors lie: (begin, end, name) in ascending order."""
        del spans

    def held(self, nbytes: int) -> int:
        """Bytes that stay in memory between two reads of a tensor of that size."""
        del nbytes
        return 0


class LocalFile(RangedFile):
    """A file of this machine, read with positioned reads."""

    def __init__(self, path: Path) -> None:
        self.label = str(path)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            raise MissingModelError(f"there is no file {path}.") from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be opened: {error.strerror}.") from None
        weakref.finalize(self, os.close, self._fd)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise CheckpointError(f"{path} is not an ordinary file.")
        self.size = os.fstat(self._fd).st_size

    def read_bytes(self, offset: int, view: memoryview, what: str) -> None:
        """Fill `view` from an absolute offset."""
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise ReadError(
                    f"reading {what} from {self.label} failed: {error.strerror}. Check the disk or the connection, "
                    "then run the same command again."
                ) from None
            if count == 0:
                raise CheckpointError(f"{self.label} ends inside {what}: the file was cut short. {READ_AGAIN}")
            done += count

    def advise(self, offset: int, length: int) -> None:
        """Ask the system to read ahead."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)
