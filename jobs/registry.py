"""Which LLMs, fusers and gates there are: python jobs/registry.py list"""

from __future__ import annotations

from fedray.config import REGISTRY, RegistryJob, launch


def registry(settings: RegistryJob) -> int:
    from fedray.inventory import run  # torch is imported after the settings are checked

    return run(settings)


if __name__ == "__main__":
    launch(registry, "registry", form=REGISTRY)
