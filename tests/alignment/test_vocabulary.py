"""Merges of models with different vocabularies, against tables made by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import plait
from alignment.speakers import TOKENS, State, family, ids_of, rows_by_hand, speaker, words, write_tokenizer
from models import read
from plait.alignment import TEMPLATES, pick_template
from plait.architectures import token_tables
from plait.errors import IncompatibleModelsError, RecipeError

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path


def recipe(home: Path, tokenizer: Any, method: str = "linear", **more: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "method": method,
        "experts": {name: str(home / name) for name in ("more", "padded")},
        "tokenizer": tokenizer,
        **more,
    }
    if method == "linear":
        content["experts"] = {"start": str(home / "base"), **content["experts"]}
    else:
        content["base"] = str(home / "base")
    return content


def merge(content: dict[str, Any], out: Path) -> State:
    plait.merge(content, out, threads=1)
    return read(out)


def numbers(home: Path) -> dict[str, dict[str, int]]:
    return {name: ids_of(home / name) for name in ("base", "more", "padded")}


SOURCES = {
    "union": (TOKENS + 3, TOKENS + 3),
    "start": (TOKENS, TOKENS),
    "base": (TOKENS, TOKENS),
    "more": (TOKENS + 3, TOKENS + 3),
    "padded": (TOKENS, 320),
}


@pytest.mark.parametrize("source", SOURCES)
def test_logits_are_those_of_a_merge_by_hand(source: str, home: Path) -> None:
    """Under every policy, on every token that is in the result."""
    states = family(home)
    out = home / "out"
    merged = merge(recipe(home, source, parameters={"weight": {"start": 1, "more": 2, "padded": 1}}), out)
    tokens, rows = SOURCES[source]
    written = ids_of(out)
    assert len(written) == tokens and json.loads((out / "config.json").read_text())["vocab_size"] == rows
    by_hand = {
        k: (states["base"][k] + 2 * states["more"][k] + states["padded"][k]) / 4
        for k in merged
        if k not in (EMBED, HEAD)
    }
    for table in (EMBED, HEAD):
        each = rows_by_hand(table, states, numbers(home), written, rows)
        by_hand[table] = (each["base"] + 2 * each["more"] + each["padded"]) / 4
    known = torch.tensor(sorted(written.values()))
    for name, wanted in by_hand.items():
        found = merged[name]
        assert found.shape == (rows, 32) if name in (EMBED, HEAD) else found.shape == wanted.shape
        pick = known if name in (EMBED, HEAD) else slice(None)
        torch.testing.assert_close(found[pick], wanted[pick], rtol=1e-5, atol=1e-6)
    text = torch.tensor([[0, 5, 17, 255, 3, 1]])
    ours, theirs = logits(merged, text), logits({**by_hand, EMBED: by_hand[EMBED].nan_to_num()}, text)
    torch.testing.assert_close(ours[..., known], theirs[..., known], rtol=1e-4, atol=1e-5)


def logits(state: State, tokens: Tensor) -> Tensor:
    """A Llama's logits, by transformers' own code."""
    transformers = pytest.importorskip("transformers")
    rows = state[EMBED].shape[0]
    config = transformers.LlamaConfig(
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").eval()
    model.load_state_dict({HEAD: state[EMBED], **state}, strict=False)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    with torch.no_grad():
        return model(tokens).logits


def test_methods_on_changes_see_aligned_tables(home: Path) -> None:
    states = family(home)
    out = home / "out"
    merged = merge(recipe(home, "union", "task_arithmetic", parameters={"lambda": 0.5}), out)
    written = ids_of(out)
    each = rows_by_hand(EMBED, states, numbers(home), written, TOKENS + 3)
    wanted = each["base"] + 0.5 * (each["more"] - each["base"] + each["padded"] - each["base"])
    torch.testing.assert_close(merged[EMBED], wanted, rtol=1e-5, atol=1e-6)
    # a token of one model only has that model's row everywhere: nothing changes it
    torch.testing.assert_close(merged[EMBED][256], states["more"][EMBED][256])


def test_tied_embeddings_stay_tied(home: Path) -> None:
    family(home, tied=True)
    merged = merge(recipe(home, "union"), home / "out")
    assert HEAD not in merged and merged[EMBED].shape[0] == TOKENS + 3


def test_tied_and_untied_models_merge(home: Path) -> None:
    base = speaker(home / "base", 0, TOKENS, words())
    speaker(
        home / "more",
        1,
        TOKENS + 3,
        words(),
        ("<a>", "<b>", "<c>"),
        tied=True,
        near={k: v for k, v in base.items() if k != HEAD},
    )
    content = {"method": "linear", "experts": {n: str(home / n) for n in ("base-model", "more")}, "tokenizer": "union"}
    content["experts"]["base-model"] = str(home / "base")  # type: ignore[index]
    merged = merge(content, home / "out")
    more = read(home / "more")[EMBED]
    torch.testing.assert_close(merged[HEAD][:TOKENS], (base[HEAD] + more[:TOKENS]) / 2)
    torch.testing.assert_close(merged[HEAD][TOKENS:], more[TOKENS:])


def test_rows_are_padded_to_a_multiple(home: Path) -> None:
    """With the mean over the tokens of the result, as each model has them."""
    family(home)
    merged = merge(recipe(home, {"source": "union", "pad_to_multiple_of": 64}), home / "out")
    assert merged[EMBED].shape[0] == 320
    mean = merged[EMBED][: TOKENS + 3].mean(0)
    torch.testing.assert_close(merged[EMBED][TOKENS + 3 :], mean.expand(61, -1), rtol=1e-4, atol=1e-6)
    cut = merge(recipe(home, {"source": "padded", "pad_to_multiple_of": 1}), home / "cut")
    assert cut[EMBED].shape[0] == TOKENS


def test_padding_of_the_source_stays(home: Path) -> None:
    """Rows without a token are the source's in every model."""
    states = family(home)
    merged = merge(recipe(home, "padded"), home / "out")
    torch.testing.assert_close(merged[EMBED][TOKENS:], states["padded"][EMBED][TOKENS:])


def test_rows_of_tokens_as_asked(home: Path) -> None:
    states = family(home)
    rules = {
        "<a>": {"from": "more", "token": "w9"},
        "<b>": {"value": "zero"},
        "<c>": {"value": "mean"},
        "w7": {"from": "padded", "scale": 0.5, "force": True},
        "<new>": {"from": "more", "id": 4},
        "w8": {"from": "more"},
    }
    merged = merge(recipe(home, {"source": "union", "tokens": rules}), home / "out")
    table, ids = merged[EMBED], ids_of(home / "out")
    base, more, padded = (states[n][EMBED] for n in ("base", "more", "padded"))
    torch.testing.assert_close(table[ids["<a>"]], (2 * more[9] + more[256]) / 3)
    torch.testing.assert_close(table[ids["<b>"]], more[257] / 3)
    torch.testing.assert_close(
        table[ids["<c>"]], (base.mean(0) + padded[:TOKENS].mean(0) + more[258]) / 3, rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(table[7], 0.5 * padded[7])
    torch.testing.assert_close(table[ids["<new>"]], more[4])
    torch.testing.assert_close(table[8], (base[8] + more[8] + padded[8]) / 3)


def test_tokens_in_another_order(home: Path) -> None:
    """The same words under other numbers: rows follow the words, and special tokens in the config follow too."""
    base = speaker(home / "base", 0, TOKENS, words())
    turned = {text: TOKENS - 1 - number for text, number in words().items()}
    other = speaker(home / "other", 1, TOKENS, turned)
    content = {"method": "linear", "experts": {"one": str(home / "base"), "two": str(home / "other")}}
    merged = merge({**content, "tokenizer": "base"}, home / "out")
    torch.testing.assert_close(merged[EMBED], (base[EMBED] + other[EMBED].flip(0)) / 2)
    merged = merge({**content, "tokenizer": "two"}, home / "turned")
    torch.testing.assert_close(merged[HEAD], (base[HEAD].flip(0) + other[HEAD]) / 2)
    config = json.loads((home / "turned" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (255, 254)


def test_equal_vocabularies_change_nothing(home: Path) -> None:
    """Nothing is wrapped, and the bits are those without the key."""
    for i, name in enumerate(("start", "more", "padded")):
        speaker(home / name, i, TOKENS, words())
    content = {"method": "linear", "experts": {n: str(home / n) for n in ("start", "more", "padded")}}
    plain = merge(content, home / "plain")
    aligned = merge({**content, "tokenizer": "union"}, home / "aligned")
    assert all(torch.equal(plain[k], aligned[k]) for k in plain)
    assert ids_of(home / "aligned") == words()


def test_the_output_loads_and_speaks(home: Path) -> None:
    """By the libraries that people use."""
    transformers = pytest.importorskip("transformers")
    family(home)
    merge(recipe(home, "union"), home / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(home / "out")
    ids = tokenizer("w5 <a> w9 <c>", add_special_tokens=False)["input_ids"]
    assert ids == [5, 256, 9, 258] and tokenizer.decode(ids).split() == ["w5", "<a>", "w9", "<c>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)


def test_nothing_depends_on_blocks_and_runs_can_be_reproduced(home: Path) -> None:
    family(home)
    content = recipe(home, {"source": "union", "pad_to_multiple_of": 128}, "ties", parameters={"scope": "tensor"})
    one = merge(content, home / "one")
    plait.merge(content, home / "two", threads=2, memory="64MiB")
    two = read(home / "two")
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not plait.reproduce(home / "one").differing
    inputs = json.loads((home / "one" / "plait.json").read_text())["inputs"]
    assert set(inputs) == {"base", "more", "padded"} and all(entry["tensors"] for entry in inputs.values())


def test_other_tokenizers_are_another_plan(home: Path) -> None:
    """A half-finished output is not continued with rows that were aligned otherwise."""
    family(home)
    content = recipe(home, "union")
    before = plait.plan(content).fingerprint()
    assert plait.plan(content).fingerprint() == before
    turned = {text: TOKENS - 1 - number for text, number in words().items()}
    write_tokenizer(home / "padded", turned)
    assert plait.plan(content).fingerprint() != before


WRONG: dict[str, tuple[Any, str]] = {
    "source": ("mroe", r"source is 'mroe', which is no model here. Did you mean 'more'"),
    "fill_from": ({"fill_from": "x"}, "fill_from names 'x'"),
    "model of a token": ({"tokens": {"<a>": {"from": "x"}}}, "taken from 'x', which is no model"),
    "token of a model": ({"tokens": {"<q>": {"from": "more"}}}, "more has no '<q>'"),
    "row of a model": ({"tokens": {"<q>": {"from": "more", "id": 999}}}, "more has no row 999"),
    "no source of a row": ({"tokens": {"<q>": {"scale": 2.0}}}, "either `from` a model or a `value`"),
    "unknown key": ({"tokens": {"<q>": {"form": "more"}}}, "unknown key 'form'. Did you mean 'from'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused(case: str, home: Path) -> None:
    family(home)
    tokenizer, message = WRONG[case]
    with pytest.raises(RecipeError, match=message):
        plait.plan(recipe(home, tokenizer))


def test_models_without_a_tokenizer_are_refused(home: Path) -> None:
    family(home)
    (home / "padded" / "tokenizer.json").unlink()
    with pytest.raises(RecipeError, match=r"padded \(.*\) has no tokenizer.json"):
        plait.plan(recipe(home, "union"))
    with pytest.raises(IncompatibleModelsError, match="the vocabularies differ"):
        plait.plan({k: v for k, v in recipe(home, "union").items() if k != "tokenizer"})


def test_a_union_of_a_union(home: Path) -> None:
    """A nested recipe has its own tokenizer, which the outer one sees."""
    family(home)
    speaker(home / "last", 3, TOKENS + 1, words(), ("<z>",))
    inner = recipe(home, "union")
    outer = {"method": "linear", "experts": {"both": inner, "last": str(home / "last")}, "tokenizer": "union"}
    merged = merge(outer, home / "out")
    ids = ids_of(home / "out")
    assert merged[EMBED].shape[0] == TOKENS + 4 and ids["<c>"] == 258 and ids["<z>"] == 259
    torch.testing.assert_close(merged[EMBED][259], read(home / "last")[EMBED][256])
    without = merge({"method": "passthrough", "experts": {"both": inner}}, home / "alone")
    assert without[EMBED].shape[0] == TOKENS + 3 and len(ids_of(home / "alone")) == TOKENS + 3


TABLES = {
    "model.embed_tokens.weight": (64, 8),
    "lm_head.weight": (64, 8),
    "lm_head.bias": (64,),
    "model.layers.0.mlp.up_proj.weight": (64, 8),
    "bert.embeddings.position_embeddings.weight": (64, 8),
    "model.norm.weight": (64,),
    "score.weight": (2, 8),
}


def test_tables_are_known_by_name_and_shape() -> None:
    assert token_tables(TABLES) == ["model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"]
    gpt2 = {"transformer.wte.weight": (9, 2), "transformer.wpe.weight": (9, 2)}
    assert token_tables(gpt2) == ["transformer.wte.weight"]
    assert token_tables({"w": (3, 3)}) == []


TALK = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
SPOKEN = {
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    "<|im_start|>assistant\n",
    "llama3": "[B]<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "[B] [INST] S\n\nQ [/INST] A[E]",
    "alpaca": "S\n\n### Instruction:\nQ\n\n### Response:\nA\n\n### Response:\n",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_say_what_their_formats_are(name: str) -> None:
    jinja2 = pytest.importorskip("jinja2")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    said = environment.from_string(TEMPLATES[name]).render(
        messages=TALK, bos_token="[B]", eos_token="[E]", add_generation_prompt=True
    )
    assert said == SPOKEN[name]


def test_templates_are_picked() -> None:
    own = {"a": "x {}", "b": "y {}", "c": "y {}", "d": None}
    assert pick_template("auto", own, "a") == "y {}"
    assert pick_template("auto", {"a": "x {}", "b": "y {}"}, "b") == "y {}"
    assert pick_template("auto", {"a": None}, "a") is None
    assert pick_template("a", own, "a") == "x {}"
    assert pick_template("{{ messages }}", own, "a") == "{{ messages }}"
    with pytest.raises(RecipeError, match="d has no chat template"):
        pick_template("d", own, "a")
    with pytest.raises(RecipeError, match="Did you mean 'chatml'"):
        pick_template("chatlm", own, "a")


def test_the_template_is_written_once(home: Path) -> None:
    family(home)
    write_tokenizer(home / "more", words(), ("<a>", "<b>", "<c>"), "own {{ messages }}")
    merge(recipe(home, "base", chat_template="more"), home / "out")
    assert (home / "out" / "chat_template.jinja").read_text() == "own {{ messages }}"
    assert "chat_template" not in json.loads((home / "out" / "tokenizer_config.json").read_text())
    content = {"method": "passthrough", "experts": {"more": str(home / "more")}, "chat_template": "chatml"}
    merge(content, home / "plain")
    assert (home / "plain" / "chat_template.jinja").read_text() == TEMPLATES["chatml"]
