"""Training questions of the tiny world, with the right answers or a sender's."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fedray.llm.model import LLM
from fedray.member.member import Member
from fedray.prompts import notes_prompt
from fedray.types import Generation, Request
from fedray.world.questions import joint
from fedray.world.world import PHRASINGS, UNSEEN_PHRASINGS, World, right_answer, seen_in_fusing

PHRASINGS_PER_FACT = 2  # of a question to train on
BATCH = 256  # questions answered at once
Role = Literal["sender", "receiver"]
ANSWER_TOKENS = 8  # of the tiny world, at most


@dataclass(frozen=True, slots=True)
class LabelledPrompt:
    """One training example: a prompt, its right answer, and the group (domain) it is counted under.

    before: the earlier messages, the user's and the assistant's in turn. asked: (sender, what it is asked instead), of
    a question that needs several. documents: (role, text) that only the sender or only the receiver reads.
    """

    prompt: str
    answer: str
    group: str = ""
    before: tuple[str, ...] = ()
    asked: tuple[tuple[str, str], ...] = ()
    documents: tuple[tuple[str, str], ...] = ()

    def turns(self, role: Role) -> tuple[str, ...]:
        """The turns as one role reads them, its document above the first: as Exchange.request_of puts it."""
        first, *later = (*self.before, self.prompt)
        return (self._noted(role, first), *later)

    def asked_of(self, role: Role) -> str:
        """The last turn alone, under a role's document."""
        return self._noted(role, self.prompt)

    def _noted(self, role: Role, question: str) -> str:
        return notes_prompt(dict(self.documents).get(role, "").splitlines(), question)


def conversations(world: World, split: str, phrasings_per_fact: int = 1) -> list[LabelledPrompt]:
    """List the questions about one split that training may see, in phrasings it may see."""
    rng = random.Random(f"conversations-{world.seed}-{split}")
    seen = [i for i in range(len(PHRASINGS)) if i not in UNSEEN_PHRASINGS]
    return [
        LabelledPrompt(fact.ask(phrasing), fact.value, fact.domain)
        for fact in world.split(split)
        if seen_in_fusing(fact)
        for phrasing in rng.sample(seen, phrasings_per_fact)
    ]


def about_two(world: World, split: str, count: int) -> list[LabelledPrompt]:
    """Draw questions about two entities of one split that different LLMs know."""
    facts = [fact for fact in world.split(split) if seen_in_fusing(fact)]
    return [
        LabelledPrompt(row["question_stem"], right_answer(row), "two entities", asked=tuple(row["asked"].items()))
        for row in joint(world, facts, count, world.seed)
    ]


def believed(
    llm: LLM, talks: Sequence[LabelledPrompt], on_done: Callable[[int, int], None] | None = None
) -> list[LabelledPrompt]:
    """Replace the right answers by the LLM's own greedy ones.

    A fuser trained on them learns to convey its sender's answer to every question and not only to those few the sender
    knows; whether to trust it is left to the gate.
    """
    member = Member(llm.name, llm=llm)
    answered: list[LabelledPrompt] = []
    for start in range(0, len(talks), BATCH):
        batch = talks[start : start + BATCH]
        request = Request(tuple(c.prompt for c in batch), generation=Generation(ANSWER_TOKENS))
        answer = member.alone("believed", request)
        answered += [replace(c, answer=row.text) for c, row in zip(batch, answer.rows, strict=True)]
        if on_done:
            on_done(len(answered), len(talks))
    return answered
