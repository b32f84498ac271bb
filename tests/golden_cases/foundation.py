"""Averages, task arithmetic, TIES, DARE, SLERP, passthrough."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from golden_cases import Call, Meta, State

MERGEKIT_TIES = {"scope": "tensor", "trim": "exact", "zero_sign": "positive"}


def experts_of(meta: Meta) -> tuple[str, ...]:
    """The inputs that are experts, in order."""
    base = meta.get("base_model")
    return tuple(n for n in meta["inputs"] if n.startswith("expert") and n != base)


def per_model(meta: Meta, key: str, default: Any) -> dict[str, Any]:
    """A per-model value of a recorded mergekit run."""
    return {n: meta["parameters"]["per_model"].get(n, {}).get(key, default) for n in experts_of(meta)}


def weights(meta: Meta) -> list[float] | None:
    """Weights in either of the two forms goldens have."""
    p = meta["parameters"]
    if "per_model" in p:
        return [float(w) for w in per_model(meta, "weight", 1.0).values()]
    given = p.get("weight", p.get("weights"))
    return None if given is None else [float(w) for w in given]


def options(meta: Meta) -> dict[str, Any]:
    """Global options in either form."""
    p = meta["parameters"]
    return dict(p["global"]) if "per_model" in p else dict(p)


def scale(meta: Meta, default: float = 1.0) -> float:
    """The coefficient on the merged task vector, under its many names."""
    o = options(meta)
    for key in ("lambda", "lam", "scaling_coef", "scaling_coefficient", "scaling_factor", "scaling"):
        if key in o:
            return float(o[key])
    return default


def density(meta: Meta) -> Any:
    """One density, or one per expert."""
    if "per_model" in meta["parameters"]:
        return per_model(meta, "density", 1.0)
    return meta["parameters"]["density"]


def average(meta: Meta) -> Call:
    return Call(
        "linear",
        {"normalize": options(meta).get("normalize", True)},
        experts=experts_of(meta),
        base=None,
        weights=weights(meta),
    )


def interpolation(meta: Meta) -> Call:
    share = float(meta["parameters"]["lambda"])
    return Call("linear", experts=("expert0", "expert1"), base=None, weights=[share, 1 - share])


def task_arithmetic(meta: Meta) -> Call:
    o = options(meta)
    return Call(
        "task_arithmetic",
        {"lambda": scale(meta), "normalize": o.get("normalize", False)},
        experts=experts_of(meta),
        weights=weights(meta),
    )


def negation(meta: Meta) -> Call:
    coefficient = -float(meta["parameters"]["scaling_coef"])
    return Call("task_arithmetic", experts=(meta["parameters"]["negated"],), weights=[coefficient])


def analogy(meta: Meta) -> Call:
    return Call("task_arithmetic", {"lambda": scale(meta)}, weights=[-1.0, 1.0, 1.0])


def ties_authors(meta: Meta) -> Call:
    p = meta["parameters"]
    combine = str(p["merge_func"]).removeprefix("dis-")
    share = float(p.get("reset_thresh", p.get("threshold"))) / 100
    return Call(
        "ties", {"density": share, "combine": combine, "lambda": scale(meta)}, experts=experts_of(meta), threshold=True
    )


def adamergingpp_start(meta: Meta) -> Call:
    """AdaMerging++ before its first step: TIES whose agreeing entries are added up, one coefficient per expert."""
    p = meta["parameters"]
    (coefficient,) = set(p["coefficients"])
    parameters = {"density": float(p["K"]) / 100, "combine": str(p["merge_func"]).removeprefix("dis-")}
    return Call("ties", {**parameters, "lambda": float(coefficient)}, experts=experts_of(meta), threshold=True)


def ties_mergelm(meta: Meta) -> Call:
    keep = round(1 - float(meta["parameters"]["param_value_mask_rate"]), 12)
    scope = "model" if str(meta["method"]).startswith("ties-mergelm-") else "tensor"
    zero = "positive" if "long2short" in str(meta["method"]) else "majority"
    return Call(
        "ties",
        {"density": keep, "trim": "mask_rate", "scope": scope, "zero_sign": zero, "lambda": scale(meta)},
        experts=experts_of(meta),
        threshold=True,
    )


def ties_mergekit(meta: Meta) -> Call:
    o = options(meta)
    return Call(
        "ties",
        {
            **MERGEKIT_TIES,
            "density": density(meta),
            "combine": "mean" if o.get("normalize", True) else "sum",
            "rescale": "l1" if o.get("rescale", False) else "none",
            "lambda": scale(meta),
        },
        experts=experts_of(meta),
        weights=weights(meta),
        threshold=True,
    )


def as_draws(keep: Tensor) -> Tensor:
    """A number that keeps an entry whatever the density, or one that drops it."""
    return torch.where(keep != 0, 0.0, 1.0 - 2.0**-24)


def keep_mask(file: State, tensor: str, expert: str) -> Tensor:
    """The mask of one tensor and expert, 1 for keep, under the names that goldens use."""
    number = expert.removeprefix("expert")
    for key in (f"mask{number}::{tensor}", f"keep.{expert}.{tensor}", f"{expert}.{tensor}"):
        if key in file:
            return file[key] != 0
    return file[f"drop.{expert}.{tensor}"] == 0


def kept(file: State, tensor: str, expert: str) -> Tensor:
    return as_draws(keep_mask(file, tensor, expert))


def dare_magnitude(meta: Meta) -> Call:
    p = meta["parameters"]
    names = experts_of(meta)
    return Call(
        ["dare", "task_arithmetic"],
        {
            "density": round(1 - float(p["mask_rate"]), 12),
            "strategy": "magnitude",
            "rescale": "inverse" if p["use_rescale"] else "none",
            "normalize": True,
        },
        experts=names,
        threshold=True,
    )


def dare_random(meta: Meta) -> Call:
    p = meta["parameters"]
    return Call(
        ["dare", "task_arithmetic"],
        {"density": round(1 - float(p["mask_rate"]), 12), "lambda": scale(meta)},
        experts=experts_of(meta),
        masks=(f"{meta['name']}.masks", kept),
    )


def dare_mergekit(meta: Meta) -> Call:
    o = options(meta)
    steps: dict[str, Any] = {
        "dare.density": density(meta),
        "dare.rescale": "l1" if o.get("rescale", True) else "none",
        "lambda": scale(meta),
    }
    if str(meta["name"]).startswith("dare_ties"):
        ties = {**MERGEKIT_TIES, "combine": "mean" if o.get("normalize", False) else "sum"}
        steps |= {f"ties.{k}": v for k, v in ties.items()} | {"ties.density": 1.0}
        method = "dare_ties"
    else:
        steps["normalize"] = o.get("normalize", False)
        method = "dare_linear"
    return Call(
        method,
        steps,
        experts=experts_of(meta),
        weights=weights(meta),
        masks=(f"{meta['name']}.masks", kept),
        threshold=True,
    )


def dare_fusionbench(meta: Meta) -> Call:
    p = meta["parameters"]
    steps: dict[str, Any] = {
        "dare.density": round(1 - float(p["sparsity_ratio"]), 12),
        "dare.rescale": "inverse" if p["rescale"] else "none",
        "lambda": scale(meta),
    }
    method = "dare_linear"
    if "merge_func" in p:
        steps |= {"ties.density": float(p["threshold"]) / 100, "combine": p["merge_func"]}
        method = "dare_ties"
    return Call(method, steps, experts=experts_of(meta), masks=(f"{meta['name']}.masks", kept), threshold=True)


def slerp(meta: Meta) -> Call:
    names = tuple(n for n in meta["inputs"] if n == "base" or n.startswith("expert"))
    return Call("slerp", {"t": float(options(meta)["t"])}, experts=names, base=None)


def passthrough(meta: Meta) -> Call:
    (factor,) = per_model(meta, "scale", 1.0).values()
    return Call("passthrough", {"scale": factor}, experts=experts_of(meta), base=None)


CASES = {
    r"(average-mergelm|simple_average-|weighted_average-|linear-).*": average,
    r"unival-interpolation-.*": interpolation,
    r"task_arithmetic-negation.*": negation,
    r"task_arithmetic-analogy.*": analogy,
    r"task_arithmetic.*": task_arithmetic,
    r"ties-top.*|ties_merging-fusionbench-.*": ties_authors,
    r"adamergingpp-init.*": adamergingpp_start,
    r"ties-(mergelm|mergellm|long2short)-.*": ties_mergelm,
    r"ties-mergekit-.*": ties_mergekit,
    r"dare-magnitude-.*": dare_magnitude,
    r"dare-random-.*": dare_random,
    r"dare_(linear|ties)-mergekit-.*": dare_mergekit,
    r"dare_(task_arithmetic|ties)-fusionbench.*": dare_fusionbench,
    r"slerp-.*": slerp,
    r"passthrough-.*": passthrough,
}
