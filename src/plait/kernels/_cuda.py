"""The CUDA source of a graph: what `plait.kernels._emit` writes for a processor, for a device with many threads.

A block of threads goes through chunks of elements, each thread through every 512th of them. Counts are kept by the
thread and added up at the end; bins are counted in the device's memory; a sum keeps its lanes, one for each thread, of
which torch makes the number (`plait.kernels._device_totals`), so that its order is the one of `plait.tensors.sums`.
Operations on whole rows are left to torch, which sorts them.
"""

from __future__ import annotations

import torch

from plait.kernels._c import INPUTS, TYPES, expression, load, store
from plait.kernels._dialect import Dialect
from plait.kernels._emit import FLAG_INPUT, FLAG_RESULT
from plait.kernels._graph import Graph, Node, Untraceable
from plait.kernels._sinks import BINS, LANES, SUMS, WINDOWS, key_of, shift_of, wide

__all__ = ["CHUNK", "SINGLE", "SUM_CHUNK", "Layout", "cuda_source", "layout"]

#: elements that a block of threads computes before it takes others; with sums a segment of them
CHUNK, SUM_CHUNK = 8 * LANES, 1 << 16
#: members of the one argument of a launch, which has room for so many bytes
_ARRAYS = (("void *", "in"), ("double", "numbers"), ("int64_t", "integers"), ("tally_t", "keys"), ("void *", "sinks"))
SINGLE = (("void *", "out"), ("uint32_t *", "flags"), ("int64_t", "n"), ("int64_t", "offset"))
_PASSED = 4000

_HEAD = """\
#ifdef __CUDACC_RTC__
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define NAN __int_as_float(0x7fffffff)
#define as_float __uint_as_float
#define as_bits __float_as_uint
#endif
typedef unsigned long long tally_t;
#define __builtin_fmaf fmaf
#define __builtin_fma fma
static __device__ __forceinline__ int32_t ordered(float f) {
    const int32_t b = (int32_t)as_bits(f + 0.0f);
    return b ^ ((b >> 31) & 0x7fffffff);
}
/* add what all threads of a block have counted */
static __device__ __forceinline__ void give(tally_t *to, tally_t count) {
#ifdef __CUDA_ARCH__
    for (int w = 16; w; w /= 2) count += __shfl_down_sync(0xffffffffu, count, w);
    if (threadIdx.x % 32 == 0 && count) atomicAdd(to, count);
#else
    if (count) atomicAdd(to, count);
#endif
}
"""

_PHILOX = """\
/* number `at` of a stream, of 24 bits */
static __device__ __forceinline__ float uniform(const tally_t *key, int64_t at) {
    const int64_t where = at %% %(segment)d;
    uint64_t a = (uint64_t)where / 8 + 1, b = 0, c = 0, d = (uint64_t)(at / %(segment)d), k0 = key[0], k1 = key[1];
    for (int r = 0; r < 10; r++) {
        const uint64_t nc = __umul64hi(a, 0xD2E7470EE14C6C93ULL) ^ d ^ k1, nd = a * 0xD2E7470EE14C6C93ULL;
        a = __umul64hi(c, 0xCA5A826395121157ULL) ^ b ^ k0;
        b = c * 0xCA5A826395121157ULL;
        c = nc; d = nd;
        k0 += 0x9E3779B97F4A7C15ULL; k1 += 0xBB67AE8584CAA73BULL;
    }
    const int place = (int)(where %% 8);
    const uint64_t word = place < 2 ? a : place < 4 ? b : place < 6 ? c : d;
    return (float)(int32_t)((uint32_t)(word >> (place %% 2 * 32)) >> 8) * 0x1p-24f;
}
"""


class Layout:
    """How many of each kind a launch passes.

    Attributes:
        inputs, numbers, integers, keys, sinks: lengths of the arrays in its one argument.
        chunk: elements of a chunk.
        lanes: whether sums are among the sinks.
    """

    def __init__(self, graph: Graph, inputs: int) -> None:
        places = [int(node.literal or 0) for node in graph.nodes if node.op == "number"]
        last = [s.parameter + (2 if wide(s.kind) else 1) for s in graph.sinks if s.parameter is not None]
        self.inputs = inputs
        self.numbers = max(places, default=-1) + 1
        self.integers = max(last, default=0)
        self.keys = 2 * len(graph.draws)
        self.sinks = len(graph.sinks)
        self.lanes = any(sink.kind in SUMS for sink in graph.sinks)
        self.chunk = SUM_CHUNK if self.lanes else CHUNK

    @property
    def arrays(self) -> list[tuple[str, str, int]]:
        """The arrays of the argument: type, name and length, which is at least one, as C wants it."""
        counts = (self.inputs, self.numbers, self.integers, self.keys, self.sinks)
        return [(kind, name, max(count, 1)) for (kind, name), count in zip(_ARRAYS, counts, strict=True)]

    @property
    def size(self) -> int:
        """Bytes of the argument: every member has eight."""
        return 8 * (sum(count for _, _, count in self.arrays) + len(SINGLE))


def layout(graph: Graph, inputs: int) -> Layout:
    """Return what a launch passes; a graph's structure decides it.

    Raises:
        Untraceable: if that is more than a launch can pass.
    """
    found = Layout(graph, inputs)
    if found.size > _PASSED:
        raise Untraceable("more models than one launch on a device can be told of")
    return found


def _struct(passed: Layout) -> list[str]:
    arrays = [f"{kind} {name}[{count}];" for kind, name, count in passed.arrays]
    return ["struct Passed {", *arrays, *(f"{kind} {name};" for kind, name in SINGLE), "};"]


def _value(graph: Graph, node: Node, spoken: Dialect) -> str:
    """The value of a node, rounded as torch rounds it on the device."""
    args = [f"v{i}" for i in node.args]
    real = node.dtype == torch.float32
    match node.op:
        case "uniform":
            return f"uniform(passed.keys + {2 * int(node.literal or 0)}, passed.offset + i)"
        case "div" if real and spoken.inverse and graph.nodes[node.args[1]].op == "number":
            return f"{args[0]} * (float)(1.0 / passed.numbers[{graph.nodes[node.args[1]].literal}])"
        case "maximum" | "clamp_min" if real and spoken.positive:
            return f"fmaxf({args[0]}, {args[1]})"
        case "minimum" | "clamp_max" if real and spoken.positive:
            return f"fminf({args[0]}, {args[1]})"
        case "fma" if real:
            number = graph.nodes[node.args[1]].op == "number"
            if not (spoken.fused_number if number else spoken.fused_product):
                return f"{args[2]} + {args[0]} * {args[1]}"
    return expression(graph, node)


def _opening(graph: Graph, number: int) -> list[str]:
    """Declarations of a sink, before the loops."""
    sink = graph.sinks[number]
    if sink.kind == "count":
        return [f"tally_t k{number} = 0;"]
    if sink.kind in SUMS:
        return []
    lines = [f"tally_t *h{number} = (tally_t *)passed.sinks[{number}];", f"tally_t k{number} = 0;"]
    if sink.kind in WINDOWS:
        assert sink.parameter is not None
        shift = shift_of(sink.kind)
        span = f"(uint32_t)passed.integers[{sink.parameter + 1}] << {shift}" if wide(sink.kind) else f"1u << {shift}"
        lines.append(f"const uint32_t l{number} = (uint32_t)passed.integers[{sink.parameter}] << {shift};")
        lines.append(f"const uint32_t w{number} = {span}, top{number} = l{number} + (w{number} - 1);")
    elif sink.kind not in BINS:
        raise Untraceable(sink.kind)
    return lines


def _collected(graph: Graph, number: int) -> list[str]:
    """What a sink does with one element."""
    sink = graph.sinks[number]
    if sink.kind == "count":
        return [f"k{number} += v{sink.args[0]} != 0;"]
    if sink.kind in SUMS:
        return [f"a{number} += {' * '.join(f'(double)v{i}' for i in sink.args)};"]
    key = key_of(sink.kind, f"v{sink.args[0]}")
    if sink.kind in BINS:  # most of what is equal is zero: that bin each thread counts by itself
        zero = 0 if sink.kind == "count_coarse" else 1 << 15
        return [
            f"{{ const uint32_t b = {key} >> {shift_of(sink.kind)};",
            f"  if (b == {zero}u) k{number}++; else atomicAdd(h{number} + b, (tally_t)1); }}",
        ]
    return [
        f"{{ const uint32_t b = {key}; k{number} += b > top{number};",
        f"  if (b - l{number} < w{number}) atomicAdd(h{number} + 1 + (b - l{number}), (tally_t)1); }}",
    ]


def _closing(graph: Graph, number: int) -> list[str]:
    """Hand over what the threads have counted of a sink."""
    sink = graph.sinks[number]
    if sink.kind in SUMS:
        return []
    target = f"h{number}" if sink.kind != "count" else f"(tally_t *)passed.sinks[{number}]"
    return [f"give({target}{' + 32768' if sink.kind == 'count_upper' else ''}, k{number});"]


def cuda_source(
    graph: Graph, inputs: tuple[torch.dtype, ...], output: torch.dtype | None, segment: int, spoken: Dialect
) -> str:
    """Write `run(Passed)`: flags, counts and the result of `n` elements, at addresses on the device.

    Raises:
        Untraceable: if the graph is for rows, or needs something that is not written here.
    """
    if graph.row is not None:
        raise Untraceable("rows, which torch sorts on a device")
    passed, live = layout(graph, len(inputs)), graph.live()
    sinks = range(len(graph.sinks))
    sums = [number for number in sinks if graph.sinks[number].kind in SUMS]
    lines = [
        _HEAD + (_PHILOX % {"segment": segment} if graph.draws else ""),
        *_struct(passed),
        'extern "C" __global__ void run(const Passed passed) {',
        "uint32_t bad_in = 0, bad_out = 0;",
    ]
    for node in (node for i, node in enumerate(graph.nodes) if node.op == "number" and live[i]):
        kind = TYPES[node.dtype]
        lines.append(f"const {kind} n{node.literal} = ({kind})passed.numbers[{node.literal}];")
    lines += [
        f"const {INPUTS[d]} *__restrict__ in{s} = (const {INPUTS[d]} *)passed.in[{s}];" for s, d in enumerate(inputs)
    ]
    if output is not None:
        lines.append(f"{INPUTS[output]} *__restrict__ o = ({INPUTS[output]} *)passed.out;")
    for number in sinks:
        lines += _opening(graph, number)
    step = passed.chunk
    lines.append(
        f"for (int64_t base = (int64_t)blockIdx.x * {step}; base < passed.n; base += (int64_t)gridDim.x * {step}) {{"
    )
    lines.append(f"const int64_t end = base + {step} < passed.n ? base + {step} : passed.n;")
    lines += [f"double a{number} = 0.0;" for number in sums]
    lines.append(f"for (int64_t i = base + threadIdx.x; i < end; i += {LANES}) {{")
    for slot, dtype in enumerate(inputs):
        lines += load(slot, dtype)
    for index, node in enumerate(graph.nodes):
        if live[index]:
            lines.append(f"const {TYPES[node.dtype]} v{index} = {_value(graph, node, spoken)};")
    for number in sinks:
        lines += _collected(graph, number)
    if output is not None:
        lines += store(f"v{graph.output}", output)
    lines.append("}")
    for number in sums:
        lines.append(f"((double *)passed.sinks[{number}])[base / {step} * {LANES} + threadIdx.x] = a{number};")
    lines.append("}")
    for number in sinks:
        lines += _closing(graph, number)
    top = 15 if output == torch.bfloat16 else 31
    lines.append(
        f"const uint32_t flags = (bad_in >> 31 ? {FLAG_INPUT}u : 0u) | (bad_out >> {top} ? {FLAG_RESULT}u : 0u);"
    )
    lines += ["if (flags) atomicOr(passed.flags, flags);", "}"]
    return "\n".join(lines) + "\n"
