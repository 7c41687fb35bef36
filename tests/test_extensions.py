"""Packages add protocols, fusers, codecs and tasks: the example in docs/, as installed, and what is left out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "example"
ASK = """
import runpy, sys
from fedray.federation.federation import Federation
for settings in ({"protocol": "first"}, {"wire": "half", "gate": "open"}):
    with Federation(receiver="qwen3-0.6b", senders=["llama-1b"], ray={"enabled": False}, tracking={"enabled": False},
                    **settings) as fed:
        answer = fed.run(fed.request("what is the color of the bird dika?", choices=[("red", "blue")]))
        print(answer.senders, len(answer.rows), answer.missing, answer.usage.payload_bytes > 0)
sys.argv = ["federate.py", "protocol=first", "wire=half", "fuser=linear", "plan=true", "ray.enabled=false",
            "tracking.enabled=false", "output={output}"]
runpy.run_path("{job}", run_name="__main__")
"""


def installed(folder: Path, name: str, points: dict[str, str], code: str = "") -> Path:
    """A folder of installed packages: what pip leaves of entry points, and a module."""
    made = folder / f"{name}-1.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (made / "entry_points.txt").write_text("".join(f"[{group}]\n{line}\n" for group, line in points.items()))
    (folder / f"{name}.py").write_text(code)
    return folder


def python(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    there = os.pathsep.join(map(str, (*paths, ROOT)))
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": there}, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as pip would install it, from the lines of its pyproject.toml."""
    import tomllib

    groups = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]
    points = {group: "\n".join(f"{k} = {v}" for k, v in of.items()) for group, of in groups.items()}
    return installed(tmp_path_factory.mktemp("site"), "fedray_example_installed", points)


def test_it_is_short() -> None:
    assert sum(len(path.read_text().splitlines()) for path in EXAMPLE.iterdir() if path.is_file()) <= 60


def test_a_protocol_of_ones_own_answers_and_a_codec_carries_caches(example: Path, tmp_path: Path) -> None:
    """Called from Python, and as words on the command line."""
    code = ASK.replace("{output}", str(tmp_path)).replace("{job}", str(ROOT / "jobs" / "federate.py"))
    ended = python(code, example, EXAMPLE)
    assert ended.stdout.startswith("('llama-1b',) 1 () False\n('llama-1b',) 1 () True\n"), ended.stderr
    assert ended.returncode == 0 and "report: " in ended.stdout, ended.stderr


def test_a_fuser_of_ones_own_fuses(example: Path) -> None:
    settings = "{'fuser': 'linear', 'gate': 'open', 'zoo': 'shapes', 'members': {}}"
    code = (
        "import sys; assert 'torch' not in sys.modules\n"
        "from fedray.settings.settings import build\n"
        f"s = build({settings}); assert s.fusion.operator == 'concat' and 'torch' not in sys.modules\n"
        "import torch\nfrom fedray.fusion.build import build_fuser\nfrom fedray.fusion.fuser import FuserConfig\n"
        "from fedray.types import KVSpec\n"
        "fuser = build_fuser(FuserConfig('linear', 'concat', KVSpec(3, 2, 4), KVSpec(5, 1, 8)))\n"
        "side = tuple(torch.randn(2, 2, 7, 4) for _ in range(3)); made = fuser.project(side, side)\n"
        "print(len(made.keys), made.keys[0].shape, made.values[-1].shape, made.log_weights[0].shape)\n"
    )
    ended = python(code, example, EXAMPLE)
    assert ended.stdout.count("[2, 1, 7") == 3 and ended.stdout.startswith("5 "), ended.stderr


@pytest.mark.parametrize(
    ("points", "code", "says"),
    [
        ({"fedray.protocols": "odd = strange:MISSING"}, "", "protocol=odd of package strange cannot be imported"),
        ({"fedray.tasks": "odd = strange:X"}, "raise SystemError('a\\nb')", "task=odd of package strange cannot be"),
        ({"fedray.protocols": "odd = strange:X"}, "X = 3", "protocol=odd of package strange is no Protocol"),
        ({"fedray.codecs": "int8 = strange:X"}, "X = 3", "codec=int8 of package strange takes a name of fedray's own"),
        ({"fedray.protocols": "c2c = strange:X"}, "", "protocol=c2c of package strange takes a name of fedray's own"),
    ],
)
def test_what_cannot_be_had_is_left_out_in_one_sentence(
    tmp_path: Path, points: dict[str, str], code: str, says: str
) -> None:
    there = installed(tmp_path, "strange", points, code)
    ended = python("from fedray.settings.settings import build; print(build({}).wire.codec)", there)
    assert ended.stdout == "none\n" and says in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr


@pytest.mark.parametrize(
    ("points", "code", "asked", "says"),
    [
        ({"fedray.fusers": "odd = strange:X"}, "import nowhere", "'fuser'", "fuser=odd of package strange cannot be"),
        ({"fedray.codecs": "odd = strange:X"}, "X = 3", "'wire'", "codec=odd of package strange is no CodecKind"),
    ],
)
def test_a_part_that_cannot_be_had_is_refused_by_name_where_it_is_asked_for(
    tmp_path: Path, points: dict[str, str], code: str, asked: str, says: str
) -> None:
    there = installed(tmp_path, "strange", points, code)
    run = "from fedray.settings.settings import build\nfrom fedray.settings.check import check\nbuild({})\n"
    ended = python(f"{run}check(build({{{asked}: 'odd'}}))", there)
    assert ended.stderr.splitlines()[-1].startswith("fedray.errors.FedrayError: ") and says in ended.stderr


def test_a_task_of_ones_own_is_asked(tmp_path: Path) -> None:
    code = (
        "from fedray.data import rows\nfrom fedray.data.catalogue import DataSet\n"
        "MINE = DataSet('mine', 'me/mine', 'question, answer', rows.numbered, {'test': 'test'}, scoring='number')\n"
    )
    there = installed(tmp_path, "tasks_of_mine", {"fedray.tasks": "mine = tasks_of_mine:MINE"}, code)
    (tmp_path / "mine.jsonl").write_text('{"question": "1+1?", "answer": "so #### 2"}\n')
    ask = (
        "from fedray.settings.settings import build\nfrom fedray.questions.tasks import load_task\n"
        f"s = build({{'task': 'mine', 'data': {{'path': {str(tmp_path / 'mine.jsonl')!r}}}}})\n"
        "print([(q.target, q.scoring) for q in load_task(s)])\n"
    )
    ended = python(ask, there)
    assert ended.stdout == "[('2', 'number')]\n", ended.stderr
