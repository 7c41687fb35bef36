"""Pack and unpack caches: a header and byte views, never code.

`Payload.header` (header.py) describes the buffers, each a flat uint8 array: the keys of the layers that are sent, their
values, each as the codec writes (N, T, H), T the tokens of all rows one after another, so that a ragged batch travels
without its padding ("joined" is 1 where all layers of a side share a buffer, as a single prompt's lie in memory); then
int32 positions, where they are not 0, 1, 2, ..., and int32 (start, end) spans, where they were asked for. Pickle
protocol 5 (and so Ray's object store) moves them out of band without a copy.

What arrives stays as it came, all rows one after another: nothing is padded before it is fused, so that unpacking takes
as many numbers as came, in one's own precision (at most 8 times the bytes, from int4), and 48 bytes per token.
Shape legend: L layers that were sent, N kv heads, B rows, T tokens of the longest, S tokens of all rows, H head dim.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedray.llm.cache import KVCache, side_by_side
from fedray.text import printable
from fedray.types import FedrayError, KVSpec, Layers
from fedray.wire.codecs import SIDES, CacheSide, decode, encode, sizes
from fedray.wire.header import DTYPES, CorruptPayload, Expected, Header, read_header
from fedray.wire.memory import Shelf, copy_finite

OVERLAP = 16  # characters that tokens next to each other may share: some cut through one
TEMPLATE = (-2, 0)  # the smallest span: of a template's token (llm/model.py)
_SHELF = Shelf()


@dataclass(frozen=True, slots=True)
class Payload:
    """One packed cache. `header` describes `buffers`; nothing in it is trusted before `unpack` has validated it."""

    header: bytes
    buffers: tuple[np.ndarray, ...]

    @property
    def nbytes(self) -> int:
        """Bytes on the wire: header and buffers."""
        return len(self.header) + sum(b.nbytes for b in self.buffers)


def checked(payload: object, of: str) -> Payload:
    """Validate that what a member called `of` sent is a payload of flat arrays of bytes.

    Raises CorruptPayload, or the error that stands for what could not be opened.
    """
    if isinstance(payload, FedrayError):
        raise payload
    if type(payload) is not Payload:
        raise CorruptPayload(f"{of} sent no payload but {type(payload).__name__}; its program is at fault")
    sound = type(payload.header) is bytes and type(payload.buffers) is tuple
    if not sound or not all(map(_is_flat, payload.buffers)):
        raise CorruptPayload(
            f"payload of {of}: its header or buffers are no flat arrays of bytes; ask the sender again"
        )
    return payload


def _is_flat(buffer: object) -> bool:
    return type(buffer) is np.ndarray and buffer.dtype == np.uint8 and buffer.ndim == 1 and buffer.flags.c_contiguous


@dataclass(frozen=True, slots=True)
class Shipment:
    """An unpacked payload: a member's cache, its rows of the request, and each token's place in the text.

    sent: keys and values (L, N, S, H) of the layers that came, `layers` says which; positions: (S,). spans: per row a
    (start, end) character span for every token that was read, or () where the sender gave none. lengths, whole: per row
    the tokens that came, and those that were read.
    """

    member: str
    spec: KVSpec
    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    sent: tuple[Tensor, Tensor]
    positions: Tensor
    spans: tuple[tuple[tuple[int, int], ...], ...]
    whole: tuple[int, ...]
    layers: Layers

    @property
    def flat(self) -> KVCache:
        """The tokens of all rows one after another, as one row; layers that did not come are zeros without memory."""
        count = self.positions.new_tensor([sum(self.lengths)])
        keys, values = (_layers(side, of, self.spec) for side, of in zip(self.sent, self.layers, strict=True))
        return KVCache(self.spec, keys, values, count, self.positions[None])

    @property
    def cache(self) -> KVCache:
        """The rows side by side, padded to the longest."""
        flat, lengths_B = self.flat, self.positions.new_tensor(self.lengths)
        keys, values = (tuple(side_by_side(t, self.lengths) for t in side) for side in (flat.keys, flat.values))
        return KVCache(self.spec, keys, values, lengths_B, side_by_side(flat.positions[:, None], self.lengths)[:, 0])


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
    """Pack the valid tokens of `cache`, whose row b belongs to row rows[b] of the request.

    layers: those to send, None is all. whole: (B,), the rows' tokens before some were left out; spans are theirs.
    The buffers are views of the cache where its layout allows.
    """
    if len(rows) != cache.batch:
        raise ValueError(f"payload of {member}: {cache.batch} caches but {len(rows)} row numbers")
    dtype = str(cache.keys[0].dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"payload of {member}: dtype {dtype} cannot travel; use one of {', '.join(DTYPES)}")
    valid_BT, lengths = cache.valid_BT(), tuple(cache.lengths.tolist())
    padding = None if min(lengths, default=0) == cache.tokens else valid_BT
    everything = tuple(range(cache.spec.layers))
    layers = layers or (everything, everything)
    buffers: list[Tensor] = []
    joined: list[int] = []
    for side, tensors, chosen in zip(SIDES, (cache.keys, cache.values), layers, strict=True):
        block = CacheSide(side, len(chosen), cache.spec.kv_heads, lengths, cache.spec.head_dim)
        made = encode(codec, block, [_squeeze(tensors[i], padding) for i in chosen])
        joined.append(int(codec == "none" and len(made) < len(chosen)))
        buffers += made
    positions = cache.positions[valid_BT]
    counted = any(layers) and positions.equal(_counted(lengths).to(positions.device))
    buffers += [] if counted else [positions.to(torch.int32)]
    if spans is not None:
        flat = [span for row in spans for span in row]
        buffers.append(torch.tensor(flat, dtype=torch.int32).reshape(-1, 2))
    read = lengths if whole is None else tuple(whole.tolist())
    tokens = (tuple(joined), tuple(rows), lengths, read)
    buffered = {"positions": not counted, "spans": spans is not None}
    header = Header(member, cache.spec, dtype, codec, layers, *tokens, **buffered)
    return Payload(header.to_bytes(), tuple(map(_bytes, buffers)))


def unpack(
    payload: Payload,
    expected: Expected | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Shipment:
    """Validate a payload and unpack it into memory of one's own (one copy). Raises CorruptPayload.

    expected: what its sender was asked for; nothing is allocated for anything else. None, where nobody was asked (in
    measurements): whatever holds together.
    """
    payload = checked(payload, "a member" if expected is None else expected.member)
    header = read_header(payload.header, expected)
    member, codec = printable(header.member, 60), header.codec
    wire_dtype: torch.dtype = getattr(torch, header.dtype)
    spec, lengths, chosen = header.spec, header.lengths, header.layers
    blocks = [
        CacheSide(side, len(of), spec.kv_heads, lengths, spec.head_dim) for side, of in zip(SIDES, chosen, strict=True)
    ]
    parts = [sizes(codec, block, wire_dtype.itemsize, one) for block, one in zip(blocks, header.joined, strict=True)]
    parts += [[4 * sum(lengths)] * header.positions, [8 * sum(header.whole)] * header.spans]
    want, got = [size for part in parts for size in part], [b.nbytes for b in payload.buffers]
    if want != got:
        raise CorruptPayload(
            f"payload of {member}: {sum(got)} bytes in {len(got)} buffers where its header promises "
            f"{sum(want)} in {len(want)}; ask the sender again"
        )
    buffers = iter(payload.buffers)
    keys_buffers, values_buffers, positions, spans = ([next(buffers) for _ in part] for part in parts)
    positions_S = _positions(header, positions)
    whole_S = torch.tensor(header.whole, dtype=torch.long).repeat_interleave(torch.tensor(lengths, dtype=torch.long))
    beyond = positions_S is None or bool((positions_S >= whole_S).any())
    if positions_S is None or (beyond and expected is not None):
        raise CorruptPayload(f"payload of {member}: its tokens stand where none were read; ask the sender again")
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
    places = _rows_of(spans[0].view(np.int32).reshape(-1, 2), header.whole) if spans else ()
    if places is None:
        raise CorruptPayload(f"payload of {member}: its tokens' places are in no text; ask the sender again")
    return Shipment(
        member, spec, header.rows, lengths, (keys_out, values_out), positions_S.to(device), places, header.whole, chosen
    )


def _positions(header: Header, buffers: list[np.ndarray]) -> Tensor | None:
    """Read the position of each token in its row, (S,); None where they do not ascend."""
    if not buffers:
        return _counted(header.lengths)
    found = buffers[0].view(np.int32).astype(np.int64)
    row_of = np.repeat(np.arange(len(header.lengths)), header.lengths)
    sound = (found >= 0).all() and ((np.diff(found) > 0) | (np.diff(row_of) > 0)).all()
    return torch.from_numpy(found) if sound else None


def _bytes(tensor: Tensor) -> np.ndarray:
    """View a tensor as flat uint8 (bf16 has no NumPy dtype, bytes have)."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _tensor(buffer: np.ndarray) -> Tensor:
    """View a buffer as a tensor, never written to: the store's memory is shared with others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(buffer)


def _memory(numbers: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate a flat tensor, its content arbitrary."""
    if device.type != "cpu" or not numbers:
        return torch.empty(numbers, dtype=dtype, device=device)
    return torch.from_numpy(_SHELF.take(numbers * dtype.itemsize)).view(dtype)


def _counted(lengths: Sequence[int]) -> Tensor:
    """Count the positions of rows that begin at 0, one after another: (T,)."""
    return torch.cat([torch.arange(n) for n in lengths]) if lengths else torch.zeros(0, dtype=torch.long)


def _squeeze(tensor_BNTH: Tensor, valid_BT: Tensor | None) -> Tensor:
    """Select the valid tokens, None is all: (N, sum of lengths, H); a view for a single row."""
    tensor_NBTH = tensor_BNTH.transpose(0, 1)
    return tensor_NBTH.flatten(1, 2) if valid_BT is None else tensor_NBTH[:, valid_BT]


def _layers(sent_LNSH: Tensor, chosen: Sequence[int], spec: KVSpec) -> tuple[Tensor, ...]:
    """View what was received as (1, N, S, H) of every layer."""
    nothing = sent_LNSH.new_zeros(()).expand(1, *sent_LNSH.shape[1:])
    found = dict(zip(chosen, sent_LNSH[:, None], strict=True))
    return tuple(found.get(layer, nothing) for layer in range(spec.layers))


def _rows_of(found: np.ndarray, lengths: Sequence[int]) -> tuple[tuple[tuple[int, int], ...], ...] | None:
    """Split spans into rows; None where they are invalid: in a text each begins about where the last ended.

    So comparing two texts' spans takes time in proportion to their lengths, and not to the product.
    """
    if not lengths:
        return ()
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    in_text = found[:, 0] >= 0
    starts, ends = found[in_text].astype(np.int64).T
    follows = (starts[1:] >= ends[:-1] - OVERLAP) | (np.diff(row_of[in_text]) > 0)
    if (found < TEMPLATE).any() or (starts > ends).any() or not follows.all():
        return None
    rows = np.split(found, np.cumsum(lengths)[:-1])
    return tuple(tuple((a, b) for a, b in row.tolist()) for row in rows)
