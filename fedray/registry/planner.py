"""Plans: which fusers and which gate serve a receiver and its senders. Plain, so that every group uses the same."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedray.fusion.fuser import FuserConfig
from fedray.llm.catalogue import original_of
from fedray.methods.method import C2C, FuserChoice, Method
from fedray.methods.parts import FUSERS
from fedray.registry.aliases import Served, levels
from fedray.registry.manifest import Manifest, fuser_name, gate_name
from fedray.registry.store import SHIPPED, Registry
from fedray.registry.untrained import config_of_pair, random_artifact, untrained_artifact
from fedray.types import Artifact, FedrayError, MemberInfo, Plan

SOFT_PROMPT = ("soft", "concat")  # kind and operator
OF_COPIES = ("identity", "concat")  # the same, of what a copy of the receiver sends: its cache is one of the receiver's


class Planner:
    """Looks up learned parts by name and hash; it never loads one."""

    def __init__(self, registry: Path | None = None, zoo: Path | None = None, name: str = "tiny") -> None:
        """registry: the user's, over the zoo's own; zoo: a zoo built elsewhere, None is the embedded one; name: what
        stands behind the LLMs' names. Under shapes, pairs without a fuser have one of random weights."""
        shipped = SHIPPED if name == "tiny" else None
        self._registry = Registry(registry, shipped if zoo is None else zoo / "registry")
        self._at_random = name == "shapes"
        self._zoo = "zoo=hub " if name == "hub" else ""
        self.served: Served | None = None  # None: what the aliases call stable whenever somebody asks

    def levels(self) -> tuple[tuple[float, Served], ...]:
        """Divide the traffic by the aliases as they are now (aliases.levels); the last level is stable alone."""
        return levels(self._registry.aliases())

    def serving(self, served: Served | None) -> Planner:
        """Plan with these versions in service: one level of `levels`, whatever the aliases become."""
        view = copy.copy(self)
        view.served, view._registry = served, self._registry.serving(served)
        return view

    @property
    def problems(self) -> dict[Path, str]:
        """Versions in the registry that do not hold and are passed over: folder, and a sentence that names it."""
        return self._registry.problems

    def check(self, receiver: str, senders: Sequence[str], method: Method) -> None:
        """Look for what a plan of the same arguments needs, before any LLM is loaded; each file is hashed once.

        Of every fuser and gate the stable version is served, or without an alias the newest, if it is sound, whatever
        weights its LLMs have; else the one before. `problems` names those passed over. Raises FedrayError naming a pair
        without a fuser (unless its sender may speak in text instead) and what there is, or a gate without a sound one.
        """
        everyone = (receiver, *senders)
        for one in everyone if method.answer_all else (receiver,):
            others = [other for other in everyone if other != one]
            fused = others if method.protocol.fuses else []
            for other in fused:
                kind, operator = _choice(other, one, method)
                if FUSERS[kind].trained:
                    self._look_into(_pair(other, one), kind, operator)
            self._refuse_missing(one, fused, method)
            speakers = self._without_fuser(one, fused, method)
            weighed = [other for other in others if other not in speakers]
            if method.gate.kind == "learned" and method.weighs:
                name, operator = gate_name(original_of(one)), method.fusion.operator
                self._look_into(name, "gate", operator)
                gates = [gate for gate, _ in self._registry.served(name) if gate.operator == operator]
                if not gates and (damaged := self._registry.passed_over(name)):
                    raise FedrayError(f"no fusion={operator} gate of {one} can be used; use gate=open{damaged}")
                if weighed:
                    self._registry.gates(one, weighed, operator, method.fuser.kind)

    def pass_over(self, damaged: Mapping[Path, str]) -> None:
        """Plan without versions that were found damaged elsewhere: the `problems` of another planner."""
        self._registry.pass_over(damaged)

    def plan(self, receiver: MemberInfo, senders: Sequence[MemberInfo], method: Method = C2C, seed: int = 0) -> Plan:
        """Find what every sender needs for a method; seed: of random gates and of what is kept at random.

        c2c needs the fuser trained for exactly these two LLMs (a copy of the receiver needs none), or else the sender
        speaks in text; what weighs senders needs a gate that knows them. answer_all: the plans of all others as
        receivers come along. Raises FedrayError where a sender may not speak, and where there is no gate for these
        senders.
        """
        asked = {sender.name: sender for sender in senders}
        fusing, kind, operator = method.protocol.fuses, method.fuser.kind, method.fusion.operator
        self._refuse_missing(receiver.name, list(asked) if fusing else [], method)
        speakers = self._without_fuser(receiver.name, list(asked), method) if fusing else ()
        names = tuple(name for name in asked if name not in speakers)
        learned = method.gate.kind == "learned" and method.weighs and bool(names)
        peers: tuple[Plan, ...] = ()
        if method.answer_all:
            everyone, alone = (receiver, *senders), replace(method, answer_all=False)
            peers = tuple(self.plan(one, [o for o in everyone if o is not one], alone, seed) for one in senders)
        choices = {n: _choice(n, receiver.name, method) for n in names if fusing}
        fusers = {n: self._fuser(asked[n], receiver, *choice) for n, choice in choices.items()}
        for name, artifact in fusers.items():
            _check(asked[name], artifact, method)
        return Plan(
            receiver.name,
            names,
            method.canonical(),
            speakers=speakers,
            fusers=fusers,
            soft_prompts={n: self._fuser(asked[n], receiver, *SOFT_PROMPT) for n in fusers if method.control == "soft"},
            gate_artifact=self._registry.find_gate(_original(receiver), names, operator, kind) if learned else None,
            peers=peers,
            contexts={n: asked[n].context for n in names if fusing},
            seed=seed,
        )

    def fuser_config(self, sender: MemberInfo, receiver: MemberInfo, method: Method) -> FuserConfig | None:
        """What the pair's fuser in service is, whatever weights it was trained for; None where it has none."""
        kind, operator = _choice(sender.name, receiver.name, method)
        for manifest, _ in self._registry.served(_pair(sender.name, receiver.name)):
            if (manifest.kind, manifest.operator) == (kind, operator):
                return FuserConfig.from_dict(manifest.config)
        return config_of_pair(sender, receiver, kind, operator) if self._at_random or not FUSERS[kind].trained else None

    def _fuser(self, sender: MemberInfo, receiver: MemberInfo, kind: str, operator: str) -> Artifact:
        if not FUSERS[kind].trained:
            return untrained_artifact(sender, receiver, kind, operator)
        if self._at_random and (kind, operator) not in self._fusers(sender.name, receiver.name):
            return random_artifact(sender, receiver, kind, operator)
        return self._registry.find_fuser(_original(sender), _original(receiver), kind, operator)

    def _refuse_missing(self, receiver: str, senders: Sequence[str], method: Method) -> None:
        for sender in senders if method.control == "soft" and not self._at_random else ():
            if original_of(sender) == original_of(receiver):
                raise FedrayError(f"control=soft: {sender}, a copy of {receiver}, has no soft prompt: leave it out")
            if SOFT_PROMPT not in self._fusers(sender, receiver):
                damaged = self._registry.passed_over(_pair(sender, receiver))
                raise FedrayError(
                    f"control=soft: there is no soft prompt for {sender} -> {receiver}; train it with "
                    f"jobs/train_fuser.py {self._zoo}sender={original_of(sender)} receiver={original_of(receiver)} "
                    f"fuser=soft, or name a registry that has it with registry.path=DIR{damaged}"
                )
        if method.on_missing == "text":
            return
        fuser, fusion = method.fuser.kind, method.fusion.operator
        named = "" if fuser == FuserChoice().kind else f" fuser={fuser}"
        importing = f" or import it with {job}" if (job := FUSERS[fuser].imported_by) else ""
        for sender in self._without_fuser(receiver, senders, method):
            if original_of(sender) == original_of(receiver):
                raise FedrayError(
                    f"what {sender}, a copy of {receiver}, sends does not go with fusion={fusion}: choose "
                    "fusion=concat, or leave it out"
                )
            there = sorted(self._fusers(sender, receiver))
            others = ", ".join(f"fuser={kind} fusion={operator}" for kind, operator in there)
            remedy = (
                f"there is {others}"
                if there
                else f"train it with jobs/train_fuser.py {self._zoo}sender={original_of(sender)} "
                f"receiver={original_of(receiver)}{named}{importing}, "
                "name a registry that has it with registry.path=DIR, or let the sender speak with on_missing=text"
            )
            damaged = self._registry.passed_over(_pair(sender, receiver))
            raise FedrayError(f"no fuser={fuser} fusion={fusion} for {sender} -> {receiver}; {remedy}{damaged}")

    def _look_into(self, name: str, kind: str, operator: str) -> None:
        """Hash what a plan may choose of a name: for every choice of LLMs, as served, until one is sound."""
        groups: dict[str, list[tuple[Manifest, Path]]] = {}
        for manifest, folder in self._registry.served(name):
            if (manifest.kind, manifest.operator) == (kind, operator):
                chosen_by = json.dumps([manifest.llms, manifest.config.get("senders")], sort_keys=True)
                groups.setdefault(chosen_by, []).append((manifest, folder))
        for versions in groups.values():
            next(self._registry.sound(versions), None)

    def _without_fuser(self, receiver: str, senders: Sequence[str], method: Method) -> tuple[str, ...]:
        if self._at_random:
            return ()
        choices = {sender: _choice(sender, receiver, method) for sender in senders}
        return tuple(s for s, c in choices.items() if FUSERS[c[0]].trained and c not in self._fusers(s, receiver))

    def _fusers(self, sender: str, receiver: str) -> set[tuple[str, str]]:
        """Kind and operator of every fuser of a pair, whatever weights it was trained for."""
        name = _pair(sender, receiver)
        return {(m.kind, m.operator) for m, _ in self._registry.served(name)}


def _check(sender: MemberInfo, artifact: Artifact, method: Method) -> None:
    """Refuse what a sender or its fuser cannot do. Raises FedrayError."""
    method.wire.check(method.fuser.kind)
    if artifact.tokens == "draft" and not sender.vocabulary:
        raise FedrayError(
            f"{sender.name} has no tokenizer and drafts no answer: leave it out, or choose another fuser than "
            f"{method.fuser.kind}"
        )
    if method.fusion.slots == "inline" and not artifact.unrotated:
        raise FedrayError(
            f"the fuser {artifact.name} ({artifact.hash}) leaves keys at its sender's positions, and cannot stand "
            "inside a prompt: choose fusion.slots=front, or train it anew"
        )


def _original(member: MemberInfo) -> MemberInfo:
    """The LLM that a copy is one of: its parts are those of all its copies."""
    return replace(member, name=original_of(member.name))


def _pair(sender: str, receiver: str) -> str:
    return fuser_name(original_of(sender), original_of(receiver))


def _choice(sender: str, receiver: str, method: Method) -> tuple[str, str]:
    """Kind and operator of a pair's fuser in a method."""
    kind, operator = method.fuser.kind, method.fusion.operator
    copied = original_of(sender) == original_of(receiver) and operator == OF_COPIES[1]
    return OF_COPIES if copied else (kind, operator)
