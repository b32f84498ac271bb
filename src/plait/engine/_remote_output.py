"""An output behind a URL: shards are made one at a time in a spool, uploaded, and published last.

Object stores write whole objects only and rename none. So below the target stand, while it is made: `.plait-work/`,
with the fingerprint of the run, a record of each finished shard and the survey totals; `.plait-unfinished`, which says
that the rest is no model yet. Where an old model is to be replaced, the new shards wait in `.plait-work/` until all are
there. Config, index and provenance come last; then the marker and the work go. A killed run continues from any machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from plait.checkpoints import Layout, Shard
from plait.checkpoints._remote import UNFINISHED
from plait.checkpoints._store import Store, tag_of
from plait.engine._facts import FactStore
from plait.engine._plan import Job
from plait.engine._shard_file import RemoteSink, ShardFile
from plait.errors import OutputError, PlaitError

__all__ = ["WORK", "RemoteOutput", "list_target"]

WORK = ".plait-work"
_RUN = f"{WORK}/run.json"
_STAGE = f"{WORK}/shards/"
#: what makes a folder a model: written when all else is there
_LAST = ("config.json", "model.safetensors.index.json", "plait.json")


class RemoteFacts(FactStore):
    """Totals of finished survey rounds, beside the shards."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def load(self, name: str) -> str:
        """Read a file of totals."""
        return self.store.contents(f"{self.store.root}/{WORK}/{name}").decode()

    def save(self, name: str, text: str) -> None:
        """Write a file of totals."""
        self.store.write(f"{self.store.root}/{WORK}/{name}", text.encode())


class _Records:
    """The journal of a remote output: tensors are noted, and written with the shard they make whole."""

    def __init__(self) -> None:
        self.done: dict[str, dict[str, Any]] = {}

    def finish(self, made: Iterable[tuple[str, str, Sequence[str]]]) -> None:
        """Note that the bytes of tensors are computed: name, hash, and the hashes of the inputs."""
        for tensor, digest, inputs in made:
            self.done[tensor] = {"digest": digest, "inputs": {str(i): value for i, value in enumerate(inputs)}}


def list_target(store: Store, fingerprint: str, overwrite: bool) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the state of an unfinished run, if there is one, and the files that lie at the target.

    Raises:
        OutputError: if something lies there that is neither such a run's nor may be replaced.
    """
    files = store.find(store.root)
    if (store.info(store.root) or {}).get("type") == "file":
        raise OutputError(f"the output {store.url} is a file; it will not be overwritten.")
    state: dict[str, Any] = {}
    if _RUN in files:
        try:
            state = json.loads(store.contents(f"{store.root}/{_RUN}"))
            known = isinstance(state["fingerprint"], str) and isinstance(state["files"], list)
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise OutputError(f"{store.url}/{_RUN} is damaged; remove {store.url}/{WORK} and run again.")
    if state.get("fingerprint") == fingerprint and (overwrite or not state.get("staged")):
        return state, files
    others = set(files) - _debris(state, files) - {UNFINISHED}
    if others and not overwrite:
        raise OutputError(
            f"the output {store.url} exists already; choose another, or pass --overwrite (overwrite=True)."
        )
    if others and not any(name.endswith(".safetensors") for name in others) and "plait.json" not in others:
        raise OutputError(f"the output {store.url} is a folder without a model; it will not be overwritten.")
    return state, files


def _debris(state: Mapping[str, Any], files: Mapping[str, Any]) -> set[str]:
    """What a run that was killed has left; a finished model whose work was not cleared away is none."""
    left = {name for name in files if name.startswith(f"{WORK}/")}
    if UNFINISHED in files and not state.get("staged"):
        left |= {name for name in state.get("files", ()) if name in files}
    return left


class RemoteOutput:
    """Takes tensors shard by shard, and publishes the model when all are there."""

    def __init__(
        self, url: str, layout: Layout, fingerprint: str, overwrite: bool = False, spool: Path | None = None
    ) -> None:
        self.layout = layout
        self.fingerprint = fingerprint
        self.store = Store(url, OutputError)
        self.journal = _Records()
        self.facts = RemoteFacts(self.store)
        self._current: ShardFile | None = None
        self._pending: tuple[Shard, ShardFile, Future[dict[str, Any]]] | None = None
        self._uploader = ThreadPoolExecutor(1, thread_name_prefix="plait-upload")
        self._moved: set[str] = set()
        state, files = list_target(self.store, fingerprint, overwrite)
        self.staged = bool(state.get("staged"))
        if state.get("fingerprint") == fingerprint:
            self._continue(files)
        else:
            self._begin(state, files)
        self.resumed = bool(self.journal.done)
        self.sink = RemoteSink(self.store.url, _STAGE if self.staged else "", spool)

    def _at(self, name: str) -> str:
        return f"{self.store.root}/{name}"

    def _begin(self, state: Mapping[str, Any], files: Mapping[str, Any]) -> None:
        """Clear away what the run of another plan has left, and say what is begun."""
        debris = sorted(_debris(state, files), key=lambda name: name == _RUN)  # last what tells whose the rest is
        self.store.remove([self._at(name) for name in debris])
        self.staged = bool(set(files) - set(debris) - {UNFINISHED})
        if not self.staged:
            self.store.write(self._at(UNFINISHED), b"plait merge is at work here, or was killed: run it again.\n")
        self._announce([])

    def _announce(self, small: Sequence[str]) -> None:
        names = [*(shard.name for shard in self.layout.shards), *small]
        text = json.dumps({"fingerprint": self.fingerprint, "staged": self.staged, "files": names})
        self.store.write(self._at(_RUN), text.encode())

    def _continue(self, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Trust a finished shard only if the object is the one that was uploaded."""
        for shard in self.layout.shards:
            name = f"{WORK}/{shard.name}.json"
            if name not in files:
                continue
            try:
                record = json.loads(self.store.contents(self._at(name)))
                wanted, tensors = (record["size"], record["tag"]), dict(record["tensors"])
            except (ValueError, KeyError, TypeError):
                continue
            for place in dict.fromkeys((_STAGE + shard.name, shard.name) if self.staged else (shard.name,)):
                facts = files.get(place)
                if facts is not None and (facts.get("size"), tag_of(facts)) == wanted:
                    self.journal.done |= tensors
                    if self.staged and place == shard.name:
                        self._moved.add(shard.name)
                    break

    # --- shards ----------------------------------------------------------------------------------------------------

    def batches(self, todo: Sequence[Job]) -> Iterator[Sequence[Job]]:
        """Give out the jobs of one shard after the other; each is uploaded while the next is computed."""
        for shard in self.layout.shards:
            names = {entry.name for entry in shard.entries}
            jobs = [job for job in todo if job.name in names]
            if not jobs:
                continue
            self._current = self.sink.begin(shard)
            yield jobs
            self._settle()
            file, self._current = self._current, None
            self._pending = (shard, file, self._uploader.submit(self.sink.deliver, file))
        self._settle()

    def _settle(self) -> None:
        """Wait for the upload under way and record its shard."""
        if self._pending is not None:
            (shard, file, upload), self._pending = self._pending, None
            try:
                self.delivered(shard, upload.result())
            finally:
                file.discard()

    def delivered(self, shard: Shard, receipt: Mapping[str, Any]) -> None:
        """Record a shard whose tensors are all noted and whose object is in place."""
        tensors = {entry.name: self.journal.done[entry.name] for entry in shard.entries}
        text = json.dumps({**receipt, "tensors": tensors})
        self.store.write(self._at(f"{WORK}/{shard.name}.json"), text.encode())

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Write flat elements of one tensor of the shard under work."""
        assert self._current is not None
        self._current.write(name, start, values)

    def digest(self, name: str, nbytes: int) -> str:
        """The hash of a tensor in a shard that is as it was uploaded."""
        del nbytes
        return str(self.journal.done[name]["digest"])

    # --- the end ---------------------------------------------------------------------------------------------------

    def finish(self, files: Mapping[str, bytes]) -> None:
        """Put everything in its place; what makes it a model comes last."""
        self.store.refresh()
        there = self.store.find(self.store.root)
        if _RUN not in there or self._fingerprint_there() != self.fingerprint:
            raise OutputError(f"another process has begun to write {self.store.url}; choose another output.")
        for shard in self.layout.shards:
            place = _STAGE + shard.name if self.staged and shard.name not in self._moved else shard.name
            if there.get(place, {}).get("size") != shard.size:
                raise OutputError(f"{self.store.url}/{place} is not what was uploaded; run the same command again.")
        if self.staged:
            self._replace(there)
        self._announce(sorted(files))
        for name in sorted(files, key=lambda name: (_LAST.index(name) if name in _LAST else -1, name)):
            self.store.write(self._at(name), files[name])
        if UNFINISHED in there or self.staged:
            self.store.remove([self._at(UNFINISHED)])
        self._clear_work()
        self._uploader.shutdown()

    def _fingerprint_there(self) -> str:
        return str(json.loads(self.store.contents(self._at(_RUN))).get("fingerprint"))

    def _replace(self, there: Mapping[str, Any]) -> None:
        """Take the old model away and move the new shards to its place."""
        self.store.write(self._at(UNFINISHED), b"plait merge is replacing this model: run it again if it was killed.\n")
        old = [name for name in there if not name.startswith(f"{WORK}/") and name not in {UNFINISHED, *self._moved}]
        self.store.remove([self._at(name) for name in sorted(old, key=lambda name: name not in _LAST)])
        for shard in self.layout.shards:
            if shard.name not in self._moved:
                staged = self._at(_STAGE + shard.name)
                found = self.store.copy(staged, self._at(shard.name), shard.size)
                self.delivered(shard, {"size": found["size"], "tag": tag_of(found)})
                self.store.remove([staged])

    def _clear_work(self) -> None:
        left = [name for name in self.store.find(self.store.root) if name.startswith(f"{WORK}/")]
        self.store.remove([self._at(name) for name in sorted(left, key=lambda name: name == _RUN)])

    def abandon(self, keep: bool) -> None:
        """Stop: keep finished shards for the same command to continue, or remove what this run has made."""
        if self._current is not None:
            self._current.discard()
        try:
            self._settle()
        except (PlaitError, KeyError):
            pass  # it is made again
        self._uploader.shutdown()
        if keep:
            return
        try:
            made = [*(shard.name for shard in self.layout.shards), UNFINISHED]
            names = made[:0] if self.staged else made
            there = self.store.find(self.store.root)
            self.store.remove([self._at(name) for name in names if name in there])
            self._clear_work()
        except PlaitError:
            return  # the next run clears it away
