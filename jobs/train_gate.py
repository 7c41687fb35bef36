"""Train the gate of a receiver: python jobs/train_gate.py receiver=qwen3-0.6b 'senders=[qwen2.5-0.5b,llama-1b]'"""

from __future__ import annotations

from fedray.command_line import GATE_TRAINING, launch
from fedray.training.settings import GateJob


def train_gate(settings: GateJob) -> int:
    from fedray.training.gate_job import run  # torch and Ray are imported after the settings are checked

    return run(settings)


if __name__ == "__main__":
    launch(train_gate, "train_gate", form=GATE_TRAINING)
