"""Load the questions of a task: the tiny world's held-out facts, a benchmark, or a user's own file."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedray.data import files, own, rows
from fedray.data.catalogue import BENCHMARKS, TASKS
from fedray.data.numbers import plain_number
from fedray.data.rows import EMPTY, Item, LeftOut, WrongRow
from fedray.errors import nearest
from fedray.llm.catalogue import NAMES, safe_name
from fedray.prompts import answered, notes_prompt
from fedray.questions import benchmarks, scoring
from fedray.questions.scoring import is_right
from fedray.questions.short_answers import token_f1
from fedray.settings.settings import OF_FEW_WORDS, Settings
from fedray.types import FedrayError, Plan, Row
from fedray.world.questions import evidence, joint, told, unmet
from fedray.world.world import UNSEEN_PHRASINGS, World, seen_in_fusing, world_of

JOINT = 1000  # questions about two facts; there are many more
_SEED = 0  # of the order: a limit takes questions about the same facts, however they are phrased


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    gold: index into choices; target: the right answer of a question that is answered freely; aliases: others; scoring:
    how an answer is read (scoring.py); group: what figures are split by (a domain, or ""); experts: the members that
    know the answer, where that is known (all of them are needed); asked, evidence: member -> what it reads instead of
    the prompt, and the document that it alone holds; shots: solved examples that stand in the prompt.
    """

    id: str
    prompt: str
    choices: tuple[str, ...] | None = None  # None: answered freely
    gold: int | None = None
    group: str = ""
    entity: str = ""
    attribute: str = ""
    experts: tuple[str, ...] = ()
    asked: Mapping[str, str] = field(default_factory=dict, hash=False)
    evidence: Mapping[str, str] = field(default_factory=dict, hash=False)
    target: str | None = None
    aliases: tuple[str, ...] = ()
    scoring: str = "text"
    shots: int = 0

    @property
    def answer(self) -> str | None:
        """The right answer's text, where it is known."""
        return self.choices[self.gold] if self.choices and self.gold is not None else self.target

    @property
    def offered(self) -> tuple[str, ...] | None:
        """The texts that members choose from; None: they answer freely."""
        return scoring.offered(self.scoring, self.choices)

    @property
    def read_by(self) -> str:
        """How answers are read, as reports say it."""
        return scoring.title(self.scoring, self.shots)

    def said(self, row: Row) -> str | None:
        """Read an answer, in the words of the choices or the form of the target; None: it names none."""
        if row.failed:
            return None
        if self.choices is None:
            return scoring.stated(self.scoring, self._text(row))
        choice = self._picked(row)
        return None if choice is None else self.choices[choice]

    def unread(self, row: Row) -> bool:
        """Check whether nothing that its scoring looks for can be read from a free answer."""
        return self.scoring in scoring.FREELY and self.said(row) is None

    def right(self, row: Row) -> bool | None:
        """Check whether an answer is right; None where that is unknown."""
        if self.choices is None or self.gold is None:
            return None if self.target is None else scoring.matches(self.scoring, self.said(row), self._targets)
        return is_right(self._picked(row), self.gold)

    def f1(self, row: Row) -> float | None:
        """Compute an answer's token F1, over the right answer that it is closest to; None where no scoring has it."""
        if self.scoring not in OF_FEW_WORDS or self.target is None:
            return None
        return max(token_f1(self.said(row) or "", target) for target in self._targets)

    @property
    def _targets(self) -> tuple[str, ...]:
        return () if self.target is None else (self.target, *self.aliases)

    def _picked(self, row: Row) -> int | None:
        return scoring.picked(self.scoring, self.choices or (), replace(row, text=self._text(row)))

    def _text(self, row: Row) -> str:
        """What of a free answer is about this question."""
        return (
            scoring.first_reply(self.scoring, row.text) if self.shots and self.scoring in scoring.FREELY else row.text
        )


def load_task(settings: Settings, seed: int = 0) -> list[Question]:
    """Load the questions of a run: all of `questions=FILE` in its order, or the task's, shuffled and limited.

    seed: of the task's phrasings and choices; they are the same whatever the run's own seed.
    Raises FedrayError with file, line and remedy where a file is invalid.
    """
    if settings.task.name not in TASKS:
        raise FedrayError(f"unknown task {settings.task.name!r}: choose one of {', '.join(TASKS)}")
    how = settings.task.scored_by
    if settings.questions is not None:
        own = [_scored(question, how) for question in _own(settings)]
        of_all = settings.documents() if has_documents(settings, own) else {}
        return [replace(question, evidence={**of_all, **question.evidence}) for question in own] if of_all else own
    above = _examples(settings, seed) if settings.task.shots else ""
    questions = [_scored(_question(*drawn), how) for drawn in _drawn(settings, seed, settings.task.limit)]
    shots = settings.task.shots
    return [replace(q, prompt=above + q.prompt, shots=shots) for q in questions] if shots else questions


def _drawn(settings: Settings, seed: int, limit: int | None) -> list[tuple[Item, Mapping[str, Any]]]:
    """Shuffle all questions of the task's split, and read the first of them, each with what else is known of it."""
    if settings.task.name in BENCHMARKS:
        found = list(benchmarks.items(settings).items())
        random.Random(_SEED).shuffle(found)
        holders = (settings.receiver,) if settings.protocol.copies else settings.senders
        return [(item, _about(name, group, item, holders)) for name, (group, item) in found[:limit]]
    drawn = _rows(settings, world_of(settings.zoo.path), seed)
    random.Random(_SEED).shuffle(drawn)
    return [(rows.labelled(row), row) for row in drawn[:limit]]


def _about(name: str, group: str, item: Item, holders: Sequence[str]) -> dict[str, Any]:
    """Write what else is known of a benchmark's question. holders: who hold its paragraphs, in this order."""
    return {"id": name, "domain": group, "entity": item.entity, "evidence": benchmarks.dealt(item.paragraphs, holders)}


def _examples(settings: Settings, seed: int) -> str:
    """Write the solved examples of the task's training split that stand above each question. Raises FedrayError."""
    task = settings.task
    name, shots = f"task={task.name}", f"task.shots={task.shots}"
    if task.name in BENCHMARKS and "train" not in BENCHMARKS[task.name].splits:
        others = ", ".join(name for name, data in BENCHMARKS.items() if "train" in data.splits)
        raise FedrayError(f"{name} has no training split to take {shots} from: leave it out, or choose one of {others}")
    if task.split == "train":
        raise FedrayError(f"{shots} would give away questions of task.split=train: choose another split")
    drawn = _drawn(replace(settings, task=replace(task, split="train")), seed, task.shots)
    if any(about.get("asked") or about.get("evidence") for _, about in drawn):
        raise FedrayError(f"{name} gives members texts of their own, and {shots} is the same for all: leave it out")
    if len(drawn) < task.shots:
        raise FedrayError(f"{name} has {len(drawn)} solved examples: choose task.shots={len(drawn)} or fewer")
    how = task.scored_by
    pairs = ((_scored(_question(item, about), how).prompt, scoring.reply(how, item)) for item, about in drawn)
    return "".join(f"{answered(prompt, reply)}\n\n" for prompt, reply in pairs)


def _scored(question: Question, how: str) -> Question:
    """Apply a scoring to a question; without choices it is that of its words or its number, or none where the answer is
    unknown."""
    if question.choices is None and question.target is None:
        return question
    how = how if question.choices or how in OF_FEW_WORDS else "contains" if question.aliases else "number"
    prompt = scoring.asked(how, question.prompt, question.choices or ())
    target = plain_number(question.target) if question.target and how == "number" else question.target
    return replace(question, prompt=prompt, target=target, scoring=how)


def _rows(settings: Settings, world: World, seed: int) -> list[dict[str, Any]]:
    """Draw rows in the schema of OpenBookQA, about the entities of the task's split."""
    name, split = settings.task.name, world.split(settings.task.split)
    facts = [fact for fact in split if seen_in_fusing(fact) is (name != "tiny-unasked")]
    if name.startswith("tiny-joint"):
        pairs = joint(world, facts, JOINT, seed)
        return pairs if name == "tiny-joint-halves" else [{**row, "asked": {}} for row in pairs]
    if name == "tiny-tell":
        others = settings.senders or tuple(name for name in NAMES if name != settings.receiver)
        return told(world, facts, others, seed)
    if name == "tiny-unmet":
        return unmet(world, split, seed)
    if name.startswith("tiny-evidence"):
        held = evidence(world, facts, seed, settings.senders)
        if name == "tiny-evidence":
            return held
        if name == "tiny-evidence-question":  # what is left without the documents
            return [{**row, "evidence": {}} for row in held]
        pooled = ("\n".join(row["evidence"].values()) for row in held)  # everything in one prompt: nothing is private
        return [{**row, "evidence": {settings.receiver: text}} for row, text in zip(held, pooled, strict=True)]
    return world.multiple_choice(facts, seed, UNSEEN_PHRASINGS if name == "tiny-phrasings" else None)


def request_fields(questions: Sequence[Question], plan: Plan, instead: Mapping[Question, str] | None) -> dict[str, Any]:
    """Make the fields of a Request besides its prompts. instead: what senders read (control=mismatched)."""
    readers = {name for q in questions for name in q.asked}
    holders = {name for q in questions for name in q.evidence}
    asked = {name: tuple(q.asked.get(name, q.prompt) for q in questions) for name in readers}
    if instead:
        asked = dict.fromkeys(plan.senders, tuple(instead[q] for q in questions))
    weighed = (plan.receiver, *plan.senders) if plan.method.gate.kind == "oracle" else ()
    fields = {
        "choices": None if questions[0].offered is None else tuple(q.offered or () for q in questions),
        "asked": asked,
        "evidence": {name: tuple(q.evidence.get(name, "") for q in questions) for name in holders},
        "weights": {name: tuple(float(name in q.experts) for q in questions) for name in weighed},
    }
    return {name: value for name, value in fields.items() if value}


def has_documents(settings: Settings, questions: Iterable[Question]) -> bool:
    """Check whether questions of the user's own come with documents that members keep to themselves."""
    return settings.questions is not None and any(question.evidence for question in questions)


def texts_read(questions: Iterable[Question], settings: Settings, member: str) -> dict[str, str]:
    """Map each text that a member reads at least, its document above the question, to the question's id."""
    holder = settings.receiver if settings.protocol.copies else member
    documents = settings.documents().get(holder, "")
    notes = ((q.evidence.get(holder, "") or documents, q) for q in questions)
    return {notes_prompt(note.splitlines(), q.asked.get(member, q.prompt)): q.id for note, q in notes}


def document_of(question: Question, settings: Settings, member: str) -> str:
    """Find the document that a member holds of a question: the question's own, else that of the settings."""
    return question.evidence.get(member, "") or settings.documents().get(member, "")


def mismatched(questions: list[Question], seed: int) -> list[str]:
    """Draw for control=mismatched the prompt of another question per question, for the senders to read instead.

    The other question is about the same attribute of another entity and has another answer, in the same group if
    there is one: a sender knows it as well, and what it knows does not help. Raises FedrayError if there is no other.
    """
    rng = random.Random(f"mismatched-{seed}")
    return [_other(question, questions, rng).prompt for question in questions]


def _other(question: Question, questions: list[Question], rng: random.Random) -> Question:
    wishes: tuple[Callable[[Question], bool], ...] = (
        lambda q: q.group == question.group,
        lambda q: q.answer is None or q.answer != question.answer,
        lambda q: q.attribute == question.attribute,
    )
    others = [q for q in questions if q.prompt != question.prompt and (not q.entity or q.entity != question.entity)]
    if not others:
        raise FedrayError(
            f"control=mismatched finds no question about another entity than {question.prompt!r} asks about: "
            "ask more questions (task.limit, or lines in the questions file)"
        )
    for dropped in range(len(wishes) + 1):
        found = [q for q in others if all(wish(q) for wish in wishes[dropped:])]
        if found:
            return rng.choice(found)
    raise AssertionError("without a wish every other question fits")


def scorings(settings: Settings, questions: Iterable[Question]) -> str:
    """Name the scorings for a report: a file of the user's own may hold questions of several kinds."""
    own = dict.fromkeys(question.scoring for question in questions) if settings.questions is not None else ()
    return scoring.title("+".join(own) or settings.task.scored_by, settings.task.shots)


def for_task(settings: Settings) -> Settings:
    """Set the length of free answers to what the questions need."""
    needed = {settings.task.scored_by} | _asked_freely(settings)
    given = settings.generation.max_tokens
    longest = settings.task.max_tokens or max(scoring.MAX_TOKENS.get(how, given) for how in needed)
    return replace(settings, generation=replace(settings.generation, max_tokens=longest))


def _asked_freely(settings: Settings) -> set[str]:
    """List the scorings of questions of the user's own that are answered freely."""
    try:
        own = _own(settings) if settings.questions is not None else ()
    except FedrayError:  # a mistake in the file is told by load_task
        return set()
    how = settings.task.scored_by
    return {_scored(question, how).scoring for question in own if question.target is not None}


def _own(settings: Settings) -> tuple[Question, ...]:
    path, how = settings.questions, settings.task.scored_by
    assert path is not None, "the caller has looked"
    stat = path.stat() if path.is_file() else None
    members = settings.takes_part[:1] if settings.protocol.copies else settings.takes_part
    return _read_once(path, how, members, (stat.st_mtime_ns, stat.st_size) if stat else None)


@lru_cache(maxsize=4)  # an evaluation asks for the same questions once per case and seed
def _read_once(path: Path, how: str, members: tuple[str, ...], state: object) -> tuple[Question, ...]:
    return tuple(read_questions(path, how, members))


def read_questions(path: Path, how: str = "text", members: Sequence[str] = ()) -> list[Question]:
    """Read questions of a file of the user's own, in its order: .txt (one per line), or rows of a data set's schema.

    The columns say which (fedray/data/own.py); `id`, `domain`, `entity`, `attribute` and `evidence` may stand beside
    them. how: the scoring that has to be able to tell choices apart; members: who may hold documents, the receiver
    first. Nothing is left out: raises FedrayError with file, line and remedy.
    """
    questions = []
    for place, row in files.rows(path):
        where = f"{path}, {place}"
        try:
            item, about, documents = own.question(row), own.about(row), own.documents(row)
        except WrongRow as error:
            raise FedrayError(f"{where}: {error}; read are {own.SCHEMAS}") from error
        item = item if isinstance(item, LeftOut) or item.whole else EMPTY
        if isinstance(item, LeftOut):
            raise FedrayError(
                f"{where} cannot be asked and scored ({item.reason}): mend it or take it out; such rows of a data "
                "set are left out, and counted, with its own task= and data.path="
            )
        if flaw := scoring.flaw(how, item.choices, item.gold):
            raise FedrayError(f"{where} has {flaw}")
        evidence = _held(documents, members, where)
        questions.append(_question(item, {"id": f"{path.name}:{place.split()[-1]}", "evidence": evidence, **about}))
    if not questions:
        raise FedrayError(f"{path} holds no question: write one per line")
    return questions


def _held(documents: Mapping[str, str], members: Sequence[str], where: str) -> dict[str, str]:
    """Find who holds which document: a member by its name, its safe name or its role. Raises FedrayError."""
    receiver, senders = members[:1], members[1:]
    roles = {"receiver": receiver, "sender": senders}
    held: dict[str, str] = {}
    for name, text in documents.items():
        found = roles.get(name, tuple(member for member in members if safe_name(member) == safe_name(name)))
        if name in roles and len(found) > 1:
            raise FedrayError(f"{where} has evidence for the sender, and there are {len(found)}: name {_or(found)}")
        if not found:
            close = nearest(name, (*members, *(role for role in roles if len(roles[role]) == 1)), 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise FedrayError(
                f"{where} has evidence for {name!r}, who takes no part{hint}: documents are read by {_or(members)}"
            )
        if found[0] in held:
            raise FedrayError(f"{where} has two documents for {found[0]}: put them into one")
        held[found[0]] = text
    return held


def _or(names: Sequence[str]) -> str:
    return " or ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else "".join(names) or "nobody"


def _question(item: Item, about: Mapping[str, Any]) -> Question:
    """Make a question of an item and what else is known of it: id, domain and the like."""
    same = {name: about[name] for name in ("entity", "attribute", "asked", "evidence") if name in about}
    group, experts = about.get("domain", ""), tuple(about.get("experts", ()))
    choices = item.choices or None
    answers = {"gold": item.gold, "target": item.target, "aliases": item.aliases}
    return Question(about["id"], item.question, choices, group=group, experts=experts, **answers, **same)
