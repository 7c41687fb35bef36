"""Compare a report of schema 1 with one of schema 2 field by field: `python tests/support/same_reports.py OLD NEW`.

The old one is mapped by fedray.reporting.schema_1. Left out is what differs from run to run (seconds, processes,
folders, what a benchmark measured) and what schema 1 did not have.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedray.reporting.schema_1 import from_schema_1

VOLATILE = {
    "seconds",
    "pid",
    "node",
    "memory_bytes",
    "wall_s",
    "tokens_per_s",
    "tracking",
    "path",
    "at_a_time",
    "memory/peak_gib",
    "seconds/foretold",
    "requests",
}
MEASURED = {"value", "baseline", "ratio"}


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Name every field of the old report that the new one has not, or not so."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() - VOLATILE - (MEASURED if "limit" in old else set())):
            if key == "temperature" and not old[key] and not new[key]:
                continue  # schema 1 did not tell a temperature of 0 from none
            if key not in new:
                yield f"{path}.{key} is missing"
            else:
                yield from differences(old[key], new[key], f"{path}.{key}")
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield f"{path} has {len(new)} entries, not {len(old)}"
        for number, (one, other) in enumerate(zip(old, new, strict=False)):
            yield from differences(one, other, f"{path}[{number}]")
    elif old != new:
        yield f"{path} is {new!r}, not {old!r}"


def main(old: Path, new: Path) -> int:
    was, now = (json.loads((folder / "report.json").read_text()) for folder in (old, new))
    was = json.loads(json.dumps(from_schema_1(was)))
    for report in (was, now):  # cases may come in another order
        report["rows"].sort(
            key=lambda row: json.dumps([row.get("task"), row.get("who"), row.get("way"), row.get("name")])
        )
        for row in report["comparisons"]:
            row["rows"] = None
        report["comparisons"].sort(key=lambda row: json.dumps(row, sort_keys=True))
    found = list(differences(was, now))
    print(f"{was['job']}: {len(found)} fields differ", *found[:40], sep="\n    ")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:3])))
