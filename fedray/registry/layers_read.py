"""The sender's layers that a stored fuser reads, without loading it: only these are sent."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError, safe_open

from fedray.fusion.build import fuser_class
from fedray.fusion.fuser import FuserConfig
from fedray.llm.alignment import align_layers
from fedray.types import Layers


def layers_read(config: FuserConfig, folder: Path | None = None) -> Layers:
    """Find the sender's layers whose keys, and whose values, reach an answer.

    folder: of the fuser's version, None where every gate is open.

    Layers that no receiver layer is aligned to reach none, nor do those behind a gate that is closed at inference.
    """
    cls = fuser_class(config.kind)
    if folder is None or cls.gate_of(0, "key") is None:
        return cls.layers_read(config), cls.layers_read(config)
    aligned = align_layers(config.sender.layers, config.receiver.layers, config.layer_alignment)
    gates = _gates(folder / "model.safetensors")

    def reached(side: str) -> tuple[int, ...]:
        return tuple(sorted({s for t, s in enumerate(aligned) if gates.get(cls.gate_of(t, side) or "", 1.0) > 0}))

    return reached("key"), reached("value")


def _gates(weights: Path) -> dict[str, float]:
    """Read the gate logits of a version; none where its file cannot be read, which loading reports."""
    try:
        there = weights.stat()
        return _logits(weights, (there.st_ino, there.st_mtime_ns))
    except (OSError, SafetensorError, ValueError, RuntimeError):  # the last two: of a tensor that is no single number
        return {}


@lru_cache(maxsize=256)
def _logits(weights: Path, written: tuple[int, int]) -> dict[str, float]:
    with safe_open(weights, "pt") as tensors:
        names = [name for name in tensors.keys() if name.endswith("_gate_logit")]  # noqa: SIM118
        return {name: float(tensors.get_tensor(name)) for name in names}
