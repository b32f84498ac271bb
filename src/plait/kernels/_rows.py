"""What a kernel does with whole rows: order statistics and places, found by counting instead of sorting."""

from __future__ import annotations

from plait.kernels._graph import ROW_NUMBERS, Graph, Node

__all__ = ["ROW_C", "levels", "looked_at", "row_number", "row_values"]

ROW_C = """\
#define NEAR (1u << 20)
/* the rank-th largest, from 1, of n keys below 2^31; room holds n + 16; last is where it was in the row before */
static uint32_t kth(const uint32_t *x, int64_t n, int64_t rank, uint32_t *room, uint32_t *last) {
    uint32_t base = 0, low = 0, half = 1u << 30;
    int64_t inside = n;
    if (n > 64 && *last > NEAR) { /* often it is not far from there: then only those around need be looked at */
        const uint32_t from = *last - NEAR, top = *last + NEAR;
        uint32_t in = 0, above = 0;
        for (int64_t i = 0; i < n; i++) { in += x[i] - from < 2 * NEAR; above += x[i] >= top; }
        if (above < rank && rank <= (int64_t)above + in) {
            rank -= above;
            inside = n = within(x, n, from, 2 * NEAR, room);
            x = room; base = from; half = NEAR;
        }
    }
    for (; half; half /= 2) { /* it lies in [low, low + 2 half) of the n that are left */
        const uint32_t mid = low + half;
        uint32_t c = 0;
        for (int64_t i = 0; i < n; i++) c += x[i] - mid < half;
        if (c >= rank) { low = mid; inside = c; }
        else { rank -= c; inside -= c; }
        if (n > 64 && 2 * inside <= n) {
            n = within(x, n, low, half, room);
            x = room; base += low; low = 0;
        }
    }
    return *last = base + low;
}
/* where every key stands in its row, ascending, equal ones in order; a and b hold n each */
static void places(const uint32_t *x, int64_t n, float *p, uint32_t *a, uint32_t *b) {
    uint32_t any = 0, all = ~0u;
    for (int64_t i = 0; i < n; i++) { any |= x[i]; all &= x[i]; }
    const uint32_t vary = any & ~all;
    if (!vary) { for (int64_t i = 0; i < n; i++) p[i] = (float)i; return; }
    int shift = __builtin_ctz(vary);
    const int bits = 32 - __builtin_clz(vary) - shift, passes = (bits + 10) / 11, width = (bits + passes - 1) / passes;
    const uint32_t mask = (1u << width) - 1;
    const uint32_t *from = 0;
    uint32_t *to = a;
    for (int pass = 0; pass < passes; pass++, shift += width) {
        uint32_t count[2048], before = 0;
        memset(count, 0, sizeof(uint32_t) << width);
        for (int64_t i = 0; i < n; i++) count[(x[i] >> shift) & mask]++;
        for (uint32_t d = 0; d <= mask; d++) { const uint32_t c = count[d]; count[d] = before; before += c; }
        const int last = pass == passes - 1;
        if (!from && last) for (int64_t i = 0; i < n; i++) p[i] = (float)count[(x[i] >> shift) & mask]++;
        else if (!from) for (int64_t i = 0; i < n; i++) to[count[(x[i] >> shift) & mask]++] = (uint32_t)i;
        else if (last) for (int64_t j = 0; j < n; j++) p[from[j]] = (float)count[(x[from[j]] >> shift) & mask]++;
        else for (int64_t j = 0; j < n; j++) to[count[(x[from[j]] >> shift) & mask]++] = from[j];
        from = to;
        to = to == a ? b : a;
    }
}
"""


def levels(graph: Graph) -> list[int]:
    """After how many looks at the whole row each node is known."""
    found: list[int] = []
    for node in graph.nodes:
        before = max((found[i] for i in node.args), default=0)
        found.append(before + (node.op in ROW_NUMBERS or node.op == "row_places"))
    return found


def looked_at(node: Node) -> str:
    """The name of the row that an operation looks at: magnitudes as integers (k) or values (f)."""
    return f"{'k' if node.op in ('row_threshold', 'row_places') else 'f'}{node.args[0]}"


def row_number(index: int, node: Node) -> list[str]:
    """A number of a whole row."""
    row = looked_at(node)
    match node.op:
        case "row_threshold":
            return [f"const float v{index} = as_float(kth({row}, row, integers[{node.literal}], spare, &last{index}));"]
        case "row_sum":  # of whole numbers: exact in any order
            start, step = "0.0f", f"v{index} += {row}[i];"
        case "row_min":
            start, step = f"{row}[0]", f"v{index} = {row}[i] < v{index} ? {row}[i] : v{index};"
        case _:
            start, step = f"{row}[0]", f"v{index} = {row}[i] > v{index} ? {row}[i] : v{index};"
    return [f"float v{index} = {start};", f"for (int64_t i = 0; i < row; i++) {step}"]


def row_values(index: int, node: Node) -> list[str]:
    """A number for every element of a row, into the row p."""
    return [f"places({looked_at(node)}, row, p{index}, spare, spare + row + 16);"]
