"""Cache-to-Cache as published (arXiv 2510.03215, section 3.3): one projector per receiver layer, K and V apart.

Parameter names follow the published checkpoints, so that a state dict of theirs loads strictly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.fusion.fuser import Changes, Fuser, FuserConfig, Reached, Sides, only
from fedray.fusion.mlp import in_groups
from fedray.fusion.stacked import EPS, Stacked
from fedray.methods.method import Compile
from fedray.types import Layers

DROPOUT = 0.1
T0, T1 = 1.0, 0.001  # temperature of the gates before and after training


class RMSNorm(nn.RMSNorm):
    """RMSNorm in the precision of its input, also where autocast leaves the weight in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class ResidualMLP(nn.Module):
    """x + Dropout(W2 GELU(W1 RMSNorm(x)))."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.norm = RMSNorm(hidden, eps=EPS)
        self.w1 = nn.Linear(hidden, intermediate, bias=False)
        self.w2 = nn.Linear(intermediate, hidden, bias=False)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.w2(F.gelu(self.w1(self.norm(x)))))


class Blocks(nn.Module):
    """Residual MLPs one after the other, named as in the published checkpoints."""

    def __init__(self, count: int, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualMLP(hidden, intermediate) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class C2CProjector(nn.Module):
    """One receiver layer's projector: reads both caches, returns the change to the receiver's keys and values."""

    def __init__(self, config: FuserConfig) -> None:
        super().__init__()
        hidden, intermediate, heads = config.hidden, config.intermediate, config.receiver.kv_heads
        source, target = config.features
        for x in ("key", "value"):
            setattr(self, f"{x}_gate_logit", nn.Parameter(torch.zeros(())))
            setattr(self, f"{x}_in", nn.Linear(source + target, hidden))
            setattr(self, f"{x}_mlp1", Blocks(1, hidden, intermediate))
            setattr(self, f"{x}_scalar_mlp2", Blocks(1, hidden, hidden))
            setattr(self, f"{x}_scalar_head", nn.Linear(hidden, heads))
            setattr(self, f"{x}_proj_mlp2", Blocks(config.num_layers - 2, hidden, intermediate))
            setattr(self, f"{x}_proj_out", nn.Linear(hidden, target))
        self.gate_temperature = nn.Buffer(torch.tensor(1.0))

    def forward(
        self, sent_key: Tensor, sent_value: Tensor, own_key: Tensor, own_value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the changes to (own_key, own_value), whatever their gates are; all (B, N, T, H)."""
        return self.change("key", sent_key, own_key), self.change("value", sent_value, own_value)

    def is_open(self, x: str) -> bool:
        """Check whether the gate of "key" or "value" is open at inference. Synchronizes with the device."""
        return bool(getattr(self, f"{x}_gate_logit") > 0)

    def weights(
        self, sent_key: Tensor, sent_value: Tensor, own_key: Tensor, own_value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute gate times dynamic weight, (B, N, T), of keys and of values."""
        both = (("key", sent_key, own_key), ("value", sent_value, own_value))
        key, value = (self._weight(x, self._trunk(x, sent, own))[..., 0] for x, sent, own in both)
        return key, value

    def change(self, x: str, sent_BNTH: Tensor, own_BNTH: Tensor) -> Tensor:
        """Compute the change to "key" or "value" of this layer."""
        trunk = self._trunk(x, sent_BNTH, own_BNTH)
        # 3. projection into the receiver's space
        projected = getattr(self, f"{x}_proj_out")(getattr(self, f"{x}_proj_mlp2")(trunk))
        projected = projected.unflatten(-1, (own_BNTH.shape[1], -1)).transpose(1, 2)
        return self._weight(x, trunk) * projected

    def _trunk(self, x: str, sent_BNTH: Tensor, own_BNTH: Tensor) -> Tensor:
        # 1. features of both caches, heads flattened per token
        features = torch.cat([_flat(sent_BNTH), _flat(own_BNTH)], dim=-1)
        # 2. shared trunk
        return getattr(self, f"{x}_mlp1")(getattr(self, f"{x}_in")(features))

    def _weight(self, x: str, trunk: Tensor) -> Tensor:
        # 4. dynamic weight per token and head
        weight = torch.sigmoid(getattr(self, f"{x}_scalar_head")(getattr(self, f"{x}_scalar_mlp2")(trunk)))
        weight_BNT1 = weight.transpose(1, 2)[..., None]
        # 5. gate, one logit per layer: Gumbel-sigmoid in training, hard at inference
        return self._gate(getattr(self, f"{x}_gate_logit"), weight_BNT1) * weight_BNT1

    def _gate(self, logit: Tensor, like_BNT1: Tensor) -> Tensor:
        if not self.training:
            return (logit > 0).to(like_BNT1.dtype)
        uniform = torch.rand_like(like_BNT1).clamp(1e-8, 1 - 1e-8)
        gumbel = -torch.log(-torch.log(uniform))
        return torch.sigmoid((logit + gumbel) / self.gate_temperature)


class C2CFuser(Fuser):
    """The published fuser over all receiver layers. Untrained it is the identity at inference.

    At inference closed gates cost nothing. The open ones run layer by layer on a CPU and in groups on a GPU
    (fusion/stacked.py); grouped says which, None leaves it to the device and the size. Compiled, they run in groups.
    """

    default_layers = "last_aligned"
    grouped: bool | None = None
    _mode: Compile | None = None

    def __init__(self, config: FuserConfig) -> None:
        super().__init__(config)
        self.projectors = nn.ModuleList(C2CProjector(config) for _ in range(config.receiver.layers))
        self._largest = config.hidden * max(config.hidden, config.intermediate, sum(config.features))
        self._stacked: Stacked | None = None

    def train(self, mode: bool = True) -> C2CFuser:
        self._stacked = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> C2CFuser:
        self._stacked = None  # parameters move, or change their precision
        return super()._apply(*args, **kwargs)

    def compile_with(self, mode: Compile) -> None:
        self.grouped, self._mode, self._stacked = True, mode, None

    def mix(self, own: Sides, sent: Sides, layers: Layers | None = None) -> Changes:
        reached = self.reached(layers)
        if self.training:
            return self._by_layer(own, sent, reached, lambda projector, x: True)
        grouped = in_groups(own[0][0].device, self._largest) if self.grouped is None else self.grouped
        if torch.is_grad_enabled() or not grouped:
            return self._by_layer(own, sent, reached, C2CProjector.is_open)
        if self._stacked is None:
            self._stacked = Stacked(self.layers, list(self.projectors), self._mode)
        return only(self._stacked.mix(own, sent), reached)

    def _by_layer(
        self, own: Sides, sent: Sides, reached: Reached, wanted: Callable[[C2CProjector, str], bool]
    ) -> Changes:
        keys, values = (
            tuple(
                projector.change(x, sent[side][s], own[side][t])  # pyright: ignore
                if reached[side][t] and wanted(projector, x)  # pyright: ignore
                else None
                for t, (s, projector) in enumerate(zip(self.layers, self.projectors, strict=True))
            )
            for side, x in enumerate(("key", "value"))
        )
        return keys, values

    def weights(self, own: Sides, sent: Sides) -> Tensor:
        layers = [
            torch.stack(projector.weights(sent[0][s], sent[1][s], own[0][t], own[1][t]))  # pyright: ignore
            for t, (s, projector) in enumerate(zip(self.layers, self.projectors, strict=True))
        ]
        return torch.stack(layers, dim=1)

    @classmethod
    def gate_of(cls, layer: int, side: str) -> str:
        return f"projectors.{layer}.{side}_gate_logit"

    def on_step(self, progress: float) -> None:
        """Anneal the gates' temperature, T0 (T1/T0)^progress."""
        for projector in self.projectors:
            projector.gate_temperature.fill_(T0 * (T1 / T0) ** min(progress, 1.0))  # pyright: ignore


def _flat(tensor_BNTH: Tensor) -> Tensor:
    return tensor_BNTH.transpose(1, 2).flatten(2)
