"""Arithmetic elsewhere: streams, pinned memory used in turns, and what a device has room for."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from plait.engine._plan import Job
from plait.errors import MemoryBudgetError, RecipeError

__all__ = ["Landing", "Lane", "Slot", "Transfers", "at_home", "check_device", "free_memory", "named_memory"]

#: share of a device's free memory that tensors may fill: libraries need workspaces of their own
_SHARE = 0.9


def check_device(name: str) -> None:
    """Refuse a device that is unknown, absent, or without streams.

    Raises:
        RecipeError: with the devices that will do.
    """
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise RecipeError(f"unknown device {name!r}; use cpu, cuda or cuda:N.") from None
    if kind == "cpu":
        return
    module = getattr(torch, kind, None)
    if module is None or not hasattr(module, "Stream") or not hasattr(module, "mem_get_info"):
        raise RecipeError(f"--device {name}: plait has no use for a device of this kind; use cpu, cuda or cuda:N.")
    if not module.is_available():
        raise RecipeError(
            f"--device {name}: this PyTorch sees no GPU; leave the option out, or install a build for your GPU."
        )
    index = torch.device(name).index
    if index is not None and index >= module.device_count():
        raise RecipeError(f"--device {name}: there are only {module.device_count()}; numbers begin with 0.")


def free_memory(name: str) -> int | None:
    """Bytes that tensors may fill on a device now; None for the processor, whose memory `--memory` bounds alone."""
    device = torch.device(name)
    if device.type == "cpu":
        return None
    return int(_SHARE * torch.get_device_module(device).mem_get_info(device)[0])


@contextmanager
def named_memory(job: Job, device: torch.device) -> Generator[None]:
    """Say which tensor did not fit when a device runs out of memory in spite of the plan."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryBudgetError(
            f"{device} ran out of memory at tensor {job.name!r} {list(job.entry.shape)}: "
            f"{str(error).splitlines()[0]} Close what else uses it, pass --threads 1 or a smaller --memory, or compute "
            "with --device cpu. Tensors that are written already are kept."
        ) from None


def at_home(value: Any) -> Any:
    """A survey's summary with its tensors in the processor's memory, where all summaries are added up."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, (list, tuple)):
        items: Sequence[Any] = value
        moved = [at_home(item) for item in items]
        return tuple(moved) if isinstance(value, tuple) else moved
    if isinstance(value, dict):
        return {key: at_home(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: at_home(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **fields)
    return value


class Slot:
    """Pinned memory through which one block travels; free again when the device has copied it."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._busy: Any = None

    def room(self, size: int) -> Tensor:
        """Return bytes ["size"] to write to, once the copy before has ended."""
        if self._busy is not None:
            self._busy.synchronize()
            self._busy = None
        if self._memory.numel() < size:
            self._memory = self._lane.pinned(size)
        return self._memory[:size]

    def send(self, values: Tensor) -> Tensor:
        """Begin to copy flat values to the device and return them there; they may lie in this slot's own memory."""
        if values.untyped_storage().data_ptr() != self._memory.untyped_storage().data_ptr():
            values = self.room(values.nbytes).view(values.dtype).copy_(values)
        sent = values.to(self._lane.device, non_blocking=True)
        self._busy = self._lane.mark()
        return sent


class Landing:
    """A result on its way back.

    Attributes:
        start: flat index of its first element.
    """

    def __init__(self, start: int, values: Tensor, sound: Tensor | None, arrived: Any) -> None:
        self.start = start
        self._values = values
        self._sound = sound
        self._arrived = arrived

    def wait(self) -> tuple[Tensor, bool]:
        """Return the values, in memory that the result after the next will use, and whether all was finite."""
        self._arrived.synchronize()
        return self._values, self._sound is None or bool(self._sound)


class Lane:
    """What one thread does on a device: on a stream of its own, so that copies and arithmetic of threads overlap."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._module = torch.get_device_module(device)
        self._stream = self._module.Stream(device=device)
        self._slots: dict[Any, list[Slot]] = {}
        self._sound: Tensor | None = None

    @contextmanager
    def work(self) -> Generator[None]:
        """Compute on this lane's stream; what was expected of values before is forgotten."""
        self._sound = None
        with self._module.stream(self._stream):
            yield

    def mark(self) -> Any:
        """Return an event that comes when all that was asked of the stream so far is done."""
        event = self._module.Event()
        event.record(self._stream)
        return event

    def pinned(self, size: int) -> Tensor:
        """Bytes that a device can copy from and to while the processor goes on."""
        return torch.empty(max(size, 1), dtype=torch.uint8, pin_memory=self.device.type == "cuda")

    def slot(self, key: Any) -> Slot:
        """Return one of two slots of a key, in turns: while one is on its way, the other can be filled."""
        pair = self._slots.setdefault(key, [Slot(self), Slot(self)])
        pair.reverse()
        return pair[0]

    @property
    def stream(self) -> Any:
        """Where the device does it."""
        return self._stream

    def expect(self, values: Tensor) -> None:
        """Note, without waiting, whether values on the device are finite."""
        if values.numel():
            low, high = torch.aminmax(values)
            self.require(torch.isfinite(low) & torch.isfinite(high))

    def require(self, sound: Tensor) -> None:
        """Note, without waiting, one more thing that must be true on the device."""
        self._sound = sound if self._sound is None else self._sound & sound

    def sound(self) -> bool:
        """Wait, and say whether all values that were expected to be finite are."""
        return self._sound is None or bool(self._sound)

    def land(self, start: int, result: Tensor) -> Landing:
        """Begin to copy a flat result back."""
        into = self.slot("out").room(result.nbytes).view(result.dtype)
        into.copy_(result, non_blocking=True)
        sound = None
        if self._sound is not None:
            sound = self.slot("sound").room(1).view(torch.bool)[0]
            sound.copy_(self._sound.view(()), non_blocking=True)
        return Landing(start, into, sound, self.mark())


class Transfers:
    """The lanes of all threads to one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._own = threading.local()

    @property
    def lane(self) -> Lane:
        """This thread's."""
        found: Lane | None = getattr(self._own, "lane", None)
        if found is None:
            found = self._own.lane = Lane(self.device)
        return found
