"""Members that die or do not keep up, where Ray's processes can import them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from fedray.member.member import Member


class Dying(Member):
    """Its process dies in its third round."""

    calls = 0

    def verify(self, *args: Any) -> Any:
        self.calls += 1
        if self.calls == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().verify(*args)

    verify.ships = True  # pyright: ignore[reportFunctionMemberAccess]


class Dozing(Member):
    """It sleeps through its second round."""

    calls = 0

    def verify(self, *args: Any) -> Any:
        self.calls += 1
        if self.calls == 2:
            time.sleep(2.5)
        return super().verify(*args)

    verify.ships = True  # pyright: ignore[reportFunctionMemberAccess]


class Falling(Member):
    """Its process dies the first time that it answers, and never again once `grave` is there."""

    def __init__(self, name: str, *, grave: str, **more: Any) -> None:
        super().__init__(name, **more)
        self.grave = Path(grave)

    def answer(self, *args: Any, **kwargs: Any) -> Any:
        if not self.grave.exists():
            self.grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(*args, **kwargs)
