"""What jobs/evaluate.py can be told: a federation's settings, and the ways of answering that are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fedray.schema import Schema, within
from fedray.settings.settings import BY_MEMBER, Settings, read


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
    seeds: tuple[int, ...] = within((0,), 0, 2**32 - 1)  # each draws phrasings, choices and samples anew
    latency_requests: int = within(50, 0)  # questions per case that are asked once more, one at a time, for seconds
    order: Literal["validation", "given"] = "validation"  # of senders: by their gain there, or as they are named
    order_limit: int = within(300, 1)  # validation questions that decide it

    @property
    def ordered(self) -> bool:
        """Whether validation questions decide an order."""
        return self.order == "validation" and any(block.senders == "prefixes" for block in self.blocks.values())


def build_evaluation(values: Mapping[str, Any]) -> EvaluateSettings:
    """Settings from nested values, as `fedray.settings.settings.read` makes them; seeds default to (seed,).

    Without blocks, all senders help once, as the other settings say. Raises FedrayError.
    """
    given = {key: value for key, value in values.items() if (key, value) not in (("seeds", None), ("blocks", None))}
    blocks = given.get("blocks", {})
    if isinstance(blocks, Mapping):
        blocks = {str(name): block for name, block in blocks.items() if block is not None} or {"all": Block()}
    schema = Schema(EvaluateSettings, keys={**BY_MEMBER, "blocks": tuple(blocks) if isinstance(blocks, dict) else ()})
    settings = read(schema, {**given, "blocks": blocks})
    return settings if "seeds" in given else replace(settings, seeds=(settings.seed,))
