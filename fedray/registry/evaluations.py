"""What was measured with a registry's fusers and gates: a line per row of an evaluation, beside the versions.

Lines are only ever added. They are of validation questions, by which choices may be made; figures to report come from
test questions, and are not in here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fedray.types import FedrayError

NAME = "evaluations.jsonl"
SPLIT = "validation"
_LISTS = ("senders", "seeds")


@dataclass(frozen=True, slots=True)
class Recorded:
    """One way of answering a task, measured.

    method: every setting of the canonical method, as on the command line; seeds: of the drawings of the questions;
    donors: whose messages the pairing gain is over; weights: LLM -> hash; parts: fuser or gate -> hash; accuracies are
    shares of n; pairing_gain: points, None where there is none; bytes: on the wire per question; seconds: the median of
    questions asked one at a time, None where none was.
    """

    receiver: str
    senders: tuple[str, ...]
    method: Mapping[str, Any]
    weights: Mapping[str, str]
    parts: Mapping[str, str]
    zoo: str
    task: str
    scoring: str
    seeds: tuple[int, ...]
    donors: str
    n: int
    accuracy: float
    accuracy_alone: float
    pairing_gain: float | None
    bytes: float
    seconds: float | None
    split: str = SPLIT

    @property
    def subject(self) -> str:
        """What was measured, without what came of it: the same is recorded once."""
        measured = ("accuracy", "accuracy_alone", "pairing_gain", "bytes", "seconds")
        return json.dumps({k: v for k, v in asdict(self).items() if k not in measured}, sort_keys=True)


def append(root: Path, found: Iterable[Recorded]) -> int:
    """Add what is not recorded yet, in one write; returns how many. Raises FedrayError where that cannot be done."""
    known = {evaluation.subject for evaluation in read(root)}
    new = [evaluation for evaluation in found if evaluation.subject not in known]
    text = "".join(json.dumps(asdict(evaluation), sort_keys=True) + "\n" for evaluation in new)
    path = root / NAME
    try:
        root.mkdir(parents=True, exist_ok=True)
        cut_off = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" * cut_off + text)
    except OSError as error:
        raise FedrayError(f"cannot write {path} ({error.strerror}): make room, or name another folder") from error
    return len(new)


def read(root: Path) -> list[Recorded]:
    """Read what is recorded; a line that is none, as after a crash, is left out."""
    try:
        lines = (root / NAME).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [evaluation for line in lines if (evaluation := _evaluation(line)) is not None]


def _evaluation(line: str) -> Recorded | None:
    try:
        values = json.loads(line)
        known = {of.name for of in fields(Recorded)}
        return Recorded(
            **{**{k: v for k, v in values.items() if k in known}, **{key: tuple(values[key]) for key in _LISTS}}
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
