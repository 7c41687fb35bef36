"""Ask a batch once more with other questions' messages, to see whether its own are read.

What was sent is paired anew where the protocol can (`Request.donors`). Where it cannot (what is mixed is aligned with
the text it was read from) the senders are asked the donors' questions; where they hold documents, they read their own
question with the donor's document and, apart from that, the donor's question with their own. To see whose messages
are read, one sender after the other is asked so while the others are asked the question itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from fedray.errors import MemberFailed
from fedray.evaluation.metrics import DOCUMENT, QUESTION
from fedray.questions.donors import drawn
from fedray.questions.tasks import Question
from fedray.settings.settings import Settings
from fedray.types import Answer, Plan, Request, Row

# What of all messages, or whose messages, are another's -> per donor all rows' answers.
Deranged = Mapping[str, tuple[tuple[Row, ...], ...]]
_Changed = dict[str, Mapping[str, tuple[str, ...]]]
Asked = tuple[Answer | MemberFailed, Deranged]


class Deranging:
    """One plan's batches with their donors."""

    def __init__(self, plan: Plan, settings: Settings, asked: Sequence[Sequence[Question]]) -> None:
        """Raises FedrayError where there are fewer donors than the settings say."""
        method = plan.method
        everyone = (*plan.speakers, *plan.senders)
        held = {name for batch in asked for q in batch for name in q.evidence} & {*everyone}
        again = method.protocol.asks_again(method)
        self._each = everyone if settings.donors.each and again and len(everyone) > 1 else ()
        self._repairs = method.protocol.repairs(method) and not held and not self._each
        found = {kind: (kind, everyone) for kind in ((DOCUMENT, QUESTION) if held else (QUESTION,))}
        found |= {name: (DOCUMENT if name in held else QUESTION, (name,)) for name in self._each}
        self._changes = found if self._repairs or again else {}
        self.kinds = tuple(self._changes)
        self.asked = asked
        self._ways = drawn(asked, settings) if self.kinds else [()] * len(asked)
        self.count = max(map(len, self._ways), default=0)
        self.donors = f"{self.count} {settings.donors.answer}" if self.count else ""

    @property
    def named(self) -> list[list[list[str]]]:
        """Per batch and donor the ids of the questions that they are; behind them whose messages alone are donors'."""
        together = zip(self.asked, self._ways, strict=True)
        ids = [[[batch[d].id for d in way] for way in ways] for batch, ways in together if ways]
        return ids + [[[*self._each]]] * bool(ids and self._each)

    def requests(self, number: int, request: Request) -> list[Request]:
        """A batch's request, and those that its donors take besides."""
        ways, batch = self._ways[number], self.asked[number]
        if self._repairs:
            return [replace(request, donors=ways)]
        made = [request]
        for i, (what, senders) in enumerate(self._changes.values()):
            changed = self._documents if what == DOCUMENT else self._questions
            for k, way in enumerate(ways):
                others = [batch[d] for d in way]
                made.append(replace(request, **changed(senders, request, batch, others), id=f"{request.id}-{i}-{k}"))
        return made

    @staticmethod
    def _questions(
        senders: Sequence[str], request: Request, batch: Sequence[Question], others: Sequence[Question]
    ) -> _Changed:
        asked = {name: tuple(q.asked.get(name, q.prompt) for q in others) for name in senders}
        return {"asked": {**request.asked, **asked}}

    @staticmethod
    def _documents(
        senders: Sequence[str], request: Request, batch: Sequence[Question], others: Sequence[Question]
    ) -> _Changed:
        both = list(zip(batch, others, strict=True))
        held = {
            name: tuple(other.evidence.get(name, "") if name in q.evidence else "" for q, other in both)
            for name in senders
            if any(name in q.evidence for q in batch)
        }
        return {"evidence": {**request.evidence, **held}}

    def collect(self, answers: Iterator[Answer | MemberFailed]) -> Iterator[Asked]:
        """Per batch its answer, and how it was answered with donors' messages; empty where some did not come whole."""
        for ways in self._ways:
            answer, extra = next(answers), 0 if self._repairs else len(ways) * len(self.kinds)
            others = [next(answers) for _ in range(extra)]
            yield answer, {} if isinstance(answer, MemberFailed) else self._deranged(answer, others, len(ways))

    def _deranged(self, answer: Answer, others: Sequence[Answer | MemberFailed], count: int) -> Deranged:
        if not count:
            return {}
        if self._repairs:
            return {QUESTION: answer.deranged} if len(answer.deranged) == count else {}
        found = [one.rows for one in others if isinstance(one, Answer) and set(one.senders) == set(answer.senders)]
        if len(found) < len(others):
            return {}
        return {kind: tuple(found[i * count : (i + 1) * count]) for i, kind in enumerate(self.kinds)}
