"""Scores in the model card: the Hub's model-index in the front matter, a table for people in the text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from plait.errors import OutputError
from plait.reports._card import front_matter

__all__ = ["CardResult", "add_results"]

_BEGIN, _END = "<!-- plait eval: begin -->", "<!-- plait eval: end -->"
#: kind of task → the Hub's name of it
_TYPES = {
    "classification": "text-classification",
    "image_classification": "image-classification",
    "language_modelling": "text-generation",
    "multiple_choice": "multiple-choice",
    "exact_match": "text-generation",
    "retrieval": "feature-extraction",
}


@dataclass(frozen=True)
class CardResult:
    """One score as a card shows it.

    Attributes:
        kind: kind of the task.
        task: its name.
        split: which split.
        metric: what was measured.
        value: the score.
        low: lower end of its 95 % interval.
        high: upper end.
        examples: how many examples.
    """

    kind: str
    task: str
    split: str
    metric: str
    value: float
    low: float
    high: float
    examples: int


def add_results(folder: Path, results: Sequence[CardResult]) -> Path:
    """Write scores into README.md of a model folder; those of the same task, split and metric are replaced.

    Args:
        folder: the model; a card is made if it has none.
        results: what to write.

    Raises:
        OutputError: the card cannot be written.
    """
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

    path = folder / "README.md"
    head = front_matter(folder)
    body = ""
    try:
        if path.is_file():
            body = re.sub(r"\A---\s*\n.*?\n---\s*(\n|$)", "", path.read_text(encoding="utf-8-sig"), flags=re.DOTALL)
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{path} cannot be read, so that no results are written into it: {error}.") from None
    name = folder.resolve().name
    kept: list[Any] = []
    if head.get("model-index"):
        try:
            name, kept = model_index_to_eval_results(head["model-index"])
        except (KeyError, TypeError, IndexError) as error:
            raise OutputError(
                f"{path} has a model-index that is not the Hub's ({error!r}); correct or remove it."
            ) from None
    new = [
        EvalResult(
            task_type=_TYPES.get(result.kind, "text-generation"),
            dataset_type=result.task,
            dataset_name=result.task,
            dataset_split=result.split,
            metric_type=result.metric,
            metric_value=result.value,
            metric_name=result.metric,
        )
        for result in results
    ]
    replaced = {_key(result) for result in new}
    kept = [result for result in kept if _key(result) not in replaced]
    head["model-index"] = eval_results_to_model_index(name, [*kept, *new])
    text = re.sub(rf"\n*{_BEGIN}.*?{_END}\n?", "\n", body, flags=re.DOTALL).rstrip()
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip()
    content = f"---\n{front}\n---\n\n{text.lstrip()}\n\n{_section(results)}"
    draft = path.with_name(".README.md.plait")
    try:
        draft.write_text(content, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from None
    return path


def _key(result: Any) -> tuple[Any, ...]:
    return result.task_type, result.dataset_type, result.dataset_split, result.metric_type


def _section(results: Sequence[CardResult]) -> str:
    rows = [
        f"| {r.task} | {r.split} | {r.metric} | {r.value:.4f} | {r.low:.4f} to {r.high:.4f} | {r.examples} |"
        for r in results
    ]
    lines = [
        "## Evaluation",
        "",
        "| task | split | metric | score | 95 % interval | examples |",
        "|---|---|---|---|---|---|",
    ]
    note = "Scored by `plait eval`; intervals by bootstrap over the examples."
    return "\n".join([_BEGIN, *lines, *rows, "", note, _END, ""])
