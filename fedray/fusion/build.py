"""Build fusers of the kind that their configuration names."""

from __future__ import annotations

from fedray.fusion.c2c import C2CFuser
from fedray.fusion.fuser import Fuser, FuserConfig
from fedray.fusion.mlp import MLPFuser

FUSERS: dict[str, type[Fuser]] = {"mlp": MLPFuser, "c2c": C2CFuser}


def build_fuser(config: FuserConfig) -> Fuser:
    """Build an untrained fuser of the kind its configuration names."""
    return FUSERS[config.kind](config)
