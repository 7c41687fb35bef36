from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fedray.evaluation.figures import base
from fedray.evaluation.metrics import compare
from fedray.reporting.report import Spread

pytestmark = pytest.mark.usefixtures("full_size")
LABEL = base.label("tiny", "tiny-joint", 4)
FOUND = compare([True, False, False, True], [True, True, True, False])


def test_accuracy_bars(tmp_path: Path) -> None:
    groups = {"all": FOUND, "bird": FOUND, "star": FOUND}
    path = base.accuracy(groups, tmp_path / "new" / "accuracy.png", "qwen3-0.6b", LABEL)
    assert Image.open(path).size > (600, 400)


def test_latency_bars_grow_with_their_phases(tmp_path: Path) -> None:
    seconds = {f"prefill[{i}]": Spread(0.1, 0.1, 0.2) for i in range(12)} | {"total": Spread(1.0, 0.9, 1.4)}
    for name, part in (("many", seconds), ("one", {"decode": Spread(0.0, 0.0, 0.0)})):
        path = base.latency(part, tmp_path / f"{name}.png", label=LABEL)
        assert Image.open(path).size > (600, 400)
