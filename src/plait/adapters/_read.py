"""What an adapter changes, module by module, by its factors."""

from __future__ import annotations

from plait.adapters._write import Piece
from plait.checkpoints import Adapter, Checkpoint, LowRankTensor, ZeroTensor, adapted, changes_alone, read_adapter
from plait.errors import AdapterError, shorten
from plait.tensors.lowrank import LowRank

__all__ = ["open_adapter", "pieces_of"]


def open_adapter(reference: str) -> Adapter:
    """Open an adapter.

    Raises:
        AdapterError: for a model, and for adapters that plait does not read.
    """
    file = Checkpoint.open(reference)
    if file.adapter is None:
        raise AdapterError(f"{reference} holds no adapter.")
    return read_adapter(file)


def pieces_of(adapter: Adapter, base: Checkpoint | None = None) -> list[Piece]:
    """Read every change of an adapter.

    Args:
        adapter: the adapter.
        base: the model it is for: gives Kohya's flattened names their dots back.

    Raises:
        AdapterError: for parts that are no low-rank change: DoRA, weights trained in full, biases, fused experts.
    """
    seen = changes_alone(adapter) if base is None else adapted(adapter, base, "delta")
    found: list[Piece] = []
    others: list[str] = []
    for name, tensor in seen.tensors.items():
        if isinstance(tensor, ZeroTensor) or (base is not None and tensor is base.tensors.get(name)):
            continue
        factors = tensor.factors()
        if not isinstance(tensor, LowRankTensor) or factors is None:
            others.append(name)
            continue
        module = tensor.module if base is None or adapter.style == "peft" else name.removesuffix(".weight")
        found.append(Piece(module, LowRank(*(part.float() for part in factors)), tensor.kind, tensor.shape))
    if others:
        raise AdapterError(
            f"{adapter.label} holds {len(others)} parts that are no low-rank change of a weight:\n{shorten(others)}\n"
            "Merge it into its base (`plait merge` with one expert), and extract an adapter of what that makes."
        )
    return found
