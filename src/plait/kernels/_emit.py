"""The C source of a graph: loops over a tile, or a row, that read, compute, check and write, and those of summaries."""

from __future__ import annotations

import torch

from plait.kernels._c import INPUTS, TYPES, expression, head, load, store
from plait.kernels._graph import FULL, ROW_NUMBERS, Graph
from plait.kernels._rows import ROW_C, levels, looked_at, row_number, row_values
from plait.kernels._sinks import SUMS, close, collect, collect_sums, prepare

__all__ = ["FLAG_INPUT", "FLAG_RESULT", "room", "source_of"]

FLAG_INPUT, FLAG_RESULT = 1, 2
_MARGIN = 16  # elements that may be written behind a row


def _kept(graph: Graph) -> list[int]:
    """Nodes whose values summaries look at, tile by tile."""
    return sorted({i for sink in graph.sinks if sink.kind != "count" for i in sink.args})


def _opening(graph: Graph, live: list[bool]) -> list[str]:
    lines = [
        "int run(const void *const *in, void *out, const double *numbers, const int64_t *integers,",
        "        const uint64_t *keys, int64_t n, int64_t offset, void *const *sinks, int64_t row, void *room) {",
        "    uint32_t bad_in = 0, bad_out = 0;",
    ]
    for node in (node for i, node in enumerate(graph.nodes) if node.op == "number" and live[i]):
        lines.append(f"    const {TYPES[node.dtype]} n{node.literal} = ({TYPES[node.dtype]})numbers[{node.literal}];")
    for number, sink in enumerate(graph.sinks):
        lines += prepare(number, sink.kind, sink.parameter)
    return lines


def _pointers(inputs: tuple[torch.dtype, ...], output: torch.dtype | None, at: str) -> list[str]:
    lines = [f"const {INPUTS[d]} *restrict in{s} = (const {INPUTS[d]} *)in[{s}] + {at};" for s, d in enumerate(inputs)]
    return lines if output is None else [*lines, f"{INPUTS[output]} *restrict o = ({INPUTS[output]} *)out + {at};"]


def _summaries(graph: Graph) -> list[str]:
    """What is done with each tile of the values that are kept."""
    lines: list[str] = []
    for number, sink in enumerate(graph.sinks):
        lines += collect(number, sink.kind, sink.args)
    return lines + collect_sums([(n, s.kind, s.args) for n, s in enumerate(graph.sinks) if s.kind in SUMS])


def _closing(graph: Graph, output: torch.dtype | None) -> list[str]:
    lines: list[str] = []
    for number, sink in enumerate(graph.sinks):
        lines += close(number, sink.kind)
    top = 15 if output == torch.bfloat16 else 31  # where an exponent of all ones overflows to
    return [*lines, f"    return (bad_in >> 31 ? {FLAG_INPUT} : 0) | (bad_out >> {top} ? {FLAG_RESULT} : 0);", "}"]


def source_of(graph: Graph, inputs: tuple[torch.dtype, ...], output: torch.dtype | None, segment: int) -> str:
    """Write `int run(in, out, numbers, integers, keys, n, offset, sinks, row, room)`.

    It returns FLAG_INPUT where an input and FLAG_RESULT where the result is not finite. `row` and `room`, memory of the
    size that `room` says, are for graphs in rows.
    """
    lines = _flat(graph, inputs, output) if graph.row is None else _in_rows(graph, inputs, output)
    return "\n".join([head(graph, segment) + (ROW_C if graph.row is not None else ""), *lines]) + "\n"


def _flat(graph: Graph, inputs: tuple[torch.dtype, ...], output: torch.dtype | None) -> list[str]:
    live = graph.live()
    kept = _kept(graph)
    counts = [(number, sink.args[0]) for number, sink in enumerate(graph.sinks) if sink.kind == "count"]
    lines = _opening(graph, live)
    lines.append("    for (int64_t base = 0; base < n; base += TILE) {")
    lines.append("        const int64_t m = n - base < TILE ? n - base : TILE;")
    lines += _pointers(inputs, output, "base")
    lines += [f"        {TYPES[graph.nodes[i].dtype]} t{i}[TILE];" for i in kept]
    lines += [f"        uint32_t k{number} = 0;" for number, _ in counts]
    for place in range(len(graph.draws)):
        lines.append(f"        float u{place}[TILE + 8]; uniform(u{place}, m, offset + base, keys + 2 * {place});")
    lines.append("        APART for (int64_t i = 0; i < m; i++) {")
    for slot, dtype in enumerate(inputs):
        lines += load(slot, dtype)
    for index, node in enumerate(graph.nodes):
        if live[index]:
            lines.append(f"            const {TYPES[node.dtype]} v{index} = {expression(graph, node)};")
    lines += [f"            t{i}[i] = v{i};" for i in kept]
    lines += [f"            k{number} += v{i} != 0;" for number, i in counts]
    if output is not None:
        lines += store(f"v{graph.output}", output)
    counted = [f"        c{number} += k{number};" for number, _ in counts]
    return [*lines, "        }", *counted, *_summaries(graph), "    }", *_closing(graph, output)]


def _arrays(graph: Graph) -> tuple[list[tuple[str, str]], list[int]]:
    """Rows that are written down, as (type, name), and nodes that are for a whole block."""
    live = graph.live()
    rows: dict[str, str] = {}
    for index, node in enumerate(graph.nodes):
        if live[index] and (node.op in ROW_NUMBERS or node.op == "row_places"):
            name = looked_at(node)
            rows[name] = "uint32_t" if name[0] == "k" else "float"
            if node.op == "row_places":
                rows[f"p{index}"] = "float"
    rows |= {f"u{place}_": "float" for place in range(len(graph.draws))}
    return [(kind, name) for name, kind in rows.items()], _kept(graph)


def room(graph: Graph, length: int) -> int:
    """Bytes that a block of so many elements needs for its rows."""
    if graph.row is None:
        return 0
    rows, blocks = _arrays(graph)
    each = graph.row + _MARGIN
    return 64 + 4 * each * (len(rows) + 2) + 8 * (length + _MARGIN) * len(blocks)


def _in_rows(graph: Graph, inputs: tuple[torch.dtype, ...], output: torch.dtype | None) -> list[str]:
    """One row after the other, in as many loops as it takes; then the summaries, tile by tile over the block."""
    live, level = graph.live(), levels(graph)
    rows, kept = _arrays(graph)
    lines = [*_opening(graph, live), "    char *at = (char *)room;"]
    for i in kept:
        kind = TYPES[graph.nodes[i].dtype]
        lines.append(f"    {kind} *restrict all{i} = ({kind} *)at; at += 8 * (n + {_MARGIN});")
    for kind, name in rows:
        lines.append(f"    {kind} *restrict {name} = ({kind} *)at; at += 4 * (row + {_MARGIN});")
    found = [i for i, node in enumerate(graph.nodes) if live[i] and node.op == "row_threshold"]
    lines += [f"    uint32_t last{i} = 0;" for i in found]
    lines += ["    uint32_t *spare = (uint32_t *)at;", "    for (int64_t first = 0; first < n; first += row) {"]
    lines += _pointers(inputs, output, "first")
    for place in range(len(graph.draws)):  # whole counters of eight numbers, of which the first may be another row's
        lines.append(
            f"        const int64_t lead{place} = (offset + first) % 8, from{place} = offset + first - lead{place};"
        )
        lines.append(f"        uniform(u{place}_, row + lead{place}, from{place}, keys + 2 * {place});")
        lines.append(f"        const float *restrict u{place} = u{place}_ + lead{place};")
    last = max((level[i] for i, alive in enumerate(live) if alive), default=0)
    unchecked = set(range(len(inputs)))
    for stage in range(last):
        lines += [*_narrow(graph, stage), *_look(graph, inputs, stage, unchecked)]
    lines += [*_narrow(graph, last), *_finish(graph, inputs, output, unchecked)]
    lines.append("    }")
    if kept:
        lines.append("    for (int64_t base = 0; base < n; base += TILE) {")
        lines.append("        const int64_t m = n - base < TILE ? n - base : TILE;")
        lines += [f"        const {TYPES[graph.nodes[i].dtype]} *restrict t{i} = all{i} + base;" for i in kept]
        lines += [*_summaries(graph), "    }"]
    return [*lines, *_closing(graph, output)]


def _look(graph: Graph, inputs: tuple[torch.dtype, ...], stage: int, unchecked: set[int]) -> list[str]:
    """Write down what is looked at next, and look: one row after the other, each while the nearest cache holds it."""
    live, level = graph.live(), levels(graph)
    looking: dict[tuple[str, int], list[int]] = {}
    for i, node in enumerate(graph.nodes):
        if live[i] and level[i] == stage + 1 and (node.op in ROW_NUMBERS or node.op == "row_places"):
            looking.setdefault((looked_at(node), node.args[0]), []).append(i)
    lines: list[str] = []
    for (name, value), nodes in looking.items():
        written = f"as_bits(v{value}) & 0x7fffffffu" if name[0] == "k" else f"v{value}"
        body = _body(graph, inputs, {value}, unchecked)
        lines += ["        APART for (int64_t i = 0; i < row; i++) {", *body, f"{name}[i] = {written};", "        }"]
        for i in nodes:
            node = graph.nodes[i]
            lines += row_values(i, node) if node.op == "row_places" else row_number(i, node)
    return lines


def _finish(
    graph: Graph, inputs: tuple[torch.dtype, ...], output: torch.dtype | None, unchecked: set[int]
) -> list[str]:
    """The last loop over a row: the result, and what summaries look at."""
    kept = _kept(graph)
    counts = [(n, sink.args[0]) for n, sink in enumerate(graph.sinks) if sink.kind == "count"]
    results = [graph.output] if output is not None and graph.output is not None else []
    body = _body(graph, inputs, {*kept, *(i for _, i in counts), *results}, unchecked)
    for slot in sorted(unchecked):  # of which nothing depends
        body += load(slot, inputs[slot])
    body += [f"all{i}[first + i] = v{i};" for i in kept] + [f"k{n} += v{i} != 0;" for n, i in counts]
    for result in results:
        assert output is not None
        body += store(f"v{result}", output)
    return [
        *(f"        uint32_t k{n} = 0;" for n, _ in counts),
        *["        APART for (int64_t i = 0; i < row; i++) {", *body, "        }"],
        *(f"        c{n} += k{n};" for n, _ in counts),
    ]


def _narrow(graph: Graph, stage: int) -> list[str]:
    """What a row knows of itself once it has been looked at `stage` times."""
    live, kinds, level = graph.live(), graph.kinds(), levels(graph)
    lines: list[str] = []
    for i, node in enumerate(graph.nodes):
        if live[i] and level[i] == stage and kinds[i] < FULL and node.op not in ROW_NUMBERS:
            lines.append(f"const {TYPES[node.dtype]} v{i} = {expression(graph, node)};")
    return lines


def _body(graph: Graph, inputs: tuple[torch.dtype, ...], needed: set[int], unchecked: set[int]) -> list[str]:
    """Everything per element that some nodes are computed from; inputs that are read for the first time are checked."""
    kinds, wanted = graph.kinds(), set(needed)
    for i in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[i]
        if i in wanted and kinds[i] == FULL and node.op != "row_places":
            wanted |= set(node.args)
    lines: list[str] = []
    for i in sorted(wanted):
        node = graph.nodes[i]
        if node.op == "input":
            slot = int(node.literal or 0)
            lines += load(slot, inputs[slot], slot in unchecked)
            unchecked.discard(slot)
        if kinds[i] == FULL:
            value = f"p{i}[i]" if node.op == "row_places" else expression(graph, node)
            lines.append(f"const {TYPES[node.dtype]} v{i} = {value};")
    return lines
