"""A Hub on this machine: serves folders <root>/models/owner/name and <root>/datasets/owner/name to the real libraries.

It answers what huggingface_hub asks for a repository's state, its list of files, and a file. A repository whose name
begins with `private` is shown only to requests that carry the token. With the token models are made and committed to.
"""

from __future__ import annotations

import base64
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
    private: set[str] = field(default_factory=set)
    """Models that were made so."""
    commits: list[dict[str, list[str]]] = field(default_factory=list)
    """Of each commit what it added and deleted."""


@contextmanager
def fake_hub(root: Path) -> Iterator[Hub]:
    """Serve `root` until the block ends."""
    hub = Hub("")

    class Handler(_Handler):
        folder, asked, state = root, hub.asked, hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    folder: Path
    asked: list[str]
    state: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.asked.append(self.path)
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[0] == "api"
        parts = parts[api:]
        kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
        repository = self.folder / kind / "/".join(parts[:2])
        if len(parts) < 2 or not repository.is_dir() or not self._may_see(*parts[:2]):
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif api:
            self._describe(repository, parts)
        else:
            self._file(repository / "/".join(parts[4:]))  # owner/name/resolve/<revision>/<file>

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.asked.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if not self._has_token():
            self._send(401, b"", {})
        elif parts == ["api", "validate-yaml"]:
            self._json({"warnings": [], "errors": []})
        elif parts == ["api", "repos", "create"]:
            self._make(json.loads(body))
        elif parts[4] == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._json({"files": files})
        else:  # api/models/owner/name/commit/<revision>
            self._commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines()])

    def _make(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if (folder := self.folder / "models" / name).is_dir():
            self._json({"url": f"{self.state.url}/{name}"}, 409)
            return
        folder.mkdir(parents=True)
        self.state.private |= {name} if asked.get("private") or asked.get("visibility") == "private" else set()
        self._json({"url": f"{self.state.url}/{name}"})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        folder, done = self.folder / "models" / name, dict[str, list[str]](file=[], deletedFile=[])
        for kind, of in ((line["key"], line["value"]) for line in lines[1:]):
            done[kind].append(of["path"])
            path = folder / of["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                path.write_bytes(base64.b64decode(of["content"]))
            else:
                path.unlink()
        self.state.commits.append(done)
        self._json({"commitUrl": f"{self.state.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "hookOutput": ""})

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _may_see(self, owner: str, name: str) -> bool:
        is_private = name.startswith("private") or f"{owner}/{name}" in self.state.private
        return not is_private or self._has_token()

    def _describe(self, repository: Path, parts: list[str]) -> None:
        if parts[2:3] == ["tree"]:
            folder = repository / "/".join(parts[4:])
            found = folder.rglob("*") if "recursive=true" in self.path.lower() else folder.iterdir()
            self._json([_entry(path, repository) for path in sorted(found)])
        else:
            names = [path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()]
            siblings = [{"rfilename": name} for name in sorted(names)]
            self._json(
                {
                    "id": "/".join(parts[:2]),
                    "sha": COMMIT,
                    "siblings": siblings,
                    "private": "/".join(parts[:2]) in self.state.private,
                    "tags": [],
                }
            )

    def _file(self, path: Path) -> None:
        if path.is_file():
            self._send(200, path.read_bytes(), {"ETag": f'"{_sha1(path)}"', "X-Repo-Commit": COMMIT})
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
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
