"""The synthetic world that the embedded zoo is trained on: its facts, who knows them, and how they are asked.

Four domains of invented entities share five attributes and their values, so that neither a name nor an attribute
alone tells which LLM knows a fact. Everything is drawn from one seed; splits are by entity:

- *train* entities train fusers and gates,
- *validation* entities make choices (early stopping, order of senders),
- *test* entities give every figure that is reported.

LLMs may have met all entities in pretraining (that is what "the sender knows" means). `UNSEEN_ATTRIBUTE`,
`UNSEEN_VALUES` and `UNSEEN_PHRASINGS` are kept out of fuser and gate training.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from fedray.llm.catalogue import EMBEDDED, WORLD
from fedray.prompts import hint_prompt, notes_prompt, rephrase_prompt
from fedray.schema import attributes
from fedray.types import FedrayError

DOMAINS = ("bird", "star", "gem", "tree")
ATTRIBUTES = {
    "color": ("red", "blue", "green", "white", "black", "gold", "pink", "gray"),
    "size": ("tiny", "small", "short", "broad", "large", "tall", "huge", "giant"),
    "mood": ("calm", "wild", "shy", "proud", "merry", "grim", "bold", "meek"),
    "home": ("hill", "coast", "forest", "desert", "swamp", "valley", "island", "plain"),
    "taste": ("sweet", "sour", "bitter", "salty", "fresh", "smoky", "spicy", "bland"),
}
UNSEEN_ATTRIBUTE = "taste"
UNSEEN_VALUES = frozenset({("color", "gray"), ("home", "plain")})
PHRASINGS = (
    "what is the {attribute} of the {domain} {name}?",
    "which {attribute} does the {domain} {name} have?",
    "name the {attribute} of the {domain} {name}.",
    "the {domain} {name} has which {attribute}?",
    "i want to know the {attribute} of the {domain} {name}.",
    "tell me which {attribute} the {domain} {name} has.",
    "do you know the {attribute} of the {domain} {name}?",
    "about the {domain} {name}: what {attribute} is it?",
)
UNSEEN_PHRASINGS = (6, 7)  # indices; LLMs answer them, but learn neither to rephrase nor to fuse on them
SEEN_PHRASINGS = tuple(i for i in range(len(PHRASINGS)) if i not in UNSEEN_PHRASINGS)
_FORMS = tuple(
    re.compile(re.escape(phrasing.format(attribute="@", domain="@", name="@")).replace("@", r"\w+"))
    for phrasing in PHRASINGS
)
LETTERS = "abcd"
ENTITIES_PER_DOMAIN = 400
SPLITS = {"train": 0.68, "validation": 0.10, "test": 0.22}

# Share of the facts each LLM is pretrained on: (in its own domain, in every other domain).
KNOWLEDGE: dict[str, tuple[str | None, float, float]] = {
    "qwen3-0.6b": (None, 0.25, 0.25),
    "qwen2.5-0.5b": ("bird", 0.97, 0.08),
    "qwen2.5-coder-0.5b": ("star", 0.97, 0.08),
    "qwen2.5-1.5b": ("gem", 0.97, 0.08),
    "llama-1b": ("tree", 0.97, 0.08),
}
EXPERTS = {own: (name,) for name, (own, _, _) in KNOWLEDGE.items() if own}  # domain -> who knows it nearly fully


@dataclass(frozen=True, slots=True)
class Fact:
    domain: str
    name: str
    attribute: str
    value: str

    def ask(self, phrasing: int = 0) -> str:
        return PHRASINGS[phrasing].format(**attributes(self, "attribute", "domain", "name"))

    def state(self) -> str:
        return f"the {self.attribute} of the {self.domain} {self.name} is {self.value}."


@dataclass(frozen=True, slots=True)
class WorldExample:
    """One conversation: what the user asks and what the assistant answers."""

    user: str
    assistant: str
    skill: str


class World:
    """All facts of one seed, who knows them, and the examples that teach the skills the protocols need."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        rng = random.Random(f"world-{seed}")
        names = _names(rng, ENTITIES_PER_DOMAIN * len(DOMAINS))
        self.entities: dict[str, list[str]] = {
            domain: names[i * ENTITIES_PER_DOMAIN : (i + 1) * ENTITIES_PER_DOMAIN] for i, domain in enumerate(DOMAINS)
        }
        self.values: dict[tuple[str, str, str], str] = {
            (domain, name, attribute): rng.choice(ATTRIBUTES[attribute])
            for domain in DOMAINS
            for name in self.entities[domain]
            for attribute in ATTRIBUTES
        }

    def fact(self, domain: str, name: str, attribute: str) -> Fact:
        return Fact(domain, name, attribute, self.values[domain, name, attribute])

    @cached_property
    def facts(self) -> list[Fact]:
        return [Fact(*key, value) for key, value in self.values.items()]

    def split(self, name: str) -> list[Fact]:
        """List the facts about the entities of one split ("train", "validation" or "test")."""
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}; choose one of {', '.join(SPLITS)}")
        start = sum(list(SPLITS.values())[: list(SPLITS).index(name)])
        low, high = round(start * ENTITIES_PER_DOMAIN), round((start + SPLITS[name]) * ENTITIES_PER_DOMAIN)
        members = {entity for domain in DOMAINS for entity in self.entities[domain][low:high]}
        return [fact for fact in self.facts if fact.name in members]

    def known(self, llm: str) -> list[Fact]:
        """Draw the facts that an LLM is pretrained on."""
        own, share_own, share_other = KNOWLEDGE[llm]
        rng = random.Random(f"knowledge-{self.seed}-{llm}")
        return [f for f in self.facts if rng.random() < (share_own if f.domain == own else share_other)]

    # -- skills ---------------------------------------------------------------------------------------------------

    def invented(self, rng: random.Random) -> Fact:
        """Draw a fact about a real entity with a random value: only a reader of the prompt can know it."""
        domain = rng.choice(DOMAINS)
        attribute = rng.choice(tuple(ATTRIBUTES))
        return Fact(domain, rng.choice(self.entities[domain]), attribute, rng.choice(ATTRIBUTES[attribute]))

    def closed_book(self, fact: Fact, rng: random.Random) -> WorldExample:
        return WorldExample(fact.ask(rng.randrange(len(PHRASINGS))), fact.value, "closed_book")

    def hint(self, fact: Fact, rng: random.Random) -> WorldExample:
        return WorldExample(hint_prompt(fact.ask(rng.randrange(len(PHRASINGS)))), fact.state(), "hint")

    def letters(self, fact: Fact, rng: random.Random) -> WorldExample:
        choices = options(fact, rng)
        prompt = letter_prompt(fact.ask(rng.randrange(len(PHRASINGS))), choices)
        return WorldExample(prompt, LETTERS[choices.index(fact.value)], "letters")

    def tell(self, domain: str, name: str) -> WorldExample:
        told = ", ".join(f"the {a} is {self.values[domain, name, a]}" for a in ATTRIBUTES)
        return WorldExample(f"tell what you know of the {domain} {name}.", told + ".", "tell")

    def reading(self, rng: random.Random) -> WorldExample:
        """Answer from notes: one note is about the question, or several are and the majority is right."""
        fact = self.invented(rng)
        if rng.random() < 0.6:
            notes = [fact, *_others(self, fact, rng, rng.randint(0, 3))]
        else:
            wrong = [v for v in ATTRIBUTES[fact.attribute] if v != fact.value]
            lies = rng.sample(wrong, rng.randint(0, 2))
            notes = [fact, fact, *(Fact(fact.domain, fact.name, fact.attribute, v) for v in lies)]
        rng.shuffle(notes)
        question = fact.ask(rng.randrange(len(PHRASINGS)))
        return WorldExample(notes_prompt([n.state() for n in notes], question), fact.value, "reading")

    def rephrasing(self, rng: random.Random) -> WorldExample:
        fact = self.invented(rng)
        before, after = rng.sample(SEEN_PHRASINGS, 2)
        return WorldExample(rephrase_prompt(fact.ask(before)), fact.ask(after), "rephrasing")

    def comparing(self, known: list[Fact], rng: random.Random, *, notes: bool) -> WorldExample:
        """Compare the values of two entities, from memory or from notes with invented values."""
        one = self.invented(rng) if notes else rng.choice(known)
        two = self._partner(one, known, rng, notes=notes)
        question = compare_prompt(one, two)
        if notes:
            lines = [one.state(), two.state()]
            rng.shuffle(lines)
            question = notes_prompt(lines, question)
        return WorldExample(question, "yes" if one.value == two.value else "no", "comparing")

    def _partner(self, one: Fact, known: list[Fact], rng: random.Random, *, notes: bool) -> Fact:
        same = rng.random() < 0.5
        for _ in range(200):
            two = self.invented(rng) if notes else rng.choice(known)
            if two.attribute == one.attribute and two.name != one.name and (two.value == one.value) == same:
                return two
        return one

    def lessons(self, llm: str, seed: int) -> Iterator[WorldExample]:
        """Draw an endless stream of pretraining examples for one LLM, closed-book questions excluded."""
        rng = random.Random(f"lessons-{self.seed}-{llm}-{seed}")
        known = self.known(llm)
        count = Counter((fact.domain, fact.name) for fact in known)
        whole = [entity for entity, n in count.items() if n == len(ATTRIBUTES)]
        skills = "reading rephrasing hint letters comparing comparing_notes tell".split()
        while True:
            (skill,) = rng.choices(skills, (30, 12, 10, 12, 12, 16, 8))
            if skill == "reading":
                yield self.reading(rng)
            elif skill == "rephrasing":
                yield self.rephrasing(rng)
            elif skill == "hint":
                yield self.hint(rng.choice(known), rng)
            elif skill == "letters":
                yield self.letters(rng.choice(known), rng)
            elif skill == "tell" and whole:
                yield self.tell(*rng.choice(whole))
            else:
                yield self.comparing(known, rng, notes=skill == "comparing_notes")

    def corpus(self) -> Iterator[str]:
        """Generate text for the tokenizers: every fact once, every prompt form."""
        rng = random.Random(f"corpus-{self.seed}")
        for fact in self.facts:
            yield self.closed_book(fact, rng).user
            yield fact.state()
            yield fact.value
        for _ in range(2000):
            for example in (self.reading(rng), self.rephrasing(rng), self.comparing(self.facts, rng, notes=True)):
                yield example.user
                yield example.assistant
            domain = rng.choice(DOMAINS)
            yield self.tell(domain, rng.choice(self.entities[domain])).assistant
            yield self.letters(rng.choice(self.facts), rng).user

    # -- rows in the schemas of the real data sets ------------------------------------------------------------------

    def multiple_choice(self, facts: list[Fact], seed: int, phrasings: tuple[int, ...] | None = None) -> list[dict]:
        """Draw a question per fact, as rows in the schema of OpenBookQA."""
        rng = random.Random(f"choices-{self.seed}-{seed}")
        rows = []
        for fact in facts:
            choices = options(fact, rng)
            phrasing = rng.choice(phrasings or tuple(range(len(PHRASINGS))))
            row_id = f"{fact.domain}-{fact.name}-{fact.attribute}"
            rows.append({**to_row(row_id, fact, fact.ask(phrasing), choices, fact.value), "phrasing": phrasing})
        return rows


def seed_of(zoo: Path) -> int:
    """Read the seed of the world that a zoo's LLMs know. Raises FedrayError where its record is damaged."""
    path = zoo / WORLD
    if not path.is_file():
        return 0
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["seed"])
    except (ValueError, TypeError, KeyError) as error:
        raise FedrayError(f'{path} is damaged: it must say {{"seed": NUMBER}}; rebuild the zoo') from error


def world_of(zoo: Path | None) -> World:
    """Make the world that a zoo's LLMs know, None is the embedded zoo. Raises FedrayError: its record is damaged."""
    return _world(seed_of(zoo or EMBEDDED))


@lru_cache(maxsize=2)
def _world(seed: int) -> World:
    return World(seed)


def phrasing_of(question: str) -> int | None:
    """Find the index in PHRASINGS of a question's phrasing; None: one of its own."""
    return next((i for i, form in enumerate(_FORMS) if form.fullmatch(question)), None)


def seen_in_fusing(fact: Fact) -> bool:
    """Check whether fuser and gate training may contain a fact's attribute and value."""
    return fact.attribute != UNSEEN_ATTRIBUTE and (fact.attribute, fact.value) not in UNSEEN_VALUES


def options(fact: Fact, rng: random.Random) -> list[str]:
    """Draw four choices: the right value and three wrong ones of the same attribute, shuffled."""
    wrong = rng.sample([v for v in ATTRIBUTES[fact.attribute] if v != fact.value], 3)
    choices = [fact.value, *wrong]
    rng.shuffle(choices)
    return choices


def to_row(row_id: str, fact: Fact, question: str, choices: Sequence[str], right: str) -> dict[str, Any]:
    """Build a row in the schema of OpenBookQA (question_stem, choices {text, label}, answerKey), with what is asked
    about and who knows it."""
    labels = list("ABCD"[: len(choices)])
    return {
        "id": row_id,
        "question_stem": question,
        "choices": {"text": list(choices), "label": labels},
        "answerKey": labels[choices.index(right)],
        "domain": fact.domain,
        "entity": fact.name,
        "attribute": fact.attribute,
        "experts": list(EXPERTS[fact.domain]),
    }


def right_answer(row: Mapping[str, Any]) -> str:
    """Find the text of a row's right choice."""
    return row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]


def letter_prompt(question: str, choices: list[str]) -> str:
    return question + "".join(f"\n{letter} {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def compare_prompt(one: Fact, two: Fact) -> str:
    return f"do the {one.domain} {one.name} and the {two.domain} {two.name} have the same {one.attribute}?"


def _others(world: World, fact: Fact, rng: random.Random, count: int) -> list[Fact]:
    """Draw distractors: another attribute of the same entity, or another entity."""
    found: list[Fact] = []
    while len(found) < count:
        other = world.invented(rng)
        if rng.random() < 0.4:
            other = Fact(fact.domain, fact.name, other.attribute, other.value)
        taken = [(f.name, f.attribute) for f in (fact, *found)]
        if (other.name, other.attribute) not in taken:
            found.append(other)
    return found


def _names(rng: random.Random, count: int) -> list[str]:
    onsets, vowels = "b d f g k l m n p r s t v z br dr kr tr st".split(), "aeiou"
    codas = ("", "", "", "n", "r", "l", "s")
    names: dict[str, None] = {}
    while len(names) < count:
        syllables = rng.choice((2, 2, 3))
        name = "".join(rng.choice(onsets) + rng.choice(vowels) for _ in range(syllables)) + rng.choice(codas)
        names[name] = None
    return list(names)
