"""Entry points: what installed packages add to fedray's own protocols, fusers, codecs and tasks (docs/extending.md)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from fedray.errors import FedrayError
from fedray.text import one_line

T = TypeVar("T")


class Entries(Mapping[str, T]):
    """fedray's own entries and those that packages register under an entry-point group, by name.

    A package's is imported when it is asked for, which raises FedrayError naming the package where it cannot be had.
    One that takes a name of fedray's own is left out, and logged.
    """

    def __init__(self, group: str, own: Mapping[str, T], kind: type[T]) -> None:
        self._what, self._kind, self._own = group.rpartition(".")[2].removesuffix("s"), kind, dict(own)
        self._points: dict[str, EntryPoint] = {}
        for point in entry_points(group=group):
            if point.name in self._own:
                logging.getLogger("fedray").warning(
                    "%s; it is left out", self._wrong(point, "takes a name of fedray's own")
                )
            else:
                self._points[point.name] = point

    def __getitem__(self, name: str) -> T:
        if name in self._points:
            point = self._points[name]
            try:
                entry = point.load()
            except Exception as error:  # a stranger's module may raise anything; it costs its own name alone
                raise FedrayError(self._wrong(point, f"cannot be imported ({error})")) from error
            if not isinstance(entry, self._kind):
                raise FedrayError(self._wrong(point, f"is no {self._kind.__name__}"))
            self._own[name] = entry
            del self._points[name]
        return self._own[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self._own, *self._points))

    def __len__(self) -> int:
        return len(self._own) + len(self._points)

    def sound(self) -> dict[str, T]:
        """Import all; what cannot be had is left out, and logged."""
        found: dict[str, T] = {}
        for name in tuple(self):
            try:
                found[name] = self[name]
            except FedrayError as error:
                logging.getLogger("fedray").warning("%s; it is left out", error)
        return found

    def _wrong(self, point: EntryPoint, why: str) -> str:
        return one_line(f"{self._what}={point.name} of package {point.dist.name if point.dist else point.module} {why}")
