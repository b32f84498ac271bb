"""A tokenizer as its files say it: tokens, numbers, added and special tokens, chat template."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from plait.checkpoints import Checkpoint, carried_files, is_tokenizer_file
from plait.errors import CheckpointError, RecipeError

__all__ = ["Tokenizer", "read_tokenizer"]


@dataclass(frozen=True)
class Tokenizer:
    """What lies beside a model and belongs to its tokenizer.

    Attributes:
        owner: how messages call the model.
        ids: token → number, added tokens included.
        files: name → contents of every file of the tokenizer.
        whole: contents of tokenizer.json, or None where there is none.
    """

    owner: str
    ids: Mapping[str, int]
    files: Mapping[str, bytes] = field(repr=False)
    whole: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """One more than the largest number."""
        return max(self.ids.values(), default=-1) + 1

    @property
    def added(self) -> list[dict[str, Any]]:
        """The entries of added tokens, in the order of their numbers."""
        listed = (self.whole or {}).get("added_tokens") or []
        return sorted((dict(e) for e in listed if isinstance(e, Mapping)), key=lambda e: int(e["id"]))

    @property
    def template(self) -> str | None:
        """The chat template, or None."""
        if "chat_template.jinja" in self.files:
            return self.files["chat_template.jinja"].decode("utf-8")
        found = _settings(self.files).get("chat_template")
        if isinstance(found, list):  # several by name
            named = {t.get("name"): t.get("template") for t in found if isinstance(t, Mapping)}
            found = named.get("default")
        return found if isinstance(found, str) else None

    def with_tokens(self, extra: Iterable[Mapping[str, Any]]) -> Tokenizer:
        """The same tokenizer with more added tokens, numbered from its end on.

        Args:
            extra: entries as in tokenizer.json (`content`, `special`, …); their numbers are given anew.

        Raises:
            RecipeError: if there is no tokenizer.json to write them into.
        """
        entries = [dict(entry) for entry in extra if entry["content"] not in self.ids]
        if not entries:
            return self
        if self.whole is None:
            raise RecipeError(
                f"{self.owner} has no tokenizer.json, so that tokens cannot be added to its tokenizer; save it in the "
                "fast format first, or use `tokenizer: {source: base}`."
            )
        whole = copy.deepcopy(dict(self.whole))
        ids = dict(self.ids)
        for number, entry in enumerate(entries, self.size):
            entry["id"] = ids[entry["content"]] = number
        whole["added_tokens"] = [*self.added, *entries]
        files = dict(self.files)
        files["tokenizer.json"] = _dump(whole)
        settings = _settings(files)
        if isinstance(settings.get("added_tokens_decoder"), Mapping):
            decoder = dict(settings["added_tokens_decoder"])
            for entry in entries:
                decoder[str(entry["id"])] = {k: v for k, v in entry.items() if k != "id"}
            files["tokenizer_config.json"] = _dump({**settings, "added_tokens_decoder": decoder})
        if "added_tokens.json" in files:
            listed = json.loads(files["added_tokens.json"])
            files["added_tokens.json"] = _dump({**listed, **{e["content"]: e["id"] for e in entries}})
        return Tokenizer(self.owner, ids, files, whole)

    def with_template(self, template: str) -> dict[str, bytes]:
        """Its files with another chat template."""
        files = {name: data for name, data in self.files.items() if not name.startswith("additional_chat")}
        settings = _settings(files)
        if "chat_template" in settings:
            files["tokenizer_config.json"] = _dump({k: v for k, v in settings.items() if k != "chat_template"})
        files.pop("chat_template.json", None)
        files["chat_template.jinja"] = template.encode()
        return files


def read_tokenizer(checkpoint: Checkpoint, owner: str) -> Tokenizer | None:
    """Read the tokenizer that lies beside a model; None where there is none.

    Raises:
        CheckpointError: for files that are damaged.
    """
    files = dict(checkpoint.files)
    if not files and checkpoint.folder is not None:
        files = {
            path.as_posix(): (checkpoint.folder / path).read_bytes()
            for path in carried_files(checkpoint.folder)
            if is_tokenizer_file(path)
        }
    whole = _json(files, "tokenizer.json", owner) if "tokenizer.json" in files else None
    ids: dict[str, int] = {}
    model = (whole or {}).get("model")
    listed: Any = model.get("vocab") if isinstance(model, Mapping) else None
    if listed is None and "vocab.json" in files:
        listed = _json(files, "vocab.json", owner)
    if isinstance(listed, list):  # unigram: [[token, score], …]
        ids = {str(entry[0]): i for i, entry in enumerate(listed)}
    elif isinstance(listed, Mapping):
        ids = {str(token): int(number) for token, number in listed.items()}
    for entry in (whole or {}).get("added_tokens") or []:
        ids[str(entry["content"])] = int(entry["id"])
    if whole is None and "added_tokens.json" in files:
        ids |= {str(k): int(v) for k, v in _json(files, "added_tokens.json", owner).items()}
    return Tokenizer(owner, ids, files, whole) if ids else None


def _settings(files: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        found = json.loads(files.get("tokenizer_config.json", b"{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _json(files: Mapping[str, bytes], name: str, owner: str) -> dict[str, Any]:
    try:
        found = json.loads(files[name])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} of {owner} is not readable JSON: {error}.") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{name} of {owner} is not a JSON object.")
    return found


def _dump(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
