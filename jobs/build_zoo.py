"""Rebuild the embedded zoo from nothing: python jobs/build_zoo.py output=outputs/zoo"""

from __future__ import annotations

from fedray.config import ZOO_BUILD, BuildSettings, launch


def build_zoo(settings: BuildSettings) -> int:
    from fedray.evaluation import zoo_table  # torch is imported after the settings are checked
    from fedray.zoo import screen

    report = screen.run(settings)
    if settings.table:
        zoo_table.run(settings.output, settings.seed)
    print(f"report: {report}")
    return 0


if __name__ == "__main__":
    launch(build_zoo, "build_zoo", form=ZOO_BUILD)
