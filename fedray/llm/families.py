"""Validate by its configuration, before a weight is loaded, that an architecture is served.

A family is served where every layer keeps keys and values of all tokens: then a cache can be sent, fused and read
again. Layers with a sliding window keep theirs too, and decoding.py hides what lies outside the window. Whatever else
there is (linear attention, compressed or shared caches, scores or logits that are capped or scaled) is refused by name;
each family here is tested against transformers' own forward pass.
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fedray.llm.cache import spec_of
from fedray.llm.catalogue import shown
from fedray.llm.explained import explained
from fedray.llm.files import CONFIG
from fedray.types import FedrayError

SERVED = ("gemma", "gemma3_text", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3")
# What a config.json may hold that is about a program that ran the LLM, and not about the LLM.
PASSING = (
    "_attn_implementation _attn_implementation_autoset _attn_implementation_internal _experts_implementation "
    "attn_implementation auto_map dtype gradient_checkpointing output_attentions output_hidden_states return_dict "
    "torch_dtype torchscript use_bfloat16 use_cache use_return_dict"
).split()
_SIZES = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "max_position_embeddings"
).split()
_SERVED = ", ".join(SERVED)
WINDOWED = "sliding_attention"
_LAYERS = ("full_attention", WINDOWED)
_FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")  # others rotate keys anew as the text grows
_MOST_LAYERS = 1000
_REMEDY = f"correct {CONFIG}, or copy it again from where the LLM comes from"


def check_config(name: str, config: Any) -> None:
    """Validate that an LLM's cache can be exchanged. Raises FedrayError naming the architecture."""
    with explained(shown(name), f"{CONFIG} describes no LLM", _REMEDY):
        _check(shown(name), config)


def _check(name: str, config: Any) -> None:
    kind, layers = config.model_type, getattr(config, "layer_types", None) or ()
    if other := [layer for layer in layers if layer not in _LAYERS]:
        raise FedrayError(
            f"{name} ({kind}) cannot take part: {len(other)} of its {len(layers)} layers are {other[0]}, and only "
            f"caches of plain attention can be exchanged; choose an LLM of {_SERVED}"
        )
    if kind not in SERVED:
        inside = getattr(config, "text_config", None)
        what = f"{kind} holds a {inside.model_type} among other parts" if inside else f"{kind} is not served"
        raise FedrayError(f"{name} cannot take part: the architecture {what}; choose an LLM of {_SERVED}")
    if getattr(config, "quantization_config", None):
        raise FedrayError(f"{name} cannot take part: its weights are quantized; choose the repository it was made from")
    capped = [key for key in ("attn_logit_softcapping", "final_logit_softcapping") if getattr(config, key, None)]
    if capped:
        raise FedrayError(f"{name} ({kind}) cannot take part: its {capped[0]} is not served; choose another LLM")
    rotations = [r for r in _rotations(config) if r not in _FIXED_ROTATIONS]
    if rotations and rotations[0] not in ROPE_INIT_FUNCTIONS:
        raise FedrayError(f"{name}: transformers knows no RoPE {rotations[0]!r}, which {CONFIG} names; {_REMEDY}")
    if rotations:
        raise FedrayError(
            f"{name} ({kind}) cannot take part: its {rotations[0]} RoPE rotates keys anew as a text grows; choose "
            f"another LLM"
        )
    _check_sizes(name, config)


def _check_sizes(name: str, config: Any) -> None:
    for key in _SIZES:
        size = getattr(config, key, None)
        if (size is not None or key not in ("head_dim", "num_key_value_heads")) and (type(size) is not int or size < 1):
            raise FedrayError(f"{name}: {key} is {size!r} in {CONFIG} and must be a number from 1 on; {_REMEDY}")
    if config.num_hidden_layers > _MOST_LAYERS:
        raise FedrayError(f"{name}: num_hidden_layers is {config.num_hidden_layers} in {CONFIG}; {_REMEDY}")
    if (window := window_of(config)) is not None and window < 1:
        raise FedrayError(f"{name}: sliding_window is {window} in {CONFIG} and must be a number from 1 on; {_REMEDY}")
    spec, heads = spec_of(config), config.num_attention_heads
    if heads % spec.kv_heads:
        raise FedrayError(
            f"{name}: num_key_value_heads={spec.kv_heads} does not divide num_attention_heads={heads} in {CONFIG}; "
            f"{_REMEDY}"
        )
    if spec.head_dim % 2:
        raise FedrayError(f"{name}: heads of {spec.head_dim} numbers, by {CONFIG}, cannot be rotated; {_REMEDY}")


def window_of(config: Any) -> int | None:
    """Get the size in tokens of the sliding window, the token itself included; None where attention is full."""
    kinds = getattr(config, "layer_types", None)
    return None if kinds is not None and WINDOWED not in kinds else getattr(config, "sliding_window", None)


def build_config(name: str, values: dict[str, Any]) -> Any:
    """Build a transformers configuration from the content of config.json, without what PASSING lists.

    Raises FedrayError on an unknown architecture, and on values that describe no LLM.
    """
    kind = values.get("model_type")
    if kind is None:
        raise FedrayError(f"{shown(name)}: {CONFIG} names no architecture, it has no model_type; {_REMEDY}")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise FedrayError(
            f"{shown(name)} cannot take part: transformers knows no architecture {kind!r}; choose {_SERVED}"
        )
    with explained(shown(name), f"{CONFIG} describes no LLM", _REMEDY):
        return CONFIG_MAPPING[kind].from_dict({key: value for key, value in values.items() if key not in PASSING})


def _rotations(config: Any) -> list[str]:
    """List the RoPE types, which may differ by kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [p for p in parameters.values() if isinstance(p, dict)] or [parameters]
    return [p.get("rope_type", "default") for p in nested]
