"""Merge on a GPU and on the processor, compiled and not, and the same bytes only read, sent, fetched and written.

    python benchmarks/make_checkpoints.py MODELS --size 1b --experts 3
    python benchmarks/device.py MODELS --methods linear ties tsv_merge --results device.json

Every figure is the median of runs in one process, in turns, after one that is not counted (start-up, compilers, the
first use of a library). `floor` reads every input once in pieces of 8 MiB on as many threads, sends it to the GPU
through pinned memory, fetches one model's worth and writes it. Models belong in memory-backed storage.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

import plait

PIECE = 8 << 20
WAYS: dict[str, dict[str, Any]] = {
    "processor": {"device": "cpu"},
    "GPU, torch": {"device": "cuda", "compile": "never"},
    "GPU": {"device": "cuda", "compile": "always"},
}


def floor(folders: list[Path], output: Path, threads: int) -> None:
    """Move every byte that a merge moves, and nothing else."""
    output.mkdir(parents=True)

    def move(piece: tuple[Path, int, bool]) -> None:
        path, start, write = piece
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream), path.open("rb", buffering=0) as file:
            file.seek(start)
            buffer = pinned.setdefault(threading.get_ident(), torch.empty(PIECE, dtype=torch.uint8, pin_memory=True))
            count = file.readinto(buffer.numpy())
            there = buffer[:count].to("cuda", non_blocking=True)
            if write:
                buffer[:count].copy_(there, non_blocking=True)
            stream.synchronize()
            if write:
                with (output / path.name).open("r+b", buffering=0) as target:
                    target.seek(start)
                    target.write(buffer[:count].numpy())

    pinned: dict[int, torch.Tensor] = {}
    pieces = []
    for index, folder in enumerate(folders):
        for path in sorted(folder.glob("*.safetensors")):
            if not index:
                with (output / path.name).open("wb") as target:
                    target.truncate(path.stat().st_size)
            pieces += [(path, start, not index) for start in range(0, path.stat().st_size, PIECE)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(move, pieces))


def timed(work: Callable[[Path], Any], scratch: Path) -> float:
    """Seconds of one run into a folder that is then removed."""
    torch.cuda.synchronize()
    begun = time.perf_counter()
    work(scratch)
    spent = time.perf_counter() - begun
    shutil.rmtree(scratch)
    return spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--methods", nargs="+", default=["linear", "task_arithmetic", "ties", "dare_ties", "tsv_merge"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--threads", type=int, nargs="+", default=[8])
    parser.add_argument("--memory", default="8GiB")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this PyTorch sees no GPU")
    base, experts = arguments.models / "base", sorted(arguments.models.glob("expert*"))
    scratch = arguments.models / "merged"
    print(f"{torch.cuda.get_device_name()}; torch {torch.__version__}; {len(experts)} experts", flush=True)
    found: list[dict[str, Any]] = []
    for threads in arguments.threads:
        for method in ["floor", *arguments.methods]:
            recipe = {"method": method, "base": str(base), "experts": [str(e) for e in experts]}
            ways: dict[str, Callable[[Path], Any]] = {
                way: partial(plait.merge, recipe, threads=threads, memory=arguments.memory, **WAYS[way])
                for way in arguments.ways
            }
            if method == "floor":
                ways = {"GPU": partial(floor, [base, *experts], threads=threads)}
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(arguments.runs + 1):
                for way, work in ways.items():
                    spent = timed(work, scratch)
                    if number:
                        seconds[way].append(spent)
            for way, runs in seconds.items():
                found.append({"method": method, "way": way, "threads": threads, "seconds": runs})
            shown = "; ".join(f"{way} {statistics.median(runs):.2f} s" for way, runs in seconds.items())
            print(f"{method}, {threads} threads: {shown}", flush=True)
            if arguments.results:
                arguments.results.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
