"""What jobs/evaluate.py can be told: a federation's settings, and the ways of answering that are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal

from fedray.errors import FedrayError, nearest
from fedray.protocols import KINDS, METHOD
from fedray.schema import Schema, within
from fedray.settings.settings import BY_MEMBER, SCHEMA, Settings, read

AXES = (*METHOD.names, "task", "task.name", "generation.temperature")


@dataclass(frozen=True, slots=True)
class Block:
    """Cases of one kind: every combination of its axes' values is one.

    senders: who helps. "all", or "singles" (each one), "prefixes" (the first, the first two, ... in order of their
    gain), "leave_one_out" (all but each one), "none" (the receiver alone), "pairs" (every member to every other one),
    or names as in qwen2.5-0.5b+llama-1b. receivers: who answers; a receiver's senders are all other members. axes:
    setting -> its values, as in protocol: [c2c, t2t] or t2t.gate: [none, same].
    """

    senders: str = "all"
    receivers: tuple[str, ...] = ()
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluateSettings(Settings):
    """One evaluation: a federation's settings are what its blocks start from."""

    blocks: Mapping[str, Block] = field(default_factory=lambda: {"all": Block()})
    seeds: tuple[int, ...] = within((0,), 0, 2**32 - 1)  # each draws phrasings, choices and samples anew
    latency_requests: int = within(50, 0)  # questions per case that are asked once more, one at a time, for seconds
    order: Literal["validation", "given"] = "validation"  # of senders: by their gain there, or as they are named
    order_limit: int = within(300, 1)  # validation questions that decide it
    usual_donors: ClassVar[int] = 3

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
        named = {str(name): block for name, block in blocks.items() if block is not None}
        blocks = {name: _block(f"blocks.{name}", block) for name, block in named.items()} or {"all": Block()}
    keys = {**BY_MEMBER, "blocks": tuple(blocks) if isinstance(blocks, dict) else ()}
    settings = read(Schema(EvaluateSettings, keys, KINDS), {**given, "blocks": blocks})
    return settings if "seeds" in given else replace(settings, seeds=(settings.seed,))


def _block(path: str, values: Any) -> Any:
    """Part a block's own values from its axes, which may be nested or dotted. Raises FedrayError on an unknown axis."""
    if not isinstance(values, Mapping):
        return values
    own = {key: value for key, value in values.items() if key in ("senders", "receivers")}
    axes: dict[str, tuple[Any, ...]] = {}
    for axis, listed in _flat({key: value for key, value in values.items() if key not in own}):
        if axis not in AXES:
            raise _unknown(path, axis)
        if not isinstance(listed, list | tuple):
            raise FedrayError(f"{path}.{axis} must be a list such as [{listed}], got {listed!r}")
        hint = SCHEMA.hint(axis)
        first = f".{fields(hint)[0].name}" if is_dataclass(hint) else ""  # gate: [open] is gate.kind: [open]
        axes[axis + first] = tuple(listed)
    return {**own, "axes": axes}


def _unknown(path: str, axis: str) -> FedrayError:
    """The error for an axis that does not exist; one by its former name, as in sync_every or t2t_gate, is shown."""
    now = [name for name in AXES if axis in (name.rpartition(".")[2], name.replace(".", "_"))]
    if now:
        return FedrayError(f"{path}.{axis} is now {' or '.join(f'{path}.{name}' for name in now)}: axes are settings")
    names = [f"{path}.{name}" for name in ("senders", "receivers", *AXES)]
    close = nearest(f"{path}.{axis}", names, count=2)
    hint = f"did you mean {' or '.join(close)}?" if close else "an axis is a setting such as protocol or t2t.gate"
    return FedrayError(f"unknown setting '{path}.{axis}': {hint}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
