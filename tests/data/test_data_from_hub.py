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
try:
    found, source = read(BENCHMARKS["gsm8k"], **json.loads(sys.argv[1]))
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


def ask(home: Path, address: str, offline: bool = False, **how: Any) -> Any:
    """What a process of its own reads from that hub: JSON, or the one sentence it says instead."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps({"split": "test", **how})],
        cwd=ROOT,
        env=environment(address, home, HF_HUB_OFFLINE=str(int(offline))),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout


def test_downloaded_once_and_read_from_the_cache_offline(repo: Repo, tmp_path: Path) -> None:
    with serving({KEY: repo}) as mirror:
        first = ask(tmp_path / "home", mirror.url)
        streamed = ask(tmp_path / "other", mirror.url, streaming=True)
    assert (first["repo"], first["revision"], first["rows"], first["first"]) == (REPO, repo.commit(), 2, "72")
    assert streamed == first, "streaming reads the same rows"
    assert ask(tmp_path / "home", mirror.url, offline=True) == first
    assert "connect, or give a local copy: data.path=DIR" in ask(tmp_path / "nothing", mirror.url, offline=True)


def test_a_revision_is_pinned_or_missed(repo: Repo, tmp_path: Path) -> None:
    with serving({KEY: repo}) as mirror:
        assert ask(tmp_path / "home", mirror.url, revision=repo.commit())["revision"] == repo.commit()
        said = ask(tmp_path / "home", mirror.url, revision="nowhere")
    assert said.startswith("openai/gsm8k main test at revision nowhere cannot be read from the hub (")


def test_a_gated_data_set_is_refused(repo: Repo, tmp_path: Path) -> None:
    repo.gated = True
    with serving({KEY: repo}) as mirror:
        said = ask(tmp_path / "home", mirror.url)
    assert said.startswith("openai/gsm8k main test cannot be read from the hub (") and "gated" in said.lower()
