"""Does the cache of a drafted word hold more than the word? (docs/messages.md; run from a clone of this repository)

A linear probe reads the cache of each sender's one-word answers, beside the word itself, and tells on held-out entities
whether the sender is right, and which answer it would have given second. Then the receiver reads the word as text and
its cache beside it: the sender's own, or that of the same word drafted for another question.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from fedray import Federation
from fedray.evaluation.metrics import effect
from fedray.llm.cache import KVCache
from fedray.llm.loading import load
from fedray.member.member import Member
from fedray.methods.method import FuserChoice
from fedray.questions.tasks import load_task, request_fields
from fedray.types import Generation, Request
from fedray.wire.payload import unpack
from fedray.world.world import ATTRIBUTES, SEEN_PHRASINGS, Fact, World

VALUES = [value for listed in ATTRIBUTES.values() for value in listed]
RECEIVER, SENDERS = "qwen3-0.6b", ("qwen2.5-0.5b", "qwen2.5-coder-0.5b", "qwen2.5-1.5b", "llama-1b")
DRAFT = FuserChoice("draft", max_tokens=4)


def drafts(member: Member, facts: list[Fact]) -> tuple[list[str], KVCache, list[str], list[int]]:
    """What a member says of each fact, the cache of those words, its second-best answer, and which facts these are."""
    prompts = tuple(fact.ask(SEEN_PHRASINGS[i % len(SEEN_PHRASINGS)]) for i, fact in enumerate(facts))
    rows = tuple(range(len(facts)))
    _, payload = member.share("words", rows, prompts=prompts, tokens="draft", unrotated=True, draft=DRAFT)
    said = [row.text for row in member.alone("said", Request(prompts, generation=Generation(DRAFT.max_tokens))).rows]
    scored = member.alone("scored", Request(prompts, choices=(tuple(VALUES),) * len(prompts))).rows
    ranked = [sorted(VALUES, key=lambda value: -row.scores[VALUES.index(value)]) for row in scored]
    second = [next(value for value in row if value != text) for row, text in zip(ranked, said, strict=True)]
    kept = [i for i, text in enumerate(said) if text in VALUES]
    return [said[i] for i in kept], unpack(payload).cache.select(kept), [second[i] for i in kept], kept


def features(words: list[str], cache: KVCache, layers: range) -> tuple[Tensor, Tensor]:
    """The word alone, and the word with the cache of its last token in some layers."""
    word = torch.nn.functional.one_hot(torch.tensor([VALUES.index(w) for w in words]), len(VALUES)).float()
    last = (cache.lengths - 1)[:, None, None, None]
    sides = [side[layer].take_along_dim(last, 2).flatten(1) for layer in layers for side in (cache.keys, cache.values)]
    return word, torch.cat([word, *sides], dim=1) if sides else word


def probe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int) -> float:
    """Held-out accuracy of a linear probe, balanced over classes that occur."""
    (x, y), (x_test, y_test) = train, test
    mean, std = x.mean(0), x.std(0).clamp(min=1e-4)
    x, x_test = (x - mean) / std, (x_test - mean) / std
    torch.manual_seed(0)
    linear = nn.Linear(x.shape[1], classes)
    weight = 1.0 / torch.bincount(y, minlength=classes).clamp(min=1).float()
    optimizer = torch.optim.AdamW(linear.parameters(), 1e-2, weight_decay=0.3)
    for _ in range(400):
        optimizer.zero_grad()
        nn.functional.cross_entropy(linear(x), y, weight=weight).backward()
        optimizer.step()
    guess = linear(x_test).argmax(1)
    shares = [float((guess[y_test == c] == c).float().mean()) for c in y_test.unique().tolist()]
    return 100 * sum(shares) / len(shares)


def beside(name: str) -> str:
    """How often the receiver is right that reads a sender's word as text, and its draft too, and over the draft of the
    same word for another question."""
    how: dict[str, Any] = {"ray": False, "tracking": False, "gate": "open", "fuser": "draft"}
    with Federation(receiver=RECEIVER, senders=[name], task={"limit": None}, **how) as fed:
        questions = load_task(fed.settings)
        asked = Request(tuple(q.prompt for q in questions), generation=Generation(DRAFT.max_tokens))
        said = [row.text for row in Member(name, llm=load(name)).alone("said", asked).rows]
        alike = [[*rows] for _, rows in groupby(sorted(range(len(said)), key=said.__getitem__), key=said.__getitem__)]
        batches = [rows[i : i + 64] for rows in alike for i in range(0, len(rows), 64)]
        text = fed.plan_for(senders=[], protocol="standalone")
        rights: list[list[bool]] = [[], [], []]
        entities: list[str] = []
        for batch in (batch for batch in batches if len(batch) > 1):
            some = [questions[i] for i in batch]
            fields: dict[str, Any] = request_fields(some, fed.plan, None) | {
                "evidence": {RECEIVER: tuple(said[i] for i in batch)}
            }
            request = fed.request(*(q.prompt for q in some), **fields)
            answer = fed.run(replace(request, donors=((*range(1, len(some)), 0),)))
            for right, rows in zip(rights, (fed.run(request, text).rows, answer.rows, *answer.deranged), strict=True):
                right += [bool(q.right(row)) for q, row in zip(some, rows, strict=True)]
            entities += [q.entity for q in some]
    told, own, other = rights
    shares = ", ".join(f"{100 * sum(right) / len(right):.1f}" for right in (told, own))
    return f"{name} | {shares} | {effect(other, own, entities)} | {len(own)}"


def main() -> None:
    world = World(0)
    print("sender | right or wrong: word, + layer 0, + all layers | second best: word, + layer 0, + all layers | n")
    for name in SENDERS:
        sets = []
        for split in ("train", "test"):
            facts = world.split(split)[:: 2 if split == "train" else 1]
            words, cache, second, kept = drafts(Member(name, llm=load(name)), facts)
            right = torch.tensor([int(word == facts[i].value) for word, i in zip(words, kept, strict=True)])
            sets.append((words, cache, right, torch.tensor([VALUES.index(w) for w in second])))
        depth = sets[0][1].spec.layers
        line = []
        for target, classes in ((2, 2), (3, len(VALUES))):
            for layers in (range(0), range(1), range(depth)):
                x = [features(words, cache, layers)[1] for words, cache, *_ in sets]
                line.append(probe((x[0], sets[0][target]), (x[1], sets[1][target]), classes))
        shown = [f"{value:.1f}" for value in line]
        print(f"{name} | {', '.join(shown[:3])} | {', '.join(shown[3:])} | {len(sets[1][0])}", flush=True)
    print("sender | right with its word: as text, + its draft | over the same word's draft elsewhere (95 %) | n")
    for name in SENDERS:
        print(beside(name), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
