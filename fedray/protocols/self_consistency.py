"""One LLM answers several times, sampled, and the majority decides (Self-Consistency, arXiv 2203.11171).

A baseline without communication: what a federation gains beside it is not had by asking once more.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fedray.methods.method import ProtocolSettings
from fedray.protocols.exchange import Exchange
from fedray.protocols.group import Group
from fedray.protocols.protocol import Protocol
from fedray.protocols.standalone import alone
from fedray.schema import within
from fedray.types import Answer, Plan, Request, Row


@dataclass(frozen=True)
class SelfConsistency(ProtocolSettings):
    """samples: answers to each question; temperature: that they are sampled at."""

    name: str = field(default="self_consistency", init=False)
    samples: int = within(5, 1, 100)
    temperature: float = within(0.7, 0.01, 10)
    needs_senders = False

    def draws(self) -> bool:
        return True

    def described(self) -> list[str]:
        return [f"{self.samples} samples", f"T {self.temperature:g}"]


async def run(request: Request, plan: Plan, group: Group) -> Answer:
    """Of choices one is drawn per sample, from the softmax of their scores; a free answer is decoded per sample."""
    how = plan.method.of(SelfConsistency)
    seeds = range(request.generation.seed, request.generation.seed + how.samples)
    async with Exchange(request, alone(plan), group) as exchange:
        if request.choices is not None:
            answer = await exchange.alone()
            rows = tuple(
                _drawn(row, b, request.choices[b], seeds, how.temperature) for b, row in enumerate(answer.rows)
            )
            return exchange.close(replace(answer, rows=rows))
        answers: list[Answer] = []
        for seed in seeds:
            generation = replace(request.generation, temperature=how.temperature, seed=seed)
            exchange.request = replace(exchange.request, generation=generation)
            answers.append(await exchange.alone())
        for answer in answers[1:]:
            exchange.usage += replace(answer.usage, prompt_tokens=0)  # the same prompt, read anew
            exchange.missing += answer.missing
        rows = tuple(map(_majority, zip(*(answer.rows for answer in answers), strict=True)))
        return exchange.close(replace(answers[0], rows=rows))


def _drawn(row: Row, b: int, choices: Sequence[str], seeds: Sequence[int], temperature: float) -> Row:
    """Choose what is drawn most often; of equals, the likelier."""
    if row.failed:
        return row
    best = max(row.scores)
    weights = [math.exp((score - best) / temperature) for score in row.scores]
    drawn = Counter(random.Random(f"{seed}-{b}").choices(range(len(weights)), weights)[0] for seed in seeds)
    choice = max(drawn, key=lambda c: (drawn[c], weights[c]))
    return replace(row, text=choices[choice], choice=choice)


def _majority(rows: Sequence[Row]) -> Row:
    """Vote by the last line, where a reasoned answer ends; of equals, the first."""
    heard = [row for row in rows if not row.failed] or rows
    votes = Counter(map(_end, heard))
    return max(heard, key=lambda row: votes[_end(row)])


def _end(row: Row) -> str:
    lines = row.text.strip().splitlines() or [""]
    return lines[-1].strip(" .!*").casefold()


PROTOCOL = Protocol(settings=SelfConsistency, run=run)
