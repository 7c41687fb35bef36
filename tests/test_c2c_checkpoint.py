"""The published C2C layout is read strictly: whatever is not as published is refused in one sentence that names it."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import FUSERS, RECEIVER, SENDERS, zoo

from fedray.fusion.c2c import C2CFuser
from fedray.fusion.fuser import FuserConfig
from fedray.jobs.import_c2c import check_names, run
from fedray.llm.loading import describe, load, sketch
from fedray.registry.c2c_checkpoint import read_checkpoint
from fedray.registry.store import Registry, load_fuser
from fedray.reporting import report
from fedray.training.settings import build_import_job
from fedray.types import FedrayError, KVSpec, MemberInfo

QWEN2, LLAMA = SENDERS


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def members(home: Path) -> dict[str, MemberInfo]:
    return {name: describe(sketch(name, folder=home)) for name in (RECEIVER, *SENDERS)}


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A copy of a published pair, to be spoilt."""
    return Path(shutil.copytree(FUSERS[QWEN2], tmp_path / "pair"))


def test_a_sketch_describes_what_would_be_loaded(home: Path, members: dict[str, MemberInfo]) -> None:
    for name, info in members.items():
        assert replace(info, device="cpu") == describe(load(name, folder=home))
        assert info.tokenizer_hash == ""


def test_every_tensor_arrives_as_it_was(members: dict[str, MemberInfo], tmp_path: Path) -> None:
    """Through the registry too, where other fusers are halved."""
    fuser, recipe = read_checkpoint(FUSERS[LLAMA], members[LLAMA], members[RECEIVER])
    assert recipe == {} and fuser.config.token_alignment == "ids" and not fuser.training
    registry = Registry(tmp_path, embedded=None)
    found = load_fuser(registry.add_fuser(fuser, members[LLAMA], members[RECEIVER], {}, halve=False)).state_dict()
    for layer in range(4):
        path = FUSERS[LLAMA] / "final" / f"projector_{layer}.pt"
        for name, tensor in torch.load(path, weights_only=True).items():
            assert torch.equal(found.pop(f"projectors.{layer}.{name}"), tensor)
    assert not found


def test_bfloat16_stays_bfloat16(pair: Path, members: dict[str, MemberInfo], tmp_path: Path) -> None:
    for path in (pair / "final").glob("*.pt"):
        torch.save({name: tensor.bfloat16() for name, tensor in torch.load(path).items()}, path)
    fuser, _ = read_checkpoint(pair, members[QWEN2], members[RECEIVER])
    registry = Registry(tmp_path / "own", embedded=None)
    made = registry.add_fuser(fuser, members[QWEN2], members[RECEIVER], {}, halve=False)
    assert {tensor.dtype for tensor in fuser.state_dict().values()} == {torch.bfloat16}
    size = (Path(made.path) / "model.safetensors").stat().st_size
    assert size < 1.1 * 2 * sum(tensor.numel() for tensor in fuser.state_dict().values())


class Touch:
    """A pickle that leaves a file behind where it is run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_not_run(pair: Path, members: dict[str, MemberInfo], tmp_path: Path) -> None:
    trap, path = tmp_path / "run", pair / "final" / "projector_2.pt"
    torch.save({"key_in.bias": Touch(trap)}, path)
    for blob in (path.read_bytes(), pickle.dumps(Touch(trap), protocol=2)):
        path.write_bytes(blob)
        with pytest.raises(FedrayError, match=r"projector_2\.pt is damaged or holds more than tensors \(none was run"):
            read_checkpoint(pair, members[QWEN2], members[RECEIVER])
    assert not trap.exists()


def tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(pair: Path) -> None:
        path = pair / "final" / "projector_1.pt"
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    return spoil


def described(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(pair: Path) -> None:
        path = pair / "final" / name
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return spoil


def arguments(**changed: Any) -> Callable[[Path], None]:
    def spoil(pair: Path) -> None:
        for layer in range(4):
            described(f"projector_{layer}.json", lambda values: values["init_args"].update(changed))(pair)

    return spoil


def recipe(**model: Any) -> Callable[[Path], None]:
    return lambda pair: (pair / "config.json").write_text(json.dumps({"model": model})) and None


MAP = "projector_config.json"
DEEP = "[" * 100_000 + "]" * 100_000
SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing key": (tensors(lambda s: s.pop("key_in.bias")), r"projector_1\.pt is no C2C .*: it lacks key_in\.bias$"),
    "extra key": (tensors(lambda s: s.update(more=torch.zeros(1))), "it also has more"),
    "wrong shape": (
        tensors(lambda s: s.update({"key_in.weight": torch.zeros(48, 64)})),
        r"key_in\.weight should be \(48, 96\) of a float type, and is \(48, 64\) of float32",
    ),
    "whole numbers": (tensors(lambda s: s.update({"key_in.bias": torch.zeros(48).long()})), r"is \(48,\) of int64"),
    "no tensor": (tensors(lambda s: s.update({"key_in.bias": 1.0})), "holds no state dict"),
    "truncated": (lambda p: (p / "final/projector_0.pt").write_bytes(b"PK\x03\x04 and so on"), r"r_0\.pt is damaged"),
    "file missing": (lambda p: (p / "final/projector_3.pt").unlink(), r"projector_3\.pt is missing; download the"),
    "no layout": (lambda p: shutil.rmtree(p / "final"), r"no published C2C fuser: it has no final/projector_c"),
    "other class": (
        described("projector_0.json", lambda v: v.update({"class": "C2CHiddenStateProjector"})),
        "describes no C2CProjector .class 'C2CHiddenStateProjector'",
    ),
    "unequal": (described("projector_3.json", lambda v: v["init_args"].update(hidden_dim=4)), "must be alike"),
    "unknown argument": (arguments(confidence_gate="token"), "argument that fedray does not know: confidence_gate"),
    "odd argument": (arguments(hidden_dim="many"), "does not say what it was built with: hidden_dim"),
    "other sender": (arguments(source_num_heads=4), r"another pair: it maps heads of 4x16 into .*qwen2\.5-0\.5b -> q"),
    "other receiver": (arguments(target_dim=64), "another pair: it maps heads of 2x16 into 4 layers of 2x64"),
    "fewer layers": (described(MAP, lambda v: v["0"]["1"].pop("3")), "another pair: it maps heads of .* 3 layers"),
    "a gap": (described(MAP, lambda v: v["0"]["1"].pop("0")), "every receiver layer exactly one projector"),
    "two per layer": (described(MAP, lambda v: v["0"]["1"]["0"].append([1, 0])), "exactly one projector"),
    "two senders": (described(MAP, lambda v: v["0"].update({"2": {}})), "more than one sender"),
    "other mapping": (described(MAP, lambda v: v["0"]["1"].update({"0": [[2, 0]]})), "mapped in another way than last"),
    "answer fused": (recipe(include_response=True), "include_response"),
    "no recipe": (lambda p: (p / "config.json").write_text("[]"), "no training recipe"),
    "nested recipe": (lambda p: (p / "config.json").write_text(DEEP), r"config\.json is missing or damaged"),
    "a deep recipe": (lambda p: (p / "config.json").write_text('{"a":' * 500 + "1" + "}" * 500), "missing or damaged"),
    "no UTF-8": (lambda p: (p / "config.json").write_bytes(b'{"model": "\xff"}'), "missing or damaged"),
    "nested map": (lambda p: (p / "final" / MAP).write_text(DEEP), r"projector_config\.json is damaged"),
    "nested arguments": (lambda p: (p / "final/projector_2.json").write_text(DEEP), r"r_2\.json is missing or damaged"),
    "an infinite layer": (described(MAP, lambda v: v["0"]["1"].update({"0": [[float("inf"), 0]]})), "is damaged, or"),
    "a map of texts": (described(MAP, lambda v: v["0"].update({"1": "0"})), "is damaged, or maps"),
    "endless blocks": (arguments(num_layers=10**9), "no fuser that can be built: num_layers is not from 1 to 16"),
    "a wide one": (arguments(hidden_dim=10**30), "no fuser that can be built: hidden is not from 1 to"),
    "arguments null": (described("projector_0.json", lambda v: v.update(init_args=None)), "describes no C2CProjector"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_not_as_published_is_refused(name: str, pair: Path, members: dict[str, MemberInfo]) -> None:
    spoil, says = SPOILT[name]
    spoil(pair)
    with pytest.raises(FedrayError, match=says) as caught:
        read_checkpoint(pair, members[QWEN2], members[RECEIVER])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 420


def test_a_sender_with_more_layers_is_another_pair(pair: Path, members: dict[str, MemberInfo]) -> None:
    deeper = replace(members[QWEN2], spec=KVSpec(9, 2, 16))
    with pytest.raises(FedrayError, match=r"reads sender layers 0 to 2, and qwen2\.5-0\.5b has 9 layers"):
        read_checkpoint(pair, deeper, members[RECEIVER])


def test_the_recipe_says_how_tokens_align(pair: Path, members: dict[str, MemberInfo]) -> None:
    for aligned, says in ((False, "ids"), (True, "text")):
        recipe(is_do_alignment=aligned)(pair)
        assert read_checkpoint(pair, members[QWEN2], members[RECEIVER])[0].config.token_alignment == says


def test_at_full_size_it_has_the_published_number_of_parameters() -> None:
    """Qwen2.5-0.5B -> Qwen3-0.6B."""
    qwen2, qwen3 = KVSpec(24, 2, 64), KVSpec(28, 8, 128)
    with torch.device("meta"):
        fuser = C2CFuser(FuserConfig("c2c", "mix", qwen2, qwen3, hidden=1024, intermediate=1024))
    assert sum(parameter.numel() for parameter in fuser.parameters()) == 477_848_056


def test_names_are_those_of_the_recipe() -> None:
    """Two LLMs of the same shapes are told apart by nothing else."""
    trained = {"model": {"teacher_model": "/models/Qwen2.5-Coder-0.5B-Instruct/", "base_model": "Qwen/Qwen3-0.6B"}}
    check_names(trained, "qwen2.5-coder-0.5b", "qwen3-0.6b")
    check_names({}, "qwen2.5-0.5b", "qwen3-0.6b")
    with pytest.raises(FedrayError, match=r"with /models/Qwen2\.5-Coder.* as its sender.*: say sender=qwen2\.5-coder"):
        check_names(trained, "qwen2.5-0.5b", "qwen3-0.6b")
    with pytest.raises(FedrayError, match=r"Qwen/Qwen3-0\.6B as its receiver, and llama-1b is meta-llama"):
        check_names(trained, "qwen2.5-coder-0.5b", "llama-1b")


def test_the_job(home: Path, pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe(teacher_model="Qwen/Qwen2.5-0.5B-Instruct")(pair)
    places = {"zoo": {"path": home}, "registry": {"path": tmp_path / "own"}, "output": tmp_path / "out"}
    settings = build_import_job({"source": str(pair / "final"), "sender": QWEN2, **places})
    assert run(settings) == 0 and run(settings) == 0
    said = capsys.readouterr().out.splitlines()
    ((manifest, folder),) = Registry(tmp_path / "own", embedded=None).list()
    assert manifest.hash in said[0] and "7 of 8 gates open" in said[0] and "fuser=c2c" in said[1]
    assert said[-1] == f"report: {tmp_path / 'out' / 'report.json'}"
    assert (manifest.kind, manifest.operator, manifest.reads) == ("c2c", "mix", "both")
    assert manifest.training["recipe"]["model"]["teacher_model"] == "Qwen/Qwen2.5-0.5B-Instruct"
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.safetensors"]
    (learned,) = report.read(tmp_path / "out").learned
    assert (learned.hash, learned.figures) == (manifest.hash, {"gates": 8, "open_gates": 7})
    with pytest.raises(FedrayError, match="is no folder, and no pair on the hub"):
        run(replace(settings, source="/no/such/folder"))
