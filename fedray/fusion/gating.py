"""The gating network of each LLM: how much of each sender's cache it lets in, per input (FedRefine, section 4).

It reads the receiver's own prompt state and weighs its own cache against each sender: with logits z for {own, senders}
sender s gets w_s = p_s / (p_s + p_own) = sigmoid(z_s - z_own). So any subset of its senders may be present, the
receiver's own cache is an explicit choice, and a weight can close.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

GATES = ("learned", "open", "random", "none")


@dataclass(frozen=True, slots=True)
class GateConfig:
    """hidden: width of the receiver's prompt state; senders: names in the order of the weights."""

    receiver: str
    senders: tuple[str, ...]
    hidden: int
    operator: str
    units: int = 32
    sharpness: float = 10.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> GateConfig:
        return cls(**{**fields, "senders": tuple(fields["senders"])})


class Gate(nn.Module):
    """A small MLP on the state of the receiver's last prompt token."""

    def __init__(self, config: GateConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.hidden)
        self.units = nn.Linear(config.hidden, config.units)
        self.logits = nn.Linear(config.units, 1 + len(config.senders))

    def forward(self, state_BD: Tensor) -> Tensor:
        """Weights (B, S) in (0, 1), one per sender of the configuration."""
        z = self.logits(torch.nn.functional.gelu(self.units(self.norm(state_BD))))
        return torch.sigmoid(self.config.sharpness * (z[:, 1:] - z[:, :1]))

    def weigh(self, state_BD: Tensor, senders: tuple[str, ...], threshold: float) -> Tensor:
        """Weights (B, S) of the senders at hand; what lies under the threshold is 0 and need not be sent."""
        index = [self.config.senders.index(s) for s in senders]
        weights = self(state_BD)[:, index]
        return torch.where(weights < threshold, torch.zeros_like(weights), weights)


def fixed_weights(kind: str, batch: int, senders: int, seed: int) -> Tensor:
    """Weights (B, S) of the gates that learn nothing: `open` and `none` let all in, `random` half of them."""
    if kind in ("open", "none"):
        return torch.ones(batch, senders)
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(batch, senders, generator=generator) < 0.5).float()
    raise ValueError(f"gate {kind!r} is not one of the fixed ones")
