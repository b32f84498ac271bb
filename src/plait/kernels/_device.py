"""Compiled graphs on devices: which kinds of device there are compilers for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from plait.kernels._cuda import Layout, cuda_source, layout
from plait.kernels._device_totals import DeviceTotals
from plait.kernels._dialect import dialect
from plait.kernels._graph import Graph
from plait.kernels._kernel import Kernel
from plait.kernels._nvrtc import build_cuda

__all__ = ["BUILDERS", "device_kernel"]

#: by kind of device: makes of a source what launches it (called with a stream and values, attribute `fresh`), or None
BUILDERS: dict[str, Callable[[str, Layout, torch.device], Any]] = {"cuda": build_cuda}


def device_kernel(
    graph: Graph, inputs: tuple[torch.dtype, ...], output: torch.dtype | None, segment: int, device: torch.device
) -> Kernel | None:
    """Return the compiled loop of a graph on a device; None without a compiler for it.

    Raises:
        Untraceable: if the graph cannot be a loop there.
    """
    source = cuda_source(graph, inputs, output, segment, dialect(device))
    made = BUILDERS[device.type](source, layout(graph, len(inputs)), device)
    if made is None:
        return None
    return Kernel(made, inputs, output, made.fresh, partial(DeviceTotals, device=device))
