"""Write tests/fixtures/settings.txt, every setting there is: `python tests/support/settings_list.py`.

A new one needs a line in docs/log.md saying who asked for it.
"""

from __future__ import annotations

from pathlib import Path

from fedray.benchmark.settings import BENCHMARK
from fedray.command_line import EVALUATION, FEDERATION, FUSER_TRAINING, GATE_TRAINING, IMPORT, REGISTRY, ZOO_BUILD

PATH = Path(__file__).parents[1] / "fixtures" / "settings.txt"
FORMS = {
    "federate": FEDERATION.schema,
    "evaluate": EVALUATION.schema,
    "train_fuser": FUSER_TRAINING.schema,
    "train_gate": GATE_TRAINING.schema,
    "registry": REGISTRY.schema,
    "import_c2c": IMPORT.schema,
    "build_zoo": ZOO_BUILD.schema,
    "benchmark": BENCHMARK,
}


def listed() -> str:
    """One line per setting, as job: name; members and evidence once."""
    names = {job: sorted({_plain(name) for name in schema.names}) for job, schema in FORMS.items()}
    return "".join(f"{job}: {name}\n" for job, of_job in names.items() for name in of_job)


def _plain(name: str) -> str:
    head, _, rest = name.partition(".")
    return ".".join((head, "NAME", *rest.split(".")[1:])) if head in ("members", "evidence") and rest else name


if __name__ == "__main__":
    PATH.write_text(listed())
