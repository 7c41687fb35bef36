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

CODECS = ("none", "int8", "int4")
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


def sizes(codec: str, block: CacheSide, itemsize: int, joined: int = 0) -> list[int]:
    """Compute the bytes of every buffer that `encode` makes of a block of numbers of `itemsize` bytes.

    joined: without a codec, all layers in one buffer, not one each.
    """
    if block.numbers == 0:
        return []
    if codec == "none":
        buffers = 1 if joined else block.layers
        return [block.numbers // buffers * itemsize] * buffers
    layers, heads, groups, width = block.scales
    scale = layers * heads * groups * width * SCALE.itemsize
    return [block.numbers, scale] if codec == "int8" else [block.numbers // 2, scale, scale]


def encode(codec: str, block: CacheSide, layers: Sequence[Tensor]) -> list[Tensor]:
    """Encode layers (N, T, H) as contiguous tensors. Raises ValueError where the codec cannot.

    Without a codec layers that lie one after the other in memory are one tensor, or else one each.
    """
    if block.numbers == 0:
        return []
    if codec == "none":
        return [torch.as_strided(layers[0], (block.numbers,), (1,))] if _adjacent(layers) else list(layers)
    if codec == "int4" and block.dim % 2:
        raise ValueError(f"codec int4 packs pairs: a head dim of {block.dim} is odd")
    dim = 2 if block.side == "keys" else 3
    device = layers[0].device
    shape = (block.layers, block.heads, block.tokens, block.dim if codec == "int8" else block.dim // 2)
    codes_LNTH = torch.empty(shape, dtype=torch.int8 if codec == "int8" else torch.uint8, device=device)
    scales, minima = (torch.empty(block.scales, dtype=dtype, device=device) for dtype in (SCALE, MINIMUM))
    for of, tokens, group in block.pieces(device.type):
        x = torch.stack([layer[:, tokens] for layer in layers[of]]).float()
        low, high = x.aminmax(dim=dim, keepdim=True)  # NaN and infinity come through, and are refused on arrival
        if codec == "int8":
            scale = scales[of, :, group] = (torch.maximum(high, -low) / 127).to(SCALE)
            codes_LNTH[of, :, tokens] = x.mul_(_inverse(scale)).round_().clamp_(-127, 127)
        else:
            low = minima[of, :, group] = low.to(MINIMUM)
            scale = scales[of, :, group] = ((high - low.float()) / 15).to(SCALE)
            codes = x.sub_(low).mul_(_inverse(scale)).round_().clamp_(0, 15).to(torch.uint8)
            codes_LNTH[of, :, tokens] = codes[..., ::2] | codes[..., 1::2] << 4
    return [codes_LNTH, scales] if codec == "int8" else [codes_LNTH, scales, minima]


def decode(codec: str, block: CacheSide, buffers: Sequence[Tensor], dtype: torch.dtype, out_LNTH: Tensor) -> bool:
    """Decode into `out_LNTH` what `encode` made of numbers of `dtype`; buffers: flat uint8, of the right sizes.

    Returns whether every number is finite. Each piece is checked while it is still in the CPU's cache.
    """
    if block.numbers == 0:
        return True
    pieces: list[Tensor] = []
    if codec == "none":
        for layers, buffer in zip(out_LNTH.chunk(len(buffers)), buffers, strict=True):
            pieces += layers.copy_(buffer.view(dtype).view(layers.shape)).aminmax()
        return are_finite(pieces)
    shape = (block.layers, block.heads, block.tokens, block.dim)
    scales, *minima = (
        b.view(dtype).view(block.scales) for b, dtype in zip(buffers[1:], (SCALE, MINIMUM), strict=False)
    )
    codes = buffers[0].view(torch.int8).view(shape) if codec == "int8" else buffers[0].view(*shape[:3], block.dim // 2)
    for of, tokens, group in block.pieces(out_LNTH.device.type):
        part, scale = codes[of, :, tokens], scales[of, :, group].float()
        if codec == "int4":
            part = torch.stack((part & 15, part >> 4), dim=-1).flatten(-2)
        numbers = part * scale
        if codec == "int4":
            numbers += minima[0][of, :, group]
        pieces += out_LNTH[of, :, tokens].copy_(numbers).aminmax()
    return are_finite(pieces)


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
