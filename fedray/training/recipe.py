"""Hyperparameters of a fuser's training, and the fuser's shape, learning rate and precision that follow."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from fedray.fusion.fuser import FuserConfig
from fedray.schema import attributes
from fedray.training.settings import FuserJob, GateJob
from fedray.types import KVSpec

Schedule = Literal["onecycle", "linear", "constant"]
Sampling = Literal["independent", "epochs"]
Precision = Literal["auto", "float32", "bfloat16"]
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class FuserRecipe:
    """Hyperparameters of a fuser's training: what decides its weights, beside the LLMs and the questions.

    batch_size: questions a step, over all workers; accumulation: parts in which a worker reads its share of them.
    schedule: onecycle (up and down along cosines, with the momentum against it), linear (down to nothing) or constant;
    warmup: the share of the steps in which the rate rises. precision: of the forward pass; the fuser's own weights stay
    float32; auto is bfloat16 on a GPU that has it. validate_every: steps, 0 is never; patience: validations without a
    lower loss until training stops and the best weights are taken, 0 is endless. layers: which of the sender's a
    receiver layer reads (alignment.py); sampling: every step draws from all questions, or (epochs) each of them comes
    once before any comes again. rotary, tokens: what a concat fuser reads, as FuserConfig has them.
    """

    kind: str = "mlp"
    operator: str = "concat"
    hidden: int = 128
    steps: int = 900
    batch_size: int = 96
    accumulation: int = 1
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    schedule: Schedule = "onecycle"
    warmup: float = 0.3
    precision: Precision = "auto"
    validate_every: int = 0
    patience: int = 0
    layers: str = "bottom_up"
    sampling: Sampling = "independent"
    rotary: str = "removed"
    tokens: str = "prompt"
    seed: int = 0


def recipe_from(settings: FuserJob | GateJob, cls: type[R], **others: Any) -> R:
    """Make a recipe of the settings of the same names, `fuser`, `fusion`, and of what is given in `others`."""
    names = [of.name for of in fields(cls)]  # pyright: ignore
    known = {"operator": settings.fusion.operator, "kind": settings.fuser.kind, **others}
    values = {name: value for name, value in known.items() if name in names}
    same = (name for name in names if name not in values)
    return cls(**values, **attributes(settings, *same))


def fuser_config(recipe: FuserRecipe, sender: KVSpec, receiver: KVSpec) -> FuserConfig:
    reads = attributes(recipe, "rotary", "tokens") if recipe.operator == "concat" else {}
    own = (recipe.kind, recipe.operator, sender, receiver, recipe.hidden, recipe.hidden)
    return FuserConfig(*own, layer_alignment=recipe.layers, **reads)


def schedule(optimizer: torch.optim.Optimizer, recipe: FuserRecipe, step: int) -> LRScheduler:
    """Make the learning rate schedule from `step` on; a resumed optimizer holds its initial rate."""
    if recipe.schedule == "onecycle":
        total, rise = max(1, recipe.steps), recipe.warmup
        return OneCycleLR(optimizer, recipe.learning_rate, total_steps=total, pct_start=rise, last_epoch=step - 1)
    rise = max(1, round(recipe.steps * recipe.warmup))

    def factor(k: int) -> float:
        if k < rise or recipe.schedule == "constant":
            return min(1.0, (k + 1) / rise)
        return max(0.0, (recipe.steps - k) / max(1, recipe.steps - rise))

    return LambdaLR(optimizer, factor, last_epoch=step - 1)


def precision(recipe: FuserRecipe, device: torch.device) -> AbstractContextManager[object]:
    """Make the autocast context of a forward pass on a device."""
    half = is_half(recipe, device.type)
    return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()


def is_half(recipe: FuserRecipe, device: str) -> bool:
    """Check whether a forward pass on a device runs in bfloat16."""
    on_gpu = device == "cuda" and torch.cuda.is_bf16_supported()
    return recipe.precision == "bfloat16" or (recipe.precision == "auto" and on_gpu)
