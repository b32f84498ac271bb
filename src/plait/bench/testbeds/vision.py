"""`vision`: a ViT pretrained on glyphs of many scripts, and experts that are tested on unseen fonts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.bench._glyphs import SIDE, Font, distort, draw, find_fonts, split_fonts
from plait.bench.testbeds._draft import Draft, write_task_file
from plait.bench.testbeds._readme import readme
from plait.bench.testbeds._shared import progress, save_head, seed_of, version_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CODE", "RECIPES", "Recipe", "make", "sources"]

CODE = 1  # raise when a change of code changes what is made: older testbeds are then not found
_LETTERS = (*range(0x41, 0x5B), *range(0x61, 0x7B))
#: task → its characters, or what else is asked about letters
_TASKS: dict[str, tuple[str, Sequence[int]]] = {
    "capitals": ("a capital Latin letter", range(0x41, 0x5B)),
    "small": ("a small Latin letter", range(0x61, 0x7B)),
    "digits": ("a digit", range(0x30, 0x3A)),
    "greek": ("a small Greek letter", [code for code in range(0x3B1, 0x3CA) if code != 0x3C2]),
    "cyrillic": ("a small Cyrillic letter", range(0x430, 0x450)),
    "orientation": (
        "by how many quarter turns a Latin letter is turned",
        [code for code in _LETTERS if chr(code) not in "oOxXsSzZNHIlnu"],
    ),
    "style": ("whether a Latin letter is regular, bold, italic or bold italic", _LETTERS),
    "signs": ("a sign of punctuation or of mathematics", [*map(ord, "!?&@#$%*+=<>[]{}()/")]),
}
_STYLES = ("regular", "bold", "italic", "bold italic")
#: code points that the base is pretrained on: no character of a task
_SCRIPTS = {
    "arabic": range(0x620, 0x64B), "armenian": range(0x531, 0x588), "bengali": range(0x985, 0x9BA),
    "devanagari": range(0x904, 0x93A), "ethiopic": range(0x1200, 0x1280), "georgian": range(0x10D0, 0x10F1),
    "gujarati": range(0xA85, 0xABA), "gurmukhi": range(0xA05, 0xA3A), "hangul": range(0xAC00, 0xAE00, 7),
    "han": range(0x4E00, 0x5600, 16), "hebrew": range(0x5D0, 0x5EB), "hiragana": range(0x3041, 0x3097),
    "kannada": range(0xC85, 0xCBA), "katakana": range(0x30A1, 0x30FB), "khmer": range(0x1780, 0x17B4),
    "lao": range(0xE81, 0xEB1), "malayalam": range(0xD05, 0xD3A), "myanmar": range(0x1000, 0x102B),
    "oriya": range(0xB05, 0xB3A), "sinhala": range(0xD85, 0xDC7), "tamil": range(0xB85, 0xBBA),
    "telugu": range(0xC05, 0xC3A), "thai": range(0xE01, 0xE31),
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """What the testbed is made with.

    Attributes:
        tasks: the tasks, and for how many steps each one's expert is trained.
        second: tasks that have an expert of the second base too, if there is one; for alignment.
        pretraining: steps of pretraining.
        batch: images of a step.
        sizes: images of the training, the validation and the test split.
        width: of the ViT; it has `layers` layers of `heads` heads and patches of `patch` pixels.
        base_rate: learning rate of pretraining.
        rate: learning rate of an expert.
        head_rate: learning rate of the heads.
        packages: where the fonts come from.
        retained: images of the retained task, other characters that the base was pretrained on.
        threads: threads of the computation, fixed because the last digits depend on them.
        device: where models are trained.
    """

    tasks: Mapping[str, int]
    second: tuple[str, ...] = ()
    pretraining: int = 500
    batch: int = 48
    sizes: tuple[int, int, int] = (2400, 300, 600)
    width: int = 192
    layers: int = 6
    heads: int = 6
    patch: int = 7
    base_rate: float = 1e-3
    rate: float = 4e-4
    head_rate: float = 5e-3
    packages: tuple[str, ...] = ("manimgx_fonts", "matplotlib", "pretix_fontpackfree")
    threads: int = 1
    device: str = "cpu"


_QUICK = ("capitals", "small", "digits", "greek", "cyrillic", "orientation", "style")
RECIPES = {
    "quick": Recipe(dict.fromkeys(_QUICK, 60)),
    "full": Recipe(
        dict.fromkeys(_TASKS, 120), second=("capitals", "digits"), pretraining=1500, sizes=(4000, 500, 1000)
    ),
}


def sources(recipe: Recipe) -> dict[str, str]:
    """Versions of what it is made of; fails here if the fonts are missing."""
    find_fonts(recipe.packages)
    return {name: version_of(name) for name in ("pillow", *(p.replace("_", "-") for p in recipe.packages))}


def make(draft: Draft, recipe: Recipe, seed: int) -> None:
    """Write bases, tasks, experts, heads and probes."""
    from plait.bench._model import fixed_threads

    with fixed_threads(recipe.threads):
        _Maker(draft, recipe, seed).make()


@dataclass(frozen=True)
class _Maker:
    draft: Draft
    recipe: Recipe
    seed: int
    about: dict[str, str] = field(default_factory=dict)

    def make(self) -> None:
        draft, recipe = self.draft, self.recipe
        bases = ("base", "base_b") if recipe.second else ("base",)
        for name in bases:
            draft.piece(name, lambda folder, name=name: self._base(folder, name))
        for task in recipe.tasks:
            draft.piece(f"tasks/{task}", lambda folder, task=task: self._task(folder, task, task))
        experts = {task: (task, "base") for task in recipe.tasks}
        for task in recipe.second:  # the same images; the head is the second base's expert's own
            name = f"{task}_b"
            experts[name] = (task, "base_b")
            draft.piece(f"tasks/{name}", lambda folder, task=task, name=name: self._task(folder, task, name))
        for name, (task, base) in experts.items():
            draft.piece(
                f"experts/{name}",
                lambda folder, name=name, task=task, base=base: self._expert(folder, name, task, base),
            )
        probes = draft.once("probes.json", lambda: self._probes(experts))
        draft.manifest.update(
            description=f"a ViT pretrained on glyphs and experts of {len(recipe.tasks)} tasks of rendered characters",
            bases={name: name for name in bases},
            experts={name: {"model": f"experts/{name}", "base": base} for name, (_, base) in experts.items()},
            tasks={name: f"tasks/{name}/task.json" for name in experts},
            retained={},
            probes=probes,
        )
        lines = {name: f"{_TASKS[task][0]}; {_sizes(recipe.sizes)}" for name, (task, _) in experts.items()}
        draft.finish(readme(draft.manifest, _ABOUT, lines))

    @cached_property
    def fonts(self) -> dict[str, list[Font]]:
        fonts = [font for font in find_fonts(self.recipe.packages) if set(_LETTERS) <= font.characters]
        return split_fonts(fonts, [*_TASKS["greek"][1], *_TASKS["cyrillic"][1]])

    def _base(self, folder: Path, name: str) -> None:
        """Pretrain on which character of which script a glyph is, every image distorted anew."""
        import torch

        from plait.bench._model import new_head, save_model
        from plait.bench._vit import new_vit, train_vit

        recipe = self.recipe
        seed = seed_of(self.seed, f"vision/{name}")
        codes = [code for script in _SCRIPTS.values() for code in script]
        drawn = list(draw(find_fonts(recipe.packages), codes))
        classes = {code: i for i, code in enumerate(sorted({code for _, code, _ in drawn}))}
        masters = torch.stack([pixels for _, _, pixels in drawn])
        labels = torch.tensor([classes[code] for _, code, _ in drawn])
        self.draft.report(f"pretraining {name} on {len(masters)} glyphs of {len(classes)} characters")
        model = new_vit(recipe.width, recipe.layers, recipe.heads, recipe.patch, SIDE, seed)
        torch.nn.Module.to(model, recipe.device)
        generator = torch.Generator().manual_seed(seed)
        head = new_head(recipe.width, len(classes), generator).to(recipe.device)

        def batches() -> Any:
            while True:
                chosen = torch.randint(len(masters), (recipe.batch,), generator=generator)
                yield distort(masters[chosen], generator), labels[chosen]

        train_vit(
            model,
            head,
            batches(),
            steps=recipe.pretraining,
            rate=recipe.base_rate,
            head_rate=recipe.head_rate,
            report=progress(self.draft.report, name, recipe.pretraining),
            trained=lambda _: True,
        )
        save_model(model.cpu(), folder)

    def _task(self, folder: Path, task: str, name: str) -> None:
        """Draw each split's images with the fonts of that split."""
        import torch
        from safetensors.torch import save_file

        from plait.bench._vit import PIXEL_MEAN, PIXEL_STD

        for number, split in enumerate(self.fonts):
            generator = torch.Generator().manual_seed(seed_of(0, f"{task}/{split}"))  # the data are every seed's
            images, labels = self._images(task, split, self.recipe.sizes[number], generator)
            save_file({"images": images.contiguous(), "labels": labels}, folder / f"{split}.safetensors")
        write_task_file(
            folder,
            name,
            {split: f"{split}.safetensors" for split in self.fonts},
            kind="image_classification",
            labels=_labels(task),
            head=f"../../heads/{name}.safetensors",
            pooling="mean",
            scale=4.0,
            pixel_mean=PIXEL_MEAN,
            pixel_std=PIXEL_STD,
            metric="accuracy",
        )

    def _images(self, task: str, split: str, count: int, generator: Any) -> tuple[Tensor, Tensor]:
        import torch

        drawn = list(draw(self.fonts[split], list(_TASKS[task][1])))
        codes = list(_TASKS[task][1])
        by_label: dict[int, list[Tensor]] = {}
        for font, code, pixels in drawn:
            label = _STYLES.index(font.style) if task == "style" else 0 if task == "orientation" else codes.index(code)
            by_label.setdefault(label, []).append(pixels)
        classes = len(_labels(task))
        labels = torch.arange(count) % classes
        picks = torch.rand(count, generator=generator)
        masters = []
        for label, pick in zip(labels.tolist(), picks.tolist(), strict=True):
            found = by_label[0 if task == "orientation" else label]
            masters.append(found[int(pick * len(found))])
        order = torch.randperm(count, generator=generator)
        turns = labels if task == "orientation" else None
        return distort(torch.stack(masters), generator, turns)[order], labels[order]

    def _split(self, name: str, split: str) -> tuple[Tensor, Tensor]:
        from safetensors.torch import load_file

        tensors = load_file(self.draft.folder / f"tasks/{name}/{split}.safetensors")
        return tensors["images"], tensors["labels"]

    def _expert(self, folder: Path, name: str, task: str, base: str) -> None:
        import torch

        from plait.bench._model import new_head, save_model
        from plait.bench._vit import image_batches, load_vit, train_vit

        recipe, steps = self.recipe, self.recipe.tasks[task]
        generator = torch.Generator().manual_seed(seed_of(self.seed, f"vision/{name}"))
        model = load_vit(self.draft.folder / base, recipe.device)
        head = new_head(recipe.width, len(_labels(task)), generator).to(recipe.device)
        train_vit(
            model,
            head,
            image_batches(*self._split(name, "train"), recipe.batch, generator),
            steps=steps,
            rate=recipe.rate,
            head_rate=recipe.head_rate,
            report=progress(self.draft.report, f"expert {name}", steps),
        )
        save_model(model.cpu(), folder)
        save_head(head, self.draft.folder / "heads" / f"{name}.safetensors")

    def _probes(self, experts: Mapping[str, tuple[str, str]]) -> dict[str, float]:
        from plait.bench._vit import image_probe, load_vit

        self.draft.report("probing the frozen base")
        models = {base: load_vit(self.draft.folder / base) for _, base in experts.values()}
        splits = ("train", "validation", "test")
        return {
            name: image_probe(models[base], *(self._split(name, split) for split in splits))
            for name, (_, base) in experts.items()
        }


def _labels(task: str) -> list[str]:
    if task == "style":
        return list(_STYLES)
    return ["0", "1", "2", "3"] if task == "orientation" else [chr(code) for code in _TASKS[task][1]]


def _sizes(sizes: Sequence[int]) -> str:
    return f"{' / '.join(map(str, sizes))} train / validation / test"


_ABOUT = """\
Characters are rendered from the fonts of packages, 28 × 28 pixels, turned, sheared, stretched, shifted and made noisy a
little. The base is a ViT that was trained from random weights to tell characters of 23 scripts apart, none of them in a
task. Every expert is the base with its layers fine-tuned, together with a linear head over the mean of the last hidden
states, scaled to length 4. Splits share no family of fonts. Where there is a second base, it was trained from other
random weights, and its experts' names end with `_b`."""
