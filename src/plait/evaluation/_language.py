"""Language models: bits per byte, the likeliest of several choices, and greedy continuations that must match."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from plait.errors import TaskError
from plait.evaluation._candidate import Candidate
from plait.evaluation._compute import Encoded, in_batches, padded
from plait.evaluation._file_task import FileTask, Kind
from plait.evaluation._scores import Scores

__all__ = ["ExactMatch", "LanguageModelling", "MultipleChoice"]


def _check_causal(task: FileTask, model: Candidate) -> None:
    names = [str(name) for name in model.config.get("architectures") or ()]
    if not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        raise TaskError(
            f"task {task.name!r} does not fit {model.folder}: it needs a causal language model, and the architecture "
            "is "
            f"{', '.join(names) or 'not stated'}."
        )


def _start(tokenizer: Any) -> list[int]:
    """The token that stands before every text, so that its first token is predicted too."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [int(token)]
    return []


def _token_scores(model: Candidate, encoded: Encoded, starts: list[int]) -> tuple[list[float], list[bool]]:
    """Sum of the natural log-probabilities of the tokens from `starts` on, and whether each was the likeliest one."""
    network = model.loaded("causal")

    def work(batch: list[int]) -> Tensor:
        tokens, mask = padded([encoded[i] for i in batch])
        logits = network(input_ids=tokens, attention_mask=mask).logits[:, :-1].float()
        targets = tokens[:, 1:]
        chosen = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1).double()
        greedy = logits.argmax(-1) == targets
        first = torch.tensor([starts[i] for i in batch]).unsqueeze(1)
        places = torch.arange(1, tokens.shape[1]).unsqueeze(0)
        scored = (places >= first) & mask[:, 1:].bool()
        return torch.stack([(chosen * scored).sum(1), (greedy | ~scored).all(1).double()], dim=1)

    found = in_batches([len(ids) for ids in encoded], work)
    return found[:, 0].tolist(), (found[:, 1] > 0).tolist()


def _continuations(model: Candidate, pairs: list[tuple[str, str]], most: int) -> tuple[Encoded, list[int]]:
    """Token ids of each prompt with its continuation, and where that begins; long prompts lose their start."""
    tokenizer = model.tokenizer
    encoded: Encoded = []
    starts: list[int] = []
    lead = _start(tokenizer)
    for prompt, text in pairs:
        tail = tokenizer(text, add_special_tokens=False)["input_ids"]
        room = max(0, most - len(tail) - len(lead))
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = lead + ids[max(0, len(ids) - room) :]
        encoded.append(ids + tail)
        starts.append(max(1, len(ids)))
    return encoded, starts


class LanguageModelling(Kind):
    """Rows {"text"}."""

    metrics: ClassVar[tuple[str, ...]] = ("bits_per_byte",)
    columns: ClassVar[dict[str, type]] = {"text": str}

    def check(self, task: FileTask, model: Candidate, split: str) -> None:
        """Look for texts and for a causal language model."""
        empty = [i for i, row in enumerate(task.rows(split)) if not row["text"]]
        if empty:
            raise TaskError(f"task {task.name!r}, split {split!r}: the text of example {empty[0]} is empty.")
        _check_causal(task, model)

    def score(self, task: FileTask, model: Candidate, split: str) -> Scores:
        """−log₂ p of the tokens of each text that are read, divided by their UTF-8 bytes; weighted by those bytes."""
        tokenizer = model.tokenizer
        lead, texts = _start(tokenizer), [row["text"] for row in task.rows(split)]
        if not tokenizer.is_fast:
            raise TaskError(f"task {task.name!r}: bits per byte need a tokenizer.json beside {model.folder}'s weights.")
        found = tokenizer(
            texts,
            add_special_tokens=False,
            truncation=True,
            max_length=task.file.max_tokens - len(lead),
            return_offsets_mapping=True,
        )
        spans = [offsets[0 if lead else 1 :] for offsets in found["offset_mapping"]]
        sizes = [
            len(text[(span[0][0] if not lead else 0) : span[-1][1]].encode()) if span else 0
            for text, span in zip(texts, spans, strict=True)
        ]
        if not all(sizes):
            raise TaskError(
                f"task {task.name!r}: the text of example {sizes.index(0)} has no token that can be predicted."
            )
        encoded = [lead + ids for ids in found["input_ids"]]
        sums, _ = _token_scores(model, encoded, [1] * len(encoded))
        bits = [-total / math.log(2) / size for total, size in zip(sums, sizes, strict=True)]
        return Scores.of(task.name, task.metric, bits, sizes)


class MultipleChoice(Kind):
    """Rows {"prompt", "choices", "answer"}."""

    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "accuracy_norm")
    columns: ClassVar[dict[str, type]] = {"prompt": str, "choices": list, "answer": int}

    def check(self, task: FileTask, model: Candidate, split: str) -> None:
        """Look at the choices and for a causal language model."""
        for i, row in enumerate(task.rows(split)):
            choices = row["choices"]
            if len(choices) < 2 or not all(isinstance(choice, str) and choice for choice in choices):
                raise TaskError(
                    f"task {task.name!r}, split {split!r}: example {i} needs two choices or more, as texts."
                )
            if not 0 <= row["answer"] < len(choices):
                raise TaskError(
                    f"task {task.name!r}, split {split!r}: the answer of example {i} is {row['answer']}, outside of "
                    "its "
                    f"{len(choices)} choices."
                )
        _check_causal(task, model)

    def score(self, task: FileTask, model: Candidate, split: str) -> Scores:
        """1 where the answer's log-probability after the prompt is the highest (`accuracy_norm`: per byte), else 0."""
        rows = task.rows(split)
        pairs = [(row["prompt"], choice) for row in rows for choice in row["choices"]]
        sums, _ = _token_scores(model, *_continuations(model, pairs, task.file.max_tokens))
        if task.metric == "accuracy_norm":
            sums = [total / len(text.encode()) for total, (_, text) in zip(sums, pairs, strict=True)]
        values: list[float] = []
        at = 0
        for row in rows:
            own = sums[at : at + len(row["choices"])]
            at += len(own)
            values.append(float(max(range(len(own)), key=own.__getitem__) == row["answer"]))
        return Scores.of(task.name, task.metric, values)


class ExactMatch(Kind):
    """Rows {"prompt", "answer"}."""

    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    columns: ClassVar[dict[str, type]] = {"prompt": str, "answer": str}

    def check(self, task: FileTask, model: Candidate, split: str) -> None:
        """Look at the answers and for a causal language model."""
        empty = [i for i, row in enumerate(task.rows(split)) if not row["answer"]]
        if empty:
            raise TaskError(f"task {task.name!r}, split {split!r}: the answer of example {empty[0]} is empty.")
        _check_causal(task, model)

    def score(self, task: FileTask, model: Candidate, split: str) -> Scores:
        """1 where greedy decoding after the prompt begins with the answer's tokens, else 0.

        It does so if and only if each of them is the likeliest after those before it, which one pass shows.
        """
        pairs = [(row["prompt"], row["answer"]) for row in task.rows(split)]
        _, matches = _token_scores(model, *_continuations(model, pairs, task.file.max_tokens))
        return Scores.of(task.name, task.metric, [float(match) for match in matches])
