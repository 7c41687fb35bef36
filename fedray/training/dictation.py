"""Texts to train translators of drafts on: what is forced as a sender's answer, word for word.

Words, names and strings of them, behind questions about training entities, or spans of a data set's answers; never a
question together with its answer. Strings teach what single words do not: pieces that stand inside a text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from fedray.prompts import hint_prompt, rephrase_prompt
from fedray.training.conversations import LabelledPrompt
from fedray.world.world import ATTRIBUTES, DOMAINS, PHRASINGS, SEEN_PHRASINGS, World, seen_in_fusing

TEXTS = 6000  # of the tiny world, half of them single words
LONGEST = 8  # words
TOKENS_PER_TEXT = 8  # of the sender, about
WORD, STRING = "word", "string"  # the groups


def of_world(world: World, split: str, count: int, seed: int) -> list[LabelledPrompt]:
    """Draw texts of the world's words and of one split's names, behind that split's questions."""
    rng = random.Random(f"dictation-{world.seed}-{split}-{seed}")
    facts = [fact for fact in world.split(split) if seen_in_fusing(fact)]
    words, names = _words(), sorted({fact.name for fact in facts})

    def item() -> str:
        return rng.choice(names) if rng.random() < 0.35 else rng.choice(words) + rng.choice(("", "", "", *",.?:"))

    def asked() -> str:
        fact, kind = rng.choice(facts), rng.random()
        question = fact.ask(rng.choice(SEEN_PHRASINGS))
        if kind < 0.5:
            return question
        told = world.tell(fact.domain, fact.name).user
        return rephrase_prompt(question) if kind < 0.8 else hint_prompt(question) if kind < 0.9 else told

    single = [
        LabelledPrompt(rng.choice(facts).ask(rng.choice(SEEN_PHRASINGS)), rng.choice(words), WORD)
        for _ in range(count // 2)
    ]
    lengths = [rng.choice((2, 3, 4, 6, LONGEST)) for _ in range(count - len(single))]
    return single + [LabelledPrompt(asked(), " ".join(item() for _ in range(n)), STRING) for n in lengths]


def of_talks(talks: Sequence[LabelledPrompt], seed: int) -> list[LabelledPrompt]:
    """Take a span of every conversation's answer in its place, and a single word of every third."""
    rng = random.Random(f"dictation-{seed}")
    found = []
    for number, talk in enumerate(talks):
        words = talk.answer.split()
        length = 1 if number % 3 == 0 else rng.randint(2, LONGEST)
        if words:
            start = rng.randrange(max(1, len(words) - length + 1))
            text = " ".join(words[start : start + length])
            found.append(replace(talk, answer=text, group=WORD if length == 1 else STRING))
    return found


def _words() -> list[str]:
    """List the words of the world, but for names."""
    values = {value for listed in ATTRIBUTES.values() for value in listed}
    spoken = set(re.findall(r"[a-z]+", " ".join(("the is of are do and have same", *PHRASINGS))))
    return sorted(values | set(ATTRIBUTES) | set(DOMAINS) | {"yes", "no"} | spoken)
