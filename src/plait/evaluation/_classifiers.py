"""Classification of texts and of images: the class with the highest logit, by the task's head or the model's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from plait.errors import TaskError
from plait.evaluation._candidate import Candidate
from plait.evaluation._compute import all_features, encode, in_batches, padded, pool
from plait.evaluation._file_task import FileTask, Kind
from plait.evaluation._scores import Scores

__all__ = ["ImageClassification", "TextClassification", "read_head"]


def read_head(path: Path) -> tuple[Tensor, Tensor]:
    """Weight ["classes width"] and bias ["classes"] of a linear head.

    Raises:
        TaskError: the file is missing or holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        weight, bias = tensors["weight"].float(), tensors["bias"].float()
        if weight.ndim == 2 and bias.shape == weight.shape[:1]:
            return weight, bias
        shapes = f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)}"
    except (OSError, SafetensorError, KeyError) as error:
        raise TaskError(f"the head {path} cannot be read: {error}.") from None
    raise TaskError(f"the head {path} has {shapes}; a head is weight [classes, width] and bias [classes].")


def _check_labels(task: FileTask, labels: Sequence[int], split: str) -> None:
    names = task.file.labels
    if len(names) < 2:
        raise TaskError(f"task {task.name!r} has {len(names)} label(s); a classification needs two classes or more.")
    wrong = sorted({label for label in labels if not 0 <= label < len(names)})
    if wrong:
        raise TaskError(
            f"task {task.name!r}, split {split!r}: label {wrong[0]} is outside of its label space, 0 to "
            f"{len(names) - 1} "
            f"({names[0]}, …, {names[-1]})."
        )
    if len(set(labels)) < 2:
        raise TaskError(
            f"task {task.name!r}, split {split!r}: every example has the class {names[labels[0]]!r}; with one class "
            "any "
            "model that says it always is perfect."
        )


def _check_classifier(task: FileTask, model: Candidate) -> None:
    """The label space of the task against that of what classifies."""
    names, path = task.file.labels, task.head_file
    if path is not None:
        classes, width = read_head(path)[0].shape
        if classes != len(names):
            raise TaskError(
                f"task {task.name!r} has {len(names)} labels, but its head {path} has {classes} classes: wrong label "
                "space."
            )
        if model.width is not None and model.width != width:
            raise TaskError(
                f"task {task.name!r} does not fit {model.folder}: its head reads features of width {width}, the "
                "model's "
                f"are {model.width} wide."
            )
        return
    if not any(str(name).endswith("Classification") for name in model.config.get("architectures") or ()):
        raise TaskError(
            f"task {task.name!r} does not fit {model.folder}: the task brings no head, and the model has no classifier "
            f"(its architecture is {_architecture(model)})."
        )
    stored = model.config.get("id2label") or {}
    own = [str(stored[key]) for key in sorted(stored, key=int)] or [f"LABEL_{i}" for i in range(2)]
    generic = own == [f"LABEL_{i}" for i in range(len(own))]
    if len(own) != len(names) or (not generic and own != list(names)):
        raise TaskError(
            f"task {task.name!r} does not fit {model.folder}: the labels are {_some(names)}, those of the model's "
            "classifier "
            f"{_some(own)}: wrong label space."
        )


def _architecture(model: Candidate) -> str:
    return ", ".join(model.config.get("architectures") or ["not stated"])


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown}, … ({len(names)})" if len(names) > 4 else shown


def _scores(task: FileTask, logits: Tensor, labels: Sequence[int]) -> Scores:
    wanted = torch.tensor(labels)
    if task.metric == "cross_entropy":
        return Scores.of(
            task.name, task.metric, nn.functional.cross_entropy(logits.double(), wanted, reduction="none").tolist()
        )
    return Scores.of(task.name, task.metric, (logits.argmax(1) == wanted).double().tolist())


class TextClassification(Kind):
    """Rows {"text", "label"}."""

    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "cross_entropy")
    columns: ClassVar[dict[str, type]] = {"text": str, "label": int}

    def check(self, task: FileTask, model: Candidate, split: str) -> None:
        """Compare the label spaces and widths of data, head and model."""
        _check_labels(task, [row["label"] for row in task.rows(split)], split)
        if "vocab_size" not in model.config:
            raise TaskError(
                f"task {task.name!r} does not fit {model.folder}: it classifies texts, and the model "
                f"({_architecture(model)}) "
                "has no vocabulary."
            )
        _check_classifier(task, model)

    def score(self, task: FileTask, model: Candidate, split: str) -> Scores:
        """1 for each text whose label has the highest logit, else 0; or the label's negative log-probability."""
        rows, file = task.rows(split), task.file
        encoded = encode(model.tokenizer, [row["text"] for row in rows], file.max_tokens)
        path = task.head_file
        if path is not None:
            features = all_features(model.loaded("features"), encoded, file.pooling, file.scale)
            weight, bias = read_head(path)
            logits = nn.functional.linear(features, weight, bias)
        else:
            classifier = model.loaded("text classifier")

            def work(batch: list[int]) -> Tensor:
                tokens, mask = padded([encoded[i] for i in batch])
                return classifier(input_ids=tokens, attention_mask=mask).logits

            logits = in_batches([len(ids) for ids in encoded], work)
        return _scores(task, logits, [row["label"] for row in rows])


class ImageClassification(Kind):
    """One safetensors file per split: `images` uint8 [n, (channels,) height, width] and `labels` [n]."""

    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "cross_entropy")
    columns: ClassVar[dict[str, type]] = {}

    def _data(self, task: FileTask, split: str) -> tuple[Tensor, list[int]]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = task.split_file(split)
        try:
            tensors = load_file(path)
            images, labels = tensors["images"], tensors["labels"]
        except FileNotFoundError:
            raise TaskError(f"the split's file {path} is missing.") from None
        except (OSError, SafetensorError, KeyError) as error:
            raise TaskError(f"the split's file {path} cannot be read: {error}.") from None
        if not len(images):
            raise TaskError(f"the split's file {path} is empty: there is nothing to score.")
        if images.dtype != torch.uint8 or images.ndim not in (3, 4) or labels.shape != images.shape[:1]:
            raise TaskError(
                f"{path} has images {images.dtype} {tuple(images.shape)} and labels {tuple(labels.shape)}; a split "
                "is images "
                "uint8 [n, height, width] or [n, channels, height, width] and labels [n]."
            )
        chosen = task.chosen(len(images))
        return images[chosen], labels[chosen].tolist()

    def check(self, task: FileTask, model: Candidate, split: str) -> None:
        """Compare the label spaces of data, head and model, and the size of the images."""
        images, labels = self._data(task, split)
        _check_labels(task, labels, split)
        size: Any = model.config.get("image_size")
        if size is None:
            raise TaskError(
                f"task {task.name!r} does not fit {model.folder}: it classifies images, and the model "
                f"({_architecture(model)}) "
                "takes none."
            )
        wanted = [size, size] if isinstance(size, int) else list(size)
        if list(images.shape[-2:]) != wanted:
            raise TaskError(
                f"task {task.name!r} does not fit {model.folder}: its images are {images.shape[-2]} × "
                f"{images.shape[-1]} "
                f"pixels, the model takes {wanted[0]} × {wanted[1]}."
            )
        _check_classifier(task, model)

    def score(self, task: FileTask, model: Candidate, split: str) -> Scores:
        """1 for each image whose label has the highest logit, else 0; or the label's negative log-probability."""
        images, labels = self._data(task, split)
        file, path = task.file, task.head_file
        channels = int(model.config.get("num_channels", 3))
        network = model.loaded("features" if path is not None else "image classifier")

        def work(batch: list[int]) -> Tensor:
            pixels = (images[batch].float() / 255 - file.pixel_mean) / file.pixel_std
            if pixels.ndim == 3:
                pixels = pixels.unsqueeze(1).expand(-1, channels, -1, -1)
            found = network(pixel_values=pixels)
            return found.logits if path is None else pool(found.last_hidden_state, None, file.pooling, file.scale)

        found = in_batches([1] * len(images), work)
        if path is not None:
            found = nn.functional.linear(found, *read_head(path))
        return _scores(task, found, labels)
