"""The names of the LLMs: one each, whatever zoo stands behind it. Knows neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedray.suggest import unknown


@dataclass(frozen=True, slots=True)
class Entry:
    """One LLM. repo: its id on the Hugging Face hub; family: its model type there; zoos: those that have it."""

    name: str
    repo: str
    family: str
    aliases: tuple[str, ...] = ()
    zoos: tuple[str, ...] = ("tiny",)


CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("qwen3-0.6b", "Qwen/Qwen3-0.6B", "qwen3"),
        Entry("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", "qwen2"),
        Entry("qwen2.5-coder-0.5b", "Qwen/Qwen2.5-Coder-0.5B-Instruct", "qwen2"),
        Entry("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct", "qwen2"),
        Entry("llama-1b", "meta-llama/Llama-3.2-1B-Instruct", "llama", aliases=("llama-3.2-1b",)),
    )
}
NAMES = tuple(CATALOGUE)

# A built zoo's folder holds llms/NAME, registry/ and world.json; this one ships inside the package.
EMBEDDED = Path(__file__).parent.parent / "zoo" / "weights"
WORLD = "world.json"  # {"seed": the seed of the world its LLMs know}
_ALIASES = {alias: entry.name for entry in CATALOGUE.values() for alias in entry.aliases}


def resolve(name: str, role: str = "LLM") -> str:
    """The canonical name: resolve("llama-3.2-1b") == "llama-1b". Raises FedrayError with the nearest names."""
    canonical = _ALIASES.get(name, name)
    if canonical not in CATALOGUE:
        raise unknown(role, name, NAMES)
    return canonical


def entry(name: str) -> Entry:
    """The entry of a name or alias."""
    return CATALOGUE[resolve(name)]


def safe_name(name: str) -> str:
    """The name as a key on the command line, where a dot separates keys: qwen2.5-0.5b becomes qwen2_5-0_5b."""
    return name.replace(".", "_")
