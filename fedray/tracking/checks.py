"""Validate before the work starts that MLflow can store a run, without importing MLflow."""

from __future__ import annotations

import os
import shlex
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from fedray.tracking.store import SQLITE
from fedray.tracking.tracker import TrackerSettings
from fedray.types import FedrayError


def check_store(tracking: TrackerSettings) -> None:
    """Validate the tracking store. Raises FedrayError where MLflow could not store the run, before the work is done."""
    if not tracking.enabled:
        return
    for key, value in (("uri", tracking.uri), ("experiment", tracking.experiment)):
        if not value.strip():
            raise FedrayError(f"tracking.{key} is empty: leave it out, or leave MLflow out with tracking=none")
    if not tracking.uri.startswith(SQLITE):
        return
    database = Path(tracking.uri.removeprefix(SQLITE)).absolute()
    nearest = database if database.exists() else next(f for f in database.parents if f.exists())
    kind_fits = nearest.is_file() if nearest == database else nearest.is_dir()
    if not kind_fits or not os.access(nearest, os.W_OK):
        raise FedrayError(
            f"tracking.uri={tracking.uri} cannot be written: name another file with tracking.uri=sqlite:///PATH, or "
            "leave MLflow out with tracking=none"
        )
    if (deleted := _deleted(database, tracking.experiment)) is not None:
        restore = f"MLFLOW_TRACKING_URI={shlex.quote(f'sqlite:///{database}')} mlflow experiments restore -x {deleted}"
        raise FedrayError(
            f"the MLflow experiment {tracking.experiment!r} was deleted: restore it with `{restore}`, or choose "
            "another with tracking.experiment=NAME"
        )


def _deleted(database: Path, experiment: str) -> int | None:
    """Find the id of an experiment that was deleted in a SQLite store of MLflow's, whose import would take seconds.

    What cannot be read is left to MLflow, which raises.
    """
    asked = "SELECT experiment_id FROM experiments WHERE name = ? AND lifecycle_stage = 'deleted'"
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as store:
        found = store.execute(asked, (experiment,)).fetchone()
        return found and found[0]
    return None
