"""From CUDA source to a launch: compiled once by NVIDIA's run-time compiler, kept in the user's cache.

Compiler and driver are called by `cuda.bindings`, which comes with PyTorch's own builds for CUDA.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from plait.kernels._build import cache_folder
from plait.kernels._cuda import SINGLE, Layout
from plait.kernels._sinks import LANES

__all__ = ["Launch", "build_cuda", "compile_cuda", "pack", "structure"]

#: nothing here may change a bit: no contraction, IEEE division, no flushing of small numbers
_OPTIONS = ("--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false", "--std=c++17")
_WAVES = 8  # blocks of threads for each multiprocessor


def structure(passed: Layout) -> type[ctypes.Structure]:
    """The one argument of a launch, addresses as numbers."""
    fields: list[tuple[str, Any]] = [
        (name, (ctypes.c_double if kind == "double" else ctypes.c_uint64) * count)
        for kind, name, count in passed.arrays
    ]
    fields += [(name, ctypes.c_uint64) for _, name in SINGLE]
    return type("Passed", (ctypes.Structure,), {"_fields_": fields})


def pack(form: type[ctypes.Structure], values: Mapping[str, Any]) -> ctypes.Structure:
    """Fill in an argument: arrays from their beginning, addresses and numbers."""
    made = form()
    for name, value in values.items():
        if isinstance(value, int):
            setattr(made, name, value)
        else:
            place = getattr(made, name)
            place[: min(len(value), len(place))] = value[: len(place)]
    return made


class Launch:
    """A compiled kernel of one device.

    Attributes:
        fresh: whether it was compiled by this process.
    """

    def __init__(self, image: bytes, passed: Layout, device: torch.device, fresh: bool) -> None:
        self.fresh = fresh
        self._form, self._chunk = structure(passed), passed.chunk
        self._driver = driver = import_module("cuda.bindings.driver")
        with torch.cuda.device(device):
            torch.cuda.current_stream().synchronize()  # makes the device's context this thread's
            self._module = _sure(driver.cuModuleLoadData(image))
            self._function = _sure(driver.cuModuleGetFunction(self._module, b"run"))
        self._blocks = _WAVES * torch.cuda.get_device_properties(device).multi_processor_count

    def __call__(self, stream: Any, values: Mapping[str, Any]) -> None:
        """Launch on a stream; `values` as for `pack`."""
        argument = pack(self._form, values)
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
        blocks = max(1, min(self._blocks, -(-values["n"] // self._chunk)))
        _sure(
            self._driver.cuLaunchKernel(
                self._function, blocks, 1, 1, LANES, 1, 1, 0, stream.cuda_stream, ctypes.addressof(pointers), 0
            )
        )


def _sure(answer: tuple[Any, ...]) -> Any:
    """The values of an answer.

    Raises:
        RuntimeError: with the library's number for what went wrong.
    """
    if int(answer[0]) != 0:
        raise RuntimeError(f"{type(answer[0]).__name__}: {answer[0]}")
    return answer[1] if len(answer) > 1 else None


@cache
def _compiler() -> Any:
    """NVIDIA's run-time compiler; None where it is not installed."""
    try:
        nvrtc = import_module("cuda.bindings.nvrtc")
        _sure(nvrtc.nvrtcVersion())
    except (ImportError, RuntimeError, OSError):
        return None
    return nvrtc


def compile_cuda(source: str, architecture: str) -> bytes:
    """Compile to machine code for an architecture such as `sm_90`.

    Raises:
        RuntimeError: if the compiler is missing or fails, with its log.
    """
    nvrtc = _compiler()
    if nvrtc is None:
        raise RuntimeError("no CUDA compiler")
    program = _sure(nvrtc.nvrtcCreateProgram(source.encode(), b"plait.cu", 0, [], []))
    options = [option.encode() for option in (*_OPTIONS, f"--gpu-architecture={architecture}")]
    answer = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if int(answer[0]) != 0:
        log = b" " * _sure(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(log.decode(errors="replace"))
    image = b" " * _sure(nvrtc.nvrtcGetCUBINSize(program))
    _sure(nvrtc.nvrtcGetCUBIN(program, image))
    nvrtc.nvrtcDestroyProgram(program)
    return image


_lock = threading.Lock()


def build_cuda(source: str, passed: Layout, device: torch.device) -> Launch | None:
    """Return the kernel of a source on a device; None where there is no compiler for it."""
    nvrtc = _compiler()
    if nvrtc is None or torch.version.cuda is None:
        return None
    major, minor = torch.cuda.get_device_capability(device)
    architecture = f"sm_{major}{minor}"
    facts = "\0".join((*_OPTIONS, architecture, str(_sure(nvrtc.nvrtcVersion())), source))
    folder, name = cache_folder(), hashlib.sha256(facts.encode()).hexdigest()[:32] + ".cubin"
    target = folder / name
    with _lock:
        image = None
        with suppress(OSError):
            image = target.read_bytes()
        fresh = image is None
        try:
            if image is None:
                image = compile_cuda(source, architecture)
                _keep(image, target)
            return Launch(image, passed, device, fresh)
        except RuntimeError:
            return None


def _keep(image: bytes, target: Path) -> None:
    with suppress(OSError):
        part = target.with_suffix(f".{threading.get_ident()}.part")
        part.write_bytes(image)
        part.replace(target)
