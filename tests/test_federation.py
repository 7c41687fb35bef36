"""Federation on random weights: the same answers in this process and on Ray, and what happens when members are lost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from conftest import RECEIVER, SENDERS
from tiny import QUESTIONS

from fedray import Federation
from fedray.types import Answer, FedrayError, Missing, Wire

ROOMS = {RECEIVER: {"label": "room=b"}, SENDERS[0]: {"label": "room=a"}, SENDERS[1]: {"label": "room=b"}}
CHOICES = [("red", "green", "blue")] * len(QUESTIONS)


@pytest.fixture(scope="module")
def here(random_federation: dict[str, Any]) -> Iterator[Federation]:
    with Federation(**random_federation, ray=False) as fed:
        yield fed


@pytest.fixture(scope="module")
def spread(random_federation: dict[str, Any], cluster: Any) -> Iterator[Federation]:
    """Members in actors on two nodes."""
    with Federation(**random_federation, members=ROOMS) as fed:
        yield fed


def tokens(answer: Answer) -> list[tuple[int, ...]]:
    return [row.tokens for row in answer.rows]


def test_ray_answers_as_one_process_does(here: Federation, spread: Federation) -> None:
    for fed in (here, spread):
        assert fed.plan.receiver == RECEIVER
        assert fed.plan.senders == SENDERS
    request = here.request(*QUESTIONS)
    local, remote = here.run(request), spread.run(request)
    assert tokens(local) == tokens(remote)
    assert local.senders == remote.senders == SENDERS
    assert local.usage.payload_bytes == remote.usage.payload_bytes > 0
    assert tokens(here.alone(request)) == tokens(spread.alone(request)) != tokens(local)


def test_scores_are_the_same(here: Federation, spread: Federation) -> None:
    request = here.request(*QUESTIONS, choices=CHOICES)
    for local, remote in zip(here.run(request).rows, spread.run(request).rows, strict=True):
        assert remote.scores == pytest.approx(local.scores, abs=1e-5)
        assert remote.choice == local.choice


def test_dropped_layers_are_dropped_on_ray_too(here: Federation, spread: Federation) -> None:
    request = here.request(*QUESTIONS)
    wire = Wire(keep_layers=0.5)
    local, remote = (fed.run(request, replace(fed.plan, wire=wire)) for fed in (here, spread))
    assert tokens(local) == tokens(remote) != tokens(here.run(request))
    assert local.usage.payload_bytes == remote.usage.payload_bytes < 0.7 * here.run(request).usage.payload_bytes


def test_members_are_processes_on_the_nodes_of_their_labels(spread: Federation) -> None:
    import ray

    assert list(spread.members) == [RECEIVER, *SENDERS]
    assert len({os.getpid(), *(info.pid for info in spread.members.values())}) == 4
    rooms = {node["NodeID"][:8]: node["Labels"].get("room") for node in ray.nodes()}
    where = [rooms[info.node.rpartition("/")[2]] for info in spread.members.values()]
    assert where == ["b", "a", "b"]


@pytest.mark.parametrize("which", ["here", "spread"])
def test_a_stream_is_the_answer_in_pieces(which: str, request: pytest.FixtureRequest) -> None:
    fed: Federation = request.getfixturevalue(which)
    pieces = list(fed.stream(QUESTIONS[0]))
    assert all(isinstance(piece, str) for piece in pieces)
    assert fed.last is not None
    assert "".join(pieces) == fed.last.text == fed.ask(QUESTIONS[0]).text


def test_a_stream_may_be_left(spread: Federation) -> None:
    for _ in spread.stream(QUESTIONS[0]):
        break
    assert spread.ask(QUESTIONS[0]).text


def test_calls_work_inside_a_running_event_loop(here: Federation) -> None:
    async def notebook() -> Answer:
        return here.ask(QUESTIONS[0])

    assert asyncio.run(notebook()).text == here.ask(QUESTIONS[0]).text


def test_a_receiver_alone_starts_no_sender(random_federation: dict[str, Any], here: Federation) -> None:
    with Federation(**random_federation, protocol="standalone", ray=False) as fed:
        assert list(fed.members) == [RECEIVER]
        assert fed.ask(QUESTIONS[0]).text == here.alone(here.request(QUESTIONS[0])).text
        assert "".join(fed.stream(QUESTIONS[0])) == fed.last.text  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("route", ["eager", "lazy"])
def test_a_sender_lost_in_mid_request_is_named_and_the_answer_comes(
    random_federation: dict[str, Any], cluster: Any, here: Federation, route: str
) -> None:
    """Frozen, back again, and killed."""
    lost, rest = SENDERS
    with Federation(here.settings, senders=(rest,)) as without:
        expected = tokens(without.ask(QUESTIONS[0]))
    settings: dict[str, Any] = {**random_federation, "gate": {"kind": "open", "route": route}}
    with Federation(**settings, deadline_s=3.0) as doomed:
        assert doomed.ask(QUESTIONS[0]).missing == ()
        pid = doomed.members[lost].pid
        for reason in ("late: no answer within 3 s", "died (process exited)"):
            os.kill(pid, signal.SIGSTOP)
            if reason.startswith("died"):
                Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
            started = time.monotonic()
            answer = doomed.ask(QUESTIONS[0])
            assert time.monotonic() - started < 3.0 + 1.5
            assert answer.missing == doomed.missing == (Missing(lost, reason),)
            assert answer.senders == (rest,) and tokens(answer) == expected
            if reason.startswith("late"):
                os.kill(pid, signal.SIGCONT)
                assert doomed.ask(QUESTIONS[0]).missing == ()


def test_mistakes_are_refused_at_once(random_federation: dict[str, Any]) -> None:
    started = time.monotonic()
    with pytest.raises(FedrayError, match=r"no fuser=mlp fusion=concat for qwen2.5-0.5b -> qwen3-0.6b"):
        Federation(**{**random_federation, "senders": ["qwen2.5-0.5b"]})
    with pytest.raises(FedrayError, match=r"no fuser=mlp fusion=mix .*; there is fuser=mlp fusion=concat"):
        Federation(**random_federation, fusion="mix")
    with pytest.raises(FedrayError, match=r"did you mean qwen3-0.6b"):
        Federation(**{**random_federation, "receiver": "qwen3-06b"})
    assert time.monotonic() - started < 5.0


def test_a_damaged_weight_file_is_named(
    random_federation: dict[str, Any], random_zoo: Path, tmp_path: Path, cluster: Any
) -> None:
    for part in ("llms", "registry"):
        (tmp_path / part).mkdir()
    for folder in (random_zoo / "registry").iterdir():
        (tmp_path / "registry" / folder.name).symlink_to(folder)
    for name in (RECEIVER, SENDERS[0]):
        (tmp_path / "llms" / name).symlink_to(random_zoo / "llms" / name)
    damaged = tmp_path / "llms" / SENDERS[1]
    damaged.mkdir()
    for file in (random_zoo / "llms" / SENDERS[1]).iterdir():
        (damaged / file.name).write_bytes(file.read_bytes()[: None if file.suffix == ".json" else 1000])
    for ray in (False, True):
        with pytest.raises(FedrayError) as caught:
            Federation(**{**random_federation, "zoo": {"path": tmp_path}, "ray": ray})
        assert str(caught.value).startswith(f"{SENDERS[1]}: ")
        assert "\n" not in str(caught.value)


def test_a_closed_federation_says_so(random_federation: dict[str, Any]) -> None:
    fed = Federation(**random_federation, ray=False)
    fed.close()
    fed.close()
    with pytest.raises(FedrayError, match="closed"):
        fed.ask(QUESTIONS[0])
    with pytest.raises(FedrayError, match="empty"):
        fed.ask("  ")


SCRIPT = """
import os, signal, sys
from pathlib import Path
from fedray import Federation

with Federation(receiver="qwen3-0.6b", senders=["llama-1b"], gate="open", zoo={{"path": Path({zoo!r})}}) as fed:
    pids = [info.pid for info in fed.members.values()]
    first = fed.ask({question!r})
    assert first.senders == ("llama-1b",)
    os.kill(fed.members["llama-1b"].pid, signal.SIGKILL)
    print(fed.ask({question!r}).missing[0].reason)
for pid in pids:
    assert not os.path.exists(f"/proc/{{pid}}"), "a member outlived its federation"
"""


def test_an_embedded_cluster_comes_and_goes_quietly(random_zoo: Path, tmp_path: Path) -> None:
    script = SCRIPT.format(zoo=str(random_zoo), question=QUESTIONS[0])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "died (process exited)\n")
