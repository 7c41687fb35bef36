"""Give rows of a request the tokens that were sent of other rows, so that only the content of a message changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from fedray.types import FedrayError
from fedray.wire.payload import Shipment


def repaired(shipments: Sequence[Shipment], donors: Mapping[int, int]) -> Shipment:
    """Pair anew what one sender sent, in one shipment or several: row b gets the tokens of row donors[b].

    A row whose donor nobody sent gets none. Raises FedrayError where the shipments hold other layers.
    """
    first = shipments[0]
    if any(other.layers != first.layers for other in shipments):
        raise FedrayError(f"{first.member} sent other layers of some rows than of others")
    starts: dict[int, int] = {}
    lengths, whole, spans, start = {}, {}, {}, 0
    for shipment in shipments:
        for row, length, read in zip(shipment.rows, shipment.lengths, shipment.whole, strict=True):
            starts[row], lengths[row], whole[row] = start, length, read
            start += length
        spans |= dict(zip(shipment.rows, shipment.spans, strict=False))
    given = {b: donor for b, donor in donors.items() if donor in starts}
    index = [torch.arange(starts[d], starts[d] + lengths[d]) for d in given.values()]
    index_S = torch.cat(index or [torch.arange(0)]).to(first.positions.device)
    keys, values = (torch.cat([s.sent[side] for s in shipments], 2).index_select(2, index_S) for side in (0, 1))
    return replace(
        first,
        rows=tuple(given),
        lengths=tuple(lengths[d] for d in given.values()),
        sent=(keys, values),
        positions=torch.cat([s.positions for s in shipments]).index_select(0, index_S),
        spans=tuple(spans[d] for d in given.values()) if spans else (),
        whole=tuple(whole[d] for d in given.values()),
    )
