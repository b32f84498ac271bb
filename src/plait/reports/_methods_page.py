"""The page of all methods, made from their own declarations and from what verifies them."""

from __future__ import annotations

import inspect
import json
from functools import cache
from importlib.resources import files
from typing import Any

from plait.methods import Method, compositions, find_composition, methods

__all__ = ["methods_page", "verification"]

_COST = {
    "one pass": "one pass: reads the models once",
    "survey": "survey: reads the models once more for every survey round",
    "spectral": "spectral: factorises every matrix of every expert",
    "iterative": "iterative: hundreds of matrix products per matrix",
}


@cache
def _evidence() -> dict[str, Any]:
    return json.loads(files("plait.methods").joinpath("verified.json").read_text(encoding="utf-8"))


def verification(name: str) -> str:
    """Say what a method of this package is verified against; nothing is said that no test shows."""
    found = _evidence().get(name)
    if found is None:
        return "not by this package"
    if found["goldens"]:
        sources = ", ".join(f"{source} ({len(names)})" for source, names in found["goldens"].items())
        return f"golden vectors of {sources}"
    if found["derivation"]:
        return "an independent derivation"
    return "invariants only"


def methods_page() -> str:
    """Return the page as Markdown."""
    lines = [
        "# Methods",
        "",
        "<!-- Made by `plait methods --markdown`; do not edit. -->",
        "",
        "Every method passes the public conformance suite `plait.testing.check_method`. *Verified against* says what",
        "else holds it: *golden vectors* are outputs of the named code on the same inputs, reproduced",
        "by `tests/test_golden.py` through the public path (in brackets how many); *an independent derivation* was",
        "written from the paper in float64; *invariants only* means that no reference code was at hand.",
        "",
        "| method | kind | what it does | base | experts | cost | verified against |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, cls in methods().items():
        cells = (f"[`{name}`](#{name})", cls.kind, cls.summary, _base(cls), _experts(cls), cls.cost, verification(name))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- *{text}*" for text in _COST.values()), "", "## Names for chains", ""]
    lines += [
        f"- `{name}` = {' → '.join(f'`{s}`' for s in find_composition(name))}{_presets(name)}"
        for name in compositions()
    ]
    for name, cls in methods().items():
        lines += ["", f"## {name}", "", *_section(cls)]
    return "\n".join(lines) + "\n"


def _base(cls: type[Method]) -> str:
    return "needed" if cls.needs_base else "optional" if cls.optional_base else "not used"


def _experts(cls: type[Method]) -> str:
    most, few = cls.max_experts, cls.min_experts
    return str(most) if most == few else f"{few} or more" if most is None else f"{few}–{most}"


def _presets(name: str) -> str:
    from plait.methods import find_presets

    given = [f"`{key}: {value}`" for values in find_presets(name) for key, value in values.items()]
    return f" with {', '.join(given)}" if given else ""


def _section(cls: type[Method]) -> list[str]:
    lines = [f"**{cls.formula}**", "", inspect.getdoc(cls) or "", ""]
    if cls.paper is not None:
        code = f" Code: {cls.paper.code}." if cls.paper.code else ""
        lines += [f"{cls.paper.title}. {cls.paper.cite}.{code}", ""]
    order = "the order of the experts does not matter" if cls.symmetric else "the order of the experts matters"
    weights = "takes weights" if cls.weighted else "takes no weights"
    data = f"needs {', '.join(sorted(cls.statistics))}" if cls.statistics else "needs no data"
    random = "; random, decided by the recipe's seed" if cls(**dict(cls.example)).random else ""
    lines += [f"Base {_base(cls)}; {_experts(cls)} expert(s); {weights}; {order}; {data}{random}.", ""]
    if cls.parameters():
        lines += ["| parameter | values | default | meaning |", "|---|---|---|---|"]
        for p in cls.parameters().values():
            values = (
                " \\| ".join(p.choices)
                if p.choices
                else f"{p.kind} in {p.bounds}"
                if p.kind in ("int", "float")
                else p.kind
            )
            each = ", per expert" if p.per_expert else ""
            default = "none" if p.default is None else str(p.default).lower() if p.kind == "bool" else str(p.default)
            lines.append(f"| `{p.label}` | {values}{each} | {default} | {p.doc.replace('|', chr(92) + '|')} |")
    return lines
