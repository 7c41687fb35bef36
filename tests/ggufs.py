"""Tiny GGUF files with random weights, as llama.cpp would write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quantize
from tokenizers_made import made
from transformers import AutoModelForCausalLM

from fedray.llm.families import build_config

SIZES = {
    "context_length": 400,
    "embedding_length": 32,
    "block_count": 2,
    "feed_forward_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
}
KINDS = ("llama", "qwen2", "qwen3", "gemma3")
HEAD_DIM = {"llama": 8, "qwen2": 8, "qwen3": 128, "gemma3": 16}  # transformers reads none of qwen3's
_KINDS = (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
_CONTROL, _NORMAL, _BYTE = 3, 1, 6


def write(
    file: Path,
    kind: str = "llama",
    *,
    edit: Callable[[GGUFWriter], None] = lambda writer: None,
    sizes: Mapping[str, Any] = SIZES,
    without: str = "",
    tokenizer: bool = True,
    template: bool = True,
    tied: bool = True,
    seed: int = 0,
) -> Path:
    """Write a file of an architecture. edit: adds more to it; without: leaves a tensor out."""
    writer = GGUFWriter(file, kind)
    for key, value in sizes.items():
        if value is not None:
            writer.add_uint32(f"{kind}.{key}", value)
    writer.add_float32(f"{kind}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{kind}.rope.freq_base", 10000.0)
    if kind == "llama":
        writer.add_rope_dimension_count(HEAD_DIM[kind])
    if kind in ("qwen3", "gemma3"):
        writer.add_uint32(f"{kind}.attention.key_length", HEAD_DIM[kind])
    if kind == "gemma3":
        writer.add_uint32("gemma3.attention.sliding_window", 16)
    words = 0
    if tokenizer:
        words = _add_pieces(writer) if kind == "gemma3" else _add_bytes(writer, template)
    edit(writer)
    rng = np.random.default_rng(seed)
    for number, (name, shape) in enumerate(_tensors(kind, sizes, words or 600, tied).items()):
        if name != without:
            values = rng.normal(0, 0.3, shape).astype(np.float32)
            one = len(shape) == 1
            quant = GGMLQuantizationType.F32 if one else _KINDS[number % len(_KINDS)]
            if quant in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
                writer.add_tensor(name, values if one else values.astype(np.float16))
            else:
                writer.add_tensor(name, quantize(values, quant), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _tensors(kind: str, sizes: Mapping[str, Any], words: int, tied: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes, by transformers' architecture."""
    values = {**SIZES, **{key: value for key, value in sizes.items() if value is not None}}
    family = "gemma3_text" if kind == "gemma3" else kind
    config = build_config(
        kind,
        {
            "model_type": family,
            "hidden_size": values["embedding_length"],
            "intermediate_size": values["feed_forward_length"],
            "num_hidden_layers": values["block_count"],
            "num_attention_heads": values["attention.head_count"],
            "num_key_value_heads": values["attention.head_count_kv"],
            "head_dim": HEAD_DIM[kind],
            "vocab_size": words,
        },
    )
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in AutoModelForCausalLM.from_config(config).state_dict().items()}
    names = get_tensor_name_map(next(k for k, n in MODEL_ARCH_NAMES.items() if n == kind), values["block_count"])
    found = {}
    for name, shape in shapes.items():
        module, _, what = name.rpartition(".")
        if not (tied and module == "lm_head"):
            found[f"{names.get_name(module)}.{what}"] = shape
    return found


def _add_bytes(writer: GGUFWriter, template: bool) -> int:
    """The tokenizer of Llama 3's kind."""
    of = made("llama")
    model = json.loads(of.backend_tokenizer.to_str())["model"]
    vocabulary = of.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = set(of.backend_tokenizer.get_added_tokens_decoder())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL if i in special else _NORMAL for i in range(len(tokens))])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    writer.add_bos_token_id(vocabulary["<s>"])
    writer.add_eos_token_id(vocabulary["</s>"])
    writer.add_eot_token_id(vocabulary["<|im_end|>"])
    writer.add_add_bos_token(True)
    if template:
        writer.add_chat_template(of.chat_template)
    return len(tokens)


def _add_pieces(writer: GGUFWriter) -> int:
    """The tokenizer of Gemma's kind, of a base LLM."""
    control = ["<pad>", "<eos>", "<bos>", "<unk>"]
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz?,.\n", "▁t", "he", "▁the", "is", "▁is", "bird", "bi", "rd", "  "]
    tokens = [*control, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-1000.0] * len(tokens))
    writer.add_token_types([_CONTROL] * len(control) + [_BYTE] * 256 + [_NORMAL] * len(pieces))
    for add, i in ((writer.add_pad_token_id, 0), (writer.add_eos_token_id, 1), (writer.add_bos_token_id, 2)):
        add(i)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    return len(tokens)
