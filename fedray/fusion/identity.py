"""The fuser that needs no training: caches of the same space as they are, at another place.

Between members of the same weights, and of one base with different fine-tunes. What position costs is what
KVShareArena (arXiv 2609.10266) finds: rotating keys to their new place recovers half and more of the gap.
Shape legend: B batch, N kv heads, T tokens, H head dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from fedray.fusion.fuser import Fuser, Projection
from fedray.methods.method import Compile


class IdentityFuser(Fuser):
    """The sender's own keys and values of the user's text, which the receiver rotates to where they stand."""

    reading: ClassVar[Mapping[str, str]] = {"rotary": "removed", "tokens": "text"}

    def project(self, keys: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> Projection:
        nothing = keys[0].new_zeros(keys[0].shape[:3])
        return Projection(keys, values, (nothing,) * len(keys))

    def for_inference(self, mode: Compile | None = None) -> Fuser:
        return self
