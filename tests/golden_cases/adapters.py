"""Adapters as inputs: written as PEFT folders, merged through the public path."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

import plait
from golden_cases import SPECTRAL, Call, Meta, State

#: what PEFT scaled by: alpha of each input, as lora_inputs.json says; the other references left alpha/r out
ALPHA = {"lora0": 8, "lora1": 8, "lora2": 8, "lora_het0": 4, "lora_het1": 8, "lora_het2": 6}


def adapters_of(meta: Meta) -> tuple[str, ...]:
    """The inputs that are adapters, in order."""
    return tuple(n for n in meta["inputs"] if n.startswith("lora"))


@dataclass(frozen=True)
class AdapterCall(Call):
    """One merge of adapters on a base, in folders.

    Attributes:
        alpha: of each input; the rank, so that nothing is scaled, where none is given.
    """

    alpha: dict[str, int] = field(default_factory=dict)

    def run(self, load: Callable[[str], State]) -> State:
        """Write, merge, read."""
        assert self.base is not None
        with tempfile.TemporaryDirectory() as place:
            home = Path(place)
            save_file(load(self.base), home / "base.safetensors")
            experts: dict[str, Any] = {}
            for name in self.experts:
                state = load(name)
                rank = next(t.shape[0] for key, t in state.items() if ".lora_A." in key)
                (home / name).mkdir()
                save_file(state, home / name / "adapter_model.safetensors")
                config = {"peft_type": "LORA", "r": rank, "lora_alpha": self.alpha.get(name, rank)}
                (home / name / "adapter_config.json").write_text(json.dumps(config))
                experts[name] = {"adapter": str(home / name)}
            for entry, weight in zip(experts.values(), self.weights or (), strict=False):
                entry["weight"] = weight
            recipe = {
                **self.recipe,
                "method": self.method,
                "base": str(home / "base.safetensors"),
                "experts": experts,
                "parameters": self.parameters,
            }
            plait.merge(recipe, home / "out", threads=1)
            return load_file(home / "out" / "model.safetensors")


def peft(meta: Meta) -> Call:
    """PEFT's add_weighted_adapter."""
    o = meta["parameters"]
    parameters = {"combination": o["combination_type"]}
    names = {"density": "density", "svd_rank": "rank", "majority_sign_method": "vote"}
    parameters |= {ours: o[theirs] for theirs, ours in names.items() if o.get(theirs) is not None}
    return AdapterCall(
        "peft",
        parameters,
        experts=adapters_of(meta),
        weights=[float(w) for w in o["weights"]],
        tolerance=SPECTRAL,
        alpha=ALPHA,
    )


def lorahub(meta: Meta) -> Call:
    """Each tensor of the adapters weighted by itself: a linear merge of their files."""
    weights = [float(w) for w in meta["parameters"]["weights"]]
    return Call("linear", {"normalize": False}, experts=adapters_of(meta), base=None, weights=weights)


CASES = {r"peft-.*": peft, r"lorahub-.*": lorahub}
LEFT_OUT = {r"lora_inputs": "describes the inputs: their ranks and alphas"}
