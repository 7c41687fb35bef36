"""Cases: who answers a task with whose help, and by which method. The blocks of an evaluation become a list of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from typing import Any

from fedray.errors import unknown
from fedray.evaluation.settings import Block, EvaluateSettings
from fedray.llm.catalogue import NAMES, is_copy, resolve, safe_name
from fedray.methods.method import Method, TextToText, with_fusion
from fedray.protocols import ALONE, METHOD, PROTOCOLS, protocol_of
from fedray.questions.tasks import for_task
from fedray.schema import attributes
from fedray.settings.settings import BY_MEMBER, SCHEMA, Settings
from fedray.types import FedrayError

SETS = ("all", "singles", "prefixes", "leave_one_out", "none", "pairs")  # or names joined by +


@dataclass(frozen=True)
class Case:
    """One row of the table: a task, who answers, who helps (in this order), and how, in its canonical form.

    temperature: of the answers, where an axis says it; None is as the settings say.
    """

    task: str
    receiver: str
    senders: tuple[str, ...]
    method: Method
    temperature: float | None = None
    way: str = field(init=False)  # a label; it tells a top_k of 1 from 1.0, which are equal

    def __post_init__(self) -> None:
        object.__setattr__(self, "way", self.method.label(*([f"T {self.temperature:g}"] if self.temperature else [])))

    @property
    def alone(self) -> Case:
        """The same receiver with nobody's help."""
        return Case(self.task, self.receiver, (), ALONE)

    @property
    def with_copies(self) -> tuple[str, ...]:
        """The senders, where some are copies of another member."""
        return self.senders if any(map(is_copy, self.senders)) else ()

    @property
    def is_alone(self) -> bool:
        return self == self.alone

    def settings(self, base: Settings, seed: int) -> Settings:
        """This case as a run of its own."""
        here = {safe_name(name) for name in (self.receiver, *self.senders)}
        temperature = base.generation.temperature if self.temperature is None else self.temperature
        values: dict[str, Any] = self.method.parts() | {
            "receiver": self.receiver,
            "senders": self.senders,
            "evidence": {name: text for name, text in base.evidence.items() if name in here},
            "members": {n: own for n, own in base.members.items() if n in here or n in BY_MEMBER["members"]},
            "task": base.task.of(self.task),
            "generation": replace(base.generation, seed=seed, temperature=temperature),
            "seed": seed,
        }
        return for_task(replace(base, **values))


def cases(settings: EvaluateSettings, order: Sequence[str]) -> list[Case]:
    """All cases of the blocks, each once; what a case is compared with, its receiver alone, stands in front.

    order: the settings' senders, those that gain most first. Raises FedrayError where a block cannot be meant.
    """
    found: dict[Case, None] = {}
    for block in settings.blocks.values():
        found |= dict.fromkeys(_of(block, settings, order))
    return list(dict.fromkeys(case.alone for case in found) | found)


def _of(block: Block, settings: EvaluateSettings, order: Sequence[str]) -> Iterator[Case]:
    members, zoo = (settings.receiver, *order), settings.zoo.name
    for receiver in _receivers(block, settings, members):
        others = [name for name in members if name != receiver]
        for senders in _sets(block.senders, receiver, others, zoo):
            for method, task, temperature in _ways(block, settings, bool(senders)):
                helpers = senders if method.protocol.needs_senders else ()
                if method.protocol.copies:
                    helpers = protocol_of(method).roles(method.protocol, receiver, None, zoo)[1] or ()
                elif method.protocol.needs_senders and not helpers:
                    raise FedrayError(f"protocol={method.protocol.name} needs a sender: choose other senders than none")
                yield Case(task, receiver, helpers, method, temperature)


def _receivers(block: Block, settings: EvaluateSettings, members: Sequence[str]) -> Sequence[str]:
    if block.receivers:
        return [resolve(name, "receiver", settings.zoo.name) for name in block.receivers]
    return members if block.senders == "pairs" else [settings.receiver]


def _sets(named: str, receiver: str, others: Sequence[str], zoo: str) -> list[tuple[str, ...]]:
    """The sets of senders that a word stands for."""
    if named == "none":
        return [()]
    if named not in SETS:
        return [_names(named, receiver, zoo)]
    if not others:
        raise FedrayError(f"senders={named} finds nobody: name some, as in 'senders=[llama-1b]'")
    match named:
        case "singles" | "pairs":
            return [(name,) for name in others]
        case "prefixes":
            return [tuple(others[:count]) for count in range(1, len(others) + 1)]
        case "leave_one_out":
            if len(others) == 1:
                raise FedrayError("senders=leave_one_out needs two senders or more: name another, or choose all")
            return [tuple(name for name in others if name != out) for out in reversed(others)]
        case _:
            return [tuple(others)]


def _names(named: str, receiver: str, zoo: str) -> tuple[str, ...]:
    words = [word.strip() for word in named.split("+")]
    try:
        senders = tuple(resolve(word, "sender", zoo, copied=True) for word in words)
    except FedrayError:
        if len(words) == 1:  # it may have been meant as a set
            raise unknown("senders", named, (*SETS, *NAMES)) from None
        raise
    if receiver in senders:
        raise FedrayError(f"{receiver} is the receiver and among the senders: leave it out")
    if len(set(senders)) < len(senders):
        raise FedrayError(f"a sender is named more than once in {named}: name each once")
    return senders


def _ways(block: Block, settings: EvaluateSettings, helped: bool) -> Iterator[tuple[Method, str, float | None]]:
    """Every combination of a block's axes: its method, task and temperature. Raises FedrayError."""
    axes = dict(block.axes)
    given = settings.protocol if helped or not settings.protocol.needs_senders else ALONE.protocol
    protocols = axes.pop("protocol.name", (given.name,))
    known = {name: {of.name for of in fields(PROTOCOLS[name].settings)} for name in protocols if name in PROTOCOLS}
    for axis in axes:
        head, _, key = axis.partition(".")
        if head == "protocol" and not any(key in own for own in known.values()):
            among = ", ".join(protocols)
            raise FedrayError(f"{axis} is a setting of none of its protocols ({among}): add one that has it")
    for protocol, *values in product(protocols, *axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        base = settings.protocol if protocol == settings.protocol.name else protocol
        how = METHOD.read({**settings.parts(), "protocol": base})
        task, temperature = chosen.pop("task.name", settings.task.name), chosen.pop("generation.temperature", None)
        SCHEMA.read({"task": task, "generation": {} if temperature is None else {"temperature": temperature}})
        parts = how.parts()
        for axis, value in chosen.items():
            head, _, key = axis.partition(".")
            if not key:
                parts[head] = value
            elif key in _values(parts[head]):
                parts[head] = {**_values(parts[head]), key: value}
        if "fuser.kind" in chosen and "fusion.operator" not in chosen:  # another fuser, and what it implies
            own = {key.removeprefix("fusion."): value for key, value in chosen.items() if key.startswith("fusion.")}
            parts = with_fusion({**parts, "fusion": own})
        yield METHOD.read(parts).canonical(), task, temperature


def _values(part: Any) -> Mapping[str, Any]:
    """The values of a part of a method."""
    return part if isinstance(part, Mapping) else attributes(part, *(of.name for of in fields(part)))


def neutral(settings: EvaluateSettings) -> Settings:
    """Settings under which a federation opens with everybody any case needs, and nobody else; no fuser or gate yet."""
    needed = [(settings.receiver, *settings.senders)] if settings.ordered else []
    needed += [(case.receiver, *case.senders) for case in cases(settings, settings.senders)]
    names = dict.fromkeys(name for of_case in needed for name in of_case)
    receiver = settings.receiver if settings.receiver in names else next(iter(names))
    senders = tuple(name for name in names if name != receiver)
    method = Method(TextToText() if senders else ALONE.protocol, on_missing=settings.on_missing)
    return replace(settings, receiver=receiver, senders=senders, **method.parts())
