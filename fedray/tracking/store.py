"""Apply the operations of a journal to MLflow."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

Operation = dict[str, Any]  # one entry of a journal, JSON's own values only
SQLITE = "sqlite:///"
KEY = "fedray.key"  # the tag by which a child is found again
_ENVIRONMENT = {  # MLflow's own defaults retry for minutes; what the user has set stays
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",  # the journal's thread is asynchronous enough
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the last line is `report: PATH`
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def load() -> None:
    """Import MLflow with short timeouts. Raises ImportError when it is not installed."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import mlflow  # noqa: F401


def failures() -> tuple[type[Exception], ...]:
    """List the errors of a store that is missing, unreachable, locked or of another version."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return OSError, ImportError, MlflowException, SQLAlchemyError


def absolute(uri: str) -> str:
    """Make the path of a SQLite store absolute, so that it is found again from another folder."""
    if not uri.startswith(SQLITE):
        return uri
    return SQLITE + str(Path(uri.removeprefix(SQLITE)).absolute())


class Store:
    """One experiment of one MLflow store. A SQLite store keeps its artifacts beside it in mlartifacts/."""

    def __init__(self, uri: str, experiment: str, folder: Path) -> None:
        import mlflow

        mlflow.set_tracking_uri(uri)  # traces know no client
        self._folder = folder  # what the paths of artifacts are relative to
        database = Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None
        with _lock(database):
            self._client = mlflow.MlflowClient(uri)
            self._experiment = self._find(experiment, database and str(database.parent / "mlartifacts"))

    def _find(self, experiment: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            return self._client.create_experiment(experiment, artifacts)
        if found.lifecycle_stage == "deleted":
            raise MlflowException(
                f"its experiment {experiment!r} was deleted: restore it with `mlflow experiments restore -x "
                f"{found.experiment_id}`, or choose another with tracking.experiment=NAME"
            )
        return found.experiment_id

    def open(self, name: str) -> str:
        """Start a run; returns its id."""
        return self._client.create_run(self._experiment, run_name=name).info.run_id

    def apply(self, run_id: str, operation: Operation) -> None:
        """Apply one entry of a journal, or the rest of it: one that failed halfway is applied again later."""
        from mlflow.entities import Metric, Param, RunTag

        match operation:
            case {"do": "params", "values": values}:
                self._client.log_batch(run_id, params=[Param(k, v) for k, v in values.items()])
            case {"do": "tags", "values": values}:
                self._client.log_batch(run_id, tags=[RunTag(k, v) for k, v in values.items()])
            case {"do": "metrics", "values": values, "step": step, "time_ms": at}:
                self._client.log_batch(run_id, metrics=[Metric(k, v, at, step) for k, v in values.items()])
            case {"do": "table", "file": file, "columns": columns}:
                self._table(run_id, columns, file)
            case {"do": "artifact", "path": path, "to": to}:
                local = (self._folder / path).resolve()
                log = self._client.log_artifacts if local.is_dir() else self._client.log_artifact
                log(run_id, str(local), to or None)
            case {"do": "register", "model": model, "artifact": artifact, "alias": alias, "tags": tags}:
                self._register(run_id, model, artifact, alias, tags)
            case {"do": "child"}:
                self._child(run_id, operation)
            case {"do": "trace"}:
                self._trace(run_id, operation)
            case {"do": "end", "status": status, "time_ms": at}:
                self._client.set_terminated(run_id, status, at)
            case _:
                raise AssertionError(f"unknown operation {operation}")

    def _table(self, run_id: str, columns: dict[str, list[Any]], file: str) -> None:
        if file in {artifact.path for artifact in self._client.list_artifacts(run_id)}:
            columns = {name: [] for name in columns}  # log_table appends
        self._client.log_table(run_id, columns, file)

    def _register(self, run_id: str, model: str, artifact: str, alias: str, tags: dict[str, str]) -> None:
        if not self._client.search_registered_models(f"name = '{model}'"):
            self._client.create_registered_model(model)
        source = f"{self._client.get_run(run_id).info.artifact_uri}/{artifact}"
        found = self._client.search_model_versions(f"name = '{model}' and run_id = '{run_id}'")
        version = found[0] if found else self._client.create_model_version(model, source, run_id, tags=tags)
        self._client.set_registered_model_alias(model, alias, version.version)

    def _child(self, run_id: str, child: Operation) -> None:
        from mlflow.entities import Metric, Param

        at, key = child["time_ms"], child["key"]
        found = self._client.search_runs([self._experiment], f"tags.`{KEY}` = '{key}'", max_results=1)
        tags = {"mlflow.parentRunId": run_id, KEY: key, **child["tags"]}
        run = found[0] if found else self._client.create_run(self._experiment, at, tags, child["name"])
        metrics = [Metric(k, v, at, 0) for k, v in child["metrics"].items()]
        params = [Param(k, v) for k, v in child["params"].items()]
        self._client.log_batch(run.info.run_id, metrics=metrics, params=params)
        self._client.set_terminated(run.info.run_id, "FINISHED", at)

    def _trace(self, run_id: str, trace: Operation) -> None:
        import mlflow

        ends = [span["end_ns"] for span in trace["spans"]]
        root = mlflow.start_span_no_context(
            trace["name"],
            span_type="CHAIN",
            inputs=trace["inputs"],
            attributes=trace["attributes"],
            metadata={"mlflow.sourceRun": run_id},
            experiment_id=self._experiment,
            start_time_ns=trace["start_ns"],
        )
        for span in trace["spans"]:
            child = mlflow.start_span_no_context(
                span["name"], parent_span=root, attributes=span["attributes"], start_time_ns=span["start_ns"]
            )
            child.end(end_time_ns=span["end_ns"])
        root.set_outputs(trace["outputs"])
        root.end(end_time_ns=max(ends, default=time.time_ns()))
        self._client.get_trace(root.trace_id, display=False)  # raises where MLflow only warned


def _lock(database: Path | None) -> AbstractContextManager[object]:
    """Lock a SQLite file: parallel first uses would race on its migrations."""
    if database is None:
        return nullcontext()
    from filelock import FileLock

    return FileLock(database.with_name(f".{database.name}.lock"), timeout=60)
