"""What crosses a process border: a fixed header and byte views, never code.

Layout of `Payload.header`: magic `FRKV`, version u16, body length u32 (little endian), then that many bytes of JSON.
The buffers follow in the order the JSON names them, each a flat uint8 array. Pickle protocol 5 (and so Ray's object
store) moves them out of band without a copy. A ragged batch travels without its padding.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedray.llm.cache import KVCache
from fedray.types import FedrayError, KVSpec

MAGIC = b"FRKV"
VERSION = 1
_PREFIX = struct.Struct("<4sHI")
_MAX_HEADER = 1 << 24
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class CorruptPayload(FedrayError):
    """A payload whose header, lengths, shapes or numbers do not hold together."""


@dataclass(frozen=True, slots=True)
class Payload:
    """One cache on its way. `header` describes `buffers`; nothing in it is trusted before `unpack` has checked it."""

    header: bytes
    buffers: tuple[np.ndarray, ...]

    @property
    def nbytes(self) -> int:
        """Bytes on the wire: header and buffers."""
        return len(self.header) + sum(b.nbytes for b in self.buffers)


@dataclass(frozen=True, slots=True)
class Shipment:
    """An unpacked payload: whose cache, which rows of the request it belongs to, and each token's place in the text.

    spans: per row a (start, end) character span for every token, or () where the sender gave none.
    """

    member: str
    cache: KVCache
    rows: tuple[int, ...]
    spans: tuple[tuple[tuple[int, int], ...], ...]


def pack(member: str, cache: KVCache, rows: list[int], spans: list[list[tuple[int, int]]] | None = None) -> Payload:
    """A payload of the valid tokens of `cache`, whose row b belongs to row rows[b] of the request."""
    if len(rows) != cache.batch:
        raise ValueError(f"payload of {member}: {cache.batch} caches but {len(rows)} row numbers")
    lengths = [int(n) for n in cache.lengths]
    dtype = str(cache.keys[0].dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise ValueError(f"payload of {member}: dtype {dtype} cannot travel; use one of {', '.join(_DTYPES)}")
    valid = cache.valid_BT()
    ragged = not bool(valid.all())
    body = {
        "member": member,
        "spec": [cache.spec.layers, cache.spec.kv_heads, cache.spec.head_dim],
        "dtype": dtype,
        "rows": rows,
        "lengths": lengths,
        "spans": spans or [],
    }
    buffers = [_bytes(_squeeze(t, valid, ragged)) for t in (*cache.keys, *cache.values)]
    buffers.append(_bytes(cache.positions[valid].to(torch.int32)))
    text = json.dumps(body, separators=(",", ":")).encode()
    return Payload(_PREFIX.pack(MAGIC, VERSION, len(text)) + text, tuple(buffers))


def unpack(
    payload: Payload,
    *,
    batch: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Shipment:
    """Check a payload and rebuild its cache in memory of one's own (one copy). Raises CorruptPayload.

    batch: rows of the request it belongs to; nothing is allocated for a payload that names others.
    """
    body = _read_header(payload.header)
    member = str(body["member"])
    spec = KVSpec(*body["spec"])
    lengths, rows, spans = body["lengths"], body["rows"], body["spans"]
    wire_dtype = _DTYPES.get(body["dtype"])
    sound = len(lengths) == len(rows) == len(set(rows)) and (not spans or [len(s) for s in spans] == lengths)
    if batch is not None and any(row >= batch for row in rows):
        raise CorruptPayload(f"payload of {member}: it names a row beyond the batch of {batch}; ask the sender again")
    if wire_dtype is None or not sound or len(payload.buffers) != 2 * spec.layers + 1:
        raise CorruptPayload(f"payload of {member}: its header does not hold together; ask the sender again")
    total = sum(lengths)
    count = total * spec.kv_heads * spec.head_dim
    want = [count * wire_dtype.itemsize] * (2 * spec.layers) + [4 * total]
    got = [b.nbytes for b in payload.buffers]
    if want != got:
        raise CorruptPayload(
            f"payload of {member}: {sum(got)} bytes in {len(got)} buffers where its header promises "
            f"{sum(want)} in {len(want)}; ask the sender again"
        )
    longest = max(lengths, default=0)
    lengths_B = torch.tensor(lengths, dtype=torch.long)
    valid = torch.arange(longest)[None] < lengths_B[:, None]
    layers = [_unsqueeze(b, wire_dtype, spec, valid) for b in payload.buffers[:-1]]
    check_finite(member, layers)
    positions = torch.zeros(len(rows), longest, dtype=torch.long)
    positions[valid] = torch.from_numpy(payload.buffers[-1].view(np.int32).copy()).long()
    layers = [layer.to(device=device, dtype=dtype or wire_dtype) for layer in layers]
    cache = KVCache(
        spec,
        tuple(layers[: spec.layers]),
        tuple(layers[spec.layers :]),
        lengths_B.to(device),
        positions.to(device),
    )
    return Shipment(member, cache, tuple(rows), tuple(tuple((a, b) for a, b in row) for row in spans))


def check_finite(member: str, layers: Sequence[Tensor]) -> None:
    """Raises CorruptPayload where a number is NaN or infinite."""
    if not all(bool(torch.isfinite(layer).all()) for layer in layers):
        raise CorruptPayload(f"payload of {member}: it holds NaN or infinite numbers; the sender is at fault")


def _read_header(header: bytes) -> dict[str, Any]:
    if len(header) < _PREFIX.size:
        raise CorruptPayload(f"payload header of {len(header)} bytes is shorter than {_PREFIX.size}")
    magic, version, length = _PREFIX.unpack_from(header)
    if magic != MAGIC or version != VERSION:
        raise CorruptPayload(f"payload starts with {magic!r} version {version}, expected {MAGIC!r} version {VERSION}")
    if length > _MAX_HEADER or length != len(header) - _PREFIX.size:
        raise CorruptPayload(f"payload header promises {length} bytes and has {len(header) - _PREFIX.size}")
    try:
        body = json.loads(header[_PREFIX.size :])
        layers, kv_heads, head_dim = body["spec"]
        integers = [layers, kv_heads, head_dim, *body["lengths"], *body["rows"]]
        sound = all(type(n) is int and n >= 0 for n in integers) and math.prod(body["spec"]) > 0
        sound = sound and isinstance(body["member"], str)
        sound = sound and all(type(n) is int for row in body["spans"] for start, end in row for n in (start, end))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptPayload(f"payload header cannot be read ({error}); ask the sender again") from error
    if not sound:
        raise CorruptPayload("payload header has fields of the wrong type; ask the sender again")
    return body


def _bytes(tensor: Tensor) -> np.ndarray:
    """A flat uint8 view of a tensor (bf16 has no NumPy dtype, bytes have)."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _squeeze(tensor_BNTH: Tensor, valid_BT: Tensor, ragged: bool) -> Tensor:
    """Only valid tokens: (sum of lengths, N, H)."""
    tensor_BTNH = tensor_BNTH.transpose(1, 2)
    return tensor_BTNH[valid_BT] if ragged else tensor_BTNH.flatten(0, 1)


def _unsqueeze(buffer: np.ndarray, dtype: torch.dtype, spec: KVSpec, valid_BT: Tensor) -> Tensor:
    """(B, N, T, H) from the bytes of the valid tokens, padding zero."""
    size, ragged = (*valid_BT.shape, spec.kv_heads * spec.head_dim * dtype.itemsize), not bool(valid_BT.all())
    if ragged:
        padded = np.zeros(size, np.uint8)
        padded[valid_BT.numpy()] = buffer.reshape(-1, size[-1])
    else:
        padded = buffer.reshape(size).copy()  # the store's memory is shared with others
    flat = torch.from_numpy(padded).view(dtype)
    return flat.unflatten(-1, (spec.kv_heads, spec.head_dim)).transpose(1, 2)
