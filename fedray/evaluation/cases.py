"""Cases: who answers a task with whose help, and in which way. The blocks of an evaluation become a list of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from fedray.errors import unknown
from fedray.evaluation.settings import Block, EvaluateSettings
from fedray.llm.catalogue import NAMES, copies, resolve, safe_name
from fedray.methods.fedattn import FedAttn
from fedray.questions.tasks import for_task
from fedray.settings.settings import ALONE, BY_MEMBER, ProtocolSettings, Settings
from fedray.types import FedrayError, Wire

PLAIN = Wire()
SETS = ("all", "singles", "prefixes", "leave_one_out", "none", "pairs")  # or names joined by +


@dataclass(frozen=True, slots=True)
class Way:
    """How a question is answered, whoever takes part. What a protocol does not read is at its default, so equal ways
    are equal."""

    protocol: str
    fusion: str = "none"
    gate: str = "none"
    rephrase: str = "none"
    t2t_gate: str = "none"
    full: bool = False
    control: str = "none"
    answer_all: bool = False
    wire: Wire = PLAIN
    fedattn: FedAttn | None = None
    gamma: str = "none"  # of specfed, as are those below
    top_k: str = "none"  # as text: 1 counts entries and 1.0 is a share, which as numbers are equal
    reconstruct: str = "none"
    temperature: float = 0.0
    measured: bool = False  # against whole distributions

    @property
    def baseline(self) -> Way:
        """Of specfed: the same without drafts, whole distributions sent."""
        return replace(self, gamma="none", top_k="1.0", reconstruct="spread", measured=False)

    @property
    def over_plain_wire(self) -> Way:
        """The same with whole caches as they are."""
        return replace(self, wire=PLAIN)

    def __str__(self) -> str:
        """A short label: c2c, t2t gated, c2c (gate open, rephrase shared), ..."""
        name = self.protocol + (" gated" if self.t2t_gate != "none" else "") + (" full" if self.full else "")
        known = {"gate": self.gate, "rephrase": self.rephrase, "control": self.control}
        said = [f"{key} {value}" for key, value in known.items() if value not in ("none", "learned")]
        if self.protocol == "c2c" and self.gate == "none":
            said.insert(0, "no gate")
        said += [str(self.fedattn)] if self.fedattn else []
        if self.protocol == "specfed":
            said += [
                "no drafts" if self.gamma == "none" else f"gamma {self.gamma}",
                f"K {self.top_k}",
                self.reconstruct,
            ]
            said += ["measured"] * self.measured + [f"T {self.temperature:g}"] * (self.temperature > 0)
        said += ["mix"] * (self.fusion == "mix") + ["both ways"] * self.answer_all
        wire = self.wire
        said += [wire.codec] * (wire.codec != "none") + [f"{wire.score} {wire.keep:.0%}"] * (wire.keep < 1)
        said += [f"{wire.layer_score} {wire.keep_layers:.0%} of layers"] * (wire.keep_layers < 1)
        return f"{name} ({', '.join(said)})" if said else name


STANDALONE = Way("standalone")


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table: a task, who answers, who helps (in this order), and how."""

    task: str
    receiver: str
    senders: tuple[str, ...]
    way: Way

    @property
    def alone(self) -> Case:
        """The same receiver with nobody's help."""
        return Case(self.task, self.receiver, (), STANDALONE)

    def settings(self, base: Settings, seed: int) -> Settings:
        """This case as a run of its own."""
        way, here = self.way, {safe_name(name) for name in (self.receiver, *self.senders)}
        fusion = base.fusion if way.fusion == "none" else way.fusion
        values: dict[str, Any] = {
            "receiver": self.receiver,
            "senders": self.senders,
            "protocol": self._protocol(base),
            "fusion": fusion,
            "fusion_order": base.fusion_order if fusion == "mix" else "parallel",
            "gate": replace(base.gate, kind=way.gate),  # pyright: ignore[reportArgumentType]
            "rephrase": way.rephrase,
            "t2t": replace(base.t2t, gate=way.t2t_gate, full=way.full),
            "control": way.control,
            "answer_all": way.answer_all,
            "vote": base.vote and way.answer_all,
            "wire": way.wire,
            "evidence": {name: text for name, text in base.evidence.items() if name in here},
            "members": {
                name: own for name, own in base.members.items() if name in here or name in BY_MEMBER["members"]
            },
            "task": replace(base.task, name=self.task),  # pyright: ignore[reportArgumentType]
            "generation": replace(base.generation, seed=seed, **self._temperature()),
            "seed": seed,
        }
        return for_task(replace(base, **values))

    def _temperature(self) -> dict[str, Any]:
        return {"temperature": self.way.temperature} if self.way.protocol == "specfed" else {}

    def _protocol(self, base: Settings) -> ProtocolSettings:
        way = self.way
        if way.protocol != "specfed":
            return ProtocolSettings(way.protocol, **asdict(way.fedattn) if way.fedattn else {})  # pyright: ignore
        return replace(
            base.protocol,
            name="specfed",
            draft="none" if way.gamma == "none" else self.receiver,
            gamma=base.protocol.gamma if way.gamma == "none" else "auto" if way.gamma == "auto" else int(way.gamma),
            top_k=int(way.top_k) if way.top_k.lstrip("-").isdigit() else float(way.top_k),
            reconstruct=way.reconstruct,  # pyright: ignore[reportArgumentType]
            measure=way.measured,
        )


def cases(settings: EvaluateSettings, order: Sequence[str]) -> list[Case]:
    """All cases of the blocks, each once; what a case is compared with, its receiver alone, stands in front.

    order: the settings' senders, those that gain most first. Raises FedrayError where a block cannot be meant.
    """
    found: dict[Case, None] = {}
    for block in settings.blocks.values():
        found |= dict.fromkeys(_of(block, settings, order))
    return list(dict.fromkeys(case.alone for case in found) | found)


def _of(block: Block, settings: EvaluateSettings, order: Sequence[str]) -> Iterator[Case]:
    members = (settings.receiver, *order)
    for receiver in _receivers(block, settings, members):
        others = [name for name in members if name != receiver]
        for senders in _sets(block.senders, receiver, others, settings.zoo.name):
            for task, way in product(block.task or (settings.task.name,), _ways(block, settings, bool(senders))):
                yield Case(task, receiver, _helpers(way, receiver, senders), way)


def _helpers(way: Way, receiver: str, senders: tuple[str, ...]) -> tuple[str, ...]:
    if way.fedattn:
        return copies(receiver, way.fedattn.participants)[1:]
    return () if way.protocol in ALONE else senders


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
        senders = tuple(resolve(word, "sender", zoo) for word in words)
    except FedrayError:
        if len(words) == 1:  # it may have been meant as a set
            raise unknown("senders", named, (*SETS, *NAMES)) from None
        raise
    if receiver in senders:
        raise FedrayError(f"{receiver} is the receiver and among the senders: leave it out")
    if len(set(senders)) < len(senders):
        raise FedrayError(f"a sender is named more than once in {named}: name each once")
    return senders


def _ways(block: Block, settings: EvaluateSettings, helped: bool) -> Iterator[Way]:
    """Every combination of a block's lists that makes a difference."""
    given = settings.protocol.name
    protocols = block.protocol or ((given,) if helped or given in ALONE else (STANDALONE.protocol,))
    gates = block.gate or (settings.gate.kind,)
    fusions = block.fusion or (settings.fusion,)
    rephrases = block.rephrase or (settings.rephrase,)
    t2t_gates = block.t2t_gate or (settings.t2t.gate,)
    fulls = block.full or (settings.t2t.full,)
    controls = block.control or (settings.control,)
    both = block.answer_all or (settings.answer_all,)
    for protocol in protocols:
        if protocol in ALONE:
            yield Way(protocol)
            continue
        if protocol == "fedattn":
            for how, codec in product(_shared(block, settings), block.wire or (settings.wire.codec,)):
                yield Way(protocol, wire=Wire(codec), fedattn=how)  # pyright: ignore[reportArgumentType]
            continue
        if not helped:
            raise FedrayError(f"protocol={protocol} needs a sender: choose other senders than none")
        if protocol == "specfed":
            yield from _speculative(block, settings)
            continue
        fuses, speaks = protocol == "c2c", protocol == "t2t"
        for t2t_gate, full in product(t2t_gates if speaks else ("none",), fulls if speaks else (False,)):
            weighs = fuses or protocol == "route" or t2t_gate == "same"
            for gate, fusion, control, answer_all, wire in product(
                gates if weighs else ("none",),
                fusions if fuses else ("none",),
                controls if fuses else ("none",),
                both if fuses else (False,),
                _wires(block, settings) if fuses else (PLAIN,),
            ):
                for rephrase in rephrases:
                    yield Way(protocol, fusion, gate, rephrase, t2t_gate, full, control, answer_all, wire)


def _shared(block: Block, settings: EvaluateSettings) -> Iterator[FedAttn]:
    """Every way of sharing a prompt; where all rows are sent no score matters."""
    base = settings.protocol.fedattn
    for count, every, offset, placement, segments, tokens, exchange, score in product(
        block.participants or (base.participants,),
        block.sync_every or (base.sync_every,),
        block.offset or (base.offset,),
        block.placement or (base.placement,),
        block.segments or (base.segments,),
        block.tokens or (base.tokens,),
        block.exchange or (base.exchange,),
        block.score or (base.score,),
    ):
        yield replace(
            base,
            participants=count,
            sync_every=every,
            offset=offset,
            placement=placement,  # pyright: ignore[reportArgumentType]
            segments=segments,  # pyright: ignore[reportArgumentType]
            tokens=tokens,
            exchange=exchange,
            score=score if exchange < 1 else base.score,  # pyright: ignore[reportArgumentType]
        )


def _speculative(block: Block, settings: EvaluateSettings) -> Iterator[Way]:
    """Every combination of specfed's lists; where all entries travel, their reconstruction makes no difference."""
    own = settings.protocol
    gammas = block.gamma or ("none" if own.draft == "none" else own.gamma,)
    gate = settings.gate.kind if own.weigh == "gate" else "none"
    found = product(
        gammas,
        block.top_k or (own.top_k,),
        block.reconstruct or (own.reconstruct,),
        block.temperature or (settings.generation.temperature,),
        block.measure or (own.measure,),
    )
    ways = (
        Way("specfed", gate=gate, gamma=str(gamma), top_k=str(top_k), reconstruct=how, temperature=t, measured=m)
        for gamma, top_k, how, t, m in found
    )
    whole = (replace(way, reconstruct="spread") if way.top_k == "1.0" else way for way in ways)
    yield from dict.fromkeys(whole)


def _wires(block: Block, settings: EvaluateSettings) -> Sequence[Wire]:
    """Every wire once; where all tokens, or all layers, are kept no score of them matters."""
    own = settings.wire
    combined = product(
        block.wire or (own.codec,),
        block.keep or (own.keep,),
        block.score or (own.score,),
        block.keep_layers or (own.keep_layers,),
        block.layer_score or (own.layer_score,),
    )
    wires = (
        Wire(
            codec,  # pyright: ignore[reportArgumentType]
            keep,
            score if keep < 1 else PLAIN.score,  # pyright: ignore[reportArgumentType]
            layers,
            by if layers < 1 else PLAIN.layer_score,  # pyright: ignore[reportArgumentType]
        )
        for codec, keep, score, layers, by in combined
    )
    return list(dict.fromkeys(wires))


def neutral(settings: EvaluateSettings) -> Settings:
    """Settings under which a federation opens with everybody any case needs, and nobody else; no fuser or gate yet."""
    needed = [(settings.receiver, *settings.senders)] if settings.ordered else []
    needed += [(case.receiver, *case.senders) for case in cases(settings, settings.senders)]
    names = dict.fromkeys(name for of_case in needed for name in of_case)
    receiver = settings.receiver if settings.receiver in names else next(iter(names))
    senders = tuple(name for name in names if name != receiver)
    return replace(
        settings,
        receiver=receiver,
        senders=senders,
        protocol=ProtocolSettings("t2t" if senders else "standalone"),
        t2t=replace(settings.t2t, gate="none"),
        control="none",
        rephrase="none",
        answer_all=False,
        vote=False,
    )
