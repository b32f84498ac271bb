"""Fonts inside packages: which families there are, which split each belongs to, and glyphs as small pictures."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plait.errors import MissingExtraError

__all__ = ["CANVAS", "PACKAGES", "Face", "faces", "font_files", "glyphs", "missing_fonts"]

PACKAGES = {
    "pretix_fontpackfree": "pretix-fontpack-free==1.11.2",
    "justmytype_western_core": "justmytype-western-core==0.1.0",
}
CANVAS = 40  # pixels of a glyph's picture, its margins included
_INK = 30  # pixels of a glyph's longer side, if it is not enlarged by more than _ENLARGED
_EM = 48  # pixels of the font's size when it is drawn
_ENLARGED = 1.6
_PRETIX, _WESTERN = PACKAGES
_ROOTS = {_PRETIX: "static/pretix_fontpackfree", _WESTERN: "fonts/ofl"}
_STYLES = ("regular", "bold", "italic", "bolditalic")
_TWO = _STYLES[:2]
_CASED = ("Regular", "Bold", "Italic", "BoldItalic")


@dataclass(frozen=True)
class Face:
    """One font file at one weight.

    Attributes:
        family: its typeface; a family of letters is in one split only.
        split: `train`, `validation` or `test`.
        style: `regular`, `bold`, `italic` or `bolditalic`.
        package: the package that brings it.
        place: the file, within the package's fonts.
        axes: where on a variable font's axes it is.
    """

    family: str
    split: str
    style: str
    package: str
    place: str
    axes: tuple[tuple[str, float], ...] = ()


def _static(family: str, split: str, pattern: str, styles: Sequence[str] = _STYLES) -> list[Face]:
    return [Face(family, split, style, _PRETIX, f"{pattern.format(style)}.ttf") for style in styles]


def _named(family: str, split: str, pattern: str, names: Sequence[str]) -> list[Face]:
    return [
        Face(family, split, style, _PRETIX, f"{pattern.format(name)}.ttf")
        for style, name in zip(_STYLES, names, strict=True)
    ]


def _variable(family: str, split: str, axes: str, styles: Sequence[str] = _STYLES) -> list[Face]:
    """Weights 400 and 700 of a variable font and of its italic."""
    name = family.replace(" ", "")
    found = []
    for style in styles:
        place = f"{name.lower()}/{name}{'-Italic' if 'italic' in style else ''}[{axes}].ttf"
        found.append(Face(family, split, style, _WESTERN, place, (("wght", 700.0 if "bold" in style else 400.0),)))
    return found


# Families of letters. Every split has sans and serif faces, and Greek and Cyrillic letters.
_LETTERS = [
    *_static("Roboto", "train", "Roboto_v51_{}"),
    *_static("Roboto Condensed", "train", "Roboto-Condensed_v31_{}"),
    *_static("Fira Sans", "train", "Fira-Sans_v18_{}"),
    *_static("Noto Sans", "train", "Noto-Sans_v42_{}"),
    *_static("Space Mono", "train", "Space-Mono_v17_{}"),
    *_static("Oswald", "train", "Oswald_v57_{}", _TWO),
    *_static("Montserrat", "train", "Montserrat_v31_{}"),
    *_static("Tajawal", "train", "Tajawal_v12_{}", _TWO),
    *_static("Almarai", "train", "Almarai_v19_{}", _TWO),
    *_named("Droid Serif", "train", "DroidSerif-{}-webfont", _CASED),
    *_variable("Inter", "train", "opsz,wght"),
    *_variable("Noto Serif", "train", "wdth,wght"),
    *_variable("Noto Sans Mono", "train", "wdth,wght", _TWO),
    Face("STIX Two", "train", "regular", _WESTERN, "stixtwomath/STIXTwoMath-Regular.ttf"),
    *_named("Lato", "validation", "Lato-{}", _CASED),
    *_variable("Source Serif 4", "validation", "opsz,wght"),
    *_static("Titillium Web", "validation", "Titillium-Web_v19_{}"),
    *_static("Ubuntu", "test", "Ubuntu_v21_{}"),
    *_static("Vollkorn", "test", "Vollkorn_v30_{}"),
    *_static("Poppins", "test", "Poppins_v24_{}"),
    *_variable("JetBrains Mono", "test", "wght"),
    *_named("DejaVu Sans", "test", "DejaVuSans{}-webfont", ("", "-Bold", "-Oblique", "-BoldOblique")),
]
# Scripts that have one typeface only: a file of one weight for training, another for test.
_SCRIPTS = (
    "Adlam_v27 Arabic_v33 Armenian_v47 Bengali_v33 Cherokee_v25 Ethiopic_v50 Georgian_v48 Gujarati_v27 Gurmukhi_v29 "
    "Hebrew_v50 JP_v56 Kannada_v32 Khmer_v29 KR_v39 Lao_v33 Malayalam_v29 Myanmar_v27 Oriya_v35 Sinhala_v36 "
    "Tamil_v31 Telugu_v30 Thai_v29"
).split()


def faces() -> dict[str, list[Face]]:
    """`letters`: families of letters, by split; and for each script its own two files, regular and bold."""
    found = {"letters": _LETTERS}
    for script in _SCRIPTS:
        name = script.split("_")[0]
        found[name] = _static(f"Noto Sans {name}", "train", f"Noto-Sans-{script}_{{}}", _TWO)
    return found


def missing_fonts() -> list[str]:
    """Packages that are not installed, as pip is told of them."""
    return [requirement for package, requirement in PACKAGES.items() if importlib.util.find_spec(package) is None]


@cache
def _root(package: str) -> Path:
    """Folder of a package's fonts, found without importing it.

    Raises:
        MissingExtraError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations if spec else None) or []:
        return Path(place) / _ROOTS[package]
    raise MissingExtraError(
        f"the fonts of {' and '.join(missing_fonts())} are not installed; "
        f"pip install 'plait[bench]' && pip install --no-deps {' '.join(PACKAGES.values())}."
    )


def font_files(chosen: Iterable[Face]) -> dict[Face, Path]:
    """Their files; of files with equal content the first alone.

    Raises:
        MissingExtraError: a package or a file is missing.
    """
    found: dict[Face, Path] = {}
    seen: set[tuple[str, tuple[tuple[str, float], ...]]] = set()
    for face in chosen:
        path = _root(face.package) / face.place
        if not path.is_file():
            raise MissingExtraError(f"{path} is missing; pip install --no-deps {PACKAGES[face.package]}.")
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        if (content, face.axes) not in seen:
            seen.add((content, face.axes))
            found[face] = path
    return found


def glyphs(face: Face, path: Path, characters: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
    """Pictures of those characters that a font has: white on black, `CANVAS` pixels wide and high, ink in the middle.

    What the font's table of characters lacks, and what leaves no ink, is left out.

    Raises:
        MissingExtraError: Pillow or fontTools is not installed.
    """
    try:
        from fontTools.ttLib import TTFont
        from PIL import Image, ImageDraw, ImageFont
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"glyphs need {error.name}; pip install 'plait[bench]'.") from error

    with TTFont(path, lazy=True) as table:
        known = set(table.getBestCmap() or ())
        axes = [(axis.axisTag, axis.defaultValue) for axis in table["fvar"].axes] if face.axes else []
    # layout without HarfBuzz, which not every build of Pillow has: one character needs none
    font: Any = ImageFont.truetype(str(path), _EM, layout_engine=ImageFont.Layout.BASIC)
    if face.axes:
        font.set_variation_by_axes([dict(face.axes).get(tag, default) for tag, default in axes])
    found = {}
    for character in characters:
        if not all(ord(part) in known for part in character):
            continue
        canvas = Image.new("L", (4 * _EM, 3 * _EM))
        ImageDraw.Draw(canvas).text((_EM, _EM // 2), character, font=font, fill=255)
        box = canvas.getbbox()
        if box is None:
            continue
        width, height = box[2] - box[0], box[3] - box[1]
        scale = min(_INK / max(width, height), _ENLARGED * _INK / _EM)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        ink = canvas.crop(box).resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR)
        picture = np.zeros((CANVAS, CANVAS), np.uint8)
        top, left = (CANVAS - size[1]) // 2, (CANVAS - size[0]) // 2
        picture[top : top + size[1], left : left + size[0]] = np.asarray(ink)
        found[character] = picture
    return found
