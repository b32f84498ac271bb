"""Each scorer against a plain computation of the same thing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from plait.evaluation import Candidate, ScoreCache, evaluate, load_task
from tiny_testbeds import TASKS, WORDS, text_rows, write_encoder, write_task


def _load(model: Path, loader: str) -> tuple[Any, Any]:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    return getattr(transformers, loader).from_pretrained(model, dtype=torch.float32).eval(), tokenizer


@torch.no_grad()
def test_classification_with_a_head_equals_one_text_at_a_time(testbed: Path) -> None:
    task = load_task(testbed / "tasks" / TASKS[0])
    expert = testbed / "experts" / TASKS[0]
    found = evaluate(expert, [task])[TASKS[0]]
    model, tokenizer = _load(expert, "AutoModel")
    head = load_file(testbed / "heads" / f"{TASKS[0]}.safetensors")
    wanted = []
    for row in task.rows("test"):
        states = model(**tokenizer(row["text"], return_tensors="pt")).last_hidden_state[0].mean(0)
        logits = head["weight"] @ (4 * states / states.norm()) + head["bias"]
        wanted.append(float(logits.argmax() == row["label"]))
    assert found.values.tolist() == wanted
    assert found.value == np.mean(wanted) > 0.5
    assert evaluate(testbed / "base", [task])[TASKS[0]].value < found.value


@torch.no_grad()
def test_classification_with_the_models_own_classifier(tmp_path: Path) -> None:
    model = write_encoder(tmp_path / "model", "BertForSequenceClassification", num_labels=4)
    task = load_task(
        write_task(tmp_path / "task", {"test": text_rows(0, 20)}, kind="classification", labels=["a", "b", "c", "d"])
    )
    found = evaluate(model, [task])["task"]
    network, tokenizer = _load(model, "AutoModelForSequenceClassification")
    for row, value in zip(task.rows("test"), found.values, strict=True):
        logits = network(**tokenizer(row["text"], return_tensors="pt")).logits[0]
        assert value == float(logits.argmax() == row["label"])


@torch.no_grad()
def test_images_with_a_head(vision: Path, tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 8, 8), generator=rng, dtype=torch.uint8)
    labels = torch.arange(12) % 3
    folder = tmp_path / "glyphs"
    folder.mkdir()
    save_file({"images": images, "labels": labels}, folder / "test.safetensors")
    head = {"weight": torch.randn(3, 16, generator=rng), "bias": torch.randn(3, generator=rng)}
    save_file(head, folder / "head.safetensors")
    path = write_task(folder, {}, kind="image_classification", labels=list("abc"), head="head.safetensors")
    path.write_text(path.read_text().replace('"splits": {}', '"splits": {"test": "test.safetensors"}'))
    found = evaluate(vision, [load_task(path)])["glyphs"]
    import transformers

    model = transformers.AutoModel.from_pretrained(vision).eval()
    for image, label, value in zip(images, labels, found.values, strict=True):
        states = model(pixel_values=(image.float() / 127.5 - 1)[None, None]).last_hidden_state[0].mean(0)
        logits = head["weight"] @ (4 * states / states.norm()) + head["bias"]
        assert value == float(logits.argmax() == label)


@torch.no_grad()
def _log_probabilities(model: Any, tokenizer: Any, prompt: str, text: str) -> tuple[float, bool]:
    lead = [2, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    tail = tokenizer(text, add_special_tokens=False)["input_ids"]
    logits = model(torch.tensor([lead + tail])).logits[0].log_softmax(-1)
    own = [logits[len(lead) + i - 1] for i in range(len(tail))]
    total = sum(float(row[token]) for row, token in zip(own, tail, strict=True))
    return total, all(int(row.argmax()) == token for row, token in zip(own, tail, strict=True))


def test_bits_per_byte(decoder: Path, tmp_path: Path) -> None:
    texts = [" ".join(WORDS[: 2 + i]) for i in range(6)]
    rows = [{"text": text} for text in texts]
    task = load_task(write_task(tmp_path / "lm", {"test": rows}, kind="language_modelling", max_tokens=32))
    found = evaluate(decoder, [task])["lm"]
    model, tokenizer = _load(decoder, "AutoModelForCausalLM")
    bits = [-_log_probabilities(model, tokenizer, "", text)[0] / math.log(2) for text in texts]
    assert not found.higher_is_better
    np.testing.assert_allclose(found.values, [b / len(t) for b, t in zip(bits, texts, strict=True)], rtol=1e-5)
    np.testing.assert_allclose(found.value, sum(bits) / sum(len(t) for t in texts), rtol=1e-5)


def test_bits_per_byte_count_only_what_is_read(decoder: Path, tmp_path: Path) -> None:
    long, short = " ".join(WORDS[:30]), " ".join(WORDS[:7])
    tasks = [
        load_task(write_task(tmp_path / name, {"test": [{"text": text}]}, kind="language_modelling", max_tokens=8))
        for name, text in (("long", long), ("short", short))
    ]
    found = evaluate(decoder, tasks)
    assert found["long"].value == found["short"].value
    assert found["long"].weights is not None and found["long"].weights.tolist() == [len(short)]


def test_multiple_choice_and_exact_match(decoder: Path, tmp_path: Path) -> None:
    model, tokenizer = _load(decoder, "AutoModelForCausalLM")
    choices = [WORDS[i] + " " + WORDS[i + 1] for i in range(0, 8, 2)]
    prompts = [" ".join(WORDS[i : i + 3]) for i in range(8)]
    questions = [{"prompt": p, "choices": choices, "answer": i % 4} for i, p in enumerate(prompts)]
    likeliest = []
    for prompt in prompts:
        ids = torch.tensor([[2, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
        likeliest.append(tokenizer.decode([int(model(ids).logits[0, -1].argmax())]))
    answers = [{"prompt": p, "answer": likeliest[i] if i % 2 else WORDS[0]} for i, p in enumerate(prompts)]
    tasks = [
        load_task(write_task(tmp_path / "choice", {"test": questions}, kind="multiple_choice")),
        load_task(write_task(tmp_path / "exact", {"test": answers}, kind="exact_match")),
    ]
    found = evaluate(decoder, tasks)
    best = [max(range(4), key=lambda i: _log_probabilities(model, tokenizer, p, choices[i])[0]) for p in prompts]
    assert found["choice"].values.tolist() == [float(b == i % 4) for i, b in enumerate(best)]
    wanted = [_log_probabilities(model, tokenizer, row["prompt"], row["answer"])[1] for row in answers]
    assert found["exact"].values.tolist() == [float(w) for w in wanted]
    assert all(wanted[1::2])


@pytest.mark.parametrize("metric", ["accuracy", "reciprocal_rank"])
def test_retrieval(encoder: Path, tmp_path: Path, metric: str) -> None:
    rows = [{"query": r["text"], "document": " ".join(r["text"].split()[:4])} for r in text_rows(5, 12)]
    task = load_task(write_task(tmp_path / "pairs", {"test": rows}, kind="retrieval", metric=metric))
    found = evaluate(encoder, [task])["pairs"]
    model, tokenizer = _load(encoder, "AutoModel")

    @torch.no_grad()
    def feature(text: str) -> Any:
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        return states / states.norm()

    documents = torch.stack([feature(row["document"]) for row in rows])
    for i, row in enumerate(rows):
        rank = int((documents @ feature(row["query"]) > documents[i] @ feature(row["query"]) + 1e-6).sum()) + 1
        assert found.values[i] == (float(rank == 1) if metric == "accuracy" else 1 / rank)


def test_scores_are_kept_by_content(testbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task(testbed / "tasks" / TASKS[0])
    cache = ScoreCache(tmp_path / "scores")
    first = evaluate(testbed / "base", [task], cache=cache)[TASKS[0]]
    told: list[str] = []
    again = evaluate(testbed / "base", [task], cache=cache, progress=told.append)[TASKS[0]]
    assert not told and again.values.tolist() == first.values.tolist()
    evaluate(testbed / "base", [task], "validation", cache=cache, progress=told.append)
    evaluate(testbed / "base", [task.limited(7)], cache=cache, progress=told.append)
    evaluate(testbed / "experts" / TASKS[0], [task], cache=cache, progress=told.append)
    assert len(told) == 3
    for entry in (tmp_path / "scores").rglob("*.json"):
        entry.write_text("{")  # damaged: computed again, not trusted
    evaluate(testbed / "base", [task], cache=cache, progress=told.append)
    assert len(told) == 4


def test_a_card_changes_no_digest_and_a_weight_does(testbed: Path, tmp_path: Path) -> None:
    import shutil

    model = shutil.copytree(testbed / "base", tmp_path / "model")
    before = Candidate(model).digest
    (model / "README.md").write_text("new")
    assert Candidate(model).digest == before == Candidate(testbed / "base").digest
    state = load_file(model / "model.safetensors")
    state["encoder.layer.0.output.dense.bias"][0] += 1
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    assert Candidate(model).digest != before


def test_a_limit_draws_examples_once(testbed: Path) -> None:
    task = load_task(testbed / "tasks" / TASKS[0], limit=8)
    drawn = task.chosen(80)
    assert drawn == sorted(set(drawn)) and len(drawn) == 8 and task.chosen(5) == [0, 1, 2, 3, 4]
    assert {i % 4 for i in drawn} != {0}  # labels that take turns do not all become one
    assert task.limited(8).chosen(80) == drawn
    assert len(evaluate(testbed / "base", [task])[TASKS[0]].values) == 8
