"""Forward passes over many examples: batches of like length, no gradients, a fixed number of threads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "Encoded",
    "all_features",
    "encode",
    "fixed_threads",
    "in_batches",
    "padded",
    "pool",
    "quiet",
    "text_features",
]

Encoded: TypeAlias = list[list[int]]
#: rows of a batch, and tokens of one, padding included: enough to fill a core, little enough to stay in its caches
ROWS, TOKENS = 64, 4096


@contextmanager
def fixed_threads(count: int) -> Generator[None, None, None]:
    """Compute on `count` threads: the order of sums, and with it the last digits, depends on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet() -> Generator[None, None, None]:
    """Keep transformers' progress bars and reports away from a table on the terminal."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def encode(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> Encoded:
    """Token ids of each text, cut to `max_tokens`, not padded."""
    return tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]


def in_batches(lengths: Sequence[int], work: Callable[[list[int]], Tensor]) -> Tensor:
    """Call `work` with the indices of each batch, without gradients, and put the rows back into their order.

    Examples of like length go together, so that little is padding.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    parts: list[Tensor] = []
    batch: list[int] = []
    with torch.inference_mode():
        for i in order:
            if batch and (len(batch) == ROWS or (len(batch) + 1) * lengths[i] > TOKENS):
                parts.append(work(batch))
                batch = [i]
                continue
            batch.append(i)
        parts.append(work(batch))
        return torch.cat(parts).cpu()[torch.tensor(order).argsort()]


def padded(encoded: Encoded, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Token ids and mask ["texts tokens"], padded on the right with zeros."""
    longest = max(len(ids) for ids in encoded)
    tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids in encoded], device=device)
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in encoded], device=device)
    return tokens, mask


def pool(states: Tensor, mask: Tensor | None, pooling: str, scale: float) -> Tensor:
    """One vector per example, of length `scale` ["examples width"].

    Args:
        states: last hidden states ["examples tokens width"].
        mask: 1 for real tokens; None where all are.
        pooling: `mean` over the real tokens, `first` or `last` of them.
        scale: length of the result; 0 leaves it as it is.
    """
    if pooling == "first":
        found = states[:, 0]
    elif pooling == "last":
        ends = states.shape[1] - 1 if mask is None else mask.sum(1) - 1
        found = states[torch.arange(len(states)), ends]
    elif mask is None:
        found = states.mean(1)
    else:
        found = (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    return scale * nn.functional.normalize(found, dim=-1) if scale else found


def text_features(model: PreTrainedModel, encoded: Encoded, pooling: str = "mean", scale: float = 4.0) -> Tensor:
    """Features of one batch of texts ["texts width"]: of length 4, as a head's few steps cannot reach large weights."""
    tokens, mask = padded(encoded, model.device)
    return pool(model(input_ids=tokens, attention_mask=mask).last_hidden_state, mask, pooling, scale)


def all_features(model: PreTrainedModel, encoded: Encoded, pooling: str = "mean", scale: float = 4.0) -> Tensor:
    """Features of many texts, in their order, without gradients ["texts width"]."""
    lengths = [len(ids) for ids in encoded]
    return in_batches(lengths, lambda batch: text_features(model, [encoded[i] for i in batch], pooling, scale))
