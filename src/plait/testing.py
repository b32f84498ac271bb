"""The public conformance suite: laws that every merging method obeys, for this package's methods and for plug-ins.

    from plait.testing import check_method
    check_method(MyMethod)

Each law is a function `law_*(cls)` that raises AssertionError with what went wrong; `laws(cls)` lists those that apply,
for parametrised tests.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait._api import merge, merge_state_dicts
from plait.errors import NonFiniteError
from plait.methods import Combiner, Method, Modifier, Sparsifier, external

__all__ = ["check_method", "laws", "sample_models"]

State = dict[str, Tensor]

_SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (320, 512),
    "model.layers.0.self_attn.q_proj.weight": (48, 32),
    "model.layers.0.self_attn.q_proj.bias": (48,),
    "model.layers.0.mlp.down_proj.weight": (32, 48),
    "model.layers.0.input_layernorm.weight": (32,),
    "model.layers.1.self_attn.q_proj.weight": (48, 32),
    "model.layers.1.mlp.down_proj.weight": (32, 48),
    "model.layers.1.conv.weight": (8, 4, 3, 3),
    "model.norm.weight": (32,),
    "lm_head.weight": (40, 32),
    "logit_scale": (),
}


def sample_models(count: int, seed: int = 0) -> tuple[State, list[State]]:
    """Return a base and `count` experts: dense noise, a heavy tail, entries that did not move, a low-rank part."""
    rng = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(shape, generator=rng) * 0.1 + 0.5 for name, shape in _SHAPES.items()}
    experts = []
    for _ in range(count):
        expert: State = {}
        for name, weight in base.items():
            noise = torch.randn(weight.shape, generator=rng)
            delta = 0.01 * noise * (1 + noise.abs() ** 3)
            if weight.ndim == 2:
                u, v = torch.randn(weight.shape[0], 2, generator=rng), torch.randn(2, weight.shape[1], generator=rng)
                delta = delta + 0.01 * (u @ v)
            if weight.numel() > 1:
                delta = delta * (torch.rand(weight.shape, generator=rng) > 0.1)
            expert[name] = weight + delta
        experts.append(expert)
    return base, experts


def _steps(cls: type[Method], parameters: Mapping[str, Any]) -> list[Any]:
    own = {cls.name: {external(k): v for k, v in parameters.items()}}
    if issubclass(cls, Sparsifier):
        return [own, "task_arithmetic"]
    if issubclass(cls, Modifier):
        return ["task_arithmetic", own]
    return [own]


def _merge(cls: type[Method], base: State, experts: Sequence[State] | Mapping[str, State], **options: Any) -> State:
    parameters = {**cls.example, **options.pop("parameters", {})}
    needs = options.pop("on_base", False) or cls.needs_base or not issubclass(cls, Combiner)
    return merge_state_dicts(_steps(cls, parameters), experts, base if needs else None, **options)


def _count(cls: type[Method]) -> int:
    most = cls.max_experts
    return min(max(3, cls.min_experts), most) if most is not None else max(3, cls.min_experts)


def _close(ours: State, theirs: State, what: str, base: State, tolerance: float) -> None:
    for name, wanted in theirs.items():
        size = float((wanted - base[name]).double().norm())
        rounding = 2.0**-22 * float(wanted.double().norm())  # what float32 weights cannot tell apart
        error = float((ours[name].double() - wanted.double()).norm())
        assert error <= tolerance * size + rounding, f"{what}: {name} is off by {error:.3g}, its update is {size:.3g}"


def _equal(ours: State, theirs: State, what: str) -> None:
    for name, wanted in theirs.items():
        assert torch.equal(ours[name], wanted), f"{what}: {name} differs"


def law_is_described(cls: type[Method]) -> None:
    """Name, summary, docstring and a line for every parameter are there; defaults lie within their bounds."""
    from plait.methods import check_value

    assert cls.name and cls.summary and cls.formula, f"{cls.__name__} lacks a name, a summary or a formula"
    assert cls.__doc__ and len(cls.__doc__) > 80, f"{cls.name} lacks a docstring"
    for parameter in cls.parameters().values():
        assert parameter.doc, f"parameter {parameter.label} of {cls.name} has no Doc"
        if not isinstance(parameter.default, tuple):
            check_value(cls.name, parameter, parameter.default)


def law_result_has_the_inputs_form(cls: type[Method]) -> None:
    """Every tensor comes back with its shape, finite."""
    base, experts = sample_models(_count(cls))
    merged = _merge(cls, base, experts)
    assert list(merged) == list(base), f"{cls.name} lost or added tensors"
    for name, tensor in merged.items():
        assert tensor.shape == base[name].shape and bool(torch.isfinite(tensor).all()), f"{cls.name}: {name} is broken"


def law_one_expert_is_itself(cls: type[Method]) -> None:
    """One expert of weight 1 comes back, under the parameters the method declares neutral."""
    assert cls.identity is not None
    base, (expert,) = sample_models(1)
    merged = _merge(cls, base, [expert], parameters=dict(cls.identity))
    _close(merged, expert, f"{cls.name} of one expert", base, 2e-5)


def law_no_change_is_no_change(cls: type[Method]) -> None:
    """Experts that equal the base give the base."""
    base, _ = sample_models(1)
    copies = [{k: v.clone() for k, v in base.items()} for _ in range(_count(cls))]
    parameters = {} if cls.needs_base else dict(cls.identity or {})
    _close(_merge(cls, base, copies, parameters=parameters), base, f"{cls.name} of unchanged experts", base, 1e-5)


def law_order_is_irrelevant(cls: type[Method]) -> None:
    """A symmetric method gives the same whatever the order of the experts."""
    base, experts = sample_models(_count(cls))
    named = {f"m{i}": expert for i, expert in enumerate(experts)}
    backwards = dict(reversed(named.items()))
    _close(_merge(cls, base, backwards), _merge(cls, base, named), f"{cls.name} in another order", base, 1e-4)


def law_blocks_and_threads_are_invisible(cls: type[Method]) -> None:
    """The same bits with other blocks, threads and budgets."""
    base, experts = sample_models(_count(cls))
    one = _merge(cls, base, experts, threads=1, block=1 << 20)
    _equal(_merge(cls, base, experts, threads=3, block=1 << 16), one, f"{cls.name} on threads, in small blocks")


def law_shards_are_invisible(cls: type[Method]) -> None:
    """Files give the same bits as dictionaries, in one shard or several."""
    from safetensors.torch import load_file, save_file

    base, experts = sample_models(_count(cls))
    wanted = _merge(cls, base, experts)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        save_file(base, home / "base.safetensors")
        for index, expert in enumerate(experts):
            save_file(expert, home / f"{index}.safetensors")
        recipe: dict[str, Any] = {
            "method": _steps(cls, cls.example),
            "experts": {f"expert{i}": str(home / f"{i}.safetensors") for i in range(len(experts))},
            "shard_size": "300KB",
        }
        if cls.needs_base or not issubclass(cls, Combiner):
            recipe["base"] = str(home / "base.safetensors")
        merge(recipe, home / "out", threads=2)
        merged: State = {}
        for shard in sorted((home / "out").glob("*.safetensors")):
            merged |= load_file(shard)
    _equal(merged, wanted, f"{cls.name} through files in shards")


def law_compiled_is_torch(cls: type[Method]) -> None:
    """Loops that are compiled from the method's function give the bits that torch gives, for every stored dtype.

    Without a C compiler both run in torch.
    """
    base, experts = sample_models(_count(cls))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        stored = [{name: tensor.to(dtype) for name, tensor in state.items()} for state in (base, *experts)]
        plain = _merge(cls, stored[0], stored[1:], compile="never", seed=3)
        compiled = _merge(cls, stored[0], stored[1:], compile="always", seed=3)
        for name, wanted in plain.items():
            assert torch.equal(compiled[name].reshape(-1).view(torch.uint8), wanted.reshape(-1).view(torch.uint8)), (
                f"{cls.name}: {name} in {dtype} differs between the compiled loop and torch"
            )


def law_bf16_is_rounded_once(cls: type[Method]) -> None:
    """bfloat16 inputs give the float32 answer, rounded once."""
    base, experts = sample_models(_count(cls))
    low = [{k: v.bfloat16() for k, v in state.items()} for state in (base, *experts)]
    high = [{k: v.float() for k, v in state.items()} for state in low]
    rounded = _merge(cls, low[0], low[1:])
    exact = {k: v.bfloat16() for k, v in _merge(cls, high[0], high[1:]).items()}
    _equal(rounded, exact, f"{cls.name} in bfloat16")


def law_nan_is_reported(cls: type[Method]) -> None:
    """A NaN in an input stops the merge with the tensor's name."""
    base, experts = sample_models(_count(cls))
    name = "model.layers.1.mlp.down_proj.weight"
    experts[-1][name].view(-1)[7] = float("nan")
    try:
        _merge(cls, base, experts)
    except NonFiniteError as error:
        assert name in str(error), f"{cls.name}: the message does not name {name}"
    else:
        raise AssertionError(f"{cls.name} merged a NaN")


def law_changes_merge_by_themselves(cls: type[Method]) -> None:
    """A method that says so gives the same change on any base: moving base and experts alike moves the result."""
    base, experts = sample_models(_count(cls))
    wide = {name: weight.double() for name, weight in base.items()}
    deltas = [{name: weight.double() - wide[name] for name, weight in expert.items()} for expert in experts]
    zero = {name: torch.zeros_like(weight) for name, weight in wide.items()}
    alone = _merge(cls, zero, deltas, seed=1, on_base=cls.optional_base)
    moved = [{n: wide[n] + delta[n] for n in wide} for delta in deltas]
    on_base = _merge(cls, wide, moved, seed=1, on_base=cls.optional_base)
    for name, change in alone.items():
        error = float((on_base[name] - wide[name] - change).norm())
        assert error <= 1e-6 * float(change.norm()) + 1e-12, f"{cls.name}: the change of {name} depends on the base"


def law_seeds_decide(cls: type[Method]) -> None:
    """A random method repeats itself with one seed; another method ignores the seed."""
    base, experts = sample_models(_count(cls))
    first = _merge(cls, base, experts, seed=1)
    _equal(_merge(cls, base, experts, seed=1), first, f"{cls.name} with one seed twice")
    other = _merge(cls, base, experts, seed=2)
    same = all(torch.equal(other[k], first[k]) for k in first)
    random = cls(**cls.example).random
    assert same != random, f"{cls.name} {'ignores its seed' if random else 'depends on the seed but says it does not'}"


def laws(cls: type[Method]) -> list[Callable[[type[Method]], None]]:
    """The laws that apply to a method."""
    if cls.adapters_only:
        return [law_is_described]
    found: list[Callable[[type[Method]], None]] = [
        law_is_described,
        law_result_has_the_inputs_form,
        law_no_change_is_no_change,
        law_blocks_and_threads_are_invisible,
        law_shards_are_invisible,
        law_compiled_is_torch,
        law_bf16_is_rounded_once,
        law_nan_is_reported,
        law_seeds_decide,
    ]
    if cls.identity is not None and cls.min_experts <= 1:
        found.append(law_one_expert_is_itself)
    if cls.translates:
        found.append(law_changes_merge_by_themselves)
    if cls.symmetric and _count(cls) > 1:
        found.append(law_order_is_irrelevant)
    return found


def check_method(cls: type[Method]) -> None:
    """Run every law that applies to a method.

    Args:
        cls: a method class that is registered: one of this package, or a plug-in's through its entry point.

    Raises:
        AssertionError: naming the law and the tensor.
    """
    for law in laws(cls):
        law(cls)
