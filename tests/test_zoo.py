"""The embedded zoo as it ships: complete, small enough, undamaged, and a federation that helps."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fedray.evaluation.measure import Asking
from fedray.evaluation.metrics import Comparison, compare
from fedray.federation.federation import Federation
from fedray.jobs.federate import run
from fedray.llm.catalogue import EMBEDDED, NAMES
from fedray.llm.loading import describe, load
from fedray.llm.source import HASHES, hash_file
from fedray.questions.tasks import load_task
from fedray.registry.store import Registry
from fedray.reporting import report as reports
from fedray.reporting.report import Evaluated
from fedray.settings.settings import build
from fedray.types import FedrayError
from fedray.zoo.build import ZooTask, is_done, stages
from fedray.zoo.build import build as build_zoo

RECEIVER = NAMES[0]
ROOT = Path(__file__).parents[1]


def test_it_is_complete_and_small():
    members = {name: describe(load(name)) for name in NAMES}
    missing = [str(task) for stage in stages() for task in stage if not is_done(task, EMBEDDED, members)]
    assert not missing
    size = sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file())
    assert size < 27 * 2**20, f"{size / 2**20:.1f} MiB of 32: 5 are left for later members"


def test_weights_are_those_that_were_hashed():
    hashes = json.loads((EMBEDDED / "llms" / HASHES).read_text())
    assert {name: hash_file(EMBEDDED / "llms" / name / "model.safetensors") for name in NAMES} == hashes


def test_all_pairs_have_a_concat_fuser_and_the_case_study_a_mix_fuser():
    found = {(m.name, m.operator) for m, _ in Registry().list() if m.role == "fuser"}
    pairs = {f"{s}--{r}" for s in NAMES for r in NAMES if s != r}
    assert {name for name, operator in found if operator == "concat"} == pairs
    assert {name for name, operator in found if operator == "mix"} == {f"{s}--{RECEIVER}" for s in NAMES[1:]}


def test_a_damaged_llm_is_refused_and_named(tmp_path: Path):
    import shutil

    shutil.copytree(EMBEDDED / "llms" / "llama-1b", tmp_path / "llms" / "llama-1b")
    shutil.copy(EMBEDDED / "llms" / HASHES, tmp_path / "llms" / HASHES)
    weights = tmp_path / "llms" / "llama-1b" / "model.safetensors"
    blob = bytearray(weights.read_bytes())
    blob[-1] ^= 1
    weights.write_bytes(bytes(blob))
    with pytest.raises(FedrayError, match=r"llama-1b.*damaged"):
        load("llama-1b", folder=tmp_path)


def test_a_prompt_longer_than_the_context_is_refused_before_anything_loads(capsys: pytest.CaptureFixture[str]):
    def never(settings: object) -> Federation:
        raise AssertionError("the federation must not be opened")

    with pytest.raises(FedrayError, match=r"tokens for qwen3-0\.6b, whose context holds 512; shorten it"):
        run(build({"prompt": "what is the color of the bird dika? " * 80}), never)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("fusion", ["concat", pytest.param("mix", marks=pytest.mark.slow)])
def test_four_senders_help_and_controls_do_not(fusion: str):
    """On 160 of the test questions; all of them, and tighter bounds, in the slow test."""
    task = {"limit": 160, "batch_size": 64}
    settings = build({"ray": False, "fusion": fusion, "task": task, "donors": {"count": 0}})
    questions = load_task(settings)
    with Federation(settings) as fed:

        def right(**changes: object) -> tuple[bool, ...]:
            own = replace(settings, control=changes.get("control", "none"))
            return Asking(fed, fed.plan_for(**changes), own, questions).run(0).right

        alone = right(protocol="standalone")
        four = compare(alone, right())
        assert four.accuracy > four.accuracy_alone + 0.25 and four.p_value < 1e-3
        for control in ("mismatched", "noise", "constant"):
            found: Comparison = compare(alone, right(control=control))
            assert found.accuracy < found.accuracy_alone + 0.06, control


def test_every_pair_answers():
    for receiver in NAMES:
        for sender in NAMES:
            if sender != receiver:
                with Federation(build({"receiver": receiver, "senders": [sender], "ray": False})) as fed:
                    assert fed.ask("what is the color of the bird dika?").receiver == receiver


@pytest.mark.slow
def test_a_build_makes_a_whole_zoo_and_goes_on_where_it_stopped(tmp_path: Path):
    """A few steps of everything: the same code as the real build, which the weights in the package came from."""
    seconds = build_zoo(tmp_path, everything=False, shorten=0.002)
    tasks = [task for stage in stages(everything=False) for task in stage]
    assert set(seconds) == {str(task) for task in tasks}
    assert all(is_done(task, tmp_path) for task in tasks)
    first = json.loads((tmp_path / "llms" / HASHES).read_text())
    assert build_zoo(tmp_path, everything=False, shorten=0.002) == {}
    llama = tmp_path / "llms" / "llama-1b"
    for file in llama.iterdir():
        file.unlink()
    llama.rmdir()
    (tmp_path / "llms" / HASHES).write_text(json.dumps({k: v for k, v in first.items() if k != "llama-1b"}))
    again = build_zoo(tmp_path, everything=False, shorten=0.002)
    assert list(again) == [str(ZooTask("llm", ("llama-1b",)))], "the same seed gives the same hash, so fusers still fit"
    assert json.loads((tmp_path / "llms" / HASHES).read_text()) == first
    with pytest.raises(FedrayError, match="another seed or length"):
        build_zoo(tmp_path, seed=1, shorten=0.002)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_table(tmp_path: Path):
    """What the zoo must reach on all held-out questions: conf/experiment/zoo.yaml."""
    job = [sys.executable, "jobs/evaluate.py", "+experiment=zoo", "ray.enabled=false", "tracking.enabled=false"]
    subprocess.run([*job, f"output={tmp_path}"], cwd=ROOT, check=True)
    rows = [row for row in reports.read(tmp_path).rows if isinstance(row, Evaluated)]
    alone = {row.who.receiver: row for row in rows if row.is_alone}
    mine, senders = alone[RECEIVER], NAMES[1:]
    best = sum(max(row.found.groups[g] for row in alone.values()) for g in mine.found.groups) / len(mine.found.groups)
    concat = {r.who.senders: r for r in rows if r.way == "c2c"}
    growing = [concat[senders[:count]] for count in (1, 2, 3, 4)]
    four = growing[-1]
    assert four.found.n >= 1200 and four.accuracy >= mine.accuracy + 0.30 and four.p_value < 1e-3
    assert (four.accuracy - mine.accuracy) / (best - mine.accuracy) >= 0.85
    assert [r.accuracy for r in growing] == sorted(r.accuracy for r in growing)
    for sender, domain in zip(senders, ("bird", "star", "gem", "tree"), strict=True):
        groups = concat[sender,].found.groups
        assert groups[domain] >= 0.80
        assert all(groups[g] >= mine.found.groups[g] - 0.05 for g in groups)
    controls = [row for row in rows if row.how.control != "none"]
    assert len(controls) == 12 and all(row.accuracy <= mine.accuracy + 0.03 for row in controls)
