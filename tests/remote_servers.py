"""Remote storage on this machine: an S3 server, a web server that knows ranges and counts, a storage that falters."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": "something",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def s3_server() -> Iterator[str]:
    """An S3 server with the bucket `models`, and the environment that leads to it; yields its address."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        boto3.client("s3").create_bucket(Bucket="models")
        yield settings["AWS_ENDPOINT_URL"]
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
        server.stop()


def upload(folder: Path, url: str) -> str:
    """Put a folder's files under a URL."""
    fs, root = fsspec.core.url_to_fs(url)
    for path in folder.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"{root}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return url


def remote_tree(url: str) -> dict[str, bytes]:
    """All files under a URL."""
    fs, root = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    start = len(root.strip("/")) + 1
    return {path.strip("/")[start:]: bytes(fs.cat_file(path)) for path in sorted(fs.find(root))}


class _Ranges(SimpleHTTPRequestHandler):
    """Serves a folder; answers ranges unless told not to, and fails when told to."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        log: Any = self.server
        time.sleep(log.delay if self.command == "GET" else 0)
        path = Path(self.translate_path(self.path))
        if log.failures > 0 and "Range" in self.headers:
            log.failures -= 1
            self.send_error(503)
            return
        if not path.is_file():
            self.send_error(404)
            return
        state, found = path.stat(), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last, status = 0, state.st_size - 1, 200
        headers = {"ETag": f'"{state.st_size}-{state.st_mtime_ns}"'}
        if found and log.ranges:
            first, last, status = int(found[1]), min(int(found[2]), last), 206
            headers["Content-Range"] = f"bytes {first}-{last}/{state.st_size}"
        count = last - first + 1
        if self.command == "HEAD":
            log.heads.append(self.path)
        else:
            log.sent.append((path.name, count))
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(count)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            try:
                with path.open("rb") as stream:
                    stream.seek(first)
                    self.wfile.write(stream.read(count))
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def web_server(folder: Path, *, ranges: bool = True) -> Iterator[Any]:
    """A web server of a folder; `server.url` is its address, `server.sent` what it sent: (file, bytes)."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Ranges, directory=str(folder)))
    server.daemon_threads = True
    server.ranges, server.failures, server.delay, server.sent, server.heads = ranges, 0, 0.0, [], []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Faltering(MemoryFileSystem):
    """Storage in memory that notes every range, and raises what it is told to."""

    protocol = "faltering"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    ranges: ClassVar[list[tuple[str, int, int]]] = []
    errors: ClassVar[list[BaseException | int]] = []

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("faltering://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        data = super().cat_file(path, start, end)
        if start is not None and end is not None:
            self.ranges.append((path.rsplit("/", 1)[-1], start, end))
            if self.errors:
                error = self.errors.pop(0)
                if isinstance(error, BaseException):
                    raise error
                return data[:error]
        return data


@contextmanager
def faltering() -> Iterator[type[Faltering]]:
    """The storage, empty, under `faltering://`."""
    fsspec.register_implementation("faltering", Faltering, clobber=True)
    Faltering.store.clear()
    Faltering.pseudo_dirs[:] = [""]
    Faltering.ranges.clear()
    Faltering.errors.clear()
    yield Faltering
