"""How members answer together: one frozen value, from the command line to the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from fedray.errors import FedrayError
from fedray.methods.parts import CODECS, FUSERS, OPERATORS
from fedray.schema import attributes, within

Compile = Literal["default", "reduce-overhead", "max-autotune"]  # modes of torch.compile
if TYPE_CHECKING:
    Codec = Kind = Operator = str
else:
    Codec, Kind, Operator = Literal[tuple(CODECS)], Literal[tuple(FUSERS)], Literal[OPERATORS]


@dataclass(frozen=True, slots=True)
class FuserChoice:
    """What senders' caches go through.

    max_tokens, ask: of a draft, where the fuser reads one: what the sender is asked for it, as in `T2T`.
    """

    kind: Kind = "mlp"
    max_tokens: int = within(32, 1, 4096)
    ask: Literal["answer", "hint"] = "answer"

    def canonical(self) -> FuserChoice:
        """Where nothing is drafted no length of a draft matters."""
        return self if FUSERS[self.kind].drafts else FuserChoice(self.kind)

    def described(self) -> list[str]:
        plain = FuserChoice(self.kind)
        found = [self.kind] * (plain != FuserChoice()) + ["hints"] * (self.ask != plain.ask)
        return found + [f"{self.max_tokens} tokens"] * (self.max_tokens != plain.max_tokens)


@dataclass(frozen=True, slots=True)
class Fusion:
    """Where a message stands, and who reads it.

    operator: "concat" (beside the receiver's own cache) or "mix" (added to it); read: "last" (the last prompt token, as
    published) or "prompt" (all of the prompt); slots: "front" (before the prompt) or "inline" (where notes stand).
    """

    operator: Operator = "concat"
    read: Literal["last", "prompt"] = "last"
    slots: Literal["front", "inline"] = "front"

    def check(self, fuser: str) -> None:
        """Raise FedrayError where a fuser does not go with it, or its parts with each other."""
        operators = FUSERS[fuser].operators
        if self.operator not in operators:
            raise FedrayError(
                f"fusion={self.operator} does not go with fuser={fuser}: leave fusion out, or choose "
                f"fusion={operators[0]}"
            )
        if self.operator == "mix" and self.read == "prompt":
            raise FedrayError(
                "fusion.read=prompt does not go with fusion=mix, which changes what the prompt has become: leave it "
                "out, or choose fusion=concat"
            )
        if self.slots == "inline" and self.read == "last":
            raise FedrayError(
                "fusion.slots=inline stands inside the prompt, which must be read over it: add fusion.read=prompt"
            )

    def described(self, fuser: str) -> list[str]:
        """What a label says of it beside its fuser."""
        implied = replace(Fusion(), **FUSERS[fuser].fusion)
        found = {"read": (self.read, implied.read), "slots": (self.slots, implied.slots)}
        return ["mix"] * (self.operator == "mix") + [
            f"{key} {own}" for key, (own, usual) in found.items() if own != usual
        ]


def fuser_kind(values: Mapping[str, Any]) -> Any:
    """Read which kind of fuser values as a schema reads them choose, which may be none that there is."""
    chosen = values.get("fuser")
    kind = chosen.get("kind") if isinstance(chosen, Mapping) else getattr(chosen, "kind", chosen)
    return FuserChoice().kind if kind is None else kind


def with_fusion(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what the fuser implies of `fusion`, in values as a schema reads them; null is left out."""
    given, kind = values.get("fusion"), fuser_kind(values)
    own = given if isinstance(given, Mapping) else {} if given is None else {"operator": given}
    if isinstance(given, Fusion):
        return dict(values)
    implied = FUSERS[kind].implied if kind in FUSERS else {}  # a kind that there is not is told by the schema
    return {**values, "fusion": {**implied, **{key: value for key, value in own.items() if value is not None}}}


@dataclass(frozen=True, slots=True)
class Wire:
    """How caches travel.

    keep: share of every row's tokens that is sent, those with the best score; keep_layers: share of the layers that a
    fuser reads; where it would read another it changes nothing, as if its gate were closed there.
    """

    codec: Codec = "none"
    keep: float = within(1.0, 0.01, 1)
    score: Literal["last", "norm", "similar", "random"] = "last"
    keep_layers: float = within(1.0, 0.001, 1)
    layer_score: Literal["spread", "deep", "middle", "shallow", "random"] = "spread"

    def check(self, fuser: str) -> None:
        """Raise FedrayError where a part of a cache is no use to a fuser."""
        if FUSERS[fuser].drafts and (self.keep < 1 or self.keep_layers < 1):
            raise FedrayError(
                f"wire.keep and wire.keep_layers leave out parts of a prompt's cache, and fuser={fuser} reads a draft "
                "whole: leave them out, or shorten it with fuser.max_tokens"
            )

    def canonical(self) -> Wire:
        """Where all tokens, or all layers, are kept no score of them matters."""
        score = self.score if self.keep < 1 else Wire().score
        return replace(self, score=score, layer_score=self.layer_score if self.keep_layers < 1 else Wire().layer_score)

    def described(self) -> list[str]:
        found = [self.codec] * (self.codec != "none") + [f"{self.score} {self.keep:.0%}"] * (self.keep < 1)
        return found + [f"{self.layer_score} {self.keep_layers:.0%} of layers"] * (self.keep_layers < 1)


@dataclass(frozen=True, slots=True)
class Gate:
    """Which senders count, question by question. route: eager (all senders prefill at once) or lazy (those with weight
    only); threshold: weights below it count as 0; 0.5 is where own and sender weigh the same."""

    kind: Literal["learned", "open", "random", "none", "oracle"] = "learned"
    route: Literal["eager", "lazy"] = "eager"
    threshold: float = within(0.5, 0, 1)

    def described(self) -> list[str]:
        found = [f"gate {self.kind}"] * (self.kind not in ("none", "learned")) + [self.route] * (self.route == "lazy")
        return found + [f"threshold {self.threshold:g}"] * (self.threshold != Gate().threshold)


NO_GATE = Gate("none")


@dataclass(frozen=True, slots=True)
class T2T:
    """How members exchange text.

    ask: "answer" (senders answer the question) or "hint" (they are asked for a hint); gate: "none" (all hints are read,
    as published) or "same" (those the gate lets in); full: every sender uses up max_tokens.
    """

    ask: Literal["answer", "hint"] = "answer"
    max_tokens: int = within(32, 1, 4096)
    gate: Literal["none", "same"] = "none"
    full: bool = False

    def described(self) -> list[str]:
        return ["hints"] * (self.ask == "hint") + [f"{self.max_tokens} tokens"] * (self.max_tokens != T2T().max_tokens)


@dataclass(frozen=True)
class ProtocolSettings:
    """What one protocol alone is told, and its traits, which every room may ask.

    crosses: what goes from member to member (FedRefine, arXiv 2603.28772, Appendix A), None is nothing. fuses: senders'
    caches go through fusers. speaks: senders answer in text. talks: members keep what they have read for a
    conversation's next turn. needs_senders: whether anybody is asked but the receiver. copies: the senders are copies
    of the receiver, which share one prompt. receiver, senders: who takes part by default, where it is not everybody.
    reads: the parts of a Method that make a difference to its answers; where a gate weighs, it as well, and the `fuser`
    and `fusion` that it was trained for.
    """

    name: str = field(default="", init=False)
    crosses: ClassVar[Literal["cache", "token"] | None] = None
    fuses: ClassVar[bool] = False
    speaks: ClassVar[bool] = False
    talks: ClassVar[bool] = False
    needs_senders: ClassVar[bool] = True
    copies: ClassVar[bool] = False
    receiver: ClassVar[str | None] = None
    senders: ClassVar[tuple[str, ...] | None] = None
    reads: ClassVar[tuple[str, ...]] = ()

    def weighs(self, method: Method) -> bool:
        """Tell whether a gate weighs the senders."""
        return False

    def draws(self) -> bool:
        """Tell whether a row's answer depends on the rows beside it: it is sampled, or they set the pace."""
        return False

    def asks_again(self, method: Method) -> bool:
        """Tell whether senders can be asked another row's question in place of their own."""
        fixed = method.answer_all or method.rephrase != "none" or method.control == "mismatched"
        return (self.fuses or self.speaks) and not fixed

    def repairs(self, method: Method) -> bool:
        """Tell whether messages that were sent can be paired with other rows (`Request.donors`)."""
        return False

    def canonical(self, method: Method) -> Method:
        """Put what makes no difference at its default, so that methods that answer alike are equal."""
        reads = (*self.reads, "gate", "fuser", "fusion") if self.weighs(method) else self.reads
        wire = method.wire.canonical() if self.crosses == "cache" else Wire()
        found = Method(**{"protocol": self, "gate": NO_GATE, "wire": wire, **attributes(method, *reads)})
        return found if self.fuses else replace(found, fuser=FuserChoice(found.fuser.kind))  # nothing is drafted

    @property
    def baseline(self) -> ProtocolSettings | None:
        """What others of this protocol are compared with; None where they are compared with each other."""
        return None

    def described(self) -> list[str]:
        """What a label says of these settings."""
        return []


@dataclass(frozen=True)
class Standalone(ProtocolSettings):
    """The receiver alone."""

    name: str = field(default="standalone", init=False)
    talks = True
    needs_senders = False


@dataclass(frozen=True)
class SelfRefine(ProtocolSettings):
    """The receiver revises its own answer."""

    name: str = field(default="self_refine", init=False)
    rounds: int = within(3, 1, 100)  # of revision, at most
    needs_senders = False

    def described(self) -> list[str]:
        return [f"{self.rounds} rounds"] * (self.rounds != SelfRefine.rounds)


@dataclass(frozen=True)
class Ensemble(ProtocolSettings):
    """The mean of all members' choice probabilities."""

    name: str = field(default="ensemble", init=False)
    crosses = "token"
    reads = ("rephrase", "on_missing")


@dataclass(frozen=True)
class Route(ProtocolSettings):
    """The gate picks one member, whose own answer is returned."""

    name: str = field(default="route", init=False)
    crosses = "token"
    reads = ("rephrase", "on_missing")

    def weighs(self, method: Method) -> bool:
        return True


@dataclass(frozen=True)
class TextToText(ProtocolSettings):
    """Senders answer in text, which the receiver reads as notes; `T2T` says how."""

    name: str = field(default="t2t", init=False)
    crosses = "token"
    speaks = True
    reads = ("rephrase", "t2t", "on_missing")

    def weighs(self, method: Method) -> bool:
        return method.t2t.gate == "same"

    def repairs(self, method: Method) -> bool:
        return True


@dataclass(frozen=True)
class CacheToCache(ProtocolSettings):
    """Senders send their caches, the receiver fuses them and answers."""

    name: str = field(default="c2c", init=False)
    crosses = "cache"
    fuses = True
    talks = True
    reads = ("fusion_order", "compile", "control", "rephrase", "answer_all", "on_missing")

    def weighs(self, method: Method) -> bool:
        return True

    def repairs(self, method: Method) -> bool:
        return method.fusion.operator != "mix" and not method.answer_all  # what is mixed is aligned with the row's text

    def canonical(self, method: Method) -> Method:
        order = method.fusion_order if method.fusion.operator == "mix" else "parallel"
        heard = replace(method.t2t, gate="none", full=False)  # of senders without a fuser, which give a hint
        found = super().canonical(method)
        return replace(
            found,
            fuser=method.fuser.canonical(),
            fusion_order=order,
            t2t=heard,
            vote=method.vote and method.answer_all,
        )


DEFAULT = CacheToCache()
P = TypeVar("P", bound=ProtocolSettings)


@dataclass(frozen=True)
class Method:
    """How a question is answered, whoever takes part."""

    protocol: ProtocolSettings = DEFAULT
    fuser: FuserChoice = FuserChoice()
    fusion: Fusion = Fusion()
    fusion_order: Literal["parallel", "sequential"] = "parallel"  # how several senders mix
    compile: Compile | None = None  # fusers run by torch.compile in this mode
    gate: Gate = Gate()
    control: Literal["none", "mismatched", "noise", "constant", "zero", "self", "soft"] = "none"
    rephrase: Literal["none", "shared", "distinct"] = "none"  # what senders read instead of the original
    t2t: T2T = T2T()
    answer_all: bool = False  # c2c both ways: every member answers
    vote: bool = False  # answer_all: the majority's answer instead of the receiver's
    on_missing: Literal["alone", "text", "error"] = "alone"
    wire: Wire = Wire()

    @property
    def sends_slots(self) -> bool:
        """Whether messages become slots of their own, which soft prompts can stand in for."""
        return self.protocol.fuses and self.fusion.operator != "mix"

    @property
    def weighs(self) -> bool:
        """Whether a gate weighs the senders."""
        return self.protocol.weighs(self)

    @property
    def draws(self) -> bool:
        """Whether a row's answer depends on the rows beside it, greedy as it may be."""
        return self.protocol.draws() or (self.weighs and self.gate.kind == "random")

    def of(self, kind: type[P]) -> P:
        """What its protocol is told, of the kind that the protocol knows it is."""
        assert isinstance(self.protocol, kind), f"{self.protocol.name} is run with the settings of {kind.__name__}"
        return self.protocol

    def parts(self) -> dict[str, Any]:
        """Name every part of it."""
        return attributes(self, *(part.name for part in fields(Method)))

    @property
    def published(self) -> bool:
        """Whether it is as published but for its protocol, its gate and what senders read."""
        plain = self.wire == Wire() and not self.answer_all and self.control == "none"
        return plain and self.t2t.gate == "none" and not self.t2t.full

    def flat(self) -> dict[str, Any]:
        """Name every setting as on the command line, for MLflow: protocol, protocol.rounds, gate, gate.route, ..."""
        found: dict[str, Any] = {}
        for name, part in self.parts().items():
            first, *rest = fields(part) if is_dataclass(part) else (None,)
            found[name] = part if first is None else getattr(part, first.name)
            found |= {f"{name}.{of.name}": getattr(part, of.name) for of in rest if of is not None}
        return found

    def canonical(self) -> Method:
        """The same answers, with what its protocol does not read at its default."""
        return self.protocol.canonical(self)

    def label(self, *more: str) -> str:
        """A short label: c2c, t2t gated, c2c (gate open, rephrase shared), ..."""
        name = self.protocol.name + " gated" * (self.t2t.gate != "none") + " full" * self.t2t.full
        known = {"rephrase": self.rephrase, "control": self.control}
        found = ["no gate"] * (self.protocol.fuses and self.gate.kind == "none") + self.gate.described()
        found += [f"{key} {value}" for key, value in known.items() if value != "none"]
        found += self.t2t.described() if self.protocol.speaks else []
        found += [*self.protocol.described(), *more]
        found += [*self.fuser.described(), *self.fusion.described(self.fuser.kind)] if self.weighs else []
        found += ["both ways"] * self.answer_all + self.wire.described()
        return f"{name} ({', '.join(found)})" if found else name


C2C = Method()  # as published: caches through the gate
