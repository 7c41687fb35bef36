"""Training data: questions of the tiny world, or the conversations of a data set."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedray.data.catalogue import BENCHMARKS, OWN, TALKS
from fedray.data.overlap import Contamination, KeptWords
from fedray.data.rows import TrainingTalk
from fedray.data.source import DataSource, read
from fedray.llm.chat import Words, count_tokens
from fedray.llm.files import hash_file
from fedray.llm.model import LLM
from fedray.llm.source import Source, config_of, tokenizer_of
from fedray.reporting.report import Data
from fedray.training import dictation
from fedray.training.conversations import PHRASINGS_PER_FACT, LabelledPrompt, Role, about_two, conversations
from fedray.training.settings import FuserJob, GateJob, TrainingData
from fedray.training.worker_group import Tell
from fedray.types import FedrayError
from fedray.world.world import World, world_of

# The longest question of the tiny world, with its answer, is shorter: as the zoo's LLMs read it, and as any other may.
TINY_TOKENS, FOREIGN_TOKENS = 96, 256
NEARLY = 0.9  # of data.longest: what is as long counts as that long, and no other conversation is measured
ROLES: tuple[Role, ...] = ("sender", "receiver")
OnDone = Callable[[int, int], None]  # how many of how many


@dataclass(frozen=True, slots=True)
class Material:
    """Training data. talks: to train on; check: held out, to validate with; record: their entries in a manifest;
    source: the data set they come from, None: the tiny world."""

    talks: list[LabelledPrompt]
    check: list[LabelledPrompt]
    record: dict[str, Any]
    source: DataSource | None = None

    @property
    def data(self) -> tuple[Data, ...]:
        """The data set as a report names it."""
        return (Data(**asdict(self.source)),) if self.source else ()


def of_world(world: World, limit: int | None, seed: int) -> Material:
    """Draw questions of the world by the seed, as many as the limit."""
    talks = _some(conversations(world, "train", PHRASINGS_PER_FACT), limit, seed)
    check = _some(conversations(world, "validation"), limit, seed)
    return Material(talks, check, {"world_seed": world.seed})


def dictated(world: World, limit: int | None, seed: int) -> Material:
    """Draw texts that senders are made to say, as many as the limit; a tenth of them more to validate with."""
    count = dictation.TEXTS if limit is None else limit
    talks = dictation.of_world(world, "train", count, seed)
    return Material(
        talks, dictation.of_world(world, "validation", max(2, count // 10), seed), {"world_seed": world.seed}
    )


def for_gate(world: World, limit: int | None, pairs: bool = False) -> Material:
    """Select a question for each fact of the world, shuffled; validation is never cut short.

    pairs: questions about two entities as well, a third of all.
    """
    talks, check = conversations(world, "train"), conversations(world, "validation")
    random.Random(world.seed).shuffle(talks)
    talks = talks[:limit]
    if pairs:
        talks += about_two(world, "train", len(talks) // 2)
        check += about_two(world, "validation", len(check) // 2)
    return Material(talks, check, {"world_seed": world.seed})


def read_data_set(settings: FuserJob | GateJob, tell: Tell) -> Material:
    """Read the data set of the settings; see `of_data_set`. Raises FedrayError where documents cannot be read apart."""
    tell("reading", 0, settings.limit or 0, {})
    read = of_data_set(settings.data, settings.limit, settings.seed, lambda done, of: tell("reading", done, of, {}))
    if settings.fusion.operator == "mix" and any(talk.documents for talk in (*read.talks, *read.check)):
        raise FedrayError(
            f"{settings.data.path} has documents, and fusion=mix needs one text for sender and receiver: use "
            "fusion=concat, or leave the documents out"
        )
    return read


def of_data_set(data: TrainingData, limit: int | None, seed: int, on_done: OnDone = lambda done, of: None) -> Material:
    """Read the first conversations of the data set, without those that contain evaluation questions.

    A share is held out to validate with, drawn by the seed. Raises FedrayError: offline, another schema, nothing left.
    """
    found, source = _read(data, limit)
    overlap = Contamination(item for name in data.kept_out for item in _questions(data, name))
    kept = KeptWords(data.without)
    talks: list[LabelledPrompt] = []
    left_out = Counter[str]()
    for done, (group, talk) in enumerate(found.values(), 1):
        if overlap.gives_away(talk):
            left_out["holds an evaluation question"] += 1
        elif kept.are_read(talk):
            left_out["holds a word of data.without"] += 1
        else:
            talks.append(_labelled(group, talk))
        if done % 1000 == 0 or done == len(found):
            on_done(done, len(found))
    for reason in left_out:
        source = _without(source, reason, left_out[reason])
    if len(talks) < 2:
        raise FedrayError(f"{source.name}: {len(talks)} conversations are left to train on: raise limit")
    held_out = set(random.Random(seed).sample(range(len(talks)), max(1, round(data.held_out * len(talks)))))
    kept = [talk for i, talk in enumerate(talks) if i not in held_out]
    check = [talk for i, talk in enumerate(talks) if i in held_out]
    of = {"name": source.name, "revision": source.revision, "hash": source.hash, "against": list(data.kept_out)}
    return Material(kept, check, {"data": of}, source)


def fitting(material: Material, receiver: LLM, senders: Sequence[LLM], longest: int) -> Material:
    """Drop conversations that any LLM encodes as more tokens than `longest`, document, prompt and answer together.

    Raises FedrayError where too few are left.
    """
    readers: list[tuple[LLM, Role]] = [(receiver, "receiver"), *((llm, "sender") for llm in senders)]
    longest = min(longest, *(llm.context - 1 for llm, _ in readers))
    kept = [[talk for talk in talks if _fits(talk, readers, longest)] for talks in (material.talks, material.check)]
    dropped = len(material.talks) + len(material.check) - sum(map(len, kept))
    if not all(kept):
        raise FedrayError(f"too few conversations are of {longest} tokens or less: raise data.longest or limit")
    source = material.source and _without(material.source, f"longer than {longest} tokens", dropped)
    return replace(material, talks=kept[0], check=kept[1], source=source)


def settings_of_data(settings: FuserJob | GateJob) -> dict[str, Any]:
    """List the settings that decide what is read and in which precision, wherever it lies."""
    if settings.data.name == "tiny":
        return {"world_seed": world_of(settings.zoo.path).seed, "llm_dtype": settings.llm_dtype}
    values = {key: value for key, value in asdict(settings.data).items() if key not in ("path", "streaming")}
    values |= {"path": str(settings.data.path)} if settings.data.name == OWN.name else {}  # another file, other data
    values["without"] = settings.data.without and hash_file(settings.data.without)
    return {**{f"data.{key}": value for key, value in values.items()}, "llm_dtype": settings.llm_dtype}


def to_measure(data: TrainingData, limit: int | None) -> list[LabelledPrompt]:
    """Read conversations to know their lengths; none where there are none, or where they would be streamed twice."""
    if data.name == "tiny" or (data.streaming and data.path is None):
        return []
    return [_labelled(group, talk) for group, talk in _read(data, limit)[0].values()]


def longest_of(
    settings: FuserJob | GateJob, talks: Sequence[LabelledPrompt], receiver: Source, senders: Sequence[Source]
) -> int:
    """Bound the tokens of a conversation, document, prompt and answer together, by those that are there.

    Those of data.longest and more, which training leaves out, do not count.
    """
    if settings.data.name == "tiny":
        return TINY_TOKENS if settings.zoo.name == "tiny" else FOREIGN_TOKENS
    most = min(settings.data.longest, *(config_of(of).max_position_embeddings - 1 for of in (receiver, *senders)))
    words = {of.name: tokenizer_of(of) for of in (receiver, *senders)}
    if not talks or None in words.values():
        return most
    readers: list[tuple[Words, Role]] = [(Words.of(receiver.name, words[receiver.name]), "receiver")]
    readers.extend((Words.of(of.name, words[of.name]), "sender") for of in senders)
    return _longest(talks, readers, most)


def _longest(talks: Sequence[LabelledPrompt], readers: Sequence[tuple[Words, Role]], most: int) -> int:
    """Encode those of most bytes first, until no other can be longer, or one is nearly as long as may be."""
    found = 0
    bounds = [(max(_bytes(talk, role) for role in ROLES), talk) for talk in talks]
    for bound, talk in sorted(bounds, key=lambda pair: pair[0], reverse=True):
        if bound <= found:
            break
        if found > NEARLY * most:
            return most
        tokens = max(count_tokens(words, talk.turns(role), talk.answer) for words, role in readers)
        found = max(found, tokens) if tokens < most else found
    return found or most


def _read(data: TrainingData, limit: int | None) -> tuple[dict[str, tuple[str, TrainingTalk]], DataSource]:
    where = {name: getattr(data, name) for name in ("path", "streaming", "revision")}
    return read(TALKS[data.name], "train", **where, first=limit)


def _labelled(group: str, talk: TrainingTalk) -> LabelledPrompt:
    *before, prompt = talk.turns
    return LabelledPrompt(prompt, talk.answer, talk.group or group, tuple(before), documents=talk.documents)


def _questions(data: TrainingData, name: str) -> list[Any]:
    """Read the questions of an evaluation set: beside the training data where a copy lies there, else the hub's."""
    here = data.path if data.path is not None and (data.path / name).is_dir() else None
    try:
        found, _ = read(BENCHMARKS[name], BENCHMARKS[name].main, path=here, streaming=data.streaming)
    except FedrayError as error:
        raise FedrayError(
            f"what data.against={name} names is to be kept out of the training, and {error}; leave it out as in "
            "'data.against=[]', or put a copy into a folder of that name in data.path"
        ) from error
    return [item for _, item in found.values()]


def _fits(talk: LabelledPrompt, readers: Sequence[tuple[LLM, Role]], longest: int) -> bool:
    if all(_bytes(talk, role) < longest for role in ROLES):
        return True
    return all(count_tokens(llm, talk.turns(role), talk.answer) < longest for llm, role in readers)


def _bytes(talk: LabelledPrompt, role: Role) -> int:
    """Bound a conversation's tokens: none is less than a byte."""
    texts = (*talk.turns(role), talk.answer)
    return sum(len(text.encode()) for text in texts) + 64 * len(texts)


def _without(source: DataSource, reason: str, count: int) -> DataSource:
    left_out = dict(Counter(source.left_out) + Counter({reason: count}))
    return replace(source, rows=source.rows - count, left_out=left_out)


def _some(talks: list[LabelledPrompt], limit: int | None, seed: int) -> list[LabelledPrompt]:
    if limit is None or limit >= len(talks):
        return talks
    rows = random.Random(seed).sample(range(len(talks)), limit)
    return [talks[row] for row in sorted(rows)]
