"""Many tensors as one: the same numbers, and no copy where they lie side by side already."""

from __future__ import annotations

import torch

from fedray.llm.cache import stacked


def test_layers_of_one_block_are_not_copied() -> None:
    block = torch.randn(5, 2, 3, 7, 4)
    for layers in (
        block.unbind(),
        [x[:, :, :6] for x in block],
        [x.transpose(1, 2) for x in block],
        block[1::2].unbind(),
    ):
        made = stacked(list(layers))
        assert torch.equal(made, torch.stack(list(layers)))
        assert made.untyped_storage().data_ptr() == block.untyped_storage().data_ptr()


def test_others_are_copied() -> None:
    block = torch.randn(4, 2, 3)
    apart = [torch.randn(2, 3) for _ in range(3)]
    nothing = torch.zeros(()).expand(2, 3)
    uneven = [block[0], block[1], block[3]]
    turned = [block[0], block[1].T.contiguous().T]
    for layers in (apart, [apart[0]], [block[1], block[0]], [block[0]] * 3, uneven, turned, [nothing, nothing]):
        made = stacked(layers)
        assert torch.equal(made, torch.stack(layers))
        assert made.untyped_storage().data_ptr() not in {x.untyped_storage().data_ptr() for x in layers}


def test_gradients_reach_every_one() -> None:
    block = torch.randn(3, 2, requires_grad=True)
    layers = list(block.unbind())
    stacked(layers).square().sum().backward()
    assert block.grad is not None and torch.equal(block.grad, 2 * block.detach())
    assert stacked([x.to("meta") for x in block.detach()]).shape == (3, 2)
