"""From a method's own function to one compiled loop over its elements, or its rows, with the same bits.

A method is written once, in torch. For large models its function is followed once with stand-ins, the operations on
elements and on whole rows (a threshold, a rank) are written as C, and the system's compiler makes one loop of them that
reads the stored numbers, computes, checks and rounds in registers. Where there is no compiler, or the function does
something else, torch computes in blocks.
"""

from plait.kernels._build import build, compiler
from plait.kernels._c import INPUTS
from plait.kernels._device import BUILDERS, device_kernel
from plait.kernels._emit import FLAG_INPUT, FLAG_RESULT, source_of
from plait.kernels._graph import Graph, Sink, Untraceable
from plait.kernels._kernel import Bound, Kernel, Tally, Totals, Window, fill
from plait.kernels._trace import Pending, Traced

__all__ = [
    "BUILDERS",
    "FLAG_INPUT",
    "FLAG_RESULT",
    "INPUTS",
    "Bound",
    "Graph",
    "Kernel",
    "Pending",
    "Sink",
    "Tally",
    "Totals",
    "Traced",
    "Untraceable",
    "Window",
    "build",
    "compiler",
    "device_kernel",
    "fill",
    "source_of",
]
