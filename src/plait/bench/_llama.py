"""A small Llama: tokenizer, random weights, training on packed text, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plait.bench._model import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["load_llama", "new_llama", "new_tokenizer", "packed", "train_llama"]

START, PAD = "<s>", "<pad>"


def new_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """Byte-level byte-pair encoding, learned from texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[START, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=START, pad_token=PAD)


def new_llama(vocabulary: int, width: int, layers: int, heads: int, groups: int, seed: int) -> PreTrainedModel:
    """A Llama with tied embeddings and random weights that depend on the seed alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def load_llama(folder: Path, device: str = "cpu") -> PreTrainedModel:
    """Load a folder that `new_llama`'s model was saved to."""
    from transformers import LlamaForCausalLM

    with quiet():
        model = LlamaForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    nn.Module.to(model, device)
    return model.eval()


def packed(tokenizer: Any, texts: Sequence[str], length: int) -> Tensor:
    """Rows of `length` token ids ["rows length"]: texts one after the other, a start token before each."""
    start = tokenizer.bos_token_id
    stream = [token for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"] for token in [start, *ids]]
    rows = len(stream) // length
    return torch.tensor(stream[: rows * length]).view(rows, length)


def train_llama(
    model: PreTrainedModel,
    rows: Tensor,
    *,
    steps: int,
    batch: int,
    rate: float,
    generator: torch.Generator,
    report: Callable[[int, float], None],
    trained: Callable[[str], bool] = lambda _: True,
) -> None:
    """Train in place on the next token; the learning rate rises over a tenth of the steps and falls along a cosine.

    Args:
        model: a causal language model.
        rows: token ids ["rows length"].
        steps: optimiser steps.
        batch: rows of a step, without replacement until all have been seen.
        rate: highest learning rate.
        generator: what the order of the rows comes from.
        report: called after every step with its number, from 1, and its loss in bits per token.
        trained: which parameters change, by name.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(name))
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(chosen, lr=rate, weight_decay=0.0, betas=(0.9, 0.98))
    order: list[int] = []
    for step in range(steps):
        warmth = min((step + 1) / max(1, steps // 10), (1 + math.cos(math.pi * step / steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate * warmth
        while len(order) < batch:
            order += torch.randperm(len(rows), generator=generator).tolist()
        tokens, order = rows[order[:batch]].to(model.device), order[batch:]
        logits = model(input_ids=tokens[:, :-1]).logits  # batch × length − 1 × vocabulary
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report(step + 1, loss.item() / math.log(2))
