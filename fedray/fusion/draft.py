"""Translate a sender's draft into what the receiver's own cache of the same words, read as a note, would be.

Only the cache of the draft's tokens travels (as in Draft-KV, arXiv 2609.34754); the translator is trained by regression
on texts, and never on a task's answers, so that it carries words that were no training answer. It reads the token and
the one before it, and gives for every token of the sender as many slots as the receiver may need for it.
Shape legend: B batch, N kv heads, T tokens, H head dim, L layers, M tokens of all rows, K slots per token, F = N*H.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedray.fusion.fuser import Fuser, FuserConfig, Projection
from fedray.methods.method import Compile

FIRST = "first"


class DraftFuser(Fuser):
    """A three-layer MLP from one token's keys and values to the receiver's.

    layer_alignment: "first" (layer 0 to layer 0; the receiver's other layers are their mean over words: in LLMs this
    small a word is in its first layer), or "all" (every layer to every layer).
    """

    default_layers: ClassVar[str] = FIRST
    reading: ClassVar[Mapping[str, str]] = {"rotary": "removed", "tokens": "draft"}

    def __init__(self, config: FuserConfig) -> None:
        super().__init__(config)
        source, target = (2 * features for features in config.features)  # of one layer, keys and values
        self._read, self._written = _depths(config)
        inputs, outputs, hidden = (self._read + 1) * source, self._written * target * config.slots, config.hidden
        self.shift, self.scale = nn.Buffer(torch.zeros(inputs)), nn.Buffer(torch.ones(inputs))
        self.center = nn.Buffer(torch.zeros(config.slots, config.receiver.layers, target))
        self.spread = nn.Buffer(torch.ones(outputs))
        self.net = nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, outputs)
        )

    @classmethod
    def layers_read(cls, config: FuserConfig) -> tuple[int, ...]:
        return tuple(range(_depths(config)[0]))

    @torch.no_grad()
    def fit(self, inputs_MI: Tensor, targets_MKLF: Tensor) -> None:
        """Standardize what is read, and what is learned, over training tokens."""
        self.shift.copy_(inputs_MI.mean(0))
        self.scale.copy_(1.0 / inputs_MI.std(0).clamp(min=1e-4))
        self.center.copy_(targets_MKLF.mean(0))
        self.spread.copy_(targets_MKLF[:, :, : self._written].flatten(1).std(0).clamp(min=1e-4))

    def standardized(self, slots_MKLF: Tensor) -> Tensor:
        """Scale what the net writes of slots to standard deviations: (M, outputs)."""
        return (slots_MKLF - self.center)[:, :, : self._written].flatten(1) / self.spread

    def loss(self, inputs_MI: Tensor, targets_MKLF: Tensor) -> Tensor:
        """The mean squared error of each token, (M,), in standard deviations."""
        made_MO = self.net((inputs_MI - self.shift) * self.scale)
        return (made_MO - self.standardized(targets_MKLF)).square().mean(1)

    def translated(self, inputs_MI: Tensor) -> Tensor:
        """Translate tokens: (M, K, L, 2F)."""
        out_MO = self.net((inputs_MI - self.shift) * self.scale) * self.spread
        slots = self.config.slots
        changed_MKLF = out_MO.unflatten(1, (slots, self._written, -1))
        center_MKLF = self.center.expand(len(out_MO), -1, -1, -1)
        return torch.cat([changed_MKLF + center_MKLF[:, :, : self._written], center_MKLF[:, :, self._written :]], dim=2)

    def project_rows(self, keys: tuple[Tensor, ...], values: tuple[Tensor, ...], positions_BT: Tensor) -> Projection:
        batch, tokens = positions_BT.shape
        receiver, slots = self.config.receiver, self.config.slots
        made_MKLF = self.translated(inputs_of(self.config, keys, values, positions_BT))
        heads = (batch, tokens * slots, receiver.layers, 2, receiver.kv_heads, receiver.head_dim)
        made = made_MKLF.reshape(heads).permute(2, 3, 0, 4, 1, 5)  # (L, K|V, B, N, T, H)
        nothing = made.new_zeros(batch, receiver.kv_heads, tokens * slots)
        return Projection(tuple(made[:, 0]), tuple(made[:, 1]), (nothing,) * receiver.layers)

    def for_inference(self, mode: Compile | None = None) -> Fuser:
        return self


def _depths(config: FuserConfig) -> tuple[int, int]:
    """How many layers are read, and how many written."""
    return (1, 1) if config.layer_alignment == FIRST else (config.sender.layers, config.receiver.layers)


def inputs_of(
    config: FuserConfig, keys: tuple[Tensor, ...], values: tuple[Tensor, ...], positions_BT: Tensor
) -> Tensor:
    """Gather what the net reads of every token, (B*T, inputs): its layers, and the first one of the token before.

    positions_BT: places within each row; there is none before where they do not count on.
    """
    sides = [side[layer].transpose(1, 2).flatten(2) for layer in range(_depths(config)[0]) for side in (keys, values)]
    first_BTF = torch.cat(sides[:2], dim=2)
    before_BTF = torch.cat([torch.zeros_like(first_BTF[:, :1]), first_BTF[:, :-1]], dim=1)
    follows_BT = torch.diff(positions_BT, dim=1, prepend=positions_BT[:, :1]) == 1
    before_BTF = before_BTF * follows_BT[..., None]
    return torch.cat([*sides, before_BTF], dim=2).flatten(0, 1)


def targets_of(keys: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> Tensor:
    """Gather what the net learns to give of one text (1, N, T, H) of a receiver: (T, L, 2F)."""
    pairs = zip(keys, values, strict=True)
    sides = ((key[0].transpose(0, 1).flatten(1), value[0].transpose(0, 1).flatten(1)) for key, value in pairs)
    return torch.stack([torch.cat(pair, dim=1) for pair in sides], dim=1)
