"""Protocols: how members exchange what they know. A protocol owns its loop of exchanges and speaks only to the Group
port; it never sees a tensor. Nothing here needs torch.
"""

from __future__ import annotations

from fedray.protocols import c2c, ensemble, fedattn, route, self_refine, specfed, standalone, t2t
from fedray.protocols.protocol import Protocol

STANDALONE = standalone.PROTOCOL
# Of two that are compared, the later is asked what it adds to the earlier: caches come last.
PROTOCOLS: dict[str, Protocol] = {
    found.name: found
    for found in (
        STANDALONE,
        self_refine.PROTOCOL,
        ensemble.PROTOCOL,
        route.PROTOCOL,
        t2t.PROTOCOL,
        specfed.PROTOCOL,
        fedattn.PROTOCOL,
        c2c.PROTOCOL,
    )
}
