"""Glyphs as they are seen: moved, turned, slanted, thicker or thinner, with noise; many at a time, by one generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["GROUNDS", "Look", "seen"]

GROUNDS = ("dark", "light", "stripes", "checks", "slope", "outline", "holes")


@dataclass(frozen=True)
class Look:
    """How far pictures are changed; every number is the half-width of a uniform distribution around nothing.

    Attributes:
        turn: degrees.
        slant: horizontal shear.
        scale: of the logarithm of the size, of each side on its own.
        shift: of the picture's side.
        weight: how many pixels strokes are thicker or thinner, about.
        noise: standard deviation of the noise at most, of the range from black to white.
        ground: one of `GROUNDS`, or `any` of them: what the ink stands on.
    """

    turn: float = 10.0
    slant: float = 0.15
    scale: float = 0.15
    shift: float = 0.07
    weight: float = 0.6
    noise: float = 0.15
    ground: str = "dark"


def seen(
    pictures: Tensor,
    size: int,
    look: Look,
    generator: torch.Generator,
    *,
    angles: Tensor | None = None,
    places: Tensor | None = None,
    zoom: float = 1.0,
) -> Tensor:
    """Pictures as a camera might see them ["n size size"], uint8.

    Args:
        pictures: uint8 ["n side side"], white ink on black.
        size: pixels of the result's sides.
        look: how much they are changed.
        generator: all chance comes from it.
        angles: degrees ["n"] by which each is turned beside that.
        places: where each picture's middle goes ["n 2"], from −1 to 1; the middle by default.
        zoom: size of the picture in the result, 1 for all of it.
    """
    n = len(pictures)

    def chance(width: float, *shape: int) -> Tensor:
        return width * (2 * torch.rand(n, *shape, generator=generator) - 1)

    turn = torch.deg2rad(chance(look.turn) + (0 if angles is None else angles))
    slant = chance(look.slant)
    stretch = torch.exp(chance(look.scale, 2)) * zoom
    middle = 2 * chance(look.shift, 2) + (0 if places is None else places)
    cos, sin = turn.cos(), turn.sin()
    # from a place in the result to a place in the picture: back to the middle, turned back, unslanted, unstretched
    across = torch.stack([cos + slant * sin, -sin + slant * cos], 1) / stretch[:, :1]
    down = torch.stack([sin, cos], 1) / stretch[:, 1:]
    matrix = torch.stack([across, down], 1)  # n × 2 × 2
    moved = -(matrix @ middle.unsqueeze(2))
    grid = nn.functional.affine_grid(torch.cat([matrix, moved], 2), [n, 1, size, size], align_corners=False)
    ink = pictures.float().div(255).unsqueeze(1)
    weight = chance(look.weight).view(n, 1, 1, 1)
    # strokes grow towards the brightest neighbour and shrink towards the darkest one
    grown = nn.functional.max_pool2d(ink, 3, 1, 1)
    shrunk = -nn.functional.max_pool2d(-ink, 3, 1, 1)
    ink = ink + weight.clamp(min=0) * (grown - ink) + weight.clamp(max=0).abs() * (shrunk - ink)
    found = nn.functional.grid_sample(ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]
    if look.ground == "any":
        kinds = torch.randint(len(GROUNDS), (n,), generator=generator)
        drawn = torch.zeros_like(found)
        for k, ground in enumerate(GROUNDS):
            if (own := kinds == k).any():
                drawn[own] = _on(ground, found[own], generator)
        found = drawn
    else:
        found = _on(look.ground, found, generator)
    contrast = 1 - 0.4 * torch.rand(n, 1, 1, generator=generator)
    noise = look.noise * torch.rand(n, 1, 1, generator=generator) * torch.randn(n, size, size, generator=generator)
    return ((found * contrast + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def _on(ground: str, ink: Tensor, generator: torch.Generator) -> Tensor:
    """Ink ["n size size"] on a ground, from 0 to 1."""
    n, size = len(ink), ink.shape[-1]

    def uniform() -> Tensor:
        return torch.rand(n, 1, 1, generator=generator)

    rows, columns = torch.arange(size).view(1, -1, 1), torch.arange(size).view(1, 1, -1)
    match ground:
        case "light":
            return 1 - ink
        case "stripes":  # bright ink on slanting grey stripes, four to six pixels apart
            below = 0.3 + 0.3 * torch.sin((rows + columns) * (1.0 + 0.5 * uniform()) + 6.3 * uniform())
            return ink + (1 - ink) * below
        case "checks":  # dark ink on squares of three pixels
            above = (rows + (3 * uniform()).floor()).div(3).floor() + (columns + (3 * uniform()).floor()).div(3).floor()
            return (1 - ink) * (0.55 + 0.45 * (above % 2))
        case "slope":  # bright ink, on a ground that is brighter towards the right or towards the bottom
            across = uniform().round()
            return ink + (1 - ink) * 0.7 * (across * columns + (1 - across) * rows) / size
        case "outline":  # the edge of the ink alone
            thick = ink.unsqueeze(1)
            inner = -nn.functional.max_pool2d(-thick, 3, 1, 1)
            return (nn.functional.max_pool2d(thick, 3, 1, 1) - inner)[:, 0].clamp(0, 1)
        case "holes":  # ink that shows through a third of the pixels only
            return (ink + 0.25) / 1.25 * (torch.rand(ink.shape, generator=generator) < 0.5)
        case _:
            return ink
