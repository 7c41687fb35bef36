"""A mirror of the Hugging Face hub on loopback: models and data sets in its layout, pushes, and its ways to fail."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_write"  # who has it may push
_ROOT = Path(__file__).resolve().parents[1]
_LARGE = ".safetensors"  # such files lie in large file storage: a redirect to another place, named by their hash


@dataclass(slots=True)
class Repo:
    """revisions: branches and tags -> commit; missing: files that are listed and not there; short: file -> how many of
    its bytes are served; gated: nobody may read its files."""

    files: dict[str, bytes] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    missing: set[str] = field(default_factory=set)
    short: dict[str, int] = field(default_factory=dict)

    def commit(self, revision: str = "main") -> str | None:
        """Main's is named by what the files hold, where `revisions` names no other; None: no such revision."""
        content = b"".join(name.encode() + self.files[name] for name in sorted(self.files))
        known = {"main": hashlib.sha1(content).hexdigest(), **self.revisions}
        return revision if revision in known.values() else known.get(revision)


def repo_of(folder: Path, **more: Any) -> Repo:
    """A folder's files as a repository."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return Repo({path.relative_to(folder).as_posix(): path.read_bytes() for path in files}, **more)


class Mirror:
    """repos: by ORG/NAME, data sets by datasets/ORG/NAME; url: what HF_ENDPOINT is; cdn: where large files lie;
    asked: every request as "METHOD path"; fetched: every file whose content was sent, as it is called in its repo;
    sent: how many bytes of it."""

    def __init__(self, repos: dict[str, Repo]) -> None:
        self.repos = repos
        self.asked: list[str] = []
        self.fetched: list[str] = []
        self.sent: Counter[str] = Counter()
        self.url = self.cdn = ""


@contextmanager
def serving(repos: dict[str, Repo] | None = None) -> Iterator[Mirror]:
    mirror = Mirror({} if repos is None else repos)

    class Handler(_Handler):
        of = mirror

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    mirror.url, mirror.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield mirror
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


def environment(url: str, home: Path, **more: str) -> dict[str, str]:
    """For a process of its own: its hub is `url`, its caches lie in `home`."""
    path = os.pathsep.join((str(_ROOT), str(_ROOT / "tests")))
    places = {"HF_HOME": str(home), "HF_DATASETS_CACHE": str(home / "datasets"), "PYTHONPATH": path}
    return {**os.environ, **places, "HF_ENDPOINT": url, **more}


def point_here(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """Tell huggingface_hub in this process what HF_ENDPOINT and HF_HUB_CACHE tell it when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


class _Handler(BaseHTTPRequestHandler):
    of: Mirror
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self._parts()
        first, *rest = parts
        if first == "cdn":
            name, (*file,) = self._split(rest)
            return self._blob(self.of.repos[name], "/".join(file))
        if first == "api":
            return self._ask(*self._split(rest[1:] if rest[0] == "models" else rest))
        name, (_, revision, *file) = self._split(parts)
        if (found := self._find(name, revision)) is not None:
            self._file(name, *found, "/".join(file))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        _, *parts = self._parts()
        if parts == ["validate-yaml"]:
            self._json({})
        elif parts[-2:-1] == ["paths-info"]:
            name, (_, revision) = self._split(parts)
            if (found := self._find(name, revision)) is not None:
                asked = map(PurePosixPath, parse_qs(body.decode()).get("paths", []))
                self._json([_row(found[0], path) for path in asked if path in _paths(found[0])])
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(401, "Unauthorized", "Invalid username or password.")
        elif parts == ["repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.of.repos.setdefault(name, Repo(private=asked.get("visibility") == "private"))
            self._json({"url": f"{self.of.url}/{name}", "name": name})
        elif parts[3] == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            self._json({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        else:
            self._take("/".join(parts[1:3]), body)

    def _parts(self) -> list[str]:
        path = urlsplit(self.path).path
        self.of.asked.append(f"{self.command} {unquote(path)}")
        return [unquote(part) for part in path.strip("/").split("/")]

    def _split(self, parts: list[str]) -> tuple[str, list[str]]:
        """The key in `repos`, and what follows it."""
        length = 3 if parts[0] == "datasets" else 2
        return "/".join(parts[:length]), parts[length:]

    def _find(self, name: str, revision: str) -> tuple[Repo, str] | None:
        """A repository and its commit; what there is not is refused."""
        repo = self.of.repos.get(name)
        if repo is None:
            return self._refuse(404, "RepoNotFound", "Repository not found")
        commit = repo.commit(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, commit

    def _ask(self, name: str, about: list[str]) -> None:
        """What a repository is, or what it holds: all of it, or what lies in one folder."""
        what, revision, *below = about or ("revision", "main")
        if (found := self._find(name, revision)) is None:
            return
        repo, commit = found
        if what == "tree":
            folder = PurePosixPath(*below)
            deep = re.search(r"\brecursive=true\b", self.path, re.IGNORECASE)
            inside = [path for path in sorted(_paths(repo)) if folder in path.parents]
            self._json([_row(repo, path) for path in inside if deep or path.parent == folder])
        else:
            own = {"private": repo.private, "gated": repo.gated, "tags": []}
            self._json({"id": name, "sha": commit, **own, "siblings": [{"rfilename": file} for file in repo.files]})

    def _file(self, name: str, repo: Repo, commit: str, file: str) -> None:
        if repo.gated:
            return self._refuse(403, "GatedRepo", f"Access to {name} is restricted")
        content = repo.files.get(file)
        if content is None or file in repo.missing:
            return self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit}
        if file.endswith(_LARGE):
            headers |= {"X-Linked-Etag": f'"{_sha256(content)}"', "X-Linked-Size": str(len(content))}
            return self._send(302, b"", {**headers, "Location": f"{self.of.cdn}/cdn/{name}/{file}"})
        return self._content(file, content, {**headers, "ETag": f'"{_git_hash(content)}"'})

    def _blob(self, repo: Repo, file: str) -> None:
        content = repo.files[file]
        self._content(file, content[: repo.short.get(file, len(content))], {"ETag": f'"{_sha256(content)}"'})

    def _content(self, file: str, content: bytes, headers: dict[str, str]) -> None:
        if self.command == "GET":
            self.of.fetched.append(file)
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if part is None:
            self.of.sent[file] += len(content) if self.command == "GET" else 0
            return self._send(200, content, headers)
        first, size = int(part[1]), len(content)
        some = content[first : int(part[2]) + 1]
        self.of.sent[file] += len(some)
        self._send(206, some, {**headers, "Content-Range": f"bytes {first}-{first + len(some) - 1}/{size}"})

    def _take(self, name: str, body: bytes) -> None:
        """A commit: one JSON object per line."""
        repo = self.of.repos[name]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                repo.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = repo.commit()
        self._json({"success": True, "commitOid": commit, "commitUrl": f"{self.of.url}/{name}/commit/{commit}"})

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

    def log_message(self, format: str, *args: Any) -> None: ...


def _paths(repo: Repo) -> set[PurePosixPath]:
    """Its files and folders."""
    files = [PurePosixPath(name) for name in repo.files]
    return {path for file in files for path in (file, *file.parents)}


def _row(repo: Repo, path: PurePosixPath) -> dict[str, Any]:
    content = repo.files.get(str(path))
    if content is None:
        return {"type": "directory", "path": str(path), "size": 0, "oid": "0" * 40}
    row: dict[str, Any] = {"type": "file", "path": str(path), "size": len(content), "oid": _git_hash(content)}
    if path.suffix == _LARGE:
        row["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
    return row


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
