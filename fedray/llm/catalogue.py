"""The names of the LLMs, which mean the same in every zoo. Imports neither torch nor transformers.

A name is one of `members/NAME.yaml`, or any other decoder's: `hf:org/name` or `hf:org/name/file.gguf` on the Hugging
Face hub, a local folder, or a GGUF file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedray.errors import unknown
from fedray.types import FedrayError

# The LLMs of the paper's case study, which every zoo has: the default federation.
NAMES = ("qwen3-0.6b", "qwen2.5-0.5b", "qwen2.5-coder-0.5b", "qwen2.5-1.5b", "llama-1b")

# A built zoo's folder holds llms/NAME, registry/ and world.json; this one ships inside the package.
EMBEDDED = Path(__file__).parent.parent / "zoo" / "weights"
WORLD = "world.json"  # {"seed": the seed of the world its LLMs know}

MEMBERS = Path(__file__).parent / "members"
_HUB = "hf:"
_COPY = re.compile(r"(.+)#\d+")
_REPO = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/((?:\w[\w. +-]*/)*\w[\w. +-]*\.gguf))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Entry:
    """One LLM of the catalogue. repo: its id on the Hugging Face hub; config: its config.json there, which zoo=shapes
    builds; aliases: other names of it."""

    name: str
    repo: str
    config: Mapping[str, Any]
    aliases: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """Its model type in transformers."""
        return self.config["model_type"]


def _read(path: Path) -> Entry:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Entry(path.stem, values["repo"], values["config"], tuple(values.get("aliases", ())))
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise FedrayError(f"{path} does not describe an LLM ({error}): it needs repo and config") from error


CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in map(_read, sorted(MEMBERS.glob("*.yaml")))}
_ALIASES = {alias: entry.name for entry in CATALOGUE.values() for alias in entry.aliases}


def resolve(name: str, role: str = "LLM", zoo: str = "tiny", *, copied: bool = False) -> str:
    """Resolve a name to its canonical form: resolve("llama-3.2-1b") == "llama-1b".

    hf:org/name stays as it is, a folder becomes absolute. copied: allow copies of an LLM (NAME#2). Raises FedrayError
    with the nearest names of the zoo.
    """
    if (original := original_of(name)) != name:
        if not copied:
            raise FedrayError(
                f"{role} {name} is no LLM of its own: copies (NAME#2) take part as senders; write {original}"
            )
        return resolve(original, role, zoo) + name.removeprefix(original)
    if is_foreign(name):
        return _foreign(name, role, zoo)
    canonical = _ALIASES.get(name, name)
    there = NAMES if zoo == "tiny" else tuple(CATALOGUE)
    if canonical in CATALOGUE and canonical not in there:
        raise FedrayError(f"{name} is not in zoo={zoo}: choose zoo=hub or zoo=shapes, or one of {', '.join(there)}")
    if canonical not in there:
        raise unknown(role, name, there)
    return canonical


def copies(name: str, count: int) -> tuple[str, ...]:
    """Name `count` members that are one LLM: copies("llama-1b", 2) == ("llama-1b", "llama-1b#2")."""
    return (name, *(f"{name}#{number}" for number in range(2, count + 1)))


def original_of(name: str) -> str:
    """Strip a copy's number: original_of("llama-1b#2") == "llama-1b". A folder of such a name is an LLM itself."""
    copy = _COPY.fullmatch(name)
    return copy[1] if copy and not (is_foreign(name) and os.path.isdir(os.path.expanduser(name))) else name


def is_copy(name: str) -> bool:
    """Check whether a name is that of a copy: is_copy("llama-1b#2")."""
    return original_of(name) != name


def is_foreign(name: str) -> bool:
    """Check whether a name is that of a repository, a folder or a GGUF file."""
    return name.startswith((_HUB, ".", "~")) or "/" in name or is_gguf(name)


def is_gguf(name: str) -> bool:
    """Check whether a name is that of a GGUF file."""
    return name.lower().endswith(".gguf")


def repo_of(name: str) -> str | None:
    """Find the repository of a name of the catalogue, or on the hub; None for a folder."""
    if name in CATALOGUE:
        return CATALOGUE[name].repo
    return "/".join(name.removeprefix(_HUB).split("/")[:2]) if name.startswith(_HUB) else None


def file_of(name: str) -> str:
    """Find the GGUF file that a name on the hub names in its repository; "" where it names none."""
    found = _REPO.fullmatch(name.removeprefix(_HUB)) if name.startswith(_HUB) else None
    return (found and found[2]) or ""


def slug(name: str) -> str:
    """Convert a name to lower-case letters, digits, dots and dashes: for files, and names of fusers and gates.

    >>> slug("hf:Qwen/Qwen3-4B"), slug("/data/My LLM")
    ('qwen-qwen3-4b', 'my-llm')
    """
    short = name.removeprefix(_HUB) if name.startswith(_HUB) else Path(name).name
    return re.sub(r"[^a-z0-9._]+", "-", short.lower()).strip("-._")[:80]


def shown(name: str) -> str:
    """Format a name for a sentence: a folder below the working directory is relative to it."""
    path = Path(name)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        return f"./{path.relative_to(Path.cwd())}".removesuffix("/.")
    return name


def shortening(names: Iterable[str]) -> Callable[[str], str]:
    """Build a function that shortens folders and files in a text, to as many last parts as tell `names` apart.

    >>> shortening(["/data/a/llm", "/data/b/llm", "/data/c/x.gguf"])("/data/a/llm + /data/c/x.gguf")
    'a/llm + x.gguf'
    """
    known = set(names)
    parts = {name: Path(name).parts for name in known if Path(name).is_absolute()}
    short: dict[str, str] = {}
    for name, own in parts.items():
        others = [other for other in parts.values() if other != own]
        told = (n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in others))
        short[name] = next((tail for n in told if (tail := "/".join(own[-n:])) not in known), name)
    longest = sorted(map(re.escape, short), key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w/.-])(?:{'|'.join(longest)})(?![\w/#-]|\.\w)")
    return (lambda text: pattern.sub(lambda found: short[found[0]], text)) if short else lambda text: text


def safe_name(name: str) -> str:
    """Convert a name to a key of the command line, which has no dots: qwen2.5-0.5b becomes qwen2_5-0_5b, and its
    second copy qwen2_5-0_5b__2."""
    if (original := original_of(name)) != name:
        return f"{safe_name(original)}__{name.removeprefix(original + '#')}"
    return slug(name).replace(".", "_") if is_foreign(name) else name.replace(".", "_")


def _foreign(name: str, role: str, zoo: str) -> str:
    if name.startswith(_HUB):
        if not _REPO.fullmatch(name.removeprefix(_HUB)):
            raise FedrayError(f"{role} {name!r} names no repository: write hf:org/name, or hf:org/name/file.gguf")
        if zoo != "hub":
            raise FedrayError(f"{role} {name} is on the Hugging Face hub: add zoo=hub")
        return name
    if is_gguf(name) and zoo != "hub":
        raise FedrayError(f"{role} {name} is a GGUF file: add zoo=hub")
    if zoo == "tiny":
        raise FedrayError(f"{role} {name} is a folder: add zoo=hub for its weights, or zoo=shapes for its shape alone")
    return str(Path(os.path.expanduser(name)).absolute())
