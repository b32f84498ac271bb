"""Kill the real command line again and again, at random moments, until its merge is done; compare the bytes.

    python benchmarks/crash.py MODELS --kills 20 --method ties

MODELS is what `make_checkpoints.py` wrote. The moments are drawn over the time that an undisturbed run takes; an output
that is complete is removed and begun anew until enough runs were killed. The table says at which moment each run was
killed and what it found and left. With --calls (needs `strace`), a second table: killed at the n-th call of a kind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMAND = [sys.executable, "-c", "from plait.cli import main; main()", "merge"]
CALLS = ("pwrite64", "write", "ftruncate", "fallocate", "fsync", "rename", "unlink", "unlinkat", "rmdir", "mkdir")


def tree(folder: Path) -> dict[str, str]:
    """Hash of every file."""
    import xxhash

    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        state = xxhash.xxh3_128()
        with path.open("rb") as stream:
            while piece := stream.read(1 << 22):
                state.update(piece)
        found[str(path.relative_to(folder))] = state.hexdigest()
    return found


def finished(journal: Path) -> int:
    """Lines of the journal that name a tensor."""
    return journal.read_bytes().count(b'"tensor"') if journal.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--method", default="ties")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", action="store_true", help="kill at calls as well; slow")
    arguments = parser.parse_args()
    home = arguments.models.absolute()
    experts = {p.name: str(p) for p in sorted(home.glob("expert*"))}
    recipe = {"method": arguments.method, "base": str(home / "base"), "experts": experts, "shard_size": "50MB"}
    place = home / "crash"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    out, journal = place / "out", place / ".out.plait-work" / "journal"
    command = [*COMMAND, str(place / "recipe.yaml"), "-q", "--threads", arguments.threads, "-o"]
    start = time.monotonic()
    subprocess.run([*command, str(place / "wanted")], check=True)
    whole = time.monotonic() - start
    wanted = tree(place / "wanted")
    inputs = tree(home / "base")
    print(f"undisturbed: {whole:.1f} s, {sum(p.stat().st_size for p in (place / 'wanted').iterdir()) / 1e6:.0f} MB\n")
    print("| kill | after, s | while | tensors finished before | finished then |")
    print("|---|---|---|---|---|")
    rng, kills, runs, complete = random.Random(arguments.seed), 0, 0, 0
    while kills < arguments.kills:
        before, runs = finished(journal), runs + 1
        process = subprocess.Popen([*command, str(out)])
        delay = rng.uniform(0.3, 1.05) * whole
        try:
            code = process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            code = process.wait()
        landed = out.exists()
        if code == 0 or (out.exists() and tree(out) == wanted):
            assert tree(out) == wanted, "the bytes differ"
            again = subprocess.run([*command, str(out)], capture_output=True, text=True, check=False)
            assert code == -signal.SIGKILL or "exists already" in again.stderr, again
            complete += 1
            shutil.rmtree(out)
        assert code in (0, -signal.SIGKILL), f"exit code {code}"
        if code:
            kills += 1
            then = finished(journal)
            facts = len(list(journal.parent.glob("facts-*"))) if journal.exists() else 0
            early = "complete" if landed else "loading"
            phase = "merging" if then else "surveying" if facts or journal.exists() else early
            print(f"| {kills} | {delay:.2f} | {phase} | {before} | {then} |")
    if not out.exists():
        subprocess.run([*command, str(out)], check=True)
    assert tree(out) == wanted and tree(home / "base") == inputs
    left = sorted(p.name for p in place.iterdir())
    assert left == ["out", "recipe.yaml", "wanted"], left
    print(f"\n{kills} kills in {runs} runs, {complete} of them complete; the last one ended in identical files.")
    if arguments.calls:
        by_call(command, out, wanted)


def by_call(command: list[str], out: Path, wanted: dict[str, str]) -> None:
    """Kill at the first, a middle and the last call of each kind on the output, as the kernel counts them."""
    shutil.rmtree(out)
    inside = re.compile(re.escape(str(out.parent)))
    log = out.with_name("strace")
    trace = ["strace", "-f", "-qq", "-y", "-o", str(log), "-e", f"trace={','.join(CALLS)}"]
    subprocess.run([*trace, *command, str(out)], check=True)
    lines = [line for line in log.read_text().splitlines() if "(" in line]
    kinds = [re.split(r"\s+", line, maxsplit=1)[1].split("(")[0].removeprefix("<... ") for line in lines]
    print("\n| call | in an undisturbed run | of them on the output | tried at | killed | identical in the end |")
    print("|---|---|---|---|---|---|")
    for kind in CALLS:
        places = [i for i, k in enumerate(kinds) if k == kind]
        ours = [n for n, i in enumerate(places, start=1) if inside.search(lines[i])]
        picked = sorted({ours[0], ours[len(ours) // 2], ours[-1]}) if ours else []
        good = killed = 0
        for number in picked:
            shutil.rmtree(out, ignore_errors=True)
            inject = ["-e", f"inject={kind}:signal=SIGKILL:when={number}"]
            found = subprocess.run([*trace, *inject, *command, str(out)], check=False)
            killed += found.returncode != 0  # the kernel counts the calls of each thread by themselves
            if not out.exists():
                subprocess.run([*command, str(out)], check=True)
            good += tree(out) == wanted
            left = subprocess.run([*command, str(out)], capture_output=True, text=True, check=False)
            assert left.returncode == 0 or "exists already" in left.stderr, left
            assert not [p for p in out.parent.iterdir() if "plait-" in p.name], list(out.parent.iterdir())
        tried = ", ".join(map(str, picked))
        print(f"| {kind} | {len(places)} | {len(ours)} | {tried} | {killed} | {good} of {len(picked)} |")
        assert good == len(picked)
    os.unlink(log)  # noqa: PTH108


if __name__ == "__main__":
    main()
