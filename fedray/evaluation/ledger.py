"""What has been measured, a file per case and seed: a run that was killed asks nothing twice.

A file's name is the hash of everything that decides what it holds: the plan with the hashes of its fusers and gate, the
LLMs by the hashes of their weights, the questions, how answers are decoded, and the version of fedray.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedray import __version__
from fedray.evaluation.measure import Measurement
from fedray.files import write_whole
from fedray.questions.tasks import Question
from fedray.schema import Schema
from fedray.settings.settings import Settings
from fedray.types import FedrayError, MemberInfo, Plan

FOLDER = "rows"
_SCHEMA = Schema(Measurement)


class Ledger:
    """The measurements in one output folder."""

    def __init__(self, output: Path, *, private: bool = False) -> None:
        """private: rows, which hold rewrites, are readable by their owner only."""
        self._folder, self._private = output / FOLDER, private

    def get(self, decided: Mapping[str, Any]) -> Measurement | None:
        """What is known of a case. Raises FedrayError where its file is damaged."""
        path = self._path(decided)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))["measured"]
            return _measurement(values)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FedrayError(f"{path} cannot be read ({error}); delete it, and its case is asked again") from error

    def put(self, decided: Mapping[str, Any], found: Measurement) -> None:
        """Keep a finished case, whole or not at all. Raises FedrayError where the disk does not take it."""
        path = self._path(decided)
        values = asdict(found) | {
            "right": _bits(found.right),
            "by_member": {name: _bits(right) for name, right in found.by_member.items()},
            "deranged": {kind: list(map(_bits, ways)) for kind, ways in found.deranged.items()},
        }
        text = json.dumps({"decided": decided, "measured": values}, indent=1) + "\n"
        try:
            write_whole(path, text, private=self._private)
        except OSError as error:
            raise FedrayError(
                f"{path} cannot be written ({error.strerror}); make room, and the same command goes on from here"
            ) from error

    def _path(self, decided: Mapping[str, Any]) -> Path:
        return self._folder / f"{_hash(json.dumps(decided, sort_keys=True))[:16]}.json"


def decided_by(
    plan: Plan,
    settings: Settings,
    members: Mapping[str, MemberInfo],
    questions: Sequence[Question],
    latency_requests: int,
    donors: Sequence[Sequence[Sequence[str]]] = (),
) -> dict[str, Any]:
    """Everything that decides what a case measures, in JSON's own values. donors: `Deranging.named`."""
    asked = json.dumps([asdict(question) for question in questions], sort_keys=True)
    return {
        "fedray": __version__,
        "plan": _plan(plan),
        "llms": {name: _llm(members[name]) for name in (plan.receiver, *plan.speakers, *plan.senders)},
        "questions": _hash(asked),
        "n": len(questions),
        "task": settings.task.name,
        "generation": asdict(settings.generation),
        "deadline_s": settings.deadline_s,
        "evidence": {name: _hash(text) for name, text in settings.documents().items()},
        "latency_requests": latency_requests,
        "donors": _hash(json.dumps(donors)),
    }


def _plan(plan: Plan) -> dict[str, Any]:
    """A plan whose learned parts go by their hashes, wherever they lie."""
    return asdict(plan) | {
        "fusers": {sender: artifact.hash for sender, artifact in plan.fusers.items()},
        "gate_artifact": plan.gate_artifact and plan.gate_artifact.hash,
        "peers": [_plan(peer) for peer in plan.peers],
    }


def _llm(member: MemberInfo) -> dict[str, str]:
    return {"weights": member.weights_hash, "tokenizer": member.tokenizer_hash, "dtype": member.dtype}


def _measurement(values: Mapping[str, Any]) -> Measurement:
    by_member = {name: _flags(bits) for name, bits in values["by_member"].items()}
    deranged = {kind: tuple(map(_flags, ways)) for kind, ways in values["deranged"].items()}
    return _SCHEMA.read({**values, "right": _flags(values["right"]), "by_member": by_member, "deranged": deranged})


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _bits(flags: Sequence[bool]) -> str:
    """One character per question: 1 is right."""
    return "".join(str(int(flag)) for flag in flags)


def _flags(bits: str) -> tuple[bool, ...]:
    return tuple(bit == "1" for bit in bits)
