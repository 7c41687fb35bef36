"""What a protocol is: one entry that says how it runs, and what everybody else may ask of it.

No other room knows a protocol's name: whoever needs to know what one does asks its entry.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedray.methods.method import ProtocolSettings
from fedray.protocols.group import Group
from fedray.types import Answer, FedrayError, KVSpec, Layers, MemberInfo, Plan, Request

if TYPE_CHECKING:
    from fedray.llm.source import Source

Run = Callable[[Request, Plan, Group], Coroutine[Any, Any, Answer]]
Stream = Callable[[Request, Plan, Group], AsyncGenerator[str | Answer]]

Roles = Callable[[Any, str, "tuple[str, ...] | None", str], "tuple[str, tuple[str, ...] | None]"]


def _passes(*asked: Any) -> None:
    """Accept everything."""


def _whole(request: Request, plan: Plan) -> Request:
    return request


def _as_named(
    how: ProtocolSettings, receiver: str, senders: tuple[str, ...] | None, zoo: str
) -> tuple[str, tuple[str, ...] | None]:
    return receiver, senders


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How members exchange what they know.

    settings: what it is told, with its name and its traits. run, stream: the exchange; a stream gives the answer's text
    piece by piece, the Answer last. roles (its settings, receiver, senders, zoo): who takes part in their place; None
    are the senders by default. check (settings), check_sources (settings, where members come from), check_question
    (settings, question, document above it): raise FedrayError, the first before torch is imported, the others before an
    LLM is loaded. alone: what the receiver is asked alone, to be compared with. whole_bytes: bytes per token where
    every sender gives all it has. sends: of settings and a member's KVSpec, the share of its tokens and the layers that
    it sends.
    """

    settings: type[ProtocolSettings]
    run: Run
    stream: Stream | None = None
    roles: Roles = _as_named
    check: Callable[[Any], None] = _passes
    check_sources: Callable[[Any, Mapping[str, Source]], None] = _passes
    check_question: Callable[[Any, Any, str], None] | None = None
    alone: Callable[[Request, Plan], Request] = _whole
    whole_bytes: Callable[[Sequence[MemberInfo]], float] | None = None
    sends: Callable[[Any, KVSpec], tuple[float, Layers]] | None = None

    @property
    def name(self) -> str:
        """As users write it."""
        return self.settings.name

    def __call__(self, request: Request, plan: Plan, group: Group) -> Coroutine[Any, Any, Answer]:
        return self.run(request, plan, group)

    def type_of(self, members: Iterable[MemberInfo]) -> str | None:
        """Name one of the four types of federated inference, as in "heterogeneous cache"; None where nothing crosses.

        members: all that take part. They are homogeneous where they share architecture, cache space and tokenizer: a
        cache or a token of one then means the same position in another, whatever its weights.
        """
        shapes = [(member.family, member.spec, member.tokenizer_hash) for member in members]
        crosses = self.settings.crosses
        if crosses is None or len(shapes) < 2:
            return None
        return f"{'homogeneous' if len(set(shapes)) == 1 else 'heterogeneous'} {crosses}"

    def check_talk(self, plan: Plan) -> None:
        """Raise FedrayError where a plan cannot hold a conversation."""
        way = ""
        if not self.settings.talks:
            way = f"protocol={self.name}"
        elif plan.peers:
            way = "answer_all=true"
        elif plan.method.rephrase != "none":
            way = f"rephrase={plan.method.rephrase}"
        elif plan.speakers:
            way = f"on_missing=text ({', '.join(plan.speakers)} without a fuser)"
        if way:
            raise FedrayError(f"{way} holds no conversation: choose protocol=c2c or standalone without it, or ask anew")
