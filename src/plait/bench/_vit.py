"""A small vision transformer: how it is made, trained with a head, and scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from plait.bench._model import quiet, ridge_accuracy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "PIXEL_MEAN",
    "PIXEL_STD",
    "image_accuracy",
    "image_batches",
    "image_probe",
    "load_vit",
    "new_vit",
    "train_vit",
]

_SCALE = 4.0  # features of length 4, as in the text tasks
_BATCH = 128
PIXEL_MEAN, PIXEL_STD = 0.15, 0.3  # of glyphs, white on black: the background is near zero


def new_vit(width: int, layers: int, heads: int, patch: int, side: int, seed: int) -> PreTrainedModel:
    """A ViT with random weights that depend on the seed alone."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=side,
        patch_size=patch,
        num_channels=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.5 / math.sqrt(width),  # the usual 0.02 is for wider models: this one would not start
    )
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViTModel(config, add_pooling_layer=False).eval()


def load_vit(folder: Path, device: str = "cpu") -> PreTrainedModel:
    """Load a folder that `new_vit`'s model was saved to."""
    from transformers import ViTModel

    with quiet():
        model = ViTModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True, dtype=torch.float32)
    nn.Module.to(model, device)
    return model.eval()


def _features(model: PreTrainedModel, images: Tensor) -> Tensor:
    """Mean of the last hidden states over patches and class token, scaled to length 4 ["images width"]."""
    pixels = (images.to(model.device).float() / 255 - PIXEL_MEAN) / PIXEL_STD
    states = model(pixel_values=pixels.unsqueeze(1)).last_hidden_state  # images × tokens × width
    return _SCALE * nn.functional.normalize(states.mean(1), dim=-1)


def _all_features(model: PreTrainedModel, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([_features(model, part) for part in images.split(_BATCH)]).cpu()


def image_accuracy(model: PreTrainedModel, head: nn.Linear, images: Tensor, labels: Tensor) -> float:
    """Fraction of the images whose label the head finds in the model's features."""
    with torch.inference_mode():
        return (head(_all_features(model, images)).argmax(1) == labels).double().mean().item()


def image_probe(model: PreTrainedModel, *splits: tuple[Tensor, Tensor]) -> float:
    """Test accuracy of a ridge regression on the frozen features; train, validation and test are given."""
    return ridge_accuracy(*((_all_features(model, images), labels) for images, labels in splits))


def image_batches(
    images: Tensor, labels: Tensor, batch: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches without end, every image once before any twice."""
    order: list[int] = []
    while True:
        while len(order) < batch:
            order += torch.randperm(len(images), generator=generator).tolist()
        chosen, order = order[:batch], order[batch:]
        yield images[chosen], labels[chosen]


def train_vit(
    model: PreTrainedModel,
    head: nn.Linear,
    batches: Iterator[tuple[Tensor, Tensor]],
    *,
    steps: int,
    rate: float,
    head_rate: float,
    report: Callable[[int, float], None],
    trained: Callable[[str], bool] = lambda name: name.startswith(("encoder.", "layers.")),
) -> None:
    """Train model and head in place; the learning rates rise over a tenth of the steps and fall along a cosine.

    Args:
        model: a ViT.
        head: a linear layer over its features.
        batches: images uint8 ["n height width"] and labels ["n"].
        steps: optimiser steps.
        rate: highest learning rate of the model.
        head_rate: highest learning rate of the head.
        report: called after every step with its number, from 1, and its loss.
        trained: which of the model's parameters change, by name; by default those of its layers.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(name))
    layers = [parameter for parameter in model.parameters() if parameter.requires_grad]
    peaks = (rate, head_rate)
    groups = [{"params": layers}, {"params": list(head.parameters())}]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0, betas=(0.9, 0.98))
    for step in range(steps):
        warmth = min((step + 1) / max(1, steps // 10), (1 + math.cos(math.pi * step / steps)) / 2)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * warmth
        images, labels = next(batches)
        scores = head(_features(model, images))
        loss = nn.functional.cross_entropy(scores, labels.to(scores.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report(step + 1, loss.item())
