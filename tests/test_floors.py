"""The floors of the house: who may import whom, read from the imports of every file.

A room is a module or package directly under fedray/; `jobs` is the top floor. Imports inside functions and under
TYPE_CHECKING count as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path.relative_to(ROOT) for top in ("fedray", "jobs") for path in (ROOT / top).rglob("*.py"))

FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"rounds", "sharing", "text"}),
    frozenset({"types"}),
    frozenset({"suggest", "background", "border", "clock", "disk", "prompts"}),
    frozenset({"schema"}),
    frozenset({"llm", "wire", "data"}),
    frozenset({"fusion", "privacy"}),
    frozenset({"sessions"}),
    frozenset({"reading", "receiving", "fedattn", "speculation"}),
    frozenset({"member"}),
    frozenset({"group"}),
    frozenset({"protocols", "planner"}),
    frozenset({"runtime"}),
    frozenset({"forecast", "provision", "conversation"}),
    frozenset({"federation"}),
    frozenset({"training", "evaluation", "zoo"}),
    frozenset({"benchmark"}),
    frozenset({"inventory", "importing"}),
    frozenset({"fedray"}),  # the package's own __init__.py: its public face
    frozenset({"jobs"}),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# Beside the stairs: they know the ground only, and only these rooms know them.
GROUND = frozenset({"errors", "rounds", "sharing", "types", "suggest", "schema", "prompts", "disk", "text"})
ASIDE = frozenset({"tracking", "report", "reporting", "config", "arguments", "settings", "checks"})
KNOW_ASIDE = frozenset(
    {"forecast", "provision", "federation", "training", "evaluation", "benchmark", "inventory", "importing", "jobs"}
    | {"fedray"}
)

# What a room knows besides, module by module.
BESIDES = {
    "wire": {"fedray.llm.cache"},
    "evaluation": {"fedray.zoo.world", "fedray.zoo.questions", "fedray.zoo.build", "fedray.zoo.screen"},
    "training": {"fedray.zoo.world"},
    "reporting": {"fedray.report", "fedray.settings", "fedray.tracking"},
    "zoo": {
        "fedray.reporting.screen",
        "fedray.training.conversations",
        "fedray.training.data",
        "fedray.training.pair",
        "fedray.training.recipe",
        "fedray.training.fuser_trainer",
        "fedray.training.gate_trainer",
        "fedray.training.settings",
        "fedray.settings",
        "fedray.checks",
    },
    "settings": {"fedray.llm.catalogue", "fedray.data.catalogue"},
    "checks": {
        "fedray.settings",
        "fedray.llm.catalogue",
        "fedray.llm.files",
        "fedray.data.catalogue",
        "fedray.data.files",
        "fedray.fedattn.segments",
        "fedray.tracking.checks",
    },
    "arguments": {"fedray.llm.catalogue"},
    "config": {
        "fedray.arguments",
        "fedray.benchmark.settings",
        "fedray.evaluation.settings",
        "fedray.training.settings",
        "fedray.llm.catalogue",
        "fedray.reporting.outlet",
        "fedray.settings",
        "fedray.checks",
    },
}

OUTSIDE = {
    "ray": {"runtime", "training"},
    "mlflow": {"tracking"},
    "hydra": {"config", "jobs"},
    "omegaconf": {"config", "jobs"},
}


def room_of(path: Path) -> str:
    if path.parts[0] == "jobs":
        return "jobs"
    return "fedray" if path.parts[1] == "__init__.py" else path.parts[1].removesuffix(".py")


def room_named(module: str) -> str:
    top, *rest = module.split(".")
    return rest[0] if top == "fedray" and rest else top


def imports(path: Path, source: str) -> Iterator[str]:
    """The modules a file imports by full name; `from fedray import llm` counts as fedray.llm, `__version__` is free."""
    package = path.parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, node.module) if node.module else base)
            for alias in (alias for alias in node.names if alias.name != "__version__"):
                yield f"{module}.{alias.name}" if is_module(f"{module}.{alias.name}") else module


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_name(path.name + ".py").is_file()


def allowed(room: str, module: str) -> bool:
    other = room_named(module)
    if other in OUTSIDE:
        return room in OUTSIDE[other]
    if module.split(".")[0] not in ("fedray", "jobs") or other == room or module in BESIDES.get(room, ()):
        return True
    if room in ASIDE:
        return other in GROUND
    if other in ASIDE:
        return room in KNOW_ASIDE
    return other in FLOOR and FLOOR[other] < FLOOR[room]


def violations(path: Path, source: str) -> list[str]:
    room = room_of(path)
    return [f"{path} imports {module}" for module in imports(path, source) if not allowed(room, module)]


def test_every_file_has_a_floor() -> None:
    strangers = [str(path) for path in FILES if room_of(path) not in FLOOR.keys() | ASIDE]
    assert not strangers, f"no floor for {strangers}: give their rooms one in {Path(__file__).name}"


def test_every_room_is_a_package() -> None:
    folders = {path.parent for path in FILES if path.parts[0] == "fedray"}
    missing = [str(folder) for folder in sorted(folders) if not (ROOT / folder / "__init__.py").is_file()]
    assert not missing, f"no __init__.py in {missing}: they would be left out of the built package"


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) in FLOOR.keys() | ASIDE], ids=str)
def test_imports_go_down(path: Path) -> None:
    assert violations(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("fedray/member.py", "import ray"),
        ("fedray/protocols/c2c.py", "def f():\n    from ray import get"),
        ("fedray/runtime/actors.py", "import mlflow.tracking"),
        ("fedray/federation.py", "from omegaconf import DictConfig"),
        ("fedray/types.py", "from fedray.llm.cache import KVCache"),
        ("fedray/llm/cache.py", "from fedray.wire.payload import Payload"),
        ("fedray/wire/payload.py", "from fedray.llm import decoding"),
        ("fedray/fusion/fuser.py", "from ..group import Group"),
        ("fedray/protocols/c2c.py", "from fedray.runtime.actors import RayGroup"),
        ("fedray/member.py", "from fedray import Federation"),
        ("fedray/evaluation/evaluate.py", "import fedray.zoo.pretrain"),
        ("fedray/report.py", "from fedray.federation import Federation"),
        ("fedray/report.py", "from fedray.llm.catalogue import NAMES"),
        ("fedray/runtime/cluster.py", "from fedray.settings import Settings"),
    ],
)
def test_a_step_up_is_seen(path: str, source: str) -> None:
    assert violations(Path(path), source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("fedray/wire/payload.py", "from fedray.llm.cache import KVCache"),
        ("fedray/evaluation/tasks.py", "from fedray.zoo.world import World"),
        ("fedray/training/fuser_trainer.py", "import ray.train"),
        ("fedray/fusion/combine.py", "from . import gating\nfrom ..llm.cache import KVCache"),
        ("fedray/fusion/registry.py", "from fedray import __version__"),
        ("fedray/config.py", "import hydra\nfrom fedray.settings import Settings\nfrom fedray.suggest import nearest"),
        ("jobs/federate.py", "import hydra\nfrom fedray import Federation"),
    ],
)
def test_a_step_down_is_free(path: str, source: str) -> None:
    assert violations(Path(path), source) == []


IN_PROCESS = """
import importlib, pkgutil, sys
from importlib.machinery import PathFinder

blocked = {blocked}

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else super().find_spec(name, path, target)

sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
import fedray

if {whole}:
    for module in pkgutil.walk_packages(fedray.__path__, "fedray.", onerror=lambda name: None):
        if module.name.split(".")[1] not in ("runtime", "training") and module.name != "fedray.evaluation.lm_eval":
            importlib.import_module(module.name)
assert not blocked & sys.modules.keys()
"""


@pytest.mark.parametrize("whole", [False, True], ids=["fedray", "everything in-process"])
def test_imports_without_extras(whole: bool) -> None:
    script = IN_PROCESS.format(blocked=set(OUTSIDE), whole=whole)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_senders_is_no_config_group() -> None:
    assert not (ROOT / "conf" / "senders").exists(), "a group of that name merges `+senders=[...]` and loses members"
