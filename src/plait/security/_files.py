"""What lies in a model's folder that a merge, or a later user, should know of: pickles, code, gates."""

from __future__ import annotations

from collections.abc import Iterator

from plait.checkpoints import Checkpoint
from plait.security._findings import Finding

__all__ = ["inspect_files"]

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def inspect_files(name: str, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Yield what is unsafe about a model's files; nothing of them is run."""
    used = {tensor.source for tensor in checkpoint.tensors.values()}
    pickled = sorted(source for source in used if source.endswith(_PICKLES))
    if pickled:
        yield Finding(
            "unsafe",
            "warns",
            name,
            f"the weights of {name} lie in a pickle ({pickled[0]}): plait reads it without running what is in it, "
            "other programs may not.",
            "Prefer the safetensors files of the same model.",
        )
    folder = checkpoint.folder
    others = [] if folder is None else sorted(p.name for p in folder.iterdir() if str(p) not in used)
    loose = [file for file in others if file.endswith(_PICKLES)]
    if loose:
        yield Finding(
            "unsafe",
            "notes",
            name,
            f"{name} also holds pickles that are not used: {', '.join(loose[:3])}.",
            "They are neither opened nor carried over.",
        )
    if (checkpoint.config or {}).get("auto_map"):
        yield Finding(
            "unsafe",
            "warns",
            name,
            f"the config of {name} names code of its own (auto_map): who loads it with trust_remote_code runs that.",
            "Merging needs none of it; read it before you load the result.",
        )
