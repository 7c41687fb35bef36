"""Workers of SpecFed that do not keep up, where Ray's processes can import them."""

from __future__ import annotations

import os
import signal
import time
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
