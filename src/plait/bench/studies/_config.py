"""A study as a file: strict YAML that says which models, which methods, which subsets of experts."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from plait.errors import RecipeError, suggest
from plait.recipes import Document, read_yaml

__all__ = ["Arm", "Models", "StudyConfig", "Subsets", "built_in", "load_config"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Models(_Strict):
    """Models and tasks that are no testbed: paths or Hub ids, and task files."""

    base: str = Field(description="the model the experts were fine-tuned from")
    experts: dict[str, str] = Field(min_length=2, description="name → model")
    tasks: dict[str, str] = Field(default_factory=dict, description="name of the expert → its own task.json")
    others: dict[str, str] = Field(default_factory=dict, description="further tasks, no expert's own")
    retained: dict[str, str] = Field(default_factory=dict, description="what the base could do: forgetting")
    validation: dict[str, str] = Field(
        default_factory=dict,
        description="tasks that settings are chosen by, if not the validation split of the others; of other data",
    )

    @model_validator(mode="after")
    def _some(self) -> Models:
        if not self.tasks and not self.others:
            raise ValueError("there is no task: name some under 'tasks' or 'others'")
        return self


class Arm(_Strict):
    """One pool of experts. Arms are the axes of a study: another base, another size."""

    testbed: str | list[str] | None = Field(
        None, description="name of a testbed, or its folder, or one folder per seed"
    )
    size: str | None = Field(None, description="of the testbed, by name")
    base: str | None = Field(None, description="which of its bases")
    models: Models | None = None

    @model_validator(mode="after")
    def _either(self) -> Arm:
        if (self.testbed is None) == (self.models is None):
            raise ValueError("an arm has either a testbed or models")
        return self


class Subsets(_Strict):
    """Merge subsets of the experts instead of all."""

    sizes: list[int] = Field(min_length=1, description="numbers of experts")
    per_size: int = Field(5, ge=1, description="subsets of each size, drawn without repetition")
    seed: int = 0


class Entry(_Strict):
    """A method with its own grid."""

    name: str
    method: str | list[str | dict[str, dict[str, Any] | None]] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    extend: int = Field(2, ge=0, description="steps beyond the grid while one of its ends is the best")


class Limits(_Strict):
    """Examples of each task that are scored; all by default."""

    validation: int | None = Field(None, ge=1)
    test: int | None = Field(None, ge=1)


class StudyConfig(_Strict):
    """A study: arms × subsets × methods × settings."""

    study: Literal[1] = Field(1, description="version of this schema")
    title: str = ""
    description: str = ""
    arms: dict[str, Arm] = Field(min_length=1)
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1, description="seeds of the testbeds")
    methods: list[str | Entry] = Field(default_factory=list, description="by default those of the testbed's size")
    recipe: dict[str, Any] = Field(
        default_factory=dict, description="further keys of every recipe: copy, drop, dtype, …"
    )
    subsets: Subsets | None = None
    choose_by: Literal["auto", "normalised", "raw", "gain"] = Field(
        "auto", description="figure on validation that settings are chosen by: normalised, or for losses gain"
    )
    rank_by: Literal["auto", "normalised", "raw", "gain", "over_best", "held_out"] = Field(
        "auto", description="figure on test that methods are ranked by: normalised, or for losses gain"
    )
    limit: Limits = Field(default_factory=Limits)
    bootstrap: int = Field(1000, ge=10, description="draws of the intervals")
    seed: int = Field(0, ge=0, description="seed of random methods, subsets and intervals")
    threads: int = Field(1, ge=1, description="threads of the evaluation; its last digits depend on them")
    landscape: int = Field(5, ge=0, description="points along an edge of the loss plane, 4 or more; 0 leaves it out")

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        own = sorted({"method", "base", "experts", "parameters", "seed"} & set(self.recipe))
        if own:
            raise ValueError(f"recipe: {own[0]!r} is what a study fills in itself")
        if 0 < self.landscape < 4:
            raise ValueError("landscape: an edge of the loss plane needs 4 points or more")
        return self


def built_in() -> dict[str, str]:
    """Name → text of the protocols that come with this package."""
    found = files("plait.bench.studies") / "protocols"
    return {
        entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8")
        for entry in sorted(found.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".yaml")
    }


def load_config(given: str | Path) -> tuple[StudyConfig, Path]:
    """Read a study's file, or a protocol that comes with this package.

    Args:
        given: path of a YAML file, or a protocol's name.

    Returns:
        The study, and the folder that its paths are relative to.

    Raises:
        RecipeError: naming the file, the line, the key and the closest known key.
    """
    path = Path(given)
    protocols = built_in()
    if str(given) in protocols and not path.is_file():
        return _validate(read_yaml(protocols[str(given)], f"{given}.yaml")), Path.cwd()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        hint = suggest(str(given), protocols)
        raise RecipeError(f"there is no study {path}.{hint} Protocols are {', '.join(protocols)}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the study {path} cannot be read: {error}.") from None
    return _validate(read_yaml(text, str(path))), path.resolve().parent


def _validate(document: Document) -> StudyConfig:
    if not isinstance(document.data, dict):
        raise RecipeError(f"{document.where(())}a study is a mapping with at least 'arms'.")
    try:
        return StudyConfig.model_validate(document.data)
    except ValidationError as error:
        raise RecipeError(
            "\n".join(dict.fromkeys(_line(document, p) for p in error.errors(include_url=False)))
        ) from None


def _line(document: Document, problem: Any) -> str:
    parts = tuple(part for part in problem["loc"] if part not in ("str", "Entry"))
    place, where = ".".join(map(str, parts)), document.where(parts)
    if problem["type"] == "extra_forbidden":
        owner: Any = StudyConfig
        for part in parts[:-1]:
            owner = {"arms": Arm, "models": Models, "subsets": Subsets, "methods": Entry, "limit": Limits}.get(
                part, owner
            )
        known = owner.model_fields
        return f"{where}unknown key {place!r}.{suggest(str(parts[-1]), known)} Known keys: {', '.join(known)}."
    if problem["type"] == "missing":
        return f"{where}the key {place!r} is missing."
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}{place}: {message[0].lower() + message[1:]}."
