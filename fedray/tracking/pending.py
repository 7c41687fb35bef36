"""Keep what MLflow did not take as tracking_pending.json in the output folder, until `sync` sends it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fedray.files import write_whole
from fedray.text import MASKED, mask
from fedray.tracking.store import Operation, Store, failures, load
from fedray.types import FedrayError

PENDING = "tracking_pending.json"


@dataclass(frozen=True, slots=True)
class Pending:
    """The rest of a journal, and the run it belongs to (None: not created yet)."""

    uri: str  # masked: a password stays in MLFLOW_TRACKING_URI
    experiment: str
    name: str
    run_id: str | None
    operations: list[Operation]


def write(pending: Pending, folder: Path) -> Path:
    path = folder / PENDING
    write_whole(path, json.dumps(asdict(pending), indent=1, ensure_ascii=False) + "\n", private=True)
    return path


def read(folder: Path) -> Pending:
    path = folder / PENDING
    try:
        return Pending(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise FedrayError(
            f"{path} does not exist: nothing waits to be sent, or name the job's output folder"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise FedrayError(f"{path} cannot be read ({error}); run the job again") from error


def sync(folder: Path) -> tuple[str, str]:
    """Send what is pending in an output folder; returns the store's URI and the run's id.

    Raises FedrayError when nothing is pending or MLflow still does not take it; the rest then stays pending.
    """
    pending = read(folder)
    try:
        load()
    except ImportError as error:
        raise FedrayError(missing(error)) from error
    uri = _address(pending.uri)
    try:
        store = Store(uri, pending.experiment, folder)
        run_id = pending.run_id or store.open(pending.name)
        while pending.operations:
            store.apply(run_id, pending.operations[0])
            pending = replace(pending, run_id=run_id, operations=pending.operations[1:])
    except failures() as error:
        write(pending, folder)
        reason = mask(sentence(error))
        raise FedrayError(f"MLflow at {pending.uri} still fails ({reason}); try again later") from error
    (folder / PENDING).unlink()
    return pending.uri, run_id


def _address(uri: str) -> str:
    """Find the store's full URI. Raises FedrayError where its password must be given again."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if mask(given) == uri:
        return given
    if MASKED in uri:
        raise FedrayError(f"the password of {uri} is not kept: set MLFLOW_TRACKING_URI to the whole URI and try again")
    return uri


def missing(error: ImportError) -> str:
    """Explain why there is no MLflow, with the remedy."""
    return f"MLflow cannot be imported ({error}); pip install 'fedray[tracking]', or say tracking=none"


def sentence(error: Exception) -> str:
    """Extract the first line of an error, which may quote a whole HTTP exchange, cut to a readable length."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 160 else f"{text[:157]}..."
