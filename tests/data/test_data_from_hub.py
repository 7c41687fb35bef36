"""A data set from the hub: downloaded, cached, streamed, pinned, refused. The hub is one of our own on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mirror import Repo, environment, repo_of, serving
from samples import GSM8K, write

pytest.importorskip("datasets")
ROOT = Path(__file__).resolve().parents[2]
REPO = "openai/gsm8k"
KEY = f"datasets/{REPO}"
CARD = """---
configs:
- config_name: main
  data_files:
  - split: test
    path: main/test-*
---
"""
SCRIPT = """
import json, sys
from dataclasses import asdict
from fedray.data.catalogue import BENCHMARKS
from fedray.data.source import read
for how in sys.argv[1:]:
    try:
        found, source = read(BENCHMARKS["gsm8k"], **json.loads(how))
        print(json.dumps({**asdict(source), "first": next(iter(found.values()))[1].target}))
    except ValueError as error:
        print(error)
"""


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    """The data set as it lies on the hub."""
    write(tmp_path / "hub" / "main" / "test-00000-of-00001.parquet", GSM8K)
    (tmp_path / "hub" / "README.md").write_text(CARD)
    return repo_of(tmp_path / "hub")


def ask(home: Path, address: str, *hows: dict[str, Any], offline: bool = False) -> list[Any]:
    """What a process of its own reads from that hub, one after the other: JSON, or the one sentence it says instead."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *(json.dumps({"split": "test", **how}) for how in hows)],
        cwd=ROOT,
        env=environment(address, home, HF_HUB_OFFLINE=str(int(offline))),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == len(hows)
    return [json.loads(line) if line.startswith("{") else line for line in said]


def test_downloaded_once_and_read_from_the_cache_offline(repo: Repo, tmp_path: Path) -> None:
    with serving({KEY: repo}) as mirror:
        (first,) = ask(tmp_path / "home", mirror.url, {})
        (streamed,) = ask(tmp_path / "other", mirror.url, {"streaming": True})
    assert (first["repo"], first["revision"], first["rows"], first["first"]) == (REPO, repo.commit(), 2, "72")
    assert streamed == first, "streaming reads the same rows"
    assert ask(tmp_path / "home", mirror.url, {}, offline=True) == [first]
    (said,) = ask(tmp_path / "nothing", mirror.url, {}, offline=True)
    assert "connect, or give a local copy: data.path=DIR" in said


def test_a_revision_is_pinned_or_missed_and_what_is_gated_is_refused(repo: Repo, tmp_path: Path) -> None:
    with serving({KEY: repo}) as mirror:
        pinned, missed = ask(tmp_path / "home", mirror.url, {"revision": repo.commit()}, {"revision": "nowhere"})
        assert pinned["revision"] == repo.commit()
        assert missed.startswith("openai/gsm8k main test at revision nowhere cannot be read from the hub (")
        repo.gated = True
        (said,) = ask(tmp_path / "other", mirror.url, {})
    assert said.startswith("openai/gsm8k main test cannot be read from the hub (") and "gated" in said.lower()
