"""A recipe as one of the models of another: its tensors are computed when the outer merge reads them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import ClassVar

from torch import Tensor

from plait.checkpoints import Checkpoint, LazyTensor
from plait.engine._evaluate import Evaluator
from plait.engine._plan import Job, Plan

__all__ = ["PlannedTensor", "nested_checkpoint"]


def nested_checkpoint(plan: Plan, name: str) -> Checkpoint:
    """Return a checkpoint whose tensors are the plan's results."""
    cache = _Cache(plan)
    tensors: dict[str, LazyTensor] = {job.name: _seen(job, cache, name) for job in plan.jobs}
    donor = plan.donor
    return Checkpoint(
        f"{name} (nested recipe)",
        tensors,
        config=plan.config,
        folder=donor.folder,
        hub_id=donor.hub_id,
        components=donor.components,
        files=plan.files or donor.files,
    )


def _seen(job: Job, cache: _Cache, label: str) -> LazyTensor:
    """What stands for a job's result: where it is a plain copy, the tensor itself."""
    if job.copies and job.entry.dtype == job.sources[0].dtype:
        return job.sources[0]
    return PlannedTensor(job, cache, label)


class _Cache:
    """The evaluator of an inner plan, set when the run starts, and its most recent whole tensors."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.evaluator: Evaluator | None = None
        self.keep = 2
        self._whole: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def whole(self, job: Job) -> Tensor:
        """Compute a tensor that cannot be computed in blocks; keep as many as are read at once."""
        assert self.evaluator is not None
        with self._lock:
            if job.name not in self._whole:
                while len(self._whole) >= self.keep:
                    self._whole.popitem(last=False)
                self._whole[job.name] = self.evaluator.whole(job)
            self._whole.move_to_end(job.name)
            return self._whole[job.name]


class PlannedTensor(LazyTensor):
    """A tensor of a nested recipe."""

    stable: ClassVar[bool] = False

    def __init__(self, job: Job, cache: _Cache, label: str) -> None:
        super().__init__(job.name, job.entry.shape, job.entry.dtype, f"nested recipe {label!r}")
        self.job = job
        self.cache = cache

    def memory(self, block: int) -> int:
        """Bytes in flight while it is read."""
        whole = 2 * self.numel * self.job.compute.itemsize if self.job.unit != "element" else 0
        return self.job.memory(block) + whole

    @property
    def readahead(self) -> int:
        """What its own sources keep between two blocks."""
        return sum(source.readahead for source in self.job.sources)

    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Compute the range; a tensor that must be seen whole is computed whole and kept for the next range."""
        del scratch
        end = self.numel if stop is None else stop
        assert self.cache.evaluator is not None
        if self.job.unit != "element":
            return self.cache.whole(self.job)[start:end]
        return self.cache.evaluator.block(self.job, start, end)
