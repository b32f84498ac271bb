"""`python -m plait.bench.demo`: build the testbed `encoder` in its quick size once, merge its experts, compare.

The table has the accuracy on each task's test split with the head of the task's own expert; their mean; the mean over
tasks of the accuracy relative to the task's own expert ("% expert"); and the seconds of the merge, from files to files.
"""

from __future__ import annotations

import argparse
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from plait.bench._merges import Merge, catalogue, demo_merges
from plait.bench._testbed import Testbed
from plait.bench.testbeds import DEFAULT_CACHE, build

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Result", "main", "run_merges", "table"]

_FILE_WIDTH = 150  # characters of a line where no terminal says how many there are
MergeFunction: TypeAlias = Callable[[dict[str, Any], Path], object]


@dataclass(frozen=True)
class Result:
    """One row: a model's accuracies, or the message of the error that left none."""

    label: str
    scores: dict[str, float]
    seconds: float | None = None
    error: str = ""

    def relative(self, experts: dict[str, float]) -> float:
        """Mean over tasks of this model's accuracy divided by that of the task's own expert."""
        return sum(self.scores[task] / experts[task] for task in experts) / len(experts)


def run_merges(
    testbed: Testbed, merges: Iterable[Merge], merge: MergeFunction, *, keep: bool = True
) -> Iterator[Result]:
    """Execute and evaluate each merge; what one of them raises becomes its row.

    Args:
        testbed: what is merged.
        merges: labels and recipes.
        merge: executes a recipe and writes the model to a path.
        keep: leave the merged models there; otherwise each is deleted when it has been evaluated.
    """
    for label, recipe in merges:
        out = testbed.work / "merges" / re.sub(r"[^a-z0-9.]+", "_", label.lower()).strip("_")
        start = time.perf_counter()
        try:
            merge(recipe, out)
            seconds = time.perf_counter() - start
            yield Result(label, testbed.evaluate(out), seconds)
        except Exception as error:  # a method that fails must not take the others' rows with it
            yield Result(label, {}, error=f"{type(error).__name__}: {error}")
        finally:
            if not keep:
                shutil.rmtree(out, ignore_errors=True)


def reference_rows(testbed: Testbed) -> list[Result]:
    """Rows for what stands without merging: a probe, the base and the experts."""
    return [
        Result("probes on the frozen base", testbed.probes()),
        Result("base", testbed.evaluate(testbed.base)),
        *(Result(f"expert {task}", testbed.evaluate(path)) for task, path in testbed.experts.items()),
    ]


def table(testbed: Testbed, sections: Iterable[Sequence[Result]]) -> Table:
    """Lay rows out, with a line between the sections."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    own = {task: testbed.evaluate(path)[task] for task, path in testbed.experts.items()}
    result = Table(title="Test accuracy (%) with each task's own head", box=SIMPLE_HEAD)
    result.add_column("model", overflow="fold")
    for name in (*own, "mean", "% expert", "seconds"):
        result.add_column(name, justify="right", no_wrap=True)
    for rows in sections:
        for row in rows:
            label = Text(row.label)
            if row.error:
                result.add_row(label.append(f"\n{row.error}", style="red"))
                continue
            scores = [row.scores[task] for task in own]
            cells = [100 * score for score in (*scores, sum(scores) / len(scores), row.relative(own))]
            seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
            result.add_row(label, *(f"{cell:.1f}" for cell in cells), seconds)
        result.add_section()
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Build or load the testbed, merge, print the table; return 1 if any merge failed."""
    parser = argparse.ArgumentParser(prog="python -m plait.bench.demo", description="Compare merges of real models.")
    parser.add_argument(
        "--cache", type=Path, default=DEFAULT_CACHE, help="where testbeds are kept (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the experts' training (default: 0)")
    parser.add_argument("--all", action="store_true", help="the whole catalogue, not only the best-known methods")
    options = parser.parse_args(argv)

    from rich.console import Console

    testbed = Testbed(build("encoder", "quick", options.seed, options.cache, _say))
    _say("evaluating the base and the experts")
    sections: list[list[Result]] = [reference_rows(testbed)]
    known = demo_merges(testbed.base, testbed.experts)
    parts = [known, catalogue(testbed.base, testbed.experts, known)] if options.all else [known]
    total, done = sum(map(len, parts)), 0
    for merges in parts:
        sections.append([])
        for label, recipe in merges:
            done += 1
            _say(f"merging {done} of {total}: {label}")
            # the catalogue's fifty models of 90 MB each are not kept
            sections[-1] += run_merges(testbed, [(label, recipe)], _merge, keep=merges is known)
    console = Console()
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    console.print(table(testbed, sections))
    rows = [row for section in sections[1:] for row in section]
    failed = sum(bool(row.error) for row in rows)
    if failed:
        _say(f"{failed} of {len(rows)} merges failed")
    kept = "the merges are" if len(parts) == 1 else f"the first {len(known)} merges are"
    _say(f"The testbed is {testbed.folder}, {kept} in {testbed.work / 'merges'}")
    return 1 if failed else 0


def _merge(recipe: dict[str, Any], out: Path) -> None:
    import plait

    plait.merge(recipe, out, overwrite=True)


def _say(line: str) -> None:
    """Print at once, so that a pipe shows progress too."""
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
