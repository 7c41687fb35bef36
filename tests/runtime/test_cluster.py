"""Where Ray runs: joining a cluster, starting one of one's own, and refusing what is not there or too small."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from fedray.runtime.cluster import connect
from fedray.runtime.placement import Node, Placement, place, this_machine
from fedray.types import FedrayError


@pytest.fixture
def not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had not met Ray."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never speaks."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def refusal(address: str | None) -> str:
    started = time.monotonic()
    with pytest.raises(FedrayError) as caught:
        connect(address)
    assert time.monotonic() - started < 5.0
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("not_joined")
def test_an_address_without_a_cluster_is_refused(silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no Ray cluster answers at 127.0.0.1:1 " in refusal("127.0.0.1:1")
    assert "no Ray cluster answers" in refusal(f"127.0.0.1:{silent_port}")
    assert "no Ray cluster answers" in refusal("no-such-host.invalid:6379")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert "127.0.0.1:1" in refusal(None)


@pytest.mark.usefixtures("not_joined")
@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "here", ":6379", "host:port"])
def test_what_is_no_address_is_refused(address: str) -> None:
    assert address in refusal(address)


@pytest.mark.usefixtures("cluster", "not_joined")
def test_a_port_that_is_no_head_node_is_refused() -> None:
    (node, *_) = ray.nodes()
    assert "is not the head node of a Ray cluster" in refusal(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")


def test_a_wrong_token_is_refused(nodes: Any) -> None:
    script = """
import time
from fedray.runtime.cluster import connect
from fedray.types import FedrayError
started = time.monotonic()
try:
    connect()
except FedrayError as error:
    print(error, time.monotonic() - started < 5)
"""
    said = run(script, RAY_ADDRESS=nodes.address, RAY_AUTH_TOKEN="f" * 64, RAY_AUTH_TOKEN_PATH=None)
    assert "does not accept the access token" in said
    assert said.endswith("True\n")


def test_a_process_stays_in_the_cluster_it_is_in(cluster: Any) -> None:
    again = connect("127.0.0.1:1")
    assert again.address == cluster.address
    again.close()
    assert ray.is_initialized()


def test_an_existing_cluster_is_joined(nodes: Any) -> None:
    script = """
import ray
from fedray.runtime.cluster import connect
connection = connect()
print(connection.address, connection.is_embedded, sum(node["Alive"] for node in ray.nodes()))
connection.close()
assert not ray.is_initialized()
"""
    assert run(script, RAY_ADDRESS=nodes.address).split() == [nodes.address, "False", "2"]


def test_a_cluster_of_ones_own(tmp_path: Path) -> None:
    """It is private, quiet, has what was asked for, takes its token mode along, and leaves no process behind."""
    script = """
import os, ray
from fedray.runtime.cluster import connect
connection = connect(num_cpus=3)
assert connection.is_embedded and "RAY_AUTH_MODE" not in os.environ
print(ray.cluster_resources()["CPU"])
connection.close()
"""
    assert float(run(script, RAY_AUTH_MODE=None, RAY_AUTH_TOKEN_PATH=None, HOME=str(tmp_path))) == 3
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert not processes_of(tmp_path)


def test_ctrl_c_while_ray_starts_leaves_no_process(tmp_path: Path) -> None:
    script = "from fedray.runtime.cluster import connect; print('here', flush=True); connect()"
    env = os.environ | {"HOME": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as starting:
        assert starting.stdout is not None
        starting.stdout.readline()
        time.sleep(2.0)
        os.killpg(starting.pid, signal.SIGINT)
        assert starting.wait(60) != 0
    assert not processes_of(tmp_path)


def run(script: str, **environment: str | None) -> str:
    """The output of a Python process of its own, which must say nothing else."""
    env = {k: v for k, v in (os.environ | environment).items() if v is not None}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def processes_of(home: Path) -> list[int]:
    """Processes that live with this HOME."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"HOME={home}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has just ended, or is another user's
            continue
    return found


@pytest.mark.usefixtures("cluster")
class TestPlace:
    def test_shares_fit_on_any_node(self) -> None:
        placed = place([Placement(str(n)) for n in range(5)])
        assert [p.num_cpus for p in placed] == [0.4] * 5
        assert [p.threads for p in placed] == [1] * 5
        assert [p.num_cpus for p in place([Placement("one")])] == [1.0]

    def test_threads_of_a_cluster_of_ones_own(self) -> None:
        placed = place([Placement("receiver"), Placement("sender")], all_cores=True)
        assert [(p.threads, p.reading) for p in placed] == [(2, 1), (1, 1)]
        assert [p.threads for p in place([Placement(str(n)) for n in range(5)], all_cores=True)] == [2, 1, 1, 1, 1]

    def test_too_many_cpus_are_refused_with_figures(self) -> None:
        place([Placement(str(n), num_cpus=1) for n in range(4)])
        with pytest.raises(FedrayError, match="ask for 5 CPUs and 0 GPUs, the Ray cluster has 4 CPUs and 0 GPUs on 2"):
            place([Placement(str(n), num_cpus=1) for n in range(5)])

    def test_a_member_larger_than_every_node_is_refused(self) -> None:
        with pytest.raises(FedrayError, match=r"no room for big \(3 CPUs"):
            place([Placement("big", num_cpus=3)])

    def test_gpus_that_are_not_there_are_refused(self) -> None:
        with pytest.raises(FedrayError, match="the Ray cluster has 4 CPUs and 0 GPUs"):
            place([Placement("fast", device="cuda", num_gpus=1)])

    def test_an_unknown_label_is_refused_with_those_there_are(self) -> None:
        with pytest.raises(FedrayError, match="llama-1b's label room=c; there is room=a, room=b"):
            place([Placement("llama-1b", label="room=c")])

    def test_a_full_room_is_refused(self) -> None:
        place([Placement("one", num_cpus=2, label="room=a"), Placement("two", num_cpus=2)])
        with pytest.raises(FedrayError, match=r"no room for two \(2 CPUs and 0 GPUs on a node labelled room=a\)"):
            place([Placement("one", num_cpus=2, label="room=a"), Placement("two", num_cpus=2, label="room=a")])


def test_what_this_machine_lacks_is_refused_before_ray_starts() -> None:
    here = this_machine(2.0)
    assert here.cpus == 2.0
    assert [p.num_cpus for p in place([Placement("a"), Placement("b")], nodes=[here])] == [1.0, 1.0]
    with pytest.raises(FedrayError, match=r"no room for a .*has 2 CPUs and 0 GPUs on 1 node"):
        place([Placement("a", num_gpus=1.0)], nodes=[Node(2.0, 0.0, {})])
    with pytest.raises(FedrayError, match="label room=left"):
        place([Placement("a", label="room=left")], nodes=[here])
