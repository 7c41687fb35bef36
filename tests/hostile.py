"""A member that sends what nobody asked for, where Ray's processes can import it too."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedray.fusion import controls
from fedray.llm.cache import KVCache
from fedray.member.member import Member
from fedray.types import Receipt, Usage
from fedray.wire.payload import Payload, pack, ships, unpack

LONG = 8 << 20  # characters
UGLY = "\x1b[31mred\x1b[0m \ud800 \u202etxt.exe \x07"  # an escape sequence, a lone surrogate, a bidirectional mark


class Unreadable:
    """What cannot be unpickled."""

    def __reduce__(self) -> Any:
        return _unread, ()


def _unread() -> None:
    raise KeyError("this class is gone")


def framed(text: bytes) -> bytes:
    """A header of any body, its length field right."""
    return b"FRKV\x03\x00" + len(text).to_bytes(4, "little") + text


def header(payload: Payload, **changes: object) -> Payload:
    """The payload with some header fields changed."""
    body = {**json.loads(payload.header[10:]), **changes}
    return Payload(framed(json.dumps(body).encode()), payload.buffers)


def numbers(change: Callable[[Tensor], Tensor]) -> Callable[[Payload], Payload]:
    """Every key and value replaced, and packed as a sender would."""

    def changed(payload: Payload) -> Payload:
        shipment = unpack(payload)
        cache = shipment.cache
        keys, values = (tuple(change(t) if any(t.stride()) else t for t in side) for side in (cache.keys, cache.values))
        return repacked(payload, replace(cache, keys=keys, values=values))

    return changed


def repacked(payload: Payload, cache: KVCache) -> Payload:
    shipment = unpack(payload)
    spans = [list(row) for row in shipment.spans] or None
    whole = torch.tensor(shipment.whole)
    return pack(shipment.member, cache, list(shipment.rows), spans, layers=shipment.layers, whole=whole)


def noise(payload: Payload) -> Payload:
    cache = unpack(payload).cache
    return repacked(payload, controls.noise(cache, cache.select([0]), [f"row {b}" for b in range(cache.batch)]))


def with_member(payload: Payload, name: str) -> Payload:
    return header(payload, member=name)


# What a payload becomes. Values that no statistics tell apart come last.
SENT: dict[str, Callable[[Payload], Any]] = {
    "depth bomb header": lambda p: Payload(framed(b'{"member":' + b"[" * 100_000), p.buffers),
    "None": lambda p: None,
    "no payload": lambda p: object(),
    "unpicklable": lambda p: Unreadable(),
    "a None buffer": lambda p: Payload(p.header, (None, *p.buffers[1:])),  # pyright: ignore[reportArgumentType]
    "a list of buffers": lambda p: Payload(p.header, list(p.buffers)),  # pyright: ignore[reportArgumentType]
    "a text for a header": lambda p: Payload(p.header.decode("latin-1"), p.buffers),  # pyright: ignore[reportArgumentType]
    "buffers of objects": lambda p: Payload(p.header, (np.array([{}]), *p.buffers[1:])),
    "buffers in steps": lambda p: Payload(p.header, tuple(np.repeat(b, 2)[::2] for b in p.buffers)),
    "8 MB member name": lambda p: with_member(p, "x" * LONG),
    "ugly member name": lambda p: with_member(p, UGLY),
    "rows of others": lambda p: header(p, rows=[row + 1 for row in unpack(p).rows]),
    "NaN": numbers(lambda t: torch.full_like(t, torch.nan)),
    "all 1e38": numbers(lambda t: torch.full_like(t, 1e38)),
    "all 3e4": numbers(lambda t: torch.full_like(t, 3e4)),
    "x 100": numbers(lambda t: t * 100),
    "random of the right norm": noise,
    "sign flip": numbers(torch.neg),
}
UNTOLD = ("random of the right norm", "sign flip", "another prompt's cache")  # what statistics cannot see


class Hostile(Member):
    """how: a key of SENT, "another prompt's cache", "ugly error", "no receipt", or "" for an honest member."""

    def __init__(self, name: str, *, how: str = "", **more: Any) -> None:
        super().__init__(name, **more)
        self.how = how

    @ships
    def share(self, session: str, rows: tuple[int, ...], **what: Any) -> tuple[Receipt, Payload]:
        if self.how == "ugly error":
            raise RuntimeError(UGLY * (LONG // len(UGLY)))
        if self.how == "another prompt's cache":
            count = len(rows)
            what |= {"prompts": ("what is the color of the bird dika?",) * count, "token_ids": None, "talk": None}
        receipt, payload = super().share(session, rows, **what)
        if self.how == "no receipt":
            return Usage(), payload  # pyright: ignore[reportReturnType]
        return receipt, SENT[self.how](payload) if self.how in SENT else payload


def become(member: Hostile, how: str) -> None:
    """Runs in the member's process."""
    member.how = how
