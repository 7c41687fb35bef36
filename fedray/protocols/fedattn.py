"""FedAttn: copies of one LLM each read their own segment of a prompt, and exchange keys and values at sync layers.

FedAttn (arXiv 2511.02647). The task publisher, the plan's receiver, has the last segment and answers; the plan's
senders have those before it, in their order. Rows go to the participants behind their sender, to whom causal attention
shows them; nobody reads the publisher's, which therefore stay at home. Whoever is missing at a sync is left out from
then on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedray.llm.catalogue import copies, original_of
from fedray.methods.fedattn import FedAttn, id_segments, segments, sync_layers
from fedray.protocols import replies
from fedray.protocols.exchange import Exchange
from fedray.protocols.group import Group, Handle
from fedray.protocols.protocol import Protocol
from fedray.types import Answer, FedrayError, KVSpec, Layers, MemberInfo, Plan, Receipt, Request, Usage

if TYPE_CHECKING:
    from fedray.llm.source import Source


async def run(request: Request, plan: Plan, group: Group) -> Answer:
    """Raises FedrayError where a prompt has fewer segments than there are participants, and where these are not copies
    of one LLM; MemberFailed where the publisher fails, and with on_missing=error whoever fails."""
    how, publisher = plan.method.of(FedAttn), plan.receiver
    check_copies([group.members[name] for name in (publisher, *plan.senders)], how.participants)
    syncs = len(sync_layers(how, group.members[publisher].spec.layers))
    async with Exchange(request, plan, group) as exchange:
        parts = dict(zip((*plan.senders, publisher), parts_of(request, plan), strict=True))
        codec, numbered = plan.method.wire.codec, enumerate(parts.items())
        segment = {name: (part, how, number, codec, plan.seed) for number, (name, part) in numbered}
        held = await _everyone(exchange, parts, "hold", segment, syncs + 1)
        lengths = _lengths(exchange, held, parts)
        exchange.usage += Usage(prompt_tokens=sum(map(sum, lengths.values())))
        starts = {name: (_before(lengths, name),) for name in lengths}
        posted = await _everyone(exchange, lengths, "begin", starts, syncs)
        for position in range(syncs - 1):
            rows = {name: (position, *_rows_before(posted, name)) for name in posted}
            posted = await _everyone(exchange, posted, "advance", rows, syncs - 1 - position)
        senders, *payloads = _rows_before(posted, publisher)
        reply = group.start(
            publisher, "reply", exchange.session, syncs - 1, senders, request.choices, request.generation, *payloads
        )
        answer: Answer = await exchange.of_receiver(reply)
        missing = tuple(m for m in answer.missing if m.member in (*senders, publisher))  # others are missing anyway
        heard = tuple(name for name in senders if name not in {m.member for m in missing})
        return exchange.close(replace(answer, senders=heard, missing=missing))


async def _everyone(
    exchange: Exchange, present: Mapping[str, Any], method: str, arguments: Mapping[str, tuple[Any, ...]], left: int
) -> dict[str, Handle]:
    """Let all who are present do their next part at the same time; who is ready, in the prompt's order.

    left: parts that are still to come, this one counted. Each has an equal share of the time that is left, so that who
    is frozen at one makes nobody late at the next.
    """
    group, publisher, now = exchange.group, exchange.plan.receiver, time.monotonic()
    deadline = None if exchange.deadline is None else now + (exchange.deadline - now) / left
    started = {name: group.start(name, method, exchange.session, *arguments[name]) for name in present}
    others = [(name, handle) for name, handle in started.items() if name != publisher]
    ready = await asyncio.gather(*(exchange.of_sender(name, handle, deadline) for name, handle in others))
    own: Receipt = await exchange.of_receiver(started[publisher])
    exchange.usage += own.usage
    exchange.settle()
    return {n: handle for (n, handle), ok in zip(started.items(), (*ready, True), strict=True) if ok}


def _lengths(
    exchange: Exchange, held: Mapping[str, Handle], parts: Mapping[str, tuple[Any, ...]]
) -> dict[str, tuple[int, ...]]:
    """Read how many tokens everybody tells of its segments.

    Where these are more than the context holds, whoever tells the most tokens for its bytes is left out.
    """
    publisher = exchange.plan.receiver
    context = exchange.group.members[publisher].context
    found = {name: exchange.lengths(name, handle, parts[name]) for name, handle in held.items() if name != publisher}
    told = {name: lengths for name, lengths in found.items() if lengths is not None}
    told[publisher] = replies.lengths(publisher, exchange.group.result(held[publisher]), parts[publisher], context)
    while len(told) > 1 and max(map(sum, zip(*told.values(), strict=True))) >= context:
        sizes = {name: sum(map(_size, parts[name])) for name in told if name != publisher}
        most = max(sizes, key=lambda name: sum(told[name]) / sizes[name])
        exchange.lose(most, f"told {sum(told.pop(most))} tokens, which the context of {context} does not hold")
    exchange.settle()
    return told


def _size(segment: str | Sequence[int]) -> int:
    return len(segment.encode()) if isinstance(segment, str) else len(segment)


def _rows_before(posted: Mapping[str, Handle], name: str) -> tuple[Any, ...]:
    """Who stands before a participant, and the rows they have posted."""
    before = list(posted)[: list(posted).index(name)]
    return tuple(before), *(posted[sender] for sender in before)


def _before(lengths: Mapping[str, Sequence[int]], name: str) -> tuple[int, ...]:
    """Per row the tokens of the segments before a participant's."""
    names = list(lengths)
    before = [lengths[other] for other in names[: names.index(name)]]
    return tuple(sum(of_row) for of_row in zip(*before, strict=True)) if before else (0,) * len(lengths[name])


def parts_of(request: Request, plan: Plan) -> list[tuple[Any, ...]]:
    """Per participant its segment of every row, the publisher's last. Raises FedrayError."""
    how = plan.method.of(FedAttn)
    if request.token_ids is not None:
        return list(zip(*(id_segments(ids, how) for ids in request.token_ids), strict=True))
    documents = request.evidence.get(plan.receiver, ("",) * request.rows())
    rows = (segments(prompt, how, document) for prompt, document in zip(request.prompts, documents, strict=True))
    return list(zip(*rows, strict=True))


def publishers_own(request: Request, plan: Plan) -> Request:
    """What the publisher could answer from alone: its own segments."""
    own = parts_of(request, plan)[-1]
    if request.token_ids is not None:
        return replace(request, token_ids=own, prompts=(), evidence={})
    return replace(request, prompts=own, evidence={})


def check_copies(members: Sequence[MemberInfo], participants: int) -> None:
    """Raises FedrayError where the members are not so many copies of one LLM."""
    publisher = members[0]
    for member in members[1:]:
        if (member.weights_hash, member.tokenizer_hash) != (publisher.weights_hash, publisher.tokenizer_hash):
            raise FedrayError(
                f"protocol=fedattn runs one LLM in all participants, and {member.name} is another than "
                f"{publisher.name}: leave the senders out"
            )
    if len(members) != participants:
        raise FedrayError(f"protocol.participants={participants} do not go with {len(members)} members: leave it out")


def roles(how: FedAttn, receiver: str, senders: tuple[str, ...] | None, zoo: str) -> tuple[str, tuple[str, ...]]:
    """Name the copies of the receiver beside it; who is named as the receiver is any of them. Other LLMs stay."""
    if senders is None:
        return receiver, copies(receiver, how.participants)[1:]
    if set(map(original_of, senders)) - {receiver}:
        return receiver, senders
    there = copies(receiver, len(senders) + 1)[1:]
    for name in (name for name in senders if name != receiver):
        if name not in there or senders.count(name) > 1:
            wrong = "is there twice" if name in there else "is no copy that takes part"
            raise FedrayError(f"sender {name} {wrong}: leave senders out, or name {', '.join(there)}")
    return receiver, there


def check(settings: Any) -> None:
    """Validate who takes part, how often they exchange, and what goes with it. Raises FedrayError."""
    protocol = settings.protocol
    others = [name for name in settings.senders if original_of(name) != settings.receiver]
    if others:
        raise FedrayError(
            f"protocol=fedattn runs copies of one LLM, and sender {others[0]} is another than {settings.receiver}: "
            f"leave senders out, and say how many with protocol.participants"
        )
    if settings.senders != copies(settings.receiver, protocol.participants)[1:]:
        raise FedrayError(
            f"{len(settings.senders)} senders beside the receiver do not go with protocol.participants="
            f"{protocol.participants}: leave senders out, or name {settings.receiver} {protocol.participants - 1} times"
        )
    if not -1 <= protocol.offset < protocol.sync_every:
        raise FedrayError(
            f"protocol.offset={protocol.offset} must be below protocol.sync_every={protocol.sync_every}, or -1 for the "
            f"last layer of each interval"
        )
    for key in ("tokens", "publisher_tokens", "exchange"):
        if not 0 < getattr(protocol, key) <= 1:
            raise FedrayError(f"protocol.{key} must be above 0 and at most 1, got {getattr(protocol, key)}")
    if settings.task.name == "tiny-evidence" and settings.prompt is None and settings.questions is None:
        raise FedrayError(
            "task=tiny-evidence gives each member a document of its own, and protocol=fedattn cuts up one prompt: "
            "choose task=tiny-evidence-pooled, where all documents stand in the prompt"
        )
    if settings.rephrase != "none":
        raise FedrayError(f"rephrase={settings.rephrase} does not go with protocol=fedattn, which cuts up the original")
    if settings.on_missing == "text":
        raise FedrayError("on_missing=text is about fusers: protocol=fedattn knows alone (go on without) and error")
    if settings.wire.keep < 1 or settings.wire.keep_layers < 1:
        what = "wire.keep is" if settings.wire.keep < 1 else "wire.keep_layers is"
        raise FedrayError(f"{what} about whole caches: protocol=fedattn sends a share with protocol.exchange")
    if settings.prompt is not None and settings.prompt.strip():
        segments(settings.prompt, protocol, settings.documents().get(settings.receiver, ""))


def check_sources(settings: Any, found: Mapping[str, Source]) -> None:
    """Refuse an LLM that cannot take part, and sync layers that it lacks. Raises FedrayError."""
    from fedray.llm.cache import spec_of
    from fedray.llm.families import window_of
    from fedray.llm.source import config_of

    source = found[settings.receiver]
    config = config_of(source)
    if window_of(config) is not None:
        raise FedrayError(
            f"{source.name} cannot take part in protocol=fedattn: layers of it have a sliding window; choose another "
            "receiver, such as llama-1b"
        )
    sync_layers(settings.protocol, spec_of(config).layers)


def check_question(settings: Any, question: Any, document: str) -> None:
    """Refuse a question that has fewer segments than there are participants. Raises FedrayError."""
    segments(question.prompt, settings.protocol, document)


def sends(settings: Any, spec: KVSpec) -> tuple[float, Layers]:
    """A participant's rows of the sync layers."""
    how = settings.protocol
    syncs = sync_layers(how, spec.layers)
    return how.tokens * how.exchange, (syncs, syncs)


PROTOCOL = Protocol(
    settings=FedAttn,
    run=run,
    roles=roles,
    check=check,
    check_sources=check_sources,
    check_question=check_question,
    alone=publishers_own,
    sends=sends,
)
