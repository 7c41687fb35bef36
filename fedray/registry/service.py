"""Put versions into service: name the stable one, try a canary, go back, and tell what depends on an LLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fedray.errors import unknown
from fedray.llm.catalogue import slug
from fedray.registry.aliases import Alias, changing, kind_of
from fedray.registry.manifest import Manifest
from fedray.registry.store import Registry
from fedray.types import FedrayError


@dataclass(frozen=True, slots=True)
class Dependent:
    """A fuser or gate that an LLM is part of. role: of the LLM in it; versions: the newest of each kind."""

    name: str
    role: str  # sender | receiver | weighed (a sender that a gate knows)
    versions: tuple[tuple[Manifest, Path], ...]


def make_stable(registry: Registry, root: Path, name: str, digest: str | None) -> tuple[Manifest, Path]:
    """Name a version stable, the newest by default; a canary of the name ends.

    Raises FedrayError: unknown, damaged, or the aliases cannot be read or written.
    """
    with changing(root) as aliases:
        manifest, folder = registry.pick(name, digest)
        kind = kind_of(manifest)
        known = aliases.get(kind)
        before = () if known is None else known.before
        if known is not None and known.stable != manifest.hash:
            before = (*before, known.stable)
        aliases[kind] = Alias(manifest.hash, before=before)
    return manifest, folder


def try_canary(registry: Registry, root: Path, name: str, digest: str | None, share: float) -> tuple[Manifest, Path]:
    """Let a version answer a share of the traffic beside the stable one.

    Raises FedrayError as `make_stable` does, and where there is no stable one that it could stand in for.
    """
    with changing(root) as aliases:
        manifest, folder = registry.pick(name, digest)
        kind = kind_of(manifest)
        known = aliases.get(kind)
        if known is None:
            raise FedrayError(f"{kind} has no stable version beside which a canary could be tried: alias one as stable")
        if known.stable == manifest.hash:
            raise FedrayError(f"{kind} {manifest.hash} is the stable version: choose another one as canary with hash=")
        stable, _ = registry.pick(name, known.stable)
        if stable.llms != manifest.llms:
            raise FedrayError(
                f"{kind} {manifest.hash} was trained for other LLMs than the stable {stable.hash} and cannot stand in "
                "for it: choose a canary for the same"
            )
        aliases[kind] = replace(known, canary=manifest.hash, share=share)
    return manifest, folder


def roll_back(
    registry: Registry, root: Path, name: str, digest: str | None = None
) -> tuple[Manifest, Path, tuple[str, ...]]:
    """Make the version before stable again, and end a canary; returns it and why others were passed over.

    digest: of the stable version to go back from, where the name has several. Raises FedrayError: unknown, or none
    before that can be used.
    """
    passed: list[str] = []
    with changing(root) as aliases:
        kind = _going_back(aliases, name, digest)
        if kind is None:
            registry.pick(name, digest)
            raise FedrayError(f"{name} has no such stable version to go back from: alias one as stable")
        known = aliases[kind]
        for place in reversed(range(len(known.before))):
            try:
                manifest, folder = registry.pick(name, known.before[place])
            except FedrayError as error:
                passed.append(str(error))
                continue
            aliases[kind] = Alias(manifest.hash, before=known.before[:place])
            return manifest, folder, tuple(passed)
    why = "".join(f"; passed over: {reason}" for reason in passed)
    raise FedrayError(f"{kind} has no version before {known.stable} to go back to: alias one as stable{why}")


def _going_back(aliases: Mapping[str, Alias], name: str, digest: str | None) -> str | None:
    """Find the kind of a name whose stable version is meant. Raises FedrayError where there are several."""
    stable = {kind: alias.stable for kind, alias in aliases.items() if kind.startswith(f"{name} ")}
    meant = [kind for kind, found in stable.items() if found.startswith(digest or "")]
    if len(meant) > 1:
        choices = ", ".join(f"{stable[kind]} ({kind.removeprefix(name).strip()})" for kind in meant)
        raise FedrayError(
            f"{name} has several stable versions: say which is to go back, as in hash={stable[meant[0]]}, of {choices}"
        )
    return next(iter(meant), None)


def dependents(registry: Registry, llm: str) -> list[Dependent]:
    """Find the fusers and gates that are to be trained anew where an LLM's weights change. Raises FedrayError."""
    names: dict[str, dict[str, tuple[Manifest, Path]]] = {}
    known: set[str] = set()
    for manifest, folder in registry.list():
        parts = {*manifest.llms, *manifest.config.get("senders", ())}
        known |= parts
        if slug(llm) in parts:
            names.setdefault(manifest.name, {}).setdefault(kind_of(manifest), (manifest, folder))
    if not names:
        raise unknown("LLM", llm[:200], sorted(known))
    return [
        Dependent(name, _role(slug(llm), next(iter(of_kind.values()))[0]), tuple(of_kind.values()))
        for name, of_kind in sorted(names.items(), key=lambda item: (next(iter(item[1].values()))[0].role, item[0]))
    ]


def _role(llm: str, manifest: Manifest) -> str:
    if llm not in manifest.llms:
        return "weighed"
    return "receiver" if manifest.name.endswith(f"--{llm}") else "sender"
