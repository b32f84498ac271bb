"""Quantised checkpoints: which formats are read, and what is said of the others.

A format is read where a test proves the result against the library that writes it. Nothing is cast without its scales:
whatever is left over that belongs to a packed weight is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch

from plait.checkpoints._base import LazyTensor
from plait.checkpoints._bitsandbytes import read_bitsandbytes
from plait.checkpoints._dtypes import CODED
from plait.checkpoints._scaled import GridTensor, PackedIntegers
from plait.errors import CheckpointError, QuantizedCheckpointError

__all__ = ["CODES", "dequantize"]

#: dtypes whose values mean nothing without scales
CODES = {dtype: name for name, dtype in CODED.items()}
_METHODS = ("fp8", "compressed-tensors", "bitsandbytes")
_MARKS = (".qweight", ".qzeros", ".SCB", ".quant_map", ".absmax", ".weight_scale", ".weight_scale_inv", "_blocks")
_MARKS += (".weight_packed", ".g_idx", ".weight_zero_point", ".weight_format")
#: scales of activations and of the cache, which an unquantised model has no use for
_RUNTIME = (".input_scale", ".input_zero_point", ".output_scale", ".activation_scale", ".k_scale", ".v_scale")
_FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized")

Tensors = Mapping[str, LazyTensor]


def dequantize(
    tensors: Tensors, config: Mapping[str, Any] | None, place: str
) -> tuple[dict[str, LazyTensor], dict[str, Any] | None, str]:
    """See a quantised model's weights as numbers.

    Args:
        tensors: as they are stored.
        config: contents of config.json.
        place: the folder or file, for messages.

    Returns:
        The weights, the config without its quantisation, and the format in words; empty for a model that is not
        quantised.

    Raises:
        QuantizedCheckpointError: for a format that is not read, and for parts without their scales.
    """
    settings = (config or {}).get("quantization_config")
    plain = {k: v for k, v in config.items() if k != "quantization_config"} if config is not None else None
    if not settings:
        _refuse_packed(tensors, place)
        return dict(tensors), dict(config) if config is not None else None, ""
    method = str(settings.get("quant_method", "quantised")) if isinstance(settings, Mapping) else "quantised"
    if method not in _METHODS or not isinstance(settings, Mapping):
        raise QuantizedCheckpointError(
            f"{place} is a {method} model (quantization_config in config.json): its stored numbers mean nothing "
            f"without their scales, and plait reads only {', '.join(_METHODS)} and GGUF. Use the original 16-bit "
            "checkpoint, or dequantise it with the library that made it."
        )
    kept = _dtype(config or {})
    match method:
        case "fp8":
            found, words = _fp8(tensors, settings, kept, place)
        case "compressed-tensors":
            found, words = _compressed(tensors, settings, kept, place)
        case _:
            found, words = read_bitsandbytes(tensors, kept, place)
    found = {name: tensor for name, tensor in found.items() if not name.endswith(_RUNTIME)}
    _refuse_packed(found, place)
    return found, plain, words


def _dtype(config: Mapping[str, Any]) -> torch.dtype:
    """The dtype that the model computes in."""
    text = config.get("text_config")
    for section in (config, text if isinstance(text, Mapping) else {}):
        for key in ("dtype", "torch_dtype"):
            found = getattr(torch, str(section.get(key)).removeprefix("torch."), None)
            if isinstance(found, torch.dtype) and found.is_floating_point and found not in CODES:
                return found
    return torch.bfloat16


def _refuse_packed(tensors: Tensors, place: str) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype in CODES:
            raise QuantizedCheckpointError(
                f"tensor {name!r} in {tensor.source} is stored as {CODES[tensor.dtype]}: its values mean nothing "
                "without their scales, and config.json does not say what those are. Convert the model to bfloat16 with "
                "the library that quantised it, or use the original checkpoint."
            )
        if name.endswith(_MARKS):
            raise QuantizedCheckpointError(
                f"{place} is quantised: tensor {name!r} in {tensor.source} belongs to packed weights. Use the "
                "original 16-bit checkpoint, or dequantise it with the library that made it."
            )


def _ordered(tensors: Tensors, found: Mapping[str, LazyTensor], used: set[str]) -> dict[str, LazyTensor]:
    """What was stored, with weights in the places of their codes."""
    made = {tensor.name: tensor for tensor in found.values()} | dict(found)
    result: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if name in made:
            result[name] = made[name]
        elif name not in used:
            result[name] = tensor
        elif name.endswith(".weight_packed"):
            result[name.removesuffix("_packed")] = made[name.removesuffix("_packed")]
    return result


def _fp8(tensors: Tensors, settings: Mapping[str, Any], kept: torch.dtype, place: str) -> tuple[Any, str]:
    """Code · scale of its block: DeepSeek's format, and transformers' `fp8`."""
    found: dict[str, LazyTensor] = {}
    used: set[str] = set()
    given = settings.get("weight_block_size")
    for name, codes in tensors.items():
        scale = tensors.get(f"{name}_scale_inv")
        if scale is None or codes.dtype not in CODES:
            continue
        block = _block(codes, scale, given, place)
        found[name] = GridTensor(codes, scale, block, kept)
        used |= {name, scale.name}
    words = f"FP8 in blocks of {given[0]} × {given[1]}" if isinstance(given, list) and len(given) == 2 else "FP8"
    return _ordered(tensors, found, used), words


def _block(codes: LazyTensor, scale: LazyTensor, given: Any, place: str) -> tuple[int, int]:
    """Rows and columns that share a scale: as the settings say, else as the shapes do."""
    rows, columns = codes.shape[0], prod(codes.shape[1:])
    if scale.numel == 1:
        return max(rows, 1), max(columns, 1)
    grid = scale.shape if len(scale.shape) == 2 else (scale.numel, 1)
    ways: list[tuple[int, int]] = []
    if isinstance(given, Sequence) and len(given) == 2 and all(isinstance(g, int) and g > 0 for g in given):
        ways.append((given[0], given[1]))
    if grid[0] and grid[1] and rows % grid[0] == 0 and columns % grid[1] == 0:
        ways.append((rows // grid[0], columns // grid[1]))
    for way in ways:
        if len(codes.shape) == 2 and (-(-rows // way[0]), -(-columns // way[1])) == tuple(grid):
            return way
    raise CheckpointError(
        f"{place}: the scales of {codes.name!r} have the shape {list(scale.shape)}, which does not fit its shape "
        f"{list(codes.shape)}{f' in blocks of {given}' if given else ''}. The files do not belong together."
    )


def _compressed(tensors: Tensors, settings: Mapping[str, Any], kept: torch.dtype, place: str) -> tuple[Any, str]:
    """(code − zero) · scale, by tensor, row, group of columns or block; codes of eight bits or packed into words."""
    groups = settings.get("config_groups")
    listed = [g for g in groups.values() if isinstance(g, Mapping)] if isinstance(groups, Mapping) else []
    formats = {str(g.get("format") or settings.get("format")) for g in listed} or {str(settings.get("format"))}
    strange = sorted(formats - set(_FORMATS))
    sparse = settings.get("sparsity_config") or {}
    if strange or settings.get("transform_config") or (sparse and sparse.get("format") != "dense"):
        what = ", ".join(strange) or ("transform_config" if settings.get("transform_config") else "sparsity_config")
        raise QuantizedCheckpointError(
            f"{place} is compressed as {what}, which plait does not read; of compressed-tensors it reads "
            f"{', '.join(_FORMATS)}. Use the original 16-bit checkpoint, or decompress it with compressed-tensors."
        )
    weights = [g["weights"] for g in listed if isinstance(g.get("weights"), Mapping)]
    bits = {int(w.get("num_bits", 8)) for w in weights}
    blocks = [w.get("block_structure") for w in weights if w.get("strategy") == "block"]
    found: dict[str, LazyTensor] = {}
    used: set[str] = set()
    for name, scale in tensors.items():
        if not name.endswith(".weight_scale"):
            continue
        weight = name.removesuffix("_scale")
        codes = tensors.get(weight)
        packed = tensors.get(f"{weight}_packed")
        if packed is not None:
            shape = tensors.get(f"{weight}_shape")
            if shape is None or len(bits) != 1 or packed.dtype != torch.int32 or len(packed.shape) != 2:
                raise CheckpointError(f"{place}: {packed.name!r} is packed, but its shape or its bits are not stated.")
            size = tuple(int(v) for v in shape.load().tolist())
            width = next(iter(bits))
            if width not in (2, 4, 8):
                raise QuantizedCheckpointError(
                    f"{place}: {packed.name!r} packs numbers of {width} bits, in ways that differ between versions of "
                    "compressed-tensors; decompress it with the one that made it."
                )
            if len(size) != 2 or size[0] != packed.shape[0] or -(-size[1] * width // 32) != packed.shape[1]:
                raise CheckpointError(f"{place}: {packed.name!r} does not hold {list(size)} numbers of {width} bits.")
            codes = PackedIntegers(weight, size, packed, width)
            used |= {packed.name, shape.name}
        if codes is None:
            continue
        zero, order = tensors.get(f"{weight}_zero_point"), tensors.get(f"{weight}_g_idx")
        if zero is not None and zero.shape != scale.shape:
            raise QuantizedCheckpointError(
                f"{place}: the zeros of {weight!r} are packed themselves, which plait does not read; decompress the "
                "model with compressed-tensors."
            )
        block = _block(codes, scale, blocks[0] if blocks else None, place)
        found[weight] = GridTensor(codes, scale, block, kept, zero, order)
        used |= {weight, name, *(t.name for t in (zero, order) if t is not None)}
    return _ordered(tensors, found, used), f"compressed-tensors {', '.join(sorted(formats))}"
