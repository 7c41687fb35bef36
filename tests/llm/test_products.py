"""Matrices laid out for oneDNN: the same numbers as torch's own, given back as they were."""

import copy
from typing import Any

import pytest
import torch
from tiny import tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, Qwen3Config

from fedray.fusion.c2c import C2CFuser
from fedray.fusion.fuser import FuserConfig
from fedray.llm import decoding
from fedray.llm.decoding import ATTENTION
from fedray.llm.products import LARGE, PackedLinear, pack_matrices, packs, unpack_matrices
from fedray.member.member import Member
from fedray.types import KVSpec

WIDE = 384  # hidden size whose square is a large matrix
IDS = [[5, 9, 2, 7, 11, 3], [4, 8, 1]]


def test_other_numbers_stay_with_torch():
    assert not packs(torch.float16)
    assert packs(torch.float32) == torch.backends.mkldnn.is_available()


def _wide_model(dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": WIDE,
        "intermediate_size": 2 * WIDE,
        "num_hidden_layers": 2,
        "vocab_size": 64,
    }
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 96}
    model = AutoModelForCausalLM.from_config(Qwen3Config(**sizes, **heads, tie_word_embeddings=True), dtype=dtype)
    model.set_attn_implementation(ATTENTION)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_llm_says_the_same(dtype):
    """Whether this processor multiplies such numbers by oneDNN or not."""
    plain, packed = _wide_model(dtype), _wide_model(dtype)
    pack_matrices(packed)
    assert any(isinstance(module, PackedLinear) for module in packed.modules()) == packs(dtype)
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    caches = [decoding.prefill(model, IDS, 0)[0] for model in (plain, packed)]
    for one, other in zip(*(cache.keys + cache.values for cache in caches), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_matrices_come_back_as_they_were():
    model = _wide_model()
    before = copy.deepcopy(model.state_dict())
    numbers = sum(parameter.numel() for parameter in model.parameters())
    pack_matrices(model)
    assert sum(parameter.numel() for parameter in model.parameters()) == numbers
    unpack_matrices(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_small_matrices_and_embeddings_stay():
    root = nn.ModuleDict({"small": nn.Linear(8, 8), "head": nn.Linear(WIDE, LARGE // WIDE + 1, bias=False)})
    root["embed"] = nn.Embedding(LARGE // WIDE + 1, WIDE)
    root["embed"].weight = root["head"].weight
    pack_matrices(root)
    assert not any(isinstance(module, PackedLinear) for module in root.modules())


def test_a_published_fuser_fuses_the_same():
    spec = KVSpec(2, 2, 16)
    torch.manual_seed(0)
    fuser = C2CFuser(FuserConfig("c2c", "mix", spec, spec, hidden=WIDE, intermediate=WIDE)).eval()
    for name, parameter in fuser.named_parameters():
        if name.endswith("gate_logit"):
            parameter.data.fill_(1.0)
    key, value, sent_key, sent_value = (tuple(torch.randn(1, 2, 5, 16) for _ in range(2)) for _ in range(4))
    own, sent = (key, value), (sent_key, sent_value)
    with torch.no_grad():
        wanted = fuser.mix(own, sent)
        pack_matrices(fuser)
        assert any(isinstance(module, PackedLinear) for module in fuser.modules()) == packs(torch.float32)
        found = fuser.mix(own, sent)
    for one, other in zip(wanted[0] + wanted[1], found[0] + found[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_member_lays_out_what_it_loads(tmp_path):
    folder = tmp_path / "llms" / "qwen3-0.6b"
    _wide_model().save_pretrained(folder)
    tokenizer("qwen3").save_pretrained(folder)
    member = Member("qwen3-0.6b", folder=tmp_path)
    assert any(isinstance(module, PackedLinear) for module in member.llm.model.modules()) == packs(torch.float32)
