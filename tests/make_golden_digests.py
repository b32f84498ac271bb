"""Write what the project carries of the golden vectors: the small inputs, and a digest of each reproduced golden.

    python tests/make_golden_digests.py

Reads the folder of golden vectors (see golden_store.py) and writes tests/data/golden, and from it what each method is
verified against (src/plait/methods/verified.json), which `plait methods --markdown` prints.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch

import golden_store as store
from golden_cases import builder

VERIFIED = Path(__file__).parent.parent / "src" / "plait" / "methods" / "verified.json"

# Methods without a golden whose results are compared with a derivation written independently from the paper's text,
# in float64, in tests/methods. What is in neither list is held by its invariants and the conformance suite alone.
DERIVED = ("lawa", "mwa", "frank", "r_tsvm")


def steps_of(method: Any) -> list[str]:
    """Names of the methods that a recipe's `method` runs."""
    from plait.methods import find_composition

    items = [method] if isinstance(method, str) else method
    return [part for item in items for part in find_composition(item if isinstance(item, str) else next(iter(item)))]


def evidence() -> dict[str, Any]:
    """What each method is verified against: the goldens it reproduces, by whose code made them."""
    from plait.methods import methods

    found: dict[str, Any] = {name: {"goldens": {}, "derivation": name in DERIVED} for name in methods()}
    store.digests.cache_clear()
    for name, entry in store.digests().items():
        build = builder(name)
        assert build is not None
        meta = {**entry["meta"], "name": name}
        source = str(meta["reference"]).split(":")[0].split(" ")[0]
        for step in dict.fromkeys(steps_of(build(meta).method)):
            found[step]["goldens"].setdefault(source, []).append(name)
    return found


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
    VERIFIED.write_text(json.dumps(evidence(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    size = sum(p.stat().st_size for p in store.CARRIED.iterdir()) / 1e6
    print(f"{len(found)} digests, {len(needed)} inputs, {size:.1f} MB")


if __name__ == "__main__":
    main()
