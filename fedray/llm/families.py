"""Which architectures are served, told by their configuration before a weight is loaded.

A family is served where every layer keeps keys and values of all tokens: then a cache can be sent, fused and read
again. Layers with a sliding window keep theirs too, and decoding.py hides what lies outside the window. Whatever else
there is (linear attention, compressed or shared caches, scores or logits that are capped or scaled) is refused by name;
each family here is tested against transformers' own forward pass.
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING

from fedray.types import FedrayError

SERVED = ("gemma", "gemma3_text", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3")
WINDOWED = "sliding_attention"
_LAYERS = ("full_attention", WINDOWED)
_FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")  # others rotate keys anew as the text grows


def check_config(name: str, config: Any) -> None:
    """Refuse an LLM whose cache cannot be exchanged. Raises FedrayError naming the architecture."""
    kind = config.model_type
    odd = _other_layers(config)
    if odd:
        raise FedrayError(
            f"{name} ({kind}) cannot take part: {odd}, and only caches of plain attention can be exchanged; choose an "
            f"LLM of {_served()}"
        )
    if kind not in SERVED:
        inside = getattr(config, "text_config", None)
        what = f"{kind} holds a {inside.model_type} among other parts" if inside else f"{kind} is not served"
        raise FedrayError(f"{name} cannot take part: the architecture {what}; choose an LLM of {_served()}")
    if getattr(config, "quantization_config", None):
        raise FedrayError(f"{name} cannot take part: its weights are quantized; choose the repository it was made from")
    capped = [key for key in ("attn_logit_softcapping", "final_logit_softcapping") if getattr(config, key, None)]
    if capped:
        raise FedrayError(f"{name} ({kind}) cannot take part: its {capped[0]} is not served; choose another LLM")
    rotations = [r for r in _rotations(config) if r not in _FIXED_ROTATIONS]
    if rotations:
        raise FedrayError(
            f"{name} ({kind}) cannot take part: its {rotations[0]} RoPE rotates keys anew as a text grows; choose "
            f"another LLM"
        )


def window_of(config: Any) -> int | None:
    """Tokens a sliding-window layer looks back, itself included; None where every layer sees everything."""
    kinds = getattr(config, "layer_types", None)
    return None if kinds is not None and WINDOWED not in kinds else getattr(config, "sliding_window", None)


def build_config(name: str, values: dict[str, Any]) -> Any:
    """A transformers configuration from what config.json says. Raises FedrayError on an unknown architecture."""
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise FedrayError(f"{name} cannot take part: transformers knows no architecture {kind!r}; choose {_served()}")
    return CONFIG_MAPPING[kind].from_dict(values)


def _other_layers(config: Any) -> str:
    kinds = getattr(config, "layer_types", None) or ()
    other = [kind for kind in kinds if kind not in _LAYERS]
    return f"{len(other)} of its {len(kinds)} layers are {other[0]}" if other else ""


def _rotations(config: Any) -> list[str]:
    """The RoPE types, which may differ by kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [p for p in parameters.values() if isinstance(p, dict)] or [parameters]
    return [p.get("rope_type", "default") for p in nested]


def _served() -> str:
    return ", ".join(SERVED)
