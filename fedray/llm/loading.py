"""Load an LLM of any zoo. Every failure is a sentence that names the model and the remedy."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from fedray.llm import hub, shapes
from fedray.llm.cache import spec_of
from fedray.llm.files import weight_files
from fedray.llm.memory import numbers, release_freed
from fedray.llm.model import LLM, check_known, check_length, encode, hash_tokenizer, hash_vocabulary
from fedray.llm.opening import open_model, outline
from fedray.llm.products import pack_matrices
from fedray.llm.rotary import cache_space
from fedray.llm.source import Source, config_of, folder_of, pin, read_tokenizer, tokenizer_of, weights_hash
from fedray.llm.templates import template_of
from fedray.types import FedrayError, MemberInfo, Prompting

_BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # instructions for it, in the words of torch


def load(
    name: str,
    *,
    zoo: str = "tiny",
    device: str = "cpu",
    dtype: str | None = None,
    folder: Path | None = None,
    revision: str | None = None,
    prompting: Prompting | None = None,
    packed: bool = False,
) -> LLM:
    """Load one LLM of a zoo.

    dtype: default_dtype() if not given; folder: holds llms/NAME (default: the embedded weights, or the hub's);
    revision: of its repository (default: main); prompting: as in a Source; packed: for inference alone (products.py):
    no gradient flows then.
    """
    return load_source(Source(name, zoo, folder, revision, prompting), device, dtype, packed=packed)


def load_source(source: Source, device: str = "cpu", dtype: str | None = None, *, packed: bool = False) -> LLM:
    """Load the LLM of a source, as `load` does."""
    source = pin(source)
    config, precision = config_of(source), dtype or default_dtype(source.zoo, device)
    kind = getattr(torch, precision)
    if source.zoo == "shapes":
        seed = shapes.seed_of(source.llm)
        digest, tokenizer = shapes.hash_of(config, seed, precision), shapes.build_tokenizer(config)
        model = shapes.build_model(config, device=device, dtype=kind, seed=seed)
    else:
        path = folder_of(source)
        digest, tokenizer = hub.content_hash(weight_files(source.name, path))[:16], read_tokenizer(source, path)
        model = open_model(source.llm, path, config, device, kind, source.remedy)
    if packed:
        pack_matrices(model)
    release_freed()
    return wrap(source.name, model.eval(), tokenizer, digest, source.revision or "", source.prompting)


def sketch(name: str, *, zoo: str = "tiny", folder: Path | None = None, revision: str | None = None) -> LLM:
    """Prepare an LLM as `load` does, without its weights: enough to `describe` it. Raises FedrayError."""
    return sketch_source(Source(name, zoo, folder, revision))


def sketch_source(source: Source) -> LLM:
    """Prepare the LLM of a source, as `sketch` does."""
    source = pin(source)
    model = outline(source.title, config_of(source))
    digest = weights_hash(source)[:16]
    return wrap(source.name, model, tokenizer_of(source), digest, source.revision or "", source.prompting)


def default_dtype(zoo: str, device: str) -> str:
    """Choose float32 for the scale model; else bfloat16 where the device has instructions for it, or float32.

    On a CPU with AVX512-BF16 a matrix product takes 0.4 of the time in bfloat16 (docs/log.md).
    """
    if zoo == "tiny":
        return "float32"
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device == "mps":
        return "bfloat16"
    has = torch.cpu.get_capabilities()
    return "bfloat16" if any(has.get(feature, False) for feature in _BF16) else "float32"


def check_prompts(sources: Sequence[Source], prompts: Sequence[str] | Mapping[str, str]) -> dict[str, int]:
    """Count per member the tokens of its longest prompt, before any LLM is loaded. prompts: with their names, if any.

    Raises FedrayError naming a member for which a prompt is too long, and the prompt.
    """
    named = prompts if isinstance(prompts, Mapping) else dict.fromkeys(prompts, "")
    longest: dict[str, int] = {}
    for source in sources:
        config = config_of(source)
        tokenizer = tokenizer_of(source)
        if tokenizer is None and prompts:
            raise FedrayError(
                f"{source.title} has no tokenizer and reads no text: save one in its folder, as in "
                "AutoTokenizer.from_pretrained(BASE).save_pretrained(FOLDER)"
            )
        template = template_of(tokenizer, source.prompting)
        for prompt, name in named.items():
            ids = encode(tokenizer, template.around((prompt,)), prompt).ids
            check_length(source.name, len(ids), config.max_position_embeddings, name)
            check_known(source.name, ids, config.vocab_size)
            longest[source.name] = max(longest.get(source.name, 0), len(ids))
    return longest


def wrap(
    name: str,
    model: Any,
    tokenizer: Any,
    weights_hash: str,
    revision: str = "",
    prompting: Prompting | None = None,
) -> LLM:
    """Build an LLM from a model and a tokenizer (or None) that are already in memory."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    config, hashes = model.config, (weights_hash, hash_tokenizer(tokenizer))
    template = template_of(tokenizer, prompting)
    context = config.max_position_embeddings
    return LLM(name, config.model_type, model, tokenizer, spec_of(config), *hashes, context, template, revision)


def describe(llm: LLM) -> MemberInfo:
    """Describe an LLM and where it runs."""
    same = {entry.name for entry in fields(LLM)} & {entry.name for entry in fields(MemberInfo)}
    return MemberInfo(
        **{name: getattr(llm, name) for name in same},
        parameters=numbers(llm.model),
        device=str(llm.device),
        dtype=str(llm.model.dtype).removeprefix("torch."),
        node=platform.node(),
        pid=os.getpid(),
        vocabulary=hash_vocabulary(llm.tokenizer),
        cache_space=cache_space(llm.model.config),
        prompting=llm.template.prompting,
    )
