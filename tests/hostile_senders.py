"""What one hostile sender among four costs: a table. From the project's folder: python tests/hostile_senders.py

zoo=tiny in this process; the hostile sender is the expert of the domain that all questions are about.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hostile import UNTOLD, Hostile
from support.methods import revised

from fedray.llm.catalogue import NAMES
from fedray.member.member import Member
from fedray.protocols import protocol_of
from fedray.protocols.group import LocalGroup
from fedray.registry.planner import Planner
from fedray.text import printable
from fedray.types import Answer, FedrayError, Plan, Request
from fedray.world.world import EXPERTS, World, options

RECEIVER, DOMAIN, QUESTIONS = NAMES[0], "tree", 20
(BAD,) = EXPERTS[DOMAIN]
ROWS = ("depth bomb header", "8 MB member name", "None", "no payload", "no receipt", "ugly error", "NaN", "all 1e38")
ROWS += ("all 3e4", "x 100", *UNTOLD)


def main() -> int:
    """Print the table; 1 where a question was not answered."""
    group = LocalGroup({name: Hostile(name) if name == BAD else Member(name) for name in NAMES})
    senders = [group.members[name] for name in NAMES[1:]]
    planner = Planner()
    plan = planner.plan(group.members[RECEIVER], senders)
    others = planner.plan(group.members[RECEIVER], [info for info in senders if info.name != BAD])
    asked = questions()
    print(heading(), flush=True)
    runs = [("honest", "", plan), *((how, how, plan) for how in ROWS), ("(not asked)", "", others)]
    runs.append(("(nobody is asked)", "", revised(plan, protocol="standalone")))
    lost = 0
    for title, how, used in runs:
        group._members[BAD].how = how  # pyright: ignore[reportAttributeAccessIssue]
        answers = [ask(group, used, request) for request, _ in asked]
        right = sum(a is not None and a.rows[0].choice == gold for a, (_, gold) in zip(answers, asked, strict=True))
        answered = sum(answer is not None for answer in answers)
        lost += len(answers) - answered
        print(f"| {title} | {answered} of {len(asked)} | {right} | {missing(answers)} |", flush=True)
    return min(lost, 1)


def questions() -> list[tuple[Request, int]]:
    """One request each, and the index of the right choice."""
    rng = random.Random(0)
    facts = [fact for fact in World(0).split("test") if fact.domain == DOMAIN and fact.attribute != "taste"]
    asked = []
    for fact in rng.sample(facts, QUESTIONS):
        choices = options(fact, rng)
        asked.append((Request((fact.ask(),), choices=(tuple(choices),)), choices.index(fact.value)))
    return asked


def ask(group: LocalGroup, plan: Plan, request: Request) -> Answer | None:
    try:
        return asyncio.run(protocol_of(plan).run(request, plan, group))
    except (FedrayError, RuntimeError, ValueError, TypeError, AttributeError, MemoryError) as error:
        print(f"lost: {type(error).__name__}: {str(error)[:200]!r}", file=sys.stderr)
        return None


def missing(answers: Sequence[Answer | None]) -> str:
    """Who was missing how often, and the first reason."""
    named = [m for answer in answers if answer for m in answer.missing]
    counts = Counter(m.member for m in named)
    reasons = {m.member: m.reason for m in reversed(named)}
    cells = (f"{name}, {count} times: {printable(reasons[name], 160)}" for name, count in counts.items())
    return "; ".join(cells).replace("|", "\\|").replace("`", "'")


def heading() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    machine = f"{os.cpu_count()} cores of {found[1] if found else 'an unknown processor'}"
    return (
        f"# One hostile sender among four\n\n"
        f"`python tests/hostile_senders.py`, zoo=tiny, receiver {RECEIVER}, {QUESTIONS} held-out questions about\n"
        f"{DOMAIN}s, one at a time. {BAD}, which knows them, sends what the row says in place of its cache; the last\n"
        f"two rows are without it, and without all senders. What has an honest cache's norms passes. {machine}.\n\n"
        f"| {BAD} sends | answered | right | missing |\n|---|---|---|---|"
    )


if __name__ == "__main__":
    sys.exit(main())
