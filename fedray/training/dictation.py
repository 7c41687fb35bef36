"""Texts to train translators of drafts on: what is forced as a sender's answer, word for word.

Words, names and strings of them, behind questions about training entities, or the words of both vocabularies and spans
of a data set; never a question together with its answer. Strings teach what single words do not: pieces that stand
inside a text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from fedray.data.overlap import KeptWords
from fedray.llm.model import LLM
from fedray.llm.token_bytes import token_bytes
from fedray.prompts import hint_prompt, rephrase_prompt
from fedray.training.conversations import LabelledPrompt
from fedray.world.world import ATTRIBUTES, DOMAINS, PHRASINGS, SEEN_PHRASINGS, World, seen_in_fusing

TEXTS = 6000  # of the tiny world, half of them single words
TEXTS_OF = {"both": 9000, "sender": 5000, "phrases": 2000, "spans": 6000}  # of LLMs of real size
TEXTS_PER_QUESTION = 192
TOKENS_PER_WORD = 3  # of the sender, about
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


def of_vocabularies(
    sender: LLM, receiver: LLM, talks: Sequence[LabelledPrompt], seed: int, kept: KeptWords
) -> tuple[list[LabelledPrompt], list[LabelledPrompt]]:
    """Draw texts of the words of two LLMs' vocabularies, and of what the conversations and their documents say.

    Words that both have a token for, words that only the sender has one for, phrases of the former, and spans of
    sentences, one word of every second replaced by any. Each stands behind the question of one of a few conversations,
    and holds no kept word. Returns those to train on, and a fiftieth as many to validate with.
    """
    rng = random.Random(f"vocabularies-{seed}")
    known, others = (_whole_words(llm) for llm in (sender, receiver))
    both = sorted(known & others)
    letters = set("".join(both))
    own = sorted(word for word in known - others if set(word) <= letters)
    spoken = [text for talk in talks for text in (talk.answer, *(document for _, document in talk.documents))]
    sentences = sorted({sentence for text in spoken for sentence in re.split(r"(?<=[.!?])\s+", text)})
    words = rng.sample(both, min(len(both), TEXTS_OF["both"])) + rng.sample(own, min(len(own), TEXTS_OF["sender"]))
    phrases = [" ".join(rng.choices(both, k=rng.choice((2, 2, 3)))) for _ in range(TEXTS_OF["phrases"] if both else 0)]
    spans = [_span(rng.choice(sentences).split(), both, rng) for _ in range(TEXTS_OF["spans"])]
    texts = sorted({text for text in (*words, *phrases, *spans) if text and not kept.are_in(text)})
    rng.shuffle(texts)
    asked = rng.sample(list(talks), max(1, min(len(talks), len(texts) // TEXTS_PER_QUESTION)))
    found = [
        replace(asked[i % len(asked)], answer=text, group=STRING if " " in text else WORD)
        for i, text in enumerate(texts)
    ]
    return found[(check := max(1, len(found) // 50)) :], found[:check]


def _whole_words(llm: LLM) -> set[str]:
    """List the words of three letters and more that an LLM has a token for, behind a space."""
    tokens = token_bytes(llm.words(), llm.model.get_input_embeddings().num_embeddings)
    texts = (token[1:].decode(errors="replace") for token in tokens if token.startswith(b" "))
    return {text for text in texts if len(text) > 2 and text.isalpha() and text[1:].islower()}


def _span(words: list[str], others: Sequence[str], rng: random.Random) -> str:
    """Take a span, most often from the beginning, where a sentence that answers begins as well."""
    length = rng.randint(1, LONGEST)
    start = 0 if rng.random() < 0.7 else rng.randrange(max(1, len(words) - length + 1))
    taken = words[start : start + length]
    if others and rng.random() < 0.5:
        taken[rng.randrange(len(taken))] = rng.choice(others)
    return " ".join(taken)


def _words() -> list[str]:
    """List the words of the world, but for names."""
    values = {value for listed in ATTRIBUTES.values() for value in listed}
    spoken = set(re.findall(r"[a-z]+", " ".join(("the is of are do and have same", *PHRASINGS))))
    return sorted(values | set(ATTRIBUTES) | set(DOMAINS) | {"yes", "no"} | spoken)
