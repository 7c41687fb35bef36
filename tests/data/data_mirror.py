"""A hub on loopback that serves one data set's folder in the real layout, for subprocesses with HF_ENDPOINT set."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def mirror(repo: str, folder: Path, *, gated: bool = False) -> Iterator[str]:
    """The address of a hub that has `folder` as the data set `repo` at COMMIT (main)."""

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None: ...

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            paths = parse_qs(self.rfile.read(length).decode()).get("paths", [])
            self._json([entry(folder / path) for path in paths if (folder / path).exists()])

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            api, files = f"/api/datasets/{repo}", f"/datasets/{repo}/resolve/"
            if not path.startswith((api, files)):
                self._refuse(404, "RepoNotFound", "Repository not found")
            elif path.startswith(files):
                revision, _, name = path.removeprefix(files).partition("/")
                if gated:
                    self._refuse(403, "GatedRepo", f"Access to dataset {repo} is restricted.")
                elif revision not in ("main", COMMIT):
                    self._refuse(404, "RevisionNotFound", "Revision not found")
                elif (folder / name).is_file():
                    self._file(folder / name)
                else:
                    self._refuse(404, "EntryNotFound", "Entry not found")
            elif "/tree/" in path:
                below = folder / path.partition("/tree/")[2].partition("/")[2]
                found = sorted(below.rglob("*") if "recursive=True" in self.path else below.iterdir())
                self._json([entry(file) for file in found])
            else:
                names = [{"rfilename": str(f.relative_to(folder))} for f in folder.rglob("*") if f.is_file()]
                self._json({"id": repo, "sha": COMMIT, "private": False, "gated": gated, "tags": [], "siblings": names})

        def _file(self, file: Path) -> None:
            blob = file.read_bytes()
            headers = {"ETag": f'"{digest(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            self._send(200, blob, "application/octet-stream", headers)

        def _json(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), "application/json", {})

        def _refuse(self, status: int, code: str, text: str) -> None:
            self._send(status, text.encode(), "text/plain", {"X-Error-Code": code, "X-Error-Message": text})

        def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    def entry(file: Path) -> dict[str, Any]:
        path = str(file.relative_to(folder))
        if file.is_dir():
            return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
        return {"type": "file", "oid": digest(file), "size": file.stat().st_size, "path": path}

    def digest(file: Path) -> str:
        return hashlib.sha1(file.read_bytes()).hexdigest()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
