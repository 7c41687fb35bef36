"""Two hundred requests while members are killed and frozen (benchmarks/chaos.py, in small)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[2] / "benchmarks" / "chaos.py"


@pytest.mark.slow
def test_no_request_is_lost_hangs_or_is_answered_otherwise(tmp_path: Path, short_folder: str) -> None:
    env = os.environ | {"HOME": str(tmp_path), "RAY_TMPDIR": short_folder}
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        del env[name]
    command = [sys.executable, CHAOS, "--requests=200", "--kills=20", "--freezes=1"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("200 requests")
