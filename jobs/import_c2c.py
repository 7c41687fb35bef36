"""Take a published C2C fuser into the registry: python jobs/import_c2c.py PATH sender=NAME receiver=NAME"""

from __future__ import annotations

from fedray.command_line import IMPORT, launch
from fedray.training.settings import ImportJob


def import_c2c(settings: ImportJob) -> int:
    from fedray.jobs.import_c2c import run  # torch is imported after the settings are checked

    return run(settings)


if __name__ == "__main__":
    launch(import_c2c, "import_c2c", form=IMPORT)
