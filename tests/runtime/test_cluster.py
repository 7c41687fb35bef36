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
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from probes import processes_of
from ray._private.utils import check_version_info

from fedray.runtime import joining
from fedray.runtime.cluster import _private_folder, _remedy, _why, connect, will_embed
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
    with pytest.raises(FedrayError) as caught:
        connect(address)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("not_joined")
def test_an_address_without_a_cluster_is_refused(silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "PROBE_S", 0.3)  # nobody is there: no wait is too short
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


@pytest.mark.usefixtures("not_joined")
def test_a_cluster_with_tokens_says_how_to_get_in(nodes: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray itself tries for 20 s and writes to stderr. auto: what `ray start` has noted, with any token there is."""
    remedy = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's own (~/.ray/auth_token on"
    noted(tmp_path, nodes.address)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    for address in (nodes.address, "auto"):
        assert f"at {nodes.address} does not accept the access token of RAY_AUTH_TOKEN: {remedy}" in refusal(address)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    right = os.environ["RAY_AUTH_TOKEN_PATH"]
    (tmp_path / "wrong").write_text("ab" * 32)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "wrong"))
    assert f"of {tmp_path / 'wrong'}: {remedy}" in refusal(nodes.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", right)
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert f"wants an access token: {remedy}" in refusal(nodes.address)  # no token is sent to an address unasked
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    for mode in ("token", None):
        monkeypatch.setenv("RAY_AUTH_MODE", mode) if mode else monkeypatch.delenv("RAY_AUTH_MODE")
        assert f"wants an access token: {remedy}" in refusal("auto")
    noted(tmp_path, "127.0.0.1:1")
    monkeypatch.setattr(joining, "PROBE_S", 0.3)
    assert "no Ray cluster answers at 127.0.0.1:1 " in refusal("auto")


def noted(folder: Path, address: str) -> None:
    """As `ray start --head` leaves its address."""
    (folder / "ray").mkdir(exist_ok=True)
    (folder / "ray" / "ray_current_cluster").write_text(address)


def test_other_versions_are_named() -> None:
    with pytest.raises(RuntimeError) as caught:
        check_version_info({"ray_version": "2.59.0", "python_version": "3.12.1"}, "node 10.0.0.1")
    assert "was started with: Ray: 2.59.0 Python: 3.12.1 This process" in _why(caught.value)
    assert "install the cluster's versions here" in _remedy(caught.value)


def test_a_process_stays_in_the_cluster_it_is_in(cluster: Any) -> None:
    again = connect("127.0.0.1:1")
    assert again.address == cluster.address
    again.close()
    assert ray.is_initialized()


def test_an_existing_cluster_is_joined(nodes: Any, tmp_path: Path) -> None:
    script = """
import ray
from fedray.runtime.cluster import connect
for address in (None, "auto"):
    connection = connect(address)
    print(connection.address, connection.is_embedded, sum(node["Alive"] for node in ray.nodes()))
    connection.close()
    assert not ray.is_initialized()
"""
    noted(tmp_path, nodes.address)
    said = run(script, RAY_ADDRESS=nodes.address, RAY_TMPDIR=str(tmp_path))
    assert said.split() == [nodes.address, "False", "2"] * 2


@pytest.mark.usefixtures("not_joined")
def test_a_long_folder_is_refused_before_ray_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", f"/tmp/{'é' * 30}")
    for refused in (will_embed, connect):
        with pytest.raises(FedrayError, match="bytes too long: set RAY_TMPDIR to a shorter folder, as in RAY_TMPDIR=/"):
            refused()
    assert not Path(f"/tmp/{'é' * 30}").exists()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert will_embed()


@pytest.mark.usefixtures("not_joined")
def test_the_folder_above_rays_is_ones_own(monkeypatch: pytest.MonkeyPatch, short_folder: str) -> None:
    monkeypatch.setenv("RAY_TMPDIR", short_folder)
    folder = Path(short_folder, f"fedray-{os.getuid()}")
    folder.mkdir(mode=0o755)
    assert _private_folder() == folder and stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.rmdir()
    folder.symlink_to(short_folder)
    assert "belongs to somebody else: set RAY_TMPDIR to a folder of your own" in refusal("local")
    Path(short_folder, "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", f"{short_folder}/file")
    assert "set RAY_TMPDIR to another" in refusal("local")


@pytest.mark.parametrize("joins", [pytest.param(False, marks=pytest.mark.slow), True])
def test_ctrl_c_while_ray_starts_leaves_no_process(nodes: Any, tmp_path: Path, joins: bool) -> None:
    script = "import time, fedray.runtime.cluster as c; print('here', flush=True); c.connect(); time.sleep(60)"
    env = os.environ | {"HOME": str(tmp_path), "RAY_ADDRESS": nodes.address if joins else "local"}
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),  # who runs this may ignore it
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
