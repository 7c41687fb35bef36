"""Rebuild the embedded zoo from nothing: python jobs/build_zoo.py output=outputs/zoo"""

from __future__ import annotations

from fedray.command_line import ZOO_BUILD, launch
from fedray.settings.settings import BuildSettings


def build_zoo(settings: BuildSettings) -> int:
    from fedray.jobs.build_zoo import run  # torch is imported after the settings are checked

    return run(settings)


if __name__ == "__main__":
    launch(build_zoo, "build_zoo", form=ZOO_BUILD)
