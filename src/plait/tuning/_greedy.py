"""The greedy soup: average only the models that help."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.errors import RecipeError

__all__ = ["Soup", "Trial", "greedy_soup"]


@dataclass(frozen=True)
class Trial:
    """One evaluation: the ingredients, their score, and whether the last of them stayed."""

    ingredients: tuple[str, ...]
    score: float
    accepted: bool


@dataclass(frozen=True)
class Soup:
    """Result of a greedy soup.

    Attributes:
        ingredients: the models that are averaged, in the order in which they were added.
        score: score of their average.
        trials: every evaluation made.
        recipe: the recipe of the result.
    """

    ingredients: tuple[str, ...]
    score: float
    trials: tuple[Trial, ...]
    recipe: Mapping[str, Any]


def greedy_soup(
    models: Mapping[str, str | Path],
    evaluate: Callable[[Path], float],
    out: str | Path,
    merge: Callable[[Mapping[str, Any], Path], object],
    *,
    scores: Mapping[str, float] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> Soup:
    """Add models to a uniform average, best first, and keep those that raise the score.

    Models are sorted by their own held-out score (equal scores: the later one first, as in the authors' code). The soup
    starts with the best; each next model stays only if the average with it scores strictly higher.

    Args:
        models: name → model.
        evaluate: called with the folder of a candidate; returns its held-out score, higher is better.
        out: where the soup is written.
        merge: writes the model of a recipe to a folder, as `plait.merge` does.
        scores: the models' own scores, where they are known; otherwise each is evaluated.
        recipe: further keys of the recipe (`dtype`, `drop`, …).

    Raises:
        RecipeError: without models, or with a score that is not a finite number.

    Paper: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
    increasing inference time", ICML 2022, arXiv 2203.05482, recipe 1.
    """
    if not models:
        raise RecipeError("a soup needs at least one model.")
    out = Path(out)

    def cook(names: tuple[str, ...]) -> dict[str, Any]:
        return {**(recipe or {}), "method": "linear", "experts": {name: str(models[name]) for name in names}}

    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.plait-soup-") as scratch:

        def score(names: tuple[str, ...]) -> float:
            folder = Path(scratch) / "-".join(str(list(models).index(name)) for name in names)
            merge(cook(names), folder)
            found = float(evaluate(folder))
            shutil.rmtree(folder, ignore_errors=True)
            if found != found or found in (float("inf"), float("-inf")):
                raise RecipeError(f"the evaluation of {' + '.join(names)} gave {found}; scores must be finite numbers.")
            return found

        own = dict(scores) if scores is not None else {name: score((name,)) for name in models}
        missing = [name for name in models if name not in own]
        if missing:
            raise RecipeError(f"there is no score for {missing[0]!r}.")
        order = sorted(models, key=lambda name: own[name])[::-1]
        soup, best = (order[0],), own[order[0]]
        trials = [Trial(soup, best, True)]
        for name in order[1:]:
            candidate = (*soup, name)
            found = score(candidate)
            accepted = found > best
            trials.append(Trial(candidate, found, accepted))
            if accepted:
                soup, best = candidate, found
    result = cook(soup)
    merge(result, out)
    return Soup(soup, best, tuple(trials), result)
