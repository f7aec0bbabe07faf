"""A Hub on this machine: serves folders <root>/models/owner/name and <root>/datasets/owner/name to the real libraries.

It answers what huggingface_hub asks for a repository's state, its list of files, and a file. A repository whose name
begins with `private` is shown only to requests that carry the token.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_" + "TheTokenThatMayStandNowhere" + "0123456"


@dataclass
class Hub:
    """Where it listens, and the paths it was asked for."""

    url: str
    asked: list[str] = field(default_factory=list)


@contextmanager
def fake_hub(root: Path) -> Iterator[Hub]:
    """Serve `root` until the block ends."""
    hub = Hub("")

    class Handler(_Handler):
        folder, asked = root, hub.asked

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    folder: Path
    asked: list[str]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.asked.append(self.path)
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[0] == "api"
        parts = parts[api:]
        kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
        repository = self.folder / kind / "/".join(parts[:2])
        if len(parts) < 2 or not repository.is_dir() or not self._may_see(parts[1]):
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif api:
            self._describe(repository, parts)
        else:
            self._file(repository / "/".join(parts[4:]))  # owner/name/resolve/<revision>/<file>

    do_HEAD = do_GET

    def _may_see(self, name: str) -> bool:
        return not name.startswith("private") or self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _describe(self, repository: Path, parts: list[str]) -> None:
        if parts[2:3] == ["tree"]:
            folder = repository / "/".join(parts[4:])
            self._json([_entry(path, repository) for path in sorted(folder.iterdir())])
        else:
            names = [path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()]
            siblings = [{"rfilename": name} for name in sorted(names)]
            self._json({"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

    def _file(self, path: Path) -> None:
        if path.is_file():
            self._send(200, path.read_bytes(), {"ETag": f'"{_sha1(path)}"', "X-Repo-Commit": COMMIT})
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing: the default writes a line per request."""


def _entry(path: Path, repository: Path) -> dict[str, Any]:
    name = path.relative_to(repository).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    return {"type": "file", "path": name, "oid": _sha1(path), "size": path.stat().st_size}


def _sha1(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
