"""Blocks become cases, or one sentence that says which block cannot be meant."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedray.command_line import CONF, EVALUATION, launch
from fedray.evaluation.cases import Case, cases, neutral
from fedray.evaluation.check import check_evaluation
from fedray.evaluation.settings import EvaluateSettings, build_evaluation
from fedray.methods.fedattn import FedAttn
from fedray.methods.method import T2T, Gate, Method, SelfRefine, TextToText, Wire
from fedray.methods.specfed import SpecFed
from fedray.protocols import ALONE
from fedray.settings.settings import Settings
from fedray.types import FedrayError

A, B, C = "llama-1b", "qwen2.5-1.5b", "qwen2.5-0.5b"
EXPERIMENTS = {path.stem for path in (CONF / "experiment").glob("*.yaml") if "\nblocks:" in path.read_text()}
FETCHED = {"real", "real_federation"}  # their LLMs and questions are fetched first


def settings(**blocks: Any) -> EvaluateSettings:
    return build_evaluation({"senders": [A, B, C], "blocks": blocks})


def found(**block: Any) -> list[Case]:
    """The cases of one block, without the receivers alone."""
    return [case for case in cases(settings(x=block), (A, B, C)) if not case.is_alone]


@pytest.mark.parametrize(
    ("senders", "sets"),
    [
        ("all", [(A, B, C)]),
        ("singles", [(A,), (B,), (C,)]),
        ("prefixes", [(A,), (A, B), (A, B, C)]),
        ("leave_one_out", [(A, B), (A, C), (B, C)]),
        (f"{C}+llama-3.2-1b", [(C, A)]),
        ("qwen2.5-coder-0.5b", [("qwen2.5-coder-0.5b",)]),
    ],
)
def test_sets_of_senders(senders: str, sets: list[tuple[str, ...]]) -> None:
    assert [case.senders for case in found(senders=senders)] == sets


def test_prefixes_follow_the_order() -> None:
    one = settings(x={"senders": "prefixes"})
    assert [case.senders for case in cases(one, (C, A, B)) if case.senders] == [(C,), (C, A), (C, A, B)]


def test_pairs_are_all_directed_pairs_and_every_receiver_stands_alone_first() -> None:
    listed = cases(settings(x={"senders": "pairs"}), (A, B, C))
    everyone = {"qwen3-0.6b", A, B, C}
    assert {case.receiver for case in listed[:4]} == everyone and all(case.is_alone for case in listed[:4])
    assert {(case.receiver, *case.senders) for case in listed[4:]} == {
        (a, b) for a in everyone for b in everyone if a != b
    }


def test_every_combination_that_makes_a_difference_is_a_case() -> None:
    ways = [c.method for c in found(protocol=["c2c", "t2t"], gate=["learned", "open"], rephrase=["none", "shared"])]
    assert len(ways) == len(set(ways)) == 4 + 2, "text that every sender may say knows no gate"
    assert all(how.gate.kind == "none" for how in ways if how.protocol.name == "t2t")
    gated = found(protocol=["t2t"], gate=["learned", "open"], **{"t2t.gate": ["none", "same"]})
    assert [case.way for case in gated] == ["t2t", "t2t gated", "t2t gated (gate open)"]
    assert [c.way for c in found(senders="none", protocol=["standalone", "self_refine"])] == ["self_refine"]


def test_a_case_is_a_run_of_its_own() -> None:
    base = build_evaluation({"evidence": {A: "a", B: "b"}, "gate": "open"})
    how = Method(TextToText(), gate=Gate("random"), rephrase="shared", t2t=T2T(gate="same", full=True))
    case = Case("tiny-unasked", B, (A,), how)
    own = case.settings(base, 7)
    assert (own.receiver, own.senders, own.protocol.name, own.task.name) == (B, (A,), "t2t", "tiny-unasked")
    assert (own.gate.kind, own.t2t.gate, own.t2t.full, own.rephrase) == ("random", "same", True, "shared")
    assert own.seed == own.generation.seed == 7 and base.seed == 0
    assert set(case.alone.settings(base, 0).evidence) == {"qwen2_5-1_5b"}, "who takes no part shows no document"


def test_defaults_follow() -> None:
    bare = build_evaluation({"seed": 4})
    assert bare.seeds == (4,) and [case.way for case in cases(bare, bare.senders)] == ["standalone", "c2c"]
    assert build_evaluation({"blocks": {"x": None}}).blocks == bare.blocks, "null leaves a block out"


R, CODER = "qwen3-0.6b", "qwen2.5-coder-0.5b"
NEEDED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"x": {"senders": CODER}}, (R, CODER)),
    ({"x": {"senders": "none"}}, (R,)),
    ({"x": {"protocol": ["standalone", "self_refine"]}}, (R,)),
    ({"x": {"senders": "none", "receivers": [A]}}, (A,)),
    ({"x": {"protocol": ["standalone"], "receivers": [A, B]}}, (A, B)),
    ({"x": {"senders": A, "receivers": [B]}}, (B, A)),
    ({"x": {"senders": "leave_one_out"}}, (R, A, B, C)),
    ({"x": {"senders": "none"}, "y": {"senders": f"{A}+{B}"}}, (R, A, B)),
    ({"x": {"senders": "prefixes", "receivers": [A]}}, (R, A, B, C)),  # R is asked too, for the order of the senders
]


@pytest.mark.parametrize(("blocks", "members"), NEEDED, ids=lambda value: str(value)[:60])
def test_only_those_are_loaded_whom_some_case_asks(blocks: dict[str, Any], members: tuple[str, ...]) -> None:
    everybody = neutral(settings(**blocks))
    assert set(everybody.takes_part) == set(members) and len(everybody.takes_part) == len(members)
    assert everybody.receiver == (R if R in members else next(iter(blocks["x"]["receivers"])))


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        ({"sender": "all"}, "unknown setting 'blocks.x.sender': did you mean blocks.x.senders"),
        ({"senders": "prefixs"}, r"blocks.x: unknown senders 'prefixs' \(did you mean prefixes\?\)"),
        ({"senders": "lama-1b+qwen2.5-1.5b"}, r"blocks.x: unknown sender 'lama-1b' \(did you mean llama-1b\?\)"),
        ({"senders": "qwen3-0.6b"}, "blocks.x: qwen3-0.6b is the receiver"),
        ({"senders": f"{A}+{A}"}, "blocks.x: a sender is named more than once"),
        ({"receivers": ["qwen"]}, "blocks.x: unknown receiver 'qwen'"),
        ({"protocol": ["c2cc"]}, r"blocks.x: unknown protocol 'c2cc' \(did you mean c2c\?\)"),
        ({"protocol": "c2c"}, r"blocks.x.protocol must be a list such as \[c2c\]"),
        ({"gate": ["shut"]}, "blocks.x: unknown gate 'shut'"),
        ({"task": ["tinny"]}, "blocks.x: unknown task 'tinny'"),
        ({"senders": "none", "protocol": ["c2c"]}, "blocks.x: protocol=c2c needs a sender"),
        ({"rephrase": ["distinct"], "fusion": ["mix"]}, "blocks.x: rephrase=distinct does not go with fusion=mix"),
        ({"answer_all": [True], "rephrase": ["shared"]}, "blocks.x: answer_all=true goes with"),
    ],
)
def test_a_block_that_cannot_be_meant_is_named(blocks: dict[str, Any], says: str) -> None:
    with pytest.raises(FedrayError, match=says) as error:
        check_evaluation(settings(x=blocks))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"seeds": []}, "seeds must be different numbers"),
        ({"blocks": 3}, "blocks must be a mapping of names"),
        ({"seeds": [1, 1]}, "seeds must be different numbers"),
        ({"seeds": [-1]}, "seeds must be from 0"),
        ({"latency_requests": -1}, "latency_requests must be at least 0"),
        ({"order": "alphabet"}, "unknown order 'alphabet'"),
        ({"prompt": "why?"}, "leave prompt out"),
        ({"blocks": {"x": {"senders": "prefixes"}}, "questions": CONF.parent / "q.txt"}, "cannot read questions file"),
        ({"senders": [A], "blocks": {"x": {"senders": "leave_one_out"}}}, "blocks.x: .*needs two senders"),
    ],
)
def test_settings_that_cannot_be_meant(values: dict[str, Any], says: str) -> None:
    with pytest.raises(FedrayError, match=says):
        check_evaluation(build_evaluation(values))


def test_a_file_of_questions_orders_nobody(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("why?\n")
    values = {"questions": path, "blocks": {"x": {"senders": "prefixes"}}}
    with pytest.raises(FedrayError, match="add order=given"):
        check_evaluation(build_evaluation(values))
    check_evaluation(build_evaluation({**values, "order": "given"}))


# -- from the command line ------------------------------------------------------------------------------------------


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, list[Settings]]:
    pytest.importorskip("hydra")
    ran: list[Settings] = []
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        launch(ran.append, "evaluate", "evaluate", EVALUATION)
    assert isinstance(stop.value.code, int)
    return stop.value.code, ran


@pytest.mark.parametrize("name", sorted(EXPERIMENTS - FETCHED))
def test_experiments_compose(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, (ran,) = call(monkeypatch, f"+experiment={name}", f"output={tmp_path}/out", "task.limit=7")
    assert code == 0 and isinstance(ran, EvaluateSettings)
    assert ran.task.limit == 7 and ran.task.batch_size == 64 and len(cases(ran, ran.senders)) > 3


@pytest.mark.parametrize("name", sorted(FETCHED))
def test_what_is_not_fetched_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, f"+experiment={name}", f"output={tmp_path}/out") == (2, [])
    assert "real/" in capsys.readouterr().err and name in EXPERIMENTS


def test_yaml_and_dataclass_have_the_same_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, (ran,) = call(monkeypatch, f"output={tmp_path}/out")
    assert isinstance(ran, EvaluateSettings)
    for name in ("blocks", "seeds", "latency_requests", "order", "order_limit", "senders", "task", "gate"):
        assert getattr(ran, name) == getattr(EvaluateSettings(), name), name


def test_blocks_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    block = "+blocks.mine={senders: llama-1b+qwen2.5-1.5b, protocol: [t2t], t2t.full: [true]}"
    _, (ran,) = call(monkeypatch, block, f"output={tmp_path}/out")
    assert isinstance(ran, EvaluateSettings)
    assert [case.way for case in cases(ran, ran.senders)] == ["standalone", "t2t full"]


def test_a_bad_block_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, ran = call(monkeypatch, "+blocks.x={senders: al}", f"output={tmp_path}/out")
    err = capsys.readouterr().err
    assert (code, ran) == (2, []) and err.count("\n") == 1 and "did you mean all" in err


def test_checks_load_neither_torch_nor_ray() -> None:
    script = (
        "import sys\n"
        "from fedray.command_line import EVALUATION\n"
        "EVALUATION.check(EVALUATION.build({'blocks': {'x': {'senders': 'prefixes'}}}))\n"
        "assert not {'torch', 'transformers', 'ray', 'mlflow', 'matplotlib'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], cwd=CONF.parent, check=True)


def test_a_block_takes_several_wires() -> None:
    wires = {"codec": ["none", "int4"], "keep": [1.0, 0.5], "score": ["last", "norm"]}
    settings = build_evaluation({"blocks": {"wires": {"protocol": ["c2c", "t2t"], "wire": wires}}})
    found = [case for case in cases(settings, settings.senders) if case.method.protocol.name == "c2c"]
    assert [case.method.wire for case in found] == [
        Wire(codec, *kept) for codec in ("none", "int4") for kept in ((1.0, "last"), (0.5, "last"), (0.5, "norm"))
    ]
    assert found[-1].way == "c2c (int4, norm 50%)" and found[0].way == "c2c"
    assert found[-1].settings(settings, 0).wire == Wire("int4", 0.5, "norm")
    assert {replace(case.method, wire=Wire()) for case in found} == {found[0].method}
    assert sum(case.method.protocol.name == "t2t" for case in cases(settings, settings.senders)) == 1
    dotted = {"wire": wires["codec"], "wire.keep": wires["keep"], "wire.score": wires["score"]}
    again = build_evaluation({"blocks": {"wires": {"protocol": ["c2c", "t2t"], **dotted}}})
    assert again.blocks == settings.blocks, "nested or dotted, they are the same axes"


def test_a_block_takes_shares_of_layers() -> None:
    wires = {"wire.keep_layers": [1.0, 0.5], "wire.layer_score": ["spread", "deep"]}
    settings = build_evaluation({"blocks": {"layers": {"protocol": ["c2c"], **wires}}})
    found = [case for case in cases(settings, settings.senders) if case.method.protocol.name == "c2c"]
    assert [case.method.wire for case in found] == [
        Wire(),
        Wire(keep_layers=0.5),
        Wire(keep_layers=0.5, layer_score="deep"),
    ]
    assert [case.way for case in found[1:]] == ["c2c (spread 50% of layers)", "c2c (deep 50% of layers)"]
    assert found[-1].settings(settings, 0).wire == found[-1].method.wire
    assert {replace(case.method, wire=Wire()) for case in found} == {found[0].method}


def test_a_wire_is_of_caches_alone() -> None:
    """Who answers alone is one case, whatever others send."""
    listed = cases(settings(x={"protocol": ["standalone", "route", "c2c"], "wire": ["none", "int4"]}), (A, B, C))
    assert [case.way for case in listed] == ["standalone", "route", "c2c", "c2c (int4)"]
    given = build_evaluation({"wire": "int4", "blocks": {"x": {"protocol": ["standalone", "t2t", "c2c"]}}})
    assert [case.way for case in cases(given, given.senders)] == ["standalone", "t2t", "c2c (int4)"]


def own(case: Case) -> SpecFed:
    return case.method.of(SpecFed)


def speculative(**block: Any) -> list[Case]:
    """The cases of one block of specfed's."""
    given = {"protocol": "specfed", "blocks": {"x": {"protocol.name": ["specfed"], **block}}}
    settings = build_evaluation({**given, "task": "tiny-tell", "receiver": C, "senders": [B, "qwen2.5-coder-0.5b"]})
    check_evaluation(settings)
    found = [case for case in cases(settings, settings.senders) if not case.is_alone]
    assert [repr(case.settings(settings, 0).protocol) for case in found] == [repr(own(case)) for case in found]
    temperatures = [case.settings(settings, 0).generation.temperature for case in found]
    assert temperatures == [case.temperature or 0.0 for case in found]
    return found


def test_a_block_takes_what_specfed_is_told() -> None:
    temperatures = {"generation.temperature": [0.0, 0.8]}
    found = speculative(protocol={"gamma": [2, "auto"], "reconstruct": ["renorm", "spread"]}, **temperatures)
    found += speculative(protocol={"draft": ["none"], "reconstruct": ["renorm", "spread"]}, **temperatures)
    assert len(found) == len(set(found)) == 3 * 2 * 2
    assert found[0].way == "specfed (gamma 2, K 0.01, renorm)"
    assert found[-1].way == "specfed (no drafts, K 0.01, spread, T 0.8)"
    told = [case.settings(build_evaluation({}), 0).method.of(SpecFed) for case in (found[0], found[4], found[-1])]
    assert [how.gamma for how in told] == [2, "auto", 0] and [how.draft for how in told] == [None, None, "none"]
    greedy = {own(case).baseline for case in found if not case.temperature}
    assert greedy == {SpecFed("none", gamma=0, top_k=1.0, reconstruct="spread")}


def test_one_entry_is_not_all_of_them_and_small_shares_are_shares() -> None:
    """1 counts, 1.0 is a share: as numbers they would be one case."""
    entries = {"top_k": [1, 1.0, 0.00001, 320], "reconstruct": ["renorm", "spread"], "measure": [True]}
    found = speculative(protocol=entries)
    assert [(repr(own(case).top_k), own(case).reconstruct) for case in found] == [
        ("1", "renorm"),
        ("1", "spread"),
        ("1.0", "spread"),
        ("1e-05", "renorm"),
        ("1e-05", "spread"),
        ("320", "renorm"),
        ("320", "spread"),
    ]
    assert all(own(case).measure and "measured" in case.way for case in found)


@pytest.mark.parametrize("top_k", [0, -3, 1.5, float("inf"), float("nan")])
def test_entries_that_cannot_be_meant(top_k: float) -> None:
    with pytest.raises(FedrayError, match=r"blocks.x: protocol.top_k must be"):
        speculative(protocol={"top_k": [top_k]})


def test_the_experiment_of_specfed_measures_apart_from_what_it_times(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, (ran,) = call(monkeypatch, "+experiment=specfed", f"output={tmp_path}/out")
    assert isinstance(ran, EvaluateSettings)
    found = [case for case in cases(ran, ran.senders) if case.method.protocol.name == "specfed"]
    timed = [case for case in found if not own(case).measure]
    four = [case for case in timed if own(case).gamma == 4]
    assert len(found) < 50 and {(case.temperature, str(own(case).top_k)) for case in four} == {
        (t, k) for t in (0.0, 0.8, 1.0, 1.2) for k in ("0.001", "0.01", "0.1", "1.0")
    }
    assert {own(case).gamma for case in timed} >= {0, 1, 8, "auto"}
    assert all(own(case).reconstruct == "spread" for case in timed)
    unmeasured = [
        (case, replace(own(case), measure=False, reconstruct="spread")) for case in found if own(case).measure
    ]
    bounded = [replace(case, method=replace(case.method, protocol=told)) for case, told in unmeasured]
    assert len(bounded) == 18 and set(bounded) <= set(timed), "what is measured is timed too"


# -- axes are settings ----------------------------------------------------------------------------------------------


def test_axes_may_be_nested_or_dotted() -> None:
    nested = {"protocol": {"name": ["fedattn"], "sync_every": [1, 2]}, "generation": {"temperature": [0.0, 0.5]}}
    dotted = {"protocol": ["fedattn"], "protocol.sync_every": [1, 2], "generation.temperature": [0.0, 0.5]}
    assert settings(x=nested).blocks == settings(x=dotted).blocks
    assert dict(settings(x=nested).blocks["x"].axes) == {
        "protocol.name": ("fedattn",),
        "protocol.sync_every": (1, 2),
        "generation.temperature": (0.0, 0.5),
    }
    ways = [(case.method.of(FedAttn).sync_every, case.temperature) for case in found(**nested)]
    assert ways == [(1, 0.0), (1, 0.5), (2, 0.0), (2, 0.5)]


def test_a_bare_axis_is_its_first_setting() -> None:
    block = {"gate": ["open"], "t2t": ["hint"], "wire": ["int8"], "task": ["tiny-unasked"], "protocol": ["c2c"]}
    assert set(settings(x=block).blocks["x"].axes) == {
        "gate.kind",
        "t2t.ask",
        "wire.codec",
        "task.name",
        "protocol.name",
    }
    (case,) = found(**block)
    assert (case.task, case.method.gate.kind, case.method.wire.codec, case.method.t2t.ask) == (
        "tiny-unasked",
        "open",
        "int8",
        "hint",
    )


def test_an_axis_is_of_the_protocols_that_have_it() -> None:
    block = {"protocol": ["standalone", "self_refine", "specfed"], "protocol.rounds": [1, 2], "protocol.gamma": [4, 8]}
    assert [case.method.protocol for case in found(**block)] == [
        SelfRefine(1),
        SelfRefine(2),
        SpecFed(gamma=4),
        SpecFed(gamma=8),
    ]


def test_settings_of_the_protocol_are_what_its_axes_start_from() -> None:
    given = {"protocol": {"name": "fedattn", "participants": 2}, "receiver": A, "task": "tiny-evidence-pooled"}
    axes = {"protocol": {"name": ["fedattn", "self_refine"], "sync_every": [1, 7]}}
    ran = build_evaluation({**given, "blocks": {"x": axes}})
    listed = [case for case in cases(ran, ran.senders) if not case.is_alone]
    assert [case.method.protocol for case in listed] == [
        FedAttn(participants=2, sync_every=1),
        FedAttn(participants=2, sync_every=7),
        SelfRefine(),
    ]
    assert [case.senders for case in listed] == [(f"{A}#2",), (f"{A}#2",), ()]


def test_copies_are_nobody_elses_senders() -> None:
    """Copies of the receiver share a prompt with it; who fuses caches beside them hears the others."""
    listed = found(protocol=["fedattn", "c2c", "t2t"])
    assert {case.way: case.senders for case in listed} == {
        "fedattn (N=3, H=1)": ("qwen3-0.6b#2", "qwen3-0.6b#3"),
        "c2c": (A, B, C),
        "t2t": (A, B, C),
    }


def test_temperatures_are_told_apart_and_none_is_as_the_settings_say() -> None:
    base = build_evaluation({"senders": [A], "generation": {"temperature": 0.5}, "blocks": {"x": {}}})
    listed = cases(base, (A,))
    assert [case.settings(base, 0).generation.temperature for case in listed] == [0.5, 0.5]
    cold, hot = found(**{"protocol": ["t2t"], "generation.temperature": [0.0, 0.8]})
    assert (cold.way, hot.way) == ("t2t", "t2t (T 0.8)") and cold != hot and cold.method == hot.method
    assert cold.settings(base, 0).generation.temperature == 0.0


FORMER = [
    ("sync_every", "protocol.sync_every"),
    ("participants", "protocol.participants"),
    ("placement", "protocol.placement"),
    ("segments", "protocol.segments"),
    ("exchange", "protocol.exchange"),
    ("gamma", "protocol.gamma"),
    ("top_k", "protocol.top_k"),
    ("reconstruct", "protocol.reconstruct"),
    ("measure", "protocol.measure"),
    ("temperature", "generation.temperature"),
    ("t2t_gate", "t2t.gate"),
    ("full", "t2t.full"),
    ("keep", "wire.keep"),
    ("keep_layers", "wire.keep_layers"),
    ("layer_score", "wire.layer_score"),
]


@pytest.mark.parametrize(("former", "now"), FORMER, ids=[former for former, _ in FORMER])
def test_an_axis_by_its_former_name_is_shown_as_it_is_now(former: str, now: str) -> None:
    with pytest.raises(FedrayError) as error:
        settings(x={"protocol": ["c2c"], former: [1]})
    said = str(error.value)
    assert said.startswith(f"blocks.x.{former} is now ") and f"blocks.x.{now}" in said and "\n" not in said


def test_the_former_name_of_one_axis_is_named_exactly() -> None:
    with pytest.raises(FedrayError) as error:
        settings(x={"sync_every": [1]})
    assert str(error.value) == "blocks.x.sync_every is now blocks.x.protocol.sync_every: axes are settings"


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (
            {"protocol": ["c2c", "t2t"], "protocol.sync_every": [1]},
            r"protocol\.sync_every is a setting of none of its protocols \(c2c, t2t\)",
        ),
        ({"protocol.gamma": [4]}, r"protocol\.gamma is a setting of none of its protocols \(c2c\)"),
        ({"protocol": {"name": ["fedattn"], "gamma": [4]}}, "none of its protocols .fedattn.: add one that has it"),
        ({"senders": "none", "protocol": ["standalone"], "protocol.rounds": [4]}, "none of its protocols .standalone."),
    ],
)
def test_an_axis_of_none_of_a_blocks_protocols_is_refused(block: dict[str, Any], says: str) -> None:
    with pytest.raises(FedrayError, match=f"blocks.x: .*{says}"):
        check_evaluation(settings(x=block))


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"gate.knd": ["open"]}, r"unknown setting 'blocks\.x\.gate\.knd': did you mean blocks\.x\.gate\.kind"),
        ({"seed": [1]}, r"unknown setting 'blocks\.x\.seed'"),
        (
            {"protocol": {"gama": [4]}},
            r"unknown setting 'blocks\.x\.protocol\.gama': did you mean blocks\.x\.protocol\.gamma",
        ),
        ({"protocol.gamma": 4}, r"blocks\.x\.protocol\.gamma must be a list such as \[4\], got 4"),
    ],
)
def test_an_axis_that_is_no_setting_is_refused(block: dict[str, Any], says: str) -> None:
    with pytest.raises(FedrayError, match=says):
        settings(x=block)


def test_alone_is_one_case_of_the_receiver() -> None:
    (alone, _) = cases(settings(x={"protocol": ["c2c"]}), (A, B, C))
    assert alone.is_alone and alone.method == ALONE and alone.alone == alone and not alone.senders


def test_a_temperature_is_an_axis_of_every_protocol_and_alone_is_without_one() -> None:
    block = {"senders": "none", "protocol": ["standalone", "self_refine"], "generation.temperature": [0.5, 1.0]}
    listed = cases(settings(x=block), (A, B, C))
    ways = ["standalone", "standalone (T 0.5)", "standalone (T 1)", "self_refine (T 0.5)", "self_refine (T 1)"]
    assert [case.way for case in listed] == ways and [case.is_alone for case in listed] == [True] + [False] * 4
    assert listed[-1].settings(settings(x=block), 0).generation.temperature == 1.0


def test_a_number_of_rounds_is_in_the_label() -> None:
    labels = [case.way for case in found(senders="none", **{"protocol": {"name": ["self_refine"], "rounds": [1, 3]}})]
    assert labels == ["self_refine (1 rounds)", "self_refine"]
