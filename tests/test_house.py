"""The rules of the house, read from the code: who may import whom, and that no two files need each other.

A room is a module or package directly under fedray/; `jobs/` (the scripts) is the top floor. Imports inside functions
and under TYPE_CHECKING count as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from support.counts import comparisons
from support.report_page import page
from support.settings_list import PATH, listed

from fedray.protocols import PROTOCOLS

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path.relative_to(ROOT) for top in ("fedray", "jobs") for path in (ROOT / top).rglob("*.py"))

FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"text"}),
    frozenset({"extensions"}),
    frozenset({"files", "prompts", "schema"}),
    frozenset({"methods"}),
    frozenset({"types"}),
    frozenset({"border", "data"}),
    frozenset({"llm", "tracking", "privacy"}),
    frozenset({"wire", "world"}),
    frozenset({"fusion"}),
    frozenset({"registry"}),
    frozenset({"member"}),
    frozenset({"protocols"}),
    frozenset({"settings", "runtime"}),
    frozenset({"questions", "reporting", "federation"}),
    frozenset({"training", "evaluation"}),
    frozenset({"zoo", "benchmark"}),
    frozenset({"jobs"}),
    frozenset({"arguments"}),
    frozenset({"command_line"}),
    frozenset({"fedray"}),  # the package's own __init__.py: its public face
    frozenset({"scripts"}),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

OUTSIDE = {
    "ray": {"runtime", "training"},
    "mlflow": {"tracking"},
    "hydra": {"command_line", "scripts"},
    "omegaconf": {"command_line", "scripts"},
}


def room_of(path: Path) -> str:
    if path.parts[0] == "jobs":
        return "scripts"
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
    if module.split(".")[0] != "fedray" or other == room:
        return True
    return other in FLOOR and FLOOR[other] < FLOOR[room]


def violations(path: Path, source: str) -> list[str]:
    room = room_of(path)
    return [f"{path} imports {module}" for module in imports(path, source) if not allowed(room, module)]


def test_every_file_has_a_floor() -> None:
    strangers = [str(path) for path in FILES if room_of(path) not in FLOOR]
    assert not strangers, f"no floor for {strangers}: give their rooms one in {Path(__file__).name}"


def test_every_room_is_a_package() -> None:
    folders = {path.parent for path in FILES if path.parts[0] == "fedray"}
    missing = [str(folder) for folder in sorted(folders) if not (ROOT / folder / "__init__.py").is_file()]
    assert not missing, f"no __init__.py in {missing}: they would be left out of the built package"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_down(path: Path) -> None:
    assert violations(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("fedray/member/member.py", "import ray"),
        ("fedray/protocols/c2c.py", "def f():\n    from ray import get"),
        ("fedray/runtime/actors.py", "import mlflow.tracking"),
        ("fedray/federation/federation.py", "from omegaconf import DictConfig"),
        ("fedray/types.py", "from fedray.llm.cache import KVCache"),
        ("fedray/llm/cache.py", "from fedray.wire.payload import Payload"),
        ("fedray/fusion/fuser.py", "from ..protocols.group import Group"),
        ("fedray/protocols/c2c.py", "from fedray.runtime.actors import RayGroup"),
        ("fedray/member/member.py", "from fedray import Federation"),
        ("fedray/evaluation/cases.py", "import fedray.zoo.pretrain"),
        ("fedray/reporting/report.py", "from fedray.federation.federation import Federation"),
        ("fedray/methods/specfed.py", "from fedray.types import Plan"),
        ("fedray/runtime/cluster.py", "from fedray.settings.settings import Settings"),
    ],
)
def test_a_step_up_is_seen(path: str, source: str) -> None:
    assert violations(Path(path), source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("fedray/wire/payload.py", "from fedray.llm.cache import KVCache"),
        ("fedray/questions/tasks.py", "from fedray.world.world import World"),
        ("fedray/training/fuser_trainer.py", "import ray.train"),
        ("fedray/fusion/combine.py", "from . import gating\nfrom ..llm.cache import KVCache"),
        ("fedray/registry/store.py", "from fedray import __version__"),
        (
            "fedray/command_line.py",
            "import hydra\nfrom fedray.settings.settings import Settings\nfrom fedray.errors import nearest",
        ),
        ("jobs/federate.py", "import hydra\nfrom fedray import Federation"),
    ],
)
def test_a_step_down_is_free(path: str, source: str) -> None:
    assert violations(Path(path), source) == []


def needs() -> dict[str, set[str]]:
    """File -> the files that it imports."""
    named = {".".join(path.with_suffix("").parts): path for path in FILES}
    return {
        name: {module for module in imports(path, (ROOT / path).read_text()) if module in named and module != name}
        for name, path in named.items()
    }


def test_no_two_files_need_each_other() -> None:
    try:
        TopologicalSorter(needs()).prepare()
    except CycleError as error:
        pytest.fail(" needs ".join(error.args[1]), pytrace=False)


def test_a_name_means_one_class() -> None:
    places: dict[str, list[Path]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(path)
    twice = {name: list(map(str, paths)) for name, paths in places.items() if len(paths) > 1}
    assert not twice, twice


NAMES = set(PROTOCOLS) - {"c2c", "t2t"}  # which are also a fuser and a setting
ROOMS = ("protocols", "methods", "member", "evaluation/figures", "reporting/schema_1.py")  # may name a protocol
SETTINGS = {"benchmark", "evaluation", "federation", "jobs", "questions", "settings"}  # rooms that see Settings


def test_protocols_are_named_in_their_rooms() -> None:
    for path in FILES:
        tree = ast.parse((ROOT / path).read_text())
        assert path.parts[0] == "jobs" or not comparisons(tree), f"{path} asks for a name: ask for a trait"
        if not path.as_posix().startswith(tuple(f"fedray/{room}" for room in ROOMS)):
            said = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)} & NAMES
            assert not said, f"{path} names {said}: ask the protocol"


def test_few_rooms_see_settings() -> None:
    seen = {
        room_of(path)
        for path in FILES
        if path.parts[0] != "jobs"
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "Settings" for alias in node.names)
    }
    assert seen <= SETTINGS


def test_values_are_passed_whole() -> None:
    """No call copies more than five attributes of one object under their own names."""
    for path in FILES:
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.Call):
                same = (k.value for k in node.keywords if isinstance(k.value, ast.Attribute) and k.value.attr == k.arg)
                copied = Counter(ast.unparse(value.value) for value in same)
                assert max(copied.values(), default=0) <= 5, f"{path}:{node.lineno} copies {copied}"


def test_settings_are_those_that_somebody_asked_for() -> None:
    """A new one needs a line in docs/log.md saying who asked for it, and `python tests/support/settings_list.py`."""
    assert listed() == PATH.read_text()


def test_the_page_about_reports_is_as_generated() -> None:
    assert page() == (ROOT / "docs" / "report.md").read_text(), "python tests/support/report_page.py > docs/report.md"


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


@pytest.mark.parametrize(
    "whole",
    [pytest.param(False, id="fedray"), pytest.param(True, id="everything in-process", marks=pytest.mark.slow)],
)  # who imports what in which file is read from the code above
def test_imports_without_extras(whole: bool) -> None:
    script = IN_PROCESS.format(blocked=set(OUTSIDE), whole=whole)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_senders_is_no_config_group() -> None:
    assert not (ROOT / "conf" / "senders").exists(), "a group of that name merges `+senders=[...]` and loses members"
