"""`plait check`: whether the models of a recipe can be merged, what it would cost, and what suits them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.architectures import view_of
from plait.checkpoints import Checkpoint, seen_as, with_tensors
from plait.engine import (
    Options,
    Plan,
    Progress,
    Silent,
    check_memory,
    compile_recipe,
    references,
    resident_memory,
    room_at,
)
from plait.errors import (
    IncompatibleModelsError,
    MemoryBudgetError,
    MissingModelError,
    NonFiniteError,
    PlaitError,
    QuantizedCheckpointError,
    RecipeError,
    UnsafeFileError,
)
from plait.recipes import Source, load_recipe
from plait.reports._card import front_matter, strictest_licence
from plait.reports._diff import Diff
from plait.reports._suitable import Suggestion, sampled_diff, suitable
from plait.security import (
    EXIT_CODES,
    Evidence,
    Finding,
    compare_configs,
    compare_vocabularies,
    gravest,
    inspect_files,
    judge,
    sample_of,
    scan,
    weigh,
)

__all__ = ["Check", "check"]

#: models up to this size are read whole when NaN are looked for
_WHOLE = 2 << 30
_KINDS: tuple[tuple[type[PlaitError], str], ...] = (
    (QuantizedCheckpointError, "quantised"),
    (UnsafeFileError, "unsafe"),
    (NonFiniteError, "nonfinite"),
    (MemoryBudgetError, "resources"),
    (RecipeError, "recipe"),
    (MissingModelError, "missing"),
)


@dataclass(frozen=True)
class Check:
    """The result.

    Attributes:
        findings: what was found, gravest first.
        evidence: model → how far it is from the model that it is compared with.
        compared: the model that the others are compared with.
        cost: predicted bytes and seconds; empty where the recipe cannot be planned.
        deltas: the experts' changes on a few matrices; None where there is no base, or nothing can be planned.
        suggestions: methods that suit the models, with the reason.
        looked: tensors that were read, and all there are.
    """

    findings: tuple[Finding, ...]
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    compared: str = ""
    cost: Mapping[str, float] = field(default_factory=dict)
    deltas: Diff | None = None
    suggestions: tuple[Suggestion, ...] = ()
    looked: tuple[int, int] = (0, 0)

    @property
    def fit(self) -> bool:
        """Whether nothing blocks the merge."""
        return gravest(self.findings, ("blocks",)) is None

    @property
    def verdict(self) -> str:
        """One sentence."""
        blocked = [f for f in self.findings if f.level == "blocks"]
        warned = [f for f in self.findings if f.level == "warns"]
        if blocked:
            kinds = list(dict.fromkeys(f.kind for f in blocked))
            return f"unfit: {', '.join(kinds)}."
        if warned:
            return f"fit, with {len(warned)} thing{'s' if len(warned) > 1 else ''} to look at first."
        return "fit: nothing speaks against this merge."

    def exit_code(self, strict: bool = False) -> int:
        """0 if the models are fit; else the code of the gravest finding; `strict` counts warnings."""
        found = gravest(self.findings, ("blocks",)) or (gravest(self.findings, ("warns",)) if strict else None)
        return EXIT_CODES[found.kind] if found else 0

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {
            "fit": self.fit,
            "verdict": self.verdict,
            "findings": [f.as_dict() for f in self.findings],
            "compared_with": self.compared,
            "distance": {name: e.distance for name, e in self.evidence.items()},
            "products": {name: dict(e.products) for name, e in self.evidence.items() if e.products},
            "deltas": self.deltas.by_role()["all"] if self.deltas is not None else None,
            "cost": dict(self.cost),
            "suggestions": [{"method": s.method, "reason": s.reason} for s in self.suggestions],
            "tensors_read": self.looked[0],
            "tensors": self.looked[1],
        }


def check(
    given: str | Path | Mapping[str, Any],
    *,
    full: bool = False,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Check:
    """Look for reasons why a merge would fail or disappoint, before it is made.

    Headers, configs, tokenizers and cards are compared; the first, the middle and the last layer and all vectors are
    read. Models of up to 2 GB are read whole in search of NaN, larger ones with `full`.

    Args:
        given: a recipe's path, or the recipe.
        full: read every tensor.
        options: memory, threads and device that costs are predicted for.
        progress: told about phases.

    Returns:
        What was found. Problems of the models are findings, never exceptions.

    Raises:
        RecipeError: if the recipe itself cannot be read.
    """
    options, progress = options or Options(), progress or Silent()
    source = load_recipe(given)
    findings: list[Finding] = []
    opened = dict(_opened(source, findings))
    for name, model in opened.items():
        findings += inspect_files(name, model)
        findings += _quantised(name, model)
    models = {name: model for name, model in opened.items() if model.adapter is None}
    for name, adapter in opened.items():
        findings += scan(name, adapter, adapter.tensors) if adapter.adapter is not None else ()
    findings += compare_configs(models)
    if source.recipe.tokenizer is None:  # else the recipe aligns them, and the plan says what it cannot
        findings += compare_vocabularies(models)
    findings += _licences(opened)
    plan = _planned(source, options, findings)
    progress.phase("looking at the weights", sum(m.nbytes for m in models.values() if full or m.nbytes <= _WHOLE))
    evidence, compared, looked, speed = _weights(models, findings, full, progress)
    deltas = sampled_diff(plan) if plan is not None and not any(f.level == "blocks" for f in findings) else None
    findings += _conflicts(deltas)
    order, kinds = ("blocks", "warns", "notes"), list(EXIT_CODES)
    findings.sort(key=lambda f: (order.index(f.level), kinds.index(f.kind)))
    cost = _cost(plan, options, speed) if plan is not None else {}
    based, count = source.recipe.base is not None, len(source.recipe.experts)
    suggestions = suitable(count, based, deltas) if not any(f.level == "blocks" for f in findings) else ()
    return Check(tuple(findings), evidence, compared, cost, deltas, suggestions, looked)


def _quantised(name: str, model: Checkpoint) -> Iterator[Finding]:
    """A format that is read is worth a note: what was lost when it was made is not in the merge either."""
    if model.quantized:
        yield Finding(
            "quantised",
            "notes",
            name,
            f"{name} is stored as {model.quantized}; it is read with its scales, and the result is not quantised.",
            "The original 16-bit model gives a more exact merge, where it can be had.",
        )


def _conflicts(deltas: Diff | None) -> Iterator[Finding]:
    """Pairs of experts that pull in opposite directions, and experts that did not move."""
    if deltas is None:
        return
    figures = deltas.by_role()["all"]
    for name, expert in figures["experts"].items():
        if not expert["norm"]:
            yield Finding(
                "conflict", "warns", name, f"{name} equals the base wherever it was looked at.", "Leave it out."
            )
    for pair, values in figures["pairs"].items():
        if values["cosine"] is not None and values["cosine"] > 0.9999:
            same = f"{pair} changed the same: cosine {values['cosine']:.4f}."
            yield Finding("conflict", "warns", "", same, "Merge one of them.")
        if values["cosine"] is not None and values["cosine"] < -0.1:
            yield Finding(
                "conflict",
                "warns",
                "",
                f"{pair} moved in opposite directions: cosine {values['cosine']:.2f}, the same sign in "
                f"{100 * (values['sign_agreement'] or 0):.0f} % of what both changed.",
                "Expect one of them to lose; `plait diff` shows where.",
            )


def _opened(source: Source, findings: list[Finding]) -> Iterator[tuple[str, Checkpoint]]:
    seen: set[str] = set()
    for name, reference in references(source):
        if reference in seen:
            continue
        seen.add(reference)
        try:
            yield name, Checkpoint.open(reference, relative_to=source.folder)
        except PlaitError as error:
            findings.append(Finding(_kind(error, "missing"), "blocks", name, f"{name} cannot be used: {error}"))


def _kind(error: PlaitError, otherwise: str) -> str:
    return next((kind for cls, kind in _KINDS if isinstance(error, cls)), otherwise)


def _planned(source: Source, options: Options, findings: list[Finding]) -> Plan | None:
    """The plan; what it is refused for is a finding, unless the models' own findings say it already."""
    if any(f.kind in ("missing", "unsafe", "quantised") and f.level == "blocks" for f in findings):
        return None
    try:
        plan = compile_recipe(source)
        check_memory(plan, options)
    except PlaitError as error:
        findings.append(Finding(_kind(error, "architecture"), "blocks", "", f"the merge cannot be planned: {error}"))
        return None
    return plan


def _licences(models: Mapping[str, Checkpoint]) -> Iterator[Finding]:
    cards = {name: front_matter(model.folder) for name, model in models.items()}
    licences = {name: _word(card.get("license")) for name, card in cards.items()}
    stated = {name: licence for name, licence in licences.items() if licence}
    if len(set(stated.values())) > 1:
        listed = ", ".join(f"{licence} ({name})" for name, licence in stated.items())
        strictest = strictest_licence(list(stated.values()))
        says = (
            "and plait cannot say which is stricter"
            if strictest == "other"
            else f"of which {strictest} is the strictest"
        )
        yield Finding(
            "licence",
            "warns",
            "",
            f"the models have different licences: {listed}, {says}.",
            "Read them before you publish; state the result's with `license` in the recipe.",
        )
    for name, card in cards.items():
        gated = [key for key in card if key.startswith("extra_gated")]
        if gated:
            yield Finding(
                "licence",
                "warns",
                name,
                f"{name} is gated: its card asks for consent ({gated[0]}).",
                "Pass the terms on.",
            )
    unsaid = [name for name, licence in licences.items() if not licence]
    if unsaid and stated:
        yield Finding(
            "licence", "warns", "", f"no licence is stated by {', '.join(unsaid)}.", "Check before you publish."
        )


def _word(value: Any) -> str | None:
    value = value[0] if isinstance(value, list) and value else value
    return value.lower() if isinstance(value, str) else None


def _weights(
    models: Mapping[str, Checkpoint], findings: list[Finding], full: bool, progress: Progress
) -> tuple[dict[str, Evidence], str, tuple[int, int], float]:
    """Read the samples: NaN, ancestry. Returns the evidence, what was compared, how much was read, bytes per second."""
    evidence: dict[str, Evidence] = {}
    read = everything = volume = 0
    began = time.perf_counter()
    for name, model in models.items():
        names = tuple(model.tensors) if full or model.nbytes <= _WHOLE else sample_of(model).names
        findings += scan(name, model, names)
        read, everything = read + len(names), everything + len(model)
        volume += sum(model[key].nbytes for key in names)
        progress.advance(sum(model[key].nbytes for key in names))
    speed = volume / max(time.perf_counter() - began, 1e-6)
    if len(models) < 2:
        return evidence, "", (read, everything), speed
    first, *others = models
    for name in others:
        seen = _alike(models[first], models[name])
        both = with_tensors(models[first], {n: t for n, t in models[first].tensors.items() if seen.find(n) is not None})
        evidence[name] = weigh(models[first], seen, sample_of(both))
        findings += judge(first, name, evidence[name])
    return evidence, first, (read, everything), speed


def _alike(first: Checkpoint, other: Checkpoint) -> Checkpoint:
    """A model in the names of the one that it is compared with, as a merge would see it."""
    if set(first.tensors) == set(other.tensors):
        return other
    whole = {name: tensor.shape for name, tensor in first.tensors.items()}
    try:
        view = view_of({name: tensor.shape for name, tensor in other.tensors.items()}, whole)
    except IncompatibleModelsError:
        return other
    return seen_as(other, view, whole)


def _cost(plan: Plan, options: Options, speed: float) -> dict[str, float]:
    output = plan.layout.nbytes
    costs = [step.cls.cost for step in plan.chain.steps]
    found = {
        "memory_bytes": float(resident_memory(plan, options)),
        "disk_bytes": float(output),
        "free_bytes": float(room_at(None, options)[1]),
        "read_bytes": float(plan.read_bytes),
        "passes": float(plan.model_rounds + 1),
        "seconds_of_reading": plan.read_bytes / speed / options.threads,
    }
    return found | {"factorises": float(any(cost in ("spectral", "iterative") for cost in costs))}
