"""Training in several processes on a Ray cluster, and when there is none."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from short_training import settings, train

from fedray.settings.settings import RaySettings
from fedray.training import workers
from fedray.training.worker_group import Tell, WorkerGroup, Workers
from fedray.types import FedrayError

pytestmark = pytest.mark.usefixtures("threads")


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_two_workers_are_one_at_the_same_global_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cluster: object
) -> None:
    """DDP over gloo on a Ray cluster."""
    long = {"steps": 20, "validate_every": 20, "patience": 0, "accumulation": 2, "limit": 48, "batch_size": 16}
    one, alone = train(settings(tmp_path / "one", **long), capsys)
    two, both = train(settings(tmp_path / "two", **long, workers=2, ray={"enabled": True}), capsys)
    assert {m.pid for m in two.members} != {m.pid for m in one.members} == {os.getpid()}
    for figure in ("loss", "accuracy", "validation/loss"):
        assert both.figures[figure] == pytest.approx(alone.figures[figure], abs=2e-3), figure
    weights = [load_file(Path(part.path or "") / "model.safetensors") for part in (alone, both)]
    assert all(torch.allclose(t.float(), weights[1][k].float(), atol=5e-3) for k, t in weights[0].items())
    _, half = train(settings(tmp_path / "half", **{**long, "batch_size": 8}), capsys)
    assert half.figures["loss"] != pytest.approx(alone.figures["loss"], abs=2e-3), "another batch is another loss"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_start_again_after_a_death_and_not_after_a_refusal(tmp_path: Path, cluster: object) -> None:
    def die_then_refuse(folder: Path, group: WorkerGroup, tell: Tell) -> None:
        begun = folder / f"worker-{group.rank}"
        first = not begun.exists()
        with begun.open("a") as file:
            file.write("x")
        if not first:
            raise FedrayError("it would come again")
        if group.rank == 1:
            time.sleep(2)  # Ray Train gives up where a worker dies while the group is still being started
            os.kill(os.getpid(), signal.SIGKILL)

    two = Workers(2, 1, "cpu", RaySettings(), tmp_path / "ray")
    with pytest.raises(FedrayError, match=r"^it would come again$"):
        workers.run(partial(die_then_refuse, tmp_path), two, lambda *news: None)
    assert [(tmp_path / f"worker-{rank}").read_text() for rank in (0, 1)] == ["xx", "xx"]


@pytest.mark.parametrize(
    ("count", "ray", "here"),
    [
        (1, RaySettings(), True),
        (1, RaySettings(enabled=False, address="head:6379"), True),
        (1, RaySettings(address="head:6379"), False),
        (2, RaySettings(), False),
    ],
)
def test_a_cluster_that_is_named_is_used(count: int, ray: RaySettings, here: bool, tmp_path: Path) -> None:
    assert Workers(count, 1, "cpu", ray, tmp_path).here == here
