"""Answer questions with several LLMs: python jobs/federate.py '+senders=[qwen2.5-1.5b,llama-1b]'"""

from __future__ import annotations

from fedray.command_line import launch
from fedray.settings.settings import Settings


def federate(settings: Settings) -> int:
    from fedray.jobs.federate import run  # torch and Ray are imported after the settings are checked

    return run(settings)


if __name__ == "__main__":
    launch(federate)
