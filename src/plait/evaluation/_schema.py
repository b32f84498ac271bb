"""The file that describes a task, and its rows; both strict, so that a typo is an error and not another task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from plait.errors import TaskError, suggest

__all__ = ["TaskFile", "read_rows", "read_task_file"]

Kind = Literal[
    "classification",
    "image_classification",
    "language_modelling",
    "multiple_choice",
    "exact_match",
    "retrieval",
    "lm_eval",
    "command",
    "callable",
]


class TaskFile(BaseModel):
    """A task.json."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = Field(1, description="version of this format")
    name: Annotated[str, Field(min_length=1)]
    kind: Kind = Field(description="what the rows are and how they are scored")
    description: str = ""
    splits: dict[str, str] = Field(default_factory=dict, description="split → file, relative to this one")
    labels: list[str] = Field(default_factory=list, description="names of the classes, in the order of the labels")
    head: str | None = Field(None, description="safetensors file with weight [classes, width] and bias [classes]")
    pooling: Literal["mean", "first", "last"] = "mean"
    scale: float = Field(4.0, ge=0, description="length of the features; 0 leaves them as they are")
    pixel_mean: float = Field(0.5, description="subtracted from pixels between 0 and 1")
    pixel_std: float = Field(0.5, gt=0, description="what they are then divided by")
    max_tokens: int = Field(128, ge=2, description="tokens of an example that are read")
    metric: str | None = Field(None, description="by default the first that the kind knows")
    tasks: list[str] = Field(default_factory=list, description="lm_eval: names of its tasks")
    arguments: list[str] = Field(default_factory=list, description="lm_eval: further arguments of its command line")
    python: str | None = Field(None, description="lm_eval: the Python that has it, if not this one")
    command: str | None = Field(None, description="command: shell command with {model} and, if wanted, {split}")
    callable: str | None = Field(None, description="callable: 'package.module:function'")
    version: str = Field(
        "", description="changed whenever what an external scorer does changes: old scores are not used"
    )
    higher_is_better: bool | None = Field(None, description="command, callable, lm_eval: direction of the metric")


def read_task_file(path: Path) -> TaskFile:
    """Read and check a task's description.

    Raises:
        TaskError: it is not there, is not JSON, or says something that is not understood.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TaskError(f"there is no task file {path}.") from None
    except (OSError, ValueError) as error:
        raise TaskError(f"the task file {path} cannot be read: {error}.") from None
    try:
        return TaskFile.model_validate(data)
    except ValidationError as error:
        raise TaskError("\n".join(_line(path, problem) for problem in error.errors(include_url=False))) from None


def _line(path: Path, problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{path}: unknown key {place!r}.{suggest(place, TaskFile.model_fields)}"
    if problem["type"] == "missing":
        return f"{path}: the key {place!r} is missing."
    return f"{path}: {place}: {problem['msg'][0].lower() + problem['msg'][1:]}."


def read_rows(path: Path, columns: dict[str, type]) -> list[dict[str, Any]]:
    """Read a split.

    Args:
        path: JSON lines.
        columns: name → type of what every row must have.

    Raises:
        TaskError: the file is missing or empty, or a row lacks something; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise TaskError(f"the split's file {path} is missing.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"the split's file {path} cannot be read: {error}.") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TaskError(f"{path}, line {number}: this is not JSON: {error}.") from None
        for name, kind in columns.items():
            value = row.get(name) if isinstance(row, dict) else None
            if not isinstance(value, kind) or isinstance(value, bool):
                raise TaskError(f"{path}, line {number}: a row needs {name!r}, of type {kind.__name__}.")
        rows.append(row)
    if not rows:
        raise TaskError(f"the split's file {path} is empty: there is nothing to score.")
    return rows
