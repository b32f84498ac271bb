import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench_recipes import TINY_DECODER, needs_words
from plait.bench._domains import _DOCSTRING, DOMAINS, load_domain
from plait.bench.testbeds import build
from plait.bench.testbeds.decoder import next_words
from plait.errors import PlaitError

pytestmark = needs_words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    cache = tmp_path_factory.mktemp("cache")
    yield build("decoder", "tiny", 0, cache, lambda _: None, TINY_DECODER)
    shutil.rmtree(cache)


def _rows(folder: Path, task: str, split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / f"tasks/{task}/{split}.jsonl").read_text().split("\n") if line]


def test_experts_are_causal_models_with_the_bases_embeddings(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = load_file(folder / "base/model.safetensors")
    for name in TINY_DECODER.domains:
        expert = load_file(folder / f"experts/{name}/model.safetensors")
        assert expert.keys() == base.keys()
        changed = {key for key in base if not expert[key].equal(base[key])}
        assert changed and "model.embed_tokens.weight" not in changed
        model = AutoModelForCausalLM.from_pretrained(folder / f"experts/{name}")
        tokenizer = AutoTokenizer.from_pretrained(folder / f"experts/{name}")
        ids = tokenizer("def f(x):\n    return x", add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == "def f(x):\n    return x"
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[tokenizer.bos_token_id, *ids]])).logits
        assert torch.isfinite(logits).all()


def test_tasks_and_probes_are_as_the_manifest_says(folder: Path) -> None:
    manifest = json.loads((folder / "testbed.json").read_text())
    assert set(manifest["retained"]) == {"docs", "docs_words", "python_words"}
    for name, place in {**manifest["tasks"], **manifest["retained"]}.items():
        about = json.loads((folder / place).read_text())
        assert about["name"] == name
        assert about["kind"] == ("exact_match" if name.endswith("_words") else "language_modelling")
    assert len(_rows(folder, "python", "test")) == 8 and len(_rows(folder, "python", "validation")) == 6
    for row in _rows(folder, "python_words", "test"):
        assert row["answer"].startswith(" ") and row["answer"][1:].isalpha()
        assert any((row["prompt"] + row["answer"]) in text["text"] for text in _rows(folder, "python", "test"))


@pytest.mark.parametrize("name", [name for name in DOMAINS if name != "docs"])
def test_splits_of_a_domain_share_no_piece(name: str) -> None:
    pieces = load_domain(name)
    assert sum(map(len, pieces.values())) == len({piece for part in pieces.values() for piece in part})
    assert len(pieces["train"]) > 1000 and len(pieces["validation"]) > 200 and len(pieces["test"]) > 400


def test_stems_are_in_one_split() -> None:
    pieces = load_domain("thesaurus")
    stems = [{line[:4] for piece in part for line in piece.splitlines()} for part in pieces.values()]
    assert sum(map(len, stems)) == len(set.union(*stems))


def test_an_unknown_domain_is_refused_with_a_suggestion() -> None:
    with pytest.raises(PlaitError, match="Did you mean 'python'"):
        load_domain("pyton")


def test_common_words_are_words() -> None:
    assert next_words(["of the of x1 of, a", "the of"], most=2) == {"of", "the"}


_SOURCE = '''"""Top."""
class A:
    """Of a class.

    More.
    """

    def f(self):
        # why
        r"""Raw."""
        text = """
        no docstring
        """
        return text

    def g[T](self, x: T) -> T:
        """New."""
'''


def test_docstrings_are_found_and_other_strings_are_not() -> None:
    assert _DOCSTRING.findall(_SOURCE) == ["Top.", "Of a class.\n\n    More.\n    ", "Raw.", "New."]
