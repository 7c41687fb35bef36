"""Ray's errors as short messages for users."""

from __future__ import annotations

import re

from ray import exceptions

from fedray.errors import MemberDied, MemberFailed
from fedray.types import FedrayError

FROZEN_S = 30.0  # an actor that does not answer for so long is ended, so that Ray starts it anew
RESTORE_S = 600.0  # longest that one is waited for to come back: a large LLM loads for minutes
GONE = "died (its process ended, or its connection was lost)"
_LONGEST = 200  # characters of a foreign error message
_RAISED = re.compile(r"^(?:\w+\.)*(\w*(?:Error|Exception|Lost|Payload)): (.+)$", re.MULTILINE)


def reason(error: BaseException) -> str:
    """Describe why a call failed: "died (process exited)", "ValueError: no such thing", or a FedrayError's message."""
    match error:
        case exceptions.RayTaskError():
            return reason(error.cause)
        case exceptions.OutOfMemoryError():
            return "died (out of memory)"
        case exceptions.ActorUnavailableError():
            return GONE
        case exceptions.RayActorError():
            return _death(error)
        case exceptions.NodeDiedError() | exceptions.LocalRayletDiedError():
            return "died (its node was lost)"
        case exceptions.ObjectLostError() | exceptions.ObjectFetchTimedOutError():
            return "was sent a cache that was lost with its node"
        case FedrayError():
            return str(error)
        case _:
            return f"{type(error).__name__}: {_first_line(str(error))}"


def as_error(member: str, error: BaseException) -> FedrayError:
    """Convert an error for the driver: a member's own FedrayError stays as it is (SessionLost too)."""
    cause = error.cause if isinstance(error, exceptions.RayTaskError) else error
    if isinstance(cause, FedrayError):
        return cause
    return (MemberDied if has_died(error) else MemberFailed)(f"{member}: {reason(error)}")


def has_died(error: BaseException | None) -> bool:
    """Check whether a call failed because its member is gone, for good or until Ray has started it anew."""
    gone = (exceptions.RayActorError, exceptions.NodeDiedError, exceptions.LocalRayletDiedError)
    return isinstance(error, (*gone, exceptions.OutOfMemoryError))


def _death(error: exceptions.RayActorError) -> str:
    message = str(error)
    if error.actor_init_failed:
        return _raised_in_constructor(message)
    if "killed by `ray.kill`" in message:
        return "died (it was ended)"
    if "its node has died" in message:
        return "died (its node was lost)"
    return "died (process exited)"


def _raised_in_constructor(message: str) -> str:
    """Extract the last `SomeError: message`: Ray keeps only the text of what a constructor raised."""
    raised = _RAISED.findall(message)
    if not raised:
        return f"could not start: {_first_line(message)}"
    kind, text = raised[-1]
    if kind == "ModuleNotFoundError":
        return f"{_first_line(text)} on its node: install fedray, with what it needs, on every node of the Ray cluster"
    return text if kind in ("FedrayError", "CorruptPayload") else f"{kind}: {_first_line(text)}"


def _first_line(text: str) -> str:
    line = text.strip().split("\n", 1)[0]
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
