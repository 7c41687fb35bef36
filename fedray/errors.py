"""Errors of users and of the outside world, as sentences, and the nearest valid names for them.

FedrayError         a mistake of the user's or of the outside world
  SessionLost       a member does not hold the session a call refers to
  MemberFailed      a member raised, died or was late
    MemberDied      its process is gone or frozen; it may come back
  FederationBusy    a request was refused so that others are answered in time
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedrayError(ValueError):
    """A mistake of the user's or of the outside world: one sentence that says what is wrong, where, and the remedy."""


class SessionLost(FedrayError):
    """A member does not hold the session a call refers to (released, timed out, or the member was restarted)."""


def nearest(word: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """Find the valid names closest to a mistyped one, best first; none where none is close."""
    names = {name.lower(): name for name in valid}
    return [names[match] for match in difflib.get_close_matches(word.lower(), names, n=count, cutoff=0.55)]


def unknown(what: str, got: object, valid: Iterable[str]) -> FedrayError:
    """Make the error for a name that is not one of `valid`, in one sentence.

    >>> str(unknown("fuser", "mpl", ("mlp", "c2c")))
    "unknown fuser 'mpl' (did you mean mlp?): choose one of mlp, c2c"
    """
    names = list(valid)
    close = nearest(str(got), names)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    choice = f"one of {', '.join(names)}" if len(names) > 1 else "".join(names)
    return FedrayError(f"unknown {what} {got!r}{hint}: choose {choice}")


class MemberFailed(FedrayError):
    """A member raised, died or was late, and the policy does not allow going on without it."""


class MemberDied(MemberFailed):
    """A member's process is gone, or was ended because it did not answer; Ray starts it anew."""


class FederationBusy(FedrayError):
    """A request was refused so that others are answered in time; `retry_after_s` says when to ask again."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.args[0]}; ask again in {self.retry_after_s:.2g} s"
