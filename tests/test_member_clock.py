"""Seconds of a phase end when its work is done, on a GPU too."""

from __future__ import annotations

import pytest
import torch

from fedray.member.clock import Clock


def test_a_gpu_is_waited_for_at_the_end_of_a_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    for device in (torch.device("cpu"), torch.device("cuda:1")):
        clock = Clock(device)
        clock.lap("prefill")
        clock.lap("prefill")
        assert clock.seconds.keys() == {"prefill"} and clock.seconds["prefill"] >= 0
    assert waited == [torch.device("cuda:1")] * 2
