"""Pools: the experts that a study merges and the tasks that it scores, from a testbed or from named models."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import comb
from pathlib import Path

import xxhash

from plait.bench._folder import MANIFEST, TestbedFolder, read_testbed
from plait.bench.studies._config import Arm, Models, StudyConfig
from plait.errors import RecipeError
from plait.evaluation import FileTask, digest_of_model, load_task

__all__ = ["Pool", "find_pools", "subsets_of"]


@dataclass(frozen=True)
class Pool:
    """Experts of one base, and what they are scored on.

    Attributes:
        arm: name of the arm.
        seed: seed of the testbed; 0 for named models.
        folder: where scores of the base and the experts are kept.
        base: folder of the base.
        experts: name → folder.
        tasks: name of the expert → its own task; several may have one, which is then measured by the first of them.
        others: further tasks.
        retained: what the base could do before.
        choosers: tasks that settings are chosen by, of data that is not tested on; empty for the validation split of
            the tasks themselves.
        probes: score of a probe on the frozen base, by task.
        facts: what the testbed says of itself.
    """

    arm: str
    seed: int
    folder: Path
    base: Path
    experts: Mapping[str, Path]
    tasks: Mapping[str, FileTask]
    others: Mapping[str, FileTask]
    retained: Mapping[str, FileTask]
    choosers: Mapping[str, FileTask]
    probes: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Arm and seed."""
        return f"{self.arm}, seed {self.seed}"

    @property
    def everything(self) -> list[FileTask]:
        """The experts' tasks, each once, and the others."""
        return [*_once(self.tasks.values()), *self.others.values()]

    def own(self, subset: Iterable[str]) -> list[FileTask]:
        """The tasks of some experts, each once."""
        return _once(self.tasks[name] for name in subset if name in self.tasks)

    def digest(self) -> str:
        """Hash of the models and the tasks."""
        facts = [digest_of_model(folder) for folder in (self.base, *self.experts.values())]
        for task in (*self.everything, *self.retained.values()):
            facts += [task.name, task.identity("test")]
        return xxhash.xxh3_128(json.dumps(facts).encode()).hexdigest()


def _once(tasks: Iterable[FileTask]) -> list[FileTask]:
    return list({id(task): task for task in tasks}.values())


def find_pools(
    config: StudyConfig,
    home: Path,
    cache: Path,
    report: Callable[[str], None],
    scores: Path,
) -> list[Pool]:
    """Find, and where they are missing build, the testbeds of a study.

    Args:
        config: the study.
        home: what its paths are relative to.
        cache: where testbeds are built.
        report: told about the building.
        scores: where scores of models that are no testbed's are kept.

    Raises:
        PlaitError: a testbed, a model or a task is not there or wrong.
    """
    pools = []
    for name, arm in config.arms.items():
        if arm.models is not None:
            pools.append(_named(name, arm.models, home, scores))
            continue
        for folder in _folders(arm, config.seeds, home, cache, report):
            pools.append(_of_testbed(name, read_testbed(folder, base=arm.base)))
    return pools


def _folders(arm: Arm, seeds: Sequence[int], home: Path, cache: Path, report: Callable[[str], None]) -> list[Path]:
    if isinstance(arm.testbed, list):
        return [home / place for place in arm.testbed]
    name = str(arm.testbed)
    if (home / name / MANIFEST).is_file():
        return [home / name]
    from plait.bench.testbeds import build

    return [Path(build(name, arm.size or "quick", seed, cache, report)) for seed in seeds]


def _of_testbed(arm: str, found: TestbedFolder) -> Pool:
    facts = {"testbed": found.name, "size": found.size, "description": found.description, "folder": str(found.folder)}
    return Pool(
        arm,
        found.seed,
        found.scores,
        found.base,
        found.experts,
        found.tasks,
        {},
        found.retained,
        {},
        found.probes,
        facts,
    )


def _named(arm: str, models: Models, home: Path, scores: Path) -> Pool:
    missing = [name for name in models.tasks if name not in models.experts]
    if missing:
        raise RecipeError(f"arm {arm!r}: the task of {missing[0]!r} belongs to no expert; put it under 'others'.")
    files = {place: load_task(home / place) for place in dict.fromkeys(models.tasks.values())}
    own = {name: files[place] for name, place in models.tasks.items()}
    choosers = {name: load_task(home / place) for name, place in models.validation.items()}
    others = {name: load_task(home / place) for name, place in models.others.items()}
    tested = {task.identity("test"): name for name, task in {**own, **others}.items()}
    for name, task in choosers.items():
        if task.identity(task.chooser_split) in tested:
            raise RecipeError(f"arm {arm!r}: settings would be chosen by {name!r} on the data that is tested on.")

    def find(reference: str) -> Path:
        from plait.checkpoints import Checkpoint

        path = home / reference
        if path.is_dir():
            return path
        found = Checkpoint.open(reference).folder
        if not isinstance(found, Path):
            raise RecipeError(f"arm {arm!r}: {reference} is not a folder on this machine; download it first.")
        return found

    return Pool(
        arm,
        0,
        scores,
        find(models.base),
        {name: find(place) for name, place in models.experts.items()},
        own,
        others,
        {name: load_task(home / place) for name, place in models.retained.items()},
        choosers,
    )


def subsets_of(names: Sequence[str], config: StudyConfig) -> list[tuple[str, ...]]:
    """The subsets that are merged: all experts, or so many of each size, drawn without repetition.

    Raises:
        RecipeError: a size that the pool does not have.
    """
    if config.subsets is None:
        return [tuple(names)]
    chosen: list[tuple[str, ...]] = []
    for size in config.subsets.sizes:
        if not 2 <= size <= len(names):
            raise RecipeError(f"subsets of {size} experts are asked for, and the pool has {len(names)}; at least 2.")
        generator = random.Random(f"{config.subsets.seed}/{size}/{len(names)}")
        count = min(config.subsets.per_size, comb(len(names), size))
        if comb(len(names), size) <= 4096:
            drawn = generator.sample(list(itertools.combinations(range(len(names)), size)), count)
        else:
            seen: dict[tuple[int, ...], None] = {}
            while len(seen) < count:
                seen[tuple(sorted(generator.sample(range(len(names)), size)))] = None
            drawn = list(seen)
        chosen += [tuple(names[i] for i in picks) for picks in sorted(drawn)]
    return chosen
