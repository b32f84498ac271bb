"""Breadcrumbs, DELLA, MagMax, EMR, magnitude pruning, SCE, VaRM, RAM, PCB, Consensus, Localize-and-Stitch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import plait
from golden_cases import Call, Meta, State
from golden_cases.foundation import density, experts_of, kept, options, per_model, scale, weights


def each(meta: Meta, key: str, default: Any) -> Any:
    """One value, or one per expert, of either layout."""
    p = meta["parameters"]
    return per_model(meta, key, default) if "per_model" in p else p.get(key, default)


def breadcrumbs_authors(meta: Meta) -> Call:
    p = meta["parameters"]
    return Call(
        "model_breadcrumbs",
        {
            "density": p["top_k_keep"],
            "gamma": p["top_k_remove"],
            "remove_first": p["remove_first"],
            "lambda": scale(meta),
        },
        experts=experts_of(meta),
        threshold=True,
    )


def breadcrumbs_mergekit(meta: Meta) -> Call:
    o = options(meta)
    mean = o.get("normalize", False)
    ties = str(meta["name"]).startswith("breadcrumbs_ties")
    return Call(
        "breadcrumbs_ties" if ties else "model_breadcrumbs",
        {
            "density": density(meta),
            "gamma": each(meta, "gamma", 0.01),
            "breadcrumbs.scope": "tensor",
            "crowded": "drop_less",
            # the older snapshot, whose runs have the flat layout, had the bug; release 0.1.5 has not
            "drop_small_tensors": "per_model" not in meta["parameters"],
            "lambda": scale(meta),
        }
        | ({"combine": "mean" if mean else "sum"} if ties else {"normalize": mean}),
        experts=experts_of(meta),
        weights=weights(meta),
        threshold=True,
    )


def breadcrumbs_mergellm(meta: Meta) -> Call:
    p = meta["parameters"]
    keep, small = float(p["param_density"]), float(p["param_value_mask_rate"])
    return Call(
        "model_breadcrumbs",
        {
            "density": keep,
            "gamma": round(1 - keep - small, 12),
            "scope": "tensor",
            "counts": "dropped",
            "lambda": scale(meta),
        },
        experts=experts_of(meta),
        weights=None,
        threshold=True,
    )


def della_authors(meta: Meta) -> Call:
    p = meta["parameters"]
    name = str(meta["method"])
    return Call(
        "della",
        {
            "density": p["density"],
            "epsilon": p["epsilon"],
            "rescale": "inverse" if p["rescale"] else "none",
            "scope": "tensor" if "_layer-" in name else "row",
            "by": "magnitude" if "magnitude_sample" in name else "rank",
            "combine": "mean" if p["normalize"] else "sum",
            "lambda": scale(meta),
        },
        experts=experts_of(meta),
        masks=(f"{meta['name']}.masks", kept),
        threshold=True,
    )


def della_mergekit(meta: Meta) -> Call:
    o = options(meta)
    linear = str(meta["name"]).startswith("della_linear")
    mean = o.get("normalize", not linear)
    return Call(
        "della_linear" if linear else "della",
        {
            "density": density(meta),
            "epsilon": each(meta, "epsilon", 0.15),
            "rescale": "l1" if o.get("rescale", True) else "none",
            "lambda": scale(meta),
        }
        | ({"normalize": mean} if linear else {"combine": "mean" if mean else "sum"}),
        experts=experts_of(meta),
        weights=weights(meta),
        masks=(f"{meta['name']}.masks", kept),
        threshold=True,
    )


def magmax(meta: Meta) -> Call:
    return Call("magmax", {"lambda": scale(meta)}, experts=experts_of(meta))


class OfTaskVectors(Call):
    """A golden that is a task vector: the base is zero, the experts are their task vectors."""

    def run(self, load: Callable[[str], State]) -> State:
        assert self.base is not None
        base = load(self.base)
        vectors = {name: {key: tensor - base[key] for key, tensor in load(name).items()} for name in self.experts}
        zero = {key: torch.zeros_like(tensor) for key, tensor in base.items()}
        return plait.merge_state_dicts(self.method, vectors, zero, **self.parameters)


def emr_unified(meta: Meta) -> Call:
    return OfTaskVectors("emr", experts=experts_of(meta))


def magnitude_pruning(meta: Meta) -> Call:
    p = meta["parameters"]
    assert p["prune_type"] == "minor" and p["rescale"] is None
    return Call(
        ["magnitude_pruning", "task_arithmetic"],
        {"density": round(1 - float(p["prune_ratio"]), 12)},
        experts=experts_of(meta),
        recipe={
            "copy": [{"role": ["embedding", "norm"], "from": "base"}, {"match": "*.bias", "from": "base"}],
        },
        threshold=True,
    )


def sce(meta: Meta) -> Call:
    mergekit = "-mergekit-" in str(meta["name"])
    return Call(
        "sce",
        {
            "select_topk": float(options(meta).get("select_topk", 1.0)),
            "select": "deltas" if mergekit else "weights",
            "negligible": 1e-6 if mergekit else 0.0,
        },
        experts=experts_of(meta),
        threshold=True,
    )


def varm(meta: Meta) -> Call:
    p = meta["parameters"]
    assert not p.get("use_sfmax", False) and p.get("temp", 1.0) == 1.0
    part = str(p.get("granularity", "merge_with_item")).removeprefix("merge_with_").partition("_")[0]
    return Call(
        "varm",
        {
            "granularity": {"param": "matrix", "item": "parameter"}.get(part, part),
            "measure": "abs" if p["merge_type"] == "abs" else "square",
            "zero_unmoved": part == "item",
        },
        experts=experts_of(meta),
    )


def sparsified(base: State, experts: list[State]) -> list[State]:
    """What the sparse RAM goldens did to their experts first."""
    changed = []
    for expert in experts:
        deltas = {key: tensor - base[key] for key, tensor in expert.items()}
        changed.append({key: base[key] + delta * (delta.abs() > 0.02) for key, delta in deltas.items()})
    return changed


def ram_authors(meta: Meta) -> Call:
    p = meta["parameters"]
    variant = str(meta["method"]).removeprefix("ram-").removeprefix("sparse-")
    values: dict[str, Any] = {"epsilon": p["threshold"]}
    if variant == "arm_ties":
        values |= {"shared": "ties", "scope": "tensor"}
    elif variant != "arm":
        values |= {"r": p["r"], "ratio": "active" if variant == "arm_r" else "unique"}
    return Call("ram", values, experts=experts_of(meta), prepare=sparsified if "sparsified" in p else None)


def ram_mergekit(meta: Meta) -> Call:
    o = options(meta)
    values: dict[str, Any] = {"epsilon": o.get("epsilon", 1e-5)}
    if "ramplus" not in str(meta["name"]):
        return Call("ram", values, experts=experts_of(meta))
    values |= {"r": 1 + o.get("r", 0.1), "limit": o.get("alpha", 0.2)}
    return Call("ramplus_tl", values, experts=experts_of(meta))


def pcb(meta: Meta) -> Call:
    p = meta["parameters"]
    ratio = p.get("pcb_ratio", p.get("att_ratio"))
    return Call(
        "pcb", {"ratio": ratio, "clamp": p["clamp"], "lambda": scale(meta)}, experts=experts_of(meta), threshold=True
    )


def consensus(meta: Meta) -> Call:
    p = meta["parameters"]
    return Call(
        "consensus_ties" if "-ties-" in str(meta["method"]) else "consensus_ta",
        {"agreement": p["prun_thre_k"], "threshold": p["tall_mask_lambda"], "alpha": p["scaling"]},
        experts=experts_of(meta),
        threshold=True,
    )


def localize_stitch(meta: Meta) -> Call:
    return Call(
        "localize_stitch",
        {"density": meta["parameters"]["sparsity"]},
        experts=experts_of(meta),
        threshold=True,
    )


CASES = {
    r"breadcrumbs-keep.*": breadcrumbs_authors,
    r"breadcrumbs(_ties)?-mergekit-.*": breadcrumbs_mergekit,
    r"breadcrumbs-mergellm-.*": breadcrumbs_mergellm,
    r"della(_linear)?-mergekit-.*": della_mergekit,
    r"della-.*": della_authors,
    r"magmax-.*": magmax,
    r"emr-fusionbench-unified_task_vector.*": emr_unified,
    r"magnitude_diff_pruning-.*": magnitude_pruning,
    r"ram(plus_tl)?-mergekit.*": ram_mergekit,
    r"ram-.*": ram_authors,
    r"sce-.*": sce,
    r"pcb-.*": pcb,
    r"consensus-.*": consensus,
    r"localize_stitch-dataless-.*": localize_stitch,
    r"varm-.*": varm,
}

LEFT_OUT = {
    r"emr-fusionbench-task\d+": "one model per task: the family of EMR's masks and rescalers, not a merged model",
    r"tall-.*-task\d+|tall_mask-.*-task\d+": "one model per task: the compressed family of TALL-masks",
    r"tall-.*-packedmasks": "packed masks of the compressed family of TALL-masks",
    r"localize_stitch-trained-.*": "trains its masks on data; only the dataless version is a data-free method",
}
