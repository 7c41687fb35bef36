"""Tiny LLMs with random weights, saved as their authors would publish them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers_made import made
from transformers import AutoModelForCausalLM

from fedray.llm.families import build_config

COMMON = {  # of configurations that zoo=shapes builds
    "vocab_size": 600,
    "intermediate_size": 64,
    "num_attention_heads": 6,
    "head_dim": 8,
    "max_position_embeddings": 400,
    "tie_word_embeddings": True,
    "initializer_range": 0.3,  # or else all answers are alike
}
SHAPE = {
    "vocab_size": 640,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def save(folder: Path, family: str, tokenizer: str, *, shards: bool = False, seed: int = 0) -> Path:
    """A tiny LLM as its authors would push it."""
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(build_config(family, {"model_type": family, **SHAPE}))
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="40KB" if shards else "5GB")
    made(tokenizer).save_pretrained(folder)
    return folder
