"""CUDA kernels on the processor: a C++ compiler, one thread of the device after the other.

It shows what a kernel computes, to the bit, and nothing of what goes on at the same time. `emulate` puts it in the
place of NVIDIA's compiler for devices of one kind, so that the way there and back is that of a GPU.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from plait.kernels import BUILDERS
from plait.kernels._cuda import Layout
from plait.kernels._nvrtc import pack, structure
from plait.kernels._sinks import LANES

__all__ = ["CXX", "Emulated", "build_emulated", "emulate"]

CXX = shutil.which("c++") or shutil.which("g++")

_HEAD = """\
#include <cmath>
#include <cstdint>
#include <cstring>
struct Place { unsigned x; };
static Place blockIdx, threadIdx, gridDim;
#define __global__ static
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
static inline float as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline uint32_t as_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return (uint64_t)(((unsigned __int128)a * b) >> 64); }
template <class T> static void atomicAdd(T *to, T value) { *to += value; }
static void atomicOr(unsigned *to, unsigned value) { *to |= value; }
"""
_TAIL = """\
extern "C" void emulate(const Passed *passed, unsigned blocks, unsigned threads) {
    gridDim.x = blocks;
    for (unsigned b = 0; b < blocks; b++)
        for (unsigned t = 0; t < threads; t++) { blockIdx.x = b; threadIdx.x = t; run(*passed); }
}
"""
_known: dict[str, Any] = {}
_lock = threading.Lock()
_folder = tempfile.TemporaryDirectory(prefix="plait-emulated-")


class Emulated:
    """A kernel of a device that is not there.

    Attributes:
        calls: how often it ran.
    """

    fresh = True

    def __init__(self, source: str, passed: Layout) -> None:
        self.source, self.calls = source, 0
        self._form, self._chunk = structure(passed), passed.chunk
        self._function = _compiled(source)

    def __call__(self, stream: Any, values: Mapping[str, Any]) -> None:
        """Run at once, on three blocks of threads at most."""
        argument = pack(self._form, values)
        self._function(ctypes.byref(argument), max(1, min(3, -(-values["n"] // self._chunk))), LANES)
        self.calls += 1


def _compiled(source: str) -> Any:
    with _lock:  # threads of one run may ask at the same time
        return _known.get(source) or _compile(source)


def _compile(source: str) -> Any:
    target = Path(_folder.name) / f"{len(_known)}.so"
    text = _HEAD + source.replace('extern "C" __global__', "__global__") + _TAIL
    options = [
        "-O1",
        "-std=c++17",
        "-ffp-contract=off",
        "-fPIC",
        "-shared",
        "-w",
        "-x",
        "c++",
        "-",
        "-o",
        str(target),
    ]
    subprocess.run([str(CXX), *options], input=text.encode(), check=True)
    _known[source] = ctypes.CDLL(str(target)).emulate
    return _known[source]


def build_emulated(source: str, passed: Layout, device: torch.device) -> Emulated:
    """Do what a builder for a real device does."""
    assert device.type != "cuda"
    return Emulated(source, passed)


def emulate(monkeypatch: pytest.MonkeyPatch, kind: str) -> list[Emulated]:
    """Give a kind of device compiled loops; return the list to which they are added as they are made."""
    made: list[Emulated] = []

    def build(source: str, passed: Layout, device: torch.device) -> Emulated:
        made.append(build_emulated(source, passed, device))
        return made[-1]

    monkeypatch.setitem(BUILDERS, kind, build)
    return made
