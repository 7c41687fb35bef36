"""zoo=shapes: real architectures, random weights, a tokenizer of bytes, and fusers nobody has trained."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from published import COMMON
from support.methods import method

from fedray.llm import shapes
from fedray.llm.catalogue import CATALOGUE
from fedray.llm.loading import default_dtype, describe, load
from fedray.llm.memory import count_parameters
from fedray.llm.model import encode
from fedray.llm.templates import template_of
from fedray.member.member import Member
from fedray.protocols import PROTOCOLS
from fedray.protocols.group import LocalGroup
from fedray.registry.planner import Planner
from fedray.registry.store import Registry, load_fuser
from fedray.types import FedrayError, Request

SMALL = {
    "llama": {"model_type": "llama", "hidden_size": 48, "num_key_value_heads": 3, "num_hidden_layers": 3},
    "qwen3": {"model_type": "qwen3", "hidden_size": 64, "num_key_value_heads": 2, "num_hidden_layers": 4},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Local folders with a config.json and nothing else."""
    root = tmp_path_factory.mktemp("shapes")
    for name, config in SMALL.items():
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps({**COMMON, **config}))
    return {name: str(root / name) for name in SMALL}


def test_the_catalogue_holds_the_real_sizes() -> None:
    """As the repositories' model cards count them."""
    counted = {name: count_parameters(shapes.config_of(name)) for name in CATALOGUE}
    assert {name: counted[name] for name in ("qwen3-0.6b", "qwen2.5-0.5b", "qwen2.5-1.5b", "llama-1b")} == {
        "qwen3-0.6b": 596_049_920,
        "qwen2.5-0.5b": 494_032_768,
        "qwen2.5-1.5b": 1_543_714_304,
        "llama-1b": 1_235_814_400,
    }
    assert (counted["mistral-7b"], counted["gemma-3-1b"]) == (7_248_023_552, 999_885_952)
    assert counted["gemma-3-270m"] == 268_098_176


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_name_has_the_same_weights(folders: dict[str, str], dtype: str) -> None:
    torch.manual_seed(99)
    before = torch.rand(1)
    torch.manual_seed(99)
    one, two = (load(folders["qwen3"], zoo="shapes", dtype=dtype) for _ in range(2))
    assert torch.equal(torch.rand(1), before), "the process's own random numbers are untouched"
    assert all(map(torch.equal, one.model.parameters(), two.model.parameters()))
    assert one.weights_hash == two.weights_hash and one.weights_hash.startswith("random-")
    assert describe(one).dtype == dtype and one.family == "qwen3"
    other = load(folders["llama"], zoo="shapes", dtype=dtype)
    assert other.weights_hash != one.weights_hash and (other.context, other.spec.layers) == (400, 3)


def test_every_text_and_every_token_goes_through_the_tokenizer() -> None:
    tokenizer: Any = shapes.build_tokenizer(shapes.config_of("smollm2-135m"))
    assert len(tokenizer) == CATALOGUE["smollm2-135m"].config["vocab_size"]
    text = "Größe 😀 世界\n\t 42"
    encoded = encode(tokenizer, template_of(tokenizer).around((text,)), text)
    inside = [i for i, span in zip(encoded.ids, encoded.spans, strict=True) if span[0] >= 0]
    assert len(inside) == len(text.encode()) and tokenizer.decode(inside) == text
    assert all(tokenizer.decode([i]) for i in (256, 1000, len(tokenizer) - 3))
    assert tokenizer.eos_token_id < len(tokenizer)


def test_a_pair_without_a_fuser_has_one_of_random_weights(folders: dict[str, str]) -> None:
    members = {name: Member(name, zoo="shapes", dtype="float32") for name in folders.values()}
    receiver, sender = members[folders["qwen3"]], members[folders["llama"]]
    planner = Planner(name="shapes")
    for kind, operator in (("mlp", "concat"), ("mlp", "mix"), ("c2c", "mix")):
        how = method(gate="open", fuser=kind, fusion=operator)
        planner.check("qwen3-0.6b", ["llama-1b"], how)
        plan = planner.plan(receiver.info(), [sender.info()], how)
        artifact = plan.fusers[sender.name]
        assert artifact.hash.startswith("random-") and artifact.config is not None and artifact.name == "llama--qwen3"
        one, two = load_fuser(artifact), load_fuser(artifact)
        assert all(map(torch.equal, one.parameters(), two.parameters()))
        assert one.config == planner.fuser_config(sender.info(), receiver.info(), how)

        group = LocalGroup(members)
        request = Request(("which bird is it?",), choices=(("a robin", "an owl"),))
        answer = asyncio.run(PROTOCOLS["c2c"].run(request, plan, group))
        alone = asyncio.run(PROTOCOLS["standalone"].run(request, plan, group))
        assert answer.senders == (sender.name,) and answer.usage.payload_bytes > 0 and not answer.missing
        assert answer.rows[0].scores != pytest.approx(alone.rows[0].scores, abs=1e-3), f"{kind} is open"


def test_other_zoos_have_no_random_fusers(folders: dict[str, str]) -> None:
    for zoo in ("tiny", "hub"):
        with pytest.raises(FedrayError, match=r"no fuser=c2c fusion=mix for qwen3-8b -> qwen3-0\.6b"):
            Planner(name=zoo).check("qwen3-0.6b", ["qwen3-8b"], method(fuser="c2c", fusion="mix"))
    with pytest.raises(FedrayError, match="no fuser=mlp fusion=concat for llama-1b"):
        Planner(name="hub").check("qwen3-0.6b", ["llama-1b"], method())


@pytest.mark.parametrize("how", [{"protocol": "route"}, {"protocol": "t2t", "t2t": {"gate": "same"}}, {}], ids=str)
def test_a_gate_that_there_is_not_is_refused_before_anything_loads(how: dict[str, Any]) -> None:
    for zoo in ("hub", "shapes") if how else ("shapes",):
        with pytest.raises(FedrayError, match=r"no fusion=concat gate of qwen3-0\.6b for llama-1b \(there is none\)"):
            Planner(name=zoo).check("qwen3-0.6b", ["llama-1b"], method(**how))
    with pytest.raises(FedrayError, match=r"for hf:org/name \(it knows qwen2\.5-0\.5b"):
        Planner(name="tiny").check("qwen3-0.6b", ["hf:org/name"], method(protocol="route"))


def test_a_trained_fuser_comes_first(folders: dict[str, str], tmp_path: Path) -> None:
    receiver, sender = (Member(folders[name], zoo="shapes", dtype="float32").info() for name in ("qwen3", "llama"))
    made = Planner(name="shapes").plan(receiver, [sender], method(gate="open")).fusers[sender.name]
    Registry(tmp_path).add_fuser(load_fuser(made), sender, receiver, {})
    found = Planner(tmp_path, name="shapes").plan(receiver, [sender], method(gate="open")).fusers[sender.name]
    assert found.config is None and found.path.startswith(str(tmp_path))


def test_the_scale_model_stays_in_32_bit() -> None:
    assert default_dtype("tiny", "cpu") == "float32"
    has = torch.cpu.get_capabilities()
    wanted = "bfloat16" if has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16") else "float32"
    assert default_dtype("hub", "cpu") == default_dtype("shapes", "cpu") == wanted
