"""Codecs: what they cost, that a row does not depend on its neighbours, and that damage is refused."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.llm.cache import KVCache
from fedray.types import KVSpec
from fedray.wire.codecs import GROUP, relative_error
from fedray.wire.memory import FRESH_BYTES, Shelf
from fedray.wire.payload import CorruptPayload, Payload, pack, unpack

SPEC = KVSpec(layers=3, kv_heads=2, head_dim=8)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make(lengths: list[int], seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> KVCache:
    """A cache whose key channels differ a hundredfold in size and lie off zero, as with a bias."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), SPEC.kv_heads, max(lengths), SPEC.head_dim)
    layers = [torch.randn(shape, generator=generator) for _ in range(2 * SPEC.layers)]
    keys = [scale * (layer * torch.logspace(-1, 1, SPEC.head_dim) + 3) for layer in layers[: SPEC.layers]]
    values = [scale * layer for layer in layers[SPEC.layers :]]
    positions = torch.arange(max(lengths))[None].repeat(len(lengths), 1)
    sides = (tuple(t.to(dtype) for t in side) for side in (keys, values))
    return KVCache(SPEC, *sides, torch.tensor(lengths), positions)


def travelled(cache: KVCache, codec: str) -> KVCache:
    payload = pack("a", cache, list(range(cache.batch)), codec=codec)
    return unpack(pickle.loads(pickle.dumps(payload, protocol=5))).cache


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 2 * GROUP + 3), min_size=1, max_size=3),
    codec=st.sampled_from(["int8", "int4"]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
)
def test_a_number_is_off_by_half_a_step_of_its_group_and_a_row_has_no_neighbours(lengths, codec, dtype, seed, scale):
    cache = make(lengths, seed, dtype, scale)
    came = travelled(cache, codec)
    assert came.keys[0].dtype == dtype
    steps = {"int8": 254, "int4": 30}[codec]
    for b, length in enumerate(lengths):
        alone = travelled(cache.select([b]), codec)
        for side, dim in (("keys", 1), ("values", 2)):
            pairs = zip(getattr(cache, side), getattr(came, side), getattr(alone, side), strict=True)
            for before, after, of_row in pairs:
                assert torch.equal(after[b, :, :length], of_row[0])
                for start in range(0, length, GROUP):
                    x = before[b, :, start : start + GROUP][:, : length - start].float()
                    error = (after[b, :, start : start + GROUP][:, : length - start].float() - x).abs()
                    reach = 2 * x.abs() if codec == "int8" else x - x.amin(dim, keepdim=True)
                    rounding = x.abs().amax(dim, keepdim=True) * (torch.finfo(dtype).eps + 2**-9) + 1e-6
                    assert (error <= reach.amax(dim, keepdim=True) / steps + rounding).all()


def test_measured_errors():
    cache = make([2 * GROUP, 30])
    errors = {codec: relative_error(cache, codec) for codec in ("none", "int8", "int4")}
    assert errors["none"] == {"keys": 0.0, "values": 0.0}
    for side in ("keys", "values"):
        assert 0 < errors["int8"][side] < 0.01 < errors["int4"][side] < 0.12
    came = travelled(cache, "int4")
    valid = cache.valid_BT()
    before, after = (torch.stack(c.values).transpose(2, 3)[:, valid] for c in (cache, came))
    assert float((after - before).norm() / before.norm()) == pytest.approx(errors["int4"]["values"], rel=1e-5)


@pytest.mark.parametrize(("codec", "most"), [("int8", 0.52), ("int4", 0.30)])
def test_bytes_at_a_real_shape(codec, most):
    spec = KVSpec(24, 2, 64)  # Qwen2.5-0.5B
    layers = tuple(torch.randn(1, 2, 128, 64, dtype=torch.bfloat16) for _ in range(24))
    cache = KVCache(spec, layers, layers, torch.tensor([128]), torch.arange(128)[None])
    assert pack("a", cache, [0], codec=codec).nbytes <= most * pack("a", cache, [0]).nbytes


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_constant_channels_and_zeros_come_back_as_they_are(codec):
    cache = make([5])
    for layer in (*cache.keys, *cache.values):
        layer.zero_()
    cache.keys[0][..., 3] = 2.5
    came = travelled(cache, codec)
    assert torch.allclose(came.keys[0], cache.keys[0], rtol=2**-8)
    assert not came.values[1].any()


@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["keys", "values"])
def test_numbers_that_are_none_are_refused(codec, number, side):
    cache = make([4])
    getattr(cache, side)[1][0, 1, 2, 3] = number
    with pytest.raises(CorruptPayload, match="NaN or infinite"):
        travelled(cache, codec)


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_damaged_buffers_are_refused(codec):
    payload = pack("a", make([70, 3]), [0, 1], codec=codec)
    unpack(payload)
    for number, buffer in enumerate(payload.buffers):
        shorter = (*payload.buffers[:number], buffer[:-2], *payload.buffers[number + 1 :])
        with pytest.raises(CorruptPayload, match="its header promises"):
            unpack(Payload(payload.header, shorter))
    with pytest.raises(CorruptPayload):
        unpack(Payload(payload.header, payload.buffers[:-1]))
    other = {"int8": b"int4", "int4": b"int8"}[codec]
    with pytest.raises(CorruptPayload):
        unpack(Payload(payload.header.replace(codec.encode(), other), payload.buffers))


def test_an_odd_head_dim_cannot_travel_in_pairs():
    spec = KVSpec(1, 1, 3)
    layer = (torch.randn(1, 1, 2, 3),)
    cache = KVCache(spec, layer, layer, torch.tensor([2]), torch.arange(2)[None])
    with pytest.raises(ValueError, match="head dim of 3 is odd"):
        pack("a", cache, [0], codec="int4")


def test_memory_is_lent_again_when_nobody_holds_a_view_of_it():
    shelf = Shelf(kept_bytes=6 * FRESH_BYTES)
    first = shelf.take(2 * FRESH_BYTES)
    address, view = first.ctypes.data, torch.from_numpy(first).view(torch.int16)[3:]
    del first
    assert shelf.free_bytes == 0  # the view still reads it
    second = shelf.take(2 * FRESH_BYTES)
    assert second.ctypes.data != address
    del view
    assert shelf.free_bytes == 2 * FRESH_BYTES
    assert shelf.take(2 * FRESH_BYTES - 5).ctypes.data == address
    held = [shelf.take(2 * FRESH_BYTES + i) for i in range(5)]
    del held
    assert shelf.free_bytes <= 6 * FRESH_BYTES
