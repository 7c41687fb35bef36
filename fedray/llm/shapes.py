"""Build the LLMs of zoo=shapes: real architectures with random weights and a tokenizer of bytes, without a download.

For measuring seconds, memory and bytes on the wire: they depend on the shape of an LLM, not on what it has learnt. One
token per byte is three to four times as many as a real tokenizer makes of English text.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from fedray.llm.catalogue import CATALOGUE
from fedray.llm.decoding import ATTENTION
from fedray.llm.families import build_config
from fedray.llm.files import CONFIG, parse_config

START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}" + START + "{{ message['role'] }}\n{{ message['content'] }}" + END + "\n"
    "{% endfor %}{% if add_generation_prompt %}" + START + "assistant\n{% endif %}"
)


def config_of(name: str) -> Any:
    """Build the configuration of a name of the catalogue, or of a local folder's config.json. Raises FedrayError."""
    values = dict(CATALOGUE[name].config) if name in CATALOGUE else parse_config(name, Path(name) / CONFIG)
    values.pop("quantization_config", None)
    return build_config(name, values)


def build_model(config: Any, *, device: str, dtype: torch.dtype, seed: int) -> Any:
    """Initialize a model at random on its device: no second copy in memory."""
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []), torch.device(device):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)
    model.generation_config = GenerationConfig.from_model_config(config)
    return model


def seed_of(name: str) -> int:
    """Derive a seed from a name: its weights are the same on every machine with the same kind of device."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)


def hash_of(config: Any, seed: int, dtype: str) -> str:
    """Hash what determines the weights, in place of a content hash."""
    meaning = json.dumps([config.to_dict(), seed, dtype], sort_keys=True, default=str)
    return "random-" + hashlib.sha256(meaning.encode()).hexdigest()[:9]


def build_tokenizer(config: Any) -> Any:
    """Build a byte-level tokenizer of exactly the LLM's vocabulary size: every id that it may generate has a text."""
    size = config.vocab_size
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {byte: i for i, byte in enumerate(alphabet)}
    vocabulary |= {f"<{i}>": i for i in range(len(alphabet), size - 2)}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(START, special=True), AddedToken(END, special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END)
    tokenizer.chat_template = TEMPLATE
    return tokenizer
