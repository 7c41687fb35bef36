"""What Ray's metrics endpoint tells of a federation."""

from __future__ import annotations

import re
import time
import urllib.request
from typing import Any

import ray

from fedray.runtime.meters import Meters
from fedray.types import Answer, Missing, Row, Usage

LONG_S = 120.0
ROW = Row("gold", weights={"llama-1b": 0.75})
ANSWER = Answer((ROW, ROW), "alpha", ("llama-1b",), usage=Usage({"fuse": 0.03}, 500, read_tokens={"alpha": 7, "b": 0}))


def told() -> str:
    """All that the endpoints of this cluster's nodes tell of fedray."""
    ports = {node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]}
    texts = [urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode() for port in ports]
    return "\n".join(line for text in texts for line in text.splitlines() if line.startswith("ray_fedray"))


def value(text: str, name: str, **tags: str) -> float:
    lines = [
        line for line in text.splitlines() if line.startswith(f"ray_fedray_{name}{{") and 'receiver="alpha"' in line
    ]
    lines = [line for line in lines if all(f'{key}="{of}"' in line for key, of in tags.items())]
    return sum(float(re.split(r"\s+", line)[-1]) for line in lines)


def test_it_counts_what_happened_and_tells_no_text(cluster: Any) -> None:
    meters = Meters("alpha")
    meters.answered(ANSWER, "acme")
    differing = (Row("red"), Row("gold"))
    meters.answered(Answer(ANSWER.rows, "alpha", (), (Missing("llama-1b", "died"),), deranged=(differing,)))
    meters.not_answered("refused", "acme")
    meters.not_answered("refused", "Zo\u00eb")
    until = time.monotonic() + LONG_S  # Ray hands them over every ten seconds
    while not value(text := told(), "deranged_total"):
        assert time.monotonic() < until, text
        time.sleep(0.5)
    assert value(text, "requests_total", outcome="whole", tenant="acme") == 1
    assert value(text, "requests_total", outcome="degraded") == value(text, "missing_total", member="llama-1b") == 1
    assert value(text, "requests_total", outcome="refused", tenant="acme") == 1
    assert value(text, "requests_total", tenant="Zo\\\\xeb") == 1
    assert value(text, "payload_bytes_total") == 500 and value(text, "read_tokens_total", member="alpha") == 7
    assert value(text, "seconds_count", phase="fuse") == 1 and value(text, "gate_weight_count") == 4
    assert value(text, "deranged_total", differs="true") == value(text, "deranged_total", differs="false") == 1
    assert "gold" not in text and "red" not in text.replace("payload", "")
