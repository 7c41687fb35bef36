"""+experiment=c2c_table from end to end, on tiny LLMs and fusers in the published layout that come from the mirror.

It shows that what is published is read, asked and put beside the papers; figures of random weights say nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import Call
from samples import ARC, CEVAL, MMLU_REDUX, OPENBOOKQA, write

from fedray.evaluation.figures import c2c_table
from fedray.fusion.build import build_fuser
from fedray.fusion.fuser import FuserConfig
from fedray.jobs import evaluate, import_c2c
from fedray.methods.method import NO_GATE, FuserChoice, Fusion, Gate, Method, TextToText, Wire
from fedray.protocols import ALONE
from fedray.reporting import report
from fedray.reporting.report import Cost, Effect, Evaluated, Found, Who
from fedray.training.settings import build_import_job, check_import_job
from fedray.types import FedrayError, KVSpec

pytest.importorskip("datasets")
from mirror import Mirror, Repo, point_here, repo_of, serving
from published import SHAPE, save

REPO = "nics-efc/C2C_Fuser"
PAIRS = {"qwen2.5-0.5b": "qwen3_0.6b+qwen2.5_0.5b_Fuser", "llama-1b": "qwen3_0.6b+llam3.2_1b_Fuser"}
LLMS = {
    "qwen3-0.6b": ("Qwen/Qwen3-0.6B", "qwen3"),
    "qwen2.5-0.5b": ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2"),
    "llama-1b": ("meta-llama/Llama-3.2-1B-Instruct", "llama"),
}
FILES = {
    "mmlu-redux/virology/test.jsonl": MMLU_REDUX,
    "arc-challenge/test.jsonl": ARC,
    "openbookqa/test.jsonl": OPENBOOKQA,
    "ceval/val/logic_val.csv": CEVAL,
    "ceval/test/logic_test.csv": [{**row, "answer": ""} for row in CEVAL],
}
WAY = Method(fuser=FuserChoice("c2c"), fusion=Fusion("mix"), gate=NO_GATE).canonical()


def pair(folder: Path, sender: str, **model: Any) -> None:
    """Write a fuser of random weights as C2C publishes one, its gates open."""
    torch.manual_seed(0)
    layers, heads, dim = (SHAPE[key] for key in ("num_hidden_layers", "num_key_value_heads", "head_dim"))
    spec = KVSpec(layers, heads, dim)
    fuser = build_fuser(FuserConfig("c2c", "mix", spec, spec, hidden=16, intermediate=16))
    arguments = {"source_dim": dim, "target_dim": dim, "source_num_heads": heads, "target_num_heads": heads}
    arguments |= {"hidden_dim": 16, "intermediate_dim": 16, "num_layers": 3}
    final = folder / "final"
    final.mkdir(parents=True)
    for layer in range(layers):
        prefix = f"projectors.{layer}."
        found = {k.removeprefix(prefix): v for k, v in fuser.state_dict().items() if k.startswith(prefix)}
        found |= {name: torch.ones(()) for name in found if name.endswith("gate_logit")}
        torch.save(found, final / f"projector_{layer}.pt")
        (final / f"projector_{layer}.json").write_text(json.dumps({"class": "C2CProjector", "init_args": arguments}))
    mapped = {str(layer): [[layer, layer]] for layer in range(layers)}
    (final / "projector_config.json").write_text(json.dumps({"0": {"1": mapped}}))
    recipe = {"base_model": LLMS["qwen3-0.6b"][0], "teacher_model": LLMS[sender][0], "is_do_alignment": True}
    (folder / "config.json").write_text(json.dumps({"model": recipe | model}))


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Repo]:
    folder = tmp_path_factory.mktemp("pushed")
    for sender, name in PAIRS.items():
        pair(folder / "fusers" / name, sender)
    made = {
        repo: repo_of(save(folder / name, family, "qwen2" if family == "qwen2" else family, seed=seed))
        for seed, (name, (repo, family)) in enumerate(LLMS.items())
    }
    return made | {REPO: repo_of(folder / "fusers")}


@pytest.fixture
def mirror(repos: dict[str, Repo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    with serving(dict(repos)) as mirror:
        point_here(monkeypatch, mirror.url, tmp_path / "hf")
        yield mirror


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for file, rows in FILES.items():
        write(tmp_path / "data" / file, rows)
    return tmp_path / "data"


def load(folder: Path, sender: str, source: str | None = None) -> None:
    """What jobs/import_c2c.py does."""
    values = {"source": source or f"{REPO}/{PAIRS[sender]}", "sender": sender, "receiver": "qwen3-0.6b", "zoo": "hub"}
    made = build_import_job({**values, "registry": {"path": folder / "registry"}, "output": folder / "imported"})
    check_import_job(made)
    assert import_c2c.run(made) == 0


def asked(call: Call, folder: Path, data: Path, *more: str) -> tuple[int, str]:
    (folder / "registry").mkdir(exist_ok=True)
    small = ("task.max_tokens=4", "t2t.max_tokens=4", "ray=none", "tracking=none", "donors.count=1")
    places = (f"registry.path={folder / 'registry'}", f"data.path={data}", f"output={folder / 'out'}")
    return call.evaluate("+experiment=c2c_table", *places, *small, *more, job=evaluate.run)


@pytest.mark.slow
def test_the_table_is_measured_beside_the_papers(mirror: Mirror, call: Call, data: Path, tmp_path: Path) -> None:
    for sender in PAIRS:
        load(tmp_path, sender)
    code, err = asked(call, tmp_path, data)
    assert code == 0, err
    left = report.read(tmp_path / "out")
    kinds = [(row.task, "+".join(row.who.senders), row.how.protocol.name) for row in left.evaluated]
    sets = ("mmlu-redux", "arc-challenge", "openbookqa", "ceval")
    ways = [("", "standalone"), *((sender, protocol) for sender in PAIRS for protocol in ("c2c", "t2t"))]
    assert sorted(kinds) == sorted((task, *way) for task in sets for way in ways) and len(kinds) == 20
    assert [(source.name, source.split) for source in left.data] == [
        *((task, "test") for task in sets[:3]),
        ("ceval", "validation"),  # its tests have no answers
    ]
    for row in left.evaluated:
        assert row.scoring == "letters-generated" and row.how.gate.kind == "none"
        if row.how.protocol.fuses:
            found = row.found
            assert found.system_gain and found.pairing_gain and found.harm and found.donors.endswith(" different")
    lines = list(c2c_table.lines(left.evaluated))
    table = (tmp_path / "out" / "table.md").read_text()
    assert len(lines) == 20 and "## Published C2C fusers, against the papers" in table
    assert "| openbookqa | qwen2.5-0.5b | c2c | 52.60 | 52.60 / 52.60 | +13.4, +0.0 |" in table
    assert "Published C2C fusers" in call.out


def test_without_a_fuser_it_ends_with_one_sentence(mirror: Mirror, call: Call, data: Path, tmp_path: Path) -> None:
    load(tmp_path, "qwen2.5-0.5b")
    code, err = asked(call, tmp_path, data)
    assert (code, err.count("\n")) == (2, 1) and "no fuser=c2c fusion=mix for llama-1b -> qwen3-0.6b; " in err
    assert " fuser=c2c or import it with jobs/import_c2c.py, name a registry that has it" in err
    assert not any(asked.startswith("GET /cdn/") for asked in mirror.asked), "no weights were fetched"


def test_a_fuser_for_other_weights_ends_with_one_sentence(
    mirror: Mirror, repos: dict[str, Repo], call: Call, data: Path, tmp_path: Path
) -> None:
    load(tmp_path, "qwen2.5-0.5b")
    other = save(tmp_path / "other", "qwen2", "qwen2", seed=9)
    mirror.repos["Qwen/Qwen2.5-0.5B-Instruct"] = repo_of(other)
    code, err = asked(call, tmp_path, data, "senders=[qwen2.5-0.5b]")
    assert (code, err.count("\n")) == (2, 1) and "qwen2.5-0.5b" in err and "weights" in err


@pytest.mark.parametrize(
    ("sender", "source", "says"),
    [
        ("llama-1b", f"{REPO}/{PAIRS['qwen2.5-0.5b']}", "trained with Qwen/Qwen2.5-0.5B-Instruct as its sender"),
        ("llama-1b", f"{REPO}/qwen3_0.6b+llama3.2_1b_Fuser", "did you mean qwen3_0.6b.llam3.2_1b_Fuser"),
        ("llama-1b", "nics-efc/Nothing/pair", "nics-efc/Nothing"),
    ],
)
def test_a_fuser_that_is_not_there_or_of_others(
    mirror: Mirror, tmp_path: Path, sender: str, source: str, says: str
) -> None:
    with pytest.raises(FedrayError, match=says) as error:
        load(tmp_path, sender, source)
    assert "\n" not in str(error.value) and not list((tmp_path).glob("registry/*"))


def test_a_missing_llm_ends_with_one_sentence(mirror: Mirror, call: Call, data: Path, tmp_path: Path) -> None:
    for sender in PAIRS:
        load(tmp_path, sender)
    del mirror.repos["meta-llama/Llama-3.2-1B-Instruct"]
    code, err = asked(call, tmp_path, data)
    assert (code, err.count("\n")) == (2, 1) and "meta-llama/Llama-3.2-1B-Instruct" in err


# -- what is published ------------------------------------------------------------------------------------------------


def row(senders: tuple[str, ...], how: Method, task: str = "openbookqa", **more: Any) -> Evaluated:
    found = Found(n=500, accuracy=0.5, stderr=0.02, system_gain=Effect(10.0), pairing_gain=Effect(-1.0, -3.0, 1.0))
    who = Who(more.pop("receiver", "qwen3-0.6b"), senders)
    return replace(Evaluated(task, "letters-generated", (0,), "way", who, how, None, found, Cost()), **more)


def test_figures_of_both_papers() -> None:
    found = c2c_table.published(row(("qwen2.5-0.5b",), WAY, "mmlu-redux"))
    assert found and (found.c2c, found.again, found.gains) == (42.92, "42.92 / 43.39", "+12.3, -0.5")
    text = c2c_table.published(row(("qwen2.5-0.5b",), Method(TextToText()).canonical(), "arc-challenge"))
    assert text and (text.c2c, text.again, text.gains) == (49.48, "50.26", "")
    other = c2c_table.published(row(("llama-1b",), WAY, "ceval"))
    assert other and (other.c2c, other.again, other.gains) == (40.77, "", "")
    (line,) = c2c_table.lines([row(("qwen2.5-0.5b",), WAY)])
    assert line[-5:] == ("50.00 ± 2.00", "51.00", "+10.0", "-1.0", "")


@pytest.mark.parametrize(
    "strange",
    [
        row(("qwen2.5-0.5b",), replace(WAY, wire=Wire("int8"))),
        row(("qwen2.5-0.5b",), replace(WAY, gate=Gate("learned"))),
        row(("qwen2.5-0.5b",), replace(WAY, rephrase="shared")),
        row(("qwen2.5-0.5b",), replace(WAY, control="noise")),
        row(("qwen2.5-0.5b",), Method()),  # another fuser
        row(("qwen2.5-0.5b", "llama-1b"), WAY),
        row(("qwen2.5-0.5b",), WAY, receiver="qwen3-1.7b"),
        row(("qwen2.5-0.5b",), WAY, "gsm8k"),
        row(("qwen2.5-0.5b",), WAY, temperature=0.7),
    ],
)
def test_what_the_papers_have_not(strange: Evaluated) -> None:
    assert c2c_table.published(strange) is None


def test_without_a_published_fuser_there_is_no_table() -> None:
    assert not list(c2c_table.lines([row((), ALONE), row(("llama-1b",), Method(TextToText()).canonical())]))
    assert len(list(c2c_table.lines([row((), ALONE), row(("llama-1b",), WAY)]))) == 2
