"""The training jobs themselves, on the embedded LLMs: on Ray Train, killed, interrupted, refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread, main_thread
from typing import Any

import pytest
from commandline import Call
from scarce import full_disk
from short_training import RECEIVER, SENDER, SHORT, settings, train

from fedray.registry.planner import Planner
from fedray.registry.store import SHIPPED, Registry, read_manifest
from fedray.reporting import report
from fedray.reporting.report import Learned
from fedray.settings.settings import TrackingSettings
from fedray.tracking import sync
from fedray.tracking.pending import PENDING
from fedray.training import fuser_job, gate_job
from fedray.training.checkpoint import FOLDER
from fedray.training.settings import GateJob, build_gate_job
from fedray.types import FedrayError

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("threads")
_wholes: list[Learned] = []


@pytest.fixture
def whole(tmp_path: Path, threads: None, capsys: pytest.CaptureFixture[str]) -> Learned:
    """What a training that nobody disturbs leaves, trained once for all tests."""
    if not _wholes:
        _wholes.append(train(settings(tmp_path / "whole"), capsys)[1])
    return _wholes[0]


@pytest.mark.usefixtures("full_size")
def test_from_nothing_to_a_fuser_that_a_federation_finds(
    tmp_path: Path, whole: Learned, capsys: pytest.CaptureFixture[str]
) -> None:
    """On real Ray Train in this process, which starts no cluster; and the same bits without Ray."""
    import ray

    running = ray.is_initialized()
    made = settings(tmp_path, ray={"enabled": True})
    left, part = train(made, capsys)
    assert ray.is_initialized() == running
    assert (left.job, left.status, left.who.senders, left.who.receiver) == (
        "train_fuser",
        "complete",
        (SENDER,),
        RECEIVER,
    )
    assert [m.role for m in left.who.members] == ["receiver", "sender"] and left.who.members[0].pid == os.getpid()
    assert (part.name, part.role, part.status) == (f"{SENDER}--{RECEIVER}", "fuser", "complete")
    assert (part.steps, part.resumed_at, part.questions) == (12, 0, 24) and part.seconds > 0
    assert {"loss", "accuracy", "validation/loss"} <= part.figures.keys()
    assert part.validation.keys() == part.validation_alone.keys() and part.validation
    assert (tmp_path / "out" / "figures" / "weights.png").stat().st_size > 5000

    manifest = read_manifest(Path(part.path or ""))
    assert manifest.hash == part.hash and manifest.training["recipe"]["steps"] == 12
    assert len(manifest.training["norms"]["keys"]) == manifest.config["sender"]["layers"]
    assert str(tmp_path) not in json.dumps(manifest.training), "no path in what is hashed or shared"
    assert not list((tmp_path / "registry" / FOLDER).iterdir()), "the checkpoint is gone once it is registered"
    planner = Planner(tmp_path / "registry")
    infos = [info_of(name) for name in (RECEIVER, SENDER)]
    plan = planner.plan(infos[0], infos[1:])
    assert plan.fusers[SENDER].hash == part.hash

    assert whole.hash == part.hash
    _, other = train(settings(tmp_path / "c", seed=1), capsys)
    assert other.hash != part.hash


def info_of(name: str):
    from fedray.llm.loading import describe, load

    return describe(load(name))


def test_what_mlflow_shows_arrives_later_where_its_server_is_down(
    tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = settings(tmp_path, tracking={"uri": "http://127.0.0.1:9"})
    assert fuser_job.run(made) == 0
    assert f"the figures wait here, send them with `python -m fedray.tracking {made.output}`" in capsys.readouterr().out
    left = report.read(made.output)
    (part,) = left.learned
    assert (left.status, left.tracking) == ("complete", None) and part.hash
    waiting = made.output / PENDING
    waiting.write_text(waiting.read_text().replace("http://127.0.0.1:9", store))
    uri, run_id = sync(made.output)

    from mlflow import MlflowClient

    client = MlflowClient(uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.tags["zoo"] == "tiny"
    assert (run.data.params["sender"], run.data.params["receiver"]) == (SENDER, RECEIVER)
    assert [point.step for point in client.get_metric_history(run_id, "loss")] == [5, 10, 12]
    curves = {"validation/loss", "weight", *(f"weight/layer-{t}" for t in range(6))}
    assert all([m.step for m in client.get_metric_history(run_id, curve)] == [5, 10, 12] for curve in curves)
    assert [file.path for file in client.list_artifacts(run_id, "figures")] == ["figures/weights.png"]
    version = client.get_model_version_by_alias(f"fuser.{SENDER}--{RECEIVER}", "in-use-mlp-concat")
    assert (version.run_id, version.tags["hash"]) == (run_id, part.hash)


def arguments(folder: Path, *more: str) -> list[str]:
    """The same training as SHORT's, on a command line."""
    given = [f"{key}={value}" for key, value in SHORT.items()]
    where = [f"registry.path={folder / 'registry'}", f"output={folder / 'out'}", "tracking=none"]
    return [f"sender={SENDER}", *given, *where, *more]


@pytest.mark.timeout(600)
def test_killed_at_a_random_moment_and_started_again(
    tmp_path: Path, whole: Learned, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL, as from a lost power supply; the hash is that of a training nobody disturbed.

    Another process goes on.
    """
    checkpoint = tmp_path / "registry" / FOLDER / f"{SENDER}--{RECEIVER}.mlp-concat" / "checkpoint.safetensors"
    command = [sys.executable, str(ROOT / "jobs" / "train_fuser.py"), *arguments(tmp_path, "ray=none")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path) as job:
        while not checkpoint.exists() and job.poll() is None:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.5))
        job.send_signal(signal.SIGKILL)
    assert (
        job.returncode == -signal.SIGKILL
        and checkpoint.exists()
        and not (tmp_path / "out").joinpath("report.json").exists()
    )
    _, part = train(settings(tmp_path), capsys)
    assert part.resumed_at > 0 and part.hash == whole.hash


def test_interrupted_it_leaves_a_report_and_goes_on(tmp_path: Path, call: Call) -> None:
    """Ctrl-C, once there is a checkpoint."""
    folder = tmp_path / "registry" / FOLDER / f"{SENDER}--{RECEIVER}.mlp-concat"
    over = Event()

    def interrupt() -> None:
        while not over.wait(0.01):
            if (folder / "checkpoint.safetensors").exists():
                return signal.pthread_kill(main_thread().ident or 0, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells may ignore it
    watching = Thread(target=interrupt)
    watching.start()
    try:
        code, _ = call.train(*arguments(tmp_path, "steps=4000"))
    finally:
        over.set()
        watching.join()
        signal.signal(signal.SIGINT, before)
    assert code == 130 and call.out.strip().splitlines()[-1] == f"report: {tmp_path / 'out' / 'report.json'}"
    left = report.read(tmp_path / "out")
    (part,) = left.learned
    assert (left.status, part.status, part.hash) == ("interrupted", "interrupted", None) and part.steps >= 2
    assert part.figures["loss"] is not None and (folder / "checkpoint.safetensors").exists()


def test_another_command_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings(tmp_path)

    def die(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fuser_job, "accuracy_by_group", die)  # trained, and not yet registered
        assert fuser_job.run(made) == 130
    capsys.readouterr()
    with pytest.raises(FedrayError, match=r"was begun with steps=12, this is steps=13; .*restart=true"):
        fuser_job.run(settings(tmp_path, steps=13))
    assert capsys.readouterr().out == ""
    _, part = train(made, capsys)
    assert part.resumed_at == 12 and part.hash
    with monkeypatch.context() as patch:
        patch.setattr(fuser_job, "accuracy_by_group", die)
        assert fuser_job.run(made) == 130
    capsys.readouterr()
    _, part = train(settings(tmp_path, steps=13, restart=True), capsys)
    assert part.resumed_at == 0 and part.steps == 13


def test_a_full_disk_is_a_sentence_and_the_training_goes_on(
    tmp_path: Path, whole: Learned, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings(tmp_path)

    def die(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fuser_job, "accuracy_by_group", die)
        assert fuser_job.run(made) == 130
    with full_disk(40_000), pytest.raises(FedrayError, match=r"checkpoint\.safetensors cannot be written .*untouched"):
        fuser_job.run(made)
    left = report.read(made.output)
    assert (left.status, left.learned[0].status) == ("failed", "failed")
    figure = tmp_path / "out" / "figures"
    figure.touch()  # the picture finds no place
    with pytest.raises(FedrayError, match=r"weights\.png cannot be written"):
        fuser_job.run(made)
    figure.unlink()
    capsys.readouterr()
    _, part = train(made, capsys)
    assert part.resumed_at == 12 and part.hash == whole.hash

    def no_report(*args: object, **how: object) -> Path:
        raise FedrayError("report.json cannot be written")

    monkeypatch.setattr(report, "write", no_report)
    with monkeypatch.context() as patch, pytest.raises(FedrayError, match="the first trouble"):
        patch.setattr(
            fuser_job, "accuracy_by_group", lambda *args: (_ for _ in ()).throw(FedrayError("the first trouble"))
        )
        fuser_job.run(made)


def test_controls_are_measured_and_never_registered(
    tmp_path: Path, whole: Learned, capsys: pytest.CaptureFixture[str]
) -> None:
    left, part = train(settings(tmp_path, control="single"), capsys)
    assert part.control == "single" and part.name == f"{SENDER}--{RECEIVER}-single" and part.hash is None
    assert part.validation and Registry(tmp_path / "registry", embedded=None).list() == []
    assert part.figures["loss"] != pytest.approx(whole.figures["loss"], abs=1e-3), "single sees no sender"
    left, part = train(settings(tmp_path, sender=None, control="identical"), capsys)
    assert left.who.senders == (RECEIVER,) and part.name == f"{RECEIVER}--{RECEIVER}-identical" and part.hash is None
    assert len(left.who.members) == 1


def test_all_is_every_pair_without_a_fuser(tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The embedded registry has concat fusers of every pair, and mix fusers into the default receiver only."""
    assert fuser_job.run(settings(tmp_path / "none", sender="all")) == 0
    assert report.read(tmp_path / "none" / "out").learned == () and "nothing to train" in capsys.readouterr().out
    some = settings(tmp_path, sender="all", receiver="llama-1b", fusion="mix", steps=2, validate_every=0, patience=0)
    _, one = train(replace(some, sender="qwen3-0.6b"), capsys)
    assert fuser_job.run(replace(some, tracking=TrackingSettings(uri=store))) == 0
    left = report.read(tmp_path / "out")
    names = [part.name for part in left.learned]
    assert names == [f"{s}--llama-1b" for s in ("qwen2.5-0.5b", "qwen2.5-coder-0.5b", "qwen2.5-1.5b")]
    assert left.status == "complete" and len({part.hash for part in (one, *left.learned)}) == 4
    assert all((tmp_path / "out" / name / "figures" / "weights.png").is_file() for name in names)

    from mlflow import MlflowClient

    assert left.tracking
    client, above = MlflowClient(store), left.tracking.run_id
    run = client.get_run(above)
    below = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{above}'")
    assert {r.info.run_name for r in below} == {f"train {name}" for name in names}
    assert run.data.params["senders"] == ", ".join(left.who.senders) and {r.info.status for r in below} == {"FINISHED"}


def gate_settings(folder: Path, **values: Any) -> GateJob:
    given = {"senders": [SENDER, "llama-1b"], "ray": False, "tracking": False, "limit": 200, "steps": 20, "layers": [0]}
    where = {"registry": {"path": folder / "registry"}, "output": folder / "out"}
    return build_gate_job({**given, **where, **values})


@pytest.mark.slow
def test_a_gate_for_some_senders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On Ray Train; its fusers are those in use, and a federation of others is told so."""
    assert gate_job.run(gate_settings(tmp_path, ray={"enabled": True})) == 0
    left = report.read(tmp_path / "out")
    (part,) = left.learned
    assert (left.job, left.status, part.name, part.role) == ("train_gate", "complete", f"gate--{RECEIVER}", "gate")
    assert {sender for row in left.found.weights.values() for sender in row} == {SENDER, "llama-1b"}
    manifest = read_manifest(Path(part.path or ""))
    shipped = {m.hash for m, _ in Registry(None, SHIPPED).list()}
    assert set(manifest.training["fusers"]) == {SENDER, "llama-1b"}
    assert set(manifest.training["fusers"].values()) <= shipped
    registry = Registry(tmp_path / "registry", embedded=None)
    me = info_of(RECEIVER)
    assert registry.find_gate(me, ("llama-1b",), "concat").hash == part.hash
    with pytest.raises(FedrayError, match=r"it knows qwen2\.5-0\.5b, llama-1b\); train one with jobs/train_gate\.py"):
        registry.find_gate(me, ("llama-1b", "qwen2.5-1.5b"), "concat")
    assert gate_job.run(gate_settings(tmp_path / "again")) == 0
    assert report.read(tmp_path / "again" / "out").learned[0].hash == part.hash


def test_a_gate_needs_its_fusers(tmp_path: Path) -> None:
    with pytest.raises(FedrayError, match=r"no fuser=mlp fusion=mix for qwen3-0\.6b -> llama-1b: train it with jobs/"):
        gate_job.run(gate_settings(tmp_path, receiver="llama-1b", senders=["qwen3-0.6b"], fusion="mix"))
    with pytest.raises(FedrayError, match=r"layers=\[9\]: qwen3-0\.6b has 6 layers"):
        gate_job.run(gate_settings(tmp_path, layers=[9]))
