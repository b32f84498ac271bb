"""Remote folders and files with the few verbs of `pathlib.Path` that reading a model needs."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, TypeAlias

from plait.errors import CheckpointError, MissingModelError

if TYPE_CHECKING:
    from plait.checkpoints._store import Store

__all__ = ["AnyPath", "RemotePath"]

# A web server lists no folder: these names are asked for one by one.
_USUAL = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_config.json",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "USE_POLICY.md",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)


class RemotePath:
    """A file or folder of a store. Folders are listed once; small files are read once."""

    def __init__(self, store: Store, path: str) -> None:
        self.store = store
        self.path = path

    @property
    def name(self) -> str:
        """Its last part."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        """The folder it lies in."""
        return RemotePath(self.store, self.path.rpartition("/")[0])

    def __truediv__(self, name: str | PurePath) -> RemotePath:
        return RemotePath(self.store, f"{self.path}/{PurePath(name).as_posix()}")

    def __str__(self) -> str:
        return self.store.name(self.path)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __lt__(self, other: RemotePath) -> bool:
        return self.path < other.path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and (self.store.url, self.path) == (other.store.url, other.path)

    def __hash__(self) -> int:
        return hash((self.store.url, self.path))

    def resolve(self) -> RemotePath:
        """Itself: a URL is absolute."""
        return self

    def relative_to(self, other: RemotePath) -> PurePosixPath:
        """Its place below a folder."""
        return PurePosixPath(self.path).relative_to(other.path)

    def _kind(self) -> str | None:
        if not self.store.web and self.path != self.store.root:
            facts = self.store.listing(self.parent.path).get(self.name)
        else:
            facts = self.store.info(self.path)
        return None if facts is None else str(facts.get("type"))

    def is_file(self) -> bool:
        """Whether there is such a file."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Whether there is such a folder; a web server is believed to have one."""
        if self.store.web:
            return any(self.iterdir())
        return bool(self.store.listing(self.path))

    def iterdir(self) -> Iterator[RemotePath]:
        """What lies in the folder."""
        if self.store.web:
            yield from (path for name in _USUAL if (path := self / name).is_file())
            return
        yield from (self / name for name in self.store.listing(self.path))

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """What matches, part by part."""
        head, _, rest = pattern.partition("/")
        for path in list(self.iterdir()):
            if fnmatch.fnmatchcase(path.name, head):
                yield from path.glob(rest) if rest else (path,)

    def read_bytes(self) -> bytes:
        """The whole of a small file.

        Raises:
            FileNotFoundError: if there is none.
            CheckpointError: if it cannot be read.
        """
        return self.store.contents(self.path)

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole of a small file, as text."""
        return self.read_bytes().decode(encoding)

    def facts(self) -> tuple[int, str]:
        """Size in bytes, and what tells this version of the file from another.

        Raises:
            MissingModelError: if it is not there.
            CheckpointError: if the storage does not tell the size.
        """
        from plait.checkpoints._store import tag_of

        known = None
        if not self.store.web and self.path != self.store.root:
            known = self.store.listing(self.parent.path).get(self.name)
        known = known or self.store.info(self.path)
        if known is None:
            raise MissingModelError(f"there is no file {self}.")
        if not isinstance(known.get("size"), int):
            raise CheckpointError(f"{self}: the storage does not tell the file's size. Download the model first.")
        return int(known["size"]), tag_of(known)


AnyPath: TypeAlias = Path | RemotePath
