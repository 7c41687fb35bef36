"""Questions that one member's memory cannot answer, as rows in the schema of OpenBookQA.

*Joint*: two facts that two different senders know, and a comparison as the answer. *Evidence*: a fact that stands in a
document which one member alone holds, and that contradicts what everybody may remember. *Told*: one fact of a long
answer, which tells everything its writer knows of an entity.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from fedray.world.world import ATTRIBUTES, DOMAINS, EXPERTS, UNSEEN_PHRASINGS, Fact, World, compare_prompt, options

ANSWERS = ("yes", "no")
SEEN = tuple(i for i in range(8) if i not in UNSEEN_PHRASINGS)


def joint(world: World, facts: Sequence[Fact], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` questions whether two entities of different domains share a value; half of them do.

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
        rows.append(
            {
                "id": f"joint-{one.name}-{two.name}-{one.attribute}",
                "question_stem": compare_prompt(one, two),
                "choices": {"text": list(ANSWERS), "label": ["A", "B"]},
                "answerKey": "AB"[ANSWERS.index("yes" if same else "no")],
                "domain": "same" if same else "different",
                "entity": one.name,
                "attribute": one.attribute,
                "experts": [name for fact in (one, two) for name in EXPERTS[fact.domain]],
                "asked": {name: fact.ask(rng.choice(SEEN)) for fact in (one, two) for name in EXPERTS[fact.domain]},
            }
        )
    rng.shuffle(rows)
    return rows


def evidence(world: World, facts: Sequence[Fact], lines: int, seed: int) -> list[dict[str, Any]]:
    """A question per fact, its value drawn anew. Each domain's expert holds a document of `lines` facts: for the
    question's own domain the answer is among them, for the others nothing is about this entity."""
    rng = random.Random(f"evidence-{world.seed}-{seed}")
    rows: list[dict[str, Any]] = []
    for real in facts:
        fact = Fact(real.domain, real.name, real.attribute, rng.choice(ATTRIBUTES[real.attribute]))
        documents: dict[str, str] = {}
        for domain, (holder,) in EXPERTS.items():
            about = [fact] if domain == fact.domain else []
            while len(about) < lines:
                other = world.invented(rng)
                if other.domain == domain and other.name not in {f.name for f in (fact, *about)}:
                    about.append(other)
            rng.shuffle(about)
            documents[holder] = "\n".join(f.state() for f in about)
        choices = options(fact, rng)
        rows.append(
            {
                "id": f"evidence-{fact.name}-{fact.attribute}",
                "question_stem": fact.ask(rng.choice(SEEN)),
                "choices": {"text": choices, "label": list("ABCD")},
                "answerKey": "ABCD"[choices.index(fact.value)],
                "domain": fact.domain,
                "entity": fact.name,
                "attribute": fact.attribute,
                "experts": list(EXPERTS[fact.domain]),
                "evidence": documents,
            }
        )
    return rows


def told(world: World, facts: Sequence[Fact], members: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Members tell all they know of an entity, and one of its values is asked for: a fact per row, an entity once.

    Answers have 25 tokens ("the color is red, the size is tall, ..."). Asked is about domains that one of the members
    knows; where none does, about all.
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
        choices = options(fact, rng)
        rows.append(
            {
                "id": f"told-{name}-{fact.attribute}",
                "question_stem": world.tell(domain, name).user,
                "choices": {"text": choices, "label": list("ABCD")},
                "answerKey": "ABCD"[choices.index(fact.value)],
                "domain": domain,
                "entity": name,
                "attribute": fact.attribute,
                "experts": list(EXPERTS[domain]),
            }
        )
    return rows
