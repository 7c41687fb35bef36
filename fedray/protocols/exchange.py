"""What every protocol does: hide the question, ask members by a deadline, let the receiver answer, add up the cost.

Seconds, bytes and missing members add up here, so that each protocol shows only its own order of steps.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from fedray.border import Border, why
from fedray.errors import MemberDied, MemberFailed, SessionLost
from fedray.prompts import notes_prompt
from fedray.protocols import replies
from fedray.protocols.group import Group, Handle
from fedray.types import Answer, FedrayError, Missing, Opening, Plan, Request, Rewrites, Usage

RECEIVER_GRACE_S = 60.0  # how much longer than its senders a receiver may take before it counts as frozen


class Exchange:
    """One request on its way through a group. Sessions are released when the block ends.

    session: the name under which members keep what they read; one of its own if not given.
    """

    def __init__(self, request: Request, plan: Plan, group: Group, session: str | None = None) -> None:
        self.request, self.plan, self.group = request, plan, group
        self.session = session or f"{request.id}-{uuid.uuid4().hex[:12]}"
        self.started = time.monotonic()
        self.usage = Usage()
        self.missing: list[Missing] = []
        self.order = (*plan.speakers, *plan.senders)
        self.border = Border()
        self.heard: dict[str, dict[int, str]] = {}  # what senders said of which row: the receiver's notes
        self.fetched: dict[str, dict[int, int]] = {}  # sender -> row whose cache it was asked for -> most tokens of it
        self.reading: dict[str, Handle] = {}  # sender -> its reading of all rows that it may be asked for
        self._rewrites: tuple[tuple[str, ...], ...] | None = None  # per row one for each sender, or none
        self.unrephrased: dict[int, str] = {}  # row that no sender may read -> what was wrong with its last rewrite
        self._decoding = False

    async def __aenter__(self) -> Exchange:
        """Under rephrasing, nobody is asked anything before the receiver has rewritten the question."""
        if self.plan.method.rephrase != "none" and self.order:
            try:
                await self._rephrase()
            except BaseException:
                self._release()
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._decoding:  # a stream that was left early
            self.group.cancel(self.plan.receiver, self.session)
        self._release()

    def _release(self) -> None:
        self.group.release(self.session, (self.plan.receiver, *self.order))

    # -- who reads what ---------------------------------------------------------------------------------------------

    async def _rephrase(self) -> None:
        if self.request.token_ids is not None or self.request.asked:
            raise FedrayError("rephrasing needs the question as text, and senders that read nothing else")
        shared = self.plan.method.rephrase == "shared"
        count = 1 if shared else len(self.order)
        handle = self.group.start(self.plan.receiver, "rewrite", self.session, self.of_receiver_only(), count)
        made: Rewrites = await self.of_receiver(handle)
        self.usage += made.usage
        self._rewrites = tuple(row * len(self.order) if shared else row for row in made.rows)
        self.unrephrased = {b: made.flaws[b] for b, row in enumerate(made.rows) if not row}
        if shared:  # one rewrite for all, the receiver too
            kept = tuple(row[0] if row else p for row, p in zip(made.rows, self.request.prompts, strict=True))
            self.request = replace(self.request, prompts=kept)

    def open_rows(self) -> tuple[int, ...]:
        """The rows that senders may be asked about."""
        return tuple(b for b in range(self.request.rows()) if b not in self.unrephrased)

    def of_receiver_only(self) -> Request:
        """The request as the receiver reads it: with its own evidence, and nothing that is another's."""
        return self.request_of(self.plan.receiver, range(self.request.rows()))

    def request_of(self, member: str, rows: Sequence[int]) -> Request:
        """Some rows of the request as one member reads them.

        Its notes stand above the question; in a conversation above the first, so that they are read once.
        """
        talk, texts = self.request.talk, self._asked(member)
        before = talk.before if talk and talk.before else ((),) * len(texts)
        turns = [(*told, text) for told, text in zip(before, texts, strict=True)]
        turns = [(notes_prompt(self._notes(member, b), first), *later) for b, (first, *later) in enumerate(turns)]
        read = replace(self.request, prompts=tuple(row[-1] for row in turns), asked={}, evidence={})
        if talk and talk.before:
            read = replace(read, talk=replace(talk, before=tuple(row[:-1] for row in turns)))
        return read.select(rows)

    def most_tokens(self, member: str, rows: Sequence[int]) -> dict[int, int]:
        """Bound the tokens of each row that a member can have read."""
        request = self.request_of(member, rows)
        if request.token_ids is not None:
            return dict(zip(rows, map(len, request.token_ids), strict=True))
        before = request.talk.before if request.talk and request.talk.before else ((),) * len(rows)
        turns = zip(rows, before, request.prompts, strict=True)
        return {row: replies.most_tokens(*told, prompt) for row, told, prompt in turns}

    def _notes(self, member: str, row: int) -> list[str]:
        """What a member reads above a question: its own document and, at the receiver, what was heard."""
        documents = self.request.evidence.get(member)
        heard = self.heard.values() if member == self.plan.receiver else ()
        return [*(documents[row].splitlines() if documents else ()), *(said[row] for said in heard if row in said)]

    def _asked(self, member: str) -> tuple[str, ...]:
        """Per row the question as a member is asked it; a sender is never asked the original of what is rephrased."""
        if member not in self.order:
            return self.request.prompts
        if self._rewrites is None:
            return self.request.asked.get(member, self.request.prompts)
        return tuple(row[self.order.index(member)] if row else "" for row in self._rewrites)

    # -- asking -----------------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float | None:
        """When senders must be done: the receiver answers alone from then on (a point of time.monotonic())."""
        return None if self.request.deadline_s is None else self.started + self.request.deadline_s

    @property
    def halftime(self) -> float | None:
        """When those must be done whose words others still have to read."""
        return None if self.request.deadline_s is None else self.started + self.request.deadline_s / 2

    def start_open(self) -> Handle:
        return self.group.start(self.plan.receiver, "open", self.session, self.of_receiver_only(), self.plan)

    async def finish_open(self, handle: Handle) -> Opening:
        opening: Opening = await self.of_receiver(handle)
        self.usage += replies.cost(self.plan.receiver, opening)
        return opening

    def wanted(self, opening: Opening) -> dict[str, tuple[int, ...]]:
        """Per sender the rows whose gate lets it in and that it may read; senders without any are left out."""
        rows = {
            sender: tuple(b for b in self.open_rows() if opening.weights[b][i] > 0)
            for i, sender in enumerate(self.plan.senders)
        }
        return {sender: chosen for sender, chosen in rows.items() if chosen}

    def further(self, rows_of: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """Per sender the rows that it has sent nothing of and that, as donors, rows are given that it was heard in."""
        given = {name: {way[b] for way in self.request.donors for b in rows} for name, rows in rows_of.items()}
        found = {n: tuple(b for b in self.open_rows() if b in given[n] - set(rows)) for n, rows in rows_of.items()}
        return {name: rows for name, rows in found.items() if rows}

    async def tokenized(self, request: Request) -> Handle:
        """The receiver's token ids of a request's prompts, to be passed on to a sender."""
        handle = self.group.start(self.plan.receiver, "tokenize", request.prompts, request.talk)
        self.usage += (await self.of_receiver(handle)).usage
        return handle

    async def of_receiver(self, handle: Handle) -> Any:
        """The receiver's small result. Nobody can stand in for the receiver: its failure is the request's."""
        name = self.plan.receiver
        waited = await self.group.wait([handle], self.patience())
        if waited.late:
            raise self._frozen()
        try:
            return self.group.result(handle)
        except SessionLost:
            raise
        except MemberDied as error:
            raise MemberDied(f"the receiver {error}") from error
        except (FedrayError, RuntimeError, ValueError) as error:
            raise MemberFailed(f"the receiver {name} failed: {error}") from error

    def patience(self) -> float | None:
        """When the receiver counts as frozen."""
        return None if self.deadline is None else self.deadline + RECEIVER_GRACE_S

    def _frozen(self) -> MemberFailed:
        self.group.cancel(self.plan.receiver, self.session)
        return MemberFailed(f"the receiver {self.plan.receiver} does not answer; restart the federation")

    async def of_sender(self, name: str, handle: Handle, deadline: float | None = None) -> bool:
        """Whether a sender's call is ready by the deadline; if not, the sender is named in `missing` and given up.

        Raises SessionLost where it lost the conversation, which can be read again.
        """
        deadline = self.deadline if deadline is None else deadline
        waited, lost = await self.group.wait([handle], deadline), None
        if waited.ready:
            with self.border.of(name):
                cost = replies.cost(name, self.group.result(handle))
                self.usage += replace(cost, prompt_tokens=0)  # bytes are counted per token of the receiver's prompt
                return True
            return self.lose(name, self.border.refused[name])
        if waited.failed and self.request.talk and name in self.request.talk.held_by:
            with self.border.of(name):  # anything else is this sender's trouble alone
                try:
                    self.group.result(handle)
                except SessionLost as error:
                    lost = SessionLost(Missing(name, why(error)).reason)
            if lost is not None:
                raise lost
        if waited.failed and (there := self.group.health()[name]).replicas > 1 and there.ready:
            try:
                self.group.result(handle)
            except MemberDied:  # another replica can do it: the request is replayed
                raise
            except FedrayError:
                pass
        limit = 0.0 if deadline is None else deadline - self.started
        reason = waited.failed[0] if waited.failed else f"late: no answer within {round(limit, 2):g} s"
        return self.lose(name, reason)

    def lengths(self, name: str, handle: Handle, texts: Sequence[str | Sequence[int]]) -> tuple[int, ...] | None:
        """Read how many tokens a sender tells of the texts that it was asked to read; None: it is given up."""
        with self.border.of(name):
            return replies.lengths(name, self.group.result(handle), texts, self.group.members[name].context)
        self.lose(name, self.border.refused[name])
        return None

    def lose(self, name: str, reason: str) -> bool:
        """Name a sender in `missing` and give it up; False, since nothing of it is ready."""
        self.missing.append(Missing(name, reason))
        self.group.cancel(name, self.session)
        return False

    async def ask(
        self,
        rows_of: Mapping[str, Sequence[int]],
        phase: str,
        change: Callable[[Request], Request] = lambda request: request,
        deadline: float | None = None,
    ) -> dict[str, Answer]:
        """What members answer alone about some rows each; who is missing, or has no answer, is left out.

        phase: what their seconds go by, as in "hint[llama-1b]"; change: of what each would be asked.
        """
        asked = {name: change(self.request_of(name, rows)) for name, rows in rows_of.items() if rows}
        handles: dict[str, Handle] = {
            name: self.group.start(name, "alone", self.session, request, f"{phase}[{name}]")
            for name, request in asked.items()
        }
        ready = await asyncio.gather(*(self.of_sender(s, handle, deadline) for s, handle in handles.items()))
        answers: dict[str, Answer] = {}
        for name in (name for name, ok in zip(handles, ready, strict=True) if ok):
            with self.border.of(name):
                answers[name] = replies.answer(name, self.group.result(handles[name]), asked[name])
            if name not in answers:
                self.lose(name, self.border.refused[name])
        self.missing += (missing for answer in answers.values() for missing in answer.missing)
        self.settle()
        return {name: answer for name, answer in answers.items() if not all(row.failed for row in answer.rows)}

    def settle(self) -> None:
        """Raise MemberFailed if somebody is missing and the plan does not go on without."""
        self.missing.sort(key=lambda m: self.order.index(m.member) if m.member in self.order else -1)
        if self.missing and self.plan.method.on_missing == "error":
            raise MemberFailed("; ".join(f"{m.member}: {m.reason}" for m in self.missing))

    # -- answering --------------------------------------------------------------------------------------------------

    async def alone(self, rows: Sequence[int] | None = None) -> Answer:
        """The receiver's answer without anybody's cache, to all or some rows."""
        receiver = self.plan.receiver
        request = self.request_of(receiver, range(self.request.rows()) if rows is None else rows)
        return await self.of_receiver(self.group.start(receiver, "alone", self.session, request))

    def weighed(self, answer: Answer, opening: Opening) -> Answer:
        """The answer with each row's gate weights."""
        named = [dict(zip(self.plan.senders, weights, strict=True)) for weights in opening.weights]
        return replace(answer, rows=tuple(replace(row, weights=w) for row, w in zip(answer.rows, named, strict=True)))

    async def answer(self, payloads: list[tuple[str, Handle]]) -> Answer:
        """Let the receiver, which has opened the session, fuse what arrived and answer."""
        names, handles = tuple(n for n, _ in payloads), [h for _, h in payloads]
        asked = time.monotonic()
        request, receiver = self.of_receiver_only(), self.plan.receiver
        rows = {name: self.fetched[name] for name in names}
        handle = self.group.start(receiver, "answer", self.session, names, request, self.plan, *handles, asked=rows)
        answer: Answer = await self.of_receiver(handle)
        answer = replace(answer, usage=replies.cost(receiver, answer))
        moving = time.monotonic() - asked - sum(answer.usage.seconds.values())
        self.usage += Usage({"transfer": max(moving, 0.0)})  # the call and its payloads on their way
        return self.close(answer)

    async def stream(self, payloads: list[tuple[str, Handle]]) -> AsyncIterator[str | Answer]:
        names, handles = tuple(n for n, _ in payloads), [h for _, h in payloads]
        request, receiver = self.of_receiver_only(), self.plan.receiver
        rows = {name: self.fetched[name] for name in names}
        pieces = self.group.stream(receiver, "stream", self.session, names, request, self.plan, *handles, asked=rows)
        self._decoding = True
        while True:
            patience = self.patience()
            try:
                async with asyncio.timeout(None if patience is None else max(patience - time.monotonic(), 0.0)):
                    piece = await anext(pieces)
            except TimeoutError:
                raise self._frozen() from None
            except StopAsyncIteration:
                break
            yield self.close(piece) if isinstance(piece, Answer) else piece
        self._decoding = False

    def close(self, answer: Answer) -> Answer:
        """The receiver's answer with what the whole exchange cost, who was missing, and what senders read."""
        self.missing += answer.missing  # payloads the receiver refused
        self.settle()
        usage = self.usage + answer.usage
        usage = replace(usage, seconds={**usage.seconds, "total": time.monotonic() - self.started})
        read = {} if self._rewrites is None else {name: self._asked(name) for name in self.order}
        lost = self.request.talk.lost if self.request.talk else ""
        answer = replace(answer, usage=usage, missing=tuple(self.missing), read=read, reread=lost)
        return replace(answer, unrephrased=self.unrephrased)
