"""What a testbed is: a base, its experts and their heads on disk, and the tasks that measure a merge of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from plait.bench._cache import cached_json, digest_of, digest_of_model
from plait.bench.data import Task, data_versions

if TYPE_CHECKING:
    from torch import nn

    from plait.bench._model import Split

__all__ = ["Schedule", "Settings", "Testbed"]

_CODE = 1  # raise when a change of code changes the experts or the scores: older cache entries are then not read


@dataclass(frozen=True)
class Schedule:
    """How long an expert is trained: optimiser steps, and texts per step."""

    steps: int = 100
    batch: int = 48


def _schedules() -> dict[str, Schedule]:
    return {"py_expr": Schedule(60, 32), "name_lang": Schedule(), "name_kind": Schedule()}


@dataclass(frozen=True)
class Settings:
    """What the experts depend on.

    Attributes:
        tasks: the tasks, and how long each one's expert is trained.
        seed: seed of the heads' first weights and of the order of the texts.
        max_tokens: tokens of a text that are read.
        rate: learning rate of the encoder's layers.
        head_rate: learning rate of the head.
        threads: threads of the computation, fixed because the last digits depend on them; more than one is slower
            than one on cores that other processes share.
        limit: most examples of a split that are used, for tests; None for all.
    """

    tasks: Mapping[str, Schedule] = field(default_factory=_schedules)
    seed: int = 0
    max_tokens: int = 32
    rate: float = 3e-4
    head_rate: float = 5e-3
    threads: int = 1
    limit: int | None = None

    def key(self) -> str:
        """Name of the cache entry."""
        return digest_of({"settings": asdict(self), "code": _CODE, **data_versions()})


@dataclass(frozen=True)
class Testbed:
    """A base and its experts as Hugging Face folders, and the tasks' data and heads.

    Attributes:
        folder: the cache entry that holds everything.
        settings: what the experts were trained with.
        tasks: the tasks' data, by name.
    """

    __test__ = False  # pytest would take the name for a test's

    folder: Path
    settings: Settings
    tasks: dict[str, Task]
    _encoded: dict[tuple[str, str], Split] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def base(self) -> Path:
        """Folder of the base."""
        return self.folder / "base"

    @property
    def experts(self) -> dict[str, Path]:
        """Folder of each task's expert."""
        return {task: self.folder / "experts" / task for task in self.tasks}

    def head_file(self, task: str) -> Path:
        """File of the linear head that was trained with a task's expert: `weight` ["classes width"] and `bias`."""
        return self.folder / "heads" / f"{task}.safetensors"

    def evaluate(self, model: Path, split: str = "test") -> dict[str, float]:
        """Accuracy of a model's folder on every task, with the head of the task's own expert.

        Scores are kept by the content of the model's files, so that asking again costs a hash.

        Args:
            model: Hugging Face folder with the base's tensor names.
            split: `test`, or `validation` to choose something by.
        """
        path = self.folder / "scores" / f"{digest_of_model(model)}-{split}.json"
        return cached_json(path, lambda: self._evaluate(model, split))

    def probes(self) -> dict[str, float]:
        """Test accuracy of a linear probe on the frozen base, per task: what no fine-tuning reaches."""
        return cached_json(self.folder / "scores" / "probes.json", self._probes)

    def texts(self, task: str, split: str) -> Split:
        """Token ids and labels of a split."""
        if (task, split) not in self._encoded:
            import torch
            from transformers import AutoTokenizer

            from plait.bench._model import encode

            examples = getattr(self.tasks[task], split)
            tokenizer = AutoTokenizer.from_pretrained(self.base, local_files_only=True)
            ids = encode(tokenizer, [example.text for example in examples], self.settings.max_tokens)
            self._encoded[task, split] = ids, torch.tensor([example.label for example in examples])
        return self._encoded[task, split]

    def _evaluate(self, folder: Path, split: str) -> dict[str, float]:
        from plait.bench._model import accuracy, fixed_threads, load_model

        with fixed_threads(self.settings.threads):
            model = load_model(folder)
            return {task: accuracy(model, self._head(task), *self.texts(task, split)) for task in self.tasks}

    def _probes(self) -> dict[str, float]:
        from plait.bench._model import fixed_threads, load_model, probe_accuracy

        splits = ("train", "validation", "test")
        with fixed_threads(self.settings.threads):
            base = load_model(self.base)
            return {task: probe_accuracy(base, *(self.texts(task, split) for split in splits)) for task in self.tasks}

    def _head(self, task: str) -> nn.Linear:
        from safetensors.torch import load_file
        from torch import nn

        tensors = load_file(self.head_file(task))
        classes, width = tensors["weight"].shape
        head = nn.Linear(width, classes, device="meta")
        head.load_state_dict(tensors, assign=True)
        return head.requires_grad_(False)
