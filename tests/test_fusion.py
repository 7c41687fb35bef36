"""Fusers, gates and the registry that keeps them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scarce import full_disk
from tiny import random_fuser, random_llm

from fedray.fusion.build import build_fuser
from fedray.fusion.c2c import C2CFuser, C2CProjector
from fedray.fusion.fuser import FuserConfig
from fedray.fusion.gating import GateConfig, GateNetwork
from fedray.fusion.mlp import GroupedLinear
from fedray.llm.loading import describe
from fedray.registry.store import Registry, load_fuser, load_gate, read_manifest
from fedray.types import FedrayError

SENDER, RECEIVER = "qwen2.5-1.5b", "qwen3-0.6b"


def caches(llm, tokens: int = 5):
    torch.manual_seed(1)
    spec = llm.spec
    keys, values = (
        tuple(torch.randn(2, spec.kv_heads, tokens, spec.head_dim) for _ in range(spec.layers)) for _ in range(2)
    )
    return keys, values


def test_a_fresh_c2c_fuser_is_the_identity_and_an_open_one_is_not():
    sender, receiver = random_llm(SENDER), random_llm(RECEIVER)
    fuser = random_fuser(sender, receiver, "mix", kind="c2c")
    sent = tuple(tuple(side[s] for s in fuser.layers) for side in caches(sender))
    changes = [*fuser.mix(caches(receiver), caches(sender))[0], *fuser.mix(caches(receiver), caches(sender))[1]]
    assert all(change is None for change in changes)
    assert isinstance(fuser, C2CFuser) and len(sent[0]) == receiver.spec.layers
    fuser.projectors[2].value_gate_logit.data.fill_(1.0)  # pyright: ignore
    keys, values = fuser.mix(caches(receiver), caches(sender))
    assert [v is not None for v in values] == [t == 2 for t in range(receiver.spec.layers)]
    assert all(k is None for k in keys) and bool((values[2] != 0).any())


@pytest.mark.parametrize("closed", [(), ((0, "key"), (3, "value"), (3, "key"))])
def test_a_c2c_fuser_in_groups_says_what_it_says_layer_by_layer(closed):
    sender, receiver = random_llm(SENDER), random_llm(RECEIVER)
    fuser = random_fuser(sender, receiver, "mix", kind="c2c")
    for name, parameter in fuser.named_parameters():
        parameter.data += torch.rand_like(parameter) * 0.1  # norms that are not all one, biases that are not zero
        if name.endswith("gate_logit"):
            parameter.data.fill_(1.0)
    for layer, x in closed:
        getattr(fuser.projectors[layer], f"{x}_gate_logit").data.fill_(-1.0)
    before = {name: tensor.clone() for name, tensor in fuser.state_dict().items()}
    found = {}
    with torch.no_grad():
        for grouped in (False, True, None):
            fuser.grouped = grouped
            found[grouped] = fuser.mix(caches(receiver), caches(sender))
    for x, by_layer, in_groups in zip(("key", "value"), found[False], found[True], strict=True):
        for t, (one, other) in enumerate(zip(by_layer, in_groups, strict=True)):
            assert (one is None) == (other is None) == ((t, x) in closed)
            if one is not None:
                torch.testing.assert_close(other, one, atol=1e-5, rtol=0)
    for grouped in (False, True):  # and so it does where a sender's layer did not come
        fuser.grouped = grouped
        with torch.no_grad():
            fewer = fuser.mix(caches(receiver), caches(sender), ((1, 2), (2, 3)))
        for x, side, came, whole in zip(("key", "value"), fewer, ((1, 2), (2, 3)), found[grouped], strict=True):
            assert [t for t, change in enumerate(side) if change is not None] == [
                t for t in came if (t, x) not in closed
            ]
            assert all(torch.equal(change, whole[t]) for t, change in enumerate(side) if change is not None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fuser.state_dict().items())
    with torch.no_grad():  # what was stacked follows its fuser
        fuser.grouped = True
        halved = fuser.to(torch.bfloat16).mix(*(_halved(caches(llm)) for llm in (receiver, sender)))
    assert next(k for k in halved[0] if k is not None).dtype == torch.bfloat16


def _halved(sides):
    keys, values = (tuple(tensor.bfloat16() for tensor in side) for side in sides)
    return keys, values


def test_a_closed_gate_runs_no_projector(monkeypatch):
    sender, receiver = random_llm(SENDER), random_llm(RECEIVER)
    fuser = random_fuser(sender, receiver, "mix", kind="c2c")
    fuser.projectors[1].key_gate_logit.data.fill_(1.0)
    fuser.grouped = False
    ran = []
    change = C2CProjector.change
    monkeypatch.setattr(C2CProjector, "change", lambda self, x, *rest: ran.append(x) or change(self, x, *rest))
    with torch.no_grad():
        fuser.mix(caches(receiver), caches(sender))
    assert ran == ["key"]


@pytest.mark.parametrize("operator", ["concat", "mix"])
def test_an_mlp_fuser_in_groups_says_what_it_says_layer_by_layer(operator):
    sender, receiver = random_llm(SENDER), random_llm(RECEIVER)
    fuser = random_fuser(sender, receiver, operator)
    found = []
    for grouped in (False, True):
        for module in fuser.modules():
            if isinstance(module, GroupedLinear):
                module.grouped = grouped
        with torch.no_grad():
            if operator == "mix":
                found.append(fuser.mix(caches(receiver), caches(sender)))
            else:
                projection = fuser.project(*caches(sender))
                found.append((projection.keys, projection.values))
    for one, other in zip((t for side in found[0] for t in side), (t for side in found[1] for t in side), strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=0)


def test_c2c_only_mixes():
    with pytest.raises(ValueError, match="fusion=mix"):
        build_fuser(FuserConfig("c2c", "concat", random_llm(SENDER).spec, random_llm(RECEIVER).spec))


def test_grouped_layers_equal_layers_one_by_one():
    """The MLP fuser's grouped product gives every layer what its own three matrices give."""
    sender, receiver = random_llm(SENDER), random_llm(RECEIVER)
    fuser = random_fuser(sender, receiver, "concat")
    keys, values = caches(sender)
    projection = fuser.project(keys, values)
    gelu = torch.nn.functional.gelu
    for t in range(receiver.spec.layers):
        for group, side, got in ((t, keys, projection.keys), (t + receiver.spec.layers, values, projection.values)):
            x = side[fuser.layers[t]].transpose(1, 2).flatten(2)
            for layer, activation in ((fuser.first, gelu), (fuser.second, gelu), (fuser.third, lambda h: h)):
                x = activation(x @ layer.kernel[group] + layer.bias[group])
            wanted = x.unflatten(-1, (receiver.spec.kv_heads, -1)).transpose(1, 2)
            torch.testing.assert_close(got[t], wanted, atol=1e-5, rtol=0)


def test_a_gate_serves_any_subset_and_can_close():
    torch.manual_seed(0)
    gate = GateNetwork(GateConfig(RECEIVER, ("a", "b", "c"), hidden=96, operator="concat"))
    state, valid = torch.randn(4, 7, 96), torch.ones(4, 7, dtype=torch.bool)
    whole = gate(state, valid)
    torch.testing.assert_close(gate.weigh(state, valid, ("c", "a"), 0.0), whole[:, [2, 0]])
    threshold = float(whole.detach().median())
    cut = gate.weigh(state, valid, ("a", "b", "c"), threshold)
    assert bool(((cut == 0) == (whole < threshold)).all()) and bool((cut == 0).any())
    gate.logits.bias.data[0] += 10.0
    assert float(gate(state, valid).detach().max()) < 1e-6


def test_a_gate_does_not_look_at_padding():
    torch.manual_seed(0)
    gate = GateNetwork(GateConfig(RECEIVER, ("a", "b"), hidden=96, operator="concat"))
    state = torch.randn(1, 7, 96)
    short = gate(state[:, :4], torch.ones(1, 4, dtype=torch.bool))
    padded = gate(state, torch.arange(7)[None] < 4)
    torch.testing.assert_close(padded, short)
    assert not torch.allclose(gate(state, torch.ones(1, 7, dtype=torch.bool)), short)


@pytest.fixture
def stored(tmp_path: Path):
    sender, receiver = random_llm(SENDER), random_llm(RECEIVER)
    registry = Registry(tmp_path, embedded=None)
    artifact = registry.add_fuser(
        random_fuser(sender, receiver, "concat"), describe(sender), describe(receiver), {"questions": 3}
    )
    return registry, artifact


def test_saved_is_what_was_in_memory(stored):
    _, artifact = stored
    sender, receiver = random_llm(SENDER), random_llm(RECEIVER)
    memory = random_fuser(sender, receiver, "concat").half().float()
    loaded = load_fuser(artifact)
    for name, tensor in memory.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert loaded.config == memory.config and not loaded.training


def test_the_hash_is_of_content_alone(stored, tmp_path):
    _, artifact = stored
    sender, receiver = random_llm(SENDER), random_llm(RECEIVER)
    elsewhere = Registry(tmp_path / "elsewhere", embedded=None)

    def store(seed: int, llm=sender) -> str:
        fuser = random_fuser(sender, receiver, "concat", seed=seed)
        return elsewhere.add_fuser(fuser, describe(llm), describe(receiver), {"questions": 99}).hash

    assert store(0) == artifact.hash
    assert store(1) != artifact.hash
    assert store(0, replace(sender, weights_hash="other")) != artifact.hash


def test_find_fuser_and_its_refusals(stored):
    registry, artifact = stored
    sender, receiver = describe(random_llm(SENDER)), describe(random_llm(RECEIVER))
    assert registry.find_fuser(sender, receiver, "mlp", "concat") == artifact
    with pytest.raises(FedrayError, match="fuser=mlp fusion=concat"):
        registry.find_fuser(sender, receiver, "mlp", "mix")
    with pytest.raises(FedrayError, match=f"{RECEIVER} -> {SENDER}"):
        registry.find_fuser(receiver, sender, "mlp", "concat")
    with pytest.raises(FedrayError, match="other LLMs"):
        registry.find_fuser(replace(sender, weights_hash="other"), receiver, "mlp", "concat")
    with pytest.raises(FedrayError, match="gate=open"):
        registry.find_gate(receiver, (SENDER,), "concat")


def test_a_gate_round_trips_and_names_whom_it_knows(tmp_path):
    registry, receiver = Registry(tmp_path, embedded=None), describe(random_llm(RECEIVER))
    gate = GateNetwork(GateConfig(RECEIVER, ("llama-1b", SENDER), hidden=96, operator="concat"))
    artifact = registry.add_gate(gate, receiver, {})
    assert registry.find_gate(receiver, (SENDER,), "concat") == artifact
    state, valid = torch.randn(1, 5, 96), torch.ones(1, 5, dtype=torch.bool)
    torch.testing.assert_close(load_gate(artifact)(state, valid), gate.half().float()(state, valid))
    with pytest.raises(FedrayError, match=r"qwen2\.5-0\.5b"):
        registry.find_gate(receiver, ("qwen2.5-0.5b",), "concat")


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "manifest", "future"])
def test_damaged_versions_are_refused_and_named(stored, damage):
    _, artifact = stored
    weights, manifest = Path(artifact.path) / "model.safetensors", Path(artifact.path) / "manifest.json"
    blob = bytearray(weights.read_bytes())
    if damage == "flip":
        blob[len(blob) // 2] ^= 1
        weights.write_bytes(bytes(blob))
    elif damage == "truncate":
        weights.write_bytes(bytes(blob[:100]))
    elif damage == "missing":
        weights.unlink()
    elif damage == "manifest":
        manifest.write_text("{")
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 99}))
    with pytest.raises(FedrayError, match=artifact.path):
        load_fuser(artifact)


def test_a_manifest_says_what_matters(stored):
    registry, artifact = stored
    manifest = read_manifest(Path(artifact.path))
    assert manifest.reads == "sender" and manifest.operator == "concat" and manifest.training == {"questions": 3}
    assert set(manifest.llms) == {SENDER, RECEIVER} and all("tokenizer" in v for v in manifest.llms.values())
    assert [m.hash for m, _ in registry.list()] == [artifact.hash]


def test_a_full_disk_leaves_the_versions_before(stored):
    registry, artifact = stored
    sender, receiver = random_llm(SENDER), random_llm(RECEIVER)
    other = random_fuser(sender, receiver, "concat", seed=1)
    with full_disk(20_000), pytest.raises(FedrayError, match=r"File too large.*versions before it are untouched"):
        registry.add_fuser(other, describe(sender), describe(receiver), {})
    assert [m.hash for m, _ in registry.list()] == [artifact.hash]
    assert [path.name for path in Path(artifact.path).parent.iterdir()] == [artifact.hash]
    with pytest.raises(FedrayError, match="cannot be written"):
        Registry(Path(artifact.path) / "manifest.json").add_fuser(other, describe(sender), describe(receiver), {})


def test_names_that_would_leave_the_registry_are_refused(tmp_path):
    registry = Registry(tmp_path, embedded=None)
    sender, receiver = random_llm(SENDER), random_llm(RECEIVER)
    fuser = random_fuser(sender, receiver, "concat")
    folder = replace(describe(sender), name="../../etc")  # an LLM in a folder goes by the folder's own name
    assert Path(registry.add_fuser(fuser, folder, describe(receiver), {}).path).parent == tmp_path / f"etc--{RECEIVER}"
    with pytest.raises(FedrayError, match="no name for a registry"):
        registry.add_fuser(fuser, replace(describe(sender), name="/.."), describe(receiver), {})


def test_the_embedded_registry_is_read_only():
    sender, receiver = random_llm(SENDER), random_llm(RECEIVER)
    with pytest.raises(FedrayError, match=r"registry\.path=DIR"):
        Registry().add_fuser(random_fuser(sender, receiver, "concat"), describe(sender), describe(receiver), {})


def test_the_user_registry_lies_over_the_embedded_one(tmp_path):
    sender, receiver = random_llm(SENDER), random_llm(RECEIVER)
    both = Registry(tmp_path / "user", embedded=tmp_path / "embedded")
    for seed, root in ((0, tmp_path / "embedded"), (1, tmp_path / "user")):
        fuser = random_fuser(sender, receiver, "concat", seed=seed)
        artifact = Registry(root).add_fuser(fuser, describe(sender), describe(receiver), {})
    assert both.find_fuser(describe(sender), describe(receiver), "mlp", "concat") == artifact
    assert len(both.list()) == 2
