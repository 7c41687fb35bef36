"""Isolate failures in reading what peers sent: each costs its sender alone, by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedray.types import FedrayError, Missing


class Border:
    """The senders whose parts were refused, and why.

    >>> border = Border()
    >>> with border.of("llama-1b"):
    ...     parts.append(unpack(payload))  # or its sender is in border.refused
    """

    def __init__(self) -> None:
        self.refused: dict[str, str] = {}

    @contextmanager
    def of(self, sender: str) -> Iterator[None]:
        """Isolate reading what a sender sent; a failure ends the block and is recorded under its name."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # a stranger wrote what is read: no failure may be the request's
            self.refused[sender] = why(error)

    def missing(self) -> tuple[Missing, ...]:
        return tuple(Missing(sender, reason) for sender, reason in self.refused.items())


def why(error: BaseException) -> str:
    """Describe an error, with its type where that adds something."""
    kind = type(error).__name__
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # the class may be a stranger's too
        return kind
    plain = isinstance(error, (FedrayError, RuntimeError, ValueError))
    return text if plain and text else f"{kind}: {text}" if text else kind
