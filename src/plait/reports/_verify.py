"""`plait verify`: is a folder the model that was written, and does it work?"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import xxhash

from plait.architectures import roles_of
from plait.checkpoints import Checkpoint, LazyTensor
from plait.errors import PlaitError, shorten
from plait.reports._recipe import MANIFEST
from plait.security import words_of

__all__ = ["Step", "Verification", "available_memory", "verify"]

_BLOCK = 1 << 20
#: memory that a loaded model takes, in its bytes on disk: the weights, and something to compute with
_LOADED = 1.3


@dataclass(frozen=True)
class Step:
    """One thing that was tried."""

    name: str
    state: Literal["ok", "failed", "skipped"]
    sentence: str


@dataclass(frozen=True)
class Verification:
    """Everything that was tried."""

    folder: str
    steps: tuple[Step, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(step.state != "failed" for step in self.steps)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {"folder": self.folder, "ok": self.ok, "steps": [vars(step) for step in self.steps]}


def verify(
    folder: str | Path, *, load: bool | None = None, trust_remote_code: bool = False, contents: bool = True
) -> Verification:
    """Read a model folder once and compare it with its provenance; then load it, where transformers is installed.

    Args:
        folder: a model folder, made by plait or not.
        load: whether to load the model with transformers and run it; by default, if transformers is installed and the
            model fits into the memory that is free.
        trust_remote_code: run code that the folder brings along. Never without being asked.
        contents: read every tensor, to compare its hash and to look for NaN.

    Returns:
        Each step with its result; problems are steps that failed, never exceptions.
    """
    home = Path(folder)
    try:
        checkpoint = Checkpoint.open(home)
    except PlaitError as error:
        return Verification(str(folder), (Step("files", "failed", str(error)),))
    steps = [Step("files", "ok", f"{len(checkpoint)} tensors, {checkpoint.parameters:,} parameters")]
    if contents:
        steps += _contents(home, checkpoint)
    steps += _vocabulary(checkpoint)
    steps += _running(home, checkpoint, load, trust_remote_code)
    return Verification(str(folder), tuple(steps))


def _contents(home: Path, checkpoint: Checkpoint) -> Iterator[Step]:
    """Hash every tensor and look for NaN, in one read."""
    written = _written(home)
    damaged: list[str] = []
    strange: list[str] = []
    for name, tensor in checkpoint.tensors.items():
        digest, finite = _read(tensor)
        if written and written.get(name) != digest:
            damaged.append(name if name in written else f"{name} (not in {MANIFEST})")
        if not finite:
            strange.append(f"{name} ({tensor.source})")
    if written is None:
        yield Step("hashes", "skipped", f"there is no {MANIFEST}: the folder was not made by plait")
    elif not written:
        yield Step("hashes", "failed", f"{MANIFEST} cannot be read")
    else:
        damaged += [f"{name} (missing)" for name in written if name not in checkpoint.tensors]
        if damaged:
            yield Step("hashes", "failed", f"{len(damaged)} tensors are not what {MANIFEST} says:\n{shorten(damaged)}")
        else:
            yield Step("hashes", "ok", f"every tensor is what {MANIFEST} says")
    if strange:
        yield Step("numbers", "failed", f"{len(strange)} tensors hold NaN or infinity:\n{shorten(strange)}")
    else:
        yield Step("numbers", "ok", "all are finite")


def _written(home: Path) -> dict[str, str] | None:
    """Hashes by the provenance; None without one, empty if it cannot be read."""
    path = home / MANIFEST
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["tensors"]
        return {str(k): str(v) for k, v in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _read(tensor: LazyTensor) -> tuple[str, bool]:
    state, finite = xxhash.xxh3_128(), True
    for start in range(0, tensor.numel, _BLOCK):
        values = tensor.read(start, min(start + _BLOCK, tensor.numel))
        raw: Any = values.contiguous().view(torch.uint8).numpy()
        state.update(memoryview(raw))
        finite = finite and (not values.dtype.is_floating_point or bool(values.isfinite().all()))
    return state.hexdigest(), finite


def _vocabulary(checkpoint: Checkpoint) -> Iterator[Step]:
    """Rows of the embedding, the config's vocab_size and the tokenizer's largest number."""
    config = checkpoint.config or {}
    inner = config.get("text_config")
    stated = (inner if isinstance(inner, dict) else config).get("vocab_size", config.get("vocab_size"))
    roles = roles_of(checkpoint.tensors)
    tables = [t for n, t in checkpoint.tensors.items() if roles[n].kind == "embedding" and len(t.shape) == 2]
    rows = {t.shape[0] for t in tables if t.shape[0] == stated}
    words = words_of(checkpoint.folder)
    if not isinstance(stated, int) or not tables:
        yield Step("vocabulary", "skipped", "config.json states no vocab_size, or no embedding was found")
    elif not rows:
        listed = ", ".join(f"{t.name} {t.shape[0]:,}" for t in tables[:3])
        yield Step("vocabulary", "failed", f"config.json states {stated:,} tokens, the embeddings have: {listed} rows")
    elif words is not None and max(words.ids.values()) >= stated:
        most = max(words.ids.values())
        yield Step("vocabulary", "failed", f"the tokenizer uses number {most:,}, the embedding has {stated:,} rows")
    else:
        tokens = f", {len(words.ids):,} tokens" if words is not None else ""
        yield Step("vocabulary", "ok", f"{stated:,} rows{tokens}")


def available_memory() -> int | None:
    """Bytes that programs can still take, where the system says so."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):
            return None


def _running(home: Path, checkpoint: Checkpoint, load: bool | None, trust: bool) -> Iterator[Step]:
    why = _not_loaded(checkpoint, load, trust)
    if why:
        yield Step("loads", "failed" if load else "skipped", why)
        return
    from plait.reports._smoke import smoke

    yield from (Step(*found) for found in smoke(home, trust))


def _not_loaded(checkpoint: Checkpoint, load: bool | None, trust: bool) -> str:
    """Why a model is not loaded, or an empty string."""
    if load is False:
        return "not asked for"
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed: pip install transformers"
    if checkpoint.config is None:
        return "there is no config.json"
    if checkpoint.config.get("auto_map") and not trust:
        return "the config names code of its own; --trust-remote-code runs it"
    free = available_memory()
    if load is None and free is not None and checkpoint.nbytes * _LOADED > free:
        needed = f"{checkpoint.nbytes * _LOADED / 1e9:,.1f} GB"
        return f"it needs about {needed} of memory, {free / 1e9:,.1f} GB are free; --load tries"
    return ""
