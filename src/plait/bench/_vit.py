"""A small vision transformer: random weights that learn from the first step, features, training with a head."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plait.evaluation import in_batches, pool, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["PIXELS", "SCALE", "centre", "image_features", "load_vit", "new_vit", "picture_features", "train_vit"]

SCALE = 4.0  # length of features, as for the encoder
PIXELS: Mapping[str, float] = {"pixel_mean": 0.15, "pixel_std": 0.3}  # of glyphs on a dark ground


def new_vit(size: int, patch: int, width: int, layers: int, heads: int, generator: torch.Generator) -> PreTrainedModel:
    """A transformer of pictures with one channel, its weights drawn from `generator` alone.

    Weights are of the size 1/√width. The library's own of 0.02 leave all pictures nearly the same at the start, and
    nothing is learned for many steps.
    """
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        image_size=size,
        patch_size=patch,
        num_channels=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with quiet(), torch.random.fork_rng(devices=[]):
        model = ViTModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position_embeddings" in name or "cls_token" in name:
                parameter.normal_(0.0, 0.3, generator=generator)
            elif "patch_embeddings" in name and parameter.ndim == 4:
                parameter.normal_(0.0, 1 / patch, generator=generator)
            elif parameter.ndim == 2:
                parameter.normal_(0.0, width**-0.5, generator=generator)
    return model


def load_vit(folder: Path) -> PreTrainedModel:
    """Load what `new_vit`'s model was saved to."""
    from transformers import ViTModel

    with quiet():
        model = ViTModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True, dtype=torch.float32)
    return model.eval()


def picture_features(model: PreTrainedModel, pictures: Tensor) -> Tensor:
    """Features of uint8 pictures ["n size size"] with gradients ["n width"], as the evaluation computes them."""
    return pool(_states(model, pictures), None, "mean", SCALE)


def _states(model: PreTrainedModel, pictures: Tensor) -> Tensor:
    device = next(model.parameters()).device
    pixels = (pictures.to(device).float() / 255 - PIXELS["pixel_mean"]) / PIXELS["pixel_std"]
    return model(pixel_values=pixels.unsqueeze(1)).last_hidden_state


def image_features(model: PreTrainedModel, pictures: Tensor) -> Tensor:
    """The same of many, without gradients."""
    return in_batches([1] * len(pictures), lambda batch: picture_features(model, pictures[batch]))


def centre(model: PreTrainedModel, pictures: Tensor) -> None:
    """Take the mean of all features out of the model's last bias, so that pictures differ in more than a trifle."""
    with torch.no_grad():
        bias: Any = model.get_submodule("layernorm").bias
        bias -= _states(model, pictures).mean((0, 1))


def train_vit(
    model: PreTrainedModel,
    head: nn.Linear,
    draw: Callable[[], tuple[Tensor, Tensor]],
    *,
    steps: int,
    rate: float,
    head_rate: float,
    report: Callable[[int, float], None],
    trained: Callable[[str], bool] = lambda _: True,
) -> None:
    """Train model and head in place; the rates rise over a tenth of the steps and fall along a cosine to zero.

    Args:
        model: a transformer of pictures.
        head: a linear layer over its features.
        draw: returns the pictures ["n size size"] and labels ["n"] of the next step.
        steps: optimiser steps.
        rate: highest learning rate of the model.
        head_rate: highest learning rate of the head.
        report: called after every step with its number, from 1, and its loss.
        trained: which of the model's parameters change, by name.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(name))
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": chosen}, {"params": list(head.parameters())}]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0, betas=(0.9, 0.98))
    for step in range(steps):
        warmth = min((step + 1) / max(1, steps // 10), (1 + math.cos(math.pi * step / steps)) / 2)
        for group, peak in zip(optimizer.param_groups, (rate, head_rate), strict=True):
            group["lr"] = peak * warmth
        pictures, labels = draw()
        scores = head(picture_features(model, pictures))
        loss = nn.functional.cross_entropy(scores, labels.to(scores.device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(chosen, 1.0)
        optimizer.step()
        report(step + 1, loss.item())
