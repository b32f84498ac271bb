"""Inputs of a job, block by block or whole: read, hashed once, checked, converted once."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from plait.checkpoints import LazyTensor
from plait.engine._buffers import Buffer, Held, Scratch
from plait.engine._device import Transfers
from plait.engine._finite import check_finite
from plait.engine._fusion import read_as
from plait.engine._hashes import InputHashes, bytes_of
from plait.engine._plan import Job
from plait.engine._scheduler import holdable, input_bytes

__all__ = ["Reader"]

#: elements that are read at a time into a tensor that is seen whole, here and on a device
_PIECE, _PIECE_ELSEWHERE = 1 << 20, 1 << 22


class Reader:
    """Reads the inputs of one plan's jobs.

    Attributes:
        hashes: where the bytes that are read are noted; None for nowhere.
        device: where tensors are wanted.
        transfers: the way there; None on the processor.
        scratch: the buffers of each thread.
    """

    def __init__(self, hashes: InputHashes | None, device: torch.device, strict: bool, hold: int) -> None:
        self.hashes = hashes
        self.device = device
        self.transfers = Transfers(device) if device.type != "cpu" else None
        self.scratch = Scratch()
        self._strict = strict
        self._hold = hold
        self._lock = threading.Lock()
        self._inspected: set[int] = set()

    # --- for torch ---------------------------------------------------------------------------------------------

    def load(self, slot: int, tensor: LazyTensor, start: int, stop: int, compute: torch.dtype) -> Tensor:
        """Read one block, converted, into a buffer of the slot, or onto the device."""
        count = stop - start
        if self.transfers is not None:
            values = self.sent(slot, tensor, start, stop).to(compute)
            if self._strict:
                self.transfers.lane.expect(values)
            return values
        raw = tensor.read(start, stop, self.scratch.take("raw", count * tensor.dtype.itemsize, torch.uint8))
        if self.hashes is not None and self.scratch.noting:
            self.hashes.update(tensor, start, count, bytes_of(raw))
        values = self.scratch.take(slot, count, compute)
        values.copy_(raw)
        if self._strict and count:
            check_finite(values, tensor, start)
        return values

    def sent(self, key: int | str, tensor: LazyTensor, start: int, stop: int, note: bool = True) -> Tensor:
        """Read elements as they are stored, and begin to copy them to the device."""
        assert self.transfers is not None
        slot = self.transfers.lane.slot(key)
        raw = tensor.read(start, stop, slot.room((stop - start) * tensor.dtype.itemsize))
        if self.hashes is not None and note and self.scratch.noting:
            self.hashes.update(tensor, start, stop - start, bytes_of(raw))
        return slot.send(raw)

    def raw(self, tensor: LazyTensor, start: int, stop: int) -> Tensor:
        """Read one block as it is stored."""
        found = tensor.read(start, stop)
        if self.hashes is not None:
            self.hashes.update(tensor, start, stop - start, bytes_of(found))
        return found

    def whole(self, tensor: LazyTensor, job: Job) -> Tensor:
        """Read a whole tensor piece by piece into fresh memory, so that no second copy of it lies beside."""
        values = torch.empty(tensor.numel, dtype=job.compute, device=self.device)
        if self.transfers is not None:
            for start in range(0, tensor.numel, _PIECE_ELSEWHERE):
                stop = min(start + _PIECE_ELSEWHERE, tensor.numel)
                values[start:stop].copy_(self.sent("piece", tensor, start, stop))
            return values.view(job.entry.shape)
        for start, raw in self._pieces(tensor):
            values[start : start + raw.numel()].copy_(raw)
        return values.view(job.entry.shape)

    def complain(self, job: Job, start: int, stop: int) -> None:
        """Read a block of every input again, in the dtype that was computed in.

        Raises:
            NonFiniteError: naming the first input of the job that is not finite there; if there is one.
        """
        for tensor in job.sources:
            check_finite(tensor.read(start, stop).to(job.compute), tensor, start)

    def inspect(self, job: Job) -> None:
        """Hash and check inputs that will be read several times: once, and before minutes are spent on the first."""
        for tensor in (part for source in job.sources for part in source.parts):
            with self._lock:
                if id(tensor) in self._inspected:
                    continue
            for start, raw in self._pieces(tensor):
                if self.hashes is not None:
                    self.hashes.update(tensor, start, raw.numel(), bytes_of(raw))
                if raw.dtype.is_floating_point and self._strict:
                    check_finite(raw, tensor, start)
            with self._lock:
                self._inspected.add(id(tensor))

    def _pieces(self, tensor: LazyTensor) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, tensor.numel, _PIECE):
            scratch = self.scratch.take("raw", _PIECE * tensor.dtype.itemsize, torch.uint8)
            yield start, tensor.read(start, min(start + _PIECE, tensor.numel), scratch)

    @contextmanager
    def aside(self) -> Generator[None]:
        """Read without taking notes: something that is read in order as well."""
        self.scratch.noting = False
        try:
            yield
        finally:
            self.scratch.noting = True

    # --- for compiled loops ------------------------------------------------------------------------------------

    def hold(self, job: Job) -> None:
        """Keep the bytes of a job's inputs from now on, if it is read more than once and they are few enough."""
        held = self.scratch.held
        if self._hold and (held is None or held.name != job.name) and holdable(job) and input_bytes(job) <= self._hold:
            self.scratch.held = Held(job.name, [source.nbytes for source in job.sources])
            if self.scratch.arena is None:
                self.scratch.arena = Buffer(self._hold + 64 * len(job.sources))

    def release(self, job: Job) -> None:
        """Let go of what this thread holds of a job."""
        if self.scratch.held is not None and self.scratch.held.name == job.name:
            self.scratch.held = None

    def stored(self, job: Job, slot: int, start: int, stop: int, note: bool = True) -> int:
        """Read one block of an input for a kernel; return its address. With `note`, its hash is taken along."""
        tensor, count = job.sources[slot], stop - start
        size = tensor.dtype.itemsize
        held = self.scratch.held
        into = buffer = None
        if held is not None and held.name == job.name and self.scratch.arena is not None:
            at = held.starts[slot]
            if stop * size <= held.filled[slot]:
                return self.scratch.arena.address + at + start * size
            if note and start * size == held.filled[slot]:
                into = self.scratch.arena.view[at + start * size : at + stop * size]
        if into is None:
            buffer = self.scratch.buffer(slot, count * size)
            into = buffer.view[: count * size]
        tensor.fill(start, stop, into)
        if self.hashes is not None and note:
            self.hashes.update(tensor, start, count, into)
        if buffer is None:
            assert held is not None and self.scratch.arena is not None
            held.filled[slot] = stop * size
            return self.scratch.arena.address + held.starts[slot] + start * size
        wanted = read_as(tensor.dtype)
        if wanted is tensor.dtype:
            return buffer.address
        raw = torch.frombuffer(into, dtype=tensor.dtype) if count else torch.empty(0, dtype=tensor.dtype)
        return self.scratch.take(("wide", slot), count, wanted).copy_(raw).data_ptr()

    def stored_together(self, jobs: Sequence[Job], slot: int) -> int:
        """Read one input of jobs that lie side by side for a kernel; return its address. Hashes are taken along."""
        tensors = [job.sources[slot] for job in jobs]
        size = sum(tensor.nbytes for tensor in tensors)
        buffer = self.scratch.buffer(slot, size)
        into = buffer.view[:size]
        tensors[0].fill(0, size // tensors[0].dtype.itemsize, into)
        if self.hashes is not None:
            self.hashes.whole(tensors, into)
        return buffer.address

    def room(self, size: int) -> int | None:
        """Address of memory for a kernel's own use."""
        return self.scratch.buffer("room", size).address if size else None
