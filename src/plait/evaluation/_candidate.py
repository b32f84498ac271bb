"""The model that is scored: a folder, loaded when it is needed and once per way of loading it."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from plait.errors import CheckpointError, MissingExtraError, MissingModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Candidate", "digest_of_model"]

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_TEXTS = ("config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "preprocessor_config.json")
_WAYS = {
    "features": "AutoModel",
    "causal": "AutoModelForCausalLM",
    "text classifier": "AutoModelForSequenceClassification",
    "image classifier": "AutoModelForImageClassification",
}


def digest_of_model(folder: Path) -> str:
    """Hash of everything that a model's scores depend on: weights, configuration, tokenizer; not its name or card."""
    state = xxhash.xxh3_128()
    found = {path for pattern in (*_TEXTS, *_WEIGHTS) for path in folder.glob(pattern) if path.is_file()}
    if not any(path.match(pattern) for path in found for pattern in _WEIGHTS):
        raise MissingModelError(f"{folder} holds no weights.")
    for path in sorted(found):
        state.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                state.update(chunk)
    return state.hexdigest()


class Candidate:
    """A Hugging Face folder to score.

    Attributes:
        folder: where it is.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise MissingModelError(f"there is no model folder {self.folder}.")
        self._loaded: dict[str, PreTrainedModel] = {}

    def __repr__(self) -> str:
        return f"Candidate({str(self.folder)!r})"

    @cached_property
    def digest(self) -> str:
        """Hash of the content, computed once: a folder that changes meanwhile needs a new candidate."""
        return digest_of_model(self.folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The model's config.json.

        Raises:
            MissingModelError: the folder has none.
            CheckpointError: it is not a JSON object.
        """
        path = self.folder / "config.json"
        if not path.is_file():
            raise MissingModelError(f"{self.folder} has no config.json: it is not a Hugging Face model folder.")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from None
        if not isinstance(found, dict):
            raise CheckpointError(f"{path} is not a JSON object.")
        return found

    @property
    def width(self) -> int | None:
        """Width of the last hidden state, where the configuration says it."""
        for key in ("hidden_size", "d_model", "n_embd", "dim"):
            if isinstance(self.config.get(key), int):
                return self.config[key]
        return None

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's tokenizer."""
        transformers = _transformers()
        try:
            return transformers.AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.folder} has no tokenizer that can be loaded: {error}.") from None

    def loaded(self, way: str) -> PreTrainedModel:
        """The model in evaluation mode, in float32.

        Args:
            way: `features`, `causal`, `text classifier` or `image classifier`.

        Raises:
            CheckpointError: a weight that the configuration asks for is missing, or transformers cannot load it.
        """
        if way not in self._loaded:
            self._loaded.clear()  # one at a time: a model may fill the memory
            self._loaded[way] = _load(self.folder, _WAYS[way])
        return self._loaded[way]


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError:
        raise MissingExtraError("scoring models needs transformers; pip install 'plait[eval]'.") from None
    return transformers


def _load(folder: Path, loader: str) -> PreTrainedModel:
    import torch

    from plait.evaluation._compute import quiet

    transformers = _transformers()
    with quiet():
        try:
            model, report = getattr(transformers, loader).from_pretrained(
                folder, output_loading_info=True, local_files_only=True, dtype=torch.float32
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"transformers cannot load {folder}: {error}") from None
    # nothing here reads a pooler's output
    lacking = sorted({str(k) for kind in ("missing_keys", "mismatched_keys") for k in report[kind]})
    missing = [key for key in lacking if "pooler." not in key]
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} tensor(s) that its config.json asks for: {missing[0]}, …")
    return model.eval()
