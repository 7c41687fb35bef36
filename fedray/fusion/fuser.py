"""Fusers: the learned maps F_ij from a sender's cache space into a receiver's (FedRefine, arXiv 2603.28772, Eq. 1).

One class each: `MLPFuser` (mlp.py) is the case study's three-layer MLP per receiver layer, for both operators;
`C2CFuser` (c2c.py) is Cache-to-Cache as published (arXiv 2510.03215), for `mix` only; `DraftFuser` (draft.py)
translates drafts, `IdentityFuser` (identity.py) takes caches as they are.
Shape legend: B batch, N kv heads, T tokens, H head dim, L layers, F = N*H features, G groups (one per layer and K|V).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedray.fusion.norms import Norms
from fedray.llm.alignment import LAYER_ALIGNMENTS, TOKEN_ALIGNMENTS, align_layers
from fedray.llm.cache import KVCache
from fedray.llm.products import pack_matrices
from fedray.methods.method import Compile
from fedray.methods.parts import FUSERS
from fedray.schema import Schema
from fedray.types import FedrayError, KVSpec, Layers

# More than any LLM or fuser has
MOST = {
    "layers": 512,
    "kv_heads": 1024,
    "head_dim": 1024,
    "hidden": 1 << 20,
    "intermediate": 1 << 20,
    "num_layers": 16,
    "slots": 16,
}
ROTARY = ("kept", "removed")
TOKENS = ("prompt", "text", "draft")  # all of the prompt, the user's text of it, or what the sender answers to it
Sides = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]  # keys and values of every layer, (B, N, T, H) each
Changes = tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]  # to Sides; None where nothing changes
Reached = tuple[tuple[bool, ...], tuple[bool, ...]]  # whose keys, and whose values, per receiver layer


@dataclass(frozen=True, slots=True)
class FuserConfig:
    """The configuration of a fuser. reads: "sender", or "both" caches (then it runs at the receiver).

    rotary: whether keys are "kept" as the sender has rotated them, or "removed": then the receiver rotates what comes
    out to where it stands. tokens: what the sender sends, one of TOKENS.
    """

    kind: str
    operator: str
    sender: KVSpec
    receiver: KVSpec
    hidden: int = 128
    intermediate: int = 128  # c2c only
    num_layers: int = 3  # c2c only: blocks plus input and output
    layer_alignment: str = "bottom_up"
    token_alignment: str = "assembled"  # mix only: one of TOKEN_ALIGNMENTS
    rotary: str = "kept"
    tokens: str = "prompt"
    slots: int = 1  # of the receiver for every token of a draft

    def __post_init__(self) -> None:
        """Validate names and sizes: what strangers describe must not take long to build. Raises FedrayError."""
        for what, name, names in (
            ("fuser", self.kind, FUSERS),
            ("layer alignment", self.layer_alignment, LAYER_ALIGNMENTS),
            ("token alignment", self.token_alignment, TOKEN_ALIGNMENTS),
            ("rotary", self.rotary, ROTARY),
            ("tokens", self.tokens, TOKENS),
        ):
            if name not in names:
                raise FedrayError(f"{what} {name!r}; choose one of {', '.join(names)}")
        operators = FUSERS[self.kind].operators
        if self.operator not in operators:
            raise FedrayError(f"fuser={self.kind} with fusion={self.operator!r}; choose fusion={operators[-1]}")
        sizes = {name: getattr(self, name) for name in ("hidden", "intermediate", "num_layers", "slots")}
        for side, spec in (("sender", self.sender), ("receiver", self.receiver)):
            sizes |= {f"{side}.{name}": size for name, size in asdict(spec).items()}
        for name, size in sizes.items():
            most = MOST[name.rpartition(".")[2]]
            if not 1 <= size <= most:
                raise FedrayError(f"{name} is not from 1 to {most}")

    @property
    def reads(self) -> str:
        return "sender" if self.operator == "concat" else "both"

    @property
    def features(self) -> tuple[int, int]:
        """F of the sender and of the receiver."""
        return self.sender.kv_heads * self.sender.head_dim, self.receiver.kv_heads * self.receiver.head_dim

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary, without what is as it was before there was a choice."""
        fields = asdict(self)
        for name, before in (("token_alignment", "assembled"), ("rotary", "kept"), ("tokens", "prompt"), ("slots", 1)):
            if fields[name] == before:
                del fields[name]
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> FuserConfig:
        """Read what to_dict has written. Raises FedrayError: missing, unknown, of another type, out of range."""
        return _SCHEMA.read(fields)


_SCHEMA = Schema(FuserConfig)


@dataclass(frozen=True, slots=True)
class Projection:
    """A sender's cache in the receiver's space, one entry per receiver layer.

    keys, values: (B, N, T, H); log_weights: (B, N, T), 0 is full weight, very negative is silence. silent_B1T: slots
    that hold nothing, and are no place in the message; None: each holds something.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    log_weights: tuple[Tensor, ...]
    silent_B1T: Tensor | None = None


class Fuser(nn.Module):
    """The base class of fusers. `concat` uses project(), `mix` uses mix().

    norms: the range of the caches it was trained on, where its training has recorded one. default_layers: the default
    layer alignment of its training; reading: the fields of its configuration that say what it reads, where they differ
    from their defaults.
    """

    norms: Norms | None = None
    default_layers: ClassVar[str] = "bottom_up"
    reading: ClassVar[Mapping[str, str]] = {}

    def __init__(self, config: FuserConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = align_layers(config.sender.layers, config.receiver.layers, config.layer_alignment)

    def project(self, keys: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> Projection:
        """Project sender layers (B, N, T, H) into the receiver's space."""
        raise NotImplementedError

    def project_rows(self, keys: tuple[Tensor, ...], values: tuple[Tensor, ...], positions_BT: Tensor) -> Projection:
        """Project as `project` does, for fusers that need to know where rows begin: at positions of 0."""
        return self.project(keys, values)

    @classmethod
    def layers_read(cls, config: FuserConfig) -> tuple[int, ...]:
        """Find the sender's layers that are read where every gate is open, in ascending order."""
        return tuple(sorted(set(align_layers(config.sender.layers, config.receiver.layers, config.layer_alignment))))

    def mix(self, own: Sides, sent: Sides, layers: Layers | None = None) -> Changes:
        """Compute changes (new minus own) to the receiver's keys and values, from sender layers aligned to its tokens.

        layers: the sender's that came, None is all; what would read another does not change.
        """
        raise NotImplementedError

    def reached(self, layers: Layers | None) -> Reached:
        """Find the receiver layers whose sender layers are among these, None is all."""
        if layers is None:
            return (True,) * len(self.layers), (True,) * len(self.layers)
        keys, values = (tuple(s in side for s in self.layers) for side in map(frozenset, layers))
        return keys, values

    @classmethod
    def gate_of(cls, layer: int, side: str) -> str | None:
        """Name the parameter that at inference gates the keys or values of a receiver layer; None: there is none."""
        return None

    def fit_inputs(self, sample: Callable[[], KVCache]) -> None:
        """Fit an untrained fuser to the senders' caches. sample: draws some."""

    def on_step(self, progress: float) -> None:
        """Update what depends on the training step. progress: the share of all steps that is done, in [0, 1]."""

    def weights(self, own: Sides, sent: Sides) -> Tensor:
        """Compute the weight of every token, from 0 to 1: (R, L, B, N, T), R = 1 in `concat`, K and V apart in `mix`.

        own, sent: as in mix(); `concat` reads the sender's alone.
        """
        raise NotImplementedError

    def for_inference(self, mode: Compile | None = None) -> Fuser:
        """Prepare the fuser for requests: compile it, or prepack its large matrices for a CPU (llm/products.py).

        torch compiles at the first call, which is made here and takes seconds to minutes; reduce-overhead compiles for
        every number of tokens, at the first request of each.
        """
        if mode is None:
            pack_matrices(self)
            return self
        self.compile_with(mode)
        if mode != "reduce-overhead":
            self._warm_up()
        return self

    def compile_with(self, mode: Compile) -> None:
        """Compile project() or mix() in one of torch's modes, all layers in groups."""
        raise NotImplementedError

    @torch.no_grad()
    def _warm_up(self) -> None:
        """Run once, on zeros."""
        like = next(self.parameters())
        specs = (self.config.sender, self.config.receiver)
        layers = ((like.new_zeros(1, spec.kv_heads, 7, spec.head_dim),) * spec.layers for spec in specs)
        sent, own = ((side, side) for side in layers)
        if self.config.operator == "concat":
            self.project(*sent)
        else:
            self.mix(own, sent)

    def _stack(self, keys: tuple[Tensor, ...], values: tuple[Tensor, ...], layers: list[int]) -> Tensor:
        """Stack chosen layers as groups: K of every layer, then V: (G, B*T, F)."""
        stacked = torch.stack([tensors[t] for tensors in (keys, values) for t in layers])
        return stacked.transpose(2, 3).flatten(3).flatten(1, 2)


def only(changes: Changes, wanted: Reached) -> Changes:
    """Keep the changes that are wanted, layer by layer of keys and of values."""
    keys, values = (
        tuple(change if keep else None for change, keep in zip(*side, strict=True))
        for side in zip(changes, wanted, strict=True)
    )
    return keys, values
