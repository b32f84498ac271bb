"""What whoever does the work of a plan must offer, and what it tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from plait.engine._output import GrowingOutput
from plait.engine._plan import Job
from plait.engine._remote_output import RemoteOutput

__all__ = ["Finished", "Workers"]


@dataclass(frozen=True)
class Finished:
    """One output tensor whose bytes are in place.

    Attributes:
        job: what was done.
        digest: hash of its bytes.
        inputs: hash of each tensor on disk that it depends on, in the order of `Run.leaves`.
    """

    job: Job
    digest: str
    inputs: Sequence[str]


class Workers(Protocol):
    """What an executor offers while a plan runs. Results come in any order; the first error ends the work."""

    def survey(self, index: int, step: int, jobs: Sequence[Job]) -> Iterator[Any]:
        """Yield partial totals of one survey round, which add up to the whole in any grouping.

        Args:
            index: which of the run's evaluators: nested plans come first.
            step: which step of its chain is surveyed.
            jobs: the jobs that take part.
        """
        ...

    def two_rounds(self, index: int, step: int, jobs: Sequence[Job]) -> tuple[Any, Any] | None:
        """Return the totals of the first two rounds of a step's survey from one pass, or None where that cannot be."""
        ...

    def merge(
        self, jobs: Sequence[Job], output: GrowingOutput | RemoteOutput, done: Callable[[Sequence[Finished]], None]
    ) -> None:
        """Write the tensors of all jobs into the output; tell of each, from any thread, once its bytes are in place."""
        ...
