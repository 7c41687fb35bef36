"""Where an LLM's weights come from. Every failure is a sentence that names the model and the remedy."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.utils import logging as transformers_logging

from fedray.llm.cache import spec_of
from fedray.llm.catalogue import EMBEDDED
from fedray.llm.decoding import ATTENTION
from fedray.llm.model import LLM, check_length, encode, hash_tokenizer, template_of
from fedray.types import FedrayError, MemberInfo

HASHES = "hashes.json"  # LLM name -> sha256 of its model.safetensors


def load(
    name: str, *, zoo: str = "tiny", device: str = "cpu", dtype: str | None = None, folder: Path | None = None
) -> LLM:
    """Load one LLM of a zoo. `folder` holds one folder per name (default: the embedded weights)."""
    path = _home(name, zoo, folder)
    digest = check_weights(name, folder)
    transformers_logging.disable_progress_bar()  # fedray shows its own
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype or "float32"), attn_implementation=ATTENTION, local_files_only=True
        )
        tokenizer = _tokenizer(path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unloadable(name, path, error) from error
    return wrap(name, model.to(device).eval(), tokenizer, digest[:16])


def sketch(name: str, *, zoo: str = "tiny", folder: Path | None = None) -> LLM:
    """An LLM as `load` would find it, its weights left on the disk: enough to `describe` it. Raises FedrayError."""
    path = _home(name, zoo, folder)
    digest = check_weights(name, folder)
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path, local_files_only=True))
        tokenizer = _tokenizer(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unloadable(name, path, error) from error
    return wrap(name, model, tokenizer, digest[:16])


def config_of(name: str, folder: Path | None = None) -> PretrainedConfig:
    """An LLM's configuration, before its weights are loaded. Raises FedrayError."""
    path = (folder or EMBEDDED) / "llms" / name
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise _unloadable(name, path, error) from error


def check_weights(name: str, folder: Path | None = None) -> str:
    """The hash of an LLM's weight file, if it is the one recorded for it. Raises FedrayError naming the file."""
    root = (folder or EMBEDDED) / "llms"
    weights, record = root / name / "model.safetensors", root / HASHES
    if not weights.is_file():
        raise FedrayError(
            f"{name}: {weights} does not exist; rebuild the zoo with jobs/build_zoo.py or reinstall fedray"
        )
    try:
        expected = json.loads(record.read_text()).get(name) if record.is_file() else None
    except ValueError as error:
        raise FedrayError(f"{record} is damaged ({error}); rebuild the zoo or reinstall fedray") from error
    digest = hash_file(weights)
    if expected and expected != digest:
        raise FedrayError(
            f"{name}: {weights} is damaged (hash {digest[:12]}, expected {expected[:12]}); reinstall fedray"
        )
    return digest


def check_prompts(names: Sequence[str], prompts: Sequence[str], *, folder: Path | None = None) -> None:
    """Refuse a prompt that is too long for a member before any LLM is loaded. Raises FedrayError naming the member."""
    for name in names:
        path = (folder or EMBEDDED) / "llms" / name
        try:
            tokenizer = _tokenizer(path)
            context = AutoConfig.from_pretrained(path, local_files_only=True).max_position_embeddings
        except (OSError, ValueError) as error:
            raise _unloadable(name, path, error) from error
        if tokenizer is None and prompts:
            raise FedrayError(f"{name} in {path} has no tokenizer and reads no text: save one there")
        template = template_of(tokenizer)
        for prompt in prompts:
            check_length(name, len(encode(tokenizer, template, prompt).ids), context)


def wrap(name: str, model: Any, tokenizer: Any, weights_hash: str) -> LLM:
    """An LLM around a model and a tokenizer (or None) that are already in memory."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return LLM(
        name=name,
        family=model.config.model_type,
        model=model,
        tokenizer=tokenizer,
        spec=spec_of(model.config),
        weights_hash=weights_hash,
        tokenizer_hash=hash_tokenizer(tokenizer),
        context=model.config.max_position_embeddings,
        template=template_of(tokenizer),
    )


def describe(llm: LLM) -> MemberInfo:
    """Who this LLM is and where it runs."""
    return MemberInfo(
        name=llm.name,
        family=llm.family,
        parameters=sum(p.numel() for p in llm.model.parameters()),
        spec=llm.spec,
        weights_hash=llm.weights_hash,
        tokenizer_hash=llm.tokenizer_hash,
        device=str(llm.device),
        dtype=str(llm.model.dtype).removeprefix("torch."),
        node=platform.node(),
        pid=os.getpid(),
        context=llm.context,
    )


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _home(name: str, zoo: str, folder: Path | None) -> Path:
    if zoo != "tiny":
        raise FedrayError(f"zoo={zoo} cannot be loaded by this version; use zoo=tiny")
    return (folder or EMBEDDED) / "llms" / name


def _tokenizer(path: Path) -> Any:
    """A folder's tokenizer; None where it has none, and its LLM reads token ids only."""
    if not any((path / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
        return None
    return AutoTokenizer.from_pretrained(path, local_files_only=True)


def _unloadable(name: str, path: Path, error: Exception) -> FedrayError:
    return FedrayError(f"{name}: {path} cannot be loaded ({str(error).splitlines()[0]}); reinstall fedray")
