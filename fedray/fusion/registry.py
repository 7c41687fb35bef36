"""A versioned store of fusers and gates: one folder per version, named by its content hash.

    <root>/<sender>--<receiver>/<hash>/model.safetensors, manifest.json      a fuser F_ij
    <root>/gate--<receiver>/<hash>/model.safetensors, manifest.json          a gate

The embedded registry is read-only and lies in the package; a user registry (`registry.path=DIR`) lies over it. Only
safetensors are read. The content hash covers the weights and what they mean (kind, configuration, the hashes of both
LLMs), never a date, host or path.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from fedray import __version__
from fedray.disk import whole_folder
from fedray.fusion.fuser import Fuser, FuserConfig, build_fuser
from fedray.fusion.gating import Gate, GateConfig
from fedray.fusion.norms import RECORD, Norms
from fedray.fusion.reads import layers_read
from fedray.fusion.untrained import build_random
from fedray.llm.catalogue import EMBEDDED, slug
from fedray.suggest import unknown
from fedray.types import Artifact, FedrayError, MemberInfo

SHIPPED = EMBEDDED / "registry"
MANIFEST_VERSION = 1
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,80}--[a-z0-9][a-z0-9._-]{0,80}")
_HASH = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What lies in a version folder.

    role: "fuser" or "gate"; config: FuserConfig or GateConfig fields; llms: LLM name -> {weights, tokenizer} hashes;
    training: what it was trained on and for how long; weights: sha256 of model.safetensors; hash: the version's name.
    """

    name: str
    role: str
    config: dict[str, Any]
    llms: dict[str, dict[str, str]]
    training: dict[str, Any]
    weights: str
    hash: str
    code: str
    version: int = MANIFEST_VERSION

    @property
    def kind(self) -> str:
        return self.config.get("kind", "gate")

    @property
    def operator(self) -> str:
        return self.config["operator"]

    @property
    def reads(self) -> str:
        """What a fuser reads: the sender's cache alone, or both."""
        return FuserConfig.from_dict(self.config).reads if self.role == "fuser" else "receiver"

    def artifact(self, folder: Path) -> Artifact:
        """What a plan needs to know of this version."""
        reads_ids = self.config.get("token_alignment") == "ids"
        layers = layers_read(FuserConfig.from_dict(self.config), folder) if self.role == "fuser" else None
        return Artifact(self.name, self.hash, str(folder), reads_ids, layers)


def fuser_name(sender: str, receiver: str) -> str:
    return f"{slug(sender)}--{slug(receiver)}"


def gate_name(receiver: str) -> str:
    return f"gate--{slug(receiver)}"


class Registry:
    """The embedded registry under an optional user registry. A later registration of a pair wins."""

    def __init__(self, path: Path | None = None, embedded: Path | None = SHIPPED) -> None:
        self.path = path
        self.roots = [root for root in (path, embedded) if root is not None]

    def list(self) -> list[tuple[Manifest, Path]]:
        """All versions, user registry first, newest first within a name."""
        return self.versions("*--*")

    def versions(self, name: str) -> list[tuple[Manifest, Path]]:
        """The versions of one fuser or gate. Raises FedrayError naming a manifest that cannot be read."""
        found = []
        for root in self.roots:
            for folder in sorted(root.glob(f"{name}/*"), key=_age):
                if _NAME.fullmatch(folder.parent.name) and _HASH.fullmatch(folder.name):
                    found.append((read_manifest(folder), folder))
        return found

    def find_fuser(self, sender: MemberInfo, receiver: MemberInfo, kind: str, operator: str) -> Artifact:
        """The fuser of a pair, trained for exactly these two LLMs. Raises FedrayError naming what there is."""
        name = fuser_name(sender.name, receiver.name)
        versions = self.versions(name)
        candidates = [(m, p) for m, p in versions if m.kind == kind and m.operator == operator]
        for manifest, path in candidates:
            if _fits(manifest, sender) and _fits(manifest, receiver):
                return manifest.artifact(path)
        if candidates:
            raise FedrayError(
                f"the {kind} fuser {sender.name} -> {receiver.name} ({candidates[0][0].hash}) was trained for other "
                f"LLMs than the ones loaded (weights or tokenizer differ); use those, or a fuser for these"
            )
        others = sorted({f"fuser={m.kind} fusion={m.operator}" for m, _ in versions})
        instead = f"there is {', '.join(others)}" if others else "registry.path=DIR may hold one of your own"
        raise FedrayError(f"no fuser={kind} fusion={operator} for {sender.name} -> {receiver.name}; {instead}")

    def fuser_in_use(
        self, sender: str, receiver: str, weights: Mapping[str, str], kind: str, operator: str
    ) -> Artifact | None:
        """The fuser a federation would find for LLMs of these weights (name -> hash), before any is loaded."""
        name = fuser_name(sender, receiver)
        for manifest, path in self.versions(name):
            trained_for = {llm: hashes["weights"] for llm, hashes in manifest.llms.items()}
            wanted = {slug(llm): digest for llm, digest in weights.items()}
            if (manifest.kind, manifest.operator, trained_for) == (kind, operator, wanted):
                return manifest.artifact(path)
        return None

    def find_gate(self, receiver: MemberInfo, senders: tuple[str, ...], operator: str) -> Artifact:
        """The gate of a receiver that knows all these senders. Raises FedrayError."""
        name = gate_name(receiver.name)
        gates = [(m, p) for m, p in self.versions(name) if m.operator == operator]
        for manifest, path in gates:
            if set(map(slug, senders)) <= set(manifest.config["senders"]) and _fits(manifest, receiver):
                return manifest.artifact(path)
        for manifest, _ in gates:
            if not _fits(manifest, receiver):
                raise FedrayError(f"the gate of {receiver.name} was trained for other weights of it; use gate=open")
        known = f"it knows {', '.join(gates[0][0].config['senders'])}" if gates else "there is none"
        raise FedrayError(
            f"no fusion={operator} gate of {receiver.name} for {', '.join(senders)} ({known}); train one with "
            f"jobs/train_gate.py receiver={receiver.name} 'senders=[{','.join(senders)}]', or use gate=open"
        )

    def pick(self, name: str, digest: str | None = None) -> tuple[Manifest, Path]:
        """The newest version of a fuser or gate, or the one whose hash begins with `digest`. Raises FedrayError."""
        versions = self.versions(name) if _NAME.fullmatch(name) else []
        if not versions:
            raise unknown("fuser or gate", name, sorted({m.name for m, _ in self.list()}))
        found = {m.hash: (m, path) for m, path in reversed(versions)}  # the user's, where both have one
        matching = [known for known in found if known.startswith(digest or versions[0][0].hash)]
        if len(matching) != 1:
            what = "several versions" if matching else "no version"
            raise FedrayError(f"{name} has {what} whose hash begins with {digest}: there is {', '.join(found)}")
        return found[matching[0]]

    def delete(self, name: str, digest: str | None = None) -> Path:
        """Remove a version for good; returns where it was. Raises FedrayError: unknown, embedded, or one of several."""
        manifest, folder = self.pick(name, digest)
        own = {m.hash for m, path in self.versions(name) if self.path and path.is_relative_to(self.path)}
        if manifest.hash not in own:
            raise FedrayError(f"{name} {manifest.hash} is in the embedded registry, which is read-only: it stays")
        if digest is None and len(own) > 1:
            raise FedrayError(
                f"{name} has several versions: say which, as in hash={manifest.hash}, of {', '.join(own)}"
            )
        gone = folder.with_name(f".old-{folder.name}")  # out of sight at one stroke
        try:
            folder.rename(gone)
            shutil.rmtree(gone)
        except OSError as error:
            raise FedrayError(f"{folder} cannot be removed ({error.strerror}); see who may write there") from error
        with suppress(OSError):  # other versions are there
            folder.parent.rmdir()
        return folder

    def add_fuser(
        self,
        fuser: Fuser,
        sender: MemberInfo,
        receiver: MemberInfo,
        training: Mapping[str, Any],
        root: Path | None = None,
        *,
        halve: bool = True,
    ) -> Artifact:
        """Store a fuser and return where it lies; in 16 bit, unless `halve` is off and every tensor stays as it is."""
        name = fuser_name(sender.name, receiver.name)
        llms = {slug(m.name): {"weights": m.weights_hash, "tokenizer": m.tokenizer_hash} for m in (sender, receiver)}
        tensors = _tensors(fuser, halve)
        return self._add(name, "fuser", tensors, fuser.config.to_dict(), llms, training, root)

    def add_gate(
        self, gate: Gate, receiver: MemberInfo, training: Mapping[str, Any], root: Path | None = None
    ) -> Artifact:
        llms = {slug(receiver.name): {"weights": receiver.weights_hash, "tokenizer": receiver.tokenizer_hash}}
        tensors = _tensors(gate)
        return self._add(gate_name(receiver.name), "gate", tensors, gate.config.to_dict(), llms, training, root)

    def _add(
        self,
        name: str,
        role: str,
        tensors: Mapping[str, torch.Tensor],
        config: dict[str, Any],
        llms: dict[str, dict[str, str]],
        training: Mapping[str, Any],
        root: Path | None,
    ) -> Artifact:
        home = self._home(name, root)
        blob = save_tensors(dict(tensors))
        weights = hashlib.sha256(blob).hexdigest()
        digest = digest_of(role, config, llms, weights)
        manifest = Manifest(name, role, config, llms, dict(training), weights, digest, __version__)
        return manifest.artifact(_write_version(home, manifest, blob))

    def adopt(self, manifest: Manifest, blob: bytes) -> Artifact:
        """Store a version that was made elsewhere and checked (hub.read); blob: its model.safetensors."""
        return manifest.artifact(_write_version(self._home(manifest.name), manifest, blob))

    def _home(self, name: str, root: Path | None = None) -> Path:
        """The folder of a name's versions. Raises FedrayError where none can be stored."""
        root = root or self.path
        if root is None:
            raise FedrayError(f"{name} cannot be stored: the embedded registry is read-only; give registry.path=DIR")
        if not _NAME.fullmatch(name):
            raise FedrayError(f"{name!r} is no name for a registry; use lower-case letters, digits, '.', '_' and '-'")
        return root / name


def load_fuser(artifact: Artifact, device: str = "cpu") -> Fuser:
    """Load a fuser whose file still has the hash its manifest promises. Raises FedrayError.

    An artifact of random weights is made on the spot.
    """
    if artifact.random is not None:
        return build_random(artifact, device)
    manifest, tensors = _read(_locate(artifact))
    with torch.device("meta"):  # a fuser of real size takes gigabytes: only its own tensors are ever in memory
        fuser = build_fuser(FuserConfig.from_dict(manifest.config))
    _fill(fuser, tensors, artifact)
    fuser.norms = norms_in(manifest)
    return fuser.to(device).eval()


def load_gate(artifact: Artifact, device: str = "cpu") -> Gate:
    manifest, tensors = _read(_locate(artifact))
    with torch.device("meta"):
        gate = Gate(GateConfig.from_dict(manifest.config))
    _fill(gate, tensors, artifact)
    return gate.to(device).eval()


def norms_in(manifest: Manifest) -> Norms | None:
    """Read the range of the caches a fuser was trained on; None where training has left none. Raises FedrayError."""
    if RECORD not in manifest.training:
        return None
    try:
        return Norms.from_dict(manifest.training[RECORD], manifest.config["sender"]["layers"])
    except ValueError as error:
        raise FedrayError(f"the manifest of {manifest.name} {manifest.hash}: {error}; train it again") from error


def _locate(artifact: Artifact) -> Path:
    """Where the artifact lies on this machine: another node may have the package installed elsewhere."""
    path, embedded = Path(artifact.path), SHIPPED / artifact.name / artifact.hash
    return embedded if not path.is_dir() and embedded.is_dir() else path


def read_manifest(folder: Path) -> Manifest:
    path = folder / "manifest.json"
    try:
        manifest = Manifest(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise FedrayError(f"{path} cannot be read ({error}); delete the folder or train again") from error
    if manifest.version != MANIFEST_VERSION:
        raise FedrayError(f"{path} has version {manifest.version}, this fedray reads {MANIFEST_VERSION}; update fedray")
    return manifest


def check_weights(manifest: Manifest, folder: Path) -> bytes:
    """The bytes of a version's weights, if they have the hash its manifest promises. Raises FedrayError."""
    path = folder / "model.safetensors"
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise FedrayError(f"{path} cannot be read ({error.strerror}); delete the folder or train again") from error
    if hashlib.sha256(blob).hexdigest() != manifest.weights:
        raise FedrayError(f"{path} is damaged: its hash is not the one in its manifest; delete the folder or reinstall")
    return blob


def _read(folder: Path) -> tuple[Manifest, dict[str, torch.Tensor]]:
    manifest, path = read_manifest(folder), folder / "model.safetensors"
    blob = check_weights(manifest, folder)
    try:
        return manifest, load_tensors(blob)
    except SafetensorError as error:
        raise FedrayError(f"{path} is no safetensors file ({error}); delete the folder or train again") from error


def _fill(module: torch.nn.Module, tensors: dict[str, torch.Tensor], artifact: Artifact) -> None:
    try:
        module.load_state_dict({name: tensors.pop(name).float() for name in tuple(tensors)}, strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise FedrayError(f"{artifact.path} does not hold what its manifest says ({reason}); train it again") from error


def _fits(manifest: Manifest, member: MemberInfo) -> bool:
    return manifest.llms.get(slug(member.name)) == {"weights": member.weights_hash, "tokenizer": member.tokenizer_hash}


def digest_of(role: str, config: Mapping[str, Any], llms: Mapping[str, Any], weights: str) -> str:
    """A version's name: the hash of its weights and of what they mean."""
    meaning = json.dumps({"role": role, "config": config, "llms": llms, "weights": weights}, sort_keys=True)
    return hashlib.sha256(meaning.encode()).hexdigest()[:16]


def _tensors(module: torch.nn.Module, halve: bool = True) -> dict[str, torch.Tensor]:
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(module.state_dict().items())}
    return {name: tensor.to(torch.float16) for name, tensor in kept.items()} if halve else kept


def _age(folder: Path) -> tuple[float, str]:
    manifest = folder / "manifest.json"
    return (-manifest.stat().st_mtime if manifest.is_file() else 0.0, folder.name)


def _write_version(parent: Path, manifest: Manifest, blob: bytes) -> Path:
    """Write a version folder at one stroke: a crash leaves the old ones as they were."""
    final = parent / manifest.hash
    try:
        with whole_folder(final) as folder:
            (folder / "model.safetensors").write_bytes(blob)
            (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise FedrayError(
            f"{final} cannot be written ({error.strerror}); the versions before it are untouched"
        ) from error
    return final
