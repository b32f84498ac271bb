"""`decoder`: a small Llama, pretrained on a little of everything, and experts of text domains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.bench._domains import DOMAINS, load_domain
from plait.bench._split import digest
from plait.bench.testbeds._draft import Draft
from plait.bench.testbeds._readme import readme
from plait.bench.testbeds._shared import copy_missing, progress, seed_of, version_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CODE", "RECIPES", "Recipe", "make", "next_words", "sources"]

CODE = 2  # raise when a change of code changes what is made: older testbeds are then not found
_GENERAL = "docs"  # what the base is mostly pretrained on


@dataclass(frozen=True)
class Recipe:
    """What the testbed is made with.

    Attributes:
        domains: the domains, and for how many steps each one's expert is trained.
        pretraining: steps of pretraining.
        batch: rows of a step.
        length: tokens of a row.
        general: pieces of docstrings that the base sees.
        slice: pieces of each domain that the base sees; its experts see the others.
        special: most pieces that an expert sees.
        sizes: pieces of the validation and the test split.
        vocabulary: tokens.
        width: of the model; it has `layers` layers of `heads` heads, whose keys come in `groups` groups.
        base_rate: learning rate of pretraining.
        rate: learning rate of an expert.
        threads: threads of the computation, fixed because the last digits depend on them.
        device: where models are trained.
    """

    domains: Mapping[str, int]
    pretraining: int
    batch: int = 16
    length: int = 96
    general: int = 4400
    slice: int = 40
    special: int = 3000
    sizes: tuple[int, int] = (60, 120)
    vocabulary: int = 2048
    width: int = 128
    layers: int = 4
    heads: int = 4
    groups: int = 2
    base_rate: float = 3e-3
    rate: float = 3e-4
    threads: int = 1
    device: str = "cpu"


_DOMAINS = ("python", "headers", "glosses", "thesaurus", "pronunciations", "names")
RECIPES = {
    "quick": Recipe(dict.fromkeys(_DOMAINS, 100), pretraining=900),
    "full": Recipe(
        dict.fromkeys(_DOMAINS, 120),
        pretraining=1000,
        general=7600,
        slice=70,
        sizes=(60, 200),
        width=192,
        heads=6,
        rate=2e-4,  # a wider model is changed more by the same rate
    ),
}


def sources(recipe: Recipe) -> dict[str, str]:
    """Versions of what it is made of."""
    import platform

    names = {name for domain in (*recipe.domains, _GENERAL) for name in DOMAINS[domain].source.split(", ")}
    return {name: platform.python_version() if name == "python" else version_of(name) for name in sorted(names)}


def make(draft: Draft, recipe: Recipe, seed: int) -> None:
    """Write base, tasks and experts."""
    from plait.bench._model import fixed_threads

    with fixed_threads(recipe.threads):
        _Maker(draft, recipe, seed).make()


@dataclass(frozen=True)
class _Maker:
    draft: Draft
    recipe: Recipe
    seed: int

    def make(self) -> None:
        draft, recipe = self.draft, self.recipe
        base = draft.piece("base", self._base)
        for name in (*recipe.domains, _GENERAL):
            self._task(name)
        retained = {_GENERAL: f"tasks/{_GENERAL}/task.json"}
        for name in (_GENERAL, next(iter(recipe.domains))):
            self._probe(name)
            retained[f"{name}_words"] = f"tasks/{name}_words/task.json"
        for name in recipe.domains:
            draft.piece(f"experts/{name}", lambda folder, name=name: self._expert(folder, name, base))
        draft.manifest.update(
            description=f"a small Llama and experts of {len(recipe.domains)} text domains",
            bases={"base": "base"},
            experts={name: {"model": f"experts/{name}", "base": "base"} for name in recipe.domains},
            tasks={name: f"tasks/{name}/task.json" for name in recipe.domains},
            retained=retained,
        )
        lines = {name: f"{DOMAINS[name].about} ({DOMAINS[name].source})" for name in recipe.domains}
        draft.finish(readme(draft.manifest, _ABOUT, lines))

    @cached_property
    def texts(self) -> dict[str, dict[str, list[str]]]:
        """Domain → split → pieces; `general` is the part of train that the base sees."""
        recipe = self.recipe
        result: dict[str, dict[str, list[str]]] = {}
        for name in (*recipe.domains, _GENERAL):
            pieces = load_domain(name)
            seen = recipe.general if name == _GENERAL else recipe.slice
            train = pieces["train"]
            result[name] = {
                "general": train[:seen],
                "train": train[seen : seen + recipe.special],
                "validation": pieces["validation"][: recipe.sizes[0]],
                "test": pieces["test"][: recipe.sizes[1]],
            }
        return result

    def _base(self, folder: Path) -> None:
        import torch

        from plait.bench._llama import new_llama, new_tokenizer, packed, train_llama
        from plait.bench._model import save_model

        recipe = self.recipe
        texts = sorted((text for parts in self.texts.values() for text in parts["general"]), key=digest)
        seed = seed_of(self.seed, "decoder/base")
        tokenizer = new_tokenizer(texts, recipe.vocabulary)
        rows = packed(tokenizer, texts, recipe.length)
        model = new_llama(len(tokenizer), recipe.width, recipe.layers, recipe.heads, recipe.groups, seed)
        torch.nn.Module.to(model, recipe.device)
        size = sum(parameter.numel() for parameter in model.parameters())
        self.draft.report(f"pretraining {size / 1e6:.1f} M parameters on {rows.numel() / 1e3:.0f} thousand tokens")
        train_llama(
            model,
            rows,
            steps=recipe.pretraining,
            batch=recipe.batch,
            rate=recipe.base_rate,
            generator=torch.Generator().manual_seed(seed),
            report=progress(self.draft.report, "base", recipe.pretraining),
        )
        save_model(model.cpu(), folder)
        tokenizer.save_pretrained(folder)

    def _task(self, name: str) -> None:
        splits = ("train", "validation", "test")
        rows = {split: [{"text": text} for text in self.texts[name][split]] for split in splits}
        self.draft.task(
            name,
            {split: part for split, part in rows.items() if part},
            kind="language_modelling",
            max_tokens=2 * self.recipe.length,
            metric="bits_per_byte",
        )

    def _probe(self, name: str) -> None:
        texts = self.texts[name]
        common = next_words(texts["general"])
        rows = {
            split: [row for text in texts[split] if (row := _gap(text, common))] for split in ("validation", "test")
        }
        self.draft.task(f"{name}_words", rows, kind="exact_match", max_tokens=2 * self.recipe.length)

    def _expert(self, folder: Path, name: str, base: Path) -> None:
        import torch

        from plait.bench._llama import load_llama, train_llama
        from plait.bench._model import save_model

        recipe, steps = self.recipe, self.recipe.domains[name]
        model = load_llama(base, recipe.device)
        train_llama(
            model,
            self._rows(base, self.texts[name]["train"]),
            steps=steps,
            batch=recipe.batch,
            rate=recipe.rate,
            generator=torch.Generator().manual_seed(seed_of(self.seed, f"decoder/{name}")),
            report=progress(self.draft.report, f"expert {name}", steps),
            trained=lambda parameter: "embed" not in parameter and "lm_head" not in parameter,
        )
        save_model(model.cpu(), folder)
        copy_missing(base, folder)

    def _rows(self, base: Path, texts: list[str]) -> Tensor:
        from transformers import AutoTokenizer

        from plait.bench._llama import packed

        return packed(AutoTokenizer.from_pretrained(base, local_files_only=True), texts, self.recipe.length)


def next_words(texts: list[str], most: int = 40, shortest: int = 2) -> set[str]:
    """The words that stand most often between two spaces."""
    counts = Counter(word for text in texts for word in text.split(" ") if word.isalpha() and len(word) >= shortest)
    return {word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]}


def _gap(text: str, common: set[str]) -> dict[str, Any] | None:
    """The text up to its last common word, and that word with the space before it; None if there is none."""
    words = text.split(" ")
    for i in range(len(words) - 1, 4, -1):
        if words[i] in common:
            return {"prompt": " ".join(words[:i]), "answer": f" {words[i]}"}
    return None


_ABOUT = """\
The base is a Llama with tied embeddings, trained from random weights on docstrings and a slice of every domain. Every
expert is the base with its layers fine-tuned on one domain, embeddings frozen; it sees none of the slice.

Retained: docstrings, and two probes in which the next word must be found exactly."""
