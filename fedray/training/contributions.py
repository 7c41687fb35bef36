"""Measure what each sender brings to training questions, by asking the members themselves.

For fusers whose senders do more than read (drafts), and questions that need several senders at once: of those who are
asked a part of a question each is left out in turn, anybody else is added. Shape legend: Q questions, S senders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor

from fedray.llm.model import LLM
from fedray.member.member import Member
from fedray.methods.method import Gate, Method
from fedray.protocols.caches import AS_READ, drafted, to_draft
from fedray.schema import attributes
from fedray.training.conversations import LabelledPrompt
from fedray.types import Artifact, Plan, Request
from fedray.wire.payload import Payload


class Contributions:
    """A receiver and its senders, asked about training questions. method: the fuser and the fusion they answer by."""

    def __init__(
        self,
        receiver: LLM,
        senders: Mapping[str, LLM],
        fusers: Mapping[str, Artifact],
        method: Method,
    ) -> None:
        self._receiver = Member(receiver.name, llm=receiver)
        self._senders = {name: Member(name, llm=llm) for name, llm in senders.items()}
        method = replace(method, gate=Gate("oracle"))
        self._plan = Plan(receiver.name, tuple(senders), method, fusers=dict(fusers))
        self._sessions = count()
        self._session = ""

    @torch.no_grad()
    def measure(self, talks: Sequence[LabelledPrompt]) -> Tensor:
        """Measure the gain (Q, S) in the probability of the right answer that goes with each sender."""
        self._session = f"contributions-{next(self._sessions)}"
        rows, senders = tuple(range(len(talks))), self._plan.senders
        request = Request(tuple(talk.asked_of("receiver") for talk in talks), tuple((talk.answer,) for talk in talks))
        payloads = [self._payload(name, rows, talks) for name in senders]
        base_QS = torch.tensor([[float(name in dict(talk.asked)) for name in senders] for talk in talks])
        base_Q = self._probability(request, base_QS, payloads)
        gains_QS = torch.zeros_like(base_QS)
        for s in range(len(senders)):
            other_QS = base_QS.clone()
            other_QS[:, s] = 1 - base_QS[:, s]
            gains_QS[:, s] = (self._probability(request, other_QS, payloads) - base_Q) * (1 - 2 * base_QS[:, s])
        for member in (self._receiver, *self._senders.values()):
            member.release(self._session)
        return gains_QS

    def _payload(self, name: str, rows: tuple[int, ...], talks: Sequence[LabelledPrompt]) -> Payload:
        artifact = self._plan.fusers[name]
        told = tuple(dict(talk.asked).get(name, talk.asked_of("sender")) for talk in talks)
        prompts = to_draft(self._plan, artifact, told)
        _, payload = self._senders[name].share(
            self._session,
            rows,
            prompts=prompts,
            draft=drafted(self._plan, artifact),
            **attributes(artifact, *AS_READ),
        )
        return payload

    def _probability(self, request: Request, weights_QS: Tensor, payloads: Sequence[Payload]) -> Tensor:
        """Compute the probability per token (Q,) of each answer, with these senders let in."""
        weights = {name: tuple(w) for name, w in zip(self._plan.senders, weights_QS.T.tolist(), strict=True)}
        self._receiver.open(self._session, replace(request, weights=weights), self._plan)
        answer = self._receiver.answer(self._session, self._plan.senders, request, self._plan, *payloads)
        return torch.tensor([row.scores[0] / len(row.tokens) for row in answer.rows]).exp()
