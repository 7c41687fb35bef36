"""A mirror of the Hugging Face hub on loopback: repositories in its layout, its headers, and its ways to fail."""

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

_LARGE = ".safetensors"  # such files lie in large file storage: a redirect to another place, named by their hash


@dataclass(slots=True)
class Repo:
    """revisions: branches and tags -> commit; missing: files that are listed and not there; short: file -> how many of
    its bytes are served; gated: nobody may read its files."""

    files: dict[str, bytes]
    revisions: dict[str, str]
    gated: bool = False
    missing: set[str] = field(default_factory=set)
    short: dict[str, int] = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        return revision if revision in self.revisions.values() else self.revisions.get(revision)


def repo_of(folder: Path, **more: Any) -> Repo:
    """A folder's files as a repository with the branch main and a commit named by them."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    commit = hashlib.sha1(b"".join(files[name] for name in sorted(files))).hexdigest()
    return Repo(files, {"main": commit}, **more)


class Mirror:
    """url: what HF_ENDPOINT is; cdn: where large files lie; asked: every request as "METHOD path"."""

    def __init__(self, repos: dict[str, Repo]) -> None:
        self.repos = repos
        self.asked: list[str] = []
        self.url = self.cdn = ""


@contextmanager
def serving(repos: dict[str, Repo]) -> Iterator[Mirror]:
    mirror = Mirror(repos)

    class Handler(_Handler):
        of = mirror

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    mirror.url, mirror.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield mirror
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    of: Mirror
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.of.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[0] == "cdn":
            return self._blob(*parts[1:3], parts[3])
        about = parts[2:] if parts[0] == "api" else parts
        repo = self.of.repos.get("/".join(about[:2]))
        if repo is None:
            return self._refuse(404, "RepoNotFound", "Repository not found")
        commit = repo.commit(about[3])
        if commit is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {about[3]}")
        if parts[0] != "api":
            return self._file("/".join(about[:2]), repo, commit, about[4])
        return self._json(self._tree(repo) if about[2] == "tree" else self._info("/".join(about[:2]), repo, commit))

    def _info(self, name: str, repo: Repo, commit: str) -> Any:
        return {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in repo.files]}

    def _tree(self, repo: Repo) -> Any:
        rows = []
        for name, content in repo.files.items():
            row: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": _git_hash(content)}
            if name.endswith(_LARGE):
                row["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
            rows.append(row)
        return rows

    def _file(self, name: str, repo: Repo, commit: str, file: str) -> None:
        if repo.gated:
            return self._refuse(403, "GatedRepo", f"Access to model {name} is restricted")
        content = repo.files.get(file)
        if content is None or file in repo.missing:
            return self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit}
        if file.endswith(_LARGE):
            headers |= {"X-Linked-Etag": f'"{_sha256(content)}"', "X-Linked-Size": str(len(content))}
            headers["Location"] = f"{self.of.cdn}/cdn/{name}/{file}"
            return self._send(302, b"", headers)
        return self._send(200, content, {**headers, "ETag": f'"{_git_hash(content)}"'})

    def _blob(self, org: str, name: str, file: str) -> None:
        repo = self.of.repos[f"{org}/{name}"]
        content = repo.files[file]
        self._send(200, content[: repo.short.get(file, len(content))], {"ETag": f'"{_sha256(content)}"'})

    def _refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, b"", {**(headers or {}), "X-Error-Code": code, "X-Error-Message": message})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
