"""Seconds and memory of merging three LoRA adapters of a 1 B model into one, beside PEFT on the same files.

    python benchmarks/adapters.py [--layers 16] [--rank 16] [--output-rank 16] [--peft] [--work FOLDER]

The shapes are those of Llama-3.2-1B (hidden 2048, 8192 in the MLP, 32 query and 8 key heads, 16 layers); every linear
layer has an adapter. Each tool runs in a process of its own, which reads three adapter files, makes their weighted sum,
cuts it to the output rank and writes an adapter. PEFT needs the base model in memory: it gets one of zeros in
float32, and the time to make it is not counted. Its exact combination is `cat`, the truncated one `svd` (an SVD of
every dense matrix); `--peft` runs `cat`, `--peft-svd` the SVD of one layer, from which all layers are extrapolated.
What is measured is the wall clock and the CPU time of the merge itself, the wall clock of the whole process, and the
process's peak resident memory. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HIDDEN, INNER, KEYS = 2048, 8192, 512
MODULES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
WEIGHTS = (0.5, 0.3, 0.2)


def make(home: Path, layers: int, rank: int) -> list[Path]:
    """Three adapters with random factors, in float32."""
    import torch
    from safetensors.torch import save_file

    folders = []
    for number in range(3):
        rng = torch.Generator().manual_seed(number)
        state = {}
        for layer in range(layers):
            for module, (m, n) in MODULES.items():
                head = f"base_model.model.model.layers.{layer}.{module}"
                state[f"{head}.lora_A.weight"] = torch.randn(rank, n, generator=rng) * n**-0.5
                state[f"{head}.lora_B.weight"] = torch.randn(m, rank, generator=rng) * 0.02
        folder = home / f"lora{number}"
        folder.mkdir(parents=True)
        save_file(state, folder / "adapter_model.safetensors")
        targets = [module.split(".")[1] for module in MODULES]
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": rank,
            "target_modules": targets,
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
        folders.append(folder)
    return folders


def with_plait(folders: list[Path], out: Path, rank: int) -> dict[str, float]:
    """Merge with plait."""
    import torch

    import plait

    torch.zeros(1)  # loading the library is not part of the merge, for either tool

    began = _now()
    experts = {f"e{i}": {"adapter": str(f), "weight": w} for i, (f, w) in enumerate(zip(folders, WEIGHTS, strict=True))}
    recipe = {"method": "task_arithmetic", "experts": experts, "output": {"kind": "adapter", "rank": rank}}
    plait.merge(recipe, out)
    return _since(began)


def with_peft(folders: list[Path], out: Path, rank: int, combination: str, layers: int) -> dict[str, float]:
    """Merge with PEFT on a base of zeros, whose making is not counted."""
    import warnings

    import torch
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForCausalLM

    warnings.simplefilter("ignore")
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=256,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    began = _now()
    wrapped = PeftModel.from_pretrained(model, folders[0], adapter_name="a0")
    for number, folder in enumerate(folders[1:], 1):
        wrapped.load_adapter(folder, adapter_name=f"a{number}")
    names = [f"a{number}" for number in range(len(folders))]
    more: dict[str, Any] = {"svd_rank": rank, "svd_full_matrices": False} if combination == "svd" else {}
    wrapped.add_weighted_adapter(names, list(WEIGHTS), "merged", combination_type=combination, **more)
    wrapped.save_pretrained(out, selected_adapters=["merged"])
    return _since(began)


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(began: tuple[float, float]) -> dict[str, float]:
    wall, cpu = _now()
    return {"merge_s": round(wall - began[0], 2), "merge_cpu_s": round(cpu - began[1], 2)}


def measured(tool: str, folders: list[Path], out: Path, rank: int, layers: int) -> dict[str, float]:
    """Run one tool in a process of its own."""
    words = ["--child", tool, "--output-rank", str(rank), "--layers", str(layers), "--work", str(out)]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, *words, *map(str, folders)], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return {**found, "process_s": round(time.perf_counter() - began, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--output-rank", type=int, default=16)
    parser.add_argument("--peft", action="store_true")
    parser.add_argument("--peft-svd", action="store_true")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--child")
    given = parser.parse_args()
    if given.child:
        if given.child == "plait":
            seconds = with_plait(given.folders, given.work, given.output_rank)
        else:
            seconds = with_peft(given.folders, given.work, given.output_rank, given.child, given.layers)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**seconds, "peak_mib": round(peak)}))
        return
    home = Path(tempfile.mkdtemp(prefix="plait-adapters-", dir=given.work))
    try:
        folders = make(home / "all", given.layers, given.rank)
        parameters = given.layers * sum(m * n for m, n in MODULES.values())
        results: dict[str, Any] = {
            "adapted_parameters": parameters,
            "rank": given.rank,
            "output_rank": given.output_rank,
        }
        results["plait"] = measured("plait", folders, home / "plait", given.output_rank, given.layers)
        if given.peft:
            results["peft cat"] = measured("cat", folders, home / "cat", given.output_rank, given.layers)
        if given.peft_svd:
            one = make(home / "one", 1, given.rank)
            found = measured("svd", one, home / "svd", given.output_rank, 1)
            results["peft svd, one layer"] = found
            results["peft svd, extrapolated merge_cpu_s"] = round(found["merge_cpu_s"] * given.layers, 1)
        print(json.dumps(results, indent=1))
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
