"""Federated inference for heterogeneous LLMs that exchange KV caches, on Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedray.federation.federation import Federation

__version__ = "0.1.0"
__all__ = ["Federation", "__version__"]


def __getattr__(name: str) -> object:
    """Import the API when it is used: `import fedray` alone costs nothing."""
    if name == "Federation":
        from fedray.federation.federation import Federation

        return Federation
    raise AttributeError(f"module 'fedray' has no attribute {name!r}")
