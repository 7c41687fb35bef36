"""How a job begins and ends: exit codes, signals, help, and where its results stay."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from commandline import Call

from fedray.command_line import CONF, FEDERATION, launch
from fedray.settings.settings import Settings
from fedray.types import FedrayError

pytest.importorskip("hydra")
pytestmark = pytest.mark.usefixtures("without_a_store")
ROOT = CONF.parent


def test_exit_codes(call: Call) -> None:
    def refuse(settings: Settings) -> int:
        raise FedrayError(f"no fuser for {settings.receiver}:\ntrain one")

    def interrupt(settings: Settings) -> int:
        raise KeyboardInterrupt

    assert call(job=lambda settings: 3) == (3, "")
    assert call(job=refuse) == (2, "no fuser for qwen3-0.6b: train one\n")
    assert call(job=interrupt) == (130, "")


def test_one_interrupt_ends_a_sweep(call: Call) -> None:
    ran: list[int] = []

    def interrupted(settings: Settings) -> int:
        ran.append(settings.seed)
        return 130 if settings.seed == 2 else 0

    assert call("-m", "seed=1,2,3", job=interrupted) == (130, "") and ran == [1, 2]
    assert call.out.splitlines() == ["run 1 of 3: seed=1", "run 2 of 3: seed=2"]


def test_errors_of_the_job_are_not_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(settings: Settings) -> int:
        raise RuntimeError("a bug")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["federate.py"])
    with pytest.raises(RuntimeError, match="a bug"):
        launch(fail)


def test_a_signal_while_settings_are_composed_is_no_bad_flag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def killed(_: object) -> NoReturn:
        sys.exit(15)  # Ray's handler of SIGTERM

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["federate.py"])
    with pytest.raises(SystemExit) as stop:
        launch(print, job_name="federate", form=replace(FEDERATION, build=killed))
    assert stop.value.code == 15


def test_help_helps(call: Call) -> None:
    assert call("--help") == (0, "")
    for word in ("'+senders=[qwen2.5-1.5b,llama-1b]'", "receiver=", "prompt=", "questions=", "output=", "task.limit"):
        assert word in call.out


def test_no_two_runs_share_a_folder(call: Call) -> None:
    folders = [call.settings().output for _ in range(4)]  # within a second or two
    assert len(set(folders)) == 4 and all((folder / ".hydra").is_dir() for folder in folders)
    call("-m", "seed=1,2")
    call("-m", "seed=1,2")
    sweeps = [settings.output.parent for settings in call.ran[4:]]
    assert sweeps[0] == sweeps[1] != sweeps[2] == sweeps[3]


def test_what_the_command_line_was_told_stays_with_its_owner(call: Call) -> None:
    told = ("tracking.uri=http://me:secret@host:1/", "evidence.llama-1b=fatu is red", "prompt=what is fatu?")
    for arguments in (told, ("-m", "seed=1,2", *told)):
        call(*arguments)
        settings = call.ran[-1]
        files = [*(settings.output / ".hydra").iterdir(), *settings.output.parent.glob("multirun.yaml")]
        assert len(files) == (3 if arguments is told else 4)
        for file in files:
            assert file.stat().st_mode & 0o777 == 0o600 and "secret" not in file.read_text(), file
        assert settings.tracking.uri == "http://me:secret@host:1/"


def federate(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / "federate.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("arguments", ["+senders=[lama-1b]", "zoo=hb", "receiver=lama-1b"])
def test_a_bad_call_is_a_sentence(tmp_path: Path, arguments: str) -> None:
    done = federate(arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1


def test_checks_need_neither_torch_nor_ray_nor_hydra(tmp_path: Path) -> None:
    script = """
import sys
from fedray.command_line import build, check
check(build({"senders": ["llama-1b"]}))
assert not {"torch", "transformers", "ray", "hydra", "omegaconf", "mlflow"} & sys.modules.keys()
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)


@pytest.mark.parametrize("submitted", [False, True])
def test_empty_variables_are_as_if_unset(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, submitted: bool
) -> None:
    if submitted:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FEDRAY_HOME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    settings = call.settings()
    assert settings.output.is_relative_to(tmp_path / ("home/fedray/outputs" if submitted else "outputs"))
    home = f"{tmp_path}/home/fedray/" if submitted else ""
    assert settings.tracking.uri == f"sqlite:///{home}mlflow.db"


def test_a_submitted_job_leaves_its_results_where_they_stay(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("FEDRAY_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")  # so that what launch sets is undone
        monkeypatch.delenv(name)
    settings = call.settings()
    assert settings.output.is_relative_to(tmp_path / "home" / "fedray" / "outputs")
    assert settings.tracking.uri == f"sqlite:///{tmp_path}/home/fedray/mlflow.db"
