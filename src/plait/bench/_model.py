"""The encoder as the testbed uses it: texts → features → a linear head, and how the two are trained together."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from plait.errors import CheckpointError
from plait.evaluation import Encoded, all_features, encode, fixed_threads, quiet, text_features

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "Encoded",
    "Split",
    "accuracy",
    "encode",
    "fixed_threads",
    "load_head",
    "load_model",
    "new_head",
    "probe_accuracy",
    "quiet",
    "ridge_accuracy",
    "save_model",
    "train",
]

Split: TypeAlias = tuple[Encoded, Tensor]  # texts and their labels
_HEAD_STD = 0.05
_SORTED = 4  # batches whose texts are sorted by length
_RIDGE = (0.1, 1.0, 10.0, 100.0)


def load_model(folder: Path, device: str = "cpu") -> PreTrainedModel:
    """Load an encoder's folder with transformers, in evaluation mode, and refuse one that lacks a weight."""
    from transformers import AutoModel

    with quiet():
        model, report = AutoModel.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, dtype=torch.float32
        )
    missing = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in report[kind])
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} tensor(s) that its config.json asks for: {missing[0]}, …")
    nn.Module.to(model, device)
    return model.eval()


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write config.json and model.safetensors."""
    with quiet():
        model.save_pretrained(folder)


def accuracy(model: PreTrainedModel, head: nn.Linear, encoded: Encoded, labels: Tensor) -> float:
    """Fraction of the texts whose label the head finds in the model's features."""
    with torch.inference_mode():
        return (head(all_features(model, encoded)).argmax(1) == labels).double().mean().item()


def new_head(width: int, classes: int, generator: torch.Generator) -> nn.Linear:
    """A linear head with small random weights from `generator` alone."""
    head = nn.Linear(width, classes, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        head.weight.normal_(0.0, _HEAD_STD, generator=generator)
        head.bias.zero_()
    return head


def load_head(path: Path) -> nn.Linear:
    """Read a linear head: `weight` ["classes width"] and `bias` ["classes"]."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    classes, width = tensors["weight"].shape
    head = nn.Linear(width, classes, device="meta")
    head.load_state_dict(tensors, assign=True)
    return head.requires_grad_(False)


def train(
    model: PreTrainedModel,
    head: nn.Linear,
    encoded: Encoded,
    labels: Tensor,
    *,
    steps: int,
    batch: int,
    rate: float,
    head_rate: float,
    generator: torch.Generator,
    report: Callable[[int, float], None],
    trained: Callable[[str], bool] = lambda name: name.startswith("encoder."),
) -> None:
    """Fine-tune `model` and `head` in place.

    The model stays in evaluation mode: dropout would draw from the global generator, and so short a training needs
    none. The learning rates rise over the first tenth of the steps and fall along a cosine to zero.

    Args:
        model: an encoder.
        head: a linear layer over its features.
        encoded: training texts.
        labels: their labels ["texts"].
        steps: optimiser steps.
        batch: texts per step, drawn without replacement until all have been seen.
        rate: highest learning rate of the encoder.
        head_rate: highest learning rate of the head; 0 leaves it as it is.
        generator: what the order of the texts comes from.
        report: called after every step with its number, from 1, and its loss.
        trained: which of the model's parameters change, by name; by default those of its layers.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(name))
    layers = [parameter for parameter in model.parameters() if parameter.requires_grad]
    head.requires_grad_(head_rate > 0)
    heads = list(head.parameters()) if head_rate > 0 else []
    peaks = (rate, head_rate)
    optimizer = torch.optim.AdamW([{"params": layers}, {"params": heads}], lr=rate, weight_decay=0.0)
    batches = _batches([len(ids) for ids in encoded], batch, generator)
    for step in range(steps):
        warmth = min((step + 1) / max(1, steps // 10), (1 + math.cos(math.pi * step / steps)) / 2)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * warmth
        chosen = next(batches)
        scores = head(text_features(model, [encoded[i] for i in chosen]))
        loss = nn.functional.cross_entropy(scores, labels[chosen].to(scores.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report(step + 1, loss.item())


def _batches(lengths: Sequence[int], batch: int, generator: torch.Generator) -> Generator[list[int], None, None]:
    """Yield batches without end: every text once before any twice, those of like length together.

    Of every four batches' texts the longest make one batch, the next longest another: half of the padding goes.
    """
    order: list[int] = []
    while True:
        while len(order) < _SORTED * batch:
            order += torch.randperm(len(lengths), generator=generator).tolist()
        window, order = order[: _SORTED * batch], order[_SORTED * batch :]
        window.sort(key=lambda i: lengths[i])
        for i in torch.randperm(_SORTED, generator=generator).tolist():
            yield window[i * batch : (i + 1) * batch]


def probe_accuracy(
    model: PreTrainedModel,
    train_set: tuple[Encoded, Tensor],
    validation: tuple[Encoded, Tensor],
    test: tuple[Encoded, Tensor],
) -> float:
    """Test accuracy of a ridge regression on the frozen model's features, its penalty chosen on validation.

    What a task is worth fine-tuning for is what the expert has above this.
    """
    sets = ((all_features(model, encoded), labels) for encoded, labels in (train_set, validation, test))
    return ridge_accuracy(*sets)


def ridge_accuracy(
    train_set: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> float:
    """Test accuracy of a ridge regression from features ["n width"] to labels ["n"]; the penalty by validation."""
    inputs, targets = train_set[0].double(), nn.functional.one_hot(train_set[1]).double()
    centre, mean = inputs.mean(0), targets.mean(0)
    gram, cross = (inputs - centre).T @ (inputs - centre), (inputs - centre).T @ (targets - mean)
    best, result = -1.0, 0.0
    for penalty in _RIDGE:
        weights = torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=torch.float64), cross)
        scores = [
            (((features.double() - centre) @ weights + mean).argmax(1) == labels).double().mean().item()
            for features, labels in (validation, test)
        ]
        if scores[0] > best:
            best, result = scores
    return result
