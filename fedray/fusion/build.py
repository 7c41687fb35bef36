"""Build fusers of the kind that their configuration names."""

from __future__ import annotations

from fedray.fusion.fuser import Fuser, FuserConfig
from fedray.methods.parts import FUSERS


def fuser_class(kind: str) -> type[Fuser]:
    """Import the class of a kind of fusers."""
    return FUSERS[kind].load()


def build_fuser(config: FuserConfig) -> Fuser:
    """Build an untrained fuser of the kind its configuration names."""
    return fuser_class(config.kind)(config)
