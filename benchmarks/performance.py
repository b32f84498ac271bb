"""Measure plait against the floor and against mergekit; write JSON, a picture and a page.

    python benchmarks/performance.py mergekit-env ENV             an environment with mergekit
    python benchmarks/performance.py all --dir DIR --mergekit-env ENV
    python benchmarks/performance.py methods --dir DIR --sizes 0.5b --methods ties sce --runs 5
    python benchmarks/performance.py plot
    python benchmarks/performance.py report > docs/performance.md

Each case is a fresh process, measured by the kernel; tools take turns within a case. Results are added to the JSON file
after each case, so parts can be measured again without the rest. See docs/performance.md.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from dataclasses import replace
from pathlib import Path

from perf.agreement import agreement
from perf.cases import CASES
from perf.environment import make_environment
from perf.report import report
from perf.results import Results
from perf.suites import Bench, methods, scaling, startup, tensors
from perf.tools import TOOLS

DOCS = Path(__file__).parent.parent / "docs"
SCALED = ["linear", "ties", "della", "karcher"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "command",
        choices=["methods", "scaling", "tensors", "startup", "disk", "agree", "all", "plot", "report", "mergekit-env"],
    )
    parser.add_argument("path", nargs="?", type=Path, help="of mergekit-env: the environment to make")
    parser.add_argument("--dir", type=Path, help="where models are written, in memory-backed storage")
    parser.add_argument("--disk", type=Path, help="of disk and all: where models are written on a disk")
    parser.add_argument("--results", type=Path, default=DOCS / "performance.json")
    parser.add_argument("--picture", type=Path, default=DOCS / "performance.svg")
    parser.add_argument("--mergekit-env", type=Path, help="an environment with mergekit; without it, it is left out")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mergekit-runs", type=int, help="as --runs by default")
    parser.add_argument("--threads", type=int, default=2, help="of every tool")
    parser.add_argument("--memory", default="512MiB", help="plait's budget")
    parser.add_argument("--keep", action="store_true", help="keep the models")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--methods", nargs="+", choices=CASES, help="all; of scaling and tensors: a few")
    parser.add_argument("--sizes", nargs="*", help="such as 0.5b, 8b/1 (one layer), 8b~2 (holes after two layers)")
    parser.add_argument("--experts", nargs="*", type=int, default=[2, 3, 4, 8, 16])
    parser.add_argument("--experts-size", default="0.5b/4")
    parser.add_argument("--scale-threads", nargs="*", type=int, help="1, 2, 4 … up to the cores by default")
    parser.add_argument("--threads-size", default="0.5b")
    parser.add_argument("--counts", nargs="+", type=int, default=[1000, 2000, 4000, 8000, 36000])
    parser.add_argument("--large-size", default="8b/1", help="of all: where memory alone is measured")
    parser.add_argument("--smoke", action="store_true", help="everything once on tiny models, to see that it works")
    arguments = parser.parse_args()
    if arguments.smoke:
        smoke = {"sizes": ["tiny"], "experts_size": "tiny/1", "threads_size": "tiny", "large_size": "tiny/2"}
        vars(arguments).update(smoke | {"experts": [2, 3], "counts": [200, 400], "runs": 1})
    return arguments


def measure(arguments: argparse.Namespace) -> None:
    """Run suites."""
    command, home = arguments.command, arguments.disk if arguments.command == "disk" else arguments.dir
    if home is None:
        raise SystemExit("say where models are written: --dir, in memory-backed storage, or --disk")
    home.mkdir(parents=True, exist_ok=True)
    lock = (home / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"another benchmark is running in {home}; two at once would measure each other") from None
    settings = {"threads": arguments.threads, "runs": arguments.runs, "memory": arguments.memory}
    results = Results(arguments.results, arguments.mergekit_env, settings)
    bench = Bench(
        home=home,
        results=results,
        mergekit=arguments.mergekit_env,
        runs=arguments.runs,
        mergekit_runs=arguments.runs if arguments.mergekit_runs is None else arguments.mergekit_runs,
        threads=arguments.threads,
        keep=arguments.keep,
        tools=arguments.tools,
        methods=arguments.methods or list(CASES),
        memory=arguments.memory,
    )
    wanted = {name for name in ("startup", "tensors", "methods", "scaling", "disk") if command in (name, "all")}
    if "startup" in wanted:
        startup(bench)
    if "tensors" in wanted:
        tensors(bench, arguments.counts, arguments.methods or ["linear", "ties"])
    if "methods" in wanted:
        methods(bench, arguments.sizes or ["0.5b", "1b"])
    if "scaling" in wanted:
        powers = [1 << i for i in range(8) if 1 << i <= (os.cpu_count() or 1)]
        scaling(
            bench,
            arguments.methods or SCALED,
            arguments.experts,
            arguments.experts_size,
            powers if arguments.scale_threads is None else arguments.scale_threads,
            arguments.threads_size,
            ["0.1b", "0.5b", "1b"] if arguments.sizes is None else arguments.sizes,
        )
    if command == "all":  # memory at the shapes of 8 B: one layer, for the peak does not depend on their number
        methods(replace(bench, tools=["plait", "floor"], runs=1), [arguments.large_size])
    if "disk" in wanted and arguments.disk:
        once = replace(bench, home=arguments.disk, where="disk", runs=1, mergekit_runs=1)
        methods(once, arguments.sizes or ["0.5b"])


def main() -> None:
    arguments = parse()
    if arguments.command == "mergekit-env":
        make_environment(arguments.path)
    elif arguments.command == "report":
        sys.stdout.write(report(Results(arguments.results)))
    elif arguments.command == "plot":
        from perf.plot import plot

        plot(Results(arguments.results), arguments.picture)
    elif arguments.command == "agree":
        if arguments.mergekit_env is None or arguments.dir is None:
            raise SystemExit("agree needs --dir and --mergekit-env")
        agreement(arguments.dir, arguments.mergekit_env, arguments.methods or list(CASES))
    else:
        measure(arguments)


if __name__ == "__main__":
    main()
