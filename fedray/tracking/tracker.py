"""Log one run of one job to MLflow."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Literal, Protocol

from fedray.text import mask
from fedray.tracking import pending
from fedray.tracking.spans import pseudonymize, trace
from fedray.tracking.store import SQLITE, Operation, Store, absolute, failures, load
from fedray.types import Answer, Request

OPEN_S = 15.0  # how long `run` waits for MLflow to open one; a first SQLite store takes about 5 s
CLOSE_S = 30.0  # how long `close` waits for the rest; a dead server gives up long before (store.py)
NOTE_CHARS = 8000  # the longest tag
TEXTS = frozenset({"question", "choices", "gold", "alone", "federated"})  # table columns that quote
Status = Literal["FINISHED", "FAILED", "KILLED"]


class TrackerSettings(Protocol):
    """The settings that tracking needs; the group of the settings of a run fits."""

    @property
    def enabled(self) -> bool: ...
    @property
    def uri(self) -> str: ...
    @property
    def experiment(self) -> str: ...
    @property
    def traces(self) -> int: ...


class Tracker:
    """One MLflow run, created by the first thing that is logged and ended with the block.

    private: prompts and answers never reach MLflow. Tables and traces hold keyed hashes and lengths instead (the key
    lasts one run), and files that quote them stay in the output folder.
    """

    def __init__(self, settings: TrackerSettings, output: Path, *, name: str = "fedray", private: bool = False) -> None:
        self._address = absolute(settings.uri)
        self.uri = mask(self._address)  # as it is shown and kept
        self.problem: str | None = None  # one sentence, once MLflow has failed
        self._settings, self._output, self._name = settings, output, name
        self._private = private
        self._shown = partial(pseudonymize, os.urandom(16)) if private else lambda value: value
        self._journal: list[Operation] = []
        self._applied = 0  # entries of the journal that MLflow has taken
        self._traces = 0
        self._queue: SimpleQueue[Operation | None] = SimpleQueue()
        self._opened = threading.Event()
        self._thread: threading.Thread | None = None
        self._run_id: str | None = None
        self._closed = not settings.enabled

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("FINISHED" if kind is None else "KILLED" if kind is KeyboardInterrupt else "FAILED")

    def params(self, **values: object) -> None:
        self._log({"do": "params", "values": {key: str(value) for key, value in values.items()}})

    def tags(self, **values: str) -> None:
        self._log({"do": "tags", "values": values})

    def describe(self, markdown: str) -> None:
        """Describe the run at the top of its page; MLflow renders Markdown, and takes NOTE_CHARS of it."""
        if len(markdown) > NOTE_CHARS:
            markdown = markdown[: NOTE_CHARS - 4].rpartition("\n")[0] + "\n..."
        self.tags(**{"mlflow.note.content": markdown})

    def metrics(self, values: Mapping[str, float | None], step: int = 0) -> None:
        """Log numbers by name; None and numbers that are not finite are left out."""
        if finite := _finite(values):
            self._log({"do": "metrics", "values": finite, "step": step, "time_ms": _now_ms()})

    def table(self, file: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log rows with the same keys, browsable in MLflow as `file` (.json)."""
        if rows:
            columns = {key: [row[key] for row in rows] for key in rows[0]}
            columns |= {key: list(map(self._shown, columns[key])) for key in columns.keys() & TEXTS}
            self._log({"do": "table", "file": file, "columns": columns})

    def artifact(self, path: Path, to: str = "", *, quotes: bool = False) -> None:
        """Log a file or folder, if it exists. quotes: it holds prompts, so a private run does not log it."""
        if path.exists() and not (quotes and self._private):
            self._log({"do": "artifact", "path": os.path.relpath(path, self._output), "to": to})

    def register(self, model: str, folder: Path, *, alias: str, **tags: str) -> None:
        """Register a new version of a model: the folder's files, and the alias of the one in use."""
        self.artifact(folder, "model")
        self._log({"do": "register", "model": model, "artifact": "model", "alias": alias, "tags": tags})

    def child(
        self, name: str, *, params: Mapping[str, object], metrics: Mapping[str, float | None], tags: Mapping[str, str]
    ) -> None:
        """Log a finished run of its own under this one; numbers as `metrics` takes them."""
        child: Operation = {"do": "child", "name": name, "key": uuid.uuid4().hex, "time_ms": _now_ms()}
        values = {key: str(value) for key, value in params.items()}
        self._log({**child, "params": values, "metrics": _finite(metrics), "tags": dict(tags)})

    def trace(self, request: Request, answer: Answer, started_ns: int) -> None:
        """Log one request as a tree of spans; only the first `traces` requests leave one."""
        if self._traces < self._settings.traces:
            self._traces += 1
            self._log(trace(request, answer, started_ns, self._shown))

    def run(self) -> tuple[str, str] | None:
        """Get URI and id of the MLflow run, or None when there is none (switched off, missing, unreachable)."""
        if self._thread:
            self._opened.wait(OPEN_S)
        return (self.uri, self._run_id) if self._run_id else None

    def close(self, status: Status = "FINISHED") -> None:
        """End the run; what MLflow has not taken by then is written to tracking_pending.json."""
        if self._journal and not self._closed:
            self._log({"do": "end", "status": status, "time_ms": _now_ms()})
            self._queue.put(None)
            if self._thread:
                self._thread.join(CLOSE_S)
            if rest := self._journal[self._applied :]:
                self.problem = self.problem or f"MLflow at {self.uri} takes too long"
                self._keep(rest)
        self._closed = True

    def _log(self, operation: Operation) -> None:
        if self._closed:
            return
        if not self._journal:
            self._start()
        operation = json.loads(mask(json.dumps(operation)))
        self._journal.append(operation)
        self._queue.put(operation)

    def _start(self) -> None:
        first: Operation = {"do": "tags", "values": origin()}
        self._journal.append(first)
        self._queue.put(first)
        try:
            load()  # here and not in the thread: two threads that import at once can see half a module
        except ImportError as error:
            self.problem = pending.missing(error)
            return
        self._thread = threading.Thread(target=self._work, name="fedray-tracking", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            store = Store(self._address, self._settings.experiment, self._output)
            run_id = self._run_id = store.open(self._name)
            self._opened.set()
            while operation := self._queue.get():
                store.apply(run_id, operation)
                self._applied += 1
        except failures() as error:
            self.problem = f"MLflow at {self.uri} fails ({mask(pending.sentence(error))})"
        finally:
            self._opened.set()

    def _keep(self, rest: list[Operation]) -> None:
        experiment = self._settings.experiment
        try:
            pending.write(pending.Pending(self.uri, experiment, self._name, self._run_id, rest), self._output)
        except OSError as error:
            self.problem = f"{self.problem}, and {self._output} takes nothing either ({error.strerror})"


def origin() -> dict[str, str]:
    """Make the tags of a run's origin: its command, the commit of the code, the Ray job."""
    tags = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
    if commit := _commit():
        tags["mlflow.source.git.commit"] = commit
    if submitted := os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):  # set by `ray job submit`
        metadata = json.loads(submitted).get("metadata") or {}
        tags["ray.job_id"] = str(metadata.get("job_submission_id", "unknown"))
        tags["mlflow.source.type"] = "JOB"
    return tags


def browse(uri: str, run_id: str) -> str:
    """Tell in a sentence how to see a run."""
    if not uri.startswith(SQLITE):
        return f"MLflow run {run_id}: browse it at {uri}"
    usual = absolute(os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db")
    command = "make ui" if uri == usual else f"MLFLOW_TRACKING_URI={uri} make ui"
    return f"MLflow run {run_id}: browse it with `{command}` (store {uri})"


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=2, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {_metric(name): float(v) for name, v in values.items() if v is not None and math.isfinite(v)}


def _metric(name: str) -> str:
    """Make a name valid for MLflow: prefill[llama-1b] becomes prefill/llama-1b, hint[/my/llm] becomes hint/my/llm."""
    parts = re.sub(r"[^\w./ -]", "_", name.replace("[", "/").replace("]", "")).split("/")
    return "/".join(part for part in parts if part.strip("."))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
