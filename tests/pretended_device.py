"""A device that is not there: tensors that say they are elsewhere, hold real numbers, and refuse what a GPU refuses.

Once this module is imported, `device="pretended"` makes such tensors. Their arithmetic is the processor's, so that
results can be compared to the bit; mixing them with tensors of the processor, or looking at their memory, is an error
as it is on a GPU. It says nothing about what runs at the same time, or how fast.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["DEVICE", "MODULE", "Module", "Remote"]

#: take tensors of both kinds
_MIXING = ("copy_", "_to_copy", "index", "index_put_", "_index_put_impl_", "set_")


class Remote(Tensor):
    """A tensor that says it lies on the device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Remote:
        """Wrap numbers that lie here."""
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )
        made.inner = inner
        return made

    def data_ptr(self) -> int:
        """Where the numbers lie."""
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        """The numbers: waits for the device, as on a GPU."""
        return self.inner.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Remote({self.inner!r})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """Name the attributes that are tensors."""
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute here; give a tensor of the device."""
        del types
        return _call(func, tuple(args), dict(kwargs or {}))


def _call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.removeprefix("aten::")
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    remote = any(isinstance(tensor, Remote) for tensor in tensors)
    here = [t for t in tensors if not isinstance(t, Remote) and t.ndim]
    if remote and here and name not in _MIXING:
        raise RuntimeError(
            f"{name}: expected all tensors to be on the same device, but found {DEVICE} and cpu "
            f"({[list(t.shape) for t in here]})"
        )
    wanted = kwargs.get("device")
    if wanted is not None:
        remote = torch.device(wanted).type == DEVICE.type
        kwargs["device"] = torch.device("cpu")
    kwargs.pop("pin_memory", None)
    plain = tree_map(lambda x: x.inner if isinstance(x, Remote) else x, (args, kwargs))
    found = func(*plain[0], **plain[1])
    if not remote or (name == "copy_" and not isinstance(args[0], Remote)):
        return args[0] if name == "copy_" else found
    wrapped = tree_map(lambda x: Remote(x) if isinstance(x, Tensor) and not isinstance(x, Remote) else x, found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _empty(size: Sequence[int], *, dtype: torch.dtype | None = None, **others: Any) -> Tensor:
    del others
    return Remote(torch.empty(tuple(size), dtype=dtype or torch.float32))


def _empty_strided(size: Sequence[int], stride: Sequence[int], *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return Remote(torch.empty_strided(tuple(size), tuple(stride), dtype=dtype or torch.float32))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    del non_blocking
    one, two = (tensor.inner if isinstance(tensor, Remote) else tensor for tensor in (source, target))
    two.copy_(one)
    return target


class Event:
    """Comes at once."""

    def __init__(self) -> None:
        self.recorded = False

    def record(self, stream: Any = None) -> None:
        """Note that it is awaited."""
        self.recorded = True

    def synchronize(self) -> None:
        """Wait."""
        assert self.recorded, "an event that nothing was asked to reach"


class Stream:
    """Does everything at once."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device

    def synchronize(self) -> None:
        """Wait."""


class Module:
    """What torch.cuda is for a GPU.

    Attributes:
        free: bytes that are free.
        streams: how many are in use, on all threads.
    """

    Stream, Event = Stream, Event

    def __init__(self) -> None:
        self.free = 1 << 40
        self.used: set[Stream] = set()
        self._own = threading.local()

    def is_available(self) -> bool:
        """It is always there."""
        return True

    def is_initialized(self) -> bool:
        """It needs nothing."""
        return True

    def current_device(self) -> int:
        """The only one."""
        return 0

    def device_count(self) -> int:
        """One."""
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Nothing is random here."""

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        """Free and total bytes."""
        return self.free, 1 << 40

    def current_stream(self, device: Any = None) -> Stream:
        """The stream of this thread, or one that is nobody's."""
        return self.current or Stream()

    @contextmanager
    def stream(self, stream: Stream) -> Generator[None]:
        """Compute on a stream."""
        before, self._own.stream = getattr(self._own, "stream", None), stream
        self.used.add(stream)
        yield
        self._own.stream = before

    @property
    def current(self) -> Stream | None:
        """The stream of this thread."""
        return getattr(self._own, "stream", None)


class _Hook(torch._C._acc.PrivateUse1Hooks):
    """Tells other libraries that they cannot use it."""

    def is_available(self) -> bool:
        return False

    def has_primary_context(self, device_index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


MODULE = Module()
backend_registration._setup_privateuseone_for_python_backend("pretended", MODULE, _Hook())
DEVICE = torch.device("pretended:0")
_LIBRARY = torch.library.Library("aten", "IMPL")
_LIBRARY.impl("empty.memory_format", _empty, "PrivateUse1")
_LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
_LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")
