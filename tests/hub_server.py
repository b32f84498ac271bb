"""A Hub for tests, on localhost: creates repositories, takes commits, keeps what it was sent."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Hub", "serve"]


class Hub:
    """What the server holds."""

    def __init__(self) -> None:
        self.address = ""
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.locked = False


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _send(self, value: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(body)

    def _repository(self) -> str:
        return "/".join(self.path.split("?")[0].split("/")[3:5])

    def do_GET(self) -> None:
        name = self._repository()
        if name not in self.hub.files:
            self._send({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return
        siblings = [{"rfilename": file} for file in self.hub.files[name]]
        self._send({"id": name, "modelId": name, "private": self.hub.private[name], "siblings": siblings, "tags": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.split("?")[0]
        if self.hub.locked:
            self._send({"error": "no"}, 403)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.hub.files[name] = {".gitattributes": b""}
            self.hub.private[name] = asked.get("private", asked.get("visibility") == "private")
            self._send({"url": f"{self.hub.address}/{name}", "id": name, "name": name})
        elif path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            named = [file["path"] for file in json.loads(body)["files"]]
            self._send({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in named]})
        elif "/commit/" in path:
            name = self._repository()
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "header":
                    self.hub.messages.append(entry["value"]["summary"])
                elif entry["key"] == "file":
                    self.hub.files[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            url = f"{self.hub.address}/{name}/commit/{'0' * 40}"
            self._send({"success": True, "commitOid": "0" * 40, "commitUrl": url, "hookOutput": ""})
        else:
            self._send({"error": path}, 404)


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a Hub on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
