"""report.json: what every job leaves behind.

Schema version 1. A `Report` is the file: its fields are the keys, their comments say what each is and in which unit.
Shares (accuracy, stderr, gate weights) lie between 0 and 1; absent figures are null, never NaN.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fedray.types import FedrayError, Missing

SCHEMA = 1
NAME = "report.json"


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Wall-clock seconds of one phase over all requests."""

    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What the federated answers cost. A request is a batch of up to `task.batch_size` questions."""

    payload_bytes: int = 0  # bytes of caches as they lay on the wire, all requests together
    bytes_per_token: float = 0.0  # payload_bytes over the receiver's prompt tokens
    seconds: Mapping[str, Percentiles] = field(default_factory=dict)  # phase -> seconds per request


@dataclass(frozen=True, slots=True)
class Participant:
    """A member, and where it ran."""

    name: str
    role: str  # receiver | sender
    family: str  # transformers' model type
    parameters: int
    device: str
    node: str
    pid: int


@dataclass(frozen=True, slots=True)
class Answered:
    """One question as asked, and the texts that came back."""

    question: str
    choices: tuple[str, ...] | None  # None: answered freely
    gold: str | None  # the right answer, where it is known
    alone: str | None  # the receiver's own answer; None: it failed, which counts as wrong
    federated: str | None  # the federation's answer; None: it failed, which counts as wrong


@dataclass(frozen=True, slots=True)
class Tracked:
    """Where MLflow keeps the run."""

    uri: str
    run_id: str


@dataclass(frozen=True, slots=True)
class Report:
    """One run of one job. Fields with a default may be absent from a job they do not concern."""

    job: str  # federate | train_fuser | ...
    zoo: str  # what stands behind the names: tiny | hub | shapes
    receiver: str
    senders: tuple[str, ...]  # as asked for; `missing` names those that took no part
    seed: int
    status: str  # complete | interrupted | failed
    protocol: str = "c2c"
    fuser: str = "mlp"
    fusion: str = "concat"
    gate: str = "learned"
    rephrase: str = "none"
    control: str = "none"
    task: str | None = None  # task name, or the file the questions came from; None: a single prompt
    n: int = 0  # questions answered
    accuracy: float | None = None  # federated, over the questions whose answer is known; failed samples are wrong
    stderr: float | None = None  # standard error of `accuracy`
    accuracy_alone: float | None = None  # the receiver alone, over the same questions
    p_value: float | None = None  # exact McNemar test, federated against alone, two-sided
    rescued: int = 0  # questions wrong alone and right federated
    harmed: int = 0  # questions right alone and wrong federated
    usage: Cost = Cost()
    missing: tuple[Missing, ...] = ()  # members that took no part in some request, and why
    members: tuple[Participant, ...] = ()
    answers: tuple[Answered, ...] = ()
    trust: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # group -> sender -> mean gate weight
    tracking: Tracked | None = None
    schema: int = SCHEMA


def write(report: Report, folder: Path) -> Path:
    """Write report.json into a folder, whole or not at all. Raises FedrayError when the folder cannot be written."""
    path = folder / NAME
    keys = {"schema": report.schema, **_plain(asdict(report))}
    temporary = path.with_name(f".{NAME}.{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(keys, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise FedrayError(f"{path} cannot be written ({error.strerror}); choose another folder: output=DIR") from error
    return path


def read(path: Path) -> Report:
    """Read a report.json, or the one in a folder. Raises FedrayError: missing, damaged, of another schema."""
    path = path / NAME if path.is_dir() else path
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FedrayError(f"{path} cannot be read ({error.strerror}); name a job's output folder") from error
    except ValueError as error:
        raise FedrayError(f"{path} is not a report ({error}); run the job again") from error
    schema = keys.get("schema") if isinstance(keys, dict) else None
    if schema != SCHEMA:
        raise FedrayError(
            f"{path} has report schema {schema}, this version reads {SCHEMA}; use the fedray that wrote it"
        )
    try:
        return _parse(keys)
    except (KeyError, TypeError, AttributeError) as error:
        raise FedrayError(f"{path} lacks keys of report schema {SCHEMA} ({error}); run the job again") from error


def _parse(keys: dict[str, Any]) -> Report:
    known = {f.name for f in fields(Report)}
    values = {key: value for key, value in keys.items() if key in known}
    usage = keys["usage"]
    seconds = {phase: Percentiles(**value) for phase, value in usage["seconds"].items()}
    answers = ({**a, "choices": a["choices"] and tuple(a["choices"])} for a in keys["answers"])
    values.update(
        senders=tuple(keys["senders"]),
        usage=Cost(usage["payload_bytes"], usage["bytes_per_token"], seconds),
        missing=tuple(Missing(**m) for m in keys["missing"]),
        members=tuple(Participant(**m) for m in keys["members"]),
        answers=tuple(Answered(**a) for a in answers),
        tracking=Tracked(**keys["tracking"]) if keys["tracking"] else None,
    )
    return Report(**values)


def _plain(value: Any) -> Any:
    """JSON's own values: a number that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
