"""Layer scaling, Model Stock, extrapolation, checkpoint averages, geometric means, WIDEN, OrthoMerge."""

from __future__ import annotations

from typing import Any

from golden_cases import SPECTRAL, Call, Meta
from golden_cases.foundation import experts_of, options, weights


def plain_names(meta: Meta) -> tuple[str, ...]:
    """The experts of a golden whose inputs carry remarks: "expert0 (aligned)"."""
    names = (str(n).split()[0] for n in meta["inputs"])
    return tuple(n for n in names if n.startswith("expert"))


def lines(meta: Meta) -> Call:
    p = meta["parameters"]
    return Call(
        ["task_arithmetic", "lines"], {"alpha": float(p["alpha"]), "beta": float(p["beta"])}, experts=experts_of(meta)
    )


def model_stock(meta: Meta) -> Call:
    """The whole update is proportional to a cosine, of which a reference in float32 keeps few digits near 90°."""
    settings: dict[str, Any] = {"clamp": False, "floor": 1e-6}
    if options(meta).get("filter_wise", False):
        settings["scope"] = "row"
    return Call("model_stock", settings, experts=experts_of(meta), tolerance=SPECTRAL)


def model_stock_fusionbench(meta: Meta) -> Call:
    return Call("model_stock", {"clamp": False, "average": "angle"}, experts=experts_of(meta), tolerance=SPECTRAL)


def expo(meta: Meta) -> Call:
    p = meta["parameters"]
    return Call("expo", {"alpha": float(p.get("alpha", p.get("extrapolation_factor")))}, experts=plain_names(meta))


def nearswap(meta: Meta) -> Call:
    return Call("nearswap", {"t": float(options(meta)["t"])}, experts=experts_of(meta))


def arcee_fusion(meta: Meta) -> Call:
    return Call("arcee_fusion", experts=experts_of(meta), threshold=True)


def checkpoint_average(meta: Meta) -> Call:
    kind, names = str(meta["parameters"]["kind"]), tuple(meta["parameters"]["sequence"])
    if kind.startswith("ema"):
        return Call("ema", {"decay": float(kind.removeprefix("ema"))}, experts=names, base=None)
    return Call("swa", experts=names, base=None)


def widen(meta: Meta) -> Call:
    p = meta["parameters"]
    settings = {"ratio": float(p["above_average_value_ratio"]), "score": float(p["score_calibration_value"])}
    return Call("widen", settings, experts=experts_of(meta), tolerance=SPECTRAL)


def nuslerp(meta: Meta) -> Call:
    o = options(meta)
    scope = "tensor" if o.get("nuslerp_flatten", True) else "column" if o.get("nuslerp_row_wise", False) else "row"
    return Call("nuslerp", {"scope": scope}, experts_of(meta), meta["base_model"], weights(meta), tolerance=1e-5)


def multislerp(meta: Meta) -> Call:
    settings = {"normalize": options(meta).get("normalize_weights", True)}
    return Call("multislerp", settings, experts_of(meta), meta["base_model"], weights(meta), tolerance=1e-5)


def karcher(meta: Meta) -> Call:
    """Angles between whole models are small; the reference takes their arc cosine in float32."""
    o = options(meta)
    settings = {"max_iter": int(o.get("max_iter", 10)), "tolerance": float(o.get("tol", 1e-5))}
    return Call("karcher", settings, experts_of(meta), None, tolerance=SPECTRAL)


def orthomerge(meta: Meta) -> Call:
    p = meta["parameters"]
    kind, _, factor = str(p["residual"]).rpartition(" x")
    settings = {
        "rotate": "conflicting" if p["conflict"] else "all",
        "residual": "tsv" if kind == "tsv_merge" else "sum",
        "lambda": float(factor),
        "embeddings": "spectral",
        "head": "spectral",
    }
    # the reference runs a Cayley transform and two more SVDs in float32: it is 1.3e-4 away from float64 itself
    tolerance = 3e-4 if settings["residual"] == "tsv" else SPECTRAL
    return Call("orthomerge", settings, experts=experts_of(meta), tolerance=tolerance)


CASES = {
    r"lines-.*": lines,
    r"model_stock-(mergekit|mergellm).*": model_stock,
    r"model_stock-fusionbench-.*": model_stock_fusionbench,
    r"expo-.*": expo,
    r"nearswap-.*": nearswap,
    r"arcee_fusion-.*": arcee_fusion,
    r"checkpoint_average-.*": checkpoint_average,
    r"widen-.*": widen,
    r"nuslerp-.*": nuslerp,
    r"multislerp-.*": multislerp,
    r"karcher-.*": karcher,
    r"orthomerge-.*": orthomerge,
}
