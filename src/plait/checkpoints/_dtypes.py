"""Names of dtypes in files, in recipes and in torch."""

from __future__ import annotations

import torch

from plait.errors import RecipeError, suggest

__all__ = [
    "CODED",
    "QUANTIZED",
    "RECIPE_DTYPES",
    "SAFETENSORS",
    "is_float",
    "parse_dtype",
    "promote",
    "safetensors_name",
    "short",
]

#: safetensors spelling → torch dtype
SAFETENSORS: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}
#: storage formats whose values mean nothing without scales kept elsewhere; codes of them are read where the scales are
CODED: dict[str, torch.dtype] = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
QUANTIZED = frozenset({"F8_E8M0", "F4", "F6_E2M3", "F6_E3M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})

_NAMES = {dtype: name for name, dtype in SAFETENSORS.items()}
_MERGED = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_ALIASES = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "half": "float16"}
#: what a recipe may ask for
RECIPE_DTYPES = tuple(_MERGED)


def safetensors_name(dtype: torch.dtype) -> str:
    """Spell a dtype as a safetensors header does."""
    return _NAMES[dtype]


def short(dtype: torch.dtype) -> str:
    """Spell a dtype without the `torch.` prefix, as config.json does."""
    return str(dtype).removeprefix("torch.")


def is_float(dtype: torch.dtype) -> bool:
    """Tell whether values of this dtype are merged; integers and booleans are copied."""
    return dtype.is_floating_point


def parse_dtype(text: str) -> torch.dtype:
    """Read an output dtype: float64, float32, float16, bfloat16 or their usual short forms.

    Raises:
        RecipeError: for anything else.
    """
    name = text.removeprefix("torch.").lower()
    name = _ALIASES.get(name, name)
    if name not in _MERGED:
        raise RecipeError(f"unknown dtype {text!r}; use one of {', '.join(RECIPE_DTYPES)}.{suggest(name, _MERGED)}")
    return _MERGED[name]


def promote(dtypes: list[torch.dtype]) -> torch.dtype:
    """The smallest dtype that holds values of all the given ones without loss: never a silent downcast."""
    result = dtypes[0]
    for dtype in dtypes[1:]:
        result = torch.promote_types(result, dtype)
    return result
