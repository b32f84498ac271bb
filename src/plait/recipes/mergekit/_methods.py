"""Every merge method of mergekit 0.1.5 as a method of plait with the values that make it mergekit's variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["NAMES", "TRANSLATIONS", "Given", "Translation"]


@dataclass(frozen=True)
class Given:
    """One parameter of a mergekit method.

    Attributes:
        to: plait's name for it; empty where it has no effect.
        default: mergekit's; None where it demands one.
        kind: of its values.
        own: models may have values of their own.
        choose: for a switch, what each position means in plait.
        change: applied to every number.
        optional: may be left unsaid (mergekit's default is "nothing").
    """

    to: str = ""
    default: Any = None
    kind: type = float
    own: bool = False
    choose: Mapping[bool, Mapping[str, Any]] = field(default_factory=dict)
    change: Callable[[Any], Any] | None = None
    optional: bool = False


@dataclass(frozen=True)
class Translation:
    """One method.

    Attributes:
        method: plait's name.
        base: whether mergekit needs the base model, can use it, or counts it as one more model.
        values: what makes plait's method mergekit's variant.
        parameters: mergekit's parameters.
        note: what stays different however the recipe is written.
    """

    method: str
    base: Literal["required", "optional", "ignored"]
    values: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Given] = field(default_factory=dict)
    note: str = ""


_WEIGHT = {"weight": Given("weight", own=True)}
_NOTHING = Given()
_RANDOM = (
    "the random masks are drawn from plait's own generator, with the same probabilities: the result has the same "
    "distribution as mergekit's, not the same bits."
)


def _normalize(default: bool, combine: bool) -> dict[str, Given]:
    """Divide by the weights: those who agree, of an election; else all."""
    yes, no = ({"combine": "mean"}, {"combine": "sum"}) if combine else ({"normalize": True}, {"normalize": False})
    return {"normalize": Given(default=default, kind=bool, choose={True: yes, False: no})}


def _rescale(default: bool, key: str) -> dict[str, Given]:
    return {"rescale": Given(default=default, kind=bool, choose={True: {key: "l1"}, False: {key: "none"}})}


def _deltas(
    normalize: bool, elects: bool, *, density: str = "", rescale: tuple[bool, str] | None = None
) -> dict[str, Given]:
    """What all of mergekit's methods on task vectors have."""
    return {
        **_WEIGHT,
        "lambda": Given("lambda", 1.0),
        **_normalize(normalize, elects),
        "density": Given(density, 1.0, own=True) if density else _NOTHING,
        **(_rescale(*rescale) if rescale else {"rescale": _NOTHING}),
        "int8_mask": _NOTHING,
    }


_TIES = {"scope": "tensor", "trim": "exact", "zero_sign": "positive"}
_ELECT = {"ties.density": 1.0, "ties.scope": "tensor", "ties.zero_sign": "positive"}
_BREADCRUMBS = {"breadcrumbs.scope": "tensor", "crowded": "drop_less"}
_GAMMA = {"gamma": Given("gamma", 0.01, own=True)}
_EPSILON = {"epsilon": Given("epsilon", 0.15, own=True)}

TRANSLATIONS: Mapping[str, Translation] = {
    "linear": Translation("linear", "ignored", parameters={**_WEIGHT, **_normalize(True, False)}),
    "slerp": Translation("slerp", "required", parameters={"t": Given("t")}),
    "nuslerp": Translation(
        "nuslerp",
        "optional",
        parameters={
            **_WEIGHT,
            "nuslerp_flatten": Given(default=True, kind=bool),
            "nuslerp_row_wise": Given(default=False, kind=bool),
        },
    ),
    "multislerp": Translation(
        "multislerp",
        "optional",
        parameters={
            **_WEIGHT,
            "normalize_weights": Given(
                default=True, kind=bool, choose={True: {"normalize": True}, False: {"normalize": False}}
            ),
            "eps": _NOTHING,
        },
    ),
    "karcher": Translation(
        "karcher",
        "ignored",
        parameters={"max_iter": Given("max_iter", 10, int), "tol": Given("tolerance", 1e-5)},
    ),
    "task_arithmetic": Translation("task_arithmetic", "required", parameters=_deltas(False, False)),
    "ties": Translation("ties", "required", _TIES, _deltas(True, True, density="density", rescale=(False, "rescale"))),
    "dare_linear": Translation(
        "dare_linear",
        "required",
        {},
        _deltas(False, False, density="density", rescale=(True, "rescale")),
        _RANDOM,
    ),
    "dare_ties": Translation(
        "dare_ties",
        "required",
        _ELECT,
        _deltas(False, True, density="dare.density", rescale=(True, "dare.rescale")),
        _RANDOM,
    ),
    "breadcrumbs": Translation(
        "model_breadcrumbs",
        "required",
        _BREADCRUMBS,
        {**_deltas(False, False, density="density", rescale=(False, "breadcrumbs.rescale")), **_GAMMA},
    ),
    "breadcrumbs_ties": Translation(
        "breadcrumbs_ties",
        "required",
        _BREADCRUMBS,
        {**_deltas(False, True, density="density", rescale=(False, "breadcrumbs.rescale")), **_GAMMA},
    ),
    "della": Translation(
        "della",
        "required",
        {},
        {**_deltas(True, True, density="density", rescale=(True, "magprune.rescale")), **_EPSILON},
        _RANDOM,
    ),
    "della_linear": Translation(
        "della_linear",
        "required",
        {},
        {**_deltas(False, False, density="density", rescale=(True, "magprune.rescale")), **_EPSILON},
        _RANDOM,
    ),
    "model_stock": Translation(
        "model_stock",
        "required",
        {"clamp": False, "floor": 1e-6},
        {"filter_wise": Given(default=False, kind=bool, choose={True: {"scope": "row"}, False: {"scope": "tensor"}})},
    ),
    "sce": Translation(
        "sce",
        "required",
        {"select": "deltas", "negligible": 1e-6},
        {"select_topk": Given("select_topk", 1.0), "int8_mask": _NOTHING},
    ),
    "arcee_fusion": Translation(
        "arcee_fusion",
        "required",
        note="the quartiles of arcee_fusion are exact; mergekit estimates those of tensors with more than a million "
        "entries from a random sample.",
    ),
    "nearswap": Translation("nearswap", "required", parameters={"t": Given("t")}),
    "ram": Translation("ram", "required", parameters={"epsilon": Given("epsilon", 1e-5)}),
    "ramplus_tl": Translation(
        "ramplus_tl",
        "required",
        parameters={
            "r": Given("r", 0.1, change=lambda r: 1.0 + r),
            "alpha": Given("limit", 0.2),
            "epsilon": Given("epsilon", 1e-5),
        },
    ),
    "passthrough": Translation("passthrough", "ignored", parameters={"scale": Given("scale", own=True, optional=True)}),
}

#: every name that is a parameter somewhere
NAMES = frozenset(name for translation in TRANSLATIONS.values() for name in translation.parameters)
