"""In which layers participants exchange keys and values."""

from __future__ import annotations

from fedray.sharing import FedAttn
from fedray.types import FedrayError


def sync_layers(how: FedAttn, depth: int) -> tuple[int, ...]:
    """The sync layers of an LLM of `depth` layers, ascending; every placement has as many as `uniform`.

    uniform: those with l mod H == offset. shallow, deep: evenly over the first or last half (over more where half has
    not as many). progressive: the gaps shrink with depth, l_i = L (1 - (1 - i/S)²); regressive: they grow,
    l_i = L (i/S)². >>> sync_layers(FedAttn(sync_every=3), 6) gives (0, 3).
    Raises FedrayError where H is beyond the depth, and where an explicit layer is not there.
    """
    if how.layers:
        beyond = [layer for layer in how.layers if not 0 <= layer < depth]
        if beyond:
            raise FedrayError(f"protocol.layers names layer {beyond[0]}: the LLM's go from 0 to {depth - 1}")
        return tuple(sorted(set(how.layers)))
    if not 1 <= how.sync_every <= depth:
        raise FedrayError(
            f"protocol.sync_every={how.sync_every} must be from 1 to {depth}, the layers of the LLM: beyond it nobody "
            "would hear of the others"
        )
    uniform = range(how.offset % how.sync_every, depth, how.sync_every)
    count = len(uniform)
    match how.placement:
        case "uniform":
            return tuple(uniform)
        case "shallow" | "deep":
            within = max(count, (depth + 1) // 2)
            first = 0 if how.placement == "shallow" else depth - within
            return tuple(first + i * within // count for i in range(count))
        case "progressive":
            wished = [round(depth * (1 - (1 - i / count) ** 2)) for i in range(count)]
        case "regressive":
            wished = [round(depth * (i / count) ** 2) for i in range(count)]
    return _apart(wished, depth)


def _apart(wished: list[int], depth: int) -> tuple[int, ...]:
    """Strictly ascending and inside the depth, each as near to where it was wished as the others let it."""
    layers: list[int] = []
    for i, layer in enumerate(wished):
        lowest = layers[-1] + 1 if layers else 0
        layers.append(min(max(layer, lowest), depth - len(wished) + i))
    return tuple(layers)
