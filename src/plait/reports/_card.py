"""The model card: front matter that the Hub understands, and how the model was made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from plait.checkpoints import AnyPath, Checkpoint
from plait.engine import Plan
from plait.methods import external
from plait.reports._recipe import MANIFEST, RECIPE, recipe_text

__all__ = ["model_card", "strictest_licence"]

# From free to strict; the licence of a merge is the last one among its parents'.
_LICENCES = (
    "cc0-1.0",
    "unlicense",
    "wtfpl",
    "mit",
    "bsd",
    "bsd-2-clause",
    "bsd-3-clause",
    "isc",
    "apache-2.0",
    "cc-by-4.0",
    "mpl-2.0",
    "lgpl-3.0",
    "cc-by-sa-4.0",
    "gpl-2.0",
    "gpl-3.0",
    "agpl-3.0",
    "openrail",
    "creativeml-openrail-m",
    "bigscience-openrail-m",
    "gemma",
    "llama2",
    "llama3",
    "llama3.1",
    "llama3.2",
    "llama3.3",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-4.0",
)


def front_matter(folder: AnyPath | None) -> dict[str, Any]:
    """Read the YAML head of a model folder's card; empty where there is none that can be read."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8-sig") if folder is not None else ""
    except (OSError, UnicodeDecodeError):
        return {}
    found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    if not found:
        return {}
    try:
        content = yaml.safe_load(found.group(1))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError):
        return {}
    return content if isinstance(content, dict) else {}


def strictest_licence(licences: Sequence[str | None]) -> str | None:
    """The licence a merge must carry: the parents' strictest; `other` if one is unknown to us; None if none says."""
    named = [licence.lower() for licence in licences if licence]
    if not named:
        return None
    if any(licence not in _LICENCES for licence in named):
        return "other" if len(set(named)) > 1 else named[0]
    return max(named, key=_LICENCES.index)


def _hub_name(checkpoint: Checkpoint) -> str:
    if checkpoint.hub_id:
        return checkpoint.hub_id
    name = (checkpoint.folder or Path(checkpoint.label)).resolve().name
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def _licence(checkpoint: Checkpoint) -> str | None:
    found = front_matter(checkpoint.folder).get("license")
    found = found[0] if isinstance(found, list) and found else found
    return found if isinstance(found, str) else None


def _word(value: Any) -> str | list[str] | None:
    """A word or a list of words, as they may stand in front matter; None for anything else."""
    if isinstance(value, list):
        return [item for item in value if isinstance(item, str)] or None
    return value if isinstance(value, str) else None


def model_card(plan: Plan) -> str:
    """Return README.md: front matter, parents, recipe."""
    from plait import __version__

    cards = {name: front_matter(c.folder) for name, c in plan.inputs.items()}
    head: dict[str, Any] = {"base_model": list(dict.fromkeys(_hub_name(c) for c in plan.inputs.values()))}
    head["base_model_relation"] = "merge"
    adapter = plan.recipe.output is not None
    if adapter:
        head = {"base_model": [_base(plan)], "base_model_relation": "adapter"}
    donor = front_matter(plan.donor.folder)
    library = (
        "peft" if adapter else _word(donor.get("library_name")) or ("transformers" if plan.config is not None else None)
    )
    head |= {"library_name": library} if library else {}
    head |= {key: word for key in ("pipeline_tag", "language") if (word := _word(donor.get(key)))}
    head["tags"] = ["merge", "plait", *(["lora"] if adapter else [])]
    licence = plan.recipe.license or strictest_licence([_licence(c) for c in plan.inputs.values()])
    head |= {"license": licence} if licence else {}
    if licence == "other":
        names = sorted({str(_licence(c)) for c in plan.inputs.values() if _licence(c)})
        head["license_name"] = "-and-".join(re.sub(r"[^\w.]+", "-", n) for n in names)
        head |= {key: card[key] for card in cards.values() for key in ("license_link",) if _word(card.get(key))}
    rows = [_row(plan, name, checkpoint) for name, checkpoint in plan.inputs.items()]
    methods = " → ".join(step.cls.name for step in plan.chain.steps)
    papers = [f"- `{s.cls.name}`: {s.cls.paper.title} ({s.cls.paper.cite})" for s in plan.chain.steps if s.cls.paper]
    missing = [name for name, c in plan.inputs.items() if _licence(c) is None]
    verdict = (
        f"Parents without a stated licence: {', '.join(missing)}. Check their terms before you publish."
        if missing
        else "The strictest licence of the parents applies."
    )
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        "# Merged adapter" if adapter else "# Merged model",
        "",
        f"Made with plait {__version__} by `{methods}` from {len(rows)} models"
        f"{'' if adapter else f', {plan.parameters:,} parameters'}.",
        "",
        "| model | role | weight | revision |",
        "|---|---|---|---|",
        *rows,
        "",
        *(["Methods:", "", *papers, ""] if papers else []),
        verdict,
        "",
        "## Recipe",
        "",
        "```yaml",
        recipe_text(plan).rstrip(),
        "```",
        "",
        f"`{RECIPE}` is this recipe; `{MANIFEST}` holds the content hash of every input and output tensor, the "
        "resolved values, seeds and versions. `plait reproduce DIR` rebuilds the model and compares it.",
        "",
    ]
    return "\n".join(lines)


def _base(plan: Plan) -> str:
    """The model that an adapter is for: the recipe's base, or what its parents say."""
    if "base" in plan.inputs:
        return _hub_name(plan.inputs["base"])
    named = [c.adapter.get("base_model_name_or_path") for c in plan.inputs.values() if c.adapter]
    return next((name for name in named if isinstance(name, str)), "unknown")


def _row(plan: Plan, name: str, checkpoint: Checkpoint) -> str:
    role = "base" if name == "base" else "expert" if name in plan.chain.experts else "part"
    weights = {job.weights[plan.chain.experts.index(name)] for job in plan.jobs if role == "expert" and _has(plan, job)}
    text = ", ".join(f"{w:g}" for w in sorted(weights)[:3]) + (" …" if len(weights) > 3 else "")
    weighted = plan.chain.combiner.cls.weighted and role == "expert"
    cells = (
        _hub_name(checkpoint),
        role if role == name else f"{role} {external(name)}",
        text if weighted else "",
        checkpoint.revision or "",
    )
    return f"| {' | '.join(cells)} |"


def _has(plan: Plan, job: Any) -> bool:
    return not job.copies and len(job.weights) == len(plan.chain.experts)
