"""An adapter: what its file holds, module by module, with the scale of each change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from plait.checkpoints._adapter_config import AdapterConfig, read_configs
from plait.checkpoints._adapter_keys import Part, parse_keys, style_of
from plait.checkpoints._base import Checkpoint, LazyTensor
from plait.errors import AdapterError

__all__ = ["Adapter", "Module", "read_adapter"]


@dataclass
class Module:
    """The parts of one module of an adapter.

    Attributes:
        name: as the adapter calls it, without the library's prefix.
        parts: tensors by what they are.
        scale: factor of B A.
    """

    name: str
    parts: dict[Part, LazyTensor] = field(default_factory=dict)
    scale: float = 1.0

    @property
    def embedding(self) -> bool:
        """Whether the factors are those of an embedding."""
        return "EA" in self.parts

    @property
    def pair(self) -> tuple[LazyTensor, LazyTensor] | None:
        """A and B, if the module has them."""
        first, second = self.parts.get("EA" if self.embedding else "A"), self.parts.get("EB" if self.embedding else "B")
        return None if first is None or second is None else (first, second)

    @property
    def rank(self) -> int:
        """Rows of A: over all experts, for fused ones."""
        return self.pair[0].shape[0] if self.pair is not None else 0


@dataclass
class Adapter:
    """An adapter whose tensors have been told apart.

    Attributes:
        file: the adapter as it lies on disk.
        style: whose names it uses.
        config: its configuration; None where the file carries its scales itself.
        modules: low-rank changes by module.
        full: weights that were trained in full, by name.
    """

    file: Checkpoint
    style: str
    config: AdapterConfig | None
    modules: Mapping[str, Module]
    full: Mapping[str, LazyTensor]

    @property
    def label(self) -> str:
        """How messages call it."""
        return self.file.label

    @property
    def rank(self) -> int:
        """The largest rank of a module."""
        return max((module.rank for module in self.modules.values()), default=0)


def read_adapter(file: Checkpoint) -> Adapter:
    """Tell the tensors of an adapter file apart.

    Raises:
        AdapterError: for what is no LoRA, for halves of pairs, and for a PEFT file without its configuration.
    """
    style = style_of(file.tensors)
    pieces = parse_keys(file.tensors, file.label)
    configs = read_configs(file.adapter or {}, file.label)
    config = configs.get("")
    if config is None and style == "peft":
        raise AdapterError(
            f"{file.label} holds a PEFT adapter without adapter_config.json, which says by what it is scaled. Put that "
            "file beside it."
        )
    modules: dict[str, Module] = {}
    full: dict[str, LazyTensor] = {}
    for piece in pieces:
        tensor = file.tensors[piece.key]
        if piece.part == "full":
            full[piece.module] = tensor
            continue
        module, part = piece.module, piece.part
        if part == "copy":
            module, _, suffix = module.rpartition(".")
            if suffix == "bias":
                full[f"{module}.bias"] = tensor
                continue
        parts = modules.setdefault(module, Module(module)).parts
        if part in parts:
            raise AdapterError(f"{file.label} holds {part} of module {module!r} twice, in two key styles.")
        parts[part] = tensor
    for name in [name for name, module in modules.items() if set(module.parts) <= {"copy"}]:
        full[f"{name}.weight"] = modules.pop(name).parts["copy"]
    for module in modules.values():
        _complete(module, file.label, configs)
    return Adapter(file, style, config, modules, full)


def _complete(module: Module, label: str, configs: Mapping[str, AdapterConfig]) -> None:
    """Check that a module has both factors, and find its scale."""
    parts = module.parts
    if "tokens" in parts and not {"A", "B", "EA", "EB"} & set(parts):
        return
    if module.pair is None:
        lacking = "B" if ("A" in parts or "EA" in parts) else "A"
        raise AdapterError(f"{label}: module {module.name!r} lacks its factor {lacking}; the file is incomplete.")
    a, b = module.pair
    rank = a.shape[0]
    if not rank or len(a.shape) < 2 or len(b.shape) < 2 or b.shape[1] != rank or any(n != 1 for n in b.shape[2:]):
        raise AdapterError(
            f"{label}: the factors of {module.name!r} do not fit each other: A {list(a.shape)}, B {list(b.shape)}. "
            "An adapter saved under ZeRO-3 or FSDP without gathering looks like this."
        )
    if "alpha" in parts:
        module.scale = float(parts["alpha"].read(0, 1).double().item()) / rank
        return
    for prefix, config in configs.items():
        if not prefix or module.name.startswith(f"{prefix}."):
            module.scale = config.scale(module.name.removeprefix(f"{prefix}."))
