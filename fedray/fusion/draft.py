"""Translate a sender's draft into what the receiver's own cache of the same words, read as a note, would be.

Only the cache of the draft's tokens travels (as in Draft-KV, arXiv 2609.34754); the translator is trained by regression
on texts, and never on a task's answers, so that it carries words that were no training answer. It reads the token and
the one before it, and gives for every token of the sender as many slots as the receiver may need for it.
Shape legend: B batch, N kv heads, T tokens, H head dim, L layers, M tokens of all rows, K slots per token, I inputs,
F = N*H, R tokens of the receiver.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedray.errors import FedrayError
from fedray.fusion.fuser import Fuser, FuserConfig, Projection
from fedray.fusion.regression import HELD_OUT, low_rank, ridge
from fedray.methods.method import Compile

FIRST = "first"
SPREAD = 1.6  # of what is translated, above that of the receiver's own: a regression shrinks words towards their mean
MOST = 4.0  # times a layer's translation is spread


class DraftFuser(Fuser):
    """A map from one token's keys and values to the receiver's.

    layer_alignment: "first" (layer 0 to layer 0 by a three-layer MLP; the receiver's other layers are their mean over
    words: in LLMs as small as the embedded ones a word is in its first layer), or "all" (the lower third of the layers
    and every third above to all of the receiver's by a linear map of rank `hidden`, found in closed form, which spares
    slots that the receiver has no token for).
    """

    default_layers: ClassVar[str] = FIRST
    reading: ClassVar[Mapping[str, str]] = {"rotary": "removed", "tokens": "draft"}

    def __init__(self, config: FuserConfig) -> None:
        super().__init__(config)
        source, target = (2 * features for features in config.features)  # of one layer, keys and values
        self.linear = config.layer_alignment != FIRST
        self._written = config.receiver.layers if self.linear else 1
        inputs, hidden = (len(self.layers_read(config)) + 1) * source, config.hidden
        outputs = self._written * target * config.slots
        self.shift, self.scale = nn.Buffer(torch.zeros(inputs)), nn.Buffer(torch.ones(inputs))
        self.center = nn.Buffer(torch.zeros(config.slots, config.receiver.layers, target))
        self.spread = nn.Buffer(torch.ones(outputs))
        self.net = (
            nn.Sequential(nn.Linear(inputs, hidden, bias=False), nn.Linear(hidden, outputs, bias=False))
            if self.linear
            else nn.Sequential(
                nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, outputs)
            )
        )
        self.needed = nn.Linear(inputs, config.slots + 1) if self.linear else None

    @classmethod
    def layers_read(cls, config: FuserConfig) -> tuple[int, ...]:
        if config.layer_alignment == FIRST:
            return (0,)
        layers = config.sender.layers
        return (*range(lower := max(1, layers // 3)), *range(min(lower + 2, layers), layers, 3))

    @torch.no_grad()
    def fit(self, inputs_MI: Tensor, held_RLF: Tensor, index_MK: Tensor) -> None:
        """Standardize what is read and what is learned over training tokens, and find the map if it is linear.

        held_RLF: what the receiver holds of the texts; index_MK: which of it is in each slot of a sender's token, -1:
        nothing.
        """
        known_MI = inputs_MI.float()
        self.shift.copy_(known_MI.mean(0))
        self.scale.copy_(1.0 / known_MI.std(0).clamp(min=1e-4))
        if self.linear:
            self._regress((known_MI - self.shift) * self.scale, held_RLF, index_MK)
            return
        targets_MKLF = held_RLF[index_MK]
        self.center.copy_(targets_MKLF.mean(0))
        self.spread.copy_(targets_MKLF[:, :, : self._written].flatten(1).std(0).clamp(min=1e-4))

    def _regress(self, known_MI: Tensor, held_RLF: Tensor, index_MK: Tensor) -> None:
        """Find the map, slot by slot, and spread what it gives of held-out tokens as the receiver's own are, and more.

        Tokens stand in the order of their texts, so that held-out ones are seldom of a word that is trained on.
        """
        held_out_M = torch.arange(len(known_MI)) // HELD_OUT % HELD_OUT == 0
        flat_RO = held_RLF.flatten(1)
        fits, shown = [], []
        for slot, index_M in enumerate(index_MK.unbind(1)):
            there_M = index_M >= 0
            if int((there_M & ~held_out_M).sum()) < 2 or not bool((there_M & held_out_M).any()):
                raise FedrayError(f"no text needs slot {slot + 1} often enough: raise limit")
            fits.append(ridge(known_MI[there_M], flat_RO[index_M[there_M]], held_out_M[there_M]))
            shown.append((known_MI[there_M & held_out_M], flat_RO[index_M[there_M & held_out_M]].float()))
        down_IH, up_HO = low_rank(fits, self.config.hidden)
        parts = []
        for slot, (fit, (some_MI, true_MO), up_of_slot_HO) in enumerate(
            zip(fits, shown, up_HO.chunk(len(fits), dim=1), strict=True)
        ):
            made_MO = some_MI @ down_IH @ up_of_slot_HO * fit.spread_O
            sides = (self._written * 2, -1)
            wide_S, narrow_S = (_spread(outputs_MO, sides) for outputs_MO in (true_MO, made_MO))
            stretch_S = SPREAD * (wide_S / narrow_S.clamp(min=1e-6)).clamp(max=MOST)
            parts.append(up_of_slot_HO * stretch_S.repeat_interleave(len(fit.spread_O) // len(stretch_S)))
            self.center[slot].copy_(fit.mean_O.view_as(self.center[slot]))
        self.spread.copy_(torch.cat([fit.spread_O for fit in fits]))
        for layer, found in zip(self.net, (down_IH.T, torch.cat(parts, dim=1).T), strict=True):
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(_padded(found, layer.weight))
        counted = nn.functional.one_hot((index_MK >= 0).sum(1), index_MK.shape[1] + 1).float()
        assert self.needed is not None
        fit = ridge(known_MI, counted, held_out_M)
        self.needed.weight.copy_((fit.weight_IO * fit.spread_O).T)
        self.needed.bias.copy_(fit.mean_O)

    def standardized(self, slots_MKLF: Tensor) -> Tensor:
        """Scale what the net writes of slots to standard deviations: (M, outputs)."""
        return (slots_MKLF - self.center)[:, :, : self._written].flatten(1) / self.spread

    def loss(self, inputs_MI: Tensor, targets_MKLF: Tensor, there_MK: Tensor) -> Tensor:
        """The mean squared error of each token, (M,), in standard deviations; there_MK: slots that hold something."""
        made_MO = self.net((inputs_MI - self.shift) * self.scale)
        error_MO = (made_MO - self.standardized(targets_MKLF)).square()
        if bool(there_MK.all()):
            return error_MO.mean(1)
        error_MK = error_MO.unflatten(1, (self.config.slots, -1)).mean(2) * there_MK
        return error_MK.sum(1) / there_MK.sum(1).clamp(min=1)

    def translated(self, inputs_MI: Tensor) -> Tensor:
        """Translate tokens: (M, K, L, 2F)."""
        out_MO = self.net((inputs_MI - self.shift) * self.scale) * self.spread
        slots = self.config.slots
        changed_MKLF = out_MO.unflatten(1, (slots, self._written, -1))
        center_MKLF = self.center.expand(len(out_MO), -1, -1, -1)
        return torch.cat([changed_MKLF + center_MKLF[:, :, : self._written], center_MKLF[:, :, self._written :]], dim=2)

    def silent(self, inputs_MI: Tensor) -> Tensor:
        """Find the slots of tokens that a linear map leaves empty, (M, K): the last ones."""
        assert self.needed is not None
        slots_K = torch.arange(self.config.slots, device=inputs_MI.device)
        return slots_K >= self.needed((inputs_MI - self.shift) * self.scale).argmax(1, keepdim=True)

    def project_rows(self, keys: tuple[Tensor, ...], values: tuple[Tensor, ...], positions_BT: Tensor) -> Projection:
        batch, tokens = positions_BT.shape
        receiver, slots = self.config.receiver, self.config.slots
        inputs_MI = inputs_of(self.config, keys, values, positions_BT)
        heads = (batch, tokens * slots, receiver.layers, 2, receiver.kv_heads, receiver.head_dim)
        made = self.translated(inputs_MI).reshape(heads).permute(2, 3, 0, 4, 1, 5)  # (L, K|V, B, N, T, H)
        nothing = made.new_zeros(batch, receiver.kv_heads, tokens * slots)
        silent = self.silent(inputs_MI).view(batch, 1, -1) if self.linear else None
        return Projection(tuple(made[:, 0]), tuple(made[:, 1]), (nothing,) * receiver.layers, silent)

    def for_inference(self, mode: Compile | None = None) -> Fuser:
        return self


def _spread(outputs_MO: Tensor, sides: tuple[int, int]) -> Tensor:
    """Measure how widely tokens are spread in each layer's keys and values, (S,)."""
    return (outputs_MO - outputs_MO.mean(0)).unflatten(1, sides).square().sum((0, 2)).sqrt()


def _padded(matrix: Tensor, like: Tensor) -> Tensor:
    """Fill up to a rank that the training tokens did not reach."""
    return nn.functional.pad(matrix, (0, like.shape[1] - matrix.shape[1], 0, like.shape[0] - matrix.shape[0]))


def inputs_of(
    config: FuserConfig, keys: tuple[Tensor, ...], values: tuple[Tensor, ...], positions_BT: Tensor
) -> Tensor:
    """Gather what the net reads of every token, (B*T, inputs): its layers, and the first one of the token before.

    positions_BT: places within each row; there is none before where they do not count on.
    """
    read = DraftFuser.layers_read(config)
    sides = [side[layer].transpose(1, 2).flatten(2) for layer in read for side in (keys, values)]
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
