"""Who is in the cluster and the zoo of random weights that conftest.py shares between tests."""

from __future__ import annotations

from typing import Any

NODE: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 200 << 20}
RECEIVER, SENDERS = "qwen3-0.6b", ("llama-1b", "qwen2.5-1.5b")
ROOMS = {RECEIVER: "b", SENDERS[0]: "a", SENDERS[1]: "b"}
