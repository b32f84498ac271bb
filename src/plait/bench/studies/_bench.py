"""`bench`: from a testbed or a study's file to results, tables and a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plait.bench._folder import MANIFEST
from plait.bench.studies._cells import Kitchen
from plait.bench.studies._config import Arm, StudyConfig, built_in, load_config
from plait.bench.studies._grids import DEFAULTS, entrants
from plait.bench.studies._landscape import landscape, layers
from plait.bench.studies._pools import find_pools
from plait.bench.studies._results import costs_of, results_of
from plait.bench.studies._run import run_study
from plait.bench.studies._tables import csv_table, markdown_table
from plait.bench.testbeds import DEFAULT_CACHE

__all__ = ["Outcome", "bench", "study_of"]

Outcome = tuple[dict[str, Any], list[dict[str, Any]]]


def study_of(
    target: str | Path, *, size: str | None = None, seeds: Sequence[int] | None = None
) -> tuple[StudyConfig, Path]:
    """The study that a command line means.

    Args:
        target: a study's file, a protocol's name, a testbed's folder or name.
        size: size of a testbed by name.
        seeds: seeds instead of the study's.

    Raises:
        RecipeError: there is no such file, or it is wrong.
    """
    path = Path(target)
    if (path / MANIFEST).is_file():
        config, home = StudyConfig(arms={path.resolve().name: Arm(testbed=str(path.resolve()))}), Path.cwd()
    elif path.suffix in (".yaml", ".yml") or str(target) in built_in():
        config, home = load_config(target)
        if size is not None:
            arms = {
                name: arm if arm.models else arm.model_copy(update={"size": size}) for name, arm in config.arms.items()
            }
            config = config.model_copy(update={"arms": arms})
    else:
        config, home = StudyConfig(arms={str(target): Arm(testbed=str(target), size=size or "quick")}), Path.cwd()
    if seeds:
        config = config.model_copy(update={"seeds": list(seeds)})
    return config, home


def bench(
    config: StudyConfig,
    out: str | Path,
    *,
    home: str | Path = ".",
    methods: Sequence[str] = (),
    cache: str | Path = DEFAULT_CACHE,
    factors: str | Path | None = None,
    html: bool = True,
    report: Callable[[str], None] = print,
    merge: Callable[[Mapping[str, Any], Path], object] | None = None,
) -> Outcome:
    """Run a study, or what is left of it, and write its results.

    `out` gets results.json, table.csv and table.md, which are the same to the last digit whenever the study is run on
    one machine; costs.json, what it took when it ran; report.html; and cells/, one file per merge and split, by which a
    run that was killed goes on.

    Args:
        config: the study.
        out: a folder.
        home: what the study's paths are relative to.
        methods: names of methods instead of the study's.
        cache: where testbeds lie.
        factors: where factorisations are kept; in `out` by default.
        html: write the page too; needs plotly.
        report: told about every step.
        merge: merges a recipe into a folder; `plait.merge` by default.

    Returns:
        The results, and the costs.

    Raises:
        PlaitError: something is missing or wrong; of a method that fails only its row says so.
    """
    if html:
        from plait.reports import check_viewer

        check_viewer()
    out = Path(out)
    pools = find_pools(config, Path(home), Path(cache), report, out / "scores")
    given: list[Any] = list(methods) or [m if isinstance(m, str) else m.model_dump() for m in config.methods]
    sizes = {pool.facts.get("size", "full") for pool in pools}
    chosen = entrants(given or DEFAULTS["full" if "full" in sizes else "quick"])
    if merge is None:
        merge = _merger(Path(factors) if factors is not None else out / "factors")
    kitchen = Kitchen(out, merge, config.threads)
    runs, references = run_study(config, pools, chosen, kitchen, report)
    results = results_of(config, pools, runs, references)
    results["landscape"] = landscape(config, pools[0], kitchen, report) if pools else None
    results["layers"] = layers(pools[0]) if pools else None
    costs = costs_of(runs, kitchen)
    out.mkdir(parents=True, exist_ok=True)
    _replace(out / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    _replace(out / "costs.json", json.dumps(costs, indent=1) + "\n")
    _replace(out / "table.csv", csv_table(results))
    _replace(out / "table.md", markdown_table(results))
    if html:
        from plait.reports import bench_page

        _replace(out / "report.html", bench_page(results, costs))
    return results, costs


def _merger(factors: Path) -> Callable[[Mapping[str, Any], Path], object]:
    def merge(recipe: Mapping[str, Any], out: Path) -> object:
        import plait

        return plait.merge(recipe, out, overwrite=True, factors=factors)

    return merge


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
