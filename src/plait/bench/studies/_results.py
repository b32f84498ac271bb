"""The results of a study as plain data, for every table and page. No times: equal studies, equal results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from plait.bench.studies._cells import Kitchen
from plait.bench.studies._config import StudyConfig
from plait.bench.studies._figures import FIGURES, Array, figures_of, mean_of_runs, same_mean
from plait.bench.studies._grids import label_of
from plait.bench.studies._pools import Pool
from plait.bench.studies._run import References, Run
from plait.evaluation import Resamples, Scores, holm

__all__ = ["costs_of", "results_of"]


def _group(run: Run, config: StudyConfig) -> tuple[str, int]:
    return run.pool.arm, len(run.subset)


def results_of(
    config: StudyConfig, pools: Sequence[Pool], runs: Sequence[Run], references: Mapping[int, References]
) -> dict[str, Any]:
    """Everything that a study found, rows ranked within each group of an arm and a number of experts."""
    resamples = Resamples(config.seed, config.bootstrap)
    places = {id(pool): place for place, pool in enumerate(pools)}
    figures: dict[int, dict[str, Array]] = {}
    for number, run in enumerate(runs):
        if run.test is not None and run.test.scores and not run.error:
            figures[number] = figures_of(run, references[places[id(run.pool)]], resamples)
    groups: dict[tuple[str, int], dict[str, list[int]]] = {}
    for number, run in enumerate(runs):
        groups.setdefault(_group(run, config), {}).setdefault(run.entrant.label, []).append(number)
    table: list[dict[str, Any]] = []
    for (arm, size), methods in groups.items():
        rows = [_row(arm, size, name, numbers, runs, figures, config) for name, numbers in methods.items()]
        members = [n for numbers in methods.values() for n in numbers if n in figures]
        losses = any(not s.higher_is_better for n in members for s in _own(runs[n]).values())
        rule = _rule(config, rows, losses)
        rows.sort(key=lambda row: _order(row, rule, losses))
        _tests(rows, methods, runs, {n: references[places[id(runs[n].pool)]] for n in range(len(runs))}, config)
        table += [{**row, "rank": rank, "ranked_by": rule} for rank, row in enumerate(rows, 1)]
    return {
        "format": 1,
        "title": config.title or " and ".join(dict.fromkeys(pool.facts.get("testbed", pool.arm) for pool in pools)),
        "description": config.description,
        "figures": {name: {"meaning": text, "more_is_better": up} for name, (text, up) in FIGURES.items()},
        "study": config.model_dump(mode="json"),
        "pools": [_pool(pool, references[place], resamples) for place, pool in enumerate(pools)],
        "table": table,
        "runs": [
            _run(number, run, places[id(run.pool)], figures.get(number), references[places[id(run.pool)]], resamples)
            for number, run in enumerate(runs)
        ],
    }


def _rule(config: StudyConfig, rows: Sequence[Mapping[str, Any]], losses: bool) -> str:
    """The figure to rank by: the study's, or the first that exists."""
    wanted = config.rank_by
    if wanted == "auto":
        wanted = "gain" if losses else "normalised"
    for name in (wanted, "normalised", "raw"):
        if any(name in row["figures"] for row in rows):
            return name
    return wanted


def _own(run: Run) -> dict[str, Scores]:
    """A run's scores on the tasks of the experts that it merged."""
    found = (run.test.scores or {}) if run.test is not None else {}
    names = {task.name for task in run.pool.own(run.subset)}
    return {name: scores for name, scores in found.items() if name in names or not names}


def _order(row: Mapping[str, Any], rule: str, losses: bool) -> tuple[bool, float, str]:
    """Best first, failures last, equal ones by name."""
    if rule not in row["figures"]:
        return True, 0.0, row["method"]
    more = not losses if rule == "raw" else FIGURES[rule][1]
    value = row["figures"][rule]["value"]
    return False, -value if more else value, row["method"]


def _row(
    arm: str,
    size: int,
    method: str,
    numbers: Sequence[int],
    runs: Sequence[Run],
    figures: Mapping[int, Mapping[str, Array]],
    config: StudyConfig,
) -> dict[str, Any]:
    sound = [n for n in numbers if n in figures]
    failed = [n for n in numbers if n not in figures]
    row: dict[str, Any] = {"arm": arm, "experts": size, "method": method, "runs": list(numbers), "figures": {}}
    row["settings"] = list(dict.fromkeys(label_of(runs[n].setting or {}) for n in sound))
    row["error"] = runs[failed[0]].error if failed else ""
    row["failed"] = len(failed)
    if sound and not failed:  # a mean over the runs that went well would flatter
        for name in FIGURES:
            if all(name in figures[n] for n in sound):
                values = [figures[n][name] for n in sound]
                row["figures"][name] = asdict(mean_of_runs(values, config.seed, config.subsets is not None))
    return row


def _tests(
    rows: list[dict[str, Any]],
    methods: Mapping[str, Sequence[int]],
    runs: Sequence[Run],
    references: Mapping[int, References],
    config: StudyConfig,
) -> None:
    """Compare the best row with each other one."""
    sound = [row for row in rows if row["figures"]]
    if len(sound) < 2:
        return
    best = methods[sound[0]["method"]]
    values = []
    for row in sound[1:]:
        mine = methods[row["method"]]
        paired = {place: references[n] for place, n in enumerate(best)}
        values.append(same_mean([runs[n] for n in best], [runs[n] for n in mine], paired, config.seed))
    for row, value, adjusted in zip(sound[1:], values, holm(values), strict=True):
        row["against_best"] = {"method": sound[0]["method"], "p": value, "p_holm": adjusted}


def _score(scores: Scores, resamples: Resamples) -> dict[str, Any]:
    interval = resamples.interval(resamples.values(scores))
    return {"metric": scores.metric, "examples": len(scores.values), **asdict(interval)}


def _pool(pool: Pool, references: References, resamples: Resamples) -> dict[str, Any]:
    return {
        "arm": pool.arm,
        "seed": pool.seed,
        "digest": pool.digest(),
        **pool.facts,
        "experts": list(pool.experts),
        "tasks": {name: task.name for name, task in pool.tasks.items()},
        "base": {name: _score(scores, resamples) for name, scores in references.base.items()},
        "own": {name: _score(scores, resamples) for name, scores in references.own.items()},
        "each": {expert: _score(scores, resamples) for expert, scores in references.each.items()},
        "alone": {
            expert: {name: scores.value for name, scores in suite.items()}
            for expert, suite in references.experts.items()
        },
        "probes": dict(pool.probes),
    }


def _run(
    number: int,
    run: Run,
    pool: int,
    figures: Mapping[str, Array] | None,
    references: References,
    resamples: Resamples,
) -> dict[str, Any]:
    tasks: dict[str, Any] = {}
    for name, scores in ((run.test.scores or {}) if run.test is not None else {}).items():
        tasks[name] = _score(scores, resamples)
        own, base = references.own.get(name), references.base.get(name)
        tasks[name] |= {"expert": own.value if own else None, "base": base.value if base else None}
    trials = [
        {
            "setting": dict(trial.setting),
            "figure": trial.figure,
            "tasks": {name: scores.value for name, scores in (trial.cell.scores or {}).items()},
            "recipe": trial.cell.recipe,
            "cell": trial.cell.key,
            "error": trial.cell.error,
        }
        for trial in run.trials
    ]
    return {
        "run": number,
        "pool": pool,
        "subset": list(run.subset),
        "method": run.entrant.label,
        "setting": None if run.setting is None else dict(run.setting),
        "error": run.error,
        "model": run.test.model if run.test is not None else "",
        "recipe": run.test.recipe if run.test is not None else None,
        "cell": run.test.key if run.test is not None else "",
        "figures": {name: asdict(resamples.interval(values)) for name, values in (figures or {}).items()},
        "tasks": tasks,
        "trials": trials,
    }


def costs_of(runs: Sequence[Run], kitchen: Kitchen) -> list[dict[str, Any]]:
    """What each run cost when its cells were made: seconds, memory, evaluations, examples; tuning included."""
    rows = []
    for number, run in enumerate(runs):
        cells = [trial.cell for trial in run.trials] + ([run.test] if run.test is not None else [])
        known = [cost for cell in cells if (cost := kitchen.cost(cell.key)) is not None]
        test = kitchen.cost(run.test.key) if run.test is not None else None
        rows.append(
            {
                "run": number,
                "method": run.entrant.label,
                "merge_seconds": None if test is None else test["merge"]["seconds"],
                "merge_cpu_seconds": None if test is None else test["merge"]["cpu_seconds"],
                "merge_bytes": None if test is None else test["merge"]["bytes"],
                "evaluations": len(cells),
                "examples": sum(cost["examples"] for cost in known),
                "total_seconds": sum(cost[part]["seconds"] for cost in known for part in ("merge", "evaluate")),
                "total_cpu_seconds": sum(cost[part]["cpu_seconds"] for cost in known for part in ("merge", "evaluate")),
            }
        )
    return rows
