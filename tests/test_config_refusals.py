"""What cannot be meant is one sentence on stderr and exit code 2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commandline import Call

from fedray.command_line import check
from fedray.methods.method import FuserChoice
from fedray.settings.settings import Settings, TaskSettings
from fedray.types import FedrayError

pytest.importorskip("hydra")
pytestmark = pytest.mark.usefixtures("without_a_store")

REFUSED = [
    ("+senders=[qwen2.5-1.5,llama-1b]", ["unknown sender 'qwen2.5-1.5'", "did you mean qwen2.5-1.5b"]),
    ("senders=[llama-1b,llama-3.2-1b]", ["llama-1b is more than once", "'+senders=[llama-1b]'"]),
    ("senders=[qwen3-0.6b,llama-1b]", ["qwen3-0.6b is the receiver", "'+senders=[llama-1b]'"]),
    ("receiver=llama-1b senders=[llama-1b,qwen2.5-0.5b]", ["llama-1b is the receiver", "+senders=[qwen2.5-0.5b]"]),
    ("senders=[]", ["protocol=c2c needs a sender"]),
    ("senders=llama-1b", ["senders must be a list such as [llama-1b]"]),
    ("senders=llama-1b,qwen2.5-1.5b", ["senders=[llama-1b,qwen2.5-1.5b]"]),
    ("senders=[1]", ["unknown sender '1'"]),
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
    ("compile=reduce-overheat", ["unknown compile", "did you mean reduce-overhead?", "default, reduce-overhead, max"]),
    ("compile=reduce-overhead", ["compile=reduce-overhead replays CUDA graphs", "compile=default"]),
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
    ("wire.keep_layers=0", ["wire.keep_layers must be from 0.001 to 1, got 0"]),
    ("wire.keep_layers=1.5", ["wire.keep_layers must be from 0.001 to 1, got 1.5"]),
    ("wire.layer_score=depe", ["unknown wire.layer_score 'depe'", "did you mean deep?"]),
    ("on_missing=alon", ["unknown on_missing", "did you mean alone?"]),
    ("experiment=quik", ["unknown experiment", "did you mean quick?"]),
    ("task.limt=5", ["unknown setting 'task.limt'", "did you mean task.limit"]),
    ("+task.limt=5", ["unknown setting 'task.limt'", "did you mean task.limit"]),
    ("+limit=5", ["unknown setting 'limit'", "task.limit"]),
    ("recever=llama-1b", ["unknown setting 'recever'", "receiver"]),
    ("a/b=c", ["unknown setting 'a/b'"]),
    ("members.qwen2_5_0_5b.device=cpu", ["unknown setting", "members.qwen2_5-0_5b.device"]),
    ("members.llama-1b.device=tpu", ["members.llama-1b.device must be cpu, cuda"]),
    ("members.llama-1b.replicas=2 ray.enabled=false", ["members.llama-1b.replicas=2 are actors of Ray"]),
    ("members.llama-1b.replicas=0", ["members.llama-1b.replicas", "1"]),
    ("members.llama-1b.label=zone", ["members.llama-1b.label must be", "key=value"]),
    ("members.llama-1b.num_gpus=-1", ["members.llama-1b.num_gpus must be at least 0"]),
    ("task.limit=many", ["task.limit must be a whole number, got 'many'"]),
    ("task.limit=1.5", ["task.limit must be a whole number, got 1.5"]),
    ("task.limit=true", ["task.limit must be a whole number, got true"]),
    ("task.limit=-1", ["task.limit must be at least 1, got -1"]),
    ("task.batches_in_flight=0", ["task.batches_in_flight must be from 1 to 16, got 0"]),
    ("task.batch_size=0", ["task.batch_size must be from 1 to 256, got 0"]),
    ("generation.max_tokens=-4", ["generation.max_tokens must be at least 1, got -4"]),
    ("generation.temperature=-1", ["generation.temperature must be at least 0"]),
    ("deadline_s=-2", ["deadline_s must be at least"]),
    ("deadline_s=nan", ["deadline_s must be at least"]),
    ("deadline_s=soon", ["deadline_s must be a number, got 'soon'"]),
    ("admission.quota=0", ["admission.quota must be at least 1, got 0"]),
    ("admission.kv_mb=0", ["admission.kv_mb must be at least 1, got 0"]),
    ("admission.qouta=3", ["unknown setting 'admission.qouta'", "did you mean admission.quota"]),
    ("ray.enabled=maybe", ["ray.enabled must be true or false"]),
    ("ray.gpus_per_member=-1", ["ray.gpus_per_member must be at least 0"]),
    ("seed=-1", ["seed must be from 0"]),
    ("seed=${nope}", ["'nope' not found"]),
    ("prompt=", ["the prompt is empty"]),
    ("prompt=hello questions=some.txt", ["prompt and questions are both given"]),
    ("questions=missing.txt", ["'missing.txt'", "No such file"]),
    ("questions=empty.txt", ["'empty.txt' is empty"]),
    ("questions=table.xlsx", ["'table.xlsx' must end in .txt, .parquet, .jsonl, .json, .csv, .tsv or .arrow"]),
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
    ("tracking.uri=sqlite:///empty.txt/mlflow.db", ["tracking.uri=sqlite:///empty.txt/mlflow.db cannot be written"]),
    ("tracking.uri=sqlite:///.", ["cannot be written", "tracking=none"]),
    ("tracking.uri=", ["tracking.uri is empty: leave it out", "tracking=none"]),
    ("tracking.experiment=", ["tracking.experiment is empty: leave it out"]),
    ("+experiment=figure3", ["jobs/evaluate.py +experiment=NAME"]),
    ("protocol=ensemble prompt=why", ["protocol=ensemble averages the probabilities of choices"]),
    ("gate=oracle prompt=why", ["gate=oracle must be told who knows"]),
]


@pytest.mark.parametrize(("arguments", "says"), REFUSED, ids=[arguments for arguments, _ in REFUSED])
def test_bad_input_is_one_sentence(call: Call, tmp_path: Path, arguments: str, says: list[str]) -> None:
    (tmp_path / "empty.txt").touch()
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
        (Settings(protocol="t2"), "unknown protocol"),  # pyright: ignore[reportArgumentType]
        (Settings(fuser=FuserChoice("c2c")), "does not go with"),
        (Settings(task=TaskSettings(limit=-1)), "task.limit"),
        (Settings(output=tmp_path / "file" / "deeper"), "cannot write"),
    ):
        with pytest.raises(FedrayError, match=says):
            check(settings)
