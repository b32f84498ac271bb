"""Load a model with transformers and see it answer: the last part of `plait verify`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from plait.errors import shorten

__all__ = ["smoke"]

Outcome: TypeAlias = tuple[str, Literal["ok", "failed", "skipped"], str]
_TEXT = "The quick brown fox jumps over 13 lazy dogs."
_NEW_TOKENS = 8


def smoke(home: Path, trust: bool) -> Iterator[Outcome]:
    """Yield (step, state, sentence) of loading, answering, tokenizing and generating.

    Args:
        home: a model folder with a config.json.
        trust: run code that the folder brings along.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        try:
            model, info = _load(transformers, home, options)
        except Exception as error:  # whatever another library says: it is what the user would see
            yield "loads", "failed", f"transformers: {_line(error)}"
            return
        yield _loaded(model, info)
        tokenizer = _tokenizer(transformers, home, options)
        if tokenizer is not None:
            yield _round_trip(tokenizer)
        yield from _answers(model, tokenizer)


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


def _load(transformers: Any, home: Path, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    config = transformers.AutoConfig.from_pretrained(home, **options)
    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    cls = next((c for c in named if c is not None), transformers.AutoModel)
    if cls is not transformers.AutoModel:
        options = {"local_files_only": True}  # a class of transformers itself needs no code from the folder
    model, info = cls.from_pretrained(home, config=config, dtype="auto", output_loading_info=True, **options)
    return model.eval(), info


def _loaded(model: Any, info: dict[str, Any]) -> Outcome:
    missing, unexpected = sorted(info.get("missing_keys", ())), sorted(info.get("unexpected_keys", ()))
    name = type(model).__name__
    if missing:
        return "loads", "failed", f"{name} lacks {len(missing)} tensors, which would be random:\n{shorten(missing)}"
    also = f"; {len(unexpected)} tensors are not used by it" if unexpected else ""
    return "loads", "ok", f"as {name}{also}"


def _tokenizer(transformers: Any, home: Path, options: dict[str, Any]) -> Any:
    files = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
    if not any((home / file).is_file() for file in files):
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(home, **options)
    except Exception as error:
        return error


def _round_trip(tokenizer: Any) -> Outcome:
    if isinstance(tokenizer, Exception):
        return "tokenizer", "failed", f"it does not load: {_line(tokenizer)}"
    ids = tokenizer(_TEXT)["input_ids"]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    again = tokenizer(text)["input_ids"]
    if not ids:
        return "tokenizer", "failed", f"it finds no token in {_TEXT!r}"
    if ids == again:
        return "tokenizer", "ok", f"{len(ids)} tokens and back"
    return "tokenizer", "failed", f"{_TEXT!r} comes back as {text!r}, which has other tokens"


def _answers(model: Any, tokenizer: Any) -> Iterator[Outcome]:
    inputs = _inputs(model, tokenizer)
    if inputs is None:
        yield "answers", "skipped", f"what {type(model).__name__} takes is not known here"
        return
    try:
        output = model(**inputs)
    except Exception as error:
        yield "answers", "failed", _line(error)
        return
    values = next(v for v in output.to_tuple() if isinstance(v, torch.Tensor) and v.is_floating_point())
    finite = bool(values.isfinite().all())
    yield (
        "answers",
        "ok" if finite else "failed",
        f"{list(values.shape)} numbers, {'all' if finite else 'not all'} finite",
    )
    if finite and "input_ids" in inputs and model.can_generate():
        yield _generates(model, tokenizer, inputs)


def _generates(model: Any, tokenizer: Any, inputs: dict[str, Any]) -> Outcome:
    try:
        made = model.generate(input_ids=inputs["input_ids"], max_new_tokens=_NEW_TOKENS, do_sample=False)
    except Exception as error:
        return "generates", "failed", _line(error)
    new = made[0] if model.config.is_encoder_decoder else made[0, inputs["input_ids"].shape[1] :]
    if tokenizer is None or isinstance(tokenizer, Exception):
        return "generates", "ok", f"{new.numel()} tokens"
    return "generates", "ok", f"{tokenizer.decode(new)!r}"


def _inputs(model: Any, tokenizer: Any) -> dict[str, Any] | None:
    """Something small that the model can be run on; None where it is not known what that is."""
    config, main = model.config, getattr(model, "main_input_name", "input_ids")
    if main == "pixel_values":
        vision = getattr(config, "vision_config", None) or config
        size, channels = getattr(vision, "image_size", None), getattr(vision, "num_channels", 3)
        if not isinstance(size, int):
            return None
        return {"pixel_values": torch.zeros(1, channels, size, size, dtype=model.dtype)}
    if main != "input_ids":
        return None
    text = config.get_text_config()
    if tokenizer is not None and not isinstance(tokenizer, Exception):
        ids = torch.tensor([tokenizer(_TEXT)["input_ids"]])
    else:
        ids = torch.arange(1, 9).remainder(text.vocab_size).unsqueeze(0)
    found: dict[str, Any] = {"input_ids": ids}
    if config.is_encoder_decoder:
        found["decoder_input_ids"] = ids[:, :1]
    vision = getattr(config, "vision_config", None)
    if vision is not None and "clip" in config.model_type:
        found["pixel_values"] = torch.zeros(1, vision.num_channels, vision.image_size, vision.image_size)
    return found
