"""A testbed of text classification as the demo uses it: read from its folder, models scored with the tasks' heads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from plait.bench._folder import TestbedFolder, read_testbed
from plait.evaluation import ScoreCache, evaluate

__all__ = ["Testbed"]


@dataclass(frozen=True)
class Testbed:
    """A base and its experts, and what measures a merge of them.

    Attributes:
        folder: the testbed, as `plait.bench.testbeds.build` makes it.
        threads: threads of the evaluation, fixed because the last digits depend on them.
    """

    __test__ = False  # pytest would take the name for a test's

    folder: Path
    threads: int = 1

    @cached_property
    def content(self) -> TestbedFolder:
        """What the folder holds."""
        return read_testbed(self.folder)

    @property
    def base(self) -> Path:
        """Folder of the base."""
        return self.content.base

    @property
    def experts(self) -> dict[str, Path]:
        """Folder of each task's expert."""
        return dict(self.content.experts)

    @property
    def work(self) -> Path:
        """Folder beside the testbed for merges and their scores: the testbed itself stays as it was made."""
        return self.folder.with_name(f"{self.folder.name}.demo")

    def probes(self) -> dict[str, float]:
        """Test accuracy of a linear probe on the frozen base, per task."""
        return dict(self.content.probes)

    def evaluate(self, model: Path, split: str = "test") -> dict[str, float]:
        """Accuracy of a model's folder on every task, with the head of the task's own expert.

        Scores are kept by the content of the model's files, so that asking again costs a hash.

        Args:
            model: Hugging Face folder with the base's tensor names.
            split: `test`, or `validation` to choose something by.
        """
        tasks, cache = self.content.own_tasks, ScoreCache(self.work / "scores")
        found = evaluate(model, tasks, split, cache=cache, threads=self.threads)
        return {name: scores.value for name, scores in found.items()}
