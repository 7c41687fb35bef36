"""Load an architecture and its weights from files, and validate them against each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging as transformers_logging

from fedray.llm.decoding import ATTENTION, empty_context, step
from fedray.llm.explained import explained
from fedray.llm.files import AGAIN, CONFIG, GENERATION, parse_config, titled
from fedray.types import FedrayError

_LAYERS = re.compile(r"layers\.\d+\.")  # tensors of layers that the architecture lacks would be missing to the answers
_HARMLESS = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$")

transformers_logging.disable_progress_bar()  # fedray shows its own


def open_model(member: str, folder: Path, config: Any, device: str, dtype: torch.dtype, remedy: str = AGAIN) -> Any:
    """Load a causal LM of a known configuration with the weights of a folder.

    Raises FedrayError where they cannot be read, and naming a tensor where they do not fit the configuration.
    """
    title = titled(member, folder)
    stops = _stops(member, folder, config)
    with explained(title, "it cannot be loaded", remedy):
        try:
            model, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
                folder,
                config=config,
                generation_config=GenerationConfig(eos_token_id=stops),  # what else generate() is told plays no part
                dtype=dtype,
                device_map={"": device},  # straight to where it will stand, without a second copy in memory
                attn_implementation=ATTENTION,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named below
            )
        except torch.OutOfMemoryError as error:
            raise FedrayError(f"{title}: no room for it on {device}; free some, or take a smaller dtype") from error
    _check_fit(title, info)
    return model


def outline(title: str, config: Any) -> Any:
    """Build an architecture on the meta device. Raises FedrayError."""
    with explained(title, f"no LLM comes of {CONFIG}", f"correct {CONFIG}"), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)


def try_out(title: str, model: Any) -> None:
    """Validate that a model on the meta device can read two tokens. Raises FedrayError."""
    with explained(title, f"the LLM that {CONFIG} describes does not run", f"correct {CONFIG}"), torch.no_grad():
        ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
        step(model, empty_context(1, ids.device), ids)


def _check_fit(title: str, info: dict[str, Any]) -> None:
    if wrong := sorted(info["mismatched_keys"]):
        name, held, wanted = wrong[0]
        raise FedrayError(
            f"{title}: the weights do not fit {CONFIG}: {name} is {_shape(held)} in the file and {_shape(wanted)} by "
            f"{CONFIG} ({len(wrong)} such tensors); copy both from one LLM"
        )
    if missing := sorted(info["missing_keys"]):  # transformers fills them at random
        raise FedrayError(
            f"{title} lacks the weights {missing[0]} ({len(missing)} in all), which {CONFIG} asks for; copy both again "
            "from one LLM"
        )
    if beyond := sorted(key for key in info["unexpected_keys"] if _LAYERS.search(key) and not _HARMLESS.search(key)):
        raise FedrayError(
            f"{title}: the weights do not fit {CONFIG}, which knows nothing of {beyond[0]} ({len(beyond)} such "
            "tensors); copy both from one LLM"
        )


def _stops(member: str, folder: Path, config: Any) -> Any:
    """Read the tokens that end an answer: an id, a list of some, or None. Raises FedrayError."""
    stops = getattr(config, "eos_token_id", None)
    if (folder / GENERATION).is_file():
        stops = parse_config(member, folder / GENERATION).get("eos_token_id")
    if not all(type(stop) is int for stop in (stops if isinstance(stops, list) else [stops]) if stop is not None):
        raise FedrayError(
            f"{titled(member, folder)}: eos_token_id is {stops!r} in {GENERATION}; write the id of a token, or a list "
            "of some"
        )
    return stops


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
