"""C for single values: how the nodes of a graph are spelled, and the functions that go with them."""

from __future__ import annotations

import torch

from plait.kernels._graph import Graph, Node, Untraceable
from plait.kernels._philox import philox
from plait.kernels._sinks import LANES, TILE

__all__ = ["INPUTS", "TYPES", "expression", "head", "load", "store"]

#: dtypes that a kernel reads and writes; torch converts others
INPUTS = {torch.bfloat16: "uint16_t", torch.float32: "uint32_t"}
#: types of values
TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bool: "int32_t",
    torch.int32: "int32_t",
    torch.int64: "int64_t",
}

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">"}
_INFIX |= {"ge": ">=", "and": "&", "or": "|"}
_FORMS = {
    "abs": "fabsf({0})",
    "neg": "-{0}",
    "reciprocal": "1.0f / {0}",
    "sign": "{0} > 0.0f ? 1.0f : {0} < 0.0f ? -1.0f : 0.0f",
    "square": "{0} * {0}",
    "fma": "__builtin_fmaf({0}, {1}, {2})",
    "where": "{0} ? {1} : {2}",
    "maximum": "{0} > {1} ? {0} : {1}",
    "minimum": "{0} < {1} ? {0} : {1}",
    "clamp_min": "{0} < {1} ? {1} : {0}",
    "clamp_max": "{0} > {1} ? {1} : {0}",
    "not": "!{0}",
    "bits": "as_bits({0})",
}
_WIDE_FORMS = {"fma": "__builtin_fma({0}, {1}, {2})", "where": _FORMS["where"]}

_HEAD = """\
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif
/* before a loop that writes to none of the arrays it reads: with many of them a compiler would not look */
#if defined(__clang__)
#define APART _Pragma("clang loop vectorize(assume_safety)")
#else
#define APART _Pragma("GCC ivdep")
#endif
#define TILE %(tile)d
#define LANES %(lanes)d
static inline float as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline uint32_t as_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static inline int32_t ordered(float f) { int32_t b = (int32_t)as_bits(f + 0.0f); return b ^ ((b >> 31) & 0x7fffffff); }
/* copy x - low of those in [low, low + width) to found, which has room for m + 16 or is x; return how many */
static int64_t within(const uint32_t *x, int64_t m, uint32_t low, uint32_t width, uint32_t *found) {
    int64_t i = 0, k = 0;
#ifdef __AVX512F__
    const __m512i lows = _mm512_set1_epi32((int)low), widths = _mm512_set1_epi32((int)width);
    for (; i + 16 <= m; i += 16) {
        const __m512i r = _mm512_sub_epi32(_mm512_loadu_si512(x + i), lows);
        const __mmask16 in = _mm512_cmplt_epu32_mask(r, widths);
        _mm512_storeu_si512(found + k, _mm512_maskz_compress_epi32(in, r));
        k += __builtin_popcount(in);
    }
#endif
    for (; i < m; i++) { const uint32_t r = x[i] - low; found[k] = r; k += r < width; }
    return k;
}
"""


def head(graph: Graph, segment: int) -> str:
    """Includes and functions."""
    text = _HEAD % {"tile": TILE, "lanes": LANES}
    return text + (philox(segment) if graph.draws else "")


def _number(value: float) -> str:
    return f"{value.hex()}f" if value == value and abs(value) != float("inf") else "NAN"


def expression(graph: Graph, node: Node) -> str:
    """The value of a node, from those of its arguments."""
    args = [f"v{i}" for i in node.args]
    match node.op:
        case "input":
            return f"as_float(x{node.literal})"
        case "number":
            return f"n{node.literal}"
        case "uniform":
            return f"u{node.literal}[i]"
        case "literal":
            assert node.literal is not None
            if node.dtype == torch.float32:
                return _number(float(node.literal))
            return float(node.literal).hex() if node.dtype == torch.float64 else str(int(node.literal))
        case "cast":
            if node.dtype == torch.bool:
                return f"{args[0]} != 0"
            if node.dtype == torch.float32 and graph.nodes[node.args[0]].dtype == torch.bool:
                return f"{args[0]} ? 1.0f : 0.0f"
            return f"({TYPES[node.dtype]}){args[0]}"
    if node.op in _INFIX:
        return f"{args[0]} {_INFIX[node.op]} {args[1]}"
    wide = any(graph.nodes[i].dtype == torch.float64 for i in node.args)
    forms = _WIDE_FORMS if wide else _FORMS
    if node.op in forms:
        return forms[node.op].format(*args)
    raise Untraceable(node.op)


def load(slot: int, dtype: torch.dtype, check: bool = True) -> list[str]:
    """Read an input's element; with `check`, note whether it is finite."""
    wide = f"(uint32_t)in{slot}[i] << 16" if dtype == torch.bfloat16 else f"in{slot}[i]"
    noted = f"bad_in |= (x{slot} & 0x7f800000u) + 0x00800000u;"
    return [f"const uint32_t x{slot} = {wide};", *([noted] if check else [])]


def store(value: str, output: torch.dtype) -> list[str]:
    """Round and write a result; note whether it is finite."""
    lines = [f"uint32_t y = as_bits({value});"]
    if output == torch.bfloat16:  # to the nearest, ties to even
        lines.append("y = (y + 0x7fffu + ((y >> 16) & 1u)) >> 16;")
        lines.append("bad_out |= (y & 0x7f80u) + 0x0080u;")
    else:
        lines.append("bad_out |= (y & 0x7f800000u) + 0x00800000u;")
    return [*lines, "o[i] = y;"]
