"""Standard output and error that cost no result: what cannot be printed is dropped, and the job goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from fedray.text import mask


class Outlet:
    """A standard stream whose writes never fail: the work behind them is worth more than they are.

    Characters that it cannot encode are replaced. Once it takes nothing any more (a closed pipe, a full disk),
    everything further is dropped, and `error` says why. Passwords in URIs are masked.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # it lives as long as this
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        text = mask(text)
        encoding = self._stream.encoding or "utf-8"
        try:
            self._stream.write(text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self._drop(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def _drop(self, error: OSError | ValueError) -> None:
        """Write to nowhere from now on, so that what is still buffered does not fail again when Python ends."""
        if self.error is None:
            self.error = error if isinstance(error, OSError) else OSError(0, str(error))
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def unfailing() -> Iterator[None]:
    """Let standard output and error take whatever is written to them.

    Where output was lost to anything but a reader that went away, standard error says so at the end.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err = Outlet(sys.stdout), Outlet(sys.stderr)
    try:
        yield
    finally:
        out.flush()
        if out.error is not None and not isinstance(out.error, BrokenPipeError):
            err.write(f"standard output took no more ({out.error.strerror}); all else is done\n")
        err.flush()
        sys.stdout, sys.stderr = before
