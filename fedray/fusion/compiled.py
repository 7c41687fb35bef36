"""Compile what fusers compute at inference (`compile=`).

A compiled function takes and gives a few large tensors, layers stacked in groups: torch checks each one's shape in
every call, and a CUDA graph copies each one in, where layer by layer there would be four per layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedray.methods.method import Compile

Tensors = Callable[..., tuple[Tensor, ...]]

SHAPES = 64  # numbers of tokens that reduce-overhead compiles a fuser for; what comes after them runs as it is
ON_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # modes of torch that replay CUDA graphs, on a GPU


def compiled(function: Tensors, mode: Compile) -> Tensors:
    """Compile a function from tensors to a tuple of tensors in one of torch's modes, when it is first called.

    One compilation serves every number of tokens (dynamic), but in reduce-overhead: a CUDA graph repeats kernels of
    fixed sizes, so there is one per shape, and its kernels are made for that shape too. max-autotune, whose search
    takes far longer, is dynamic all the same, and records its CUDA graphs from the same kernels.

    A CUDA graph writes its outputs where its next run will overwrite them, while fusing holds what one sender changes
    until the last one is there: they are cloned. No gradient flows.
    """
    fast = torch.compile(  # pyright: ignore[reportCallIssue]  # isolate_recompiles stands in no overload
        function,
        mode=mode,
        dynamic=mode != "reduce-overhead",
        isolate_recompiles=True,  # else all fusers of a kind share one limit, beyond which torch compiles no more
        recompile_limit=SHAPES,
    )

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        if mode in ON_CUDA_GRAPHS:
            torch.compiler.cudagraph_mark_step_begin()
        outputs = fast(*(tensor.data for tensor in tensors))  # no views: torch would compile anew for another's base
        return tuple(output.clone() for output in outputs) if mode in ON_CUDA_GRAPHS else outputs

    return run
