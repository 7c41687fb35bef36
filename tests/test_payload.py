"""The wire: what is packed comes back bit for bit, and what does not hold together is refused by name."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

from fedray.llm.cache import KVCache
from fedray.types import KVSpec
from fedray.wire.payload import CorruptPayload, Payload, pack, unpack

SPEC = KVSpec(layers=3, kv_heads=2, head_dim=8)


def make(lengths: list[int], dtype: torch.dtype = torch.float32) -> KVCache:
    torch.manual_seed(0)
    batch, longest = len(lengths), max(lengths)
    layers = [torch.randn(batch, 2, longest, 8).to(dtype) for _ in range(6)]
    positions = torch.arange(longest)[None].expand(batch, -1).contiguous()
    return KVCache(SPEC, tuple(layers[:3]), tuple(layers[3:]), torch.tensor(lengths), positions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [[5], [4, 4], [2, 7, 1]])
def test_round_trip(lengths, dtype):
    cache = make(lengths, dtype)
    payload = pack("llama-1b", cache, list(range(len(lengths))), [[(i, i + 1) for i in range(n)] for n in lengths])
    shipment = unpack(pickle.loads(pickle.dumps(payload, protocol=5)))
    assert shipment.member == "llama-1b" and shipment.rows == tuple(range(len(lengths)))
    assert [len(row) for row in shipment.spans] == lengths
    valid = cache.valid_BT()
    for before, after in zip((*cache.keys, *cache.values), (*shipment.cache.keys, *shipment.cache.values), strict=True):
        assert after.dtype == dtype
        assert torch.equal(before.transpose(1, 2)[valid], after.transpose(1, 2)[valid])
    assert torch.equal(cache.positions[valid], shipment.cache.positions[valid])


def test_only_valid_tokens_travel():
    body = sum(b.nbytes for b in pack("a", make([2, 7, 1], torch.bfloat16), [0, 1, 2]).buffers)
    assert body == 10 * SPEC.values_per_token() * 2


def test_only_the_layers_that_are_read_travel():
    cache = make([5, 3])
    payload = pack("a", cache, [0, 1], layers=((2,), (0, 1)))
    assert sum(b.nbytes for b in payload.buffers) == 8 * SPEC.values_per_token() * 4 // 2
    shipment = unpack(payload)
    valid = cache.valid_BT()
    assert shipment.layers == ((2,), (0, 1))
    for sent, before, after in zip((0, 0, 1), cache.keys, shipment.cache.keys, strict=True):
        assert torch.equal(after.transpose(1, 2)[valid], before.transpose(1, 2)[valid]) == bool(sent)
        assert bool(after.any()) == bool(sent)
        assert sent or not any(after.stride())
    nothing = unpack(pack("a", cache, [0, 1], layers=((), ()))).cache
    assert nothing.lengths.tolist() == [5, 3] and torch.equal(nothing.positions[valid], cache.positions[valid])


def test_positions_that_are_not_counted_from_zero_travel():
    cache = make([4])
    later = KVCache(cache.spec, cache.keys, cache.values, cache.lengths, cache.positions + 3)
    assert pack("a", later, [0]).nbytes > pack("a", cache, [0]).nbytes
    assert unpack(pack("a", later, [0])).cache.positions.tolist() == [[3, 4, 5, 6]]


def test_received_memory_is_ones_own():
    payload = pack("a", make([4]), [0])
    cache = unpack(payload).cache
    before = cache.keys[0].clone()
    for buffer in payload.buffers:
        if buffer.flags.writeable:
            buffer[:] = 0
    assert torch.equal(cache.keys[0], before)


def header(payload: Payload, **changes: object) -> Payload:
    """The payload with some header fields changed, its length field kept right."""
    body = {**json.loads(payload.header[10:]), **changes}
    text = json.dumps(body).encode()
    return Payload(payload.header[:6] + len(text).to_bytes(4, "little") + text, payload.buffers)


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: Payload(b"", p.buffers),
        lambda p: Payload(b"XXXX" + p.header[4:], p.buffers),
        lambda p: Payload(p.header[:4] + b"\x09\x00" + p.header[6:], p.buffers),
        lambda p: Payload(p.header[:-3], p.buffers),
        lambda p: Payload(p.header[:10] + b"{" * (len(p.header) - 10), p.buffers),
        lambda p: Payload(p.header, p.buffers[:-1]),
        lambda p: Payload(p.header, (p.buffers[0][:-4], *p.buffers[1:])),
        lambda p: header(p, lengths=[3]),
        lambda p: header(p, lengths=[-1]),
        lambda p: header(p, lengths=["4"]),
        lambda p: header(p, rows=[0, 1]),
        lambda p: header(p, spec=[3, 2]),
        lambda p: header(p, spec=[0, 2, 8]),
        lambda p: header(p, spec=[10**9, 2, 8]),
        lambda p: header(p, spec=[3, 10**30, 8]),
        lambda p: header(p, codec="int2"),
        lambda p: header(p, codec="int8"),
        lambda p: header(p, layers=[[0, 1, 2], [0, 1]]),
        lambda p: header(p, layers=[[0, 1, 3], [0, 1, 2]]),
        lambda p: header(p, layers=[[0, 2, 1], [0, 1, 2]]),
        lambda p: header(p, layers=[[0, 0, 1], [0, 1, 2]]),
        lambda p: header(p, layers=[[0, 1, 2]]),
        lambda p: Payload(header(p, layers=[[], []], lengths=[10**12]).header, ()),
        lambda p: header(p, positions=True),
        lambda p: header(p, positions=1),
        lambda p: header(p, spans=True),
        lambda p: header(p, dtype="object"),
        lambda p: header(p, member=None),
        lambda p: header(p, spans=[["x"]]),
    ],
)
def test_damaged_payloads_are_refused(damage):
    payload = pack("a", make([4]), [0])
    unpack(payload)
    with pytest.raises(CorruptPayload):
        unpack(damage(payload))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("number", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused_and_the_sender_named(number, dtype):
    cache = make([40], dtype)
    cache.values[1][0, 1, 2, 3] = number
    with pytest.raises(CorruptPayload, match=r"payload of qwen2\.5-0\.5b"):
        unpack(pack("qwen2.5-0.5b", cache, [0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_largest_numbers_are_numbers(dtype):
    cache = make([40], dtype)
    info = torch.finfo(dtype)
    cache.keys[1][0, 1, 2, :3] = torch.tensor([info.max, info.min, info.tiny], dtype=dtype)
    assert torch.equal(unpack(pack("a", cache, [0])).cache.keys[1], cache.keys[1])


def test_layers_that_lie_together_travel_in_one_buffer():
    keys, values = torch.randn(2, 3, 1, 2, 5, 8)
    cache = KVCache(SPEC, keys.unbind(), values.unbind(), torch.tensor([5]), torch.arange(5)[None])
    payload, apart = pack("a", cache, [0]), pack("a", make([5]), [0])
    assert [b.nbytes for b in payload.buffers] == [keys.nbytes, values.nbytes]
    assert len(apart.buffers) == 6 and payload.nbytes == apart.nbytes
    back = unpack(payload).cache
    assert torch.equal(torch.stack(back.keys), keys) and torch.equal(torch.stack(back.values), values)
    some = pack("a", cache, [0], layers=((1, 2), (0, 2)))
    assert [b.nbytes * 3 for b in some.buffers] == [2 * keys.nbytes, values.nbytes, values.nbytes]
    assert torch.equal(torch.stack(unpack(some).cache.keys[1:]), keys[1:])


@pytest.mark.parametrize("threads", [1, 3])
def test_many_bytes_are_copied_and_checked_to_the_last(threads, monkeypatch):
    """More than one piece for every thread, and a piece that is not full."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    spec = KVSpec(2, 2, 64)
    keys, values = torch.randn(2, 2, 1, 2, 3001, 64)
    cache = KVCache(spec, keys.unbind(), values.unbind(), torch.tensor([3001]), torch.arange(3001)[None])
    back = unpack(pack("a", cache, [0])).cache
    assert torch.equal(torch.stack(back.keys), keys) and torch.equal(torch.stack(back.values), values)
    values[1, 0, 1, 3000, 63] = float("inf")
    with pytest.raises(CorruptPayload):
        unpack(pack("a", cache, [0]))


def test_buffers_are_plain_bytes():
    payload = pack("a", make([4], torch.bfloat16), [0])
    assert all(b.dtype == np.uint8 and b.ndim == 1 for b in payload.buffers)
    assert payload.nbytes == len(payload.header) + sum(b.nbytes for b in payload.buffers)
