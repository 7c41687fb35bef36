"""Architectures: those served read and decode as transformers itself does, the others are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from fedray.llm.cache import spec_of
from fedray.llm.catalogue import CATALOGUE
from fedray.llm.decoding import ATTENTION, Context, decode, prefill, step
from fedray.llm.families import SERVED, build_config, check_config, window_of
from fedray.types import FedrayError, Generation

pytestmark = pytest.mark.filterwarnings("error::FutureWarning", "error::DeprecationWarning")  # of transformers to come

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
WINDOW = {"sliding_window": 6}
CASES: dict[str, dict[str, Any]] = {
    **{family: {"model_type": family} for family in SERVED},
    "gemma3_text": {"model_type": "gemma3_text", **WINDOW, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
    "mistral, windowed": {"model_type": "mistral", **WINDOW},
    "qwen2, upper layers windowed": {
        "model_type": "qwen2",
        **WINDOW,
        "use_sliding_window": True,
        "max_window_layers": 2,
    },
    "qwen3, window not used": {"model_type": "qwen3", **WINDOW, "use_sliding_window": False},
    "smollm3, windowed": {"model_type": "smollm3", **WINDOW, "use_sliding_window": True},
    "llama, long": {
        "model_type": "llama",
        "rope_theta": 1e4,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 16,
        },
    },
}
PROMPTS = [list(range(2, 22)), list(range(40, 53)), [7]]  # the longest is over three windows long


def random_model(case: str) -> Any:
    torch.manual_seed(3)
    config = build_config(case, {**TINY, **CASES[case]})
    config.initializer_range = 0.3  # or else all logits are alike
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    return model


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_served_family_answers_as_transformers_does(case: str) -> None:
    model = random_model(case)
    check_config(case, model.config)
    wanted = [model(torch.tensor([ids])).logits[0, -1] for ids in PROMPTS]
    greedy = [
        model.generate(torch.tensor([ids]), max_new_tokens=9, do_sample=False)[0, len(ids) :].tolist()
        for ids in PROMPTS
    ]

    model.set_attn_implementation(ATTENTION)
    cache, _ = prefill(model, PROMPTS, 0)
    own = cache.crop(cache.lengths - 1)
    assert cache.spec == spec_of(model.config) and cache.tokens == len(PROMPTS[0])
    context = Context(_dynamic(own), own.valid_BT(), own.lengths.clone())
    logits = step(model, context, torch.tensor([[ids[-1]] for ids in PROMPTS]))
    assert logits is not None
    torch.testing.assert_close(logits, torch.stack(wanted), atol=1e-4, rtol=1e-4)
    assert float(torch.stack(wanted).std(1).min()) > 0.1

    rows: list[list[int]] = [[] for _ in PROMPTS]
    options: dict[str, Any] = {"stops": [frozenset({1})] * 3, "room": [100] * 3, "cancelled": lambda: False}
    for tokens in decode(model, context, logits, Generation(max_tokens=9), **options):
        for row, token in zip(rows, tokens, strict=True):
            row += [] if token is None else [token]
    assert rows == [[token for token in row if token != 1] for row in greedy]


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_alone_is_read_as_in_a_batch_and_no_further_than_the_cache(case: str) -> None:
    """Alone it needs no mask; behind the last layer's keys and values nothing is computed unless a gate reads it."""
    model = random_model(case)
    model.set_attn_implementation(ATTENTION)
    together, _ = prefill(model, PROMPTS, 0)
    beyond: list[int] = []
    model.model.layers[-1].mlp.register_forward_hook(lambda *_: beyond.append(1))
    for row, ids in enumerate(PROMPTS):
        alone, _ = prefill(model, [ids], 0)
        ours = together.select([row])
        for one, other in zip(alone.keys + alone.values, ours.keys + ours.values, strict=True):
            torch.testing.assert_close(one, other[:, :, : len(ids)], atol=1e-4, rtol=1e-4)
    assert not beyond
    cache, states = prefill(model, PROMPTS[:1], 0, state_layer=model.config.num_hidden_layers)
    assert states is not None and states.shape[1] == cache.tokens and beyond


@torch.no_grad()
def test_a_window_hides_ones_own_distant_tokens_and_never_anothers_slots() -> None:
    """A slot in front is near to every token: with and without it, the same of one's own is seen."""
    model = random_model("mistral, windowed")
    model.set_attn_implementation(ATTENTION)
    assert window_of(model.config) == 6
    ids = torch.tensor([PROMPTS[0]])
    alone = Context(_empty(), torch.zeros(1, 0, dtype=torch.bool), torch.zeros(1, dtype=torch.long))
    wanted = step(model, alone, ids)

    def with_slot(log_weight: float) -> torch.Tensor:
        slot = [(torch.ones(1, 2, 1, 8), torch.ones(1, 2, 1, 8)) for _ in range(4)]
        bias = tuple(torch.full((1, 2, 1), log_weight) for _ in range(4))
        context = Context(_filled(slot), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.long), bias)
        logits = step(model, context, ids)
        assert logits is not None
        return logits

    torch.testing.assert_close(with_slot(-1e4), wanted)
    assert not torch.allclose(with_slot(0.0), wanted, atol=1e-2)


def _dynamic(cache: Any) -> Any:
    return _filled(list(zip(cache.keys, cache.values, strict=True)))


def _filled(layers: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    from transformers import DynamicCache

    return DynamicCache(layers)


def _empty() -> Any:
    from transformers import DynamicCache

    return DynamicCache()


REFUSED = [
    ({"model_type": "gemma2"}, "gemma2 is not served"),
    ({"model_type": "gemma3"}, "gemma3 holds a gemma3_text among other parts"),
    ({"model_type": "qwen3_next"}, r"qwen3_next.*of its 4 layers are linear_attention"),
    ({"model_type": "mamba"}, "mamba"),
    ({"model_type": "gpt_oss"}, "gpt_oss is not served"),
    ({"model_type": "bert"}, "bert is not served"),
    ({"model_type": "llama", "quantization_config": {"quant_method": "awq"}}, "quantized"),
    (
        {"model_type": "llama", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        "its dynamic RoPE",
    ),
]


@pytest.mark.parametrize(("values", "says"), REFUSED, ids=lambda value: str(value)[:40])
def test_others_are_refused_by_name(values: dict[str, Any], says: str) -> None:
    small = {} if values["model_type"] == "gemma3" else {"num_hidden_layers": 4}
    with pytest.raises(FedrayError, match=f"some-llm.*{says}"):
        check_config("some-llm", build_config("some-llm", {**small, **values}))


def test_what_transformers_does_not_know_is_refused() -> None:
    with pytest.raises(FedrayError, match="knows no architecture 'nonesuch'"):
        build_config("some-llm", {"model_type": "nonesuch"})
    assert "nonesuch" not in CONFIG_MAPPING


def test_every_member_of_the_catalogue_is_served() -> None:
    for name, entry in CATALOGUE.items():
        check_config(name, build_config(name, dict(entry.config)))
