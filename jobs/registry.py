"""Which LLMs, fusers and gates there are: python jobs/registry.py list"""

from __future__ import annotations

from fedray.command_line import REGISTRY, launch
from fedray.training.registry_settings import RegistryJob


def registry(settings: RegistryJob) -> int:
    from fedray.jobs.registry import run  # torch is imported after the settings are checked

    return run(settings)


if __name__ == "__main__":
    launch(registry, "registry", form=REGISTRY)
