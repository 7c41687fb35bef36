"""Pack a vocabulary: the bytes of every token, by which another LLM finds its own tokens of the same meaning.

Header: magic `FRVO`, version u16, tokens u32. Buffers: u16 lengths, the bytes one after another, u32 ids that end an
answer.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fedray.wire.payload import CorruptPayload, Payload, checked

MAGIC, VERSION = b"FRVO", 1
_PREFIX = struct.Struct("<4sHI")
_MAX_TOKENS = 1 << 24


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """tokens: per id its bytes, b"" where it has none; stops: ids that end an answer."""

    tokens: tuple[bytes, ...]
    stops: tuple[int, ...]


def pack_vocabulary(tokens: Sequence[bytes], stops: Sequence[int]) -> Payload:
    lengths = np.array([len(token) for token in tokens], np.uint16)
    text = np.frombuffer(b"".join(tokens), np.uint8)
    buffers = (lengths.view(np.uint8), text, np.array(sorted(stops), np.uint32).view(np.uint8))
    return Payload(_PREFIX.pack(MAGIC, VERSION, len(tokens)), buffers)


def unpack_vocabulary(payload: Payload) -> Vocabulary:
    """Validate and unpack a vocabulary. Raises CorruptPayload."""
    payload = checked(payload, "the server")
    if len(payload.header) != _PREFIX.size or len(payload.buffers) != 3:
        raise CorruptPayload("a payload of a vocabulary has the wrong header or number of buffers")
    magic, version, count = _PREFIX.unpack(payload.header)
    lengths, text, stops = payload.buffers
    sound = magic == MAGIC and version == VERSION and count <= _MAX_TOKENS
    if not sound or lengths.nbytes != 2 * count or stops.nbytes % 4:
        raise CorruptPayload("a payload of a vocabulary does not hold together; ask the server again")
    ends = np.cumsum(lengths.view(np.uint16), dtype=np.int64)
    ids = stops.view(np.uint32).tolist()
    if (int(ends[-1]) if count else 0) != text.nbytes or any(i >= count for i in ids):
        raise CorruptPayload("a payload of a vocabulary has other bytes than its lengths say; ask the server again")
    whole, starts = text.tobytes(), [0, *ends.tolist()]
    return Vocabulary(tuple(whole[a:b] for a, b in pairwise(starts)), tuple(ids))
