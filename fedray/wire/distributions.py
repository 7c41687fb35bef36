"""Encode next-token distributions for the wire: the top K entries of each, ids in few bits, probabilities as float16.

Layout of the header: magic `FRTK`, version u16, flags u16, rows u16, vocabulary u32, K u32,
unmapped mass f32 (of all positions, on tokens that the vocabulary lacks), then per row of the request
its number and its positions (u16 each). Buffers: per position the K ids (ids.py; none where K is the whole vocabulary)
and K float16 probabilities in the order of the ids; a bitmap of the positions that have a distribution, where some have
none (flag 1); and, to measure by, every distribution whole in float32 (flag 2), which does not count as sent.

float16 has 11 bits of a probability from 6e-5 up and steps of 6e-8 below; bfloat16 has 8 bits of any. Rounding never
changes which token is the likeliest.
Shape legend: N positions that have a distribution, K entries kept, V vocabulary.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedray.methods.specfed import SpecFed
from fedray.wire.ids import pack_ids, row_bytes, unpack_ids
from fedray.wire.payload import CorruptPayload, Payload, checked

MAGIC, VERSION = b"FRTK", 1
SOME, WHOLE = 1, 2
_PREFIX = struct.Struct("<4sHHHIIf")
_ROW = struct.Struct("<HH")
_SUM = 1 + 2**-6  # float16 rounds the many small ones of a large vocabulary by up to half a step of 6e-8
_MAX_NUMBERS = 1 << 31


@dataclass(frozen=True, slots=True)
class SparseRows:
    """Unpacked distributions. rows: per row of the request its number and its positions, of which has_P are there.

    ids_NK ascending, probabilities_NK as they were (float32 again, not scaled); whole_NV: where they were sent to
    measure by; unmapped: mass, of all positions together, on tokens that this vocabulary lacks.
    """

    rows: tuple[tuple[int, int], ...]
    has_P: Tensor
    ids_NK: Tensor
    probabilities_NK: Tensor
    vocabulary: int
    whole_NV: Tensor | None
    unmapped: float

    def at_all(self, values_N: Tensor) -> Tensor:
        """Scatter values of the positions that have a distribution to all positions; 0 at the others."""
        if len(values_N) == len(self.has_P):
            return values_N
        at_all = values_N.new_zeros(len(self.has_P), *values_N.shape[1:])
        at_all[self.has_P] = values_N
        return at_all


def count_of(top_k: int | float, vocabulary: int) -> int:
    """Compute K: an integer counts entries, a float is their share of the vocabulary; at least 1, at most all."""
    wanted = top_k if isinstance(top_k, int) else math.ceil(top_k * vocabulary)
    return max(1, min(wanted, vocabulary))


def top_entries(probabilities_NV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Select the likeliest entries: ids (N, K), ascending, and probabilities (N, K) in float16."""
    vocabulary = probabilities_NV.shape[1]
    if count == vocabulary:
        exact_NK = probabilities_NV.float()
        ids_NK = _all_ids(len(exact_NK), vocabulary, exact_NK.device)
    else:
        best_N1 = probabilities_NV.argmax(1, keepdim=True)  # of several likeliest, the one of greedy decoding
        ids_NK = probabilities_NV.scatter(1, best_N1, math.inf).topk(count, dim=1).indices.sort(dim=1).values
        exact_NK = probabilities_NV.gather(1, ids_NK).float()
    rounded_NK = exact_NK.half()
    best_N1 = exact_NK.argmax(1, keepdim=True)
    ties_NK = (rounded_NK == rounded_NK.gather(1, best_N1)) & (exact_NK < exact_NK.gather(1, best_N1))
    below_NK = (rounded_NK.view(torch.int16) - 1).clamp(min=0).view(torch.float16)
    return ids_NK, torch.where(ties_NK, below_NK, rounded_NK)


def _all_ids(rows: int, vocabulary: int, device: torch.device | str) -> Tensor:
    return torch.arange(vocabulary, device=device).expand(rows, -1)


def pack_distributions(
    probabilities_NV: Tensor,
    rows: Sequence[tuple[int, int]],
    count: int,
    *,
    has_P: Tensor | None = None,
    whole: bool = False,
    unmapped: float = 0.0,
) -> Payload:
    """Pack distributions, the positions of all rows one after another.

    rows: number and positions of each; has_P: which positions have a distribution, None is all; whole: send them as
    they are too, to measure by.
    """
    vocabulary = probabilities_NV.shape[1]
    ids_NK, kept_NK = (t.cpu().numpy() for t in top_entries(probabilities_NV, count))
    buffers = [pack_ids(ids_NK, vocabulary), kept_NK.view(np.uint8)]
    flags = WHOLE * whole
    if has_P is not None and not bool(has_P.all()):
        flags |= SOME
        buffers.append(np.packbits(has_P.cpu().numpy()))
    if whole:
        buffers.append(probabilities_NV.float().cpu().numpy().view(np.uint8))
    header = _PREFIX.pack(MAGIC, VERSION, flags, len(rows), vocabulary, count, unmapped)
    header += b"".join(_ROW.pack(*row) for row in rows)
    return Payload(header, tuple(np.ascontiguousarray(buffer).reshape(-1) for buffer in buffers))


def sent_bytes(payload: Payload) -> int:
    """Count the bytes on the wire, without what is there to measure by."""
    flags = _PREFIX.unpack_from(payload.header)[2]
    return payload.nbytes - (payload.buffers[-1].nbytes if flags & WHOLE else 0)


def unpack_distributions(
    payload: Payload,
    *,
    rows: Sequence[tuple[int, int]],
    how: SpecFed | None = None,
    vocabulary: int | None = None,
    device: str | torch.device = "cpu",
) -> SparseRows:
    """Validate and unpack a payload. Raises CorruptPayload.

    rows: the numbers and positions that were asked for; how: how many entries of each, and whether whole ones are sent
    beside; vocabulary: of who asked, which the sender's is close to. Nothing is allocated for anything else. None,
    where nobody asked (in measurements): whatever holds together.
    """
    payload, asked = checked(payload, "a worker"), vocabulary
    flags, vocabulary, count, unmapped, found = _read_header(payload.header)
    if found != tuple(rows):
        raise CorruptPayload(f"a payload of distributions has other rows and positions; asked were {tuple(rows)}")
    if asked is not None and vocabulary > 2 * asked:
        raise CorruptPayload(f"a payload of distributions over {vocabulary} tokens, where about {asked} are right")
    if how is not None and (count, bool(flags & WHOLE)) != (count_of(how.top_k, vocabulary), how.measure):
        raise CorruptPayload("a payload of distributions has other entries than were asked for")
    positions, buffers = sum(n for _, n in rows), payload.buffers
    if len(buffers) != 2 + bool(flags & SOME) + bool(flags & WHOLE):
        raise CorruptPayload(f"a payload of distributions has {len(buffers)} buffers, not what its header promises")
    has = np.ones(positions, bool)
    if flags & SOME:
        if buffers[2].nbytes != -(-positions // 8):
            raise CorruptPayload(
                f"a payload of distributions has a bitmap of {buffers[2].nbytes} bytes for {positions}"
            )
        has = np.unpackbits(buffers[2], count=positions).astype(bool)
    there = int(has.sum())
    want = [there * row_bytes(count, vocabulary), 2 * there * count, 4 * there * vocabulary]
    got = [buffers[0].nbytes, buffers[1].nbytes, *([buffers[-1].nbytes] if flags & WHOLE else [])]
    if got != want[: len(got)]:
        raise CorruptPayload(f"a payload of distributions has buffers of {got} bytes where {want[: len(got)]} belong")
    packed = buffers[0].reshape(there, row_bytes(count, vocabulary))
    if count == vocabulary:
        ids = _all_ids(there, vocabulary, device)
    elif (found_NK := unpack_ids(packed, count, vocabulary)) is not None:
        ids = torch.from_numpy(found_NK).to(device)
    else:
        raise CorruptPayload(f"a payload of distributions has ids that are not {count} ascending ones of {vocabulary}")
    kept_NK = torch.from_numpy(buffers[1].view(np.float16).reshape(there, count).astype(np.float32))
    whole = [torch.from_numpy(buffers[-1].view(np.float32).reshape(there, vocabulary).copy())] if flags & WHOLE else []
    if not all(map(_is_distribution, (kept_NK, *whole))):
        raise CorruptPayload("a payload of distributions holds numbers that are no probabilities")
    whole_NV, has_P = whole[0].to(device) if whole else None, torch.from_numpy(has).to(device)
    return SparseRows(tuple(rows), has_P, ids, kept_NK.to(device), vocabulary, whole_NV, unmapped)


def _read_header(header: bytes) -> tuple[int, int, int, float, tuple[tuple[int, int], ...]]:
    """Read and validate a header: (flags, vocabulary, K, unmapped mass, rows)."""
    if len(header) < _PREFIX.size:
        raise CorruptPayload(f"a header of distributions is shorter than {_PREFIX.size} bytes, or no bytes")
    magic, version, flags, rows, vocabulary, count, unmapped = _PREFIX.unpack_from(header)
    if magic != MAGIC or version != VERSION:
        raise CorruptPayload(f"payload starts with {magic!r} version {version}, expected {MAGIC!r} version {VERSION}")
    if len(header) != _PREFIX.size + rows * _ROW.size:
        raise CorruptPayload(f"a header of {len(header)} bytes does not hold {rows} rows")
    found = tuple((row, n) for row, n in _ROW.iter_unpack(header[_PREFIX.size :]))
    sound = flags <= SOME | WHOLE and 0 < count <= vocabulary and len({row for row, _ in found}) == len(found)
    sound = sound and 0 <= unmapped <= 1.01 * sum(n for _, n in found)
    if not sound or sum(n for _, n in found) * vocabulary > _MAX_NUMBERS:
        raise CorruptPayload("a header of distributions has fields that do not hold together; ask the worker again")
    return flags, vocabulary, count, unmapped, found


def _is_distribution(numbers_NK: Tensor) -> bool:
    if not numbers_NK.numel():
        return True
    low, high = numbers_NK.aminmax()
    sums_N = numbers_NK.sum(1)
    return bool(low >= 0 and high <= 1 and (sums_N <= _SUM).all() and (sums_N > 0).all())
