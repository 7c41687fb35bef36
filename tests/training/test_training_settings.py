"""What the training jobs and the registry's job can be told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedray.command_line import CONF, FUSER_TRAINING, GATE_TRAINING, IMPORT, REGISTRY, Form, launch
from fedray.fusion.build import build_fuser
from fedray.llm.catalogue import NAMES
from fedray.methods.method import FuserChoice, Fusion
from fedray.training.fuser_job import recipe_of
from fedray.training.recipe import fuser_config
from fedray.training.registry_settings import RegistryJob
from fedray.training.settings import FuserJob, GateJob, ImportJob, LLMSettings, TrainingData
from fedray.types import KVSpec

pytest.importorskip("hydra")
FORMS = {"train_fuser": FUSER_TRAINING, "train_gate": GATE_TRAINING, "registry": REGISTRY, "import_c2c": IMPORT}
PUBLISHED = "nics-efc/C2C_Fuser/qwen3_0.6b+qwen2.5_0.5b_Fuser"
Call = Callable[..., tuple[int, str, list[Any]]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Calls `launch` as a process would: argv in; exit code, stderr and the settings of the jobs that ran out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(name: str, *arguments: str) -> tuple[int, str, list[Any]]:
        ran: list[Any] = []
        form: Form = FORMS[name]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            launch(ran.append, name, job_name=name, form=form)
        assert isinstance(stop.value.code, int)
        return stop.value.code, capsys.readouterr().err, ran

    return run


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("train_fuser", ["sender=llama-3.2-1b"], FuserJob("llama-1b")),
        ("train_gate", [], GateJob()),
        ("registry", [], RegistryJob()),
        ("import_c2c", [PUBLISHED, "sender=llama-3.2-1b"], ImportJob(PUBLISHED, sender="llama-1b")),
    ],
)
def test_yaml_and_dataclasses_have_the_same_defaults(
    call: Call, name: str, arguments: list[str], expected: Any
) -> None:
    code, err, (made,) = call(name, *arguments)
    assert (code, err) == (0, "")
    here = replace(made, output=expected.output, registry=expected.registry)
    assert here == expected and made.registry.path.resolve() == Path("outputs/registry").resolve()
    assert (CONF / "hydra" / "help" / f"{name}.yaml").is_file() and call(name, "--help")[:2] == (0, "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("sender=all receiver=llama-3.2-1b", FuserJob("all", receiver="llama-1b")),
        ("sender=llama-1b fuser=c2c", FuserJob("llama-1b", fuser=FuserChoice("c2c"), fusion=Fusion("mix"))),
        ("sender=llama-1b fusion=mix steps=7", FuserJob("llama-1b", fusion=Fusion("mix"), steps=7)),
        ("control=identical", FuserJob("qwen3-0.6b", control="identical")),
        ("+sender=llama-1b workers=2 accumulation=3 learning_rate=1e-4", None),
    ],
)
def test_command_lines(call: Call, arguments: str, expected: FuserJob | None) -> None:
    expected = expected or FuserJob("llama-1b", workers=2, accumulation=3, learning_rate=1e-4)
    code, err, (made,) = call("train_fuser", *arguments.split())
    assert (code, err) == (0, "") and replace(made, output=expected.output, registry=expected.registry) == expected
    assert made.all_steps == (made.steps or {"concat": 900, "mix": 600}[made.fusion.operator])


def test_the_published_recipe_is_an_experiment(call: Call) -> None:
    """C2C's on 50,000 conversations (arXiv 2510.03215): one pass at a global batch of 256."""
    code, err, (made,) = call("train_fuser", "+experiment=openhermes_50k", "sender=qwen2.5-0.5b")
    assert (code, err, made.zoo.name) == (0, "", "hub")
    assert (made.data.name, made.limit, made.learns, made.data.longest) == ("openhermes", 50_000, "right", 2048)
    assert (made.fuser.kind, made.fusion.operator, made.hidden, made.layers) == ("c2c", "mix", 1024, "last_aligned")
    assert (made.batch_size, made.rows, made.sampling, made.all_steps) == (256, 4, "epochs", 194)
    assert (made.learning_rate, made.weight_decay, made.schedule, made.warmup) == (1e-4, 0.01, "linear", 0.1)
    assert (made.llm_dtype, made.precision, made.patience) == ("bfloat16", "bfloat16", 0)
    many = call("train_fuser", "+experiment=openhermes_50k", "sender=llama-1b", "workers=8", "accumulation=8")[2][0]
    assert many.rows == 4
    with torch.device("meta"):
        fuser = build_fuser(fuser_config(recipe_of(made), KVSpec(24, 2, 64), KVSpec(28, 8, 128)))
    assert sum(parameter.numel() for parameter in fuser.parameters()) == 477_848_056, "as nics-efc/C2C_Fuser's"


@pytest.mark.parametrize("name", ["train_fuser", "train_gate"])
@pytest.mark.parametrize("data", ["tiny", "openhermes"])
def test_every_data_set_goes_with_every_training(call: Call, name: str, data: str) -> None:
    sender = ["sender=llama-1b"] if name == "train_fuser" else []
    made = call(name, *sender, f"data={data}", "limit=9")[2][0]
    assert made.data == TrainingData(data)  # pyright: ignore[reportArgumentType]


def test_senders_of_a_gate_default_to_everyone_else(call: Call) -> None:
    assert call("train_gate", "receiver=llama-1b")[2][0].senders == NAMES[:-1]
    made = call("train_gate", "senders=[llama-3.2-1b]", "layers=[2]")[2][0]
    assert made.senders == ("llama-1b",) and made.layers == (2,)


@pytest.mark.parametrize("name", ["train_fuser", "train_gate", "import_c2c"])
def test_llms_of_the_hub_and_their_revisions(call: Call, name: str) -> None:
    source = [PUBLISHED] if name == "import_c2c" else []
    sender = "senders=[hf:Org/LLM-1.5B]" if name == "train_gate" else "sender=hf:Org/LLM-1.5B"
    revisions = ["members.org-llm-1.5b.revision=0123456", "members.qwen3-0.6b.revision=v1.0"]
    code, err, (made,) = call(name, *source, "zoo=hub", sender, "receiver=qwen3-0.6b", *revisions)
    assert (code, err) == (0, "") and "hf:Org/LLM-1.5B" in (made.senders if name == "train_gate" else (made.sender,))
    assert made.members == {"org-llm-1_5b": LLMSettings("0123456"), "qwen3-0_6b": LLMSettings("v1.0")}


def test_a_sweep(call: Call) -> None:
    code, err, made = call("train_fuser", "-m", "sender=qwen2.5-0.5b,llama-1b", "hidden=64,128", "output=sweep")
    assert (code, err) == (0, "")
    assert [(m.sender, m.hidden) for m in made] == [(s, h) for s in ("qwen2.5-0.5b", "llama-1b") for h in (64, 128)]
    assert [m.output.relative_to(Path.cwd() / "sweep") for m in made] == [Path(str(n)) for n in range(4)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "no sender: name one, as in sender=qwen2.5-0.5b, or train all with sender=all"),
        ("sender=llama-1b fusion=mix tokens=text", "tokens=text is about caches of prompts beside the receiver's own"),
        ("sender=llama-1b fuser=draft tokens=prompt", "tokens=prompt is about caches of prompts"),
        ("sender=lama", "unknown sender 'lama' (did you mean llama-1b?)"),
        ("sender=qwen3-0.6b", "both sender and receiver: choose another sender"),
        ("sender=llama-1b control=identical", "control=identical has the receiver as its sender"),
        ("sender=all control=single", "control=single is trained one at a time"),
        ("sender=llama-1b control=twins", "unknown control 'twins'"),
        ("sender=llama-1b fuser=c2c fusion=concat", "does not go with fuser=c2c"),
        ("sender=llama-1b workers=5", "does not fall into workers=5 times accumulation=1 equal parts"),
        ("sender=llama-1b workers=2 ray=none", "workers=2 need Ray"),
        ("sender=llama-1b validate_every=0", "patience counts validations"),
        ("sender=llama-1b stpes=4", "unknown setting 'stpes': did you mean steps?"),
        ("sender=llama-1b steps=1", "steps must be at least 2, got 1"),
        ("sender=llama-1b warmup=2", "warmup must be from 0 to 1"),
        ("sender=llama-1b learning_rate=fast", "learning_rate must be a number, got 'fast'"),
        ("sender=llama-1b zoo.path=nowhere", "zoo.path=nowhere is no folder"),
        ("sender=llama-1b registry.path=null", "the embedded registry is read-only"),
        ("sender=llama-1b registry.path=file/deeper", "choose another with registry.path=DIR"),
        ("sender=llama-1b schedule=cosine", "unknown schedule 'cosine'"),
        ("sender=llama-1b data=openhermes", "data=openhermes needs an end: say limit=N conversations"),
        ("sender=llama-1b data=openhermes limit=9 answers=sender", "answers=sender is for the tiny world"),
        ("sender=llama-1b data=openhermes limit=9 data.path=nowhere", "data.path=nowhere does not exist"),
        ("sender=llama-1b data=openhermes limit=9 data.against=[arc]", "unknown data.against[0] 'arc'"),
        ("sender=llama-1b data=openhermes limit=9 data.held_out=0.9", "data.held_out must be from 1e-06 to 0.5"),
        ("sender=llama-1b data=hermes", "unknown data 'hermes' (did you mean openhermes?)"),
        ("sender=llama-1b llm_dtype=bfloat16 precision=float32", "llm_dtype=bfloat16 needs a fuser that computes"),
        ("sender=hf:org/llm", "sender hf:org/llm is on the Hugging Face hub: add zoo=hub"),
        ("sender=llama-1b receiver=./llm", "receiver ./llm is a folder: add zoo=hub"),
        ("zoo=hub sender=./nowhere", "nowhere is no LLM's folder, it has no config.json"),
        ("zoo=hub sender=hf:org/llm receiver=hf:Org/LLM", "go by the same name, org-llm"),
        ("zoo=shapes sender=llama-1b", "zoo=shapes has random weights, and a fuser of them is of no use"),
        ("sender=llama-1b members.llama-1b.revision=v1", "members.llama-1b.revision is of a repository on the Hugging"),
        ("zoo=hub sender=hf:org/llm members.org-lm.revision=v1", "did you mean members.org-llm.revision"),
    ],
)
def test_what_cannot_be_trained_is_refused(call: Call, arguments: str, says: str) -> None:
    Path("file").touch()
    code, err, ran = call("train_fuser", *arguments.split())
    assert code == 2 and says in err and err.count("\n") == 1 and not ran


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("senders=[]", "a gate weighs senders: name some"),
        ("senders=[qwen3-0.6b]", "qwen3-0.6b is the receiver and among the senders"),
        ("senders=[llama-1b,llama-3.2-1b]", "a sender is named more than once"),
        ("layers=[]", "layers names none"),
        ("layers=[-1]", "layers must be at least 0, got -1"),
        ("price=3", "price must be from -1 to 1"),
        ("senders=[hf:org/llm]", "sender hf:org/llm is on the Hugging Face hub: add zoo=hub"),
        ("zoo=hub senders=[hf:org/llm,hf:Org/LLM]", "go by the same name, org-llm"),
    ],
)
def test_what_is_no_gate_is_refused(call: Call, arguments: str, says: str) -> None:
    code, err, ran = call("train_gate", *arguments.split())
    assert code == 2 and says in err and err.count("\n") == 1 and not ran


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("list", RegistryJob()),
        ("show llama-1b", RegistryJob("show", "llama-1b")),
        (
            "delete gate--qwen3-0.6b hash=1234567890123456",
            RegistryJob("delete", "gate--qwen3-0.6b", "1234567890123456"),
        ),
        ("export a--b to=some,where", RegistryJob("export", "a--b", to=Path("some,where"))),
        ("action=show name=a--b hash=12e4", RegistryJob("show", "a--b", "12e4")),
    ],
)
def test_bare_words_say_what_to_do(call: Call, arguments: str, expected: RegistryJob) -> None:
    code, err, (made,) = call("registry", *arguments.split())
    assert (code, err) == (0, "") and replace(made, output=expected.output, registry=expected.registry) == expected


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("shwo a--b", "unknown action 'shwo' (did you mean show?)"),
        ("delete", "delete what: name an LLM, a fuser or a gate"),
        ("export a--b", "export a--b needs a folder to go to: add to=DIR"),
        ("show a--b hash=xyz", "hash=xyz is no hash"),
        ("show a--b c--d", "cannot read the argument 'c--d'"),
    ],
)
def test_what_is_no_action_is_refused(call: Call, arguments: str, says: str) -> None:
    code, err, ran = call("registry", *arguments.split())
    assert code == 2 and says in err and err.count("\n") == 1 and not ran


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "import what: name the folder of a published pair, or one on the hub, as in nics-efc/C2C_Fuser/qwen3"),
        ("DIR", "no sender: name the LLM that it reads, as in sender=qwen2.5-0.5b"),
        ("DIR sender=lama", "unknown sender 'lama' (did you mean llama-1b?)"),
        ("DIR sender=qwen3-0.6b", "qwen3-0.6b is both sender and receiver"),
        ("DIR sender=hf:org/llm", "sender hf:org/llm is on the Hugging Face hub: add zoo=hub"),
        ("DIR sender=llama-1b members.llama-1b.revision=v1", "members.llama-1b.revision is of a repository"),
        ("DIR sender=llama-1b recever=qwen3-0.6b", "unknown setting 'recever': did you mean receiver?"),
        ("DIR sender=llama-1b zoo.path=nowhere", "zoo.path=nowhere is no folder"),
        ("DIR sender=llama-1b registry.path=null", "the embedded registry is read-only"),
        ("DIR sender=llama-1b registry.path=file/deeper", "choose another with registry.path=DIR"),
    ],
)
def test_what_cannot_be_imported(call: Call, arguments: str, says: str) -> None:
    Path("file").touch()
    code, err, ran = call("import_c2c", *arguments.split())
    assert (code, ran) == (2, []) and says in err and err.count("\n") == 1
