"""The command line becomes Settings, or one sentence on stderr and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from fedray.config import CONF, FEDERATION, Settings, build, check, launch, load
from fedray.llm.catalogue import CATALOGUE, NAMES, resolve, safe_name, slug
from fedray.settings import (
    GateSettings,
    MemberSettings,
    ProtocolSettings,
    RaySettings,
    TaskSettings,
    TrackingSettings,
    ZooSettings,
)
from fedray.types import FedrayError, Generation

hydra = pytest.importorskip("hydra")
ROOT = CONF.parent
CHOICES = [
    (str(path.parent.relative_to(CONF)), path.stem)
    for path in sorted(CONF.rglob("*.yaml"))
    if path.parent not in (CONF, CONF / "data")
    and not path.is_relative_to(CONF / "hydra")
    and "\nblocks:" not in path.read_text()
    and "override /data" not in path.read_text()
]


def compose(*overrides: str) -> Settings:
    """Hydra's own reading of a command line, without what `launch` does to it."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return load(hydra.compose("config", list(overrides)))


class Call:
    """Calls `launch` as a process would: argv in; exit code, stderr and the jobs that ran out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.ran: list[Settings] = []

    def __call__(self, *arguments: str, job: Callable[[Settings], int | None] | None = None) -> tuple[int, str]:
        self.monkeypatch.setattr(sys, "argv", ["federate.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            launch(job or self.ran.append, job_name="federate")
        self.out, err = self.capsys.readouterr()
        assert sys.argv == ["federate.py", *arguments]
        assert isinstance(stop.value.code, int)
        return stop.value.code, err

    def settings(self, *arguments: str) -> Settings:
        assert self(*arguments) == (0, "")
        return self.ran[-1]


@pytest.fixture(autouse=True)
def without_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow leaves the store of other tests in the environment."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    monkeypatch.chdir(tmp_path)
    return Call(monkeypatch, capsys)


# -- what is composed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_yaml_composes(group: str, name: str) -> None:
    check(compose(f"{group}={name}"))


def test_yaml_and_dataclasses_have_the_same_defaults() -> None:
    composed = compose()
    assert composed.members == {safe_name(name): MemberSettings() for name in NAMES}
    assert replace(composed, members={}, output=Path()) == replace(Settings(), output=Path()) == build({"output": ""})


def test_senders_is_a_list_and_never_a_group() -> None:
    assert not (CONF / "senders").exists()
    assert (CONF / "config.yaml").read_text().count("\nsenders: ") == 1


def test_senders_default_to_everyone_but_the_receiver(call: Call) -> None:
    assert call.settings("receiver=llama-1b").senders == NAMES[:-1]


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_senders_are_replaced(call: Call, prefix: str) -> None:
    argument = f"{prefix}senders=[qwen2.5-1.5b,llama-3.2-1b]"
    assert compose(argument).senders == ("qwen2.5-1.5b", "llama-1b")
    assert call.settings(argument).senders == ("qwen2.5-1.5b", "llama-1b")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("receiver=llama-3.2-1b +senders=[qwen3-0.6b]", Settings(receiver="llama-1b", senders=("qwen3-0.6b",))),
        ("protocol=standalone", Settings(protocol=ProtocolSettings("standalone"))),
        ("gate=open gate.route=lazy", Settings(gate=GateSettings("open", route="lazy"))),
        ("+gate=none ++seed=3", Settings(gate=GateSettings("none"), seed=3, generation=Generation(seed=3))),
        ("fusion=mix", Settings(fusion="mix")),
        ("fusion=mix fusion_order=sequential", Settings(fusion="mix", fusion_order="sequential")),
        ("fuser=c2c", Settings(fuser="c2c", fusion="mix")),
        ("fuser=c2c fusion=mix", Settings(fuser="c2c", fusion="mix")),
        ("experiment=quick", Settings(task=TaskSettings(limit=40))),
        ("task.limit=50 task.split=validation", Settings(task=TaskSettings(limit=50, split="validation"))),
        ("task.limit=null zoo=tiny", Settings(task=TaskSettings(limit=None), zoo=ZooSettings("tiny"))),
        ("ray.enabled=false tracking=none", Settings(ray=RaySettings(False), tracking=TrackingSettings(False))),
        ("ray.address=127.0.0.1:6379", Settings(ray=RaySettings(address="127.0.0.1:6379"))),
        ("deadline_s=2 on_missing=error control=noise", Settings(deadline_s=2.0, on_missing="error", control="noise")),
        ("generation.max_tokens=8", Settings(generation=Generation(max_tokens=8))),
    ],
)
def test_command_lines(call: Call, arguments: str, expected: Settings) -> None:
    settings = call.settings(*arguments.split())
    assert replace(settings, members={}, output=Path()) == replace(expected, output=Path())


def test_members_have_settings_of_their_own(call: Call) -> None:
    settings = call.settings("members.qwen2_5-0_5b.device=cuda:1", "members.qwen2_5-0_5b.label=zone=a")
    assert settings.member("qwen2.5-0.5b") == MemberSettings(device="cuda:1", label="zone=a")
    assert settings.member("llama-1b") == MemberSettings()
    assert build({"members": {"qwen2.5-0.5b": {"num_gpus": 1}}}).member("qwen2.5-0.5b").num_gpus == 1.0


@pytest.mark.parametrize(
    "prompt",
    [
        "what is the color of the bird tari?",
        "which is bigger, a bird or a star?",
        "it's \"quoted\" (twice), isn't it?",
        "a = [1, 2] {b: c} 100% ${seed} $HOME ~ #x",
        'back\\slash \\\\" and the last \\',
        "two\nlines",
        "null?",
        "7",
    ],
)
def test_free_text_arrives_as_it_was_typed(call: Call, prompt: str) -> None:
    assert call.settings(f"prompt={prompt}").prompt == prompt
    assert call.settings("-m", f"prompt={prompt}").prompt == prompt


def test_quoted_text_is_unquoted_once(call: Call) -> None:
    assert call.settings("prompt='hello, you'").prompt == "hello, you"
    assert call.settings("prompt=null").prompt is None


def test_output_is_hydras_folder(call: Call, tmp_path: Path) -> None:
    assert call.settings().output.is_relative_to(tmp_path / "outputs")
    settings = call.settings("output=with space, and comma")
    assert settings.output == tmp_path / "with space, and comma"
    assert (settings.output / ".hydra" / "overrides.yaml").is_file()


def test_sweep(call: Call, tmp_path: Path) -> None:
    assert call("-m", "fusion=concat,mix", "output=sweep") == (0, "")
    assert [(s.fusion, s.output) for s in call.ran] == [("concat", tmp_path / "sweep/0"), ("mix", tmp_path / "sweep/1")]


def test_a_sweep_is_checked_before_its_first_run(call: Call) -> None:
    code, err = call("-m", "task.limit=5,-5")
    assert (code, call.ran) == (2, [])
    assert "task.limit must be at least 1, got -5" in err


# -- what is refused ----------------------------------------------------------------------------------------------

REFUSED = [
    ("+senders=[qwen2.5-1.5,llama-1b]", ["unknown sender 'qwen2.5-1.5'", "did you mean qwen2.5-1.5b"]),
    ("senders=[llama-1b,llama-3.2-1b]", ["llama-1b is more than once", "'+senders=[llama-1b]'"]),
    ("senders=[qwen3-0.6b,llama-1b]", ["qwen3-0.6b is the receiver", "'+senders=[llama-1b]'"]),
    ("receiver=llama-1b senders=[llama-1b,qwen2.5-0.5b]", ["llama-1b is the receiver", "+senders=[qwen2.5-0.5b]"]),
    ("senders=[]", ["protocol=c2c needs a sender"]),
    ("senders=llama-1b", ["senders must be a list such as [llama-1b]"]),
    ("senders=llama-1b,qwen2.5-1.5b", ["senders=[llama-1b,qwen2.5-1.5b]"]),
    ("senders=[1]", ["senders[0] must be text, got 1"]),
    ("receiver=lama-1b", ["unknown receiver 'lama-1b'", "did you mean llama-1b"]),
    ("receiver=null", ["receiver must be text, got null"]),
    ("zoo=hb", ["unknown zoo 'hb'", "did you mean hub"]),
    ("zoo.name=shape", ["unknown zoo 'shape'", "did you mean shapes"]),
    ("receiver=qwen3-8b", ["qwen3-8b is not in zoo=tiny: choose zoo=hub or zoo=shapes, or one of qwen3-0.6b"]),
    ("zoo=hub receiver=qwen3-8", ["unknown receiver 'qwen3-8'", "did you mean qwen3-8b"]),
    ("senders=[hf:org/name]", ["sender hf:org/name is on the Hugging Face hub: add zoo=hub"]),
    ("zoo=shapes senders=[hf:org/name]", ["sender hf:org/name is on the Hugging Face hub: add zoo=hub"]),
    ("zoo=hub senders=[hf:name]", ["sender 'hf:name' names no repository: write hf:org/name"]),
    ("senders=[./llm]", ["sender ./llm is a folder: add zoo=hub for its weights"]),
    ("zoo=hub senders=[./llm]", ["/llm is no LLM's folder, it has no config.json: check the path"]),
    ("zoo=hub senders=[hf:a/llm,hf:a/LLM]", ["hf:a/llm and hf:a/LLM go by the same name, a-llm"]),
    ("members.llama-1b.revision=v2", ["members.llama-1b.revision is of a repository", "add zoo=hub"]),
    ("members.nobody.device=cpu", ["unknown setting 'members.nobody.device'"]),
    (
        "zoo=hub senders=[hf:a/b] members.a-c.dtype=float32",
        ["unknown setting 'members.a-c.dtype'", "members.a-b.dtype"],
    ),
    ("protocol=standalon", ["unknown protocol", "did you mean standalone?", "c2c"]),
    ("protocol=t2", ["unknown protocol 't2'", "t2t"]),
    ("fuser=mpl", ["unknown fuser", "did you mean mlp?"]),
    ("fusion=mxi", ["unknown fusion", "did you mean mix?"]),
    ("fuser=c2c fusion=concat", ["fusion=concat does not go with fuser=c2c"]),
    ("fuser=c2c fusion_order=sequentual", ["unknown fusion_order", "did you mean sequential?"]),
    ("fusion_order=sequential", ["fusion_order=sequential is about fusion=mix", "fusion=concat"]),
    ("gate=opne", ["unknown gate", "did you mean open"]),
    ("gate.kind=opne", ["unknown gate 'opne'", "did you mean open"]),
    ("gate.route=lazi", ["unknown gate.route", "did you mean lazy?"]),
    ("gate.threshold=1.5", ["gate.threshold must be from 0 to 1, got 1.5"]),
    ("task=tny", ["unknown task", "did you mean tiny?"]),
    ("task.split=tset", ["unknown task.split", "did you mean test"]),
    ("control=noisy", ["unknown control", "did you mean noise?"]),
    ("rephrase=share", ["unknown rephrase 'share'", "shared"]),
    ("privacy=share", ["unknown privacy 'share'", "shared"]),
    ("wire=int3", ["unknown wire 'int3'", "int4"]),
    ("wire.keep=0", ["wire.keep must be from 0.01"]),
    ("wire.score=first", ["first", "last"]),
    ("on_missing=alon", ["unknown on_missing", "did you mean alone?"]),
    ("experiment=quik", ["unknown experiment", "did you mean quick?"]),
    ("task.limt=5", ["unknown setting 'task.limt'", "did you mean task.limit"]),
    ("+task.limt=5", ["unknown setting 'task.limt'", "did you mean task.limit"]),
    ("+limit=5", ["unknown setting 'limit'", "task.limit"]),
    ("recever=llama-1b", ["unknown setting 'recever'", "receiver"]),
    ("a/b=c", ["unknown setting 'a/b'"]),
    ("members.qwen2_5_0_5b.device=cpu", ["unknown setting", "members.qwen2_5-0_5b.device"]),
    ("members.llama-1b.device=tpu", ["members.llama-1b.device must be cpu, cuda"]),
    ("members.llama-1b.label=zone", ["members.llama-1b.label must be", "key=value"]),
    ("members.llama-1b.num_gpus=-1", ["members.llama-1b.num_gpus must be at least 0"]),
    ("task.limit=many", ["task.limit must be a whole number, got 'many'"]),
    ("task.limit=1.5", ["task.limit must be a whole number, got 1.5"]),
    ("task.limit=true", ["task.limit must be a whole number, got true"]),
    ("task.limit=-1", ["task.limit must be at least 1, got -1"]),
    ("task.batch_size=0", ["task.batch_size must be from 1 to 256, got 0"]),
    ("generation.max_tokens=-4", ["generation.max_tokens must be at least 1, got -4"]),
    ("generation.temperature=-1", ["generation.temperature must be at least 0"]),
    ("deadline_s=-2", ["deadline_s must be at least"]),
    ("deadline_s=nan", ["deadline_s must be at least"]),
    ("deadline_s=soon", ["deadline_s must be a number, got 'soon'"]),
    ("ray.enabled=maybe", ["ray.enabled must be true or false"]),
    ("ray.gpus_per_member=-1", ["ray.gpus_per_member must be at least 0"]),
    ("seed=-1", ["seed must be from 0"]),
    ("seed=${nope}", ["'nope' not found"]),
    ("prompt=", ["the prompt is empty"]),
    ("prompt=hello questions=some.txt", ["prompt and questions are both given"]),
    ("questions=missing.txt", ["'missing.txt'", "No such file"]),
    ("questions=empty.txt", ["'empty.txt' is empty"]),
    ("questions=bytes.txt", ["'bytes.txt'", "not UTF-8"]),
    ("questions=table.csv", ["'table.csv' must end in .jsonl, .json or .txt"]),
    ("output=empty.txt", ["cannot write to output folder 'empty.txt'"]),
    ("output=empty.txt/deeper", ["cannot write to output folder 'empty.txt/deeper'"]),
    ("senders=[llama-1b", ["cannot read the argument 'senders=[llama-1b'"]),
    ("senders", ["cannot read the argument 'senders'", "key=value"]),
    ("--nope", ["unrecognized arguments: --nope"]),
    ("--cfg nope", ["invalid choice: 'nope'"]),
    ("--config-name nope", ["unknown config 'nope'"]),
    ("-m fusion=concat,mxi", ["unknown fusion 'mxi'", "did you mean mix?"]),
    ("zoo=null", ["cannot compose the settings"]),
    ("hydra.nope=1", ["hydra.nope"]),
    ("rephrase=distinct fusion=mix", ["rephrase=distinct does not go with fusion=mix", "shared"]),
    ("rephrase=shared control=mismatched", ["leave rephrase out"]),
    ("protocol=t2t control=noise", ["control=noise is about caches", "protocol=c2c"]),
    ("vote=true", ["add answer_all=true"]),
    ("answer_all=true protocol=t2t", ["answer_all=true goes with protocol=c2c"]),
    ("answer_all=true control=mismatched", ["answer_all=true", "everybody reads the same prompt"]),
    ("t2t.gate=learned", ["unknown t2t.gate 'learned'", "same"]),
    ("t2t.max_tokens=0", ["t2t.max_tokens must be from 1"]),
    ("evidence.lama-1b=x", ["unknown setting 'evidence.lama-1b'", "evidence.llama-1b"]),
    ("senders=[llama-1b] evidence.qwen2.5-0.5b=x", ["evidence.qwen2_5-0_5b is for nobody who takes part"]),
    ("evidence.llama-1b=nowhere/fact.txt", ["no evidence file 'nowhere/fact.txt': check the path"]),
    ("evidence.llama-1b=x fusion=mix", ["evidence does not go with fusion=mix"]),
    ("gate=oracle prompt=why", ["gate=oracle must be told who knows"]),
]


@pytest.mark.parametrize(("arguments", "says"), REFUSED, ids=[arguments for arguments, _ in REFUSED])
def test_bad_input_is_one_sentence(call: Call, tmp_path: Path, arguments: str, says: list[str]) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    code, err = call(*arguments.split())
    assert code == 2 and call.ran == [] and call.out == ""
    assert err.count("\n") == 1 and err.endswith("\n") and "Traceback" not in err
    for part in says:
        assert part in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_folder_is_refused(call: Call, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    code, err = call("output=locked/new")
    assert code == 2 and "locked/new" in err


def test_settings_made_in_python_are_checked_too(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for settings, says in (
        (Settings(receiver="lama-1b"), "did you mean llama-1b"),
        (Settings(protocol=ProtocolSettings("t2")), "unknown protocol"),  # pyright: ignore[reportArgumentType]
        (Settings(fuser="c2c", fusion="concat"), "does not go with"),
        (Settings(task=TaskSettings(limit=-1)), "task.limit"),
        (Settings(output=tmp_path / "file" / "deeper"), "cannot write"),
    ):
        with pytest.raises(FedrayError, match=says):
            check(settings)


def test_build_fills_in_what_follows() -> None:
    assert build({"receiver": "llama-1b"}).senders == NAMES[:-1]
    assert build({"fuser": "c2c"}).fusion == "mix"
    assert build({"seed": 5}).generation.seed == 5
    assert build({"seed": 5, "generation": Generation(seed=7)}).generation.seed == 7
    bare = build({"gate": "open", "ray": False, "protocol": "standalone"})  # each stands for the first field
    assert (bare.gate.kind, bare.ray.enabled, bare.protocol.name) == ("open", False, "standalone")


# -- how it ends --------------------------------------------------------------------------------------------------


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


def federate(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / "federate.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("arguments", ["+senders=[lama-1b]", "zoo=hb", "receiver=lama-1b"])
def test_a_bad_call_ends_soon(tmp_path: Path, arguments: str) -> None:
    start = time.monotonic()
    done = federate(arguments, cwd=tmp_path)
    assert time.monotonic() - start < 5
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1


def test_checks_need_neither_torch_nor_ray_nor_hydra(tmp_path: Path) -> None:
    script = """
import sys
from fedray.config import build, check
check(build({"senders": ["llama-1b"]}))
assert not {"torch", "transformers", "ray", "hydra", "omegaconf", "mlflow"} & sys.modules.keys()
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)


# -- the catalogue ------------------------------------------------------------------------------------------------


def test_catalogue() -> None:
    assert resolve("llama-3.2-1b") == "llama-1b"
    assert [resolve(name) for name in NAMES] == list(NAMES)
    assert CATALOGUE["qwen2.5-1.5b"].repo == "Qwen/Qwen2.5-1.5B-Instruct"
    with pytest.raises(FedrayError, match=r"unknown sender 'qwen2.5-coder' \(did you mean qwen2.5-coder-0.5b"):
        resolve("qwen2.5-coder", "sender")
    assert set(NAMES) <= set(CATALOGUE) and {"qwen3-8b", "gemma-3-1b"} <= set(CATALOGUE)
    assert [entry.config["num_hidden_layers"] for entry in map(CATALOGUE.get, NAMES) if entry] == [28, 24, 24, 28, 16]


def test_any_decoder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("hf:Org/My.LLM-7B", zoo="hub") == "hf:Org/My.LLM-7B"
    assert resolve("./my llm", zoo="hub") == str(tmp_path / "my llm")
    assert (slug("hf:Org/My.LLM-7B"), safe_name("hf:Org/My.LLM-7B")) == ("org-my.llm-7b", "org-my_llm-7b")
    assert (slug("/data/my llm"), slug("qwen2.5-0.5b"), safe_name("qwen2.5-0.5b")) == (
        "my-llm",
        "qwen2.5-0.5b",
        "qwen2_5-0_5b",
    )


def test_any_decoder_may_take_part(call: Call, tmp_path: Path) -> None:
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "config.json").write_text("{}")
    settings = call.settings(
        "zoo=hub",
        "senders=[hf:Org/LLM-1.5B,./llm,smollm2-135m]",
        "members.hf:Org/LLM-1.5B.dtype=bfloat16",
        "members.org-llm-1_5b.revision=0123456",
        "++members.smollm2-135m.num_gpus=0.5",
    )
    assert settings.senders == ("hf:Org/LLM-1.5B", str(tmp_path / "llm"), "smollm2-135m")
    assert settings.member("hf:Org/LLM-1.5B") == MemberSettings(dtype="bfloat16", revision="0123456")
    assert settings.member("smollm2-135m").num_gpus == 0.5
    check(settings)


def test_shapes_imply_an_open_gate(call: Call) -> None:
    assert call.settings("zoo=shapes").gate == GateSettings("open")
    assert call.settings("zoo=shapes", "gate.route=lazy").gate == GateSettings("open", route="lazy")
    assert call.settings("zoo=shapes", "gate=learned").gate == GateSettings("learned")
    assert call.settings("zoo=hub").gate == call.settings().gate == GateSettings("learned")
    assert build({"zoo": "shapes"}).gate.kind == "open" and build({"zoo": "shapes", "gate": "none"}).gate.kind == "none"


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
