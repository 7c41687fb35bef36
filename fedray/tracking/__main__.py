"""Send pending runs of output folders to MLflow: `python -m fedray.tracking FOLDER...`."""

from __future__ import annotations

import sys
from pathlib import Path

from fedray.tracking.pending import PENDING, sync
from fedray.types import FedrayError


def main(folders: list[str]) -> int:
    if not folders:
        print(f"usage: python -m fedray.tracking FOLDER...   (folders that hold a {PENDING})", file=sys.stderr)
        return 2
    for folder in folders:
        try:
            uri, run_id = sync(Path(folder))
        except FedrayError as error:
            print(error, file=sys.stderr)
            return 2
        print(f"{folder}: sent to run {run_id} at {uri}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
