"""The header of a cache on the wire: JSON that is validated, also against what the plan expects.

Layout: magic `FRKV`, version u16, body length u32 (little endian), then that many bytes of JSON.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fedray.methods.method import Wire
from fedray.methods.parts import CODECS
from fedray.text import printable
from fedray.types import FedrayError, KVSpec, Layers

MAGIC, VERSION = b"FRKV", 3
DTYPES = ("float32", "bfloat16", "float16")
_PREFIX = struct.Struct("<4sHI")
_LARGEST = 1 << 31  # of any number in it
_LARGEST_SPEC = 1 << 16  # layers, heads or dims: beyond it nobody means it
_LONGEST = 1 << 20  # bytes, where nobody says what is expected
_DIGITS = 11  # of a number and the comma behind it


class CorruptPayload(FedrayError):
    """A payload whose header, lengths, shapes or numbers do not hold together, or are not those that were asked for."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a packed cache.

    member: who packed it; layers: whose keys, and whose values, are sent; joined: 1 where a side's layers share a
    buffer; rows: of the request; lengths: tokens of each that are sent, whole: that were read; positions, spans:
    whether their buffers follow.
    """

    member: str
    spec: KVSpec
    dtype: str
    codec: str
    layers: Layers
    joined: tuple[int, ...]
    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    whole: tuple[int, ...]
    positions: bool
    spans: bool

    def to_bytes(self) -> bytes:
        spec = [self.spec.layers, self.spec.kv_heads, self.spec.head_dim]
        text = json.dumps({**asdict(self), "spec": spec}, separators=(",", ":")).encode()
        return _PREFIX.pack(MAGIC, VERSION, len(text)) + text


FIELDS = frozenset(entry.name for entry in fields(Header))


@dataclass(frozen=True, slots=True)
class Expected:
    """What a plan lets a sender send.

    member: by the name it was asked by; rows: of the request, ascending; max_tokens: of each, which has at least one;
    layers: whose keys and values; wire: its codec, and whether tokens may be left out; spans: whether each token's
    place in the text was asked for; exact: False where some of the rows, any layers and spans will do.
    """

    member: str
    spec: KVSpec
    rows: tuple[int, ...]
    max_tokens: tuple[int, ...]
    layers: Layers
    wire: Wire = field(default_factory=Wire)
    spans: bool = False
    exact: bool = True

    @property
    def header_bytes(self) -> int:
        """The largest size of its header."""
        numbers = 3 * len(self.rows) + sum(map(len, self.layers))
        return 512 + 6 * len(self.member.encode()) + _DIGITS * numbers

    def check(self, header: Header) -> None:
        """Validate a header. Raises CorruptPayload naming the sender and what is not as it was asked for."""
        if header.member != self.member:
            raise CorruptPayload(f"payload of {self.member}: it says it is of {printable(header.member, 60)!r}")
        cache, codec = f"a cache of {header.spec} (layers x heads x dim)", f"codec {header.codec}"
        for what, got, want in ((cache, header.spec, self.spec), (codec, header.codec, self.wire.codec)):
            if got != want:
                raise CorruptPayload(f"payload of {self.member}: {what} where {want} was asked for")
        other = [name for name in ("rows", "layers", "spans") if getattr(header, name) != getattr(self, name)]
        if other if self.exact else header.rows != tuple(row for row in self.rows if row in header.rows):
            raise CorruptPayload(f"payload of {self.member}: it holds other {other[0]} than were asked for")
        most = dict(zip(self.rows, self.max_tokens, strict=True))
        for row, sent, read in zip(header.rows, header.lengths, header.whole, strict=True):
            if not 1 <= sent <= read <= most[row]:
                raise CorruptPayload(
                    f"payload of {self.member}: {sent} of {read} tokens in row {row}, where 1 to {most[row]} can be"
                )
        if self.wire.keep >= 1 and header.lengths != header.whole:
            raise CorruptPayload(f"payload of {self.member}: it leaves out tokens, which nobody asked for")


def read_header(data: object, expected: Expected | None = None) -> Header:
    """Read and validate a header: its length, its form, the range of every number, and what is expected.

    Raises CorruptPayload.
    """
    of = "payload" if expected is None else f"payload of {expected.member}"
    longest = _LONGEST if expected is None else expected.header_bytes
    if type(data) is not bytes or not _PREFIX.size <= len(data) <= _PREFIX.size + longest:
        size = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        least, most = _PREFIX.size, _PREFIX.size + longest
        raise CorruptPayload(f"{of}: its header is {size} where {least} to {most} bytes can be")
    magic, version, length = _PREFIX.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise CorruptPayload(f"{of}: it starts with {magic!r} version {version}, expected {MAGIC!r} version {VERSION}")
    if length != len(data) - _PREFIX.size:
        raise CorruptPayload(f"{of}: its header promises {length} bytes and has {len(data) - _PREFIX.size}")
    try:
        header = _typed(json.loads(data[_PREFIX.size :], object_pairs_hook=_unique, parse_constant=_refuse))
    except (ValueError, TypeError, RecursionError) as error:
        reason = printable(str(error), 200)
        raise CorruptPayload(f"{of}: its header cannot be read ({reason}); ask the sender again") from error
    if not _is_sound(header):
        raise CorruptPayload(f"{of}: its header does not hold together; ask the sender again")
    if expected is not None:
        expected.check(header)
    return header


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _typed(body: Any) -> Header:
    """Validate the types of the fields. Raises ValueError or TypeError."""
    if not isinstance(body, dict) or body.keys() != FIELDS:
        raise ValueError("it has other fields than a header")
    for name, kind in (("member", str), ("dtype", str), ("codec", str), ("positions", bool), ("spans", bool)):
        if type(body[name]) is not kind:
            raise ValueError(f"{name} is no {kind.__name__}")
    keys, values = body["layers"]
    numbers = {name: _integers(body[name]) for name in ("joined", "rows", "lengths", "whole")}
    spec = KVSpec(*_integers(body["spec"]))
    return Header(**{**body, **numbers, "spec": spec, "layers": (_integers(keys), _integers(values))})


def _integers(found: Any) -> tuple[int, ...]:
    if type(found) is not list or not all(type(n) is int and 0 <= n < _LARGEST for n in found):
        raise ValueError(f"a list of whole numbers below {_LARGEST} is something else")
    return tuple(found)


def _is_sound(h: Header) -> bool:
    spec = (h.spec.layers, h.spec.kv_heads, h.spec.head_dim)
    sound = 0 < min(spec) <= max(spec) < _LARGEST_SPEC and h.dtype in DTYPES and h.codec in CODECS
    sound = sound and (h.codec != "int4" or h.spec.head_dim % 2 == 0)
    sound = sound and len(h.joined) == 2 and max(h.joined) <= 1
    sound = sound and len(h.lengths) == len(h.rows) == len(h.whole) == len(set(h.rows))
    sound = sound and all(kept <= read for kept, read in zip(h.lengths, h.whole, strict=True))
    sound = sound and (h.positions or any(h.layers))  # lengths without bytes to show for them
    return sound and all(side == tuple(sorted(set(side))) and max(side, default=0) < h.spec.layers for side in h.layers)
