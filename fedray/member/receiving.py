"""What a receiver does with others' caches: it compares each with its plan, and fuses those that hold.

Payloads are read inside a Border: whatever is wrong with one costs its sender alone, which is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedray.border import Border
from fedray.fusion import combine
from fedray.fusion.controls import SOFT, UNSENT, Instead
from fedray.fusion.fuser import Fuser
from fedray.fusion.norms import check_norms
from fedray.fusion.placing import Unread, place
from fedray.fusion.soft import SoftPrompt
from fedray.llm.decoding import Context
from fedray.member.clock import Clock
from fedray.member.core import Core
from fedray.member.sessions import Session
from fedray.methods.method import Compile
from fedray.registry.store import load_fuser
from fedray.types import Artifact, KVSpec, Missing, Plan
from fedray.wire.header import Expected
from fedray.wire.payload import Payload, Shipment, unpack
from fedray.wire.repairing import repaired
from fedray.wire.selection import layers_sent

ANY_CONTEXT = 1 << 31  # tokens, of a sender whose plan was made by hand
Rows = Mapping[int, int]  # row of the request that a sender was asked for -> most tokens of it
Asked = Mapping[str, Rows] | Sequence[Rows]  # of each sender; or of each payload, where a sender sent several
Donors = Mapping[str, Mapping[int, int]]  # sender -> row of the request -> the row of its payload that is read there


@dataclass(frozen=True, slots=True)
class Fused:
    """What the next token attends to, and what is read before it; None: the prompts' last tokens. size: in bytes."""

    context: Context
    unread: Unread | None
    took_part: tuple[str, ...]
    missing: tuple[Missing, ...]
    size: int


class Receiver(Core):
    """The part of a member that takes others' caches."""

    def __init__(self, name: str, **more: Any) -> None:
        super().__init__(name, **more)
        self._fusers: dict[tuple[str, Compile | None], Fuser] = {}

    def fuser(self, artifact: Artifact, compile: Compile | None = None) -> Fuser:
        """A fuser into this LLM's space, in its precision and on its device; loaded once. Raises FedrayError."""
        key = artifact.hash, compile
        if key not in self._fusers:
            fuser = load_fuser(artifact, str(self.llm.device)).to(self.llm.model.dtype)
            self._fusers[key] = fuser.for_inference(compile)
        return self._fusers[key]

    @torch.no_grad()
    def _fuse(
        self,
        session: str,
        senders: tuple[str, ...],
        plan: Plan,
        payloads: tuple[Payload, ...],
        asked: Asked | None,
        clock: Clock,
        donors: Donors | None = None,
    ) -> Fused:
        self._take(self._threads)
        held = self._sessions.get(session)
        border, size = Border(), 0
        came: dict[str, list[Shipment]] = {}
        for number, (sender, payload) in enumerate(zip(senders, payloads, strict=True)):
            with border.of(sender):
                fuser = self.fuser(plan.fusers[sender], plan.method.compile)
                rows = dict.fromkeys(range(held.cache.batch), ANY_CONTEXT)
                if asked is not None:
                    rows = asked[sender] if isinstance(asked, Mapping) else asked[number]
                expected = _expected(sender, fuser.config.sender, plan, rows, exact=asked is not None)
                shipment = unpack(payload, expected, device=self.llm.device, dtype=self.llm.model.dtype)
                size += payload.nbytes
                check_norms(shipment.sent, shipment.layers, shipment.spec, fuser.norms)
                came.setdefault(sender, []).append(shipment)
        parts = self._parts(came, donors, held, plan, border)
        self._received_bytes += size
        clock.lap("unpack")
        how, unread, placed = plan.method.fusion, None, None
        if how.read == "prompt":
            placed = place(self.llm, held.own(), held.ids, held.spans, parts, how.slots, border)
            parts = []  # where none came, the answer is the receiver's alone
        if placed is None:
            order = plan.method.fusion_order
            context = combine.fuse(how.operator, held.own(), held.spans, parts, order, border, self.llm.model)
        else:
            context, unread = placed
        clock.lap("fuse")
        took_part = tuple(sender for sender in dict.fromkeys(senders) if sender not in border.refused)
        return Fused(context, unread, took_part, border.missing(), size)

    def _weight(self, sender: str, held: Session, plan: Plan) -> Tensor:
        """(B,): the gate's weight of a sender."""
        if held.weights_BS is None:
            return torch.ones(held.cache.batch)
        return held.weights_BS[:, plan.senders.index(sender)]

    def _parts(
        self, came: Mapping[str, list[Shipment]], donors: Donors | None, held: Session, plan: Plan, border: Border
    ) -> list[combine.Part]:
        """What is fused of each sender: what it sent of every row, or of the row's donor."""
        parts: list[combine.Part] = []
        for sender, shipments in came.items():
            if sender not in border.refused:
                with border.of(sender):
                    shipment = shipments[0] if donors is None else repaired(shipments, donors[sender])
                    parts.append(self._part(sender, shipment, held, plan))
        return parts

    def _part(self, sender: str, shipment: Shipment, held: Session, plan: Plan) -> combine.Part:
        batch = held.cache.batch
        lengths = dict(zip(shipment.rows, shipment.lengths, strict=True))
        spans = dict(zip(shipment.rows, shipment.spans, strict=False))
        whole = dict(zip(shipment.rows, shipment.whole, strict=True))
        fuser, control = self.fuser(plan.fusers[sender], plan.method.compile), plan.method.control
        slots = tuple(lengths.get(row, 0) for row in range(batch))
        if control in UNSENT:
            soft = self.fuser(plan.soft_prompts[sender]) if control == SOFT else None
            assert soft is None or isinstance(soft, SoftPrompt)
            fuser = Instead(control, fuser, held.own(), slots, soft)
        return combine.Part(
            sender=sender,
            fuser=fuser,
            cache=shipment.flat,
            weight_B=self._weight(sender, held, plan).to(self.llm.device),
            spans=tuple(spans.get(row, ()) for row in range(batch)),
            whole=tuple(whole.get(row, 0) for row in range(batch)),
            layers=shipment.layers,
            lengths=slots,
        )


def _expected(sender: str, spec: KVSpec, plan: Plan, rows: Mapping[int, int], *, exact: bool) -> Expected:
    """Say what a plan lets a sender send of these rows, into a fuser that reads caches of `spec`."""
    layers = layers_sent(spec, plan.fusers[sender].layers, plan.method.wire, plan.seed)
    context = plan.contexts.get(sender, ANY_CONTEXT)
    most = tuple(min(tokens, context) for tokens in rows.values())
    if plan.fusers[sender].tokens == "draft":
        most = (plan.method.fuser.max_tokens,) * len(rows)
    return Expected(
        sender, spec, tuple(rows), most, layers, plan.method.wire, plan.method.fusion.operator == "mix", exact
    )
