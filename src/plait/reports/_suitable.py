"""How the task vectors of some models agree on a few matrices, and which methods suit that."""

from __future__ import annotations

from dataclasses import dataclass

from plait.engine import Plan, compile_recipe
from plait.recipes import Recipe, Source
from plait.reports._diff import Diff, compare_job

__all__ = ["Suggestion", "sampled_diff", "suitable"]

#: matrices that are compared
_MATRICES = 6


@dataclass(frozen=True)
class Suggestion:
    """A method and why."""

    method: str
    reason: str


def sampled_diff(plan: Plan) -> Diff | None:
    """Compare the experts' changes on a few attention and MLP matrices; None without a base or without matrices."""
    recipe = plan.recipe
    if recipe.base is None or not recipe.experts:
        return None
    models = {name: {"model": e.model, "adapter": e.adapter} for name, e in recipe.experts.items()}
    kept = {"drop": recipe.drop, "copy": recipe.copy_, "files_from": recipe.files_from}
    plain = Recipe.model_validate({"method": "task_arithmetic", "base": recipe.base, "experts": models, **kept})
    aligned = compile_recipe(Source(plain, folder=plan.source.folder))
    jobs = [j for j in aligned.jobs if not j.copies and len(j.entry.shape) == 2 and j.role.kind in ("attention", "mlp")]
    chosen = jobs[:: max(1, len(jobs) // _MATRICES)][:_MATRICES]
    return Diff(aligned.chain.experts, tuple(compare_job(job) for job in chosen)) if chosen else None


def suitable(count: int, based: bool, found: Diff | None) -> tuple[Suggestion, ...]:
    """Suggest methods for some experts.

    The rules are those of the literature: changes in one direction average well, nearly orthogonal changes of several
    experts gain from trimming and from orthogonalised singular vectors, and models without a base can only be averaged
    or interpolated.
    """
    if count < 2:
        return ()
    if not based:
        pair = [Suggestion("slerp", "two models without a base: interpolate on the sphere")] if count == 2 else []
        return (Suggestion("linear", "without a base there are no task vectors: average"), *pair)
    pairs = found.by_role()["all"]["pairs"].values() if found is not None else ()
    cosines = [pair["cosine"] for pair in pairs if pair["cosine"] is not None]
    if not cosines:
        return ()
    cosine = sum(cosines) / len(cosines)
    if cosine > 0.5:
        return (
            Suggestion("linear", f"the experts moved in one direction (mean cosine {cosine:.2f}): averages keep most"),
            Suggestion("model_stock", "weights the average by how far the experts agree, tensor by tensor"),
        )
    spectral = f"{count} experts that moved in different directions: orthogonalised singular vectors interfere least"
    return (
        *([Suggestion("tsv_merge", spectral)] if count >= 3 else []),
        Suggestion("ties", f"mean cosine {cosine:.2f}: trim what is small and settle the signs"),
        Suggestion("task_arithmetic", "the plain sum, with lambda chosen on validation data"),
    )
