"""Hand a model folder to llama.cpp's converter, after looking for what is known to break there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plait.checkpoints import Checkpoint
from plait.errors import CheckpointError, MissingExtraError, MissingModelError, OutputError, RecipeError
from plait.security import words_of

__all__ = ["OUTTYPES", "export_gguf", "find_converter", "gguf_problems"]

CONVERTER = "convert_hf_to_gguf.py"
OUTTYPES = ("f32", "f16", "bf16", "q8_0", "auto")
#: model types whose converter reads the SentencePiece model itself
_SENTENCEPIECE = ("gemma", "gemma2", "gemma3", "gemma3_text", "t5", "t5encoder", "xlm-roberta")
_LAST_WORDS = 3000
_PLACES = "LLAMA_CPP, ./llama.cpp, ../llama.cpp, ~/llama.cpp or on PATH"


def find_converter(llama_cpp: str | Path | None = None) -> Path:
    """Return llama.cpp's converter script.

    It is looked for in the folder given, in LLAMA_CPP, in ./llama.cpp, ../llama.cpp and ~/llama.cpp, and on PATH.

    Raises:
        MissingExtraError: it is in none of them.
    """
    given = [llama_cpp] if llama_cpp is not None else [os.environ.get("LLAMA_CPP"), "llama.cpp", "../llama.cpp"]
    given += [] if llama_cpp is not None else [Path.home() / "llama.cpp"]
    for place in given:
        if place and (script := Path(place) / CONVERTER).is_file():
            return script.resolve()
    on_path = None if llama_cpp is not None else shutil.which(CONVERTER)
    if on_path:
        return Path(on_path)
    raise MissingExtraError(
        f"{CONVERTER} of llama.cpp was not found in {llama_cpp or _PLACES}. "
        "Get the sources (git clone https://github.com/ggml-org/llama.cpp), install their requirements.txt, and name "
        "the folder with --llama-cpp."
    )


def gguf_problems(folder: Path, checkpoint: Checkpoint, converter: Path) -> Iterator[str]:
    """Yield what would make the conversion fail, or its result useless; one sentence each."""
    config: Mapping[str, Any] = checkpoint.config or {}
    names = [str(name) for name in config.get("architectures") or ()]
    if not names:
        yield "config.json names no architecture; copy `architectures` from a parent."
    elif (known := _architectures(converter)) and not set(names) & known:
        yield f"{converter.name} of this llama.cpp knows no {names[0]}; update llama.cpp."
    words = words_of(folder)
    pieces = folder / "tokenizer.model"
    if words is None and not pieces.is_file():
        yield "there is neither tokenizer.json nor tokenizer.model; copy the tokenizer's files from a parent."
    if config.get("model_type") in _SENTENCEPIECE and not pieces.is_file():
        yield f"the converter needs tokenizer.model for {config['model_type']}; copy it from a parent."
    inner = config.get("text_config")
    stated = (inner if isinstance(inner, Mapping) else config).get("vocab_size")
    if words is not None and isinstance(stated, int):
        most = max(words.ids.values())
        if most >= stated:
            yield f"the tokenizer uses number {most:,}, config.json states a vocab_size of {stated:,}; make them agree."
        ends = ("embed_tokens.weight", "wte.weight")
        tables = [t.shape[0] for name, t in checkpoint.tensors.items() if name.endswith(ends)]
        if tables and stated > tables[0]:
            yield f"config.json states a vocab_size of {stated:,}, the embedding has {tables[0]:,} rows."


def _architectures(converter: Path) -> set[str]:
    """Architectures that a converter registers, read from its source and from the package beside it."""
    sources = [converter, *sorted((converter.parent / "conversion").glob("*.py"))]
    found: set[str] = set()
    for source in sources:
        text = source.read_text(encoding="utf-8", errors="replace")
        for arguments in re.findall(r"@ModelBase\.register\(([^)]*)\)|@Model\.register\(([^)]*)\)", text):
            found.update(re.findall(r"[\"']([^\"']+)[\"']", "".join(arguments)))
    return found


def export_gguf(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    outtype: str = "auto",
    llama_cpp: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Convert a model folder into one GGUF file with llama.cpp's own converter.

    Args:
        folder: a model folder.
        out: the file to make; by default FOLDER/NAME-OUTTYPE.gguf beside the folder.
        outtype: f32, f16, bf16, q8_0 or auto (the stored 16-bit type).
        llama_cpp: a checkout of llama.cpp.
        overwrite: replace an existing file.

    Returns:
        The file.

    Raises:
        MissingModelError, CheckpointError: the folder is no model, or one that is known to break.
        MissingExtraError: llama.cpp is not to be found.
        OutputError: the file exists, or the converter failed; nothing is left behind.
    """
    home = Path(folder)
    if outtype not in OUTTYPES:
        raise RecipeError(f"--outtype {outtype!r}: choose one of {', '.join(OUTTYPES)}.")
    if not home.is_dir():
        raise MissingModelError(f"there is no folder {home}.")
    checkpoint = Checkpoint.open(home)
    converter = find_converter(llama_cpp)
    problems = list(gguf_problems(home, checkpoint, converter))
    if problems:
        raise CheckpointError(f"{home} would not convert:\n" + "\n".join(f"  - {problem}" for problem in problems))
    target = Path(out) if out is not None else home.resolve().parent / f"{home.resolve().name}-{outtype}.gguf"
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists; name another file with -o, or replace it with --overwrite.")
    draft = target.with_name(f".{target.name}.part")
    command = [sys.executable, str(converter), str(home), "--outfile", str(draft), "--outtype", outtype]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not draft.is_file():
            words = (done.stderr or done.stdout).strip()[-_LAST_WORDS:]
            raise OutputError(f"llama.cpp's converter failed with exit code {done.returncode}:\n{words}")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target
