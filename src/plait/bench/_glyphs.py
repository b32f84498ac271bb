"""Images of characters, rendered from the fonts that packages bring."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.errors import MissingExtraError, MissingModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["SIDE", "Font", "distort", "draw", "find_fonts", "split_fonts"]

SIDE = 28  # pixels of an image
_MASTER = 48  # pixels of a glyph before it is distorted
_BODY = 32  # pixels of its longer side
_POINTS = 40
_SYMBOLS = ("LastResort", "cmex", "cmsy", "STIXSiz", "STIXNonUni")  # symbols in the places of letters
_FAMILIES = ("cm", "stix")  # whose fonts have names of one word: cmr10, cmtt10
# which split one family after the other goes to
_TURNS = ("test", "train", "validation", "train", "train", "test", "train")


@dataclass(frozen=True)
class Font:
    """A font file.

    Attributes:
        path: where it lies.
        family: its family, what must not be shared between splits.
        style: regular, bold, italic or bold italic.
        characters: code points that it has.
    """

    path: Path
    family: str
    style: str
    characters: frozenset[int] = field(repr=False)


def find_fonts(packages: Sequence[str]) -> list[Font]:
    """All fonts with letters inside packages, in a fixed order; nothing is imported from them.

    Raises:
        MissingExtraError: a library that reads fonts is missing.
        MissingModelError: a package with fonts is not installed.
    """
    try:
        from fontTools.ttLib import TTFont, TTLibError
    except ModuleNotFoundError as error:
        raise MissingExtraError("rendering glyphs needs pillow and fonttools; pip install 'plait[vision]'.") from error

    fonts = []
    for package in packages:
        for path in sorted(_files(package), key=lambda path: path.name):
            try:
                with TTFont(path, lazy=True) as font:
                    fonts.append(_described(path, font))
            except TTLibError:
                continue  # not a font, whatever its name says
    return [font for font in fonts if font is not None]


def _files(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    files = [path for place in places or [] for path in Path(place).rglob("*.[to]tf")]
    if not files:
        name = package.replace("_", "-")
        raise MissingModelError(
            f"the fonts of the package {name} are not installed; pip install 'plait[vision]' and "
            "pip install --no-deps pretix-fontpack-free matplotlib."
        )
    return files


def _described(path: Path, font: Any) -> Font | None:
    table: dict[int, str] = font.getBestCmap() or {}
    name = font["name"].getDebugName(16) or font["name"].getDebugName(1)
    if not name or path.name.startswith(_SYMBOLS):
        return None
    selection = font["OS/2"].fsSelection
    italic, bold = bool(selection & 1), bool(selection & 32)
    style = " ".join(word for word, given in (("bold", bold), ("italic", italic)) if given) or "regular"
    family = str(name).lower().split()[0]
    return Font(path, next((big for big in _FAMILIES if family.startswith(big)), family), style, frozenset(table))


def split_fonts(fonts: Iterable[Font], wide: Iterable[int]) -> dict[str, list[Font]]:
    """Divide fonts by family, such as all of Noto: split → fonts; no family is in two splits.

    Families that have the characters `wide` are divided by themselves, so that every split has some.
    """
    splits: dict[str, list[Font]] = {"train": [], "validation": [], "test": []}
    listed, wanted = list(fonts), set(wide)
    having = {font.family for font in listed if wanted <= font.characters}
    for families in (having, {font.family for font in listed} - having):
        order = sorted(families, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        places = {name: _TURNS[i % len(_TURNS)] for i, name in enumerate(order)}
        for font in listed:
            if font.family in places:
                splits[places[font.family]].append(font)
    return splits


def draw(fonts: Iterable[Font], characters: Sequence[int]) -> Iterator[tuple[Font, int, Tensor]]:
    """Yield (font, code point, image uint8 [48, 48]) of every character that a font has, white on black.

    Its longer side is 32 pixels long, and it stands in the middle.
    """
    import torch

    try:
        from PIL import Image, ImageDraw, ImageFont
    except ModuleNotFoundError as error:
        raise MissingExtraError("rendering glyphs needs pillow; pip install 'plait[vision]'.") from error

    for font in fonts:
        wanted = [code for code in characters if code in font.characters]
        if not wanted:
            continue
        face = ImageFont.truetype(str(font.path), _POINTS)
        for code in wanted:
            left, top, right, bottom = (round(edge) for edge in face.getbbox(chr(code)))
            if right - left < 2 or bottom - top < 2:
                continue  # an empty glyph
            glyph = Image.new("L", (right - left, bottom - top), 0)
            ImageDraw.Draw(glyph).text((-left, -top), chr(code), font=face, fill=255)
            ratio = _BODY / max(glyph.size)
            width, height = (max(2, round(side * ratio)) for side in glyph.size)
            master = Image.new("L", (_MASTER, _MASTER), 0)
            scaled = glyph.resize((width, height), Image.Resampling.BILINEAR)
            master.paste(scaled, ((_MASTER - width) // 2, (_MASTER - height) // 2))
            pixels = torch.frombuffer(bytearray(master.tobytes()), dtype=torch.uint8)
            if pixels.any():
                yield font, code, pixels.view(_MASTER, _MASTER)


def distort(masters: Tensor, generator: torch.Generator, turns: Tensor | None = None) -> Tensor:
    """Turn, shear, stretch and shift glyphs a little and add noise.

    Args:
        masters: glyphs, uint8 ["n 48 48"].
        generator: what the distortion comes from.
        turns: quarter turns of each, beside the small ones ["n"].

    Returns:
        Images, uint8 ["n 28 28"].
    """
    import math

    import torch
    from torch.nn.functional import affine_grid, grid_sample

    count = len(masters)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle = uniform(-0.25, 0.25)
    if turns is not None:
        angle = angle + turns * (math.pi / 2)
    wide, high, shear = uniform(0.75, 1.1), uniform(0.75, 1.1), uniform(-0.2, 0.2)
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack(
        [
            torch.stack([cos * wide, -sin * high + shear, uniform(-0.12, 0.12)], 1),
            torch.stack([sin * wide, cos * high, uniform(-0.12, 0.12)], 1),
        ],
        1,
    )  # n × 2 × 3
    grid = affine_grid(matrix, [count, 1, SIDE, SIDE], align_corners=False)
    images = grid_sample(masters.float().unsqueeze(1), grid, align_corners=False).squeeze(1)
    noise = torch.randn(images.shape, generator=generator) * uniform(0, 30).view(-1, 1, 1)
    return (images + noise).clamp(0, 255).to(torch.uint8)
