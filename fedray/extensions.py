"""Entry points: what installed packages add to fedray's own protocols, fusers, codecs and tasks (docs/extending.md)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TypeVar

from fedray.text import one_line

T = TypeVar("T")


def extended(group: str, own: Mapping[str, T], kind: type[T]) -> dict[str, T]:
    """Add what packages register under an entry-point group, by name, to fedray's own entries.

    One that cannot be imported, is of another kind or takes a name that exists is left out, and logged in one sentence.
    """
    found = dict(own)
    for point in entry_points(group=group):
        try:
            if point.name in found:
                raise ValueError("which takes a name that exists: rename it")
            entry = point.load()
            if not isinstance(entry, kind):
                raise TypeError(f"which is no {kind.__name__}")
            found[point.name] = entry
        except Exception as error:  # noqa: BLE001 - a stranger's module may raise anything; everything else goes on
            package = point.dist.name if point.dist else point.module
            why = f"it cannot be imported ({error})" if isinstance(error, ImportError | AttributeError) else str(error)
            what = f"{group.rpartition('.')[2].removesuffix('s')} {point.name}"
            logging.getLogger("fedray").warning("left out: %s of package %s, %s", what, package, one_line(why))
    return found
