"""A versioned store of fusers and gates: one folder per version, named by its content hash.

    <root>/<sender>--<receiver>/<hash>/model.safetensors, manifest.json      a fuser F_ij
    <root>/gate--<receiver>/<hash>/model.safetensors, manifest.json          a gate

The embedded registry is read-only and lies in the package; a user registry (`registry.path=DIR`) lies over it. Only
safetensors are read. The content hash covers the weights and what they mean (kind, configuration, the hashes of both
LLMs), never a date, host or path; when its manifest was last written or touched says which version is the newest.

A version is validated when it is written and when it is loaded. Invalid ones are skipped and named (`problems`), and
the version before is used. Which version is served is the newest, or what aliases say (aliases.py).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from fedray import __version__
from fedray.errors import unknown
from fedray.files import staged
from fedray.fusion.fuser import Fuser
from fedray.fusion.gating import GateNetwork
from fedray.llm.catalogue import EMBEDDED, is_copy, slug
from fedray.methods.parts import FUSERS
from fedray.registry.aliases import ALIASES, Alias, Served, changing, levels, name_of, read_aliases
from fedray.registry.manifest import Manifest, digest_of, fuser_name, gate_name, is_name, is_version, version_folder
from fedray.registry.untrained import build_untrained
from fedray.registry.versions import (
    WEIGHTS,
    check_weights,
    is_gone,
    read_manifest,
    read_weights,
    version_age,
    write_version,
)
from fedray.types import Artifact, FedrayError, MemberInfo

SHIPPED = EMBEDDED / "registry"
M = TypeVar("M", Fuser, GateNetwork)


class Registry:
    """The embedded registry under an optional user registry. The latest version of a name is the newest."""

    def __init__(self, path: Path | None = None, embedded: Path | None = SHIPPED) -> None:
        self.path = path
        self.roots = [root for root in (path, embedded) if root is not None]
        self._unreadable: dict[Path, str] = {}
        self._damaged: dict[Path, str] = {}
        self._gone: dict[Path, str] = {}
        self._sound: set[Path] = set()
        self._served: Served | None = None  # None: as the aliases are whenever somebody asks

    @property
    def problems(self) -> dict[Path, str]:
        """Versions that are invalid and skipped: absolute folder -> a sentence that names it."""
        return {**self._gone, **self._unreadable, **self._damaged}

    def list(self) -> list[tuple[Manifest, Path]]:
        """List all versions that can be read, user registry first, newest first within a name."""
        return self._readable(self._folders())

    def versions(self, name: str) -> list[tuple[Manifest, Path]]:
        """List the versions of one fuser or gate; `problems` has those that cannot be read or are damaged."""
        return self._readable(self._folders(name))

    def aliases(self, name: str | None = None) -> dict[str, Alias]:
        """Read the aliases of a name, or of all, by kind.

        A damaged file counts as none; it is in `problems`, as is a version that has an alias and is gone.
        """
        if self.path is None:
            return {}
        path = (self.path / ALIASES).absolute()
        try:
            found = read_aliases(self.path)
            self._unreadable.pop(path, None)
        except FedrayError as error:
            self._unreadable[path] = str(error)
            return {}
        found = {kind: alias for kind, alias in found.items() if name in (None, name_of(kind))}
        for kind, alias in found.items():
            there = {folder.name for folder in self._folders(name_of(kind))}
            for digest in filter(None, (alias.stable, alias.canary)):
                folder = version_folder(self.path, name_of(kind), digest).absolute()
                self._gone.pop(folder, None)
                if digest not in there:
                    self._gone[folder] = f"{folder} is {alias.of(digest)} and not there; alias another version"
        return found

    def serving(self, served: Served | None) -> Registry:
        """Look at the same registry with these versions in service, whatever its aliases become."""
        view = copy.copy(self)
        view._served = served
        return view

    def served(self, name: str) -> list[tuple[Manifest, Path]]:
        """List the versions of one fuser or gate as they are served: aliases first, then the newest."""
        order = (levels(self.aliases(name))[-1][1] if self._served is None else self._served).get(name, ())
        rank, folders = {digest: place for place, digest in enumerate(order)}, self._folders(name)
        return self._readable(sorted(folders, key=lambda folder: rank.get(folder.name, len(rank))))

    def sound(self, versions: Iterable[tuple[Manifest, Path]]) -> Iterator[tuple[Manifest, Path]]:
        """Yield the versions whose weights have the hash in their manifest: each is hashed lazily, and once.

        Damaged ones are skipped from now on, and in `problems`.
        """
        for manifest, folder in versions:
            key = folder.absolute()
            if key not in self._sound and key not in self._damaged:
                try:
                    check_weights(manifest, folder)
                    self._sound.add(key)
                except FedrayError as error:
                    self._damaged[key] = str(error)
            if key in self._sound:
                yield manifest, folder

    def pass_over(self, damaged: Mapping[Path, str]) -> None:
        """Skip exactly the damaged versions that another process found: its `problems`."""
        self._damaged = dict(damaged)

    def find_fuser(self, sender: MemberInfo, receiver: MemberInfo, kind: str, operator: str) -> Artifact:
        """Find the fuser of a pair, trained for exactly these two LLMs. Raises FedrayError naming what there is."""
        name = fuser_name(sender.name, receiver.name)
        versions = self.served(name)
        candidates = [(m, p) for m, p in versions if m.kind == kind and m.operator == operator]
        for manifest, path in candidates:
            if _fits(manifest, sender) and _fits(manifest, receiver):
                return manifest.artifact(path)
        if candidates:
            raise FedrayError(
                f"the {kind} fuser {sender.name} -> {receiver.name} ({candidates[0][0].hash}) was trained for other "
                f"LLMs than the ones loaded (weights or tokenizer differ); use those, or a fuser for these"
                f"{self.passed_over(name)}"
            )
        others = sorted({f"fuser={m.kind} fusion={m.operator}" for m, _ in versions})
        instead = f"there is {', '.join(others)}" if others else "registry.path=DIR may hold one of your own"
        raise FedrayError(
            f"no fuser={kind} fusion={operator} for {sender.name} -> {receiver.name}; {instead}{self.passed_over(name)}"
        )

    def fuser_in_use(
        self, sender: str, receiver: str, weights: Mapping[str, str], kind: str, operator: str
    ) -> Artifact | None:
        """Find the fuser that a federation uses for LLMs of these weights (name -> hash), before any is loaded."""
        wanted = (kind, operator, {slug(llm): weights[llm] for llm in (sender, receiver)})
        candidates = [
            (m, path)
            for m, path in self.served(fuser_name(sender, receiver))
            if (m.kind, m.operator, {llm: hashes["weights"] for llm, hashes in m.llms.items()}) == wanted
        ]
        return next((manifest.artifact(path) for manifest, path in self.sound(candidates)), None)

    def find_gate(self, receiver: MemberInfo, senders: tuple[str, ...], operator: str, kind: str = "") -> Artifact:
        """Find the gate of a receiver that covers all these senders, for a kind of fusers. Raises FedrayError."""
        for manifest, path in self.gates(receiver.name, senders, operator, kind):
            if _fits(manifest, receiver):
                return manifest.artifact(path)
        raise FedrayError(
            f"the gate of {receiver.name} was trained for other weights of it; use gate=open"
            f"{self.passed_over(gate_name(receiver.name))}"
        )

    def gates(
        self, receiver: str, senders: Iterable[str], operator: str, kind: str = ""
    ) -> list[tuple[Manifest, Path]]:
        """List the gates of a receiver, of any weights, that cover all these senders. Raises FedrayError without any.

        kind: of the fusers that they are for.
        """
        name, own = gate_name(receiver), kind in FUSERS and FUSERS[kind].drafts  # it has gates of its own
        gates = [(m, p) for m, p in self.served(name) if m.operator == operator]
        gates = [(m, p) for m, p in gates if m.config.get("fuser") == (kind if own else None)]
        if found := [(m, p) for m, p in gates if set(map(slug, senders)) <= set(m.config["senders"])]:
            return found
        if copies := [name for name in senders if is_copy(name)]:
            raise FedrayError(f"no gate of {receiver} knows {copies[0]}, which is a copy: use gate=open")
        known = f"it knows {', '.join(gates[0][0].config['senders'])}" if gates else "there is none"
        named, choice = ",".join(senders), f"fuser={kind} " * own
        raise FedrayError(
            f"no fusion={operator} gate of {receiver} for {', '.join(senders)} ({known}); train one with "
            f"jobs/train_gate.py {choice}receiver={receiver} 'senders=[{named}]', or use gate=open"
            f"{self.passed_over(name)}"
        )

    def passed_over(self, name: str) -> str:
        """Name the skipped versions of a name, as the end of a sentence; "" where there are none."""
        roots = [root.absolute() for root in self.roots]
        texts = [text for folder, text in self.problems.items() if {name, ALIASES} & {*folder.parts} or folder in roots]
        return "".join(f"; passed over: {text}" for text in texts)

    def pick(self, name: str, digest: str | None = None) -> tuple[Manifest, Path]:
        """Choose the newest sound version of a fuser or gate, or the one whose hash begins with `digest`.

        Raises FedrayError: unknown, damaged.
        """
        if digest is not None:
            folder = self._choose(name, digest)
            manifest = read_manifest(folder)
            check_weights(manifest, folder)
            return manifest, folder
        self._choose(name, "")
        for version in self.sound(self.versions(name)):
            return version
        raise FedrayError(f"no version of {name} can be used{self.passed_over(name)}")

    def delete(self, name: str, digest: str | None = None) -> Path:
        """Remove a version for good, damaged or not; returns where it was.

        Raises FedrayError: unknown, embedded, one of several, or named by an alias.
        """
        folder = self._choose(name, digest or "")
        own = [version.name for version in self._folders(name) if self.path and version.is_relative_to(self.path)]
        if folder.name not in own:
            raise FedrayError(f"{name} {folder.name} is in the embedded registry, which is read-only: it stays")
        if digest is None and len(own) > 1:
            raise FedrayError(f"{name} has several versions: say which, as in hash={own[0]}, of {', '.join(own)}")
        with changing(folder.parent.parent) as aliases:  # nobody may alias it meanwhile
            if named := "".join(alias.of(folder.name) for alias in aliases.values()):
                raise FedrayError(f"{name} {folder.name} is {named}: alias another version first, then delete this one")
            try:
                with staged(folder.parent) as away:
                    folder.rename(away / folder.name)
            except OSError as error:
                raise FedrayError(f"{folder} cannot be removed ({error.strerror}); see who may write there") from error
        with suppress(OSError):  # other versions are there
            folder.parent.rmdir()
        self._forget(folder)
        return folder

    def add_fuser(
        self, fuser: Fuser, sender: MemberInfo, receiver: MemberInfo, training: Mapping[str, Any], *, halve: bool = True
    ) -> Artifact:
        """Store a fuser and return where it lies; in 16 bit, unless `halve` is off and every tensor stays as it is."""
        name = fuser_name(sender.name, receiver.name)
        return self._add(name, fuser, (sender, receiver), training, halve)

    def add_gate(self, gate: GateNetwork, receiver: MemberInfo, training: Mapping[str, Any]) -> Artifact:
        """Store a gate in 16 bit and return where it lies."""
        return self._add(gate_name(receiver.name), gate, (receiver,), training, True)

    def adopt(self, manifest: Manifest, blob: bytes) -> Artifact:
        """Store a version as the newest of its name; blob: its model.safetensors. Raises FedrayError."""
        if self.path is None:
            raise FedrayError(
                f"{manifest.name} cannot be stored: the embedded registry is read-only; give registry.path=DIR"
            )
        try:
            folder = write_version(self.path, manifest, blob)
        except OSError as error:
            raise FedrayError(
                f"{version_folder(self.path, manifest.name, manifest.hash)} cannot be written ({error.strerror}); the "
                "versions before it are untouched"
            ) from error
        self._forget(folder)
        return manifest.artifact(folder)

    def _add(
        self,
        name: str,
        module: Fuser | GateNetwork,
        members: Iterable[MemberInfo],
        training: Mapping[str, Any],
        halve: bool,
    ) -> Artifact:
        role = "gate" if isinstance(module, GateNetwork) else "fuser"
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(module.state_dict().items())}
        blob = save_tensors({name: tensor.half() for name, tensor in tensors.items()} if halve else tensors)
        config, llms = module.config.to_dict(), {slug(member.name): _hashes(member) for member in members}
        weights = hashlib.sha256(blob).hexdigest()
        digest = digest_of(role, config, llms, weights)
        return self.adopt(Manifest(name, role, config, llms, dict(training), weights, digest, __version__), blob)

    def _forget(self, folder: Path) -> None:
        for found in (self._unreadable, self._damaged):
            found.pop(folder.absolute(), None)

    def _folders(self, name: str | None = None) -> list[Path]:
        """List the folders of a name's versions, or of all, the user's newest first within a name."""
        if name is not None and not is_name(name):
            return []
        found = []
        for root in self.roots:
            age = version_age if root == self.path else None  # a package's files are as old as its installation
            for home in [root / name] if name else self._inside(root):
                found += sorted(filter(is_version, self._inside(home)), key=age)
        return found

    def _inside(self, folder: Path) -> list[Path]:
        try:
            return sorted(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self._unreadable[folder.absolute()] = f"{folder} cannot be read ({error.strerror}); see who may read there"
            return []

    def _readable(self, folders: Iterable[Path]) -> list[tuple[Manifest, Path]]:
        found = []
        for folder in folders:
            key = folder.absolute()
            self._unreadable.pop(key, None)
            try:
                found += [(read_manifest(folder), folder)] if key not in self._damaged else []
            except FedrayError as error:
                if not is_gone(folder):
                    self._unreadable[key] = str(error)
        return found

    def _choose(self, name: str, digest: str) -> Path:
        """Choose the version whose hash begins with `digest`, or the newest. Raises FedrayError: none, or several."""
        if not set(digest) <= set("0123456789abcdef"):
            raise FedrayError(f"{digest[:100]!r} is no hash: give at least its first four hexadecimal digits")
        folders = self._folders(name)
        if not folders:
            raise unknown("fuser or gate", name[:200], sorted({folder.parent.name for folder in self._folders()}))
        found = {folder.name: folder for folder in reversed(folders)}  # the user's, where both have one
        matching = [known for known in found if known.startswith(digest or folders[0].name)]
        if len(matching) != 1:
            what = "several versions" if matching else "no version"
            raise FedrayError(f"{name} has {what} whose hash begins with {digest}: there is {', '.join(found)}")
        return found[matching[0]]


def load_fuser(artifact: Artifact, device: str = "cpu") -> Fuser:
    """Load a fuser whose file has the hash in its manifest, or build one without training. Raises FedrayError."""
    if artifact.config is not None:
        return build_untrained(artifact, device)
    return _load(artifact, Fuser).to(device).eval()


def load_gate(artifact: Artifact, device: str = "cpu") -> GateNetwork:
    return _load(artifact, GateNetwork).to(device).eval()


def _load(artifact: Artifact, what: type[M]) -> M:
    folder = _locate(artifact)
    manifest = read_manifest(folder)
    if (manifest.name, manifest.hash) != (artifact.name, artifact.hash):
        raise FedrayError(f"{folder} is not {artifact.name} {artifact.hash}, which was asked for; plan anew")
    try:
        tensors = load_tensors(read_weights(manifest, folder))
    except SafetensorError as error:
        path = folder / WEIGHTS
        raise FedrayError(f"{path} is no safetensors file ({error}); delete the folder or train again") from error
    with torch.device("meta"):  # a fuser of real size takes gigabytes: only its own tensors are ever in memory
        module = manifest.build()
    if not isinstance(module, what):
        raise FedrayError(f"{folder} holds a {manifest.role}, which was not asked for; plan anew")
    if isinstance(module, Fuser):
        module.norms = manifest.norms
    try:
        module.load_state_dict({name: tensors.pop(name).float() for name in tuple(tensors)}, strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise FedrayError(f"{folder} does not hold what its manifest says ({reason}); train it again") from error
    return module


def _locate(artifact: Artifact) -> Path:
    """Find the artifact on this machine: another node may have the package installed elsewhere."""
    path, embedded = Path(artifact.path), version_folder(SHIPPED, artifact.name, artifact.hash)
    return embedded if not path.is_dir() and embedded.is_dir() else path


def _fits(manifest: Manifest, member: MemberInfo) -> bool:
    return manifest.llms.get(slug(member.name)) == _hashes(member)


def _hashes(member: MemberInfo) -> dict[str, str]:
    return {"weights": member.weights_hash, "tokenizer": member.tokenizer_hash}
