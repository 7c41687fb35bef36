"""Matrix products at inference on a CPU: large matrices lie as oneDNN's kernels read them, once and for all.

torch multiplies float32 by MKL and brings a bfloat16 matrix into oneDNN's layout anew in every call. Laid out before,
both are faster: 128 tokens take 0.65 of the time in float32 and 0.92 in bfloat16, one to 16 about half (docs/log.md).
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

LARGE = 1 << 17  # numbers of a matrix; for smaller ones the call costs more than the product
ROWS = 128  # tokens that the layout is chosen for
_ONEDNN = torch.ops.mkldnn  # the kernels that torch.compile uses


class PackedLinear(nn.Module):
    """A linear map (..., in) -> (..., out) at inference, in oneDNN's layout. Its numbers are those of the nn.Linear."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        packed = _ONEDNN._reorder_linear_weight(linear.weight.detach(), ROWS)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        return _ONEDNN._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def plain(self) -> nn.Linear:
        """The same map as torch keeps it."""
        weight_OI = self.weight.to_dense()
        linear = nn.Linear(self.in_features, self.out_features, device="meta", bias=False)
        linear.weight = nn.Parameter(weight_OI, requires_grad=False)
        linear.bias = self.bias
        return linear


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies numbers of a type on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and _ONEDNN._is_mkldnn_bf16_supported())


def pack_matrices(root: nn.Module) -> None:
    """Lay out the large matrices of a module on a CPU, each in place of the one it was made of. No gradient flows then.

    A matrix that is an embedding too stays: it would stand in memory twice.
    """
    shared = {id(module.weight) for module in root.modules() if isinstance(module, nn.Embedding)}
    for parent, name, module in _children(root, nn.Linear):
        weight = module.weight
        fits = weight.device.type == "cpu" and weight.numel() >= LARGE and packs(weight.dtype)
        if fits and id(weight) not in shared:
            setattr(parent, name, PackedLinear(module))


def unpack_matrices(root: nn.Module) -> None:
    """Bring every packed matrix of a module back as torch keeps it."""
    for parent, name, module in _children(root, PackedLinear):
        setattr(parent, name, module.plain())


def _children(root: nn.Module, kind: type[M]) -> list[tuple[nn.Module, str, M]]:
    """Every module of a kind, with where it stands."""
    return [
        (parent, name, child)
        for parent in root.modules()
        for name, child in parent.named_children()
        if isinstance(child, kind)
    ]
