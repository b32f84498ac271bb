"""The C source of a graph: one loop over a tile that reads, computes, checks and writes, and one loop per summary."""

from __future__ import annotations

import torch

from plait.kernels._graph import Graph, Node, Untraceable

__all__ = ["BINS", "FLAG_INPUT", "FLAG_RESULT", "INPUTS", "LANES", "SUMS", "TABLES", "TILE", "WINDOWS", "source_of"]

#: elements whose intermediate values are kept at once
TILE = 2048
#: lanes of a sum, see `plait.tensors.sums`
LANES = 512
FLAG_INPUT, FLAG_RESULT = 1, 2
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
#: dtypes that a kernel reads and writes; torch converts others
INPUTS = {torch.bfloat16: "uint16_t", torch.float32: "uint32_t"}

_C = {torch.float32: "float", torch.bool: "int32_t", torch.int32: "int32_t", torch.int64: "int64_t"}
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

_HEAD = """\
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#define TILE %(tile)d
#define LANES %(lanes)d
static inline float as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline uint32_t as_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static inline int32_t ordered(float f) { int32_t b = (int32_t)as_bits(f + 0.0f); return b ^ ((b >> 31) & 0x7fffffff); }
/* copy x - low of those in [low, low + width) to found, which has room for m + 16; return how many */
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
    for (; i < m; i++) { found[k] = x[i] - low; k += x[i] - low < width; }
    return k;
}
"""

_PHILOX = """\
static inline void philox(uint64_t c0, uint64_t c3, uint64_t k0, uint64_t k1, uint64_t *out) {
    uint64_t a = c0, b = 0, c = 0, d = c3;
    for (int r = 0; r < 10; r++) {
        unsigned __int128 p = (unsigned __int128)a * 0xD2E7470EE14C6C93ULL;
        unsigned __int128 q = (unsigned __int128)c * 0xCA5A826395121157ULL;
        uint64_t na = (uint64_t)(q >> 64) ^ b ^ k0, nc = (uint64_t)(p >> 64) ^ d ^ k1;
        b = (uint64_t)q; d = (uint64_t)p; a = na; c = nc;
        k0 += 0x9E3779B97F4A7C15ULL; k1 += 0xBB67AE8584CAA73BULL;
    }
    out[0] = a; out[1] = b; out[2] = c; out[3] = d;
}
/* numbers [at, at + m) of a stream, 24 bits each; at is a multiple of 8 */
static void uniform(float *u, int64_t m, int64_t at, const uint64_t *key) {
    for (int64_t i = 0; i < m; i += 8) {
        int64_t where = at + i;
        uint64_t words[4];
        philox((uint64_t)(where %% %(segment)d) / 8 + 1, (uint64_t)(where / %(segment)d), key[0], key[1], words);
        for (int j = 0; j < 4; j++) {
            u[i + 2 * j] = (float)(uint32_t)((uint32_t)words[j] >> 8) * 0x1p-24f;
            u[i + 2 * j + 1] = (float)(uint32_t)(words[j] >> 40) * 0x1p-24f;
        }
    }
}
"""


def _number(value: float) -> str:
    return f"{value.hex()}f" if value == value and abs(value) != float("inf") else "NAN"


def _expression(graph: Graph, node: Node) -> str:
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
            return _number(float(node.literal)) if node.dtype == torch.float32 else str(int(node.literal))
        case "cast":
            if node.dtype == torch.bool:
                return f"{args[0]} != 0"
            if node.dtype == torch.float32 and graph.nodes[node.args[0]].dtype == torch.bool:
                return f"{args[0]} ? 1.0f : 0.0f"
            return f"({_C[node.dtype]}){args[0]}"
    if node.op in _INFIX:
        return f"{args[0]} {_INFIX[node.op]} {args[1]}"
    if node.op in _FORMS:
        return _FORMS[node.op].format(*args)
    raise Untraceable(node.op)


def source_of(graph: Graph, inputs: tuple[torch.dtype, ...], output: torch.dtype | None, segment: int) -> str:
    """Write `int run(in, out, numbers, integers, keys, n, offset, sinks)`.

    It returns FLAG_INPUT where an input and FLAG_RESULT where the result is not finite.
    """
    live = graph.live()
    kept = sorted({i for sink in graph.sinks if sink.kind != "count" for i in sink.args})
    counts = [(number, sink.args[0]) for number, sink in enumerate(graph.sinks) if sink.kind == "count"]
    lines = [_HEAD % {"tile": TILE, "lanes": LANES}]
    if graph.draws:
        lines.append(_PHILOX % {"segment": segment})
    lines.append(
        "int run(const void *const *in, void *out, const double *numbers, const int64_t *integers,\n"
        "        const uint64_t *keys, int64_t n, int64_t offset, void *const *sinks) {"
    )
    lines.append("    uint32_t bad_in = 0, bad_out = 0;")
    for place, node in ((node.literal, node) for i, node in enumerate(graph.nodes) if node.op == "number" and live[i]):
        lines.append(f"    const {_C[node.dtype]} n{place} = ({_C[node.dtype]})numbers[{place}];")
    for number, sink in enumerate(graph.sinks):
        lines += _prepare(number, sink.kind, sink.parameter)
    lines.append("    for (int64_t base = 0; base < n; base += TILE) {")
    lines.append("        const int64_t m = n - base < TILE ? n - base : TILE;")
    for slot, dtype in enumerate(inputs):
        lines.append(f"        const {INPUTS[dtype]} *restrict in{slot} = (const {INPUTS[dtype]} *)in[{slot}] + base;")
    if output is not None:
        lines.append(f"        {INPUTS[output]} *restrict o = ({INPUTS[output]} *)out + base;")
    lines += [f"        {_C[graph.nodes[i].dtype]} t{i}[TILE];" for i in kept]
    lines += [f"        uint32_t k{number} = 0;" for number, _ in counts]
    for place in range(len(graph.draws)):
        lines.append(f"        float u{place}[TILE + 8]; uniform(u{place}, m, offset + base, keys + 2 * {place});")
    lines.append("        for (int64_t i = 0; i < m; i++) {")
    for slot, dtype in enumerate(inputs):
        wide = f"(uint32_t)in{slot}[i] << 16" if dtype == torch.bfloat16 else f"in{slot}[i]"
        lines.append(f"            const uint32_t x{slot} = {wide};")
        lines.append(f"            bad_in |= (x{slot} & 0x7f800000u) + 0x00800000u;")
    for index, node in enumerate(graph.nodes):
        if live[index]:
            lines.append(f"            const {_C[node.dtype]} v{index} = {_expression(graph, node)};")
    lines += [f"            t{i}[i] = v{i};" for i in kept]
    lines += [f"            k{number} += v{i} != 0;" for number, i in counts]
    if output is not None:
        lines += _store(f"v{graph.output}", output)
    lines.append("        }")
    for number, sink in enumerate(graph.sinks):
        lines += _collect(number, sink.kind, sink.args)
    lines.append("    }")
    for number, sink in enumerate(graph.sinks):
        lines += _close(number, sink.kind)
    top = 15 if output == torch.bfloat16 else 31  # where an exponent of all ones overflows to
    lines.append(f"    return (bad_in >> 31 ? {FLAG_INPUT} : 0) | (bad_out >> {top} ? {FLAG_RESULT} : 0);\n}}")
    return "\n".join(lines) + "\n"


def _store(value: str, output: torch.dtype) -> list[str]:
    lines = [f"            uint32_t y = as_bits({value});"]
    if output == torch.bfloat16:  # to the nearest, ties to even
        lines.append("            y = (y + 0x7fffu + ((y >> 16) & 1u)) >> 16;")
        lines.append("            bad_out |= (y & 0x7f80u) + 0x0080u;")
    else:
        lines.append("            bad_out |= (y & 0x7f800000u) + 0x00800000u;")
    return [*lines, "            o[i] = y;"]


def _prepare(number: int, kind: str, parameter: int | None) -> list[str]:
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


def _key(kind: str, tile: str) -> str:
    """An unsigned integer that grows with what is counted: the magnitude, or the signed number."""
    if kind in ("count_coarse", "count_fine", "window_magnitudes"):
        return f"(as_bits({tile}[i]) & 0x7fffffffu)"
    return f"((uint32_t)ordered({tile}[i]) ^ 0x80000000u)"


def _collect(number: int, kind: str, args: tuple[int, ...]) -> list[str]:
    """What a summary does with one tile."""
    tile = f"t{args[0]}"
    if kind in ("count_coarse", "count_upper"):
        tables = [f"h{number}[{j * BINS[kind]} + x[i + {j}]]++;" for j in range(TABLES)]
        return [
            "        { uint16_t x[TILE];",
            f"          for (int64_t i = 0; i < m; i++) x[i] = (uint16_t)({_key(kind, tile)} >> {_SHIFT[kind]});",
            "          int64_t i = 0;",
            f"          for (; i + {TABLES - 1} < m; i += {TABLES}) {{ {' '.join(tables)} }}",
            f"          for (; i < m; i++) h{number}[x[i]]++; }}",
        ]
    if kind in WINDOWS:
        return [
            "        { uint32_t x[TILE], found[TILE + 16], more = 0;",
            f"          for (int64_t i = 0; i < m; i++) x[i] = {_key(kind, tile)};",
            f"          const uint32_t top = l{number} + (w{number} - 1);",
            "          for (int64_t i = 0; i < m; i++) more += x[i] > top;",
            f"          *above{number} += more;",
            f"          const int64_t k = within(x, m, l{number}, w{number}, found);",
            f"          for (int64_t i = 0; i < k; i++) h{number}[found[i]]++; }}",
        ]
    if kind == "count":
        return [f"        c{number} += k{number};"]
    product = f"(double){tile}[r + i] * (double)t{args[1]}[r + i]" if kind == "dot" else f"(double){tile}[r + i]"
    return [
        "        for (int64_t r = 0; r < m; r += LANES) {",
        "            const int64_t w = m - r < LANES ? m - r : LANES;",
        f"            for (int64_t i = 0; i < w; i++) a{number}[i] += {product};",
        "        }",
        "        if ((base + TILE) % 65536 == 0 || base + TILE >= n) {",
        "            for (int w = LANES / 2; w; w /= 2)",
        f"                for (int i = 0; i < w; i++) a{number}[i] += a{number}[i + w];",
        f"            *s{number}++ = a{number}[0]; memset(a{number}, 0, sizeof a{number});",
        "        }",
    ]


def _close(number: int, kind: str) -> list[str]:
    return [f"    *(int64_t *)sinks[{number}] += c{number};"] if kind == "count" else []
