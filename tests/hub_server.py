"""A hub on loopback: as much of the real one's API as pushing and fetching a few small files needs."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

GATED = "org/gated"
TOKEN = "hf_write"


class Hub(ThreadingHTTPServer):
    """repos: id -> path -> bytes of the one commit there is; private: ids of those made private."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.fetched: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repo: str) -> str:
        files = self.repos[repo]
        return _sha1(b"".join(name.encode() + files[name] for name in sorted(files)))


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._info("/".join(parts[2:4]), parts[4] if len(parts) > 4 else "revision", parts[5:])
        elif len(parts) > 4 and parts[2] == "resolve":
            self._file("/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self._refuse(404, "EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if parts == ["api", "validate-yaml"]:
            self._json({})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(401, "Unauthorized")
        elif parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if asked.get("visibility") == "private":
                self.server.private.add(repo)
            self.server.repos.setdefault(repo, {})
            self._json({"url": f"{self.server.url}/{repo}", "name": repo})
        elif parts[4] == "preupload":
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": file["path"], **modes} for file in json.loads(body)["files"]]
            self._json({"files": files})
        else:
            self._take("/".join(parts[2:4]), body)

    def _take(self, repo: str, body: bytes) -> None:
        """A commit: one JSON object per line."""
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = self.server.commit(repo)
        self._json({"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{repo}/commit/{commit}"})

    def _info(self, repo: str, what: str, rest: list[str]) -> None:
        if repo == GATED:
            self._refuse(403, "GatedRepo")
        elif repo not in self.server.repos:
            self._refuse(401, "RepoNotFound")
        elif rest and rest[0] not in ("main", self.server.commit(repo)):
            self._refuse(404, "RevisionNotFound")
        elif what == "tree":
            files = self.server.repos[repo].items()
            self._json([{"type": "file", "path": path, "size": len(b), "oid": _sha1(b)} for path, b in files])
        else:
            self._json({"_id": repo, "id": repo, "sha": self.server.commit(repo), "siblings": []})

    def _file(self, repo: str, path: str) -> None:
        content = self.server.repos.get(repo, {}).get(path)
        if content is None:
            self._refuse(404, "EntryNotFound")
            return
        if self.command == "GET":
            self.server.fetched.append(path)
        self._answer(200, content, {"ETag": f'"{_sha1(content)}"', "X-Repo-Commit": self.server.commit(repo)})

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, b"{}", {"X-Error-Code": code, "Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
