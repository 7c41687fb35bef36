"""Distributions on the wire: what they cost, what rounding changes, and that damage is refused."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedray.llm.catalogue import CATALOGUE
from fedray.methods.specfed import SpecFed
from fedray.wire.distributions import (
    count_of,
    pack_distributions,
    sent_bytes,
    top_entries,
    unpack_distributions,
)
from fedray.wire.ids import pack_ids, row_bytes, unpack_ids
from fedray.wire.payload import CorruptPayload, Payload

ROWS = ((0, 3), (4, 2))


def bytes_per_position(count: int, vocabulary: int) -> int:
    """On the wire, without the header."""
    return row_bytes(count, vocabulary) + 2 * count


def wire_error(probabilities_NV: Tensor, count: int) -> Tensor:
    """(N,): the L1 error of the kept probabilities on the wire, beside what was left out."""
    ids_NK, kept_NK = top_entries(probabilities_NV, count)
    return (probabilities_NV.gather(1, ids_NK).float() - kept_NK.float()).abs().sum(1)


def some(vocabulary: int, positions: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.softmax(4 * torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(seed)), dim=1)


@settings(max_examples=40, deadline=None)
@given(vocabulary=st.integers(2, 700), share=st.floats(0.001, 1.0), seed=st.integers(0, 99))
def test_ids_travel_in_few_bits(vocabulary, share, seed):
    count = count_of(share, vocabulary)
    rng = np.random.default_rng(seed)
    ids = np.stack([np.sort(rng.choice(vocabulary, count, replace=False)) for _ in range(3)])
    packed = pack_ids(ids, vocabulary)
    assert packed.shape == (3, row_bytes(count, vocabulary))
    found = unpack_ids(packed, count, vocabulary)
    assert found is not None and (found == ids).all()
    if count < vocabulary:
        assert 8 * packed.shape[1] <= count * (2 + math.log2(vocabulary / count) + 1) + 16


@pytest.mark.parametrize("top_k", [1, 7, 0.1, 1.0])
def test_the_likeliest_entries_come_as_they_went(top_k):
    p = some(640)
    count = count_of(top_k, 640)
    payload = pickle.loads(pickle.dumps(pack_distributions(p, ROWS, count, whole=True), protocol=5))
    found = unpack_distributions(payload, rows=ROWS)
    assert torch.equal(found.ids_NK, p.topk(count, dim=1).indices.sort(dim=1).values)
    kept = p.gather(1, found.ids_NK)
    assert (found.probabilities_NK - kept).abs().max() <= 2**-11
    assert torch.allclose((found.probabilities_NK - kept).abs().sum(1), wire_error(p, count))
    assert found.whole_NV is not None and torch.equal(found.whole_NV, p)
    assert sent_bytes(payload) == len(payload.header) + 5 * bytes_per_position(count, 640)


def test_rounding_keeps_the_likeliest_token():
    """Two probabilities that float16 cannot tell apart: the larger one, whatever its id, stays the larger."""
    p = torch.tensor([[0.25, 0.37500, 0.37501], [0.25, 0.37501, 0.37500]])
    assert p[0, 1].half() == p[0, 2].half()
    _, kept = top_entries(p, 3)
    assert kept.argmax(1).tolist() == [2, 1]


def test_of_several_likeliest_tokens_the_first_travels():
    """It is the one that greedy decoding takes."""
    ids, _ = top_entries(torch.tensor([[0.1, 0.3, 0.3, 0.3]]), 1)
    assert ids.tolist() == [[1]]


def test_next_to_nothing_is_nothing_and_no_less():
    _, kept = top_entries(torch.tensor([[1e-10, 2e-10, 0.0]]), 3)
    assert kept.tolist() == [[0.0, 0.0, 0.0]]


def test_a_position_costs_a_fiftieth_of_the_whole_distribution():
    """At the vocabulary of Qwen2.5, in float16: 1 % of the entries, and SpecFed's K = 320."""
    vocabulary = CATALOGUE["qwen2.5-1.5b"].config["vocab_size"]
    assert vocabulary == 151_936
    for top_k in (320, 0.01):
        count = count_of(top_k, vocabulary)
        payload = pack_distributions(some(vocabulary), ROWS, count)
        assert sent_bytes(payload) / 5 * 50 <= 2 * vocabulary
        assert sent_bytes(payload) == len(payload.header) + 5 * bytes_per_position(count, vocabulary)
    assert bytes_per_position(vocabulary, vocabulary) == 2 * vocabulary, "a whole distribution needs no ids"


def test_positions_without_a_distribution():
    has = torch.tensor([True, False, True, True, False])
    found = unpack_distributions(pack_distributions(some(50, 3), ROWS, 4, has_P=has), rows=ROWS)
    assert found.has_P.tolist() == has.tolist() and found.ids_NK.shape == (3, 4)
    assert found.at_all(torch.ones(3)).tolist() == [1, 0, 1, 1, 0]


def damaged(payload: Payload) -> dict[str, Payload]:
    ids, kept, *rest = payload.buffers
    wrong = kept.copy()
    wrong.view(np.float16)[3] = np.nan
    more = kept.copy()
    more.view(np.float16)[:] = 0.9
    below = kept.copy()
    below.view(np.float16)[0] = -0.1
    return {
        "shorter": replace(payload, header=payload.header[:10]),
        "starts with": replace(payload, header=b"XXXX" + payload.header[4:]),
        "does not hold": replace(payload, header=payload.header[:-1]),
        "hold together": replace(payload, header=payload.header[:14] + b"\xff\xff\xff\xff" + payload.header[18:]),
        "no probabilities": replace(payload, buffers=(ids, wrong)),
        "are no prob": replace(payload, buffers=(ids, more)),
        "no probabilit": replace(payload, buffers=(ids, below)),
        "ascending": replace(payload, buffers=(np.zeros_like(ids), kept)),
        "ids that are not": replace(payload, buffers=(np.full_like(ids, 255), kept)),
        "bytes where": replace(payload, buffers=(ids[:-1], kept)),
        "buffers, not": replace(payload, buffers=(ids, kept, *rest, kept)),
    }


@pytest.mark.parametrize("said", list(damaged(pack_distributions(some(640), ROWS, 7))))
def test_damage_is_refused(said):
    payload = pack_distributions(some(640), ROWS, 7)
    unpack_distributions(payload, rows=ROWS)
    with pytest.raises(CorruptPayload, match=said):
        unpack_distributions(damaged(payload)[said], rows=ROWS)


def test_what_was_not_asked_for_is_refused():
    payload = pack_distributions(some(640), ROWS, 7)
    with pytest.raises(CorruptPayload, match="asked were"):
        unpack_distributions(payload, rows=((0, 3), (4, 3)))


def test_entries_and_vocabulary_are_those_that_were_asked_for():
    """More of either would take memory that no honest worker's payload takes."""
    payload = pack_distributions(some(640), ROWS, 64)
    for how in (SpecFed(top_k=64), SpecFed(top_k=0.1)):
        assert unpack_distributions(payload, rows=ROWS, how=how, vocabulary=640).vocabulary == 640
        assert unpack_distributions(payload, rows=ROWS, how=how, vocabulary=600).vocabulary == 640
        with pytest.raises(CorruptPayload, match="over 640 tokens, where about 300 are right"):
            unpack_distributions(payload, rows=ROWS, how=how, vocabulary=300)
    for how in (SpecFed(top_k=63), SpecFed(top_k=1.0), SpecFed(top_k=64, measure=True)):
        with pytest.raises(CorruptPayload, match="other entries than were asked for"):
            unpack_distributions(payload, rows=ROWS, how=how, vocabulary=640)
    whole = pack_distributions(some(640), ROWS, 64, whole=True)
    with pytest.raises(CorruptPayload, match="other entries"):
        unpack_distributions(whole, rows=ROWS, how=SpecFed(top_k=64), vocabulary=640)


@pytest.mark.parametrize(
    "wrong", [None, 7, b"FRTK", ((b"", ()),), Payload(b"", ()), Payload(None, ()), Payload(b"", None)]
)
def test_what_is_no_payload_of_distributions_is_refused(wrong):
    with pytest.raises(CorruptPayload):
        unpack_distributions(wrong, rows=ROWS)
