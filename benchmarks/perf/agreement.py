"""Whether both programs compute the same: differences of their outputs on one small model."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from perf.cases import CASES
from perf.models import checkpoints
from perf.tools import Job, run

__all__ = ["agreement"]

_COMPARE = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file
one, two, base = ({k: v for f in Path(p).glob("*.safetensors") for k, v in load_file(f).items()} for p in sys.argv[1:])
assert one.keys() == two.keys(), one.keys() ^ two.keys()
error = sum((one[k].double() - two[k].double()).square().sum() for k in one).sqrt()
norm = sum((one[k].double() - base[k].double()).square().sum() for k in one).sqrt()
print(f"{float(error / norm):.4f}")
"""


def agreement(home: Path, mergekit: Path, methods: Sequence[str]) -> None:
    """Print, per method, the distance of the two outputs relative to the distance from the base.

    Here mergekit computes in float32, as plait always does; its bfloat16, which is measured otherwise, strays further.
    What remains comes of ties among equal magnitudes. Random methods draw other numbers.
    """
    with checkpoints(home, "tiny") as models, tempfile.TemporaryDirectory(dir=home) as folder:
        for method in methods:
            job = Job(CASES[method], models, mergekit=mergekit, precise=True)
            ours, theirs = Path(folder) / f"{method}-ours", Path(folder) / f"{method}-theirs"
            run("plait-as-mergekit", job, keep=ours)
            run("mergekit", job, keep=theirs)
            compare = [sys.executable, "-c", _COMPARE, ours, theirs, models / "base"]
            print(f"{method:16}", subprocess.run(compare, capture_output=True, text=True, check=True).stdout.strip())
