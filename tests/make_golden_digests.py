"""Write what the project carries of the golden vectors: the small inputs, and a digest of each reproduced golden.

    python tests/make_golden_digests.py

Reads the folder of golden vectors (see golden_store.py) and writes tests/data/golden.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch

import golden_store as store
from golden_cases import builder


def main() -> None:
    """Write inputs and digests."""
    source = store.folder()
    if source is None:
        raise SystemExit("no folder of golden vectors; set PLAIT_GOLDEN")
    store.CARRIED.mkdir(parents=True, exist_ok=True)
    for old in store.CARRIED.glob("*.safetensors"):
        old.unlink()
    base = store.load("base")
    found = {}
    needed = {"base"}
    for name in store.names():
        build, meta, theirs = builder(name), store.meta(name), store.expected(name)
        if build is None or meta is None or theirs is None:
            continue
        call = build(meta)
        needed |= {*call.experts, *([call.masks[0]] if call.masks else [])}
        needed |= {call.base} if call.base else set()
        updates = {k: v - base.get(k, torch.zeros_like(v)) for k, v in theirs.items()}
        kept = {k: v for k, v in meta.items() if k != "name"}
        found[name] = {"meta": kept, "tensors": store.digest(updates)}
    for name in sorted(needed):
        shutil.copyfile(source / f"{name}.safetensors", store.CARRIED / f"{name}.safetensors")
    store.DIGESTS.write_text(json.dumps(found, separators=(",", ":")) + "\n")
    size = sum(p.stat().st_size for p in store.CARRIED.iterdir()) / 1e6
    print(f"{len(found)} digests, {len(needed)} inputs, {size:.1f} MB")


if __name__ == "__main__":
    main()
