"""Federation on random weights: the same answers in this process and on Ray, and what happens when members are lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from probes import processes_of, record_spans, spans
from shared_cluster import RECEIVER, ROOMS, SENDERS
from support.methods import revised
from tiny import QUESTIONS

from fedray import Federation
from fedray.errors import MemberFailed
from fedray.federation.serving import Serving
from fedray.jobs import federate
from fedray.methods.method import Wire
from fedray.reporting import report
from fedray.runtime.actors import RayGroup, load_members
from fedray.runtime.failures import GONE
from fedray.runtime.placement import Placement
from fedray.settings.settings import Settings, build
from fedray.types import Answer, FedrayError, Missing, Request

CHOICES = [("red", "green", "blue")] * len(QUESTIONS)


@pytest.fixture(scope="module")
def here(random_federation: dict[str, Any]) -> Iterator[Federation]:
    with Federation(**random_federation, ray=False) as fed:
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
    local, remote = (fed.run(request, revised(fed.plan, wire=wire)) for fed in (here, spread))
    assert tokens(local) == tokens(remote) != tokens(here.run(request))
    assert local.usage.payload_bytes == remote.usage.payload_bytes < 0.7 * here.run(request).usage.payload_bytes


@pytest.mark.parametrize("how", [{}, {"gate": {"kind": "oracle", "route": "lazy"}}, {"protocol": "t2t"}], ids=str)
def test_donors_messages_are_read_on_ray_too(here: Federation, spread: Federation, how: dict[str, Any]) -> None:
    """Rows that a sender sent nothing of are sent besides; who is heard stays as it is."""
    weights = {SENDERS[0]: (1.0, 0.0, 1.0), SENDERS[1]: (0.0, 1.0, 0.0)}
    rotated = dict.fromkeys(SENDERS, (*QUESTIONS[1:], QUESTIONS[0]))
    request = here.request(*QUESTIONS, choices=CHOICES, weights=weights, donors=((1, 2, 0),))
    wanted = here.run(replace(request, donors=(), asked=rotated), revised(here.plan, **how))
    for fed in (here, spread):
        (rows,) = fed.run(request, revised(fed.plan, **how)).deranged
        for row, other in zip(rows, wanted.rows, strict=True):
            assert row.scores == pytest.approx(other.scores, abs=1e-4)


def batches(fed: Federation) -> list[Request]:
    texts = [QUESTIONS, QUESTIONS[:1], QUESTIONS[::-1], QUESTIONS[1:], ("hm?", *QUESTIONS)]
    return [fed.request(*prompts, id=f"batch-{number}") for number, prompts in enumerate(texts)]


def test_batches_on_their_way_together_are_answered_alike(here: Federation, spread: Federation) -> None:
    assert (here.settings.batches_at_a_time, spread.settings.batches_at_a_time) == (1, 2)
    assert replace(spread.settings, deadline_s=5.0).batches_at_a_time == 1
    wanted = [tokens(here.run(request)) for request in batches(here)]
    for at_a_time in (1, 2, 4):
        found = list(spread.run_all(batches(spread), at_a_time=at_a_time))
        assert [tokens(answer) for answer in found if isinstance(answer, Answer)] == wanted
        assert all(answer.senders == SENDERS and not answer.missing for answer in found if isinstance(answer, Answer))
    alone = spread.run_all(batches(spread), revised(spread.plan, protocol="standalone"))
    assert [tokens(one) for one in alone if isinstance(one, Answer)] == [tokens(here.alone(r)) for r in batches(here)]


def test_a_batch_that_fails_is_one_among_others(spread: Federation) -> None:
    requests = batches(spread)
    wanted = [tokens(spread.run(request)) for request in requests]
    requests[1] = Request(("",), token_ids=((10**6,),))
    found = list(spread.run_all(requests, at_a_time=2))
    assert isinstance(found[1], MemberFailed) and RECEIVER in str(found[1])
    answered = [tokens(answer) for answer in found if isinstance(answer, Answer)]
    assert answered == [wanted[0], *wanted[2:]]


def on_members(fed: Federation, function: Any) -> dict[str, Any]:
    """What a function says inside every member's process."""
    import ray

    actors = fed._group._actors  # pyright: ignore
    return {name: ray.get(actor.__ray_call__.remote(function)) for name, actor in actors.items()}


def test_senders_read_the_next_batch_before_one_is_answered(spread: Federation) -> None:
    spread.run(batches(spread)[0])
    on_members(spread, record_spans)
    for at_a_time, overlap in ((1, False), (2, True)):
        list(spread.run_all(batches(spread), at_a_time=at_a_time))
        noted = on_members(spread, spans)
        answered = {s.rpartition("-")[0]: end for name, s, _, end in noted[RECEIVER] if name == "_respond"}
        assert list(answered) == [f"batch-{number}" for number in range(5)]
        for sender in SENDERS:
            read = {s.rpartition("-")[0]: start for name, s, start, _ in noted[sender] if name == "_read"}
            early = [read[f"batch-{k + 1}"] < answered[f"batch-{k}"] for k in range(4)]
            assert early == [overlap] * 4


def test_batches_that_are_left_are_released(spread: Federation) -> None:
    answers = spread.run_all(batches(spread), at_a_time=3)
    assert isinstance(next(answers), Answer)
    answers.close()  # pyright: ignore[reportAttributeAccessIssue]
    patience = time.monotonic() + 30
    while any(on_members(spread, open_sessions).values()) and time.monotonic() < patience:
        time.sleep(0.05)
    assert not any(on_members(spread, open_sessions).values())


def open_sessions(member: Any) -> int:
    return member.stats()["sessions"]


class Borrowing(Federation):
    """A federation whose members are somebody else's, and outlive it."""

    def __init__(self, settings: Settings, group: Any) -> None:
        super().__init__(replace(settings, ray=replace(settings.ray, enabled=False)))
        self.settings, self._group = settings, group
        self._serving = Serving(group, self._serving.levels)


class Interrupted(Borrowing):
    """Ctrl-C when the third of the federation's own batches is answered."""

    def run_all(self, requests: Any, plan: Any = None, at_a_time: int | None = None) -> Iterator[Answer | MemberFailed]:
        for number, answer in enumerate(super().run_all(requests, plan, at_a_time)):
            if plan is self.plan and number == 2:
                raise KeyboardInterrupt
            yield answer


def test_an_interrupted_run_keeps_what_was_answered(
    random_federation: dict[str, Any], spread: Federation, tmp_path: Path
) -> None:
    values = {"task": {"limit": 10, "batch_size": 3}, "tracking": {"enabled": False}, "output": tmp_path}
    settings = build({**random_federation, **values})
    assert federate.run(settings, partial(Interrupted, group=spread._group)) == 130
    left = report.read(tmp_path)
    assert left.status == "interrupted" and left.found.n == 5 and left.cost.at_a_time == 2
    here = replace(settings, ray=replace(settings.ray, enabled=False))
    assert federate.run(here) == 0
    whole = report.read(tmp_path)
    assert whole.found.n == 10 and whole.answers[:5] == left.answers
    assert federate.run(replace(here, output=tmp_path / "anew")) == 0
    assert report.read(tmp_path / "anew").answers == whole.answers


def test_members_are_processes_on_the_nodes_of_their_labels(spread: Federation) -> None:
    import ray

    assert list(spread.members) == [RECEIVER, *SENDERS]
    assert len({os.getpid(), *(info.pid for info in spread.members.values())}) == 4
    rooms = {node["NodeID"][:8]: node["Labels"].get("room") for node in ray.nodes()}
    where = [rooms[info.node.rpartition("/")[2]] for info in spread.members.values()]
    assert where == list(ROOMS.values())


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


def test_a_sender_lost_in_mid_request_is_named_and_the_answer_comes(
    random_federation: dict[str, Any], random_zoo: Path, spread: Federation, here: Federation
) -> None:
    """Frozen, back again, and killed, by either route; then the other one, and the receiver answers alone."""
    (lost, rest), request = SENDERS, here.request(QUESTIONS[0])
    expected = tokens(here.run(request, here.plan_for(senders=(rest,))))
    senders, whole = load_members([Placement(name, num_cpus=0) for name in SENDERS], folder=random_zoo), spread._group
    assert isinstance(whole, RayGroup)
    group = RayGroup({**whole._actors, **senders._actors}, {**whole.members, **senders.members})
    with closing(senders), Borrowing(build({**random_federation, "deadline_s": 3.0}), group) as doomed:
        plans = {route: revised(doomed.plan, gate={"route": route}) for route in ("eager", "lazy")}
        asked = doomed.request(QUESTIONS[0])
        pid = doomed.members[lost].pid
        for plan in plans.values():
            assert doomed.run(asked, plan).missing == ()
            os.kill(pid, signal.SIGSTOP)
            late = doomed.run(asked, plan)
            assert late.missing == doomed.missing == (Missing(lost, "late: no answer within 3 s"),)
            assert late.senders == (rest,) and tokens(late) == expected
            os.kill(pid, signal.SIGCONT)
        assert doomed.run(asked).missing == ()
        for (route, name), left in zip(zip(plans, SENDERS, strict=True), ((rest,), ()), strict=True):
            os.kill(doomed.members[name].pid, signal.SIGSTOP)
            Timer(0.5, os.kill, (doomed.members[name].pid, signal.SIGKILL)).start()
            dead = doomed.run(asked, plans[route])
            assert Missing(name, GONE) in dead.missing and dead.senders == left
            assert tokens(dead) == (expected if left else tokens(here.alone(request)))


def test_mistakes_are_refused(random_federation: dict[str, Any]) -> None:
    with pytest.raises(FedrayError, match=r"no fuser=mlp fusion=concat for qwen2.5-0.5b -> qwen3-0.6b"):
        Federation(**{**random_federation, "senders": ["qwen2.5-0.5b"]})
    with pytest.raises(FedrayError, match=r"no fuser=mlp fusion=mix .*; there is fuser=mlp fusion=concat"):
        Federation(**random_federation, fusion="mix")
    with pytest.raises(FedrayError, match=r"did you mean qwen3-0.6b"):
        Federation(**{**random_federation, "receiver": "qwen3-06b"})


def test_a_damaged_weight_file_is_named(random_federation: dict[str, Any], random_zoo: Path, tmp_path: Path) -> None:
    for part in ("llms", "registry"):
        (tmp_path / part).mkdir()
    for folder in (random_zoo / "registry").iterdir():
        (tmp_path / "registry" / folder.name).symlink_to(folder)
    sender = SENDERS[1]
    (tmp_path / "llms" / RECEIVER).symlink_to(random_zoo / "llms" / RECEIVER)
    damaged = tmp_path / "llms" / sender
    damaged.mkdir()
    for file in (random_zoo / "llms" / sender).iterdir():
        (damaged / file.name).write_bytes(file.read_bytes()[: None if file.suffix == ".json" else 1000])
    with pytest.raises(FedrayError) as caught:
        Federation(**random_federation | {"zoo": {"path": tmp_path}, "senders": [sender], "ray": False})
    assert str(caught.value).startswith(f"{sender}: ")
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
import json, os, psutil, ray, signal, sys
from pathlib import Path
from fedray import Federation
from fedray.runtime import actors

actors.SLOW_S = 600.0  # a busy machine is not what is looked for
zoo, own = {{"path": Path({zoo!r})}}, {{"num_cpus": 1}}
members = dict.fromkeys(("qwen3-0.6b", "llama-1b"), {{"num_cpus": 0.5}})
with Federation(receiver="qwen3-0.6b", senders=["llama-1b"], gate="open", zoo=zoo, ray=own, members=members) as fed:
    assert "RAY_AUTH_MODE" not in os.environ
    pids = [info.pid for info in fed.members.values()]
    first = fed.ask({question!r})
    assert first.senders == ("llama-1b",)
    home, listening = os.environ["HOME"], []
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {{}}).get("HOME") == home:
            for socket in process.net_connections(kind="inet"):
                if socket.status in (psutil.CONN_LISTEN, psutil.CONN_NONE):
                    listening.append(socket.laddr.ip)
    cpus = ray.cluster_resources()["CPU"]
    os.kill(fed.members["llama-1b"].pid, signal.SIGKILL)
    reason = fed.ask({question!r}).missing[0].reason
for pid in pids:
    assert not os.path.exists(f"/proc/{{pid}}"), "a member outlived its federation"
print(json.dumps([listening, cpus, reason]))  # Ray itself may say in a line that a worker died
"""


@pytest.mark.slow
def test_an_embedded_cluster_comes_and_goes_quietly(random_zoo: Path, tmp_path: Path, short_folder: str) -> None:
    """It is private, has what was asked for, takes its token mode along, and leaves no process behind."""
    script = SCRIPT.format(zoo=str(random_zoo), question=QUESTIONS[0])
    env = os.environ | {"HOME": str(tmp_path), "RAY_TMPDIR": short_folder}
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        del env[name]
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    listening, cpus, reason = json.loads(done.stdout.splitlines()[-1])
    assert (cpus, reason) == (1, GONE)
    assert len(listening) > 4 and set(listening) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert stat.S_IMODE((tmp_path / ".ray" / "auth_token").stat().st_mode) == 0o600
    (above,) = Path(short_folder).iterdir()
    assert stat.S_IMODE(above.stat().st_mode) == 0o700 and [folder.name for folder in above.iterdir()] == ["ray"]
    assert not processes_of(tmp_path)
