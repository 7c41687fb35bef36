"""A payload is compared with what was asked for before anything is allocated; the sender that was asked is named."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import UGLY, framed, header
from torch.utils._python_dispatch import TorchDispatchMode

from fedray.llm.cache import KVCache
from fedray.methods.method import Wire
from fedray.types import KVSpec
from fedray.wire.codecs import CODECS
from fedray.wire.header import Expected
from fedray.wire.payload import CorruptPayload, Payload, pack, unpack

SPEC = KVSpec(layers=3, kv_heads=2, head_dim=8)
ALL = ((0, 1, 2), (0, 1, 2))
ASKED = Expected("llama-1b", SPEC, (0, 2), (16, 16), ALL)
MIB = 1 << 20


def make(lengths: list[int], spec: KVSpec = SPEC, dtype: torch.dtype = torch.float32) -> KVCache:
    """A cache of as many numbers as one row has: rows share their memory."""
    torch.manual_seed(0)
    batch, longest = len(lengths), max(lengths)
    layer = torch.randn(1, spec.kv_heads, longest, spec.head_dim, dtype=dtype).expand(batch, -1, -1, -1)
    positions = torch.arange(longest)[None].expand(batch, -1)
    return KVCache(spec, (layer,) * spec.layers, (layer,) * spec.layers, torch.tensor(lengths), positions)


def sent(lengths: list[int] | None = None, **how: Any) -> Payload:
    return pack("llama-1b", make(lengths or [5, 3]), [0, 2], **how)


def test_what_was_asked_for_is_taken() -> None:
    shipment = unpack(sent(), ASKED)
    assert (shipment.rows, shipment.lengths, shipment.layers) == ((0, 2), (5, 3), ALL)
    spans = [[(-1, 0), (0, 3), (2, 5), (-2, 1), (-2, 0)], [(0, 1), (0, 1), (0, 1)]]
    assert unpack(sent(spans=spans), replace(ASKED, spans=True)).spans == tuple(map(tuple, spans))
    some = replace(ASKED, layers=((1,), (0, 2)), wire=Wire("int4", keep=0.5))
    kept = sent([2, 1], codec="int4", layers=((1,), (0, 2)), whole=torch.tensor([5, 3]))
    assert unpack(kept, some).whole == (5, 3)


NESTED = b"[" * 400
DAMAGES: dict[str, Callable[[Payload], Payload]] = {
    "another member": lambda p: header(p, member="qwen2.5-0.5b"),
    "an ugly member": lambda p: header(p, member=UGLY),
    "a member of None": lambda p: header(p, member=None),
    "another spec": lambda p: header(p, spec=[3, 8, 2]),
    "other rows": lambda p: header(p, rows=[0, 1]),
    "rows in another order": lambda p: header(p, rows=[2, 0]),
    "a row twice": lambda p: header(p, rows=[0, 0]),
    "true for a row": lambda p: header(p, rows=[False, 2]),
    "a row too few": lambda p: header(p, rows=[0], lengths=[8], whole=[8]),
    "no rows": lambda p: Payload(header(p, rows=[], lengths=[], whole=[]).header, (p.buffers[0][:0],) * 6),
    "an empty row": lambda p: header(p, lengths=[8, 0], whole=[8, 0]),
    "a row beyond the context": lambda p: sent([17, 3]),
    "a row read beyond the context": lambda p: header(p, whole=[17, 3]),
    "tokens left out": lambda p: header(p, whole=[6, 3]),
    "more than were read": lambda p: header(p, whole=[4, 3]),
    "other layers": lambda p: sent(layers=((0, 1, 2), (0, 1))),
    "no layers": lambda p: sent(layers=((), ())),
    "another codec": lambda p: sent(codec="int8"),
    "spans": lambda p: sent(spans=[[(0, 1)] * 5, [(0, 1)] * 3]),
    "another dtype": lambda p: header(p, dtype="float64"),
    "a dtype of this module": lambda p: header(p, dtype="nn"),
    "positions that are not there": lambda p: header(p, positions=True),
    "a key too many": lambda p: header(p, more=1),
    "a key twice": lambda p: Payload(framed(p.header[10:-1] + b',"rows":[0,2]}'), p.buffers),
    "a key too few": lambda p: Payload(framed(p.header[10:].replace(b'"spans":false', b'"x":0')), p.buffers),
    "NaN": lambda p: Payload(framed(p.header[10:].replace(b"[5,3]", b"[NaN,3]")), p.buffers),
    "Infinity": lambda p: Payload(framed(p.header[10:].replace(b"[5,3]", b"[5,Infinity]")), p.buffers),
    "a fraction": lambda p: Payload(framed(p.header[10:].replace(b"[5,3]", b"[5.0,3]")), p.buffers),
    "below zero": lambda p: Payload(framed(p.header[10:].replace(b"[5,3]", b"[-5,13]")), p.buffers),
    "a number of 400 digits": lambda p: Payload(framed(p.header[10:].replace(b"[5,3]", b"[%s,3]" % (b"9" * 400))), ()),
    "a number of 5,000 digits": lambda p: Payload(framed(b"[%s]" % (b"9" * 5_000)), p.buffers),
    "no object": lambda p: Payload(framed(b"[1,2]"), p.buffers),
    "no JSON": lambda p: Payload(framed(b"member: llama"), p.buffers),
    "no UTF-8": lambda p: Payload(framed(b"\xff\xfe" + p.header[10:]), p.buffers),
    "nested brackets": lambda p: Payload(framed(p.header[10:].replace(b"[5,3]", NESTED)), p.buffers),
    "a deep header": lambda p: Payload(framed(b"[" * 200_000), p.buffers),
    "a padded header": lambda p: Payload(framed(p.header[10:] + b" " * 2_000), p.buffers),
    "an empty header": lambda p: Payload(b"", p.buffers),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_anything_else_is_refused_by_the_name_of_who_was_asked(damage: str) -> None:
    payload = DAMAGES[damage](sent())
    with pytest.raises(CorruptPayload, match=r"^payload of llama-1b: ") as caught:
        unpack(payload, ASKED)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


@pytest.mark.parametrize("damage", ["a deep header", "nested brackets", "a number of 5,000 digits", "a key twice"])
def test_headers_that_nobody_expects_are_refused_too(damage: str) -> None:
    """As where a cache is measured."""
    with pytest.raises(CorruptPayload, match="header cannot be read"):
        unpack(DAMAGES[damage](sent()))


def test_a_header_may_be_as_long_as_honest_ones_are() -> None:
    """Of many rows with the longest numbers, and a name that JSON writes with escapes."""
    name, rows = "/models/" + "ü" * 300, list(range(10_000, 10_200))
    cache = make([2] * 200)
    expected = Expected(name, SPEC, tuple(rows), (2,) * 200, ALL)
    assert unpack(pack(name, cache, rows), expected).rows == tuple(rows)


KEPT = replace(ASKED, wire=Wire(keep=0.5))


@pytest.mark.parametrize("places", [[0, 2, 4], [3, 4, 9]])
def test_positions_lie_in_what_was_read(places: list[int]) -> None:
    def at(positions: list[int]) -> Payload:
        cache = replace(make([3, 1]), positions=torch.tensor([positions, [2, 0, 0]]))
        return pack("llama-1b", cache, [0, 2], whole=torch.tensor([10, 3]))

    assert unpack(at(places), KEPT).cache.positions[0].tolist() == places
    for wrong in ([0, 1, 10], [4, 3, 5], [1, 1, 2], [-1, 0, 1], [0, 2**31 - 1, 2]):
        with pytest.raises(CorruptPayload, match="tokens stand where none were read"):
            unpack(at(wrong), KEPT)


@pytest.mark.parametrize(
    "wrong",
    [
        [(-3, 0), (0, 1), (1, 2), (2, 3), (-2, 0)],
        [(0, -1), (0, 1), (1, 2), (2, 3), (-2, 0)],
        [(5, 4), (5, 6), (6, 7), (7, 8), (-2, 0)],
        [(0, 1000)] * 5,
        [(100, 101), (50, 51), (51, 52), (52, 53), (-2, 0)],
        [(0, 2**31 - 1), (-1, 1), (10, 11), (11, 12), (-2, 0)],
    ],
)
def test_places_in_the_text_follow_one_another(wrong: list[tuple[int, int]]) -> None:
    with pytest.raises(CorruptPayload, match="places are in no text"):
        unpack(sent(spans=[wrong, [(0, 1)] * 3]), replace(ASKED, spans=True))


# -- memory ------------------------------------------------------------------------------------------------------------


class Allocations(TorchDispatchMode):
    """Bytes of all tensors that torch makes while it is on, each storage once."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Any] = {}
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.seen:
                    self.seen[storage.data_ptr()] = tensor  # kept, so that no address is given again
                    self.bytes += storage.nbytes()
        return made


@contextmanager
def allocated() -> Iterator[Allocations]:
    """The bytes that Python and NumPy had at a time, and torch made in all, when the block has ended."""
    gc.collect()
    tracemalloc.start()
    found = Allocations()
    try:
        with found:
            yield found
    finally:
        found.bytes += tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


REFUSED: dict[str, Callable[[], Payload]] = {
    "positions without layers": lambda: pack("llama-1b", make([MIB, 1]), [0, 2], layers=((), ())),
    "a long row and a short one": lambda: sent([20_000, 1]),
    "spans": lambda: sent([9, 3], spans=[[(i, i + 1) for i in range(MIB)], [(0, 1)] * 3], whole=torch.tensor([MIB, 3])),
    "a promise": lambda: header(sent(), lengths=[2**30, 3], whole=[2**30, 3]),
    "a promise that fits the context": lambda: header(sent(), lengths=[16, 16], whole=[16, 16]),
    "a header": lambda: Payload(framed(b" " * 16 * MIB), ()),
}


@pytest.mark.parametrize("what", REFUSED)
def test_nothing_is_allocated_for_what_is_refused(what: str) -> None:
    payload = REFUSED[what]()
    expected = replace(ASKED, spans=what == "spans")
    with allocated() as size, pytest.raises(CorruptPayload):
        unpack(payload, expected)
    assert size.bytes < 64 << 10


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_ragged_batch_takes_what_came_and_no_padding(codec: str, dtype: torch.dtype) -> None:
    """One row of 2,000 tokens beside 199 of one: padded, it would take 90 times as much."""
    spec = KVSpec(layers=4, kv_heads=2, head_dim=32)
    lengths, rows = [2_000, *[1] * 199], tuple(range(200))
    layers = (tuple(range(4)),) * 2
    payload = pack("llama-1b", make(lengths, spec, dtype), list(rows), codec=codec)
    expected = Expected("llama-1b", spec, rows, (2_000,) * 200, layers, Wire(codec))  # pyright: ignore
    with allocated() as size:
        shipment = unpack(payload, expected, dtype=torch.float32)
    numbers = sum(lengths) * spec.values_per_token()
    assert sum(part.nbytes for part in shipment.sent) == 4 * numbers
    scratch = {"none": 1, "int8": 4, "int4": 6}[codec]  # what decoding makes of it, piece by piece
    assert size.bytes < 4 * numbers * (1 + scratch) + 48 * sum(lengths) + MIB
    assert shipment.flat.keys[0].untyped_storage().nbytes() <= 4 * numbers + 64


BATCH_OF_200 = """
import resource, sys
sys.path.insert(0, {tests!r})
import torch
from tiny import QUESTIONS, random_fuser, random_llm, random_member
from test_expected import make
from fedray.registry.store import Registry
from fedray.llm.loading import describe
from fedray.types import Request
from fedray.wire.payload import pack
from pathlib import Path
from support.methods import plan as plan_of

torch.set_num_threads(1)
receiver, sender = random_llm("qwen3-0.6b"), random_llm("llama-1b")
member = random_member("qwen3-0.6b")
request = Request((QUESTIONS[0],) * 200, choices=(("red", "blue"),) * 200)
for operator in ("concat", "mix"):
    fuser = random_fuser(sender, receiver, operator)
    part = Registry(Path({folder!r}), embedded=None).add_fuser(fuser, describe(sender), describe(receiver), {{}})
    plan = plan_of("qwen3-0.6b", ("llama-1b",), fusion=operator, fusers={{"llama-1b": part}}, gate="open",
                   contexts={{"llama-1b": 512}})
    member.open(operator, request, plan)
    for lengths, layers in (([8_000], None), ([512], part.layers), ([2_000], ((), ())), ([8_000], part.layers)):
        lengths = [*lengths, *[1] * 199]
        spans = [[(i, i + 1) for i in range(n)] for n in lengths] if operator == "mix" else None
        payload = pack("llama-1b", make(lengths, sender.spec), list(range(200)), spans, layers=layers)
        asked = {{"llama-1b": dict.fromkeys(range(200), 1_500)}}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer = member.answer(operator, ("llama-1b",), request, plan, payload, asked=asked)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(operator, lengths[0], len(answer.missing), payload.nbytes >> 20, grown >> 10)
"""


@pytest.mark.slow
def test_a_batch_of_200_cannot_be_blown_up(tmp_path: Path) -> None:
    """Resident memory of a receiver, in a process of its own: what is refused takes none, and a row as long as the
    sender's context, which is fused, as many slots as all rows would take at that length."""
    script = BATCH_OF_200.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown = [line.split() for line in done.stdout.splitlines()]
    assert [(o, int(n), int(missing)) for o, n, missing, *_ in grown] == [
        (operator, n, missing)
        for operator in ("concat", "mix")
        for n, missing in ((8_000, 1), (512, 0), (2_000, 1), (8_000, 1))
    ]
    slots_mib = 200 * 512 * KVSpec(6, 2, 24).values_per_token() * 4 >> 20  # of the receiver, 225 MiB
    for operator, _, missing, _, mib in grown:
        most = 96 if missing == "1" or operator == "mix" else 3 * slots_mib
        assert int(mib) < most, grown


def test_numpy_counts_here() -> None:
    """The tests above see what NumPy and torch take."""
    with allocated() as size:
        np.empty(MIB, np.uint8), torch.empty(MIB, dtype=torch.uint8)
    assert size.bytes >= 2 * MIB
