"""The control of messages: a soft prompt (arXiv 2104.08691), trained slots that depend on nothing that is sent.

Trained with the data and steps of a fuser. What a fuser's message gives above it is message.
Shape legend: B batch, N kv heads, T tokens, H head dim, L layers, S slots.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from fedray.fusion.fuser import Fuser, FuserConfig, Projection
from fedray.llm.cache import counted
from fedray.methods.method import Compile

UNSEEN = -1e4  # log weight of slots that a training step leaves out
SPREAD = 0.5  # std of the initial slots


class SoftPrompt(Fuser):
    """As many slots as tokens are sent; `config.hidden` are trained, and come again where more are asked for.

    Every training step shows a number of them that is drawn anew, so that every number is trained.
    """

    def __init__(self, config: FuserConfig) -> None:
        super().__init__(config)
        receiver = config.receiver
        shape = (receiver.layers, 2, receiver.kv_heads, config.hidden, receiver.head_dim)
        self.slots = nn.Parameter(torch.randn(shape) * SPREAD)
        self._drawn = random.Random(0)

    def on_step(self, progress: float) -> None:
        self._drawn.seed(progress)

    def at(self, places_S: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Take the slots of these places of a message: keys and values of every layer, (1, N, S, H)."""
        taken = self.slots[:, :, :, places_S % self.slots.shape[3]]
        keys, values = (tuple(side[:, None]) for side in taken.unbind(1))
        return keys, values

    def project(self, keys: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> Projection:
        batch, _, tokens, _ = keys[0].shape
        slots = self.at(counted(tokens, keys[0]))
        made_keys, made_values = (tuple(s.expand(batch, -1, -1, -1) for s in side) for side in slots)
        weight_BNT = made_keys[0].new_zeros(made_keys[0].shape[:3])
        if self.training:
            weight_BNT[:, :, self._drawn.randint(1, tokens) :] = UNSEEN
        return Projection(made_keys, made_values, (weight_BNT,) * self.config.receiver.layers)

    def weights(self, own: object, sent: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]) -> Tensor:
        return torch.stack(self.project(*sent).log_weights).exp()[None]

    def for_inference(self, mode: Compile | None = None) -> Fuser:
        return self.eval()
