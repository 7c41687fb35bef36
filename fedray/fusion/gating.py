"""The gating network of each LLM: weights of the senders' caches, per input (FedRefine, section 4).

It reads the receiver's own prompt states and weighs its own cache against each sender: with logits z for {own, senders}
sender s gets w_s = p_s / (p_s + p_own) = sigmoid(z_s - z_own). So any subset of its senders may be present, the
receiver's own cache is an explicit choice, and a weight can be 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedray.llm.catalogue import slug
from fedray.schema import Schema
from fedray.types import FedrayError

_RANGES = {"hidden": (1, 1 << 20), "layer": (0, 1000), "queries": (1, 1024), "units": (1, 1 << 20)}


@dataclass(frozen=True, slots=True)
class GateConfig:
    """The configuration of a gate.

    receiver, senders: slugs of their names, senders in the order of the weights; hidden: width D of the receiver's
    hidden states; layer: after how many layers they are read (0: the embeddings); queries: number of learned queries;
    fuser: the kind of fusers it was trained for alone, None: any of its operator.
    """

    receiver: str
    senders: tuple[str, ...]
    hidden: int
    operator: str
    layer: int = 0
    queries: int = 4
    units: int = 32
    sharpness: float = 3.0
    fuser: str | None = None

    def __post_init__(self) -> None:
        """Validate sizes: what strangers describe must not take long to build. Raises FedrayError."""
        if not self.senders:
            raise FedrayError("a gate without senders")
        if not math.isfinite(self.sharpness):
            raise FedrayError("sharpness is no number")
        for name, (least, most) in _RANGES.items():
            if not least <= getattr(self, name) <= most:
                raise FedrayError(f"{name} is not from {least} to {most}")

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary, without a fuser where there is none, as before there was a choice."""
        return {key: value for key, value in asdict(self).items() if (key, value) != ("fuser", None)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> GateConfig:
        """Read what to_dict has written. Raises FedrayError: missing, unknown, of another type, out of range."""
        return _SCHEMA.read(fields)


_SCHEMA = Schema(GateConfig)


class GateNetwork(nn.Module):
    """Learned queries that attend over the receiver's prompt states, and a small MLP over what they find.

    Attention matters: one word of a prompt may tell who knows. With a mean over the prompt, or the last token's state,
    the gate overfits to the training questions.
    """

    def __init__(self, config: GateConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.hidden)
        self.queries = nn.Linear(config.hidden, config.queries, bias=False)
        self.units = nn.Linear(config.queries * config.hidden, config.units)
        self.logits = nn.Linear(config.units, 1 + len(config.senders))

    def forward(self, state_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        """Compute weights (B, S) in (0, 1), one per sender of the configuration; padding is masked."""
        normed_BTD = self.norm(state_BTD)
        scores_BTQ = self.queries(normed_BTD).masked_fill(~valid_BT[..., None], torch.finfo(state_BTD.dtype).min)
        found_BQD = torch.einsum("btq,btd->bqd", scores_BTQ.softmax(1), normed_BTD)
        z = self.logits(torch.nn.functional.gelu(self.units(found_BQD.flatten(1))))
        return torch.sigmoid(self.config.sharpness * (z[:, 1:] - z[:, :1]))

    def weigh(self, state_BTD: Tensor, valid_BT: Tensor, senders: tuple[str, ...], threshold: float) -> Tensor:
        """Compute weights (B, S) of the senders at hand; below the threshold they are 0 and nothing need be sent."""
        weights_BS = self(state_BTD, valid_BT)[:, [self.config.senders.index(slug(s)) for s in senders]]
        return weights_BS.masked_fill(weights_BS < threshold, 0.0)


def fixed_weights(kind: str, batch: int, senders: int, seed: int) -> Tensor:
    """Compute weights (B, S) of the fixed gates: 1 for `open` and `none`, 0 or 1 at random for `random`."""
    if kind in ("open", "none") or senders == 0:
        return torch.ones(batch, senders)
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(batch, senders, generator=generator) < 0.5).float()
    raise ValueError(f"gate {kind!r} is not one of the fixed ones")
