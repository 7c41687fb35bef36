"""What crosses a process border: a fixed header and byte views, never code.

Layout of `Payload.header`: magic `FRKV`, version u16, body length u32 (little endian), then that many bytes of JSON.
The buffers follow, each a flat uint8 array: the keys of the layers that are sent, their values, each as the codec
writes (N, T, H), T the tokens of all rows one after another, so that a ragged batch travels without its padding
("joined" is 1 where all layers of a side share a buffer, as a single prompt's lie in memory); then int32 positions,
where they are not 0, 1, 2, ..., and int32 (start, end) spans, where they were asked for. Pickle protocol 5 (and so
Ray's object store) moves them out of band without a copy.
"""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedray.llm.cache import KVCache
from fedray.types import FedrayError, KVSpec, Layers
from fedray.wire.codecs import CODECS, SIDES, Block, decode, encode, sizes
from fedray.wire.memory import Shelf, copy_finite

MAGIC = b"FRKV"
VERSION = 3
_PREFIX = struct.Struct("<4sHI")
_MAX_HEADER = 1 << 24
_MAX_SPEC = 1 << 16  # layers, heads or dims: beyond it nobody means it
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHELF = Shelf()


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

    spans: per row a (start, end) character span for every token that was read, or () where the sender gave none.
    whole: per row the tokens that were read, of which the cache may hold but some.
    layers: those that were sent; the others are zeros without memory of their own.
    """

    member: str
    cache: KVCache
    rows: tuple[int, ...]
    spans: tuple[tuple[tuple[int, int], ...], ...]
    whole: tuple[int, ...]
    layers: Layers


def ships(method: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a method that returns (receipt, payload): the payload stays in the object store."""
    method.ships = True  # pyright: ignore[reportFunctionMemberAccess]
    return method


def pack(
    member: str,
    cache: KVCache,
    rows: list[int],
    spans: list[list[tuple[int, int]]] | None = None,
    *,
    codec: str = "none",
    layers: Layers | None = None,
    whole: Tensor | None = None,
) -> Payload:
    """A payload of the valid tokens of `cache`, whose row b belongs to row rows[b] of the request.

    layers: those to send, None is all. whole: (B,), the rows' tokens before some were left out; spans are theirs.
    The buffers are views of the cache where its layout allows.
    """
    if len(rows) != cache.batch:
        raise ValueError(f"payload of {member}: {cache.batch} caches but {len(rows)} row numbers")
    dtype = str(cache.keys[0].dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise ValueError(f"payload of {member}: dtype {dtype} cannot travel; use one of {', '.join(_DTYPES)}")
    valid_BT, lengths = cache.valid_BT(), tuple(cache.lengths.tolist())
    padding = None if min(lengths, default=0) == cache.tokens else valid_BT
    everything = tuple(range(cache.spec.layers))
    layers = layers or (everything, everything)
    buffers: list[Tensor] = []
    joined: list[int] = []
    for side, tensors, chosen in zip(SIDES, (cache.keys, cache.values), layers, strict=True):
        block = Block(side, len(chosen), cache.spec.kv_heads, lengths, cache.spec.head_dim)
        made = encode(codec, block, [_squeeze(tensors[i], padding) for i in chosen])
        joined.append(int(codec == "none" and len(made) < len(chosen)))
        buffers += made
    positions = cache.positions[valid_BT]
    counted = any(layers) and positions.equal(_counted(lengths).to(positions.device))
    buffers += [] if counted else [positions.to(torch.int32)]
    if spans is not None:
        flat = [span for row in spans for span in row]
        buffers.append(torch.tensor(flat, dtype=torch.int32).reshape(-1, 2))
    body = {
        "member": member,
        "spec": [cache.spec.layers, cache.spec.kv_heads, cache.spec.head_dim],
        "dtype": dtype,
        "codec": codec,
        "layers": layers,
        "joined": joined,
        "rows": rows,
        "lengths": lengths,
        "whole": lengths if whole is None else whole.tolist(),
        "positions": not counted,
        "spans": spans is not None,
    }
    text = json.dumps(body, separators=(",", ":")).encode()
    return Payload(_PREFIX.pack(MAGIC, VERSION, len(text)) + text, tuple(map(_bytes, buffers)))


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
    member, codec, wire_dtype = body["member"], body["codec"], _DTYPES[body["dtype"]]
    spec, rows = KVSpec(*body["spec"]), tuple(body["rows"])
    lengths, chosen = tuple(body["lengths"]), tuple(map(tuple, body["layers"]))
    if batch is not None and any(row >= batch for row in rows):
        raise CorruptPayload(f"payload of {member}: it names a row beyond the batch of {batch}; ask the sender again")
    blocks = [
        Block(side, len(of), spec.kv_heads, lengths, spec.head_dim) for side, of in zip(SIDES, chosen, strict=True)
    ]
    parts = [sizes(codec, block, wire_dtype.itemsize, one) for block, one in zip(blocks, body["joined"], strict=True)]
    parts += [[4 * sum(lengths)] * body["positions"], [8 * sum(body["whole"])] * body["spans"]]
    want, got = [size for part in parts for size in part], [b.nbytes for b in payload.buffers]
    if want != got:
        raise CorruptPayload(
            f"payload of {member}: {sum(got)} bytes in {len(got)} buffers where its header promises "
            f"{sum(want)} in {len(want)}; ask the sender again"
        )
    buffers = iter(payload.buffers)
    keys_buffers, values_buffers, positions, spans = ([next(buffers) for _ in part] for part in parts)
    device, dtype = torch.device(device), dtype or wire_dtype
    memory = _memory(sum(block.numbers for block in blocks), dtype, device)
    keys_out, values_out = (
        part.view(block.layers, block.heads, block.tokens, block.dim)
        for block, part in zip(blocks, memory.split([block.numbers for block in blocks]), strict=True)
    )
    if codec == "none" and device.type == "cpu" and dtype == wire_dtype:
        finite = copy_finite(memory, keys_buffers + values_buffers)
    else:
        coded = zip(blocks, (keys_buffers, values_buffers), (keys_out, values_out), strict=True)
        finite = all(
            decode(codec, block, [_tensor(b).to(device) for b in part], wire_dtype, out) for block, part, out in coded
        )
    if not finite:
        raise CorruptPayload(f"payload of {member}: it holds NaN or infinite numbers; the sender is at fault")
    flat = _tensor(positions[0]).view(torch.int32).long() if positions else _counted(lengths)
    valid_BT = torch.arange(max(lengths, default=0))[None] < torch.tensor(lengths, dtype=torch.long)[:, None]
    padded = torch.zeros(valid_BT.shape, dtype=torch.long)
    padded[valid_BT] = flat
    keys, values = (_layers(side, of, spec, valid_BT) for side, of in zip((keys_out, values_out), chosen, strict=True))
    lengths_B = torch.tensor(lengths, dtype=torch.long, device=device)
    cache = KVCache(spec, keys, values, lengths_B, padded.to(device))
    whole = tuple(body["whole"])
    return Shipment(member, cache, rows, _rows_of(spans, whole), whole, (chosen[0], chosen[1]))


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
        keys, values = body["layers"]
        integers = [layers, kv_heads, head_dim, *body["lengths"], *body["rows"], *body["whole"], *keys, *values]
        sound = (
            all(type(n) is int and n >= 0 for n in integers) and 0 < min(body["spec"]) <= max(body["spec"]) < _MAX_SPEC
        )
        sound = sound and isinstance(body["member"], str) and body["dtype"] in _DTYPES and body["codec"] in CODECS
        sound = sound and all(type(body[name]) is bool for name in ("positions", "spans"))
        sound = sound and len(body["joined"]) == 2 and all(type(n) is int and n in (0, 1) for n in body["joined"])
        sound = sound and (body["codec"] != "int4" or head_dim % 2 == 0)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptPayload(f"payload header cannot be read ({error}); ask the sender again") from error
    if not sound:
        raise CorruptPayload("payload header has fields of the wrong type; ask the sender again")
    sound = len(body["lengths"]) == len(body["rows"]) == len(set(body["rows"]))
    sound = sound and len(body["whole"]) == len(body["rows"])
    sound = sound and all(kept <= read for kept, read in zip(body["lengths"], body["whole"], strict=True))
    sound = sound and (body["positions"] or keys or values)  # lengths without bytes to show for them
    if not sound or any(side != sorted(set(side)) or max(side, default=0) >= layers for side in (keys, values)):
        raise CorruptPayload(f"payload of {body['member']}: its header does not hold together; ask the sender again")
    return body


def _bytes(tensor: Tensor) -> np.ndarray:
    """A flat uint8 view of a tensor (bf16 has no NumPy dtype, bytes have)."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _tensor(buffer: np.ndarray) -> Tensor:
    """A tensor over a buffer, never written to: the store's memory is shared with others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(buffer)


def _memory(numbers: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Flat, its content arbitrary."""
    if device.type != "cpu" or not numbers:
        return torch.empty(numbers, dtype=dtype, device=device)
    return torch.from_numpy(_SHELF.take(numbers * dtype.itemsize)).view(dtype)


def _counted(lengths: Sequence[int]) -> Tensor:
    """The positions of rows that begin at 0, one after another: (T,)."""
    return torch.cat([torch.arange(n) for n in lengths]) if lengths else torch.zeros(0, dtype=torch.long)


def _squeeze(tensor_BNTH: Tensor, valid_BT: Tensor | None) -> Tensor:
    """Only valid tokens, None is all: (N, sum of lengths, H); a view for a single row."""
    tensor_NBTH = tensor_BNTH.transpose(0, 1)
    return tensor_NBTH.flatten(1, 2) if valid_BT is None else tensor_NBTH[:, valid_BT]


def _layers(received_LNTH: Tensor, chosen: Sequence[int], spec: KVSpec, valid_BT: Tensor) -> tuple[Tensor, ...]:
    """(B, N, T, H) of every layer: views of what was received, copied only where padding must be put between."""
    batch, tokens = valid_BT.shape
    if not bool(valid_BT.all()):
        padded = received_LNTH.new_zeros(len(chosen), spec.kv_heads, batch * tokens, spec.head_dim)
        received_LNTH = padded.index_copy_(2, valid_BT.flatten().nonzero()[:, 0].to(padded.device), received_LNTH)
    sent = received_LNTH.view(len(chosen), spec.kv_heads, batch, tokens, spec.head_dim).transpose(1, 2)
    nothing = sent.new_zeros(()).expand(batch, spec.kv_heads, tokens, spec.head_dim)
    found = dict(zip(chosen, sent, strict=True))
    return tuple(found.get(layer, nothing) for layer in range(spec.layers))


def _rows_of(spans: list[np.ndarray], lengths: Sequence[int]) -> tuple[tuple[tuple[int, int], ...], ...]:
    if not spans:
        return ()
    rows = _tensor(spans[0]).view(torch.int32).view(-1, 2).split(list(lengths))
    return tuple(tuple((a, b) for a, b in row.tolist()) for row in rows)
