"""Plans: which fusers and which gate serve a receiver and its senders. Plain, so that every group uses the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedray.fusion.registry import SHIPPED, Registry, check_weights, fuser_name, gate_name
from fedray.types import T2T, FedrayError, MemberInfo, Plan

FUSING = ("c2c",)  # protocols in which senders give their caches


class Planner:
    """Looks up learned parts by name and hash; it never loads one."""

    def __init__(self, registry: Path | None = None, zoo: Path | None = None) -> None:
        """registry: the user's, over the zoo's own; zoo: a zoo built elsewhere, None is the embedded one."""
        self._registry = Registry(registry, SHIPPED if zoo is None else zoo / "registry")

    def check(
        self, receiver: str, senders: Sequence[str], *, protocol: str, fuser: str, fusion: str, on_missing: str
    ) -> None:
        """Refuse what is missing or damaged in the registry before any LLM is loaded.

        Raises FedrayError naming a pair without a fuser (unless its sender may speak in text instead) and what there
        is, or the file that does not have its hash.
        """
        if protocol not in FUSING:
            senders = ()
        for sender in self._without_fuser(receiver, senders, fuser, fusion) if on_missing != "text" else ():
            there = sorted(self._fusers(sender, receiver))
            others = ", ".join(f"fuser={kind} fusion={operator}" for kind, operator in there)
            remedy = (
                f"there is {others}" if there else "on_missing=text lets it speak, registry.path=DIR brings a fuser"
            )
            raise FedrayError(f"no fuser={fuser} fusion={fusion} for {sender} -> {receiver}; {remedy}")
        names = [gate_name(receiver), *(fuser_name(sender, receiver) for sender in senders)]
        for manifest, folder in (version for name in names for version in self._registry.versions(name)):
            if manifest.operator == fusion:
                check_weights(manifest, folder)

    def plan(
        self,
        receiver: MemberInfo,
        senders: Sequence[MemberInfo],
        *,
        protocol: str = "c2c",
        fuser: str = "mlp",
        fusion: str = "concat",
        gate: str = "learned",
        answer_all: bool = False,
        **choices: Any,
    ) -> Plan:
        """A plan in which every sender has what the protocol needs of it; choices: further fields of Plan.

        c2c needs the fuser trained for exactly these two LLMs, or else the sender speaks in text; what weighs senders
        needs a gate that knows them. answer_all: the plans of all others as receivers come along. Raises FedrayError
        where a sender may not speak, and where there is no gate for these senders.
        """
        asked = {sender.name: sender for sender in senders}
        on_missing = choices.get("on_missing", "alone")
        self.check(receiver.name, list(asked), protocol=protocol, fuser=fuser, fusion=fusion, on_missing=on_missing)
        fusing = protocol in FUSING
        speakers = self._without_fuser(receiver.name, list(asked), fuser, fusion) if fusing else ()
        names = tuple(name for name in asked if name not in speakers)
        weighing = fusing or protocol == "route" or (protocol == "t2t" and choices.get("t2t", T2T()).gate == "same")
        learned = gate == "learned" and weighing and bool(names)
        plan = Plan(
            receiver=receiver.name,
            senders=names,
            protocol=protocol,
            fusion=fusion,
            speakers=speakers,
            fusers={n: self._registry.find_fuser(asked[n], receiver, fuser, fusion) for n in names if fusing},
            gate=gate if weighing else "none",
            gate_artifact=self._registry.find_gate(receiver, names, fusion) if learned else None,
            **choices,
        )
        if not answer_all:
            return plan
        everyone = (receiver, *senders)
        same = {"protocol": protocol, "fuser": fuser, "fusion": fusion, "gate": gate, **choices}
        peers = (self.plan(one, [other for other in everyone if other is not one], **same) for one in senders)
        return replace(plan, peers=tuple(peers))

    def _without_fuser(self, receiver: str, senders: Sequence[str], fuser: str, fusion: str) -> tuple[str, ...]:
        return tuple(sender for sender in senders if (fuser, fusion) not in self._fusers(sender, receiver))

    def _fusers(self, sender: str, receiver: str) -> set[tuple[str, str]]:
        """Kind and operator of every fuser of a pair, whatever weights it was trained for."""
        name = fuser_name(sender, receiver)
        return {(m.kind, m.operator) for m, _ in self._registry.versions(name)}
