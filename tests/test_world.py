"""The synthetic world: splits by entity, spread knowledge, seeds that mean what they say."""

from __future__ import annotations

from collections import Counter

import pytest

from fedray.world.world import (
    DOMAINS,
    KNOWLEDGE,
    PHRASINGS,
    SPLITS,
    UNSEEN_ATTRIBUTE,
    UNSEEN_PHRASINGS,
    World,
    options,
    seen_in_fusing,
)


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


def test_splits_share_no_entity_and_leave_none_out(world):
    names = {split: {f.name for f in world.split(split)} for split in SPLITS}
    assert not names["train"] & names["validation"] and not names["train"] & names["test"]
    assert not names["validation"] & names["test"]
    assert set.union(*names.values()) == {f.name for f in world.facts}
    assert len([f for f in world.split("test") if seen_in_fusing(f)]) >= 1200


def test_an_entity_has_one_domain_and_domains_share_values(world):
    domain = {}
    for fact in world.facts:
        assert domain.setdefault(fact.name, fact.domain) == fact.domain
    for attribute in ("color", "home"):
        values = [{f.value for f in world.facts if f.domain == d and f.attribute == attribute} for d in DOMAINS]
        assert all(v == values[0] for v in values)


def test_knowledge_is_spread(world):
    for llm, (own, _, _) in KNOWLEDGE.items():
        share = Counter(f.domain for f in world.known(llm))
        whole = len(world.facts) / len(DOMAINS)
        for domain in DOMAINS:
            known = share[domain] / whole
            assert (known > 0.93) if domain == own else (known < 0.30), (llm, domain, known)


def test_a_seed_is_a_world(world):
    assert World(0).values == world.values
    assert World(1).values != world.values
    assert [e.user for e, _ in zip(world.lessons("llama-1b", 0), range(20), strict=False)] == [
        e.user for e, _ in zip(World(0).lessons("llama-1b", 0), range(20), strict=False)
    ]


def test_rows_have_the_schema_of_openbookqa(world):
    facts = world.split("test")[:50]
    for fact, row in zip(facts, world.multiple_choice(facts, seed=0), strict=True):
        texts, labels = row["choices"]["text"], row["choices"]["label"]
        assert labels == ["A", "B", "C", "D"] and len(set(texts)) == 4
        assert texts[labels.index(row["answerKey"])] == fact.value
        assert fact.name in row["question_stem"]


def test_what_fusing_must_not_see(world):
    seen = [f for f in world.facts if seen_in_fusing(f)]
    assert UNSEEN_ATTRIBUTE not in {f.attribute for f in seen}
    assert "gray" not in {f.value for f in seen}
    assert all(0 <= i < len(PHRASINGS) for i in UNSEEN_PHRASINGS)


def test_skills_say_the_truth(world):
    import random

    rng = random.Random(0)
    known = world.known("qwen3-0.6b")
    for _ in range(200):
        reading = world.reading(rng)
        assert f" is {reading.assistant}." in reading.user
        compared = world.comparing(known, rng, notes=False)
        words = compared.user.removesuffix("?").split()
        one, two, attribute = (words[2], words[3]), (words[6], words[7]), words[-1]
        same = world.values[*one, attribute] == world.values[*two, attribute]
        assert compared.assistant == ("yes" if same else "no")
        fact = rng.choice(known)
        assert fact.value in options(fact, rng)
