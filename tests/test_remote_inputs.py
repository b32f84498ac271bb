"""Models behind URLs: read by ranges, never whole; errors that name the URL, the tensor and the remedy."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import plait
from models import family, llama, save, save_family, tree
from plait import Checkpoint
from plait.checkpoints import _remote_file, _retry
from plait.errors import CheckpointError, MissingExtraError, MissingModelError, UnreachableError

pytest.importorskip("s3fs")
pytest.importorskip("moto")

from remote_servers import Faltering, faltering, s3_server, upload, web_server

STATE = llama(0)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_retry, "FIRST_PAUSE", 0.001)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def shaky() -> Iterator[type[Faltering]]:
    with faltering() as found:
        yield found


def _same(checkpoint: Checkpoint, state: dict[str, torch.Tensor]) -> None:
    assert set(checkpoint) == set(state)
    for name, tensor in state.items():
        assert torch.equal(checkpoint[name].load(), tensor), name
        if tensor.numel() > 5:
            assert torch.equal(checkpoint[name].read(2, 5), tensor.reshape(-1)[2:5])


@pytest.mark.parametrize("shards", [1, 3])
def test_folders_and_files_of_object_storage(s3: str, tmp_path: Path, shards: int) -> None:
    url = upload(save(tmp_path / "m", STATE, shards=shards), f"s3://models/in{shards}")
    checkpoint = Checkpoint.open(url)
    _same(checkpoint, STATE)
    assert checkpoint.config is not None and checkpoint.config["model_type"] == "llama"
    assert all(tensor.source.startswith(url + "/model") for tensor in checkpoint.tensors.values())
    if shards == 1:
        _same(Checkpoint.open(f"{url}/model.safetensors"), STATE)


def test_a_merge_of_remote_models_equals_that_of_local_ones(s3: str, tmp_path: Path) -> None:
    """Tensors, config and tokenizer: everything but the names of the places."""
    base, experts = family(2, torch.bfloat16)
    names = save_family(tmp_path, base, experts, shards=2)
    (tmp_path / "base" / "tokenizer.json").write_text('{"version": "1.0"}')
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\n---\n")
    far = {
        "base": upload(tmp_path / "base", "s3://models/family/base"),
        "experts": {name: upload(Path(path), f"s3://models/family/{name}") for name, path in names["experts"].items()},
    }
    for method in ("ties", "linear"):
        recipe = {"method": method, "files_from": "base", "shard_size": "60KB"}
        plait.merge({**recipe, **names}, tmp_path / "near", overwrite=True)
        plait.merge({**recipe, **far}, tmp_path / "far", overwrite=True)
        near, there = tree(tmp_path / "near"), tree(tmp_path / "far")
        assert near.keys() == there.keys() and "tokenizer.json" in there
        for name in near.keys() - {"plait.json", "plait.yaml", "README.md"}:
            assert near[name] == there[name], name
        record = json.loads(there["plait.json"])
        assert record["inputs"]["base"]["path"] == far["base"]
        assert record["inputs"]["base"]["hash"] == json.loads(near["plait.json"])["inputs"]["base"]["hash"]
        assert b"license: mit" in there["README.md"]
    assert plait.reproduce(tmp_path / "far").identical


def test_reading_a_tensor_fetches_its_bytes_and_no_others(tmp_path: Path) -> None:
    """Counted by the server: the header, then exactly the tensor, in windows."""
    rows = 5 * _remote_file.WINDOW // (4 * 64) + 17
    state = {"large": torch.randn(rows, 64), "other": torch.randn(rows, 64), "small": torch.randn(10)}
    save(tmp_path / "m", state)
    with web_server(tmp_path) as server:
        checkpoint = Checkpoint.open(f"{server.url}/m")
        opening = sum(size for _, size in server.sent)
        assert opening < _remote_file.HEAD + 2000
        server.sent.clear()
        assert torch.equal(checkpoint["large"].load(), state["large"])
        assert sum(size for _, size in server.sent) == checkpoint["large"].nbytes
        assert len(server.sent) == 6
        server.sent.clear()
        # block by block, as the engine reads: the same bytes, once
        step = 1 << 18
        tensor = checkpoint["other"]
        for start in range(0, tensor.numel, step):
            stop = min(start + step, tensor.numel)
            tensor.prefetch(stop, min(stop + step, tensor.numel))
            assert torch.equal(tensor.read(start, stop), state["other"].reshape(-1)[start:stop])
        assert sum(size for _, size in server.sent) == tensor.nbytes
        server.sent.clear()
        assert torch.equal(checkpoint["small"].load(), state["small"])
        assert sum(size for _, size in server.sent) == checkpoint["small"].nbytes


def test_many_tiny_tensors_are_fetched_together(shaky: type[Faltering], tmp_path: Path) -> None:
    state = {f"t{i:03}": torch.randn(100) for i in range(500)}
    checkpoint = Checkpoint.open(upload(save(tmp_path / "m", state), "faltering://m"))
    shaky.ranges.clear()
    _same(checkpoint, state)
    assert len(shaky.ranges) == 1


def test_reading_from_many_threads(shaky: type[Faltering], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads at different places of the same and of other tensors all read the right bytes."""
    monkeypatch.setattr(_remote_file, "WINDOW", 4096)
    monkeypatch.setattr(_remote_file, "SMALL", 512)
    monkeypatch.setattr(_remote_file, "RUN", 1024)
    state = {f"t{i}": torch.randn(n) for i, n in enumerate([9000, 100, 20, 5000, 300, 60, 60, 60, 60, 7000])}
    checkpoint = Checkpoint.open(upload(save(tmp_path / "m", state), "faltering://m"))

    def scan(seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        for _ in range(60):
            name = f"t{int(torch.randint(len(state), (1,), generator=rng))}"
            start, stop = sorted(torch.randint(state[name].numel() + 1, (2,), generator=rng).tolist())
            assert torch.equal(checkpoint[name].read(start, stop), state[name][start:stop])

    with ThreadPoolExecutor(8) as workers:
        list(workers.map(scan, range(8)))
    file: Any = checkpoint["t0"]._file  # type: ignore[attr-defined]
    held = [key for key in file._windows if not file._segments[key[0]].shared]
    assert len(held) <= 4 * 3


def test_passing_errors_are_asked_again_and_lasting_ones_are_named(
    shaky: type[Faltering], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_remote_file, "SMALL", 0)  # small tensors are kept for their neighbours' sake
    checkpoint = Checkpoint.open(upload(save(tmp_path / "m", {"w": STATE["lm_head.weight"]}), "faltering://m"))
    tensor = checkpoint["w"]
    shaky.errors[:] = [ConnectionResetError("reset"), TimeoutError(), OSError(errno.EIO, "busy"), 100]
    shaky.ranges.clear()
    assert torch.equal(tensor.load(), STATE["lm_head.weight"])
    assert len(shaky.ranges) == 5
    shaky.errors[:] = [ConnectionResetError("reset")] * 5
    with pytest.raises(UnreachableError, match=r"'w' from faltering://m/model\.safetensors failed 5 times .*finished"):
        tensor.load()
    shaky.errors[:] = [100] * 5
    with pytest.raises(CheckpointError, match=r"'w' from faltering://.* 100 of 8192 bytes came.* upload it again"):
        tensor.load()
    shaky.errors[:] = [PermissionError("Forbidden")]
    with pytest.raises(CheckpointError, match=r"'w' from faltering://.* was refused \(Forbidden\).* credentials"):
        tensor.load()
    assert torch.equal(tensor.load(), STATE["lm_head.weight"])  # a failure is not remembered


def test_an_outage_in_the_middle_keeps_what_is_finished(
    shaky: type[Faltering], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, experts = family(1)
    names = save_family(tmp_path, base, experts)
    plait.merge({"method": "task_arithmetic", "shard_size": "8KB", **names}, tmp_path / "wanted", threads=1)
    far = upload(Path(names["experts"]["e0"]), "faltering://e0")
    recipe = {"method": "task_arithmetic", "shard_size": "8KB", **names, "experts": {"e0": far}}

    class Outage(list):  # type: ignore[type-arg]
        """Nothing fails until the reads have come far, then everything does."""

        def __bool__(self) -> bool:
            return len(shaky.ranges) > 9

        def pop(self, index: Any = -1) -> Any:
            return ConnectionResetError("gone")

    plan = plait.plan(recipe)
    shaky.ranges.clear()
    with monkeypatch.context() as patch, pytest.raises(UnreachableError):
        patch.setattr(_remote_file, "SMALL", 0)
        patch.setattr(shaky, "errors", Outage())
        plait.merge(plait.plan(recipe), tmp_path / "out", threads=1)
    assert plan.fingerprint() == plait.plan(recipe).fingerprint()
    assert not (tmp_path / "out").exists()
    result = plait.merge(recipe, tmp_path / "out", threads=1)
    assert result.resumed > 0
    for path in (tmp_path / "wanted").glob("*.safetensors"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_missing_denied_and_truncated_objects(s3: str, tmp_path: Path) -> None:
    import boto3

    client = boto3.client("s3")
    with pytest.raises(MissingModelError, match=r"no model at s3://models/nowhere"):
        Checkpoint.open("s3://models/nowhere")
    with pytest.raises(MissingModelError, match=r"no model at s3://no-such-bucket/x"):
        Checkpoint.open("s3://no-such-bucket/x")
    with pytest.raises(MissingModelError, match=r"no file s3://models/nowhere\.safetensors"):
        Checkpoint.open("s3://models/nowhere.safetensors")
    data = save_file(STATE, tmp_path / "m.safetensors") or (tmp_path / "m.safetensors").read_bytes()
    client.put_object(Bucket="models", Key="cut/model.safetensors", Body=data[:-100])
    with pytest.raises(CheckpointError, match=r"s3://models/cut/model\.safetensors .*cut short"):
        Checkpoint.open("s3://models/cut")
    # replaced by a shorter object after its header was read
    client.put_object(Bucket="models", Key="later/model.safetensors", Body=data)
    checkpoint = Checkpoint.open("s3://models/later")
    client.put_object(Bucket="models", Key="later/model.safetensors", Body=data[:3000])
    with pytest.raises(CheckpointError, match=r"lm_head.*s3://models/later/model\.safetensors"):
        checkpoint["lm_head.weight"].load()
    client.delete_object(Bucket="models", Key="later/model.safetensors")
    with pytest.raises(MissingModelError, match=r"s3://models/later/model\.safetensors is gone"):
        checkpoint["model.embed_tokens.weight"].load()


def test_missing_permission(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    url = upload(save(tmp_path / "m", STATE), "s3://models/secret")
    checkpoint = Checkpoint.open(url)

    async def refuse(self: Any, *_: Any, **__: Any) -> Any:
        from botocore.exceptions import ClientError

        answer = {"Error": {"Code": "AccessDenied", "Message": "Access Denied"}}
        raise s3fs.errors.translate_boto_error(ClientError(answer, "GetObject"))

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", refuse)
    with pytest.raises(CheckpointError, match=r"lm_head.*s3://models/secret/.* was refused.*credentials"):
        checkpoint["lm_head.weight"].load()
    monkeypatch.setattr(s3fs.S3FileSystem, "_lsdir", refuse)
    with pytest.raises(CheckpointError, match=r"listing s3://models/secret was refused"):
        Checkpoint.open(url)


def test_an_input_that_changes_is_noticed(shaky: type[Faltering], tmp_path: Path) -> None:
    """Between two runs by its stamp; within a run before the output appears."""
    base, experts = family(1)
    names = save_family(tmp_path, base, experts)
    url = upload(Path(names["experts"]["e0"]), "faltering://e0")
    recipe = {"method": "task_arithmetic", **names, "experts": {"e0": url}}
    before = plait.plan(recipe)
    assert before.fingerprint() == plait.plan(recipe).fingerprint()
    data = bytes(shaky.store["/e0/model.safetensors"].getbuffer())
    shaky().pipe_file("/e0/model.safetensors", data[:-4] + b"\0\0\0\0")
    assert before.fingerprint() != plait.plan(recipe).fingerprint()
    with pytest.raises(CheckpointError, match=r"faltering://e0 changed while it was read"):
        plait.merge(before, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pickles_are_refused(shaky: type[Faltering], tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    torch.save(STATE, tmp_path / "m" / "pytorch_model.bin")
    upload(tmp_path / "m", "faltering://m")
    for reference in ("faltering://m", "faltering://m/pytorch_model.bin"):
        with pytest.raises(CheckpointError, match=r"faltering://m/pytorch_model\.bin is a PyTorch file.*download"):
            Checkpoint.open(reference)


def test_web_servers(tmp_path: Path) -> None:
    save(tmp_path / "m", STATE, shards=2)
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    with web_server(tmp_path) as server:
        checkpoint = Checkpoint.open(f"{server.url}/m")
        _same(checkpoint, STATE)
        from plait.checkpoints import carried_files

        assert [str(path) for path in carried_files(checkpoint.folder)] == ["tokenizer.json"]
        server.failures = 3
        assert torch.equal(Checkpoint.open(f"{server.url}/m")["lm_head.weight"].load(), STATE["lm_head.weight"])
        with pytest.raises(MissingModelError, match="nothing lies there"):
            Checkpoint.open(f"{server.url}/nowhere")
    with web_server(tmp_path, ranges=False) as server:
        with pytest.raises(CheckpointError, match="does not answer ranged requests"):
            Checkpoint.open(f"{server.url}/m")
        total = sum(p.stat().st_size for p in (tmp_path / "m").glob("*.safetensors"))
        assert sum(size for name, size in server.sent if name.endswith(".safetensors")) <= 3 * total


def test_urls_with_secrets_are_refused() -> None:
    for url in ("https://a.example/m.safetensors?X-Amz-Signature=secret", "s3://me:secret@models/m"):
        with pytest.raises(MissingModelError, match="would publish") as found:
            Checkpoint.open(url)
        assert "secret" not in str(found.value)


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def absent(_: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(MissingExtraError, match=r"pip install 'plait\[remote\]'"):
        Checkpoint.open("s3://models/m")
    with pytest.raises(MissingExtraError, match="pip install gcsfs"):
        Checkpoint.open("gs://models/m")


def test_file_urls_are_paths(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(f"file://{save(tmp_path / 'm', STATE)}")
    _same(checkpoint, STATE)
    assert checkpoint.folder == tmp_path / "m"


def test_the_hub_is_streamed_where_the_cache_lacks_a_model(
    shaky: type[Faltering], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hf://` reads ranges at one commit; the model's own id downloads, as it always did."""
    import huggingface_hub

    upload(save(tmp_path / "m", STATE), "faltering://someone/tiny@abc123")

    class Hub:
        def model_info(self, repository: str, revision: str | None = None) -> Any:
            assert (repository, revision) == ("someone/tiny", None)
            return type("Info", (), {"sha": "abc123"})

    def download(repository: str, *_: Any) -> Any:
        raise MissingModelError(f"downloading {repository}")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", shaky)
    monkeypatch.setattr("plait.checkpoints._hub.fetch", download)
    checkpoint = Checkpoint.open("hf://someone/tiny")
    _same(checkpoint, STATE)
    assert (checkpoint.hub_id, checkpoint.revision) == ("someone/tiny", "abc123")
    assert checkpoint["lm_head.weight"].source == "hf://someone/tiny@abc123/model.safetensors"
    with pytest.raises(MissingModelError, match="downloading someone/tiny"):
        Checkpoint.open("someone/tiny")


def test_hub_ranges_are_asked_for_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real file system of the Hub, with its network replaced, reads no byte more than is asked for."""
    from huggingface_hub import HfFileSystem
    from huggingface_hub.hf_file_system import HfFileSystemFile

    from plait.checkpoints._store import Store

    asked: list[tuple[int, int]] = []

    def fetch(self: Any, start: int, end: int) -> bytes:
        asked.append((start, end))
        return bytes(end - start)

    def begin(self: Any, fs: Any, path: str, revision: str | None = None, **kwargs: Any) -> None:
        super(HfFileSystemFile, self).__init__(fs, path, size=1 << 30, **kwargs)

    monkeypatch.setattr(HfFileSystemFile, "_fetch_range", fetch)
    monkeypatch.setattr(HfFileSystemFile, "__init__", begin)
    store = Store("hf://a/b@c", fs=HfFileSystem(), root="a/b@c")
    assert len(store.read("a/b@c/model.safetensors", 5_000_000, 5_000_100, "x")) == 100
    assert asked == [(5_000_000, 5_000_100)]
