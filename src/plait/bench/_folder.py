"""A testbed as it lies on disk: models, tasks, references; read and checked, never made here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from plait.errors import MissingModelError, TaskError
from plait.evaluation import FileTask, load_task

__all__ = ["MANIFEST", "TestbedFolder", "read_testbed"]

MANIFEST = "testbed.json"
_RUNS_CODE = ("command", "callable", "lm_eval")


class _Expert(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str
    base: str = "base"
    adapter: str | None = None


class _Manifest(BaseModel):
    """A testbed.json. What else it says (costs, sources, figures) is for people."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: int = Field(ge=1, le=1)
    name: str
    size: str
    seed: int
    description: str = ""
    bases: dict[str, str] = Field(min_length=1)
    experts: dict[str, _Expert] = Field(min_length=1)
    tasks: dict[str, str] = Field(min_length=1)
    retained: dict[str, str] = Field(default_factory=dict)
    probes: dict[str, float] = Field(default_factory=dict)


@dataclass(frozen=True)
class TestbedFolder:
    """A base, its experts, and the tasks that measure a merge of them.

    Attributes:
        folder: where it lies.
        name: which testbed.
        size: `quick` or `full`, or another word.
        seed: seed it was made with.
        base: folder of the base.
        experts: name → folder of an expert of that base.
        tasks: expert → its task, in the order of the experts; several experts may have one task, and the first of them
            is what it is measured by.
        retained: tasks that the base could do before.
        probes: task → test score of a probe on the frozen base.
        description: what it is.
    """

    __test__ = False  # pytest would take the name for a test's

    folder: Path
    name: str
    size: str
    seed: int
    base: Path
    experts: Mapping[str, Path]
    tasks: Mapping[str, FileTask]
    retained: Mapping[str, FileTask]
    probes: Mapping[str, float]
    description: str = ""

    @property
    def own_tasks(self) -> list[FileTask]:
        """The experts' tasks, each once."""
        return list({id(task): task for task in self.tasks.values()}.values())

    @property
    def scores(self) -> Path:
        """Folder beside the testbed for the scores of its models: the testbed itself stays as it was made."""
        return self.folder.with_name(f"{self.folder.name}.scores")


def read_testbed(folder: str | Path, *, base: str | None = None) -> TestbedFolder:
    """Read a testbed.

    Args:
        folder: the folder with testbed.json.
        base: which base, where there are several; the first by default. Experts of other bases are left out.

    Raises:
        TaskError: testbed.json is missing or wrong, or there is no expert of a task.
        MissingModelError: a model that it names is not there.
    """
    home = Path(folder).resolve()
    path = home / MANIFEST
    try:
        found = _Manifest.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise TaskError(f"{home} is no testbed: it has no {MANIFEST}.") from None
    except (OSError, ValueError) as error:
        first = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else None
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise TaskError(f"{path} is not a testbed's description: {reason}.") from None
    chosen = base or next(iter(found.bases))
    if chosen not in found.bases:
        raise TaskError(f"{path} has no base {chosen!r}; it has {', '.join(found.bases)}.")
    experts = {task: home / entry.model for task, entry in found.experts.items() if entry.base == chosen}
    lacking = [task for task in experts if task not in found.tasks]
    if lacking or not experts:
        raise TaskError(
            f"{path}: {f'the expert {lacking[0]!r} has no task' if lacking else f'no expert of {chosen!r}'}."
        )
    for model in (home / found.bases[chosen], *experts.values()):
        if not (model / "config.json").is_file():
            raise MissingModelError(f"{path} names the model {model}, which is not there; build the testbed again.")
    files = {place: _task(home / place) for place in dict.fromkeys(found.tasks[name] for name in experts)}
    tasks = {name: files[found.tasks[name]] for name in experts}
    return TestbedFolder(
        home,
        found.name,
        found.size,
        found.seed,
        home / found.bases[chosen],
        experts,
        tasks,
        {name: _task(home / place) for name, place in found.retained.items()},
        found.probes,
        found.description,
    )


def _task(path: Path) -> FileTask:
    task = load_task(path)
    if task.file.kind in _RUNS_CODE:
        raise TaskError(
            f"{path}: a testbed's task cannot be of kind {task.file.kind}: building or reading one runs no code."
        )
    return task
