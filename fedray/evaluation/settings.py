"""What jobs/evaluate.py can be told: a federation's settings, and the ways of answering that are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fedray.checks import check, check_range
from fedray.data.catalogue import BENCHMARKS
from fedray.evaluation.cases import cases
from fedray.schema import Schema
from fedray.settings import BY_MEMBER, ProtocolSettings, Settings, read
from fedray.types import FedrayError


@dataclass(frozen=True, slots=True)
class Block:
    """Cases of one kind: every combination of the lists is one. An empty list is what the settings say.

    senders: who helps. "all", or "singles" (each one), "prefixes" (the first, the first two, ... in order of their
    gain), "leave_one_out" (all but each one), "none" (the receiver alone), "pairs" (every member to every other one),
    or names as in qwen2.5-0.5b+llama-1b. receivers: who answers; a receiver's senders are all other members.
    """

    senders: str = "all"
    receivers: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    protocol: tuple[str, ...] = ()
    fusion: tuple[str, ...] = ()
    gate: tuple[str, ...] = ()
    rephrase: tuple[str, ...] = ()
    t2t_gate: tuple[str, ...] = ()
    full: tuple[bool, ...] = ()  # t2t.full
    control: tuple[str, ...] = ()
    answer_all: tuple[bool, ...] = ()
    wire: tuple[str, ...] = ()  # codecs
    keep: tuple[float, ...] = ()  # wire.keep
    score: tuple[str, ...] = ()  # wire.score, and protocol.score in fedattn
    keep_layers: tuple[float, ...] = ()  # wire.keep_layers
    layer_score: tuple[str, ...] = ()  # wire.layer_score
    participants: tuple[int, ...] = ()  # of fedattn, as are those below: its senders are copies of the receiver
    sync_every: tuple[int, ...] = ()
    offset: tuple[int, ...] = ()
    placement: tuple[str, ...] = ()
    segments: tuple[str, ...] = ()
    tokens: tuple[float, ...] = ()
    exchange: tuple[float, ...] = ()
    gamma: tuple[int | Literal["auto", "none"], ...] = ()  # of specfed; none: protocol.draft=none
    top_k: tuple[int | float, ...] = ()
    reconstruct: tuple[Literal["renorm", "spread"], ...] = ()
    temperature: tuple[float, ...] = ()  # of specfed's answers
    measure: tuple[bool, ...] = ()  # protocol.measure


@dataclass(frozen=True, slots=True)
class EvaluateSettings(Settings):
    """One evaluation: a federation's settings are what its blocks start from."""

    blocks: Mapping[str, Block] = field(default_factory=lambda: {"all": Block()})
    seeds: tuple[int, ...] = (0,)  # each draws phrasings, choices and samples anew
    latency_requests: int = 50  # questions per case that are asked once more, one at a time, to measure seconds
    order: Literal["validation", "given"] = "validation"  # of senders: by their gain there, or as they are named
    order_limit: int = 300  # validation questions that decide it

    @property
    def ordered(self) -> bool:
        """Whether validation questions decide an order."""
        return self.order == "validation" and any(block.senders == "prefixes" for block in self.blocks.values())

    @property
    def neutral(self) -> Settings:
        """Settings under which a federation opens with everybody any case needs, and nobody else; no fuser or gate
        yet."""
        needed = [(self.receiver, *self.senders)] if self.ordered else []
        needed += [(case.receiver, *case.senders) for case in cases(self, self.senders)]
        names = dict.fromkeys(name for of_case in needed for name in of_case)
        receiver = self.receiver if self.receiver in names else next(iter(names))
        senders = tuple(name for name in names if name != receiver)
        return replace(
            self,
            receiver=receiver,
            senders=senders,
            protocol=ProtocolSettings("t2t" if senders else "standalone"),
            t2t=replace(self.t2t, gate="none"),
            control="none",
            rephrase="none",
            answer_all=False,
            vote=False,
        )


def build_evaluation(values: Mapping[str, Any]) -> EvaluateSettings:
    """Settings from nested values, as `fedray.settings.read` makes them; seeds default to (seed,).

    Without blocks, all senders help once, as the other settings say. Raises FedrayError.
    """
    given = {key: value for key, value in values.items() if (key, value) not in (("seeds", None), ("blocks", None))}
    blocks = given.get("blocks", {})
    if isinstance(blocks, Mapping):
        blocks = {str(name): block for name, block in blocks.items() if block is not None} or {"all": Block()}
    schema = Schema(EvaluateSettings, keys={**BY_MEMBER, "blocks": tuple(blocks) if isinstance(blocks, dict) else ()})
    settings = read(schema, {**given, "blocks": blocks})
    return settings if "seeds" in given else replace(settings, seeds=(settings.seed,))


def check_evaluation(settings: EvaluateSettings) -> None:
    """Refuse what cannot be meant, case by case, before torch or Ray is imported. Raises FedrayError."""
    for name, block in settings.blocks.items():
        try:
            for case in cases(replace(settings, blocks={name: block}), settings.senders):
                check(case.settings(settings, settings.seed))
        except FedrayError as error:
            raise FedrayError(f"blocks.{name}: {error}") from error
    check(settings.neutral)
    if settings.plan:
        raise FedrayError("plan=true is for jobs/federate.py, which says what a federation takes: leave it out here")
    if settings.prompt is not None:
        raise FedrayError("an evaluation asks questions whose answers are known: leave prompt out")
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds):
        raise FedrayError(f"seeds must be different numbers, at least one, got {list(settings.seeds)}")
    for seed in settings.seeds:
        check_range("seeds", seed, 0, 2**32 - 1)
    check_range("latency_requests", settings.latency_requests, 0)
    check_range("order_limit", settings.order_limit, 1)
    unsplit = settings.task.name in BENCHMARKS and "validation" not in BENCHMARKS[settings.task.name].splits
    if settings.ordered and (settings.questions is not None or unsplit):
        what = settings.task.name if settings.questions is None else "a file of questions"
        raise FedrayError(f"{what} has no validation split to order the senders by: add order=given")
