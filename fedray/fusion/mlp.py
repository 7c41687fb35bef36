"""The case study's fuser: a three-layer MLP per receiver layer, for both operators (FedRefine, arXiv 2603.28772).

Shape legend: B batch, N kv heads, T tokens, H head dim, L layers, F = N*H features, G groups (one per layer and K|V).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.fusion.compiled import compiled
from fedray.fusion.fuser import Changes, Fuser, FuserConfig, Projection, Sides, only
from fedray.llm.cache import KVCache
from fedray.llm.products import LARGE
from fedray.methods.method import Compile
from fedray.types import Layers


class MLPFuser(Fuser):
    """A three-layer MLP per receiver layer for K and for V, with a weight per token and head.

    All layers run as one grouped product. The weight may silence what the sender does not know: in `concat` its
    logarithm is added to the attention scores of the token, in `mix` it interpolates between own and projected, and is
    read from both caches there.
    """

    SHARPNESS = 10.0  # the weight's logit is scaled by it, so that it can close

    def __init__(self, config: FuserConfig) -> None:
        super().__init__(config)
        source, target = config.features
        groups, hidden, heads = 2 * config.receiver.layers, config.hidden, config.receiver.kv_heads
        self.shift = nn.Buffer(torch.zeros(groups, 1, source))
        self.scale = nn.Buffer(torch.ones(groups, 1, source))
        self.first = GroupedLinear(groups, source, hidden)
        self.second = GroupedLinear(groups, hidden, hidden)
        self.third = GroupedLinear(groups, hidden, target)
        weighed = groups if config.operator == "mix" else config.receiver.layers
        self.weight = GroupedLinear(weighed, hidden, heads)
        self.own_weight = GroupedLinear(groups, target, heads) if config.operator == "mix" else None

    @torch.no_grad()
    def fit_inputs(self, sample: Callable[[], KVCache]) -> None:
        """Standardize the inputs: set shift and scale so that every feature has unit variance."""
        cache = sample()
        x = self._stack(cache.keys, cache.values, self.layers).float()

        self.shift.copy_(x.mean(1, keepdim=True))
        self.scale.copy_(1.0 / x.std(1, keepdim=True).clamp(min=1e-3))

    def compile_with(self, mode: Compile) -> None:
        for module in self.modules():
            if isinstance(module, GroupedLinear):
                module.grouped = True
        self._projected, self._changed = compiled(self._projected, mode), compiled(self._changed, mode)

    def _hidden(self, x_GMF: Tensor) -> Tensor:
        return F.gelu(self.second(F.gelu(self.first((x_GMF - self.shift) * self.scale))))

    def _projected(self, sent_GMF: Tensor) -> tuple[Tensor, ...]:
        """Project the sender's tokens: (G, M, N*H), and the logarithms of their weights, (L, M, N)."""
        hidden = self._hidden(sent_GMF)
        logits = self.weight(hidden[: self.config.receiver.layers])
        return self.third(hidden), F.logsigmoid(self.SHARPNESS * logits + 2.0)

    def _changed(self, sent_GMF: Tensor, own_GMF: Tensor) -> tuple[Tensor, ...]:
        """Compute the changes to the receiver's tokens, (G, M, N*H)."""
        assert self.own_weight is not None, "a concat fuser cannot mix"
        hidden = self._hidden(sent_GMF)
        weight_GMN = torch.sigmoid(self.weight(hidden) + self.own_weight(own_GMF))
        change = (self.third(hidden) - own_GMF).unflatten(-1, (self.config.receiver.kv_heads, -1))
        return ((weight_GMN[..., None] * change).flatten(-2),)

    def _unstack(self, x_GMF: Tensor, batch: int) -> Tensor:
        """Split tokens and heads: (G, B*T, N*H) -> (G, B, N, T, H)."""
        heads = self.config.receiver.kv_heads
        return x_GMF.unflatten(1, (batch, -1)).unflatten(-1, (heads, -1)).transpose(2, 3)

    def project(self, keys: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> Projection:
        batch, layers = keys[0].shape[0], self.config.receiver.layers
        projected, weights = (self._unstack(x, batch) for x in self._projected(self._stack(keys, values, self.layers)))
        return Projection(tuple(projected[:layers]), tuple(projected[layers:]), tuple(weights[..., 0]))

    def mix(self, own: Sides, sent: Sides, layers: Layers | None = None) -> Changes:
        batch, depth = own[0][0].shape[0], self.config.receiver.layers
        (changed,) = self._changed(self._stack(*sent, self.layers), self._stack(*own, list(range(depth))))
        change = self._unstack(changed, batch)
        return only((tuple(change[:depth]), tuple(change[depth:])), self.reached(layers))

    def weights(self, own: Sides, sent: Sides) -> Tensor:
        if self.own_weight is None:
            return torch.stack(self.project(*sent).log_weights).exp()[None]
        batch, layers = own[0][0].shape[0], self.config.receiver.layers
        hidden = self._hidden(self._stack(*sent, self.layers))
        logits = self.weight(hidden) + self.own_weight(self._stack(*own, list(range(layers))))
        return torch.sigmoid(self._unstack(logits, batch)[..., 0]).unflatten(0, (2, layers))


class GroupedLinear(nn.Module):
    """G independent linear maps: (G, M, in) -> (G, M, out), as one batched product or one after the other."""

    grouped: bool | None = None  # None leaves it to the device and the size

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(inputs)
        self.kernel = nn.Parameter(torch.empty(groups, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(groups, 1, outputs))

    def forward(self, x_GMI: Tensor) -> Tensor:
        grouped = in_groups(x_GMI.device, self.kernel[0].numel()) if self.grouped is None else self.grouped
        if grouped or torch.is_grad_enabled():
            return torch.baddbmm(self.bias, x_GMI, self.kernel)
        out_GMO = x_GMI.new_empty(*x_GMI.shape[:2], self.kernel.shape[-1])
        for bias, x, kernel, out in zip(self.bias, x_GMI, self.kernel, out_GMO, strict=True):
            torch.addmm(bias, x, kernel, out=out)
        return out_GMO


def in_groups(device: torch.device, numbers: int) -> bool:
    """Check whether many products with matrices of so many numbers run faster as one batched product.

    On a GPU they do. On a CPU separate products are faster, but for the smallest (docs/log.md).
    """
    return device.type != "cpu" or numbers < LARGE
