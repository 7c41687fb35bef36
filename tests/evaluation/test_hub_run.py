"""zoo=hub as a user runs it: the job as a process of its own, and members that are Ray actors, against the mirror."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import Call
from mirror import Mirror, environment, point_here, repo_of, serving
from published import save

from fedray.command_line import CONF
from fedray.federation.federation import Federation
from fedray.fusion.build import build_fuser
from fedray.fusion.fuser import FuserConfig
from fedray.jobs.federate import run as federate_run
from fedray.llm.loading import describe, load
from fedray.registry.store import Registry
from fedray.reporting import report

PROMPT = "what is the color of the bird?"
RECEIVER, SENDER = "qwen3-0.6b", "hf:acme/llm-1.5b"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("pushed")
    repos = {
        "Qwen/Qwen3-0.6B": repo_of(save(folder / "receiver", "qwen3", "qwen3")),
        "acme/llm-1.5b": repo_of(save(folder / "sender", "llama", "llama", shards=True)),
        "meta-llama/Llama-3.2-1B-Instruct": repo_of(folder / "sender", gated=True),
    }
    with serving(repos) as mirror:
        yield mirror


def federate(mirror: Mirror, home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CONF.parent / "jobs" / "federate.py"), "zoo=hub", *arguments]
    own = environment(mirror.url, home / "hf", **more)
    return subprocess.run(command, cwd=home, env=own, capture_output=True, text=True, timeout=170, check=False)


def test_the_job_downloads_once_and_then_needs_no_network(
    mirror: Mirror, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time in a process of its own, which knows no more than its environment."""
    arguments = ("senders=[hf:acme/llm-1.5b]", "protocol=t2t", f"prompt={PROMPT}", "ray=none", "tracking=none")
    small = ("generation.max_tokens=4", "t2t.max_tokens=4", f"receiver={RECEIVER}")
    with monkeypatch.context() as patch:
        point_here(patch, mirror.url, tmp_path / "hf" / "hub")
        code, err = call("zoo=hub", *arguments, *small, "output=first", job=federate_run)
    assert code == 0, err
    commits = [mirror.repos[repo].commit() or "" for repo in ("Qwen/Qwen3-0.6B", "acme/llm-1.5b")]
    left = report.read(tmp_path / "first")
    assert [member.revision for member in left.who.members] == commits and all(
        commit[:12] in call.out for commit in commits
    )

    mirror.asked.clear()
    second = federate(mirror, tmp_path, *arguments, *small, "output=second", HF_HUB_OFFLINE="1")
    assert second.returncode == 0, second.stderr
    assert mirror.asked == [] and report.read(tmp_path / "second").answers == left.answers


def test_a_gated_llm_ends_the_job_with_one_sentence(
    mirror: Mirror, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_here(monkeypatch, mirror.url, tmp_path / "hf")
    asked = ("zoo=hub", f"receiver={RECEIVER}", "senders=[llama-1b]", "plan=true", f"prompt={PROMPT}")
    code, said = call(*asked, job=federate_run)
    assert code == 2 and said.count("\n") == 1 and call.out == ""
    assert said.startswith("llama-1b: meta-llama/Llama-3.2-1B-Instruct is gated: accept its terms at ")


@pytest.mark.slow
def test_members_on_a_cluster_download_for_themselves(
    mirror: Mirror, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each node has a cache of its own; all load the commit that the driver has seen, and caches cross between them."""
    for name, value in {"HF_ENDPOINT": mirror.url, "HF_HUB_CACHE": str(tmp_path / "node")}.items():
        monkeypatch.setenv(name, value)
    point_here(monkeypatch, mirror.url, tmp_path / "driver")
    receiver, sender = (load(name, zoo="hub", dtype="float32") for name in (RECEIVER, SENDER))
    torch.manual_seed(0)
    fuser = build_fuser(FuserConfig("mlp", "concat", sender.spec, receiver.spec, hidden=16))
    Registry(tmp_path / "registry").add_fuser(fuser, describe(sender), describe(receiver), {})

    mirror.asked.clear()
    with Federation(
        zoo="hub",
        receiver=RECEIVER,
        senders=[SENDER],
        gate="open",
        registry={"path": tmp_path / "registry"},
        members={name: {"dtype": "float32"} for name in (RECEIVER, SENDER)},
        generation={"max_tokens": 4, "full": True},
    ) as fed:
        answer = fed.ask(PROMPT)
        assert [member.revision for member in fed.members.values()] == [receiver.revision, sender.revision]
        assert answer.senders == (SENDER,) and not answer.missing and answer.usage.payload_bytes > 0
        assert set(fed.memory()) == {RECEIVER, SENDER}
    assert any(asked.startswith("GET /cdn/") for asked in mirror.asked), "into the node's cache"
    assert list((tmp_path / "node").rglob("model.safetensors"))
