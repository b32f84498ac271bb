"""The C code of summaries: what a survey counts and adds up over tiles of values."""

from __future__ import annotations

from plait.kernels._graph import Untraceable

__all__ = [
    "BINS",
    "LANES",
    "SUMS",
    "TABLES",
    "TILE",
    "WINDOWS",
    "close",
    "collect",
    "collect_sums",
    "key_of",
    "prepare",
    "shift_of",
    "wide",
]

#: elements whose intermediate values are kept at once
TILE = 2048
#: lanes of a sum, see `plait.tensors.sums`
LANES = 512
#: values of which all pairs are summed in one loop
_GROUP = 4
#: copies of a large histogram, so that equal neighbours do not wait for each other
TABLES = 4
#: sums in float64
SUMS = ("dot", "segment_sums")
#: bins of each large histogram
BINS = {"count_coarse": 1 << 16, "count_upper": 1 << 16}
#: counts inside a few of those bins, and of what lies above them: the width of one bin
WINDOWS = {"count_fine": 1 << 15, "count_lower": 1 << 16, "window_magnitudes": 1 << 15, "window_numbers": 1 << 16}
_WIDE = ("window_magnitudes", "window_numbers")
_SHIFT = {"count_coarse": 15, "count_fine": 15, "window_magnitudes": 15}
_SHIFT |= {"count_upper": 16, "count_lower": 16, "window_numbers": 16}


def shift_of(kind: str) -> int:
    """Bits of what is counted that lie below a bin of the coarse counts."""
    return _SHIFT[kind]


def wide(kind: str) -> bool:
    """Whether a window's width is a number of its own, after that of its first bin."""
    return kind in _WIDE


def key_of(kind: str, value: str) -> str:
    """An unsigned integer that grows with what is counted: the magnitude, or the signed number."""
    if kind in ("count_coarse", "count_fine", "window_magnitudes"):
        return f"(as_bits({value}) & 0x7fffffffu)"
    return f"((uint32_t)ordered({value}) ^ 0x80000000u)"


def prepare(number: int, kind: str, parameter: int | None) -> list[str]:
    """Declarations before the loop."""
    lines = []
    if kind in ("count_coarse", "count_upper"):
        lines.append(f"    uint32_t *h{number} = (uint32_t *)sinks[{number}];")
    elif kind in WINDOWS:
        shift = _SHIFT[kind]
        lines.append(f"    int64_t *above{number} = (int64_t *)sinks[{number}];")
        lines.append(f"    uint32_t *h{number} = (uint32_t *)(above{number} + 1);")
        lines.append(f"    const uint32_t l{number} = (uint32_t)integers[{parameter}] << {shift};")
        width = "(uint32_t)integers[{}] << {}".format(f"{parameter} + 1", shift) if kind in _WIDE else f"1u << {shift}"
        lines.append(f"    const uint32_t w{number} = {width};")
    elif kind in SUMS:
        lines.append(f"    double a{number}[LANES]; memset(a{number}, 0, sizeof a{number});")
        lines.append(f"    double *s{number} = (double *)sinks[{number}];")
    elif kind == "count":
        lines.append(f"    int64_t c{number} = 0;")
    else:
        raise Untraceable(kind)
    return lines


def collect(number: int, kind: str, args: tuple[int, ...]) -> list[str]:
    """What a summary that counts in bins does with one tile."""
    tile = f"t{args[0]}"
    if kind in ("count_coarse", "count_upper"):
        tables = [f"h{number}[{j * BINS[kind]} + x[i + {j}]]++;" for j in range(TABLES)]
        key = key_of(kind, f"{tile}[i]")
        return [
            "        { uint16_t x[TILE];",
            f"          for (int64_t i = 0; i < m; i++) x[i] = (uint16_t)({key} >> {_SHIFT[kind]});",
            "          int64_t i = 0;",
            f"          for (; i + {TABLES - 1} < m; i += {TABLES}) {{ {' '.join(tables)} }}",
            f"          for (; i < m; i++) h{number}[x[i]]++; }}",
        ]
    if kind in WINDOWS:
        return [
            "        { uint32_t x[TILE], found[TILE + 16], more = 0;",
            f"          for (int64_t i = 0; i < m; i++) x[i] = {key_of(kind, f'{tile}[i]')};",
            f"          const uint32_t top = l{number} + (w{number} - 1);",
            "          for (int64_t i = 0; i < m; i++) more += x[i] > top;",
            f"          *above{number} += more;",
            f"          const int64_t k = within(x, m, l{number}, w{number}, found);",
            f"          for (int64_t i = 0; i < k; i++) h{number}[found[i]]++; }}",
        ]
    return []


def _blocks(sinks: list[tuple[int, str, tuple[int, ...]]]) -> list[list[tuple[int, str, tuple[int, ...]]]]:
    """Sums that are added to in one loop: those of pairs from two small groups, whose values registers can hold."""
    nodes = sorted({i for _, _, args in sinks for i in args})
    group = {node: place // _GROUP for place, node in enumerate(nodes)}
    found: dict[tuple[int, ...], list[tuple[int, str, tuple[int, ...]]]] = {}
    for sink in sinks:
        found.setdefault(tuple(sorted({group[i] for i in sink[2]})), []).append(sink)
    return list(found.values())


def collect_sums(sinks: list[tuple[int, str, tuple[int, ...]]]) -> list[str]:
    """Add one tile to all sums in float64, in rows of LANES: the order that `plait.tensors.sums` keeps too."""
    if not sinks:
        return []
    lines = ["        if (m == TILE) {"]
    for block in _blocks(sinks):
        lines.append("        for (int64_t i = 0; i < LANES; i++) {")
        for r in range(TILE // LANES):
            nodes = sorted({i for _, _, args in block for i in args})
            lines += [f"            const double d{node}_{r} = (double)t{node}[i + {r * LANES}];" for node in nodes]
        for number, _, args in block:
            total = f"a{number}[i]"
            for r in range(TILE // LANES):
                total = f"({total} + {' * '.join(f'd{node}_{r}' for node in args)})"
            lines.append(f"            a{number}[i] = {total};")
        lines.append("        }")
    lines.append("        } else for (int64_t r = 0; r < m; r += LANES) {")
    lines.append("            const int64_t w = m - r < LANES ? m - r : LANES;")
    for number, _, args in sinks:
        product = " * ".join(f"(double)t{node}[r + i]" for node in args)
        lines.append(f"            for (int64_t i = 0; i < w; i++) a{number}[i] += {product};")
    lines += ["        }", "        if ((base + TILE) % 65536 == 0 || base + TILE >= n) {"]
    for number, _, _ in sinks:
        lines += [
            "            for (int w = LANES / 2; w; w /= 2)",
            f"                for (int i = 0; i < w; i++) a{number}[i] += a{number}[i + w];",
            f"            *s{number}++ = a{number}[0]; memset(a{number}, 0, sizeof a{number});",
        ]
    return [*lines, "        }"]


def close(number: int, kind: str) -> list[str]:
    """What remains to be done after the loop."""
    return [f"    *(int64_t *)sinks[{number}] += c{number};"] if kind == "count" else []
