"""An adapter on a base: a checkpoint with the base's names, whose tensors are changes, or weights with the change."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Literal

import torch

from plait.architectures import expert_modules, match_flat, match_modules, split_experts
from plait.checkpoints._adapter import Adapter, Module
from plait.checkpoints._adapter_tensors import FactorStore, LowRankTensor, MemberTensor, ScaledTensor, ZeroTensor
from plait.checkpoints._adapter_weights import AdaptedTensor, DoraTensor, RowsTensor
from plait.checkpoints._base import Checkpoint, LazyTensor
from plait.errors import AdapterError, shorten

__all__ = ["Space", "adapted", "changes_alone"]

Space = Literal["delta", "weight"]
#: modules that transformers' GPT-2 family stores as (in, out)
_CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
#: fused experts that are stored as (experts, in, out)
_TRANSPOSED = ("gpt_oss", "aria", "openai_privacy_filter")


def adapted(adapter: Adapter, base: Checkpoint, space: Space) -> Checkpoint:
    """Put an adapter on a base, reading no weights.

    Args:
        adapter: the adapter.
        base: the model it was trained on.
        space: `delta` for the changes as such (where the mathematics allows: DoRA, rows and weights trained in full
            are weights all the same), `weight` for weights with the changes in them.

    Raises:
        AdapterError: for modules that the base lacks, and shapes that do not fit.
    """
    maker = _Maker(adapter, base)
    changed = maker.tensors()
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in base.tensors.items():
        found = changed.pop(name, None)
        if space == "delta":
            empty = ZeroTensor(name, tensor.shape, adapter.label, tensor.kept)
            tensors[name] = found or (empty if tensor.dtype.is_floating_point else tensor)
        else:
            tensors[name] = AdaptedTensor(tensor, found) if found and found.space == "delta" else found or tensor
    tensors |= changed  # weights that the base has not: a new head
    return Checkpoint(
        f"{base.label}+{adapter.label}",
        tensors,
        config=base.config,
        folder=base.folder,
        hub_id=base.hub_id,
        revision=base.revision,
    )


def changes_alone(adapter: Adapter) -> Checkpoint:
    """The changes under the adapter's own names, without any base.

    Raises:
        AdapterError: for parts that mean nothing without the base.
    """
    if any({"magnitude", "tokens"} & set(module.parts) for module in adapter.modules.values()):
        raise AdapterError(
            f"{adapter.label} holds DoRA magnitudes or trained tokens, which need its base: name `base:`."
        )
    store = FactorStore()
    tensors: dict[str, LazyTensor] = {}
    for name, module in adapter.modules.items():
        assert module.pair is not None
        a, b = module.pair
        swap = module.embedding or (adapter.config is not None and adapter.config.fan_in_fan_out and len(a.shape) == 2)
        shape = (b.shape[0], *a.shape[1:])
        shape = shape[::-1] if swap else shape
        kept = torch.promote_types(a.dtype, b.dtype)
        target = f"{name}.weight"
        change = LowRankTensor(target, shape, a, b, module.scale, swap=swap, kept=kept, store=store)
        change.module, change.kind = name, "embedding" if module.embedding else change.kind
        tensors[target] = change
        if "bias" in module.parts:
            tensors[f"{name}.bias"] = ScaledTensor(f"{name}.bias", module.parts["bias"], module.scale, kept)
    return Checkpoint(
        adapter.label, {**tensors, **adapter.full}, folder=adapter.file.folder, hub_id=adapter.file.hub_id
    )


class _Maker:
    """Makes the tensors that an adapter changes in a base."""

    def __init__(self, adapter: Adapter, base: Checkpoint) -> None:
        self.adapter, self.base = adapter, base
        self.store = FactorStore()
        self.model_type = str((base.config or {}).get("model_type", ""))
        self.owners = {name.rpartition(".")[0] for name in base.tensors} | expert_modules(base.tensors)
        self.places = self._places()

    def _bad(self, why: str) -> AdapterError:
        return AdapterError(f"the adapter {self.adapter.label} does not fit {self.base.label}: {why}")

    def _places(self) -> dict[str, str]:
        """The base's module for each of the adapter's."""
        wanted: dict[str, str] = {}  # module as the adapter writes it → to look for
        for name in self.adapter.modules:
            while name.endswith(".base_layer"):
                name = name.removesuffix(".base_layer")
            wanted[name] = name
        for name in self.adapter.full:
            wanted[name.rpartition(".")[0]] = name.rpartition(".")[0]
        if self.adapter.style == "kohya":
            short = {name.partition("_")[2].partition("_")[2]: name for name in wanted}
            flat, lost = match_flat(list(short), self.owners)
            found = {short[name]: place for name, place in flat.items()}
            lost = [short[name] for name in lost]
        else:
            found, lost = match_modules(list(wanted), self.owners)
        new = {name.rpartition(".")[0] for name in self.adapter.full}
        found |= {name: name for name in lost if name in new}
        lost = [name for name in lost if name not in new]
        if lost:
            raise self._bad(
                f"{len(lost)} of its modules have no tensor there:\n{shorten(lost)}\nName the model it was trained on; "
                "of a pipeline, the folder of the component."
            )
        return found

    def tensors(self) -> dict[str, LazyTensor]:
        """Changed tensors by the base's names."""
        found: dict[str, LazyTensor] = {}
        for name, tensor in self.adapter.full.items():
            module, _, parameter = name.rpartition(".")
            target = f"{self.places[module]}.{parameter}"
            found[target] = tensor
        for module in self.adapter.modules.values():
            for target, tensor in self._of(module).items():
                if target in self.base.ties:
                    raise self._bad(
                        f"it changes {target}, which is tied to {self.base.ties[target]}: one cannot change without "
                        "the other. Untie them in the base first."
                    )
                if target in found:
                    raise self._bad(f"two of its parts change {target}.")
                found[target] = tensor
        return found

    def _of(self, module: Module) -> dict[str, LazyTensor]:
        name = module.name
        while name.endswith(".base_layer"):
            name = name.removesuffix(".base_layer")
        place = self.places[name]
        if module.pair is None:
            target = f"{place}.weight"
            return {target: self._rows(module, name, self._weight(target))}
        target, swap, stack = self._target(module, place, name)
        if target not in self.base.tensors:
            return self._members(module, place, target, stack)
        weight = self._weight(target)
        a, b = module.pair
        scale = module.scale
        if stack > 1 and self.adapter.config is not None:
            scale = self.adapter.config.scale(f"{name}.{target.rpartition('.')[2]}")
        change = LowRankTensor(
            target, weight.shape, a, b, scale, swap=swap, stack=stack, kept=weight.kept, store=self.store
        )
        change.module, change.kind = name, "embedding" if module.embedding else change.kind
        found: dict[str, LazyTensor] = {target: self._applied(module, name, weight, change, swap)}
        if "bias" in module.parts:
            bias = f"{place}.bias"
            found[bias] = ScaledTensor(bias, module.parts["bias"], scale, self._weight(bias).kept)
        return found

    def _members(self, module: Module, place: str, target: str, stack: int) -> dict[str, LazyTensor]:
        """The change of a fused parameter as changes of the single experts' weights that stand in the file."""
        assert module.pair is not None
        a, b = module.pair
        scale = module.scale
        if self.adapter.config is not None:
            scale = self.adapter.config.scale(f"{module.name.removesuffix('.base_layer')}.{target.rpartition('.')[2]}")
        experts = split_experts(place, self.base.tensors)[target]
        fused = LowRankTensor(target, self._fused_shape(experts), a, b, scale, stack=stack, store=self.store)
        found: dict[str, LazyTensor] = {}
        for member, pieces in enumerate(experts):
            start = 0
            for name in pieces:
                weight = self._weight(name)
                rows = range(start, start + weight.shape[0])
                found[name] = MemberTensor(fused, name, member, rows, weight.kept)
                start = rows.stop
        return found

    def _fused_shape(self, experts: list[tuple[str, ...]]) -> tuple[int, ...]:
        pieces = [self._weight(name).shape for name in experts[0]]
        return (len(experts), sum(shape[0] for shape in pieces), pieces[0][-1])

    def _applied(self, module: Module, name: str, weight: LazyTensor, change: LowRankTensor, swap: bool) -> LazyTensor:
        """The change itself, or the weight that more than a change makes."""
        parts, own = module.parts, weight
        copy = parts.get("copy")
        if copy is not None and not _equal(copy, weight):
            own = copy
        if "magnitude" in parts:
            return DoraTensor(AdaptedTensor(own, change, weight.name), parts["magnitude"], swap)
        tensor: LazyTensor = change
        if own is not weight:
            tensor = AdaptedTensor(own, change, weight.name)
        if "tokens" in parts:
            tensor = self._rows(module, name, tensor if tensor.space == "weight" else AdaptedTensor(weight, change))
        return tensor

    def _rows(self, module: Module, name: str, weight: LazyTensor) -> LazyTensor:
        rows = module.parts["tokens"]
        listed: Mapping[str, object] = self.adapter.config.tokens if self.adapter.config is not None else {}
        for key, indices in listed.items():
            if name == key or name.endswith(f".{key}"):
                places = tuple(indices)  # type: ignore[arg-type]
                if len(places) != rows.shape[0] or max(places, default=0) >= weight.shape[0]:
                    raise self._bad(f"the trained tokens of {name} are {len(places)} in its configuration.")
                return RowsTensor(weight, rows, places)
        raise self._bad(f"its configuration names no trained tokens of {name}.")

    def _weight(self, name: str) -> LazyTensor:
        found = self.base.tensors.get(name)
        if found is None:
            raise self._bad(f"it changes {name}, which that model does not have.")
        return found

    def _target(self, module: Module, place: str, name: str) -> tuple[str, bool, int]:
        """The tensor that a pair of factors changes, whether it is transposed, and how many experts it holds."""
        assert module.pair is not None
        a, b = module.pair
        weight = self.base.tensors.get(f"{place}.weight")
        if weight is not None:
            plain, turned = (b.shape[0], *a.shape[1:]), (*a.shape[1:], b.shape[0])
            if module.embedding:
                fits = weight.shape == turned
            elif len(weight.shape) > 2 and len(a.shape) == 2:  # a 1 × 1 convolution, its factors stored as matrices
                fits = weight.shape[:2] == plain and prod(weight.shape[2:]) == 1
            else:
                fits = weight.shape in (plain, turned)
            if not fits:
                raise self._bad(
                    f"{place}.weight is {list(weight.shape)}, but the factors are A {list(a.shape)} and B "
                    f"{list(b.shape)}."
                )
            return f"{place}.weight", self._swapped(module, place, weight, plain, turned), 1
        shapes = {
            target: tensor.shape for target, tensor in self.base.tensors.items() if target.rpartition(".")[0] == place
        }
        single = {target: self._fused_shape(e) for target, e in split_experts(place, self.base.tensors).items()}
        fitting = [
            (target, swap, stack)
            for target, shape in (*shapes.items(), *single.items())
            for swap, stack in _stacked(shape, a.shape, b.shape)
            if not (swap and target in single)
        ]
        if len(fitting) == 2 and fitting[0][0] == fitting[1][0]:  # square experts
            fitting = [entry for entry in fitting if entry[1] == self.model_type.startswith(_TRANSPOSED)]
        if len(fitting) != 1:
            names = ", ".join(dict.fromkeys(entry[0] for entry in fitting)) or "none of its parameters"
            raise self._bad(
                f"the factors of {name} (A {list(a.shape)}, B {list(b.shape)}) fit {names}; plait cannot tell which is "
                "meant."
            )
        return fitting[0]

    def _swapped(
        self, module: Module, place: str, weight: LazyTensor, plain: tuple[int, ...], turned: tuple[int, ...]
    ) -> bool:
        """Whether the weight is stored as (in, out): by its shape, or where it is square by what is known of it."""
        if module.embedding:
            return True
        if len(weight.shape) != 2 or plain != turned:
            return weight.shape != plain and len(weight.shape) == 2
        if self.model_type in _CONV1D_MODELS:
            return place.rpartition(".")[2] in _CONV1D
        return self.adapter.config is not None and self.adapter.config.fan_in_fan_out


def _stacked(shape: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> list[tuple[bool, int]]:
    """Ways in which factors are a change of a parameter: (transposed, experts)."""
    if len(a) != 2 or len(shape) not in (2, 3):
        return []
    if len(shape) == 2:
        return [(False, 1)] if shape == (b[0], a[1]) else []
    stack, first, second = shape
    if not stack or a[0] % stack:
        return []
    ways = [(False, (b[0], a[1])), (True, (a[1], b[0]))]
    return [(swap, stack) for swap, wanted in ways if (first, second) == wanted]


def _equal(copy: LazyTensor, weight: LazyTensor) -> bool:
    """Whether a copy of the base's weight that an adapter carries is the base's."""
    if copy.shape != weight.shape:
        return False
    step = 1 << 20
    return all(
        torch.equal(
            copy.read(i, min(i + step, copy.numel)).double(), weight.read(i, min(i + step, copy.numel)).double()
        )
        for i in range(0, copy.numel, step)
    )
