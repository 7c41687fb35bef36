from __future__ import annotations

import json
import os
import shlex
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedray.settings.check import check_store
from fedray.settings.settings import TrackingSettings
from fedray.tracking import Tracker, browse, sync, tracker
from fedray.tracking.__main__ import main
from fedray.tracking.pending import PENDING
from fedray.tracking.store import Operation, Store
from fedray.types import Answer, FedrayError, Missing, Request, Row, Usage

mlflow = pytest.importorskip("mlflow")

SECRET = "what is the color of the bird tari?"
USAGE = Usage(
    {"prefill": 0.5, "decode": 1.0, "prefill[llama-1b]": 2.0, "gate": 0.25, "transfer": 0.125, "total": 4.0}, 640, 16
)
ANSWER = Answer((Row("red as tari"),), "qwen3-0.6b", ("llama-1b",), (Missing("qwen2.5-1.5b", "died"),), USAGE)
ROWS = [{"question": SECRET, "gold": "red", "alone": "blue", "federated": None, "outcome": "both wrong"}]


@dataclass(frozen=True)
class Settings:
    uri: str
    enabled: bool = True
    experiment: str = "fedray"
    traces: int = 2


def work(track: Tracker, output: Path) -> None:
    """What a job logs."""
    (output / ".hydra").mkdir(parents=True)
    (output / ".hydra" / "config.yaml").write_text(f"prompt: {SECRET}")
    (output / "report.json").write_text(SECRET)
    (output / "figures").mkdir()
    (output / "figures" / "accuracy.png").write_bytes(b"png")
    track.tags(zoo="tiny")
    track.params(receiver="qwen3-0.6b", seed=0)
    for step in (1, 2):
        track.metrics({"accuracy": step / 4, "seconds/prefill[llama-1b]/p50": 0.1, "p_value": None}, step)
    track.metrics({"accuracy": float("nan")})
    track.table("questions.json", ROWS)
    for number in range(3):
        track.trace(Request((SECRET,), id=f"batch-{number}"), ANSWER, time.time_ns())
    track.artifact(output / ".hydra", "hydra", quotes=True)
    track.artifact(output / "report.json", quotes=True)
    track.artifact(output / "figures", "figures")
    track.artifact(output / "nothing")


def look(uri: str, run_id: str):
    client = mlflow.MlflowClient(uri)
    run = client.get_run(run_id)
    traces = client.search_traces(locations=[run.info.experiment_id], run_id=run_id, include_spans=True)
    return client, run, sorted(traces, key=lambda t: t.data.spans[0].name)


def check(uri: str, run_id: str) -> None:
    """Everything `work` logs is there."""
    client, run, traces = look(uri, run_id)
    assert run.info.status == "FINISHED" and run.data.params == {"receiver": "qwen3-0.6b", "seed": "0"}
    assert run.data.tags["zoo"] == "tiny" and run.data.tags["mlflow.source.name"]
    assert run.data.metrics == {"accuracy": 0.5, "seconds/prefill/llama-1b/p50": 0.1}
    assert [m.step for m in client.get_metric_history(run_id, "accuracy")] == [1, 2]
    found = {f.path for f in client.list_artifacts(run_id)}
    assert found == {"hydra", "report.json", "figures", "questions.json"}
    assert client.load_table(run.info.experiment_id, "questions.json", [run_id]).iloc[0]["question"] == SECRET
    assert [t.data.spans[0].name for t in traces] == ["batch-0", "batch-1"]
    root, *spans = traces[0].data.spans
    begin = {s.name: (s.start_time_ns - root.start_time_ns) / 1e9 for s in spans}
    assert begin == {"prefill": 0, "prefill[llama-1b]": 0, "gate": 2.0, "transfer": 2.25, "decode": 2.375}
    lasts = {s.name: (s.end_time_ns - s.start_time_ns) / 1e9 for s in spans}
    assert lasts == {phase: seconds for phase, seconds in USAGE.seconds.items() if phase != "total"}
    assert {s.name: s.attributes["member"] for s in spans}["prefill[llama-1b]"] == "llama-1b"
    assert root.inputs == {"prompts": [SECRET]} and root.outputs == {"answers": ["red as tari"]}
    assert root.attributes["missing"] == "qwen2.5-1.5b: died" and root.attributes["payload_bytes"] == 640


def test_a_run_is_there_with_all_its_parts(tmp_path: Path, store: str) -> None:
    with Tracker(Settings(store), tmp_path / "out", name="c2c") as track:
        work(track, tmp_path / "out")
        uri, run_id = track.run() or ("", "")
    assert track.problem is None and not (tmp_path / "out" / PENDING).exists()
    assert uri == store
    check(uri, run_id)


def test_a_private_run_tells_mlflow_no_prompt(tmp_path: Path, store: str) -> None:
    with Tracker(Settings(store), tmp_path / "out", private=True) as track:
        work(track, tmp_path / "out")
        _, run_id = track.run() or ("", "")
    client, run, traces = look(store, run_id)
    assert {f.path for f in client.list_artifacts(run_id)} == {"figures", "questions.json"}
    row = client.load_table(run.info.experiment_id, "questions.json", [run_id]).iloc[0]
    assert row["question"].endswith(f"({len(SECRET)} characters)") and row["outcome"] == "both wrong"
    shown = json.dumps([t.to_dict() for t in traces]) + row.to_json()
    assert "tari" not in shown and '"blue"' not in shown
    assert row["question"] in shown, "equal texts have equal hashes within a run"


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_says_how_it_ended(tmp_path: Path, store: str, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), Tracker(Settings(store), tmp_path) as track:
        track.params(a=1)
        raise error
    _, run, _ = look(store, (track.run() or ("", ""))[1])
    assert run.info.status == status


def test_a_server_that_is_down_costs_seconds_and_loses_nothing(tmp_path: Path, store: str) -> None:
    output = tmp_path / "out"
    with Tracker(Settings("http://127.0.0.1:9"), output) as track:
        work(track, output)
        assert track.run() is None
    assert track.problem and "127.0.0.1" in track.problem and "\n" not in track.problem
    with pytest.raises(FedrayError, match="still fails"):
        sync(output)
    moved = output.rename(tmp_path / "moved")
    pending = json.loads((moved / PENDING).read_text())
    (moved / PENDING).write_text(json.dumps({**pending, "uri": store}))
    uri, run_id = sync(moved)
    check(uri, run_id)
    with pytest.raises(FedrayError, match="nothing waits"):
        sync(moved)


def test_a_password_is_neither_shown_nor_kept(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "http://me:se@cret@127.0.0.1:9/"
    with Tracker(Settings(uri), tmp_path) as track:
        track.params(hub="https://me:secret@hub.example/x")
        assert track.run() is None
    kept = (tmp_path / PENDING).read_text()
    assert "cret" not in kept + (track.problem or "") + track.uri and "https://***@hub.example/x" in kept
    assert (tmp_path / PENDING).stat().st_mode & 0o777 == 0o600
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(
        FedrayError, match=r"password of http://\*\*\*@127.0.0.1:9/ is not kept: set MLFLOW_TRACKING_URI"
    ):
        sync(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(FedrayError, match="still fails") as still:
        sync(tmp_path)
    assert "cret" not in str(still.value)


def test_a_server_that_never_answers_costs_seconds(
    tmp_path: Path, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with Tracker(Settings(silent), tmp_path) as track:
        track.params(a=1)
        assert track.run() is None
    assert (tmp_path / PENDING).exists()


@pytest.fixture
def silent():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_without_mlflow_the_journal_waits(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("No module named 'mlflow'")

    with monkeypatch.context() as patch:
        patch.setattr(tracker, "load", missing)
        with Tracker(Settings(store), tmp_path / "out") as track:
            work(track, tmp_path / "out")
            assert track.run() is None
    assert track.problem and "pip install" in track.problem
    check(*sync(tmp_path / "out"))


def test_a_server_that_dies_in_between_gets_the_rest_into_the_same_run(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply, taken = Store.apply, []

    def four_times(self: Store, run_id: str, operation: Operation) -> None:
        taken.append(run_id)
        if len(taken) > 4:
            raise ConnectionError("connection reset")
        apply(self, run_id, operation)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "apply", four_times)
        with Tracker(Settings(store), tmp_path / "out") as track:
            work(track, tmp_path / "out")
    assert track.problem and "connection reset" in track.problem
    assert sync(tmp_path / "out") == (store, taken[0]) == track.run()
    check(store, taken[0])


log_batch = mlflow.MlflowClient.log_batch


def lost(*args: object, **kwargs: object) -> None:
    raise ConnectionError("connection reset")


def no_metrics(client: Any, run_id: str, metrics: Sequence[object] = (), **rest: Any) -> None:
    (lost if metrics else log_batch)(client, run_id, metrics, **rest)


@pytest.mark.parametrize(
    ("where", "instead"),
    [
        ("mlflow.MlflowClient.log_batch", no_metrics),  # a child without its figures
        ("mlflow.MlflowClient.set_terminated", lost),  # a child that never ends
        ("mlflow.MlflowClient.set_tag", lost),  # a table that nobody is told of
        ("mlflow.MlflowClient.set_registered_model_alias", lost),  # a version that nobody finds
        ("mlflow.tracing.export.mlflow_v3.MlflowV3SpanExporter.export", lambda *args: None),  # a trace that got lost
    ],
)
def test_what_was_half_logged_is_finished_and_not_doubled(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, where: str, instead: Callable[..., None]
) -> None:
    with Tracker(Settings("http://127.0.0.1:9", traces=1), tmp_path) as track:
        track.child("row 1", params={"n": 3}, metrics={"accuracy": 0.5}, tags={"zoo": "tiny"})
        track.table("questions.json", ROWS)
        track.trace(Request((SECRET,), id="batch-0"), ANSWER, time.time_ns())
        track.register(tmp_path.name, tmp_path, alias="in-use")
    pending = json.loads((tmp_path / PENDING).read_text())
    (tmp_path / PENDING).write_text(json.dumps({**pending, "uri": store}))
    with monkeypatch.context() as patch, pytest.raises(FedrayError, match="still fails"):
        patch.setattr(where, instead)
        sync(tmp_path)
    _, run_id = sync(tmp_path)
    client, run, traces = look(store, run_id)
    (child,) = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert child.info.status == run.info.status == "FINISHED" and child.info.run_name == "row 1"
    assert child.data.metrics == {"accuracy": 0.5} and child.data.params == {"n": "3"}
    assert child.data.tags["zoo"] == "tiny"
    assert len(client.load_table(run.info.experiment_id, "questions.json", [run_id])) == 1
    assert len(traces) == 1 and len(traces[0].data.spans) == 6
    assert client.get_model_version_by_alias(tmp_path.name, "in-use").version == 1


@pytest.mark.parametrize("down", [False, True], ids=["at once", "later"])
def test_a_registered_model_has_versions_and_the_alias_is_on_the_newest(tmp_path: Path, store: str, down: bool) -> None:
    version, model = tmp_path / "registry" / "a--b" / "0123", f"fuser.llama-1b--qwen3-0.6b.{down}"
    version.mkdir(parents=True)
    (version / "model.safetensors").write_bytes(b"weights")
    runs = []
    for number, digest in enumerate(("0123", "4567")):
        output = tmp_path / str(number)
        with Tracker(Settings("http://127.0.0.1:9" if down else store), output) as track:
            track.register(model, version, alias="in-use", hash=digest)
        if down:
            pending = json.loads((output / PENDING).read_text())
            (output / PENDING).write_text(json.dumps({**pending, "uri": store}))
        runs.append(sync(output) if down else track.run())
    client = mlflow.MlflowClient(store)
    newest = client.get_model_version_by_alias(model, "in-use")
    assert (newest.version, newest.run_id, newest.tags["hash"]) == (2, runs[-1][1], "4567")
    assert [f.path for f in client.list_artifacts(runs[0][1], "model")] == ["model/model.safetensors"]
    assert mlflow.artifacts.download_artifacts(newest.source, dst_path=str(tmp_path / "got"))
    assert (tmp_path / "got" / "model" / "model.safetensors").read_bytes() == b"weights"


def test_switched_off_or_unused_it_leaves_nothing(tmp_path: Path) -> None:
    for settings, uses in ((Settings(f"sqlite:///{tmp_path}/a.db", enabled=False), True), (Settings("x://"), False)):
        with Tracker(settings, tmp_path / "out") as track:
            if uses:
                track.params(a=1)
        assert track.run() is None and track.problem is None
    assert not list(tmp_path.iterdir())


def test_a_bad_store_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Tracker(Settings(f"sqlite:///{tmp_path}/file/mlflow.db"), tmp_path) as track:
        track.params(a=1)
    assert track.problem and (tmp_path / PENDING).exists()


def test_a_full_disk_does_not_stop_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Tracker(Settings("http://127.0.0.1:9"), tmp_path / "file") as track:
        track.params(a=1)
    assert track.problem and "takes nothing either" in track.problem


@pytest.mark.slow
def test_runs_started_together_share_one_new_store(tmp_path: Path) -> None:
    script = (
        "import sys; from types import SimpleNamespace as N; from pathlib import Path\n"
        "from fedray.tracking import Tracker\n"
        "with Tracker(N(enabled=True, uri='sqlite:///mlflow.db', experiment='e', traces=0), Path(sys.argv[1])) as t:\n"
        "    t.params(a=1)\n"
        "print(t.run()[1], t.problem)"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}

    def start(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, name]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor() as pool:
        done = list(pool.map(start, ("a", "b")))
    assert [d.stderr for d in done] == ["", ""]
    ids = {d.stdout.split()[0] for d in done}
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert len(ids) == 2 and all(client.get_run(i).data.params == {"a": "1"} for i in ids)


def test_a_deleted_experiment_says_how_to_go_on(store: str, tmp_path: Path) -> None:
    """Where the store's file can be read, before the work; of a server, with what waits to be sent."""
    from click.testing import CliRunner
    from mlflow.cli import cli

    with Tracker(Settings(store, experiment="gone"), tmp_path) as track:
        track.params(a=1)
    client = mlflow.MlflowClient(store)
    number = client.get_experiment_by_name("gone").experiment_id
    client.delete_experiment(number)
    with pytest.raises(FedrayError) as caught:
        check_store(TrackingSettings(uri=store, experiment="gone"))
    said = str(caught.value)
    assert "'gone' was deleted" in said and "tracking.experiment=NAME" in said
    with Tracker(Settings(store, experiment="gone"), tmp_path) as track:
        track.params(a=2)
    assert track.problem and f"`mlflow experiments restore -x {number}`" in track.problem
    assert "tracking.experiment=NAME" in track.problem
    variable, program, *arguments = shlex.split(said.split("`")[1])
    assert program == "mlflow"
    done = CliRunner().invoke(cli, arguments, env=dict([variable.split("=", 1)]))
    assert done.exit_code == 0, done.output
    check_store(TrackingSettings(uri=store, experiment="gone"))
    _, run = sync(tmp_path)
    assert client.get_run(run).data.params == {"a": "2"}


@pytest.mark.parametrize("there", ["a missing file", "an empty file", "no database", "a store of another version"])
def test_what_is_no_store_is_left_to_mlflow(tmp_path: Path, there: str) -> None:
    database = tmp_path / "it's 100%.db"
    match there:
        case "an empty file":
            database.touch()
        case "no database":
            database.write_text("a text")
        case "a store of another version":
            with closing(sqlite3.connect(database)) as other:
                other.execute("CREATE TABLE experiments (id INTEGER)")
    check_store(TrackingSettings(uri=f"sqlite:///{database}"))


def test_the_command_sends_what_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2 and "usage" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2 and "nothing waits" in capsys.readouterr().err


def test_origin_names_the_submitted_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert "ray.job_id" not in tracker.origin()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "raysubmit_x"}}))
    assert tracker.origin()["ray.job_id"] == "raysubmit_x"


def test_the_command_that_shows_a_run_names_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    usual, other = f"sqlite:///{tmp_path}/mlflow.db", f"sqlite:///{tmp_path}/other/mlflow.db"
    assert browse(usual, "r1") == f"MLflow run r1: browse it with `make ui` (store {usual})"
    assert f"with `MLFLOW_TRACKING_URI={other} make ui`" in browse(other, "r1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    assert "with `make ui`" in browse(other, "r1") and f"MLFLOW_TRACKING_URI={usual}" in browse(usual, "r1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert "with `make ui`" in browse(usual, "r1")
    assert browse("http://here:5000", "r1") == "MLflow run r1: browse it at http://here:5000"


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("prefill[llama-1b]", "prefill/llama-1b"),
        ("hint[/my/llm]", "hint/my/llm"),
        ("validation/", "validation"),
        ("weight//my/../llm", "weight/my/llm"),
        ("trust/über/a", "trust/über/a"),
    ],
)
def test_metrics_have_names_that_mlflow_takes(name: str, allowed: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    assert tracker._metric(name) == allowed
    _validate_metric_name(allowed)
