"""Every member scores the choices alone, and the mean of their probabilities decides: a baseline without a gate."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedray.methods.method import Ensemble
from fedray.protocols.exchange import Exchange
from fedray.protocols.group import Group
from fedray.protocols.protocol import Protocol
from fedray.types import Answer, FedrayError, Plan, Request, Row, Usage

BYTES_PER_SCORE = 4


async def run(request: Request, plan: Plan, group: Group) -> Answer:
    """Raises FedrayError where there are no choices to score."""
    if request.choices is None:
        raise FedrayError("protocol=ensemble averages choice probabilities: ask questions that have choices")
    async with Exchange(request, plan, group) as exchange:
        asked = exchange.open_rows()
        own, answers = await asyncio.gather(
            exchange.alone(), exchange.ask(dict.fromkeys(plan.senders, asked), "answer")
        )
        voices = [[] if row.failed else [row] for row in own.rows]
        for answer in answers.values():
            for b, row in zip(asked, answer.rows, strict=True):
                voices[b] += [] if row.failed else [row]
        scores = sum(len(row.scores) for answer in answers.values() for row in answer.rows)
        exchange.usage += Usage(payload_bytes=BYTES_PER_SCORE * scores)
        rows = tuple(_average(of_row, texts) for of_row, texts in zip(voices, request.choices, strict=True))
        return exchange.close(replace(own, rows=rows, senders=tuple(answers)))


def _average(voices: Sequence[Row], choices: Sequence[str]) -> Row:
    """scores: log of the mean probability of each choice, every member's probabilities adding up to 1."""
    if not voices:
        return Row("", failed=True)
    shares = [_softmax(row.scores) for row in voices]
    mean = [sum(share[c] for share in shares) / len(shares) for c in range(len(choices))]
    best = max(range(len(mean)), key=mean.__getitem__)
    return Row(choices[best], choice=best, scores=tuple(math.log(p) if p > 0 else -math.inf for p in mean))


def _softmax(scores: Sequence[float]) -> list[float]:
    highest = max(scores)
    weights = [math.exp(score - highest) for score in scores]
    return [weight / sum(weights) for weight in weights]


def check(settings: Any) -> None:
    """Validate that there are choices with likelihoods. Raises FedrayError."""
    if settings.prompt is not None:
        raise FedrayError(
            "protocol=ensemble averages the probabilities of choices: ask questions that have some, with task= or "
            "questions=FILE"
        )
    if settings.task.scored_by not in ("text", "letters"):
        raise FedrayError("protocol=ensemble needs likelihoods as they are: task.scoring=letters or text")


PROTOCOL = Protocol(settings=Ensemble, run=run, check=check)
