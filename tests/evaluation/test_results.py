"""From answers that are known to rows, comparisons, contributions, a table and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from PIL import Image

from fedray.evaluation import table
from fedray.evaluation.cases import Case
from fedray.evaluation.figures import fedrefine, overview
from fedray.evaluation.measure import Measurement
from fedray.evaluation.results import Results
from fedray.llm.catalogue import copies
from fedray.methods.fedattn import FedAttn
from fedray.methods.method import C2C, T2T, Ensemble, Gate, Method, Route, TextToText, Wire
from fedray.protocols import ALONE, PROTOCOLS
from fedray.questions.tasks import Question
from fedray.reporting import report
from fedray.reporting.report import Evaluated, Found, Report, SenderOrder, Spread, Who
from fedray.types import KVSpec, MemberInfo, Missing

R, A, B = "qwen3-0.6b", "qwen2.5-0.5b", "qwen2.5-coder-0.5b"
SAID, SHARED = Method(TextToText()).canonical(), replace(C2C, rephrase="shared")


def member(name: str, layers: int, tokenizer: str, dtype: str = "bfloat16") -> MemberInfo:
    spec = KVSpec(layers, 2, 64)
    return MemberInfo(name, "qwen2", 1, spec, f"hash-{name}", tokenizer, "cpu", dtype, "here", 1, 512)


MEMBERS = {R: member(R, 28, "a"), A: member(A, 24, "b"), B: member(B, 24, "b")}
QUESTIONS = [Question(f"q{i}", f"{i}?", ("x", "y"), 0, "bird", f"entity-{i // 2}") for i in range(8)]


def answered(bits: str, payload: int = 0, total: Sequence[float] = (0.1, 0.3)) -> Measurement:
    seconds = {"total": tuple(total), "decode": (0.05,)}
    return Measurement(tuple(b == "1" for b in bits), payload_bytes=payload, prompt_tokens=100, seconds=seconds)


@dataclass(frozen=True)
class Debate(TextToText):
    """What a protocol of tomorrow would be told."""

    name: str = field(default="debate", init=False)


def results(answers: dict[tuple[str, tuple[str, ...], Method], str]) -> Results:
    found = Results(MEMBERS)
    for (receiver, senders, how), bits in answers.items():
        payload = 1000 * len(senders) if how.protocol.name == "c2c" else 0
        found.add(Case("tiny", receiver, senders, how.canonical()), 0, QUESTIONS, answered(bits, payload))
    return found


def test_a_protocol_of_tomorrow_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROTOCOLS, "debate", PROTOCOLS["t2t"])
    debated = results(
        {(R, (), ALONE): "11000000", (R, (A, B), C2C): "01111110", (R, (A, B), Method(Debate())): "1" * 8}
    )
    assert {row.how.protocol.name for row in debated.rows()} == {"standalone", "c2c", "debate"}
    assert [(found.a, found.b) for found in debated.comparisons()] == [("c2c", "debate")]


FOUND = results(
    {
        (R, (), ALONE): "11000000",
        (A, (), ALONE): "11110000",
        (R, (A,), C2C): "11110000",
        (R, (B,), C2C): "11001000",
        (R, (A, B), C2C): "01111110",
        (R, (A, B), SHARED): "01111100",
        (R, (A, B), SAID): "00001110",
        (A, (B,), C2C): "11110001",
    }
)


def test_a_row_is_paired_with_its_receiver_alone() -> None:
    row = FOUND.rows()[4]
    assert (row.accuracy, row.found.accuracy_alone, row.found.rescued, row.found.harmed) == (6 / 8, 2 / 8, 5, 1)
    assert row.gain_points == 50.0 and row.gain_percent == 200.0 and row.p_value == pytest.approx(2 * 7 / 64)
    # deviations from 3/4 per entity: -3/4 + 1/4, 1/4 + 1/4, 1/4 + 1/4, 1/4 - 3/4
    assert row.stderr == pytest.approx((4 / 3 * 4 * 0.25) ** 0.5 / 8)
    assert row.cost.bytes_per_token == 20.0 and row.cost.payload_bytes == 2000
    assert row.seconds == Spread(pytest.approx(0.2), pytest.approx(0.2), pytest.approx(0.29)) and row.cost.requests == 2
    assert FOUND.rows()[7].found.accuracy_alone == 4 / 8, "another receiver has its own line"


def test_soft_prompts_are_a_row_that_others_are_compared_with() -> None:
    """Whatever the codec; not where another method reads them, and a soft prompt not with itself."""
    soft, coded = replace(C2C, control="soft"), replace(C2C, wire=Wire("int8"))
    fewer = replace(C2C, wire=Wire(keep=0.5))
    ways = {ALONE: "11000000", C2C: "11111110", coded: "11111100", fewer: "11111110", soft: "11100000"}
    found = results({(R, () if how == ALONE else (A, B), how): bits for how, bits in ways.items()})
    gains = {row.how: row.found.soft_gain for row in found.rows()}
    told = {how: gain and gain.points for how, gain in gains.items()}
    assert told == {ALONE: None, C2C: 50.0, coded: 37.5, fewer: None, soft: None}


def test_analytic_bytes_are_the_papers() -> None:
    """24 x 2 x 64 keys and values in 16 bit are 12 KiB per token; a token is four bytes."""
    rows = FOUND.rows()
    assert rows[2].cost.bytes_per_token_analytic == 12 * 1024 and rows[4].cost.bytes_per_token_analytic == 24 * 1024
    assert rows[6].cost.bytes_per_token_analytic == 8 and rows[0].cost.bytes_per_token_analytic is None


def test_bytes_of_fedattn_are_as_measured_and_nobody_sends_to_oneself() -> None:
    found = Results({name: member(R, 28, "a") for name in copies(R, 3)})
    one, three = (Method(FedAttn(count)).canonical() for count in (1, 3))
    found.add(Case("tiny", R, (), ALONE), 0, QUESTIONS, answered("11110000"))
    found.add(Case("tiny", R, (), one), 0, QUESTIONS, answered("11110000"))
    found.add(Case("tiny", R, copies(R, 3)[1:], three), 0, QUESTIONS, answered("11110000", 5000))
    _, alone, joint = found.rows()
    assert (alone.who.type, alone.cost.bytes_per_token, alone.cost.bytes_per_token_analytic) == (None, 0, None)
    assert (joint.who.type, joint.cost.bytes_per_token, joint.cost.bytes_per_token_analytic) == (
        "homogeneous cache",
        50,
        None,
    )


def test_the_four_types_of_appendix_a() -> None:
    types = [row.who.type for row in FOUND.rows()]
    assert types == [None, None, *["heterogeneous cache"] * 4, "heterogeneous token", "homogeneous cache"]
    other = Results(MEMBERS | {B: member(B, 24, "c")})
    other.add(Case("tiny", A, (), ALONE), 0, QUESTIONS, answered("1" * 8))
    other.add(Case("tiny", A, (B,), SAID), 0, QUESTIONS, answered("1" * 8))
    assert other.rows()[1].who.type == "heterogeneous token", "another tokenizer is another kind"


def test_comparisons_pair_what_differs_in_one_thing() -> None:
    found = {(c.a, c.b): c for c in FOUND.comparisons() if c.rows[1] in (4, 5)}
    assert set(found) == {
        (f"{A} alone", "c2c"),
        (f"{A} alone", "c2c (rephrase shared)"),
        ("c2c", "c2c (rephrase shared)"),
        ("t2t", "c2c"),
    }
    text = found["t2t", "c2c"]
    assert text.rows == (6, 4) and (text.points, text.rescued, text.harmed) == (37.5, 3, 0)
    assert text.p == pytest.approx(2 / 2**3)
    assert found["c2c", "c2c (rephrase shared)"].points == -12.5


def test_contributions_are_leave_one_out() -> None:
    given = {c.sender: c for c in FOUND.contributions()}
    assert set(given) == {A, B} and all(c.of == 2 and c.way == "c2c" for c in given.values())
    assert given[A].points == 37.5 and given[B].points == 25.0 and given[A].bytes_per_token == 10.0


def test_seeds_together_claim_what_all_of_them_show() -> None:
    found = Results(MEMBERS)
    alone, both = Case("tiny", R, (), ALONE), Case("tiny", R, (A, B), C2C)
    for seed, bits in ((0, "11111111"), (1, "11000000")):
        found.add(alone, seed, QUESTIONS, answered("0" * 8))
        found.add(both, seed, QUESTIONS, answered(bits))
    row = found.row(both)
    assert row.seeds == (0, 1) and row.found.n == 16 and row.accuracy == 10 / 16 and row.p_value == 0.5
    assert row.cost.requests == 4
    assert row.stderr == pytest.approx((4 / 3 * (1.5**2 + 3 * 0.5**2)) ** 0.5 / 16), "an entity is one cluster"


# -- shown ----------------------------------------------------------------------------------------------------------

LLMS = (A, B, "qwen2.5-1.5b", "llama-1b")


def paper(rows: Sequence[Evaluated]) -> Report:
    order = SenderOrder("validation", LLMS, dict.fromkeys(LLMS, 10.0), 40)
    return Report(
        "evaluate", "tiny", 0, "complete", Who(R, LLMS, order=order), task="tiny", found=Found(n=8), rows=tuple(rows)
    )


@pytest.fixture(scope="module")
def full() -> Report:
    """Every row of figure 3, the ladder and the pairs."""
    members = {name: member(name, 24, name, "float32") for name in (R, *LLMS)}
    found = Results(members)
    prefixes = [LLMS[:k] for k in range(1, 5)]
    ways = [
        (senders, way) for senders in prefixes for way in (C2C, SHARED, SAID, Method(TextToText(), rephrase="shared"))
    ]
    ways += [((name,), way) for name in LLMS for way in (C2C, SAID)]
    ways += [(LLMS, Method(TextToText(), t2t=T2T(gate="same"))), (LLMS, Method(TextToText(), t2t=T2T(full=True)))]
    ways += [
        (LLMS, Method(Route(), gate=Gate("oracle"))),
        (LLMS, Method(Ensemble())),
        (LLMS, Method(gate=Gate("open"))),
    ]
    for name in (R, *LLMS):
        found.add(Case("tiny", name, (), ALONE), 0, QUESTIONS, answered("11000000"))
    for number, (senders, way) in enumerate(ways):
        bits = f"{number * 37 % 256:08b}"
        found.add(Case("tiny", R, senders, way.canonical()), 0, QUESTIONS, answered(bits, 700, (0.1 * number, 0.2)))
    for receiver in LLMS:
        for sender in (R, *LLMS):
            if sender != receiver:
                found.add(Case("tiny", receiver, (sender,), C2C), 0, QUESTIONS, answered("11110000", 300))
    rows = found.rows()
    return replace(paper(rows), comparisons=found.comparisons(), contributions=found.contributions())


def test_a_report_is_read_as_it_was_written(full: Report, tmp_path: Path) -> None:
    path = report.write(full, tmp_path)
    assert report.read(path) == full


def test_the_table_has_the_papers_figures_beside_ours(full: Report) -> None:
    text = table.as_markdown(full)
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    c2c = next(row for row in full.evaluated if row.who.senders == LLMS and row.way == "c2c")
    for claim, said, here in (
        ("C2C over the receiver alone", "+21.2 %", f"{c2c.gain_points:+.1f} points"),
        ("rephrasing costs C2C", "3 %", "points"),
        ("C2C above T2T", "about 15 %", "points"),
        ("bytes per token, c2c", "88 KB", "98,304 B analytic"),
        ("bytes per token, t2t", "16 B", "16 B analytic"),
    ):
        assert said in lines[claim] and here in lines[claim]
    assert "first 3" in text and "all 4" in text and "n=8" in text and "zoo=tiny" in text
    assert all(line.count("|") in (4, 9, 14, 23) for line in text.splitlines() if line.startswith("|"))


def test_failures_and_missing_members_stand_under_the_table() -> None:
    found = Results(MEMBERS)
    lost = Measurement((False,) * 8, failed=4, unrephrased=2, missing=(Missing(A, "died"),))
    found.add(Case("tiny", R, (), ALONE), 0, QUESTIONS, answered("1" * 8))
    found.add(Case("tiny", R, (A, B), SHARED), 0, QUESTIONS, lost)
    text = table.as_markdown(paper(found.rows()))
    assert "4 questions failed" in text and "2 of 8 questions kept no whole rewrite" in text
    assert f"{A} was missing, died" in text


@pytest.mark.usefixtures("full_size")
def test_all_figures_are_drawn_where_their_rows_are_there(full: Report, tmp_path: Path) -> None:
    drawn = fedrefine.draw(full, tmp_path) + overview.draw(full, tmp_path)
    assert [p.name for p in drawn] == ["figure3a.png", "figure3b.png", "figure3c.png", "ladder.png", "pairs.png"]
    assert all(Image.open(path).size > (600, 400) for path in drawn)


def test_figures_whose_rows_are_not_there_are_left_out(tmp_path: Path) -> None:
    rows = FOUND.rows()[:1]
    assert not fedrefine.draw(paper(rows), tmp_path) and not overview.draw(paper(()), tmp_path)
    assert list(tmp_path.iterdir()) == []
