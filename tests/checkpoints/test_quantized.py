"""Quantised models are read as the libraries that write them read them; everything else is refused by name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import plait
from models import CONFIG, family, llama, read, save
from plait.checkpoints import Checkpoint, LazyTensor
from plait.errors import CheckpointError, QuantizedCheckpointError
from plait.reports import check
from plait.reports._reproduce import reproduce

State = dict[str, Tensor]


def _is(weight: LazyTensor, wanted: Tensor) -> None:
    """Whole, and in ranges that begin and end anywhere."""
    assert weight.dtype == torch.float32 and weight.shape == tuple(wanted.shape)
    torch.testing.assert_close(weight.load().to(wanted.dtype), wanted, rtol=0, atol=0)
    flat = weight.load().reshape(-1)
    for start, stop in ((0, 1), (3, 50), (flat.numel() // 3, flat.numel() // 2 + 1), (flat.numel() - 5, flat.numel())):
        assert torch.equal(weight.read(start, stop), flat[start:stop])
    assert weight.read(4, 4).numel() == 0


def _fp8(state: State, block: tuple[int, int] | None, kind: torch.dtype = torch.float8_e4m3fn) -> State:
    """Matrices of the layers as codes, with the scale of each block, as DeepSeek's files have them."""
    largest = torch.finfo(kind).max
    found: State = {}
    for name, weight in state.items():
        if "_proj" not in name:
            found[name] = weight
            continue
        rows, columns = block or weight.shape
        grid = torch.stack(
            [torch.stack([b.abs().amax() for b in band.split(columns, 1)]) for band in weight.split(rows)]
        )
        scale = (grid / largest).clamp(min=1e-12)
        spread = scale.repeat_interleave(rows, 0)[: weight.shape[0]].repeat_interleave(columns, 1)[:, : weight.shape[1]]
        found[name] = (weight / spread).to(kind)
        found[f"{name}_scale_inv"] = scale
    return found


def _settings(block: tuple[int, int] | None) -> dict[str, Any]:
    return {"quant_method": "fp8", "weight_block_size": list(block) if block else None, "activation_scheme": "dynamic"}


def test_fp8_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    """Block-wise scales, dequantised by transformers on loading."""
    transformers = pytest.importorskip("transformers")
    state = _fp8(llama(0), (16, 16))
    folder = save(tmp_path / "fp8", state, quantization_config=_settings((16, 16)), torch_dtype="bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16")
    checkpoint = Checkpoint.open(folder)
    theirs = model.state_dict()
    assert set(checkpoint.tensors) == set(theirs) and checkpoint.quantized == "FP8 in blocks of 16 × 16"
    for name, wanted in theirs.items():
        if "_proj" in name:
            _is(checkpoint[name], wanted)
            assert checkpoint[name].kept == torch.bfloat16


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("block", [(16, 16), (10, 7), None])
def test_fp8_scales_by_block_and_by_tensor(block: tuple[int, int] | None, kind: torch.dtype, tmp_path: Path) -> None:
    """Blocks that are cut short at the edges, and one scale for a whole matrix."""
    state = _fp8(llama(0, layers=1), block, kind)
    checkpoint = Checkpoint.open(save(tmp_path / "m", state, quantization_config=_settings(block)))
    name = "model.layers.0.mlp.up_proj.weight"
    rows, columns = block or state[name].shape
    scale = state[f"{name}_scale_inv"].repeat_interleave(rows, 0)[:48].repeat_interleave(columns, 1)[:, :32]
    _is(checkpoint[name], state[name].float() * scale)


def test_a_merge_of_quantised_parents_is_not_quantised(tmp_path: Path) -> None:
    """From values with their scales; the config loses its settings; provenance names what lay on disk."""
    block = (16, 16)
    for i, expert in enumerate(family(2)[1]):
        state = _fp8({k: v.bfloat16() for k, v in expert.items()}, block)
        save(tmp_path / f"m{i}", state, quantization_config=_settings(block), torch_dtype="bfloat16")
    recipe = {"method": "linear", "experts": [str(tmp_path / "m0"), str(tmp_path / "m1")]}
    recipe["copy"] = [{"match": "*.k_proj.*", "from": "expert1"}]
    plan = plait.plan(recipe)
    assert any("expert0 is stored as FP8" in note for note in plan.notes)
    plait.merge(recipe, tmp_path / "out", threads=2)
    got = read(tmp_path / "out")
    a, b = (Checkpoint.open(tmp_path / f"m{i}") for i in range(2))
    assert set(got) == set(a.tensors) and all(t.dtype == torch.bfloat16 for t in got.values())
    name = "model.layers.2.mlp.down_proj.weight"
    assert torch.equal(got[name], ((a[name].load() + b[name].load()) / 2).bfloat16())
    copied = "model.layers.2.self_attn.k_proj.weight"
    assert torch.equal(got[copied], b[copied].load().bfloat16())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config and config["torch_dtype"] == "bfloat16"
    record = json.loads((tmp_path / "out" / "plait.json").read_text())
    assert record["inputs"]["expert0"]["tensors"] == len(a.stored) - 3 * 2  # k_proj and its scales come from the other
    assert reproduce(tmp_path / "out").identical
    found = check(recipe)
    noted = [f for f in found.findings if f.kind == "quantised"]
    assert found.fit and len(noted) == 2 and all(f.level == "notes" and "FP8" in f.sentence for f in noted)


Scheme = dict[str, Any]
SCHEMES: dict[str, tuple[str, Scheme]] = {
    "float-tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    "float-channel": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "float-block": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 16]},
    ),
    "int-channel": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
    "int-asymmetric": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": False}),
    "packed-group": ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16}),
    "packed-channel": ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "channel"}),
    "packed-eight": ("pack-quantized", {"num_bits": 8, "type": "int", "strategy": "group", "group_size": 8}),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_compressed_tensors_are_what_their_library_decompresses(scheme: str, tmp_path: Path) -> None:
    """Compressed by the library, one weight at a time, and decompressed by it."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    form, arguments = SCHEMES[scheme]
    plan = QuantizationScheme(targets=["Linear"], weights=arguments)
    assert plan.weights is not None
    compressor = BaseCompressor.get_value_from_registry(form)
    state: State = {}
    wanted: State = {}
    for name, weight in llama(0, layers=1).items():
        if "_proj" not in name:
            state[name] = weight
            continue
        rows, columns = weight.shape
        size = {"tensor": (rows, columns), "channel": (1, columns), "group": (1, arguments.get("group_size", 1))}
        high, wide = size.get(arguments["strategy"], (16, 16))
        tiles = weight.reshape(rows // high, high, columns // wide, wide)
        scale, zero = calculate_qparams(tiles.amin((1, 3)), tiles.amax((1, 3)), plan.weights)
        if arguments["strategy"] == "tensor":
            scale, zero = scale.reshape(1), zero.reshape(1)
        parts = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        packed = compressor.compress(parts, plan)
        wanted[name] = compressor.decompress(dict(packed), plan)["weight"]
        state |= {f"{name.removesuffix('weight')}{key}": value.contiguous() for key, value in packed.items()}
    settings = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"weights": arguments}},
    }
    checkpoint = Checkpoint.open(save(tmp_path / "m", state, quantization_config=settings))
    assert set(checkpoint.tensors) == set(llama(0, layers=1)) and form in checkpoint.quantized
    for name, values in wanted.items():
        _is(checkpoint[name], values)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "nf4-nested", "fp4-nested", "int8"])
def test_bitsandbytes_is_what_it_dequantises(kind: str, tmp_path: Path) -> None:
    """Quantised by the library on the CPU, with its state as it writes it into files."""
    pytest.importorskip("bitsandbytes")
    from bitsandbytes import functional

    state: State = {"model.norm.weight": torch.ones(8)}
    wanted: State = {}
    rng = torch.Generator().manual_seed(0)
    # rows of whole blocks: where a block reaches into the next row, the library's CPU code takes another block's scale
    for i, shape in enumerate(((48, 64), (8, 256), (64, 128))):
        name = f"model.layers.{i}.mlp.up_proj.weight"
        half = torch.randn(shape, generator=rng).to(torch.float16)
        if kind == "int8":
            codes, sizes, _ = functional.int8_vectorwise_quant(half)
            state |= {name: codes, name.replace("weight", "SCB"): sizes}
            state[name.replace("weight", "weight_format")] = torch.tensor(0, dtype=torch.uint8)
            wanted[name] = functional.int8_vectorwise_dequant(codes, sizes).float()
            continue
        codes, own = functional.quantize_4bit(
            half, blocksize=64, quant_type=kind[:3], compress_statistics=kind.endswith("nested")
        )
        state[name] = codes
        state |= {f"{name}.{key}": value for key, value in own.as_dict(packed=True).items()}
        wanted[name] = functional.dequantize_4bit(codes, own)
    bits = {"load_in_8bit": True} if kind == "int8" else {"load_in_4bit": True}
    settings = {"quant_method": "bitsandbytes", **bits}
    checkpoint = Checkpoint.open(save(tmp_path / "m", state, quantization_config=settings))
    assert set(checkpoint.tensors) == {"model.norm.weight", *wanted} and kind[:3] in checkpoint.quantized
    for name, values in wanted.items():
        if kind == "int8":
            torch.testing.assert_close(checkpoint[name].load(), values, rtol=1e-6, atol=0)
        else:
            _is(checkpoint[name], values)


def test_a_four_bit_file_is_read_without_its_library(tmp_path: Path) -> None:
    """The format is public: a table, scales of blocks, two codes in a byte, the first in the upper half."""
    table = torch.linspace(-1, 1, 16)
    codes = torch.randint(0, 256, (32, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    about = {"quant_type": "nf4", "blocksize": 32, "dtype": "bfloat16", "shape": [8, 8]}
    text = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
    state = {"l.0.weight": codes, "l.0.weight.absmax": torch.tensor([2.0, 3.0]), "l.0.weight.quant_map": table}
    state["l.0.weight.quant_state.bitsandbytes__nf4"] = text
    folder = save(tmp_path / "m", state, quantization_config={"quant_method": "bitsandbytes"})
    checkpoint = Checkpoint.open(folder)
    halves = torch.stack((codes[:, 0] >> 4, codes[:, 0] & 15), 1).reshape(-1).long()
    _is(checkpoint["l.0.weight"], (table[halves].view(2, 32) * torch.tensor([[2.0], [3.0]])).view(8, 8))
    assert checkpoint["l.0.weight"].kept == torch.bfloat16


def _refused(home: Path, state: State, settings: Any, error: type[Exception], said: str) -> None:
    folder = save(home, state, config={**CONFIG, **({"quantization_config": settings} if settings else {})})
    with pytest.raises(error, match=said):
        Checkpoint.open(folder)


def test_what_is_not_read_is_refused_by_name(tmp_path: Path) -> None:
    """Methods, formats, and parts that are left over."""
    state = llama(0, layers=1)
    name = "model.layers.0.mlp.up_proj.weight"
    codes = {**state, name: state[name].to(torch.float8_e4m3fn)}
    for method in ("gptq", "awq", "aqlm", "modelopt"):
        _refused(tmp_path / method, state, {"quant_method": method}, QuantizedCheckpointError, f"is a {method} model")
    _refused(tmp_path / "a", codes, _settings((16, 16)), QuantizedCheckpointError, "F8_E4M3.*without their scales")
    _refused(tmp_path / "b", codes, None, QuantizedCheckpointError, "F8_E4M3")
    scales = {**codes, f"{name}_scale_inv": torch.ones(5, 5)}
    _refused(tmp_path / "c", scales, _settings((16, 16)), CheckpointError, "does not fit its shape")
    alone = {**state, f"{name}_scale_inv": torch.ones(3, 2)}
    _refused(tmp_path / "d", alone, _settings((16, 16)), QuantizedCheckpointError, "belongs to packed weights")
    settings = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
    _refused(tmp_path / "e", state, settings, QuantizedCheckpointError, "nvfp4-pack-quantized")
    bits = {**state, "model.layers.0.mlp.up_proj.SCB": torch.ones(7)}
    bits[name] = torch.zeros(48, 32, dtype=torch.int8)
    _refused(tmp_path / "f", bits, {"quant_method": "bitsandbytes"}, CheckpointError, "one for each row")
    save_file(codes, tmp_path / "alone.safetensors")
    with pytest.raises(QuantizedCheckpointError, match="F8_E4M3"):
        Checkpoint.open(tmp_path / "alone.safetensors")
