"""Run a study: every method with every setting on validation, the chosen one on test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.bench.studies._cells import Cell, Kitchen
from plait.bench.studies._config import StudyConfig
from plait.bench.studies._grids import Entrant, label_of
from plait.bench.studies._pools import Pool, subsets_of
from plait.errors import EvaluationError, TaskError
from plait.evaluation import FileTask, Resamples, ScoreCache, Scores, evaluate, gain, normalised

__all__ = ["References", "Run", "Trial", "run_study"]


@dataclass(frozen=True)
class References:
    """Scores of what stands without merging, on one split.

    Attributes:
        base: of the base, on everything.
        own: of each task's own expert on it, by the task's name.
        experts: expert → scores on all tasks; only where a study asks for the best expert.
        each: expert → score on its own task, which several experts may have.
    """

    base: Mapping[str, Scores]
    own: Mapping[str, Scores]
    experts: Mapping[str, Mapping[str, Scores]]
    each: Mapping[str, Scores] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One setting on validation: its figure, or None if it failed."""

    setting: Mapping[str, Any]
    cell: Cell
    figure: float | None


@dataclass(frozen=True)
class Run:
    """A method on one subset of one pool.

    Attributes:
        pool: the pool.
        subset: the experts that were merged.
        entrant: the method.
        trials: what was tried on validation.
        setting: what was chosen; None if everything failed.
        test: the chosen setting on test.
        error: what was raised.
    """

    pool: Pool
    subset: tuple[str, ...]
    entrant: Entrant
    trials: Sequence[Trial]
    setting: Mapping[str, Any] | None = None
    test: Cell | None = None
    error: str = ""


@dataclass
class _Study:
    config: StudyConfig
    kitchen: Kitchen
    report: Callable[[str], None]
    done: int = 0
    resamples: Resamples = field(default_factory=lambda: Resamples(draws=1))

    def references(self, pool: Pool, split: str, every: bool) -> References:
        """Scores of the base and of the experts."""
        limit = self.config.limit.test if split == "test" else self.config.limit.validation
        cache = ScoreCache(pool.folder)

        def score(folder: Path, tasks: Sequence[FileTask], what: str) -> dict[str, Scores]:
            def say(name: str) -> None:
                self.report(f"{pool.label}: {what} on {name}, {split}")

            threads = self.config.threads
            chosen = [task.limited(limit) for task in tasks]
            return evaluate(folder, chosen, split, cache=cache, threads=threads, progress=say) if chosen else {}

        own: dict[str, Scores] = {}
        each: dict[str, Scores] = {}
        for name, task in pool.tasks.items():
            each[name] = score(pool.experts[name], [task], f"expert {name}")[task.name]
            own.setdefault(task.name, each[name])
        everything = pool.everything
        retained = list(pool.retained.values()) if split == "test" else []
        experts = (
            {name: score(path, everything, f"expert {name}") for name, path in pool.experts.items()} if every else {}
        )
        return References(score(pool.base, [*everything, *retained], "base"), own, experts, each)

    def choosers(self, pool: Pool, subset: Sequence[str]) -> list[tuple[FileTask, str]]:
        """What settings are chosen by, each with its split."""
        limit = self.config.limit.validation
        if pool.choosers:
            return [(task.limited(limit), task.chooser_split) for task in pool.choosers.values()]
        return [(task.limited(limit), "validation") for task in pool.own(subset) or pool.others.values()]

    def figure(self, cell: Cell, references: References | None) -> float:
        """What settings are compared by."""
        assert cell.scores is not None
        rule = self.config.choose_by
        if rule == "raw" or references is None or not set(cell.scores) <= set(references.own):
            signed = [s.value if s.higher_is_better else -s.value for s in cell.scores.values()]
            return sum(signed) / len(signed)
        losses = any(not scores.higher_is_better for scores in cell.scores.values())
        if rule == "gain" or (rule == "auto" and losses):
            return float(gain(cell.scores, references.base, references.own, self.resamples)[0])
        return float(normalised(cell.scores, references.own, self.resamples)[0])

    def one(self, pool: Pool, subset: tuple[str, ...], entrant: Entrant, references: References | None) -> Run:
        """All settings of a method on validation, then the best one on test."""
        paths = {name: str(pool.experts[name]) for name in subset}

        def recipes(setting: Mapping[str, Any]) -> dict[str, Any]:
            return {**entrant.recipe(str(pool.base), paths, dict(setting), self.config.seed), **self.config.recipe}

        settings = entrant.settings()
        trials: list[Trial] = []
        if len(settings) > 1:
            choosers, queue = self.choosers(pool, subset), list(settings)
            while queue:
                setting = queue.pop(0)
                self._say(pool, subset, entrant, setting, "validation")
                cell = self.kitchen.cell(pool, recipes(setting), choosers)
                trials.append(Trial(setting, cell, None if cell.error else self.figure(cell, references)))
                if not queue:
                    best = _best(trials)
                    further = entrant.beyond([t.setting for t in trials], best.setting) if best else None
                    queue += [further] if further is not None else []
            best = _best(trials)
            if best is None:
                return Run(pool, subset, entrant, trials, error=trials[0].cell.error)
            chosen, expected = best.setting, best.cell.model
        else:
            chosen, expected = settings[0], ""
        self._say(pool, subset, entrant, chosen, "test")
        everything = [*pool.everything, *pool.retained.values()]
        tested = [(task.limited(self.config.limit.test), "test") for task in everything]
        test = self.kitchen.cell(pool, recipes(chosen), tested, expected)
        return Run(pool, subset, entrant, trials, chosen, test, test.error)

    def _say(self, pool: Pool, subset: Sequence[str], entrant: Entrant, setting: Mapping[str, Any], split: str) -> None:
        self.done += 1
        among = "" if self.config.subsets is None else f", {' + '.join(subset)}"
        named = f" ({label_of(setting)})" if setting else ""
        self.report(f"{self.done}: {pool.label}{among}: {entrant.label}{named}, {split}")


def _best(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the highest figure; of equal ones the first."""
    sound = [trial for trial in trials if trial.figure is not None]
    return max(sound, key=lambda trial: trial.figure or 0.0) if sound else None


def run_study(
    config: StudyConfig,
    pools: Sequence[Pool],
    entrants: Sequence[Entrant],
    kitchen: Kitchen,
    report: Callable[[str], None],
) -> tuple[list[Run], dict[int, References]]:
    """Run everything that is not known yet; checks come first.

    Args:
        config: the study.
        pools: its pools.
        entrants: its methods.
        kitchen: makes and keeps cells.
        report: told about every step.

    Returns:
        The runs, and the references on test by the pool's place.

    Raises:
        TaskError: a task cannot be scored or does not fit its models; nothing has been merged.
    """
    _check(config, pools, any(len(entrant.settings()) > 1 for entrant in entrants))
    study = _Study(config, kitchen, report)
    every = config.subsets is not None or config.rank_by in ("over_best", "held_out")
    runs: list[Run] = []
    references: dict[int, References] = {}
    for place, pool in enumerate(pools):
        chosen_by = None
        if not pool.choosers and pool.tasks and config.choose_by != "raw":
            chosen_by = study.references(pool, "validation", every=False)
        references[place] = study.references(pool, "test", every)
        for subset in subsets_of(list(pool.experts), config):
            for entrant in entrants:
                runs.append(study.one(pool, subset, entrant, chosen_by))
    return runs, references


def _check(config: StudyConfig, pools: Sequence[Pool], choosing: bool) -> None:
    """Every task on every split it is scored on, before anything is computed."""
    from plait.evaluation import Candidate

    for pool in pools:
        base = Candidate(pool.base)
        everything = [*pool.everything, *pool.retained.values()]
        names = [task.name for task in everything]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise TaskError(f"{pool.label}: two tasks are called {twice[0]!r}; give one of them another name.")
        for task in everything:
            task.limited(config.limit.test).check(base, "test")
        own = pool.own(pool.experts) or [*pool.others.values()]
        chosen = [(t, t.chooser_split) for t in pool.choosers.values()] or [(t, "validation") for t in own]
        for task, split in chosen if choosing else ():
            task.limited(config.limit.validation).check(base, split)
        subsets_of(list(pool.experts), config)
        if config.choose_by == "gain" and pool.choosers:
            raise EvaluationError(f"{pool.label}: a gain needs the tasks' own validation split; choose by raw.")
