"""Questions that one member's memory cannot answer, as rows in the schema of OpenBookQA.

*Joint*: two facts that two different senders know, and a comparison as the answer. *Evidence*: a fact that stands in a
document which one member alone holds, and that contradicts what everybody may remember. *Told*: one fact of a long
answer, which tells everything its writer knows of an entity. *Unmet*: whom a question is about that only one member has
read.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedray.prompts import rephrase_prompt
from fedray.world.world import (
    ATTRIBUTES,
    DOMAINS,
    EXPERTS,
    SEEN_PHRASINGS,
    Fact,
    World,
    compare_prompt,
    options,
    to_row,
)

ANSWERS = ("yes", "no")


def joint(world: World, facts: Sequence[Fact], count: int, seed: int) -> list[dict[str, Any]]:
    """Draw `count` questions whether two entities of different domains share a value; half of them do.

    asked: the half of the question that each of the two experts is asked, where members are asked in their own words.
    """
    rng = random.Random(f"joint-{world.seed}-{seed}")
    by_value: dict[tuple[str, str, str], list[Fact]] = {}
    for fact in facts:
        by_value.setdefault((fact.domain, fact.attribute, fact.value), []).append(fact)
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        one = rng.choice(facts)
        same = len(rows) % 2 == 0
        domain = rng.choice([d for d in DOMAINS if d != one.domain])
        values = [v for v in ATTRIBUTES[one.attribute] if (v == one.value) == same]
        others = [fact for value in values for fact in by_value.get((domain, one.attribute, value), [])]
        if not others:
            continue
        two = rng.choice(others)
        row_id = f"joint-{one.name}-{two.name}-{one.attribute}"
        row = to_row(row_id, one, compare_prompt(one, two), ANSWERS, "yes" if same else "no")
        experts = [(name, fact) for fact in (one, two) for name in EXPERTS[fact.domain]]
        row["domain"], row["experts"] = "same" if same else "different", [name for name, _ in experts]
        row["asked"] = {name: fact.ask(rng.choice(SEEN_PHRASINGS)) for name, fact in experts}
        rows.append(row)
    rng.shuffle(rows)
    return rows


def evidence(world: World, facts: Sequence[Fact], seed: int, members: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Draw a question per fact, with a new value. Each domain's expert holds a document of one fact: for the question's
    own domain the answer, for the others a fact about another entity.

    members: who hold them in turn where no expert is among them, as copies of one LLM do.
    """
    experts = {domain: holder for domain, (holder,) in EXPERTS.items()}
    if members and not set(members) & set(experts.values()):
        experts = {domain: members[i % len(members)] for i, domain in enumerate(experts)}
    rng = random.Random(f"evidence-{world.seed}-{seed}")
    rows: list[dict[str, Any]] = []
    for real in facts:
        fact = Fact(real.domain, real.name, real.attribute, rng.choice(ATTRIBUTES[real.attribute]))
        documents: dict[str, list[str]] = {}
        for domain, holder in experts.items():
            held = fact
            while held.domain != domain:
                held = world.invented(rng)
            documents.setdefault(holder, []).append(held.state())
        choices = options(fact, rng)
        question = fact.ask(rng.choice(SEEN_PHRASINGS))
        row = to_row(f"evidence-{fact.name}-{fact.attribute}", fact, question, choices, fact.value)
        rows.append({**row, "evidence": {holder: "\n".join(texts) for holder, texts in documents.items()}})
    return rows


def told(world: World, facts: Sequence[Fact], members: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Draw questions to tell all of an entity, of which one value is scored: a fact per row, an entity once.

    Answers have 25 tokens ("the color is red, the size is tall, ..."). The entities are of the domains that one of the
    members knows; where none does, of all.
    """
    rng = random.Random(f"told-{world.seed}-{seed}")
    known = {domain for domain, experts in EXPERTS.items() if set(experts) & set(members)} or set(DOMAINS)
    of_entity: dict[tuple[str, str], list[Fact]] = {}
    for fact in facts:
        if fact.domain in known:
            of_entity.setdefault((fact.domain, fact.name), []).append(fact)
    rows: list[dict[str, Any]] = []
    for (domain, name), about in of_entity.items():
        fact = rng.choice(about)
        question = world.tell(domain, name).user
        rows.append(to_row(f"told-{name}-{fact.attribute}", fact, question, options(fact, rng), fact.value))
    return rows


def unmet(world: World, facts: Sequence[Fact], seed: int) -> list[dict[str, Any]]:
    """Draw a question per entity: whom a question is about that one sender alone has read, and says in other words.

    Names are values of several tokens that no training has met (of entities that none saw); their pieces it has.
    asked: what the domain's expert is asked, to say its own question in other words.
    """
    rng = random.Random(f"unmet-{world.seed}-{seed}")
    names: dict[str, dict[str, Fact]] = {}
    for fact in facts:
        names.setdefault(fact.domain, {}).setdefault(fact.name, fact)
    rows: list[dict[str, Any]] = []
    for domain, of_domain in names.items():
        for name, fact in of_domain.items():
            wrong = rng.sample([other for other in of_domain if other != name], 3)
            choices = [f"the {domain} {other}" for other in (name, *wrong)]
            rng.shuffle(choices)
            row = to_row(f"unmet-{name}", fact, f"which {domain} is it?", choices, f"the {domain} {name}")
            question = replace(fact, attribute=rng.choice(tuple(ATTRIBUTES))).ask(rng.choice(SEEN_PHRASINGS))
            private = rephrase_prompt(question)
            rows.append({**row, "asked": dict.fromkeys(row["experts"], private)})
    return rows
