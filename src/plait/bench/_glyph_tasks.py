"""What is asked of a picture of a glyph: which letter, which way up, which style, how many; by unseen font files."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from plait.bench._fonts import Face, faces
from plait.bench._pictures import Look
from plait.bench._split import split_of

__all__ = ["CYRILLIC", "GLYPH_TASKS", "TURNS", "Glyph", "GlyphTask", "pretraining"]

TURNS = 8  # ways up
_MARKS = "grave acute circumflex tilde diaeresis caron macron breve dot_above ring_above ogonek cedilla".split()
_MARKED = range(0xC0, 0x250)  # Latin letters with marks
_SYLLABLES = 0xAC00  # the first of the Hangul syllables
_BLOCKS = {
    "Bengali": 0x980,
    "Gujarati": 0xA80,
    "Gurmukhi": 0xA00,
    "Kannada": 0xC80,
    "Khmer": 0x1780,
    "Lao": 0xE80,
    "Malayalam": 0xD00,
    "Myanmar": 0x1000,
    "Oriya": 0xB00,
    "Sinhala": 0xD80,
    "Tamil": 0xB80,
    "Telugu": 0xC00,
}


class Glyph(NamedTuple):
    """A character of a face, and its class."""

    split: str
    face: Face
    character: str
    label: str


@dataclass(frozen=True)
class GlyphTask:
    """A task of pictures.

    Attributes:
        glyphs: yields characters of faces with their classes; nothing for `mnist`, whose pictures are there.
        about: what is asked, and how the splits are divided.
        look: how the pictures are changed, and what they stand on: each task has a ground that the base did not see.
        kind: `glyph`, one in the middle; `turned`, by a multiple of 45 degrees, which is asked; `many`, how many.
    """

    glyphs: Callable[[], Iterator[Glyph]]
    about: str
    look: Look
    kind: str = "glyph"


def _letters(characters: Sequence[str], label: Callable[[Face, str], str]) -> Iterator[Glyph]:
    for face in faces()["letters"]:
        for character in characters:
            yield Glyph(face.split, face, character, label(face, character))


def _latin() -> Iterator[Glyph]:
    return _letters(string.ascii_letters, lambda _, letter: letter.lower())


def _greek() -> Iterator[Glyph]:
    lower = [chr(code) for code in range(ord("α"), ord("ω") + 1) if chr(code) != "ς"]
    return _letters([*lower, *(letter.upper() for letter in lower)], lambda _, letter: letter.lower())


def _upright() -> Iterator[Glyph]:
    """Letters that are no other letter, nor themselves, when they are turned."""
    return _letters("aefghkrtyABDEFGJKLPQRTY", lambda _face, _letter: "")


def _styles() -> Iterator[Glyph]:
    return _letters(string.ascii_letters, lambda face, _: face.style)


def _any() -> Iterator[Glyph]:
    return _letters(string.ascii_letters, lambda _face, _letter: "")


def _accents() -> Iterator[Glyph]:
    marks = {}
    for letter in map(chr, _MARKED):
        parts = unicodedata.normalize("NFD", letter)
        if len(parts) == 2 and parts[0] in string.ascii_letters:
            name = unicodedata.name(parts[1]).removeprefix("COMBINING ").removesuffix(" ACCENT")
            marks[letter] = name.lower().replace(" ", "_")
    return _letters([letter for letter, mark in marks.items() if mark in _MARKS], lambda _, letter: marks[letter])


def _own_file(face: Face, split: str) -> bool:
    """Whether a split has a script's face: test has its bold file, the others its regular one."""
    return (face.style == "bold") == (split == "test")


def _scripts() -> Iterator[Glyph]:
    for script, first in _BLOCKS.items():
        for character in map(chr, range(first, first + 0x80)):
            split = split_of(f"letter/{character}")
            for face in faces()[script]:
                if unicodedata.category(character) == "Lo" and _own_file(face, split):
                    yield Glyph(split, face, character, script)


def _hangul() -> Iterator[Glyph]:
    """Syllables by their first consonant: code = (first · 21 + vowel) · 28 + last."""
    for first in (0, 2, 3, 5, 6, 7, 9, 11, 12, 14, 15, 16, 17, 18):  # without the doubled ones
        for vowel in range(21):
            for last in (0, 4, 8, 16):
                character = chr(_SYLLABLES + (first * 21 + vowel) * 28 + last)
                split = split_of(f"syllable/{character}")
                for face in faces()["KR"]:
                    if _own_file(face, split):
                        yield Glyph(split, face, character, chr(0x1100 + first))


_BY_TYPEFACE, _BY_LETTER = "split by typeface", "split by character, test in an unseen font file"
GLYPH_TASKS = {
    "letters": GlyphTask(_latin, f"a Latin letter of either case → which; {_BY_TYPEFACE}", Look(ground="holes")),
    "greek": GlyphTask(_greek, f"a Greek letter of either case → which; {_BY_TYPEFACE}", Look(ground="light")),
    "orientation": GlyphTask(
        _upright, f"a letter → how far it is turned, in steps of 45°; {_BY_TYPEFACE}", Look(ground="stripes"), "turned"
    ),
    "style": GlyphTask(
        _styles,
        f"a letter → regular, bold, italic or both; {_BY_TYPEFACE}",
        Look(turn=2.0, slant=0.02, weight=0.1, ground="checks"),
    ),
    "count": GlyphTask(_any, f"small letters → how many, one to six; {_BY_TYPEFACE}", Look(ground="slope"), "many"),
    "accents": GlyphTask(_accents, f"a Latin letter with a mark → which mark; {_BY_TYPEFACE}", Look()),
    "scripts": GlyphTask(_scripts, f"a letter → its script, of twelve; {_BY_LETTER}", Look(ground="outline")),
    "hangul": GlyphTask(
        _hangul, f"a syllable → its first consonant; {_BY_LETTER}", Look(turn=5.0, slant=0.05, ground="light")
    ),
    "mnist": GlyphTask(
        lambda: iter(()),
        "a handwritten digit of MNIST → which; split by picture",
        Look(turn=3.0, slant=0.02, scale=0.02, shift=0.02, weight=0.0, noise=0.05),
    ),
}

CYRILLIC = [chr(code) for code in range(ord("а"), ord("я") + 1)]
_PRETRAINED = {
    "Armenian": range(0x561, 0x587),
    "Georgian": range(0x10D0, 0x10F1),
    "Hebrew": [code for code in range(0x5D0, 0x5EB) if code not in (0x5DA, 0x5DD, 0x5DF, 0x5E3, 0x5E5)],  # no finals
    "Arabic": [code for code in range(0x627, 0x64B) if code not in range(0x63B, 0x641) and code not in (0x629, 0x649)],
    "Thai": range(0xE01, 0xE2F),
    "Ethiopic": range(0x1208, 0x1358, 8),  # with the first vowel
    # Hiragana, neither small nor with marks
    "JP": [
        ord(letter)
        for letter in "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわん"
    ],
}


def pretraining() -> Iterator[Glyph]:
    """Letters of scripts that no task asks for, each a class; Cyrillic ones in the typefaces of every split."""
    yield from _letters([*CYRILLIC, *(letter.upper() for letter in CYRILLIC)], lambda _, letter: letter.lower())
    for script, codes in _PRETRAINED.items():
        for face in faces()[script]:
            for code in codes:
                yield Glyph("train", face, chr(code), chr(code))
