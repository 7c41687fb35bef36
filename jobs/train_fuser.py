"""Train the fuser of a pair: python jobs/train_fuser.py sender=qwen2.5-0.5b receiver=qwen3-0.6b"""

from __future__ import annotations

from fedray.command_line import FUSER_TRAINING, launch
from fedray.training.settings import FuserJob


def train_fuser(settings: FuserJob) -> int:
    from fedray.training.fuser_job import run  # torch and Ray are imported after the settings are checked

    return run(settings)


if __name__ == "__main__":
    launch(train_fuser, "train_fuser", form=FUSER_TRAINING)
