"""tests/fixtures/c2c_reference: tiny LLMs, two fusers as C2C publishes them, and what the reference code answers.

The LLMs have no tokenizer. Here they stand under embedded names, in a folder laid out as a zoo.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from fedray.types import Generation, Request

FIXTURE = Path(__file__).parent / "fixtures" / "c2c_reference"
NAMES = {"receiver": "qwen3-0.6b", "sharer_qwen2": "qwen2.5-0.5b", "sharer_llama": "llama-1b"}
RECEIVER, *SENDERS = NAMES.values()
FUSERS = {name: FIXTURE / f"fuser_{sharer}" for sharer, name in NAMES.items() if sharer != "receiver"}


@dataclass(frozen=True)
class Case:
    """One answer of the reference: logits (V,) after the prompt, and the greedy tokens that follow."""

    key: str
    order: str
    senders: tuple[str, ...]
    prompt: tuple[int, ...]
    logits: torch.Tensor
    tokens: tuple[int, ...]

    @property
    def request(self) -> Request:
        return Request((), token_ids=(self.prompt,), generation=Generation(max_tokens=len(self.tokens)))


def cases() -> list[Case]:
    expected = load_file(FIXTURE / "expected.safetensors")
    return [
        Case(
            case["key"],
            case["multi_source_fusion_mode"],
            tuple(NAMES[sharer] for sharer in case["sharers"]),
            tuple(case["prompt"]),
            expected[f"{case['key']}.logits"],
            tuple(expected[f"{case['key']}.tokens"].tolist()),
        )
        for case in json.loads((FIXTURE / "cases.json").read_text())
    ]


def zoo(folder: Path) -> Path:
    """The fixture's LLMs as a zoo of one's own."""
    (folder / "llms").mkdir(parents=True)
    for original, name in NAMES.items():
        (folder / "llms" / name).symlink_to(FIXTURE / original)
    return folder
