"""Read the header of a GGUF file (metadata, and where its tensors lie), and validate the file without reading a tensor.

The layout is that of ggml's docs/gguf.md, versions 2 and 3. Arrays are skipped: vocabularies are long.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from fedray.llm.files import PART
from fedray.types import FedrayError

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))  # type -> as struct names it
_TEXT, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4  # ggml's
_ALIGNMENT = 32
AGAIN = "download it again, or copy it again from where it comes from"


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """A tensor's place. shape: in torch's order; kind: ggml's number of its type; offset: from the first tensor."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """values: metadata, of an array a range of its length; start: bytes before the first tensor; size: of the file."""

    values: Mapping[str, Any]
    tensors: tuple[GGUFTensor, ...]
    start: int
    size: int

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture"))


def read_header(file: Path, there: int | None = None) -> GGUFHeader:
    """Read the header of a file. Raises OSError, EOFError where it ends too early, ValueError where it is damaged.

    there: how many of the file's bytes are there, by default all.
    """
    stat = file.stat()
    return _read_header(file, stat.st_size, stat.st_mtime_ns, there)


def check_gguf(title: str, file: Path) -> GGUFHeader:
    """Read and validate a file's header. Raises FedrayError: damaged, cut short, a part of several, not readable here.

    title: the member in a sentence.
    """
    if find_spec("gguf") is None:
        raise FedrayError(f"{title} is a GGUF file, and the package gguf is not installed: pip install 'fedray[gguf]'")
    try:
        header = read_header(file)
    except OSError as error:
        raise FedrayError(f"{title}: {file.name} cannot be read ({error.strerror}); check the path") from error
    except EOFError as error:
        raise FedrayError(f"{title}: {file.name} is cut short, it ends in its header; {AGAIN}") from error
    except ValueError as error:
        raise FedrayError(f"{title}: {file.name} is damaged ({error}); {AGAIN}") from error
    _check_whole(title, file, header)
    _check_size(title, file, header)
    return header


def block_of(kind: int) -> tuple[int, int]:
    """Look up how many numbers a type packs into a block, and the block's bytes. Raises KeyError."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        return GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except ValueError as error:
        raise KeyError(kind) from error


def bytes_of(tensor: GGUFTensor) -> int:
    """Compute a tensor's bytes in the file. Raises KeyError where its type is unknown."""
    numbers, size = block_of(tensor.kind)
    return prod(tensor.shape) // numbers * size


def _check_whole(title: str, file: Path, header: GGUFHeader) -> None:
    """Raises FedrayError where a file is one of several."""
    named, count = PART.fullmatch(file.name), header.values.get("split.count", 0)
    of = int(named["of"]) if named else count
    if not isinstance(of, int) or max(of, count) < 2:
        return
    parts = [file.with_name(f"{named['name']}-{i:05d}-of-{of:05d}.gguf") for i in range(1, of + 1)] if named else []
    missing = [part.name for part in parts[:1000] if not part.is_file()]
    lacks = f", and {missing[0]} is missing: copy it there, then" if missing else ":"
    first = parts[0].name if parts else "FIRST-PART"
    raise FedrayError(
        f"{title}: {file.name} is one of {of} parts of a GGUF{lacks} make them one with `llama-gguf-split --merge "
        f"{first} WHOLE.gguf`"
    )


def _check_size(title: str, file: Path, header: GGUFHeader) -> None:
    """Raises FedrayError where tensors are of a type nobody knows, overlap the header, or lie beyond the file's end."""
    end = header.start
    for tensor in header.tensors:
        try:
            (numbers, _), size = block_of(tensor.kind), bytes_of(tensor)
        except KeyError:
            raise FedrayError(
                f"{title}: {file.name} holds {tensor.name} in ggml's type {tensor.kind}, which the package gguf does "
                "not know; take the LLM in another quantization"
            ) from None
        if not tensor.shape or not all(tensor.shape) or tensor.shape[-1] % numbers:
            raise FedrayError(f"{title}: {file.name} is damaged (the shape of {tensor.name}); {AGAIN}")
        end = max(end, header.start + tensor.offset + size)
    if end > header.size:
        raise FedrayError(f"{title}: {file.name} is cut short ({header.size:,} of {end:,} bytes); {AGAIN}")


@lru_cache(maxsize=16)
def _read_header(file: Path, size: int, changed: int, there: int | None) -> GGUFHeader:
    with file.open("rb") as opened:
        if not size:
            raise EOFError
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, min(size, there or size)).header()


class _Reader:
    """Walks over a header."""

    def __init__(self, data: mmap.mmap, end: int) -> None:
        self.data, self.at, self.end = data, 0, end

    def header(self) -> GGUFHeader:
        if (magic := self.data[:4]) != _MAGIC:
            if _MAGIC.startswith(magic):
                raise EOFError
            raise ValueError(f"it begins with {magic!r} and not with {_MAGIC!r}")
        self.at = 4
        version, tensors, values = self.take("IQQ")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}, and {' and '.join(map(str, _VERSIONS))} are read")
        held = {self.text(): self.value(self.number("I")) for _ in range(values)}
        placed = tuple(self.tensor() for _ in range(tensors))
        alignment = held.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"its alignment is {alignment!r}")
        if not placed:
            raise ValueError("it holds no tensors")
        return GGUFHeader(held, placed, -(-self.at // alignment) * alignment, len(self.data))

    def take(self, form: str) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{form}")
        self.skip(size)
        return struct.unpack_from(f"<{form}", self.data, self.at - size)

    def number(self, form: str) -> int:
        return self.take(form)[0]

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > self.end:
            raise EOFError

    def text(self) -> str:
        length = self.number("Q")
        self.skip(length)
        return self.data[self.at - length : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            return self.number(_form(kind))
        inner, count = self.take("IQ")
        if inner != _TEXT:
            self.skip(count * struct.calcsize(_form(inner)))
            return range(count)
        for _ in range(count):
            self.skip(self.number("Q"))
        return range(count)

    def tensor(self) -> GGUFTensor:
        name, dimensions = self.text(), self.number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"{name!r} has {dimensions} dimensions")
        shape = self.take(f"{dimensions}Q")[::-1]
        return GGUFTensor(name, shape, *self.take("IQ"))


def _form(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"a value is of type {kind}, which is none of GGUF's")
    return _NUMBERS[kind]
