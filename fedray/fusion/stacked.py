"""Batch the published fuser's layers into a few grouped products, for GPUs and torch.compile.

Layer by layer it takes 504 small products (28 layers), whose launches take a GPU longer than the products.
Shape legend: G groups (open gates: a layer's keys or its values), M tokens of all rows, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.fusion.compiled import compiled
from fedray.fusion.fuser import Changes, Sides
from fedray.llm.cache import stacked
from fedray.methods.method import Compile

SIDES = ("key", "value")
EPS = 1e-6  # of RMSNorm, as published


class Stacked(nn.Module):
    """The open layers' parameters, stacked; the layers' own become views of them, so that nothing is stored twice.

    Built once for a fuser at inference: reading the gates synchronizes with the device. A module, so that torch.compile
    takes the tensors as static: a CUDA graph does not copy them.
    """

    def __init__(self, layers: Sequence[int], projectors: Sequence[Any], mode: Compile | None = None) -> None:
        """layers: per receiver layer the sender layer it reads; mode: of torch.compile."""
        super().__init__()
        self._layers = layers
        self._groups = [(side, t) for side, x in enumerate(SIDES) for t, p in enumerate(projectors) if p.is_open(x)]
        named = [
            {name.removeprefix(f"{SIDES[side]}_"): parameter for name, parameter in projectors[t].named_parameters()}
            for side, t in self._groups
        ]
        self._weights: dict[str, Tensor] = {}
        for name in (n for n in (named[0] if named else ()) if not n.startswith((*SIDES, "gate_logit"))):
            stacked = torch.stack([parameters[name].data for parameters in named])
            for parameters, view in zip(named, stacked, strict=True):
                parameters[name].data = view
            self._weights[name] = stacked
        if mode is not None:
            self._changed = compiled(self._changed, mode)

    def mix(self, own: Sides, sent: Sides) -> Changes:
        """Compute C2CFuser.mix."""
        changes: list[list[Tensor | None]] = [[None] * len(own[0]) for _ in SIDES]
        if self._groups:
            batch, heads = own[0][0].shape[:2]
            # 1. features of both caches, heads flattened per token
            (changed,) = self._changed(self._features(own, sent).flatten(1, 2))
            changed_GBNTH = changed.unflatten(1, (batch, -1)).unflatten(-1, (heads, -1)).transpose(2, 3)
            for (side, t), change_BNTH in zip(self._groups, changed_GBNTH, strict=True):
                changes[side][t] = change_BNTH
        return tuple(changes[0]), tuple(changes[1])

    def _features(self, own: Sides, sent: Sides) -> Tensor:
        """(G, B, T, F): the sender's numbers of a token, then the receiver's, each copied once."""
        batch, _, tokens, _ = own[0][0].shape
        widths = [of[0][0].shape[1] * of[0][0].shape[3] for of in (sent, own)]
        features = own[0][0].new_empty(len(self._groups), batch, tokens, sum(widths))
        for side in range(len(SIDES)):
            groups = [group for group, (of, _) in enumerate(self._groups) if of == side]
            if groups:
                layers = [self._groups[group][1] for group in groups]
                theirs = stacked([sent[side][self._layers[t]] for t in layers])
                mine = stacked([own[side][t] for t in layers])
                places = features[groups[0] : groups[-1] + 1].split(widths, dim=-1)
                for place, numbers_GBNTH in zip(places, (theirs, mine), strict=True):
                    numbers_GBTNH = numbers_GBNTH.transpose(2, 3)
                    place.unflatten(-1, numbers_GBTNH.shape[3:]).copy_(numbers_GBTNH)
        return features

    def _changed(self, features_GMF: Tensor) -> tuple[Tensor, ...]:
        """Compute the changes, (G, M, N*H)."""
        # 2. shared trunk
        trunk = self._blocks("mlp1", self._linear("in", features_GMF))
        # 3. projection into the receiver's space
        projected = self._linear("proj_out", self._blocks("proj_mlp2", trunk))
        # 4. dynamic weight per token and head; 5. the gates of all these groups are open
        weight_GMN = torch.sigmoid(self._linear("scalar_head", self._blocks("scalar_mlp2", trunk)))
        return ((weight_GMN[..., None] * projected.unflatten(-1, (weight_GMN.shape[-1], -1))).flatten(-2),)

    def _linear(self, name: str, x_GMI: Tensor) -> Tensor:
        bias, weight_GOI = self._weights[f"{name}.bias"], self._weights[f"{name}.weight"]
        return torch.baddbmm(bias[:, None], x_GMI, weight_GOI.mT)

    def _blocks(self, name: str, x: Tensor) -> Tensor:
        index = 0
        while (block := f"{name}.blocks.{index}") + ".w1.weight" in self._weights:
            normed = F.rms_norm(x, x.shape[-1:], None, EPS) * self._weights[f"{block}.norm.weight"][:, None]
            inner = F.gelu(torch.bmm(normed, self._weights[f"{block}.w1.weight"].mT))
            x = torch.baddbmm(x, inner, self._weights[f"{block}.w2.weight"].mT)
            index += 1
        return x
