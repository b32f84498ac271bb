"""Retrieval: each query against the documents of all."""

from __future__ import annotations

from typing import ClassVar

import torch

from plait.errors import TaskError
from plait.evaluation._candidate import Candidate
from plait.evaluation._compute import all_features, encode
from plait.evaluation._file_task import FileTask, Kind
from plait.evaluation._scores import Scores

__all__ = ["Retrieval"]


class Retrieval(Kind):
    """Rows {"query", "document"}."""

    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "reciprocal_rank")
    columns: ClassVar[dict[str, type]] = {"query": str, "document": str}

    def check(self, task: FileTask, model: Candidate, split: str) -> None:
        """Look for different documents and for a model of texts."""
        documents = {row["document"] for row in task.rows(split)}
        if len(documents) < 2:
            raise TaskError(
                f"task {task.name!r}, split {split!r}: all examples have one document; there is nothing to find."
            )
        if "vocab_size" not in model.config:
            raise TaskError(f"task {task.name!r} does not fit {model.folder}: the model has no vocabulary.")

    def score(self, task: FileTask, model: Candidate, split: str) -> Scores:
        """1 where a query's own document is the closest by cosine, else 0; or the reciprocal of its rank.

        A document that ties with the own one counts as closer: a model that gives all the same features finds nothing.
        """
        rows, file = task.rows(split), task.file
        documents = list(dict.fromkeys(row["document"] for row in rows))
        network = model.loaded("features")
        queries, found = (
            all_features(network, encode(model.tokenizer, texts, file.max_tokens), file.pooling, 1.0)
            for texts in ([row["query"] for row in rows], documents)
        )
        places = {text: i for i, text in enumerate(documents)}
        own = torch.tensor([places[row["document"]] for row in rows])
        cosines = queries @ found.T
        ranks = (cosines >= cosines.gather(1, own.unsqueeze(1))).sum(1).double()
        values = (ranks == 1).double() if task.metric == "accuracy" else 1 / ranks
        return Scores.of(task.name, task.metric, values.tolist())
