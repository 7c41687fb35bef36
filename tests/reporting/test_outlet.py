"""Standard output that takes nothing, or not everything: the job behind it ends as it would have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

JOB = """
import pathlib, sys
from fedray.reporting.outlet import unfailing
with unfailing():
    for line in range(3000):
        print("alone 44.5% \\u00b1 3.5% \\ud83d", line)
    print("MLflow at http://me:secret@host:5000/ fails", file=sys.stderr)
    print("report: http://me:secret@host/")
pathlib.Path(sys.argv[1]).write_text("kept")
"""


def run(tmp_path: Path, stdout: IO[bytes] | int, encoding: str = "utf-8") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-X", "utf8=0", "-c", JOB, str(tmp_path / "kept")]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONIOENCODING": encoding, "PATH": "/bin:/usr/bin"}
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=environment, timeout=60, check=False)
    assert (tmp_path / "kept").read_text() == "kept"
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr and b"secret" not in done.stderr
    return done


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "ascii:strict"])
def test_what_a_terminal_cannot_show_is_replaced(tmp_path: Path, encoding: str) -> None:
    done = run(tmp_path, subprocess.PIPE, encoding)
    assert done.returncode == 0
    shown = done.stdout.decode(encoding.partition(":")[0])
    sign = "?" if encoding.startswith("ascii") else "\u00b1"
    assert shown.startswith(f"alone 44.5% {sign} 3.5% ? 0\n") and shown.endswith("report: http://***@host/\n")


def test_a_full_disk_under_standard_output_is_said(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = run(tmp_path, full)
    assert done.returncode == 0 and b"standard output took no more (No space left on device)" in done.stderr


def test_a_reader_that_went_away_is_no_matter(tmp_path: Path) -> None:
    head = subprocess.Popen(["head", "-n", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert head.stdin and head.stdout
    done = run(tmp_path, head.stdin)
    assert done.returncode == 0 and done.stderr == b"MLflow at http://***@host:5000/ fails\n"
    head.stdin.close()
    assert b"alone" in head.stdout.read()


def test_there_may_be_no_standard_output_at_all(tmp_path: Path) -> None:
    command = ["bash", "-c", 'exec "$@" >&- 2>&-', "-", sys.executable, "-c", JOB, str(tmp_path / "kept")]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/bin:/usr/bin"}
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == 0
    assert (tmp_path / "kept").read_text() == "kept"
