"""How far PEFT's ways to combine adapters are from the weighted sum of their changes.

    python benchmarks/peft_combinations.py

Three small adapters of rank 4 and alpha 8 (those of the golden vectors), weights 0.7, −0.3 and 0.5, density 0.5. For
each combination type: ‖Δ − Σ wᵢΔᵢ‖ / ‖Σ wᵢΔᵢ‖ over all modules. PEFT's own results on the same adapters are golden
vectors, which plait's method `peft` reproduces. Prints a table in Markdown.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

import plait

GOLDEN = Path(__file__).parent.parent / "tests" / "data" / "golden"
WEIGHTS = (0.7, -0.3, 0.5)
KINDS = (
    "cat",
    "svd",
    "linear",
    "ties",
    "ties_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
    "dare_linear",
    "dare_ties",
)


def changes(folder: Path) -> dict[str, Tensor]:
    """The changes an adapter of scale 1 makes."""
    state = load_file(folder / "adapter_model.safetensors")
    pairs = [(k, k.replace(".lora_A.", ".lora_B.")) for k in state if ".lora_A." in k]
    return {a: state[b].double() @ state[a].double() for a, b in pairs}


def main() -> None:
    home = Path(tempfile.mkdtemp(prefix="plait-peft-"))
    try:
        experts = {}
        for number, weight in enumerate(WEIGHTS):
            folder = home / f"lora{number}"
            folder.mkdir()
            shutil.copyfile(GOLDEN / f"lora{number}.safetensors", folder / "adapter_model.safetensors")
            (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
            experts[f"e{number}"] = {"adapter": str(folder), "weight": weight}
        recipe = {"experts": experts, "output": "adapter"}
        plait.merge({**recipe, "method": "task_arithmetic"}, home / "exact")
        wanted = changes(home / "exact")
        whole = math.sqrt(sum(float(t.square().sum()) for t in wanted.values()))
        print("| combination_type | distance from the weighted sum |\n|---|---|")
        for kind in KINDS:
            parameters = {"combination": kind, "density": 0.5}
            plait.merge({**recipe, "method": "peft", "parameters": parameters}, home / kind)
            ours = changes(home / kind)
            gap = math.sqrt(sum(float((ours[k] - wanted[k]).square().sum()) for k in wanted))
            print(f"| `{kind}` | {gap / whole:.1%} |")
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
