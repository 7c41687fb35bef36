"""Encode ascending token ids (Elias-Fano): the low bits of each as they are, the high bits as a bitmap.

K of V ids take about K * (2 + log2(V / K)) bits; whole ids of 18 bits, in any order, would take twice that at 1 % of
V = 151,936. Shape legend: N rows, K ids in each.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def row_bytes(count: int, vocabulary: int) -> int:
    """Count the bytes of `count` ids below `vocabulary`; none where all are there."""
    if count == vocabulary:
        return 0
    low = _low_bits(count, vocabulary)
    return -(-(count * low + _bitmap_bits(count, vocabulary, low)) // 8)


def pack_ids(ids_NK: Array, vocabulary: int) -> Array:
    """Pack ids into (N, row_bytes) uint8. ids: ascending in every row, all different, below `vocabulary`."""
    rows, count = ids_NK.shape
    if count == vocabulary:
        return np.zeros((rows, 0), np.uint8)
    low = _low_bits(count, vocabulary)
    lows = (ids_NK[:, :, None] >> np.arange(low)) & 1
    bitmap = np.zeros((rows, _bitmap_bits(count, vocabulary, low)), np.uint8)
    np.put_along_axis(bitmap, (ids_NK >> low) + np.arange(count), 1, axis=1)
    return np.packbits(np.concatenate([lows.reshape(rows, -1).astype(np.uint8), bitmap], axis=1), axis=1)


def unpack_ids(packed: Array, count: int, vocabulary: int) -> Array | None:
    """Unpack and validate ids: (N, K) int64, ascending and below `vocabulary`; None where they are not."""
    rows = len(packed)
    if count == vocabulary:
        return np.broadcast_to(np.arange(vocabulary), (rows, vocabulary))
    low = _low_bits(count, vocabulary)
    bits = np.unpackbits(packed, axis=1, count=count * low + _bitmap_bits(count, vocabulary, low))
    lows = bits[:, : count * low].reshape(rows, count, low).astype(np.int64)
    bitmap = bits[:, count * low :]
    if (bitmap.sum(1, dtype=np.int64) != count).any():
        return None
    highs = np.nonzero(bitmap)[1].reshape(rows, count) - np.arange(count)
    ids = (highs << low) | (lows << np.arange(low)).sum(2)
    sound = (ids < vocabulary).all() and (np.diff(ids, axis=1) > 0).all()
    return ids if sound else None


def _low_bits(count: int, vocabulary: int) -> int:
    return max(0, (vocabulary // count).bit_length() - 1)


def _bitmap_bits(count: int, vocabulary: int, low: int) -> int:
    return count + ((vocabulary - 1) >> low)
