"""The manifest of a version in the registry, validated whenever it is read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedray.fusion.build import build_fuser
from fedray.fusion.fuser import Fuser, FuserConfig
from fedray.fusion.gating import GateConfig, GateNetwork
from fedray.fusion.norms import RECORD, Norms
from fedray.llm.catalogue import slug
from fedray.registry.layers_read import layers_read
from fedray.schema import Schema
from fedray.types import Artifact, FedrayError

MANIFEST_VERSION = 1
_LLM = "[a-z0-9][a-z0-9._-]{0,80}"
_NAME = re.compile(f"{_LLM}--{_LLM}")
_HASH = re.compile("[0-9a-f]{16}")
_DEEPEST = 64  # levels of nesting; what fedray writes has fewer than ten


@dataclass(frozen=True, slots=True)
class Manifest:
    """Description of a version of a fuser or gate.

    role: "fuser" or "gate"; config: FuserConfig or GateConfig fields; llms: LLM name -> {weights, tokenizer} hashes;
    training: what it was trained on and for how long; weights: sha256 of model.safetensors; hash: the version's name,
    which covers role, config, llms and weights.
    """

    name: str
    role: str
    config: Mapping[str, Any]
    llms: Mapping[str, Mapping[str, str]]
    training: Mapping[str, Any]
    weights: str
    hash: str
    code: str
    version: int = MANIFEST_VERSION

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read and validate a manifest: types, ranges, names, and its own hash. Raises FedrayError."""
        values = parse_json(text)
        if not isinstance(values, dict):
            raise FedrayError("it holds no object")
        if (version := values.get("version", MANIFEST_VERSION)) != MANIFEST_VERSION:
            raise FedrayError(f"version {ascii(version)[:20]}, this fedray reads {MANIFEST_VERSION}: update fedray")
        manifest = _SCHEMA.read(values)
        manifest._check()
        return manifest

    def to_json(self) -> str:
        """Serialize as manifest.json. Raises FedrayError where that could not be read again."""
        try:
            text = json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"
        except RecursionError as error:
            raise FedrayError("it is nested too deep") from error
        self.from_json(text)
        return text

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

    @property
    def norms(self) -> Norms | None:
        """The range of the caches a fuser was trained on; None where training has left none. Raises FedrayError."""
        if self.role != "fuser" or RECORD not in self.training:
            return None
        try:
            return Norms.from_dict(self.training[RECORD], self.config["sender"]["layers"])
        except ValueError as error:
            raise FedrayError(f"{error}; train it again") from error

    def artifact(self, folder: Path) -> Artifact:
        """Make the artifact by which a plan refers to this version."""
        if self.role == "gate":
            return Artifact(self.name, self.hash, str(folder))
        config = FuserConfig.from_dict(self.config)
        how = {"tokens": config.tokens, "unrotated": config.rotary == "removed"}
        reads_ids = config.token_alignment == "ids"
        return Artifact(self.name, self.hash, str(folder), reads_ids, layers_read(config, folder), **how)

    def build(self) -> Fuser | GateNetwork:
        """Build the module that its config describes, its weights at random. Raises FedrayError."""
        if self.role == "gate":
            return GateNetwork(GateConfig.from_dict(self.config))
        return build_fuser(FuserConfig.from_dict(self.config))

    def _check(self) -> None:
        """Validate what types do not cover: names are printable, and name, LLMs and hash agree."""
        hashes = [text for of_llm in self.llms.values() for text in of_llm.values()]
        if any(len(text) > 200 or not text.isprintable() for text in (self.name, self.code, *self.llms, *hashes)):
            raise FedrayError("a name or hash in it is no printable text of 200 characters at most")
        if self.role not in ("fuser", "gate"):
            raise FedrayError(f"role {self.role[:20]!r}")
        if any(of_llm.keys() != {"weights", "tokenizer"} for of_llm in self.llms.values()):
            raise FedrayError("a hash of an LLM is missing")
        if self.role == "gate":
            config = GateConfig.from_dict(self.config)
            fits = self.name == f"gate--{config.receiver}" and self.llms.keys() == {config.receiver}
            fits = fits and all(re.fullmatch(_LLM, sender) for sender in config.senders)
        else:
            FuserConfig.from_dict(self.config)
            names = tuple(self.llms)
            fits = len(names) in (1, 2) and self.name in (f"{names[0]}--{names[-1]}", f"{names[-1]}--{names[0]}")
        _ = self.norms
        if not fits or not _NAME.fullmatch(self.name):
            raise FedrayError(f"it is called {self.name} and is for {', '.join(self.llms)[:200]}")
        if self.hash != digest_of(self.role, self.config, self.llms, self.weights):
            raise FedrayError("its hash is not that of its content")


_SCHEMA = Schema(Manifest)


def parse_json(text: str) -> Any:
    """Parse JSON from anywhere. Raises FedrayError where it is damaged or nested deeper than _DEEPEST."""
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise FedrayError("it is nested too deep") from error
    except ValueError as error:
        raise FedrayError(f"it is no JSON: {error}") from error
    level = [values]
    for _ in range(_DEEPEST):
        nested = (value for value in level if isinstance(value, dict | list))
        level = [item for value in nested for item in (value.values() if isinstance(value, dict) else value)]
    if level:
        raise FedrayError("it is nested too deep")
    return values


def fuser_name(sender: str, receiver: str) -> str:
    return f"{slug(sender)}--{slug(receiver)}"


def gate_name(receiver: str) -> str:
    return f"gate--{slug(receiver)}"


def digest_of(role: str, config: Mapping[str, Any], llms: Mapping[str, Any], weights: str) -> str:
    """Hash a version's weights and what they mean: its name."""
    meaning = json.dumps({"role": role, "config": config, "llms": llms, "weights": weights}, sort_keys=True)
    return hashlib.sha256(meaning.encode()).hexdigest()[:16]


def is_name(name: str) -> bool:
    """Check whether a text has the form of a fuser's or gate's name."""
    return _NAME.fullmatch(name) is not None


def is_version(folder: Path) -> bool:
    """Check whether a folder is named as a version: NAME/HASH."""
    return is_name(folder.parent.name) and _HASH.fullmatch(folder.name) is not None


def version_folder(root: Path, name: str, digest: str) -> Path:
    """Build the path of a version below a root. Raises FedrayError for an invalid name or hash (path traversal)."""
    if not is_name(name):
        raise FedrayError(f"{name[:100]!r} is no name for a registry; use lower-case letters, digits, '.', '_' and '-'")
    if not _HASH.fullmatch(digest):
        raise FedrayError(f"{digest[:100]!r} is no hash of a version; it has 16 hexadecimal digits")
    return root / name / digest
