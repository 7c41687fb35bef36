"""A member: one LLM that can send its cache, receive others' and answer. A plain class; Ray wraps it in runtime/.

Every method takes a batch.
"""

from __future__ import annotations

from fedray.member.c2c import C2C
from fedray.member.fedattn.participant import Participant
from fedray.member.specfed.server import Server
from fedray.member.specfed.worker import Worker


class Member(C2C, Participant, Server, Worker):
    """One LLM on one device, in every protocol."""
