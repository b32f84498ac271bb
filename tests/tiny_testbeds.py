"""A testbed that is made in a second: a tiny random encoder, experts beside it, heads fitted to the experts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WORDS = [f"w{i}" for i in range(40)]
TASKS = ("animals", "colours")
CLASSES = 4


def write_tokenizer(folder: Path) -> None:
    """One token a word, and a start token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[BOS]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]")
    fast.save_pretrained(folder)


def write_encoder(folder: Path, architecture: str = "BertModel", **changes: Any) -> Path:
    """A tiny random BERT."""
    import transformers

    from plait.evaluation._compute import quiet

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=43,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        **changes,
    )
    with quiet():
        getattr(transformers, architecture)(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_decoder(folder: Path) -> Path:
    """A tiny random Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from plait.evaluation._compute import quiet

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=43,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=0,
    )
    with quiet():
        LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_vision(folder: Path) -> Path:
    """A tiny random ViT for images of 8 × 8 pixels."""
    from transformers import ViTConfig, ViTModel

    from plait.evaluation._compute import quiet

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=1,
    )
    with quiet():
        ViTModel(config).save_pretrained(folder)
    return folder


def text_rows(seed: int, count: int) -> list[dict[str, Any]]:
    """Texts whose words come from a quarter of the vocabulary that belongs to the label, mostly."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(WORDS), generator=torch.Generator().manual_seed(seed // 100)).tolist()
    rows = []
    for i in range(count):
        label = i % CLASSES
        picks = torch.randint(0, 10, (6,), generator=rng).tolist()
        noise = torch.randint(0, len(WORDS), (2,), generator=rng).tolist()
        words = [WORDS[order[label * 10 + p]] for p in picks[:4]] + [WORDS[n] for n in noise]
        rows.append({"text": " ".join(words), "label": label})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_task(folder: Path, splits: dict[str, list[dict[str, Any]]], **content: Any) -> Path:
    """A task.json with its splits."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        write_rows(folder / f"{split}.jsonl", rows)
    task = {"format": 1, "name": folder.name, "splits": {split: f"{split}.jsonl" for split in splits}, **content}
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    return folder / "task.json"


def fit_head(model: Path, rows: list[dict[str, Any]], path: Path) -> None:
    """Ridge regression on the model's features."""
    from plait.evaluation._candidate import Candidate
    from plait.evaluation._compute import all_features, encode

    candidate = Candidate(model)
    texts = encode(candidate.tokenizer, [row["text"] for row in rows], 16)
    features = all_features(candidate.loaded("features"), texts).double()
    targets = torch.nn.functional.one_hot(torch.tensor([row["label"] for row in rows])).double()
    centre, mean = features.mean(0), targets.mean(0)
    left = (features - centre).T @ (features - centre) + torch.eye(features.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(left, (features - centre).T @ (targets - mean)).T
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"weight": weight.float().contiguous(), "bias": (mean - weight @ centre).float()}, path)


def write_testbed(home: Path, seed: int = 0) -> Path:
    """A whole testbed: two tasks, a base, two experts, a retained task."""
    base = write_encoder(home / "base")
    state = load_file(base / "model.safetensors")
    experts = {}
    for number, task in enumerate(TASKS):
        folder = home / "experts" / task
        shutil.copytree(base, folder)
        rng = torch.Generator().manual_seed(10 * seed + number + 1)
        moved = {
            name: value + 0.2 * torch.randn(value.shape, generator=rng) if name.startswith("encoder.") else value
            for name, value in state.items()
        }
        save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
        first = 1000 * seed + 100 * number
        splits = {split: text_rows(first + i, 80) for i, split in enumerate(("train", "validation", "test"))}
        head = f"../../heads/{task}.safetensors"
        write_task(
            home / "tasks" / task,
            splits,
            kind="classification",
            labels=[f"{task}{i}" for i in range(CLASSES)],
            head=head,
            max_tokens=16,
        )
        fit_head(folder, splits["train"], home / "heads" / f"{task}.safetensors")
        experts[task] = {"model": f"experts/{task}", "base": "base"}
    pairs = [{"query": row["text"], "document": " ".join(row["text"].split()[:3])} for row in text_rows(900, 30)]
    write_task(home / "tasks" / "pairs", {"validation": pairs, "test": pairs[::-1]}, kind="retrieval", max_tokens=16)
    manifest = {
        "format": 1,
        "name": "tiny",
        "size": "quick",
        "seed": seed,
        "description": "A tiny random encoder.",
        "bases": {"base": "base"},
        "experts": experts,
        "tasks": {task: f"tasks/{task}/task.json" for task in TASKS},
        "retained": {"pairs": "tasks/pairs/task.json"},
        "probes": dict.fromkeys(TASKS, 0.5),
        "cost": {"cpu_seconds": 1.0},
        "sources": {},
    }
    (home / "testbed.json").write_text(json.dumps(manifest), encoding="utf-8")
    return home
