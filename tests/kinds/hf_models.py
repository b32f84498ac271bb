"""Tiny models of many kinds, made by the libraries that will load the results."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make(folder: Path, cls: str, config: Any, seed: int, **options: Any) -> Any:
    """Make a model with random weights and save it; return it."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(seed)
    model = getattr(transformers, cls)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **options)
    return model


def load(folder: Path, cls: str) -> Any:
    """Load a model; every weight must be found, and none be left over."""
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = getattr(transformers, cls).from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


def logits(model: Any, ids: torch.Tensor | None = None) -> torch.Tensor:
    """What a language model says of eight tokens."""
    ids = torch.arange(3, 11).unsqueeze(0) if ids is None else ids
    with torch.inference_mode():
        return model(input_ids=ids).logits
