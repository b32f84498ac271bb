"""A testbed of text classification as the demo uses it: read from its folder, models scored with the tasks' heads."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.bench._cache import cached_json, digest_of_model

if TYPE_CHECKING:
    from plait.bench._model import Split

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
    _encoded: dict[tuple[str, str], Split] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What testbed.json says."""
        return json.loads((self.folder / "testbed.json").read_text(encoding="utf-8"))

    @property
    def base(self) -> Path:
        """Folder of the base."""
        return self.folder / self.manifest["bases"]["base"]

    @property
    def experts(self) -> dict[str, Path]:
        """Folder of each task's expert."""
        return {task: self.folder / expert["model"] for task, expert in self.manifest["experts"].items()}

    @property
    def work(self) -> Path:
        """Folder beside the testbed for merges and their scores: the testbed itself stays as it was made."""
        return self.folder.with_name(f"{self.folder.name}.demo")

    def probes(self) -> dict[str, float]:
        """Test accuracy of a linear probe on the frozen base, per task."""
        return dict(self.manifest["probes"])

    def evaluate(self, model: Path, split: str = "test") -> dict[str, float]:
        """Accuracy of a model's folder on every task, with the head of the task's own expert.

        Scores are kept by the content of the model's files, so that asking again costs a hash.

        Args:
            model: Hugging Face folder with the base's tensor names.
            split: `test`, or `validation` to choose something by.
        """
        path = self.work / "scores" / f"{digest_of_model(model)}-{split}.json"
        return cached_json(path, lambda: self._evaluate(model, split))

    def _evaluate(self, folder: Path, split: str) -> dict[str, float]:
        from plait.bench._model import accuracy, fixed_threads, load_head, load_model

        with fixed_threads(self.threads):
            model = load_model(folder)
            heads = {task: load_head(self.folder / "heads" / f"{task}.safetensors") for task in self.experts}
            return {task: accuracy(model, head, *self._texts(task, split)) for task, head in heads.items()}

    def _texts(self, task: str, split: str) -> Split:
        """Token ids and labels of a split."""
        if (task, split) not in self._encoded:
            import torch
            from transformers import AutoTokenizer

            from plait.bench._model import encode

            folder = self.folder / "tasks" / task
            about = json.loads((folder / "task.json").read_text(encoding="utf-8"))
            lines = (folder / about["splits"][split]).read_text(encoding="utf-8").split("\n")
            rows = [json.loads(line) for line in lines if line]
            tokenizer = AutoTokenizer.from_pretrained(self.base, local_files_only=True)
            ids = encode(tokenizer, [row["text"] for row in rows], about["max_tokens"])
            self._encoded[task, split] = ids, torch.tensor([row["label"] for row in rows])
        return self._encoded[task, split]
