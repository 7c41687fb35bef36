"""The command line becomes Settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from commandline import Call

from fedray.command_line import CONF, build, check, load
from fedray.llm.catalogue import NAMES, safe_name
from fedray.methods.method import FuserChoice, Fusion, Gate, SelfRefine, Standalone
from fedray.settings.settings import (
    MemberSettings,
    RaySettings,
    Settings,
    TaskSettings,
    TrackingSettings,
    ZooSettings,
)
from fedray.types import Generation

hydra = pytest.importorskip("hydra")
pytestmark = pytest.mark.usefixtures("without_a_store")
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
        return load(hydra.compose("config", ["output=out", *overrides]))


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
        ("protocol=standalone", Settings(senders=(), protocol=Standalone())),
        ("protocol=self_refine", Settings(senders=(), protocol=SelfRefine())),
        (
            "protocol=standalone senders=[llama-1b]",
            Settings(senders=("llama-1b",), protocol=Standalone()),
        ),
        ("gate=open gate.route=lazy", Settings(gate=Gate("open", route="lazy"))),
        ("+gate=none ++seed=3", Settings(gate=Gate("none"), seed=3, generation=Generation(seed=3))),
        ("fusion=mix", Settings(fusion=Fusion("mix"))),
        ("fusion=mix fusion_order=sequential", Settings(fusion=Fusion("mix"), fusion_order="sequential")),
        ("fuser=c2c", Settings(fuser=FuserChoice("c2c"), fusion=Fusion("mix"))),
        ("fuser=c2c fusion=mix", Settings(fuser=FuserChoice("c2c"), fusion=Fusion("mix"))),
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
    assert [(s.fusion.operator, s.output) for s in call.ran] == [
        ("concat", tmp_path / "sweep/0"),
        ("mix", tmp_path / "sweep/1"),
    ]


def test_a_sweep_is_checked_before_its_first_run(call: Call) -> None:
    code, err = call("-m", "task.limit=5,-5")
    assert (code, call.ran) == (2, [])
    assert "task.limit must be at least 1, got -5" in err


def test_build_fills_in_what_follows() -> None:
    assert build({"receiver": "llama-1b"}).senders == NAMES[:-1]
    assert build({"fuser": "c2c"}).fusion == Fusion("mix")
    assert build({"seed": 5}).generation.seed == 5
    assert build({"seed": 5, "generation": Generation(seed=7)}).generation.seed == 7
    bare = build({"gate": "open", "ray": False, "protocol": "standalone"})  # each stands for the first field
    assert (bare.gate.kind, bare.ray.enabled, bare.protocol.name) == ("open", False, "standalone")


def test_shapes_imply_an_open_gate(call: Call) -> None:
    assert call.settings("zoo=shapes").gate == Gate("open")
    assert call.settings("zoo=shapes", "gate.route=lazy").gate == Gate("open", route="lazy")
    assert call.settings("zoo=shapes", "gate=learned").gate == Gate("learned")
    assert call.settings("zoo=hub").gate == call.settings().gate == Gate("learned")
    assert build({"zoo": "shapes"}).gate.kind == "open" and build({"zoo": "shapes", "gate": "none"}).gate.kind == "none"
