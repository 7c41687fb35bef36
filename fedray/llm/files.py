"""Validate the files of an LLM's folder before torch is imported or a weight is read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedray.llm.catalogue import is_gguf, shown
from fedray.types import FedrayError

CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")  # a tokenizer has one of them
ADAPTER = "adapter_config.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_FLOATS = ("F64", "F32", "BF16", "F16")
_READ = (".json", ".safetensors", ".model", ".txt", ".jinja")
PART = re.compile(r"(?P<name>.+)-(?P<part>\d{5})-of-(?P<of>\d{5})\.gguf", re.IGNORECASE)  # of a GGUF in several files
_POINTER = b"version https://git-lfs"  # what git keeps in the place of a large file
AGAIN = "save it again with save_pretrained(), or copy it again from where the folder comes from"


def titled(member: str, folder: Path) -> str:
    """Name a member and its folder in a sentence."""
    return shown(member) if Path(member) == folder else f"{member}: {shown(str(folder))}"


def check_folder(name: str) -> None:
    """Validate that a path is a GGUF file, or a folder with one or with an LLM's config.json.

    Raises FedrayError naming what it is instead.
    """
    path, title = Path(name), shown(name)
    if is_gguf(name) and not path.exists():
        raise FedrayError(f"{title} does not exist: check the path, or name hf:org/name/file.gguf")
    if path.is_file() and not is_gguf(name):
        raise FedrayError(f"{title} is no LLM's folder, it is a file: give the folder that it lies in")
    if gguf_of(path) is None and not (path / CONFIG).is_file():
        if held := _held(path):
            raise FedrayError(f"{title} is no LLM's folder, it holds {held}")
        below = next((file.parent for depth in ("*", "*/*") for file in sorted(path.glob(f"{depth}/{CONFIG}"))), None)
        remedy = f"give {shown(str(below))}" if below else "check the path, or name hf:org/name"
        raise FedrayError(f"{title} is no LLM's folder, it has no {CONFIG}: {remedy}")


def gguf_of(path: Path) -> Path | None:
    """Find the GGUF file that a path is, or the only one of a folder without a config.json."""
    found = [path] if path.is_file() else [] if (path / CONFIG).is_file() else _ggufs(path)
    return found[0] if len(found) == 1 and is_gguf(found[0].name) else None


def check_files(member: str, folder: Path) -> None:
    """Validate an LLM's folder, of the weights their headers only.

    Raises FedrayError naming a file that is missing, damaged, or a pointer of git-lfs.
    """
    if pointers := sorted(path for path in folder.glob("*") if path.suffix in _READ and _is_pointer(path)):
        several = len(pointers) > 1
        are = "are pointers of git-lfs and not the files" if several else "is a pointer of git-lfs and not the file"
        raise FedrayError(f"{titled(member, folder)}: {_listed(pointers)} {are}: run `git lfs pull` in the folder")
    if not (folder / CONFIG).is_file() and (held := _held(folder)):
        raise FedrayError(f"{titled(member, folder)} is no LLM's folder, it holds {held}")
    for name in (CONFIG, GENERATION):
        if name == CONFIG or (folder / name).is_file():
            parse_config(member, folder / name)
    check_headers(member, weight_files(member, folder))


def parse_config(member: str, path: Path, remedy: str = AGAIN) -> dict[str, Any]:
    """Read the JSON object of a file. Raises FedrayError: missing, damaged."""
    title = titled(member, path.parent)
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise FedrayError(
            f"{title}: {path.name} cannot be read ({error.strerror}); it must be an LLM's folder"
        ) from error
    except (ValueError, RecursionError) as error:
        why = "brackets in brackets without end" if isinstance(error, RecursionError) else error
        raise FedrayError(f"{title}: {path.name} is damaged ({why}); {remedy}") from error
    if not isinstance(values, dict):
        raise FedrayError(f"{title}: {path.name} holds no keys and values; {remedy}")
    return values


def weight_files(member: str, folder: Path) -> list[Path]:
    """List the safetensors of an LLM's folder. Raises FedrayError naming what is missing."""
    title, index = titled(member, folder), folder / INDEX
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not index.is_file():
        held = _held(folder)
        remedy = f", and it holds {held}" if held else ": save the LLM there with save_pretrained()"
        raise FedrayError(f"{title} has no {WEIGHTS}; other formats are not read{remedy}")
    listed = parse_config(member, index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(_is_name(file) for file in listed.values()):
        raise FedrayError(f"{title}: {INDEX} does not say in its weight_map which tensor lies in which file; {AGAIN}")
    shards = sorted({folder / file for file in listed.values()})
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise FedrayError(
            f"{title} lacks {_listed(missing)}, which {INDEX} names: copy {'it' if len(missing) == 1 else 'them'} "
            "there from where the folder comes from"
        )
    return shards


def check_headers(member: str, paths: Sequence[Path]) -> None:
    """Validate the headers of safetensors. Raises FedrayError naming a file that is damaged or truncated."""
    from safetensors import SafetensorError, safe_open

    for path in paths:
        title = titled(member, path.parent)
        if not path.stat().st_size:
            raise FedrayError(f"{title}: {path.name} is empty; {AGAIN}")
        try:
            with safe_open(path, "pt") as file:
                kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise FedrayError(f"{title}: {path.name} is damaged ({error}); {AGAIN}") from error
        if odd := next((name for name, kind in kinds.items() if kind not in _FLOATS), None):
            raise FedrayError(
                f"{title}: {path.name} holds {odd} in {kinds[odd]}, and quantized weights are not read; take the LLM "
                "that they were made from"
            )


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _held(folder: Path) -> str:
    """Say what a folder holds in the place of an LLM, and how to convert it; "" where it is unknown."""
    there = shown(str(folder))
    if (folder / ADAPTER).is_file():
        base = repr(_base(folder))
        return (
            f"a LoRA adapter: merge it into its LLM with peft, PeftModel.from_pretrained(AutoModelForCausalLM."
            f"from_pretrained({base}), {there!r}).merge_and_unload().save_pretrained(NEW), and "
            f"AutoTokenizer.from_pretrained({base}).save_pretrained(NEW)"
        )
    if found := _ggufs(folder):
        if len(found) > 1 and all(PART.fullmatch(file.name) for file in found):
            whole = shown(str(folder / "WHOLE.gguf"))
            return (
                f"parts of a GGUF: make them one with `llama-gguf-split --merge {found[0].name} {whole}` and name that"
            )
        what = f"{len(found)} GGUF files ({_listed(found)})" if len(found) > 1 else found[0].name
        return f"{what}: name the file, as in {shown(str(found[0]))}"
    if found := next((path for kind in _PICKLES for path in sorted(folder.glob(kind))), None):
        return (
            f"{found.name}, a pickle: convert it to safetensors with AutoModelForCausalLM.from_pretrained({there!r})."
            f"save_pretrained({there!r})"
        )
    return ""


def _ggufs(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.glob("*")) if is_gguf(file.name)]


def _base(adapter: Path) -> str:
    """Find the LLM that an adapter was made for."""
    try:
        base = json.loads((adapter / ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        base = None
    return base if isinstance(base, str) and base.isprintable() else "BASE"


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:  # whoever needs it says so
        return False


def _is_name(file: object) -> bool:
    return isinstance(file, str) and bool(file) and Path(file).name == file


def _listed(files: Sequence[Path]) -> str:
    return ", ".join(path.name for path in files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
