"""Encode numbers for the wire: as they are, or as 8 or 4 bit integers with a scale per group.

Keys vary by channel, values by token (KIVI, arXiv 2402.02750, section 3): keys are quantized per head and channel over
groups of 64 tokens of one row, values per token and head over the head dim. int8 is symmetric with a 16 bit scale;
int4 also has a 16 bit minimum, and two integers in a byte. Plain torch: see docs/log.md for what it takes.
Shape legend: L layers, N kv heads, T tokens of all rows one after another, G groups, H head dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedray.llm.cache import KVCache
from fedray.methods.parts import CODECS

SIDES = ("keys", "values")
GROUP = 64  # tokens that share a key channel's scale
SCALE, MINIMUM = torch.bfloat16, torch.float16  # the range of any number; the precision of a bias
CACHED = 1 << 16  # numbers that are worked on at a time on a CPU


@dataclass(frozen=True, slots=True)
class CacheSide:
    """One side of a cache on the wire: `layers` tensors (N, T, H), T the sum of the rows' lengths."""

    side: str  # keys | values
    layers: int
    heads: int
    lengths: tuple[int, ...]
    dim: int

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def numbers(self) -> int:
        return self.layers * self.heads * self.tokens * self.dim

    def pieces(self, device: str) -> Iterator[tuple[slice, slice, slice]]:
        """Split into slices of layers, tokens and groups that are quantized at a time and fit a CPU's cache.

        No group spans two rows, so that no row depends on its neighbours.
        """
        spans = [(0, self.tokens, slice(0, self.tokens))] if self.side == "values" else list(self._groups())
        for start, end, group in spans:
            few = max(1, CACHED // (self.heads * (end - start) * self.dim)) if device == "cpu" else self.layers
            for first in range(0, self.layers, few):
                yield slice(first, first + few), slice(start, end), group

    def _groups(self) -> Iterator[tuple[int, int, slice]]:
        row = group = 0
        for length in self.lengths:
            for start in range(row, row + length, GROUP):
                yield start, min(start + GROUP, row + length), slice(group, group + 1)
                group += 1
            row += length

    @property
    def scales(self) -> tuple[int, int, int, int]:
        """The shape of the scales: (L, N, G, H) of keys, (L, N, T, 1) of values."""
        if self.side == "values":
            return self.layers, self.heads, self.tokens, 1
        return self.layers, self.heads, sum(-(-length // GROUP) for length in self.lengths), self.dim


class Codec:
    """How a block of numbers is written. A block is never empty; buffers are contiguous tensors, whose bytes travel."""

    def sizes(self, block: CacheSide, itemsize: int, joined: int = 0) -> list[int]:
        """Compute the bytes of every buffer that `encode` makes of numbers of `itemsize` bytes."""
        raise NotImplementedError

    def encode(self, block: CacheSide, layers: Sequence[Tensor]) -> list[Tensor]:
        """Encode layers (N, T, H). Raises ValueError where the codec cannot."""
        raise NotImplementedError

    def decode(self, block: CacheSide, buffers: Sequence[Tensor], dtype: torch.dtype, out_LNTH: Tensor) -> bool:
        """Decode into `out_LNTH`; buffers: flat uint8, of the right sizes. Returns whether every number is finite."""
        raise NotImplementedError


class Plain(Codec):
    """Numbers as they are: layers that lie one after the other in memory as one buffer, or else one each."""

    def sizes(self, block: CacheSide, itemsize: int, joined: int = 0) -> list[int]:
        buffers = 1 if joined else block.layers
        return [block.numbers // buffers * itemsize] * buffers

    def encode(self, block: CacheSide, layers: Sequence[Tensor]) -> list[Tensor]:
        return [torch.as_strided(layers[0], (block.numbers,), (1,))] if _adjacent(layers) else list(layers)

    def decode(self, block: CacheSide, buffers: Sequence[Tensor], dtype: torch.dtype, out_LNTH: Tensor) -> bool:
        pieces: list[Tensor] = []
        for layers, buffer in zip(out_LNTH.chunk(len(buffers)), buffers, strict=True):
            pieces += layers.copy_(buffer.view(dtype).view(layers.shape)).aminmax()
        return are_finite(pieces)


class Quantized(Codec):
    """Integers with a scale per group, and with a minimum where they are packed in pairs (4 bits)."""

    def __init__(self, packed: bool) -> None:
        self.packed = packed

    def sizes(self, block: CacheSide, itemsize: int, joined: int = 0) -> list[int]:
        layers, heads, groups, width = block.scales
        scale = layers * heads * groups * width * SCALE.itemsize
        return [block.numbers // 2, scale, scale] if self.packed else [block.numbers, scale]

    def encode(self, block: CacheSide, layers: Sequence[Tensor]) -> list[Tensor]:
        if self.packed and block.dim % 2:
            raise ValueError(f"codec int4 packs pairs: a head dim of {block.dim} is odd")
        dim = 2 if block.side == "keys" else 3
        device = layers[0].device
        shape = (block.layers, block.heads, block.tokens, block.dim // 2 if self.packed else block.dim)
        codes_LNTH = torch.empty(shape, dtype=torch.uint8 if self.packed else torch.int8, device=device)
        scales, minima = (torch.empty(block.scales, dtype=dtype, device=device) for dtype in (SCALE, MINIMUM))
        for of, tokens, group in block.pieces(device.type):
            x = torch.stack([layer[:, tokens] for layer in layers[of]]).float()
            low, high = x.aminmax(dim=dim, keepdim=True)  # NaN and infinity come through, and are refused on arrival
            if self.packed:
                low = minima[of, :, group] = low.to(MINIMUM)
                scale = scales[of, :, group] = ((high - low.float()) / 15).to(SCALE)
                codes = x.sub_(low).mul_(_inverse(scale)).round_().clamp_(0, 15).to(torch.uint8)
                codes_LNTH[of, :, tokens] = codes[..., ::2] | codes[..., 1::2] << 4
            else:
                scale = scales[of, :, group] = (torch.maximum(high, -low) / 127).to(SCALE)
                codes_LNTH[of, :, tokens] = x.mul_(_inverse(scale)).round_().clamp_(-127, 127)
        return [codes_LNTH, scales, minima] if self.packed else [codes_LNTH, scales]

    def decode(self, block: CacheSide, buffers: Sequence[Tensor], dtype: torch.dtype, out_LNTH: Tensor) -> bool:
        """Each piece is checked while it is still in the CPU's cache."""
        pieces: list[Tensor] = []
        shape = (block.layers, block.heads, block.tokens)
        codes = buffers[0].view(*shape, -1) if self.packed else buffers[0].view(torch.int8).view(*shape, -1)
        scales = buffers[1].view(SCALE).view(block.scales)
        for of, tokens, group in block.pieces(out_LNTH.device.type):
            part = codes[of, :, tokens]
            if self.packed:
                part = torch.stack((part & 15, part >> 4), dim=-1).flatten(-2)
            numbers = part * scales[of, :, group].float()
            if self.packed:
                numbers += buffers[2].view(MINIMUM).view(block.scales)[of, :, group]
            pieces += out_LNTH[of, :, tokens].copy_(numbers).aminmax()
        return are_finite(pieces)


NONE, INT8, INT4 = Plain(), Quantized(packed=False), Quantized(packed=True)


def sizes(codec: str, block: CacheSide, itemsize: int, joined: int = 0) -> list[int]:
    """Compute the bytes of every buffer that `encode` makes of a block of numbers of `itemsize` bytes.

    joined: without a codec, all layers in one buffer, not one each.
    """
    return CODECS[codec].load().sizes(block, itemsize, joined) if block.numbers else []


def encode(codec: str, block: CacheSide, layers: Sequence[Tensor]) -> list[Tensor]:
    """Encode layers (N, T, H) as contiguous tensors. Raises ValueError where the codec cannot."""
    return CODECS[codec].load().encode(block, layers) if block.numbers else []


def decode(codec: str, block: CacheSide, buffers: Sequence[Tensor], dtype: torch.dtype, out_LNTH: Tensor) -> bool:
    """Decode into `out_LNTH` what `encode` made of numbers of `dtype`; buffers: flat uint8, of the right sizes.

    Returns whether every number is finite.
    """
    return not block.numbers or CODECS[codec].load().decode(block, buffers, dtype, out_LNTH)


def _adjacent(layers: Sequence[Tensor]) -> bool:
    first = layers[0]
    if first.untyped_storage().data_ptr() != layers[-1].untyped_storage().data_ptr():
        return False
    expected = range(first.data_ptr(), first.data_ptr() + len(layers) * first.nbytes, first.nbytes)
    return all(layer.is_contiguous() and layer.data_ptr() == at for layer, at in zip(layers, expected, strict=True))


def are_finite(extremes: Sequence[Tensor]) -> bool:
    """Check that no number is NaN or infinite, of tensors whose smallest and largest numbers these are.

    One pass at the memory's speed, and one synchronization: NaN passes aminmax(); isfinite() would write a mask.
    """
    return bool(torch.stack(list(extremes)).isfinite().all())


def relative_error(cache: KVCache, codec: str) -> dict[str, float]:
    """Measure a codec's error on a cache's valid tokens: keys | values -> |decoded - original| / |original|."""
    valid_BT, lengths = cache.valid_BT(), tuple(int(n) for n in cache.lengths)
    found = {}
    for side, layers in zip(SIDES, (cache.keys, cache.values), strict=True):
        block = CacheSide(side, cache.spec.layers, cache.spec.kv_heads, lengths, cache.spec.head_dim)
        flat = [layer.transpose(0, 1)[:, valid_BT].contiguous() for layer in layers]
        buffers = [part.view(-1).view(torch.uint8) for part in encode(codec, block, flat)]
        back = torch.empty(len(flat), *flat[0].shape)
        decode(codec, block, buffers, flat[0].dtype, back)
        original = torch.stack(flat).float()
        found[side] = float((back - original).norm() / original.norm())
    return found


def _inverse(scale: Tensor) -> Tensor:
    """Invert scales; 0 stays 0, where all numbers of a group are alike, and so is every integer."""
    return torch.where(scale == 0, 0, scale.float().reciprocal())
