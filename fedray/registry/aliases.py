"""Aliases: which version of a name is in service (`stable`), and which is tried on a share of the traffic (`canary`).

They are one file of the user's registry, aliases.json, replaced as a whole; the versions may be embedded ones. Versions
of several kinds lie under one name, and each kind has aliases of its own:

    {"kinds": {"llama-1b--qwen3-0.6b mlp concat": {"stable": HASH, "canary": HASH, "share": 0.1, "before": [HASH]}}}

A kind without aliases is served by its newest version.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fedray.files import locked, write_whole
from fedray.registry.manifest import Manifest, parse_json, version_folder
from fedray.schema import Schema
from fedray.types import FedrayError

ALIASES = "aliases.json"
Served = Mapping[str, tuple[str, ...]]  # name -> hashes, the first that is there and fits is served


@dataclass(frozen=True, slots=True)
class Alias:
    """The aliases of one kind. share: of the traffic that the canary answers; before: former stable ones, the latest
    last."""

    stable: str
    canary: str | None = None
    share: float | None = None
    before: tuple[str, ...] = ()

    def of(self, digest: str) -> str:
        """Name what a version is, as in "canary 0.1"; "" where no alias names it."""
        canary = f"canary {self.share:g}" if self.canary == digest else ""
        return "stable" if self.stable == digest else canary

    def order(self, at: float) -> tuple[str, ...]:
        """List versions in the order in which they serve a draw: where one is gone or damaged, the one before."""
        tried = (self.canary,) if self.canary and self.share and at < self.share else ()
        return tuple(dict.fromkeys((*tried, self.stable, *reversed(self.before))))


@dataclass(frozen=True, slots=True)
class _File:
    kinds: Mapping[str, Alias] = field(default_factory=dict)

    def check(self) -> None:
        """Validate what types do not cover. Raises FedrayError."""
        for kind, alias in self.kinds.items():
            for digest in (alias.stable, *alias.before, *(() if alias.canary is None else (alias.canary,))):
                version_folder(Path(), name_of(kind), digest)
            if (alias.canary is None) != (alias.share is None) or not (alias.share is None or 0 < alias.share < 1):
                raise FedrayError(f"{kind[:200]} needs a canary and a share between 0 and 1, or neither")


_SCHEMA = Schema(_File)


def kind_of(manifest: Manifest) -> str:
    """Tell what kind a version is of, as "llama-1b--qwen3-0.6b mlp concat": what plans of one method choose from."""
    own = manifest.kind if manifest.role == "fuser" else manifest.config.get("fuser")
    return " ".join(filter(None, (manifest.name, own, manifest.operator)))


def read_aliases(root: Path) -> dict[str, Alias]:
    """Read the aliases of a registry by kind; none where it has no such file. Raises FedrayError: damaged."""
    path = root / ALIASES
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise FedrayError("it holds no object")
        found = _SCHEMA.read(values)
        found.check()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)[:200]
        raise FedrayError(
            f"{path} cannot be read ({reason}); mend it, or delete it and name the stable versions anew"
        ) from error
    return dict(found.kinds)


@contextmanager
def changing(root: Path) -> Iterator[dict[str, Alias]]:
    """Read the aliases of a registry and write them when the block ends, unless it fails; one writer at a time.

    Raises FedrayError: damaged, or cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root, fcntl.LOCK_EX):
            aliases = read_aliases(root)
            before = dict(aliases)
            yield aliases
            if aliases != before:
                text = json.dumps(asdict(_File(aliases)), indent=1, sort_keys=True)
                write_whole(root / ALIASES, f"{text}\n")
    except OSError as error:
        raise FedrayError(
            f"{root / ALIASES} cannot be written ({error.strerror}); the aliases before are untouched"
        ) from error


def levels(aliases: Mapping[str, Alias]) -> tuple[tuple[float, Served], ...]:
    """Divide the traffic: what is served up to each share of it, by a draw in [0, 1); the last is stable alone.

    One draw goes for all kinds, so that every canary gets its share, and whoever meets the one of the smallest meets
    all others.
    """
    shares = sorted({alias.share for alias in aliases.values() if alias.share})
    return tuple((upto, _served(aliases, at)) for at, upto in zip((0.0, *shares), (*shares, 1.0), strict=True))


def _served(aliases: Mapping[str, Alias], at: float) -> Served:
    served: dict[str, tuple[str, ...]] = {}
    for kind, alias in aliases.items():
        served[name_of(kind)] = (*served.get(name_of(kind), ()), *alias.order(at))
    return served


def name_of(kind: str) -> str:
    return kind.partition(" ")[0]


def draw(request: str) -> float:
    """Draw a number in [0, 1) for a request's id, always the same."""
    return int.from_bytes(hashlib.sha256(request.encode()).digest()[:6]) / 2**48
