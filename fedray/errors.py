"""What goes wrong, as sentences.

FedrayError         a mistake of the user's or of the outside world
  SessionLost       a member does not hold the session a call refers to
"""

from __future__ import annotations


class FedrayError(ValueError):
    """A mistake of the user's or of the outside world: one sentence that says what is wrong, where, and the remedy."""


class SessionLost(FedrayError):
    """A member does not hold the session a call refers to (released, timed out, or the member was restarted)."""
