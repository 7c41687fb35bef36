"""Protocols: how members exchange what they know. A protocol owns its loop of exchanges and speaks only to the Group
port; it never sees a tensor. Nothing here needs torch.
"""

from __future__ import annotations

from fedray.extensions import Entries
from fedray.methods.method import Method, ProtocolSettings
from fedray.protocols import c2c, ensemble, fedattn, route, self_consistency, self_refine, specfed, standalone, t2t
from fedray.protocols.protocol import Protocol
from fedray.schema import Schema
from fedray.types import Plan

STANDALONE = standalone.PROTOCOL
# Of two that are compared, the later is asked what it adds to the earlier: caches come last.
_OWN = {
    found.name: found
    for found in (
        STANDALONE,
        self_refine.PROTOCOL,
        self_consistency.PROTOCOL,
        ensemble.PROTOCOL,
        route.PROTOCOL,
        t2t.PROTOCOL,
        specfed.PROTOCOL,
        fedattn.PROTOCOL,
        c2c.PROTOCOL,
    )
}
PROTOCOLS = Entries("fedray.protocols", _OWN, Protocol).sound()
KINDS = {ProtocolSettings: {name: protocol.settings for name, protocol in PROTOCOLS.items()}}
METHOD = Schema(Method, kinds=KINDS)
ALONE = METHOD.read({"protocol": STANDALONE.name}).canonical()


def protocol_of(method: Method | Plan) -> Protocol:
    """Look up the protocol of a method, or of a plan's."""
    return PROTOCOLS[(method.method if isinstance(method, Plan) else method).protocol.name]
