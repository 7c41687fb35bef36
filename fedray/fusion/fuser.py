"""Fusers: the learned maps F_ij from a sender's cache space into a receiver's (FedRefine, arXiv 2603.28772, Eq. 1).

Two kinds, one class each. `MLPFuser` is the case study's three-layer MLP per receiver layer, for both operators;
`C2CFuser` is Cache-to-Cache as published (arXiv 2510.03215), for `mix` only.
Shape legend: B batch, N kv heads, T tokens, H head dim, L layers, F = N*H features, G groups (one per layer and K|V).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.fusion.compiled import compiled
from fedray.fusion.norms import Norms
from fedray.llm.alignment import LAYER_ALIGNMENTS, TOKEN_ALIGNMENTS, align_layers
from fedray.llm.products import LARGE, pack_matrices
from fedray.schema import Schema
from fedray.types import Compile, FedrayError, KVSpec, Layers

OPERATORS = ("concat", "mix")
KINDS = {"mlp": OPERATORS, "c2c": ("mix",)}  # and the operators of each
# More than any LLM or fuser has
MOST = {
    "layers": 512,
    "kv_heads": 1024,
    "head_dim": 1024,
    "hidden": 1 << 20,
    "intermediate": 1 << 20,
    "num_layers": 16,
}
Sides = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]  # keys and values of every layer, (B, N, T, H) each
Changes = tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]  # to Sides; None where nothing changes
Reached = tuple[tuple[bool, ...], tuple[bool, ...]]  # whose keys, and whose values, per receiver layer


@dataclass(frozen=True, slots=True)
class FuserConfig:
    """What a fuser is: enough to build it again. reads: "sender", or "both" caches (then it runs at the receiver)."""

    kind: str
    operator: str
    sender: KVSpec
    receiver: KVSpec
    hidden: int = 128
    intermediate: int = 128  # c2c only
    num_layers: int = 3  # c2c only: blocks plus input and output
    layer_alignment: str = "bottom_up"
    token_alignment: str = "assembled"  # mix only: one of TOKEN_ALIGNMENTS

    def __post_init__(self) -> None:
        """Validate names and sizes: what strangers describe must not take long to build. Raises FedrayError."""
        for what, name, names in (
            ("fuser", self.kind, KINDS),
            ("layer alignment", self.layer_alignment, LAYER_ALIGNMENTS),
            ("token alignment", self.token_alignment, TOKEN_ALIGNMENTS),
        ):
            if name not in names:
                raise FedrayError(f"{what} {name!r}; choose one of {', '.join(names)}")
        if self.operator not in KINDS[self.kind]:
            raise FedrayError(f"fuser={self.kind} with fusion={self.operator!r}; choose fusion={KINDS[self.kind][-1]}")
        sizes = {name: getattr(self, name) for name in ("hidden", "intermediate", "num_layers")}
        for side, spec in (("sender", self.sender), ("receiver", self.receiver)):
            sizes |= {f"{side}.{name}": size for name, size in asdict(spec).items()}
        for name, size in sizes.items():
            most = MOST[name.rpartition(".")[2]]
            if not 1 <= size <= most:
                raise FedrayError(f"{name} is not from 1 to {most}")

    @property
    def reads(self) -> str:
        return "sender" if self.operator == "concat" else "both"

    def to_dict(self) -> dict[str, Any]:
        """Its fields; a token alignment that is the usual one is left out, as before there was another."""
        fields = asdict(self)
        if self.token_alignment == "assembled":
            del fields["token_alignment"]
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> FuserConfig:
        """Read what to_dict has written. Raises FedrayError: missing, unknown, of another type, out of range."""
        return _SCHEMA.read(fields)


_SCHEMA = Schema(FuserConfig)


@dataclass(frozen=True, slots=True)
class Projection:
    """A sender's cache in the receiver's space, one entry per receiver layer.

    keys, values: (B, N, T, H); log_weights: (B, N, T), 0 is full weight, very negative is silence.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    log_weights: tuple[Tensor, ...]


class Fuser(nn.Module):
    """A fuser of either kind. `concat` uses project(), `mix` uses mix().

    norms: the range of the caches it was trained on, where its training has left one.
    """

    norms: Norms | None = None

    def __init__(self, config: FuserConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = align_layers(config.sender.layers, config.receiver.layers, config.layer_alignment)

    def project(self, keys: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> Projection:
        """Sender layers (B, N, T, H) -> the same tokens in the receiver's space."""
        raise NotImplementedError

    def mix(self, own: Sides, sent: Sides, layers: Layers | None = None) -> Changes:
        """Changes (new minus own) to the receiver's keys and values, from sender layers aligned to its tokens.

        layers: the sender's that came, None is all; what would read another does not change.
        """
        raise NotImplementedError

    def reached(self, layers: Layers | None) -> Reached:
        """What a receiver layer reads of these sender's layers, None is all."""
        if layers is None:
            return (True,) * len(self.layers), (True,) * len(self.layers)
        keys, values = (tuple(s in side for s in self.layers) for side in map(frozenset, layers))
        return keys, values

    def weights(self, own: Sides, sent: Sides) -> Tensor:
        """How much of every token is let in, from 0 to 1: (R, L, B, N, T), R = 1 in `concat`, K and V apart in `mix`.

        own, sent: as in mix(); `concat` reads the sender's alone.
        """
        raise NotImplementedError

    def for_inference(self, mode: Compile | None = None) -> Fuser:
        """This fuser, ready for requests: compiled, or with its large matrices laid out for a CPU (llm/products.py).

        torch compiles at the first call, so that is made here, which takes seconds to minutes; for reduce-overhead,
        where every number of tokens has its own, at the first request of each.
        """
        if mode is None:
            pack_matrices(self)
            return self
        self.compile_with(mode)
        if mode != "reduce-overhead":
            self._rehearse()
        return self

    def compile_with(self, mode: Compile) -> None:
        """Have project() or mix() compute by torch.compile in one of its modes, all layers in groups."""
        raise NotImplementedError

    @torch.no_grad()
    def _rehearse(self, tokens: int = 7) -> None:
        """Run once, on zeros."""
        like = next(self.parameters())
        sent_layers, own_layers = (
            (like.new_zeros(1, spec.kv_heads, tokens, spec.head_dim),) * spec.layers
            for spec in (self.config.sender, self.config.receiver)
        )
        sent, own = (sent_layers, sent_layers), (own_layers, own_layers)
        if self.config.operator == "concat":
            self.project(*sent)
        else:
            self.mix(own, sent)

    def _stack(self, keys: tuple[Tensor, ...], values: tuple[Tensor, ...], layers: list[int]) -> Tensor:
        """Chosen layers as groups: K of every layer, then V: (G, B*T, F)."""
        stacked = torch.stack([tensors[t] for tensors in (keys, values) for t in layers])
        return stacked.transpose(2, 3).flatten(3).flatten(1, 2)


class MLPFuser(Fuser):
    """A three-layer MLP per receiver layer for K and for V, with a weight per token and head.

    All layers run as one grouped product. The weight may silence what the sender does not know: in `concat` its
    logarithm is added to the attention scores of the token, in `mix` it interpolates between own and projected, and is
    read from both caches there.
    """

    SHARPNESS = 10.0  # the weight's logit is scaled by it, so that it can close

    def __init__(self, config: FuserConfig) -> None:
        super().__init__(config)
        source, target = (
            config.sender.kv_heads * config.sender.head_dim,
            config.receiver.kv_heads * config.receiver.head_dim,
        )
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
    def standardize(self, keys: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> None:
        """Set the input shift and scale from sample caches, so that every feature enters with unit variance."""
        x = self._stack(keys, values, self.layers).float()
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
        """The sender's tokens in the receiver's space, (G, M, N*H), and the logarithms of their weights, (L, M, N)."""
        hidden = self._hidden(sent_GMF)
        logits = self.weight(hidden[: self.config.receiver.layers])
        return self.third(hidden), F.logsigmoid(self.SHARPNESS * logits + 2.0)

    def _changed(self, sent_GMF: Tensor, own_GMF: Tensor) -> tuple[Tensor, ...]:
        """What the receiver's tokens change by, (G, M, N*H)."""
        assert self.own_weight is not None, "a concat fuser cannot mix"
        hidden = self._hidden(sent_GMF)
        weight_GMN = torch.sigmoid(self.weight(hidden) + self.own_weight(own_GMF))
        change = (self.third(hidden) - own_GMF).unflatten(-1, (self.config.receiver.kv_heads, -1))
        return ((weight_GMN[..., None] * change).flatten(-2),)

    def _unstack(self, x_GMF: Tensor, batch: int) -> Tensor:
        """(G, B*T, N*H) -> (G, B, N, T, H)."""
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


def only(changes: Changes, wanted: Reached) -> Changes:
    """Those changes that are wanted, layer by layer of keys and of values."""
    keys, values = (
        tuple(change if keep else None for change, keep in zip(*side, strict=True))
        for side in zip(changes, wanted, strict=True)
    )
    return keys, values


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
    """Whether many products with matrices of so many numbers run faster as one batched product.

    On a GPU they do. On a CPU a product of its own is faster, but for the smallest (docs/log.md).
    """
    return device.type != "cpu" or numbers < LARGE


def build_fuser(config: FuserConfig) -> Fuser:
    """An untrained fuser of the kind its configuration names."""
    from fedray.fusion.c2c import C2CFuser

    kinds: dict[str, type[Fuser]] = {"mlp": MLPFuser, "c2c": C2CFuser}
    return kinds[config.kind](config)
