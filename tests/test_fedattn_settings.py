"""FedAttn on the command line: what is meant, and what is refused in one sentence before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import Call

from fedray.command_line import CONF
from fedray.evaluation.cases import cases, neutral
from fedray.evaluation.check import check_evaluation
from fedray.evaluation.settings import build_evaluation
from fedray.federation.federation import Federation
from fedray.llm.source import Source
from fedray.methods.fedattn import FedAttn, segments
from fedray.settings.check import check
from fedray.settings.settings import MemberSettings, build
from fedray.types import FedrayError

pytest.importorskip("hydra")
pytestmark = pytest.mark.usefixtures("without_a_store")
CONTEXT = "prompt=a is b. c is d. what is a?"


def test_default_senders_are_copies_of_the_receiver(call: Call) -> None:
    settings = call.settings("protocol=fedattn", "receiver=llama-3.2-1b", "protocol.participants=4")
    assert settings.takes_part == ("llama-1b", "llama-1b#2", "llama-1b#3", "llama-1b#4")
    assert settings.task.name == "tiny-evidence-pooled", "facts must lie in the prompt"
    assert call.settings("protocol=fedattn", "task=gsm8k").task.name == "gsm8k"


def test_explicit_copies_are_taken(call: Call) -> None:
    settings = call.settings("protocol=fedattn", "senders=[qwen3-0.6b,qwen3-0.6b]")
    assert settings.senders == ("qwen3-0.6b#2", "qwen3-0.6b#3")
    for senders in (list(settings.senders), ["qwen3-0.6b#3", "qwen3-0.6b"]):
        assert build({"protocol": {"name": "fedattn"}, "senders": senders}).senders == settings.senders


def test_the_yaml_says_what_the_dataclass_says(call: Call) -> None:
    assert call.settings("protocol=fedattn").protocol == FedAttn()
    assert (CONF / "protocol" / "fedattn.yaml").is_file()


def test_copies_have_the_settings_of_their_llm_unless_they_have_their_own(call: Call) -> None:
    said = ("members.qwen3-0.6b.label=room=a", "members.qwen3-0.6b.dtype=bfloat16", "members.qwen3-0.6b#3.label=room=b")
    settings = call.settings("protocol=fedattn", *said)
    found = [settings.member(name) for name in settings.takes_part]
    assert found == [MemberSettings(label=f"room={room}", dtype="bfloat16") for room in "aab"]
    assert settings.members["qwen3-0_6b__3"] == MemberSettings(label="room=b")


REFUSED = [
    (
        "members.qwen3-0.6b#9.label=room=b",
        "members.qwen3-0.6b#9 is for nobody who takes part: the copies are qwen3-0.6b#2, qwen3-0.6b#3",
    ),
    ("members.llama-1b#2.label=room=b", "members.llama-1b#2 is for nobody who takes part"),
    ("protocol.sync_every=0", "protocol.sync_every must be at least 1, got 0"),
    ("protocol.participants=0", "protocol.participants must be from 1 to 64, got 0"),
    ("protocol.exchange=0", "protocol.exchange must be above 0 and at most 1, got 0.0"),
    ("protocol.exchange=1.01", "protocol.exchange must be above 0 and at most 1, got 1.01"),
    ("protocol.tokens=-0.1", "protocol.tokens must be above 0"),
    ("protocol.publisher_tokens=2", "protocol.publisher_tokens must be above 0"),
    ("protocol.offset=2", "protocol.offset=2 must be below protocol.sync_every=1"),
    ("protocol.placement=deap", "unknown protocol.placement 'deap' (did you mean deep?)"),
    ("senders=[llama-1b]", "protocol=fedattn runs copies of one LLM, and sender llama-1b is another than qwen3-0.6b"),
    ("senders=[qwen3-0.6b]", "name qwen3-0.6b 2 times"),
    ("senders=[llama-1b,qwen3-0.6b]", "qwen3-0.6b is the receiver and among the senders"),
    (f"{CONTEXT}|protocol.participants=5", "which has 3 (the context in sentences, the question apart)"),
    ("prompt=hello|protocol.segments=even", "are more than the segments of 'hello', which has 1"),
    ("receiver='llama-1b#2'", "receiver llama-1b#2 is no LLM of its own"),
    ("senders=['qwen3-0.6b#7','qwen3-0.6b#9']", "sender qwen3-0.6b#7 is no copy that takes part: leave senders out"),
    ("senders=['qwen3-0.6b#1','qwen3-0.6b#0']", "sender qwen3-0.6b#1 is no copy that takes part"),
    ("senders=['qwen3-0.6b#2','qwen3-0.6b#2']", "sender qwen3-0.6b#2 is there twice: leave senders out"),
    ("task=tiny-evidence", "choose task=tiny-evidence-pooled, where all documents stand in the prompt"),
    ("rephrase=shared", "rephrase=shared does not go with protocol=fedattn"),
    ("on_missing=text", "on_missing=text is about fusers"),
    ("wire.keep=0.5", "protocol.exchange"),
    ("answer_all=true", "answer_all=true goes with protocol=c2c"),
    ("control=noise", "choose protocol=c2c, not fedattn"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSED)
def test_refused_in_one_sentence(call: Call, arguments: str, said: str) -> None:
    code, err = call("protocol=fedattn", *arguments.split("|"))
    assert code == 2 and call.ran == []
    assert said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "given",
    [
        {"receiver": "llama-1b#2"},
        {"protocol": {"name": "specfed", "draft": "qwen2.5-0.5b#2"}},
    ],
    ids=str,
)
def test_copies_by_name_are_senders(given: dict) -> None:
    with pytest.raises(FedrayError, match=r"#2 is no LLM of its own: copies .* take part as senders"):
        check_evaluation(build_evaluation({"receiver": "qwen3-0.6b", **given}))


def test_a_folder_may_be_named_like_a_copy(tmp_path: Path) -> None:
    folder = str(tmp_path / "run#3")
    with pytest.raises(FedrayError, match="run#3 is no LLM of its own"):
        build({"receiver": folder, "zoo": "shapes"})
    (tmp_path / "run#3").mkdir()
    (tmp_path / "run#3" / "config.json").write_text("{}")
    settings = build({"receiver": folder, "senders": ["llama-1b"], "zoo": "shapes"})
    check(settings)
    assert settings.receiver == Source(folder).llm == folder
    settings = build(
        {"receiver": folder, "zoo": "shapes", "protocol": "fedattn", "prompt": "a is b. c is d. what is a?"}
    )
    check(settings)
    assert settings.senders == (f"{folder}#2", f"{folder}#3") and Source(settings.senders[1]).llm == folder


@pytest.mark.parametrize("how", [{"sync_every": 7}, {"layers": (6,)}])
def test_beyond_the_depth_is_refused_before_anything_is_loaded(how: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedray.federation.prepare.start_here", lambda *_: pytest.fail("it was started"))
    with pytest.raises(FedrayError, match="protocol"):
        Federation(protocol={"name": "fedattn", **how}, ray=False)


def test_a_sliding_window_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedray.federation.prepare.start_here", lambda *_: pytest.fail("it was started"))
    with pytest.raises(FedrayError, match=r"gemma-3-1b cannot take part in protocol=fedattn: .* sliding window"):
        Federation(protocol="fedattn", zoo="shapes", receiver="gemma-3-1b", ray=False)


def test_a_questions_file_is_checked_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedray.jobs.federate import run

    (tmp_path / "q.txt").write_text("a is b. c is d. what is a?\nwhat is b?\n")
    settings = build({"protocol": {"name": "fedattn"}, "questions": tmp_path / "q.txt", "output": tmp_path})
    with pytest.raises(FedrayError, match=r"segments of 'what is b\?', which has 1"):
        run(settings, lambda settings: pytest.fail("it was started"))


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for start in ("start_here", "start_on_ray"):
        monkeypatch.setattr(f"fedray.federation.prepare.{start}", lambda *_: pytest.fail("it was started"))


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("plan", ["plan=false", "plan=true"])
@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("protocol.sync_every=99", "protocol.sync_every=99 must be from 1 to 6"),
        ("protocol.layers=[6]", "protocol.layers names layer 6: the LLM's go from 0 to 5"),
        ("protocol.participants=40", "protocol.participants=40 are more than the segments"),
        ("questions=q.txt", "more than the segments of 'what is b?', which has 1"),
    ],
)
def test_the_job_ends_with_code_2_before_anything_is_loaded(call: Call, argument: str, said: str, plan: str) -> None:
    from fedray.jobs.federate import run

    Path("q.txt").write_text("a is b. c is d. what is a?\nwhat is b?\n")
    code, err = call("protocol=fedattn", "tracking.enabled=false", "task.limit=3", plan, argument, job=run)
    assert code == 2 and said in err and err.count("\n") == 1


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("blocks.interval.protocol.sync_every=[1,99]", "protocol.sync_every=99 must be from 1 to 7"),
        ("blocks.interval.protocol.participants=[2,40]", "protocol.participants=40 are more than the segments"),
    ],
)
def test_an_evaluation_ends_with_code_2_before_anything_is_loaded(call: Call, argument: str, said: str) -> None:
    from fedray.jobs.evaluate import run

    code, err = call.evaluate("+experiment=fedattn", "tracking.enabled=false", "task.limit=3", argument, job=run)
    assert code == 2 and said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("how", "parts"),
    [
        (FedAttn(3), ("notes:\n- a is b.\n", "- c is d. it is e.\n", "what is a?")),
        (FedAttn(4), ("notes:\n", "- a is b.\n- c is d.", " it is e.\n", "what is a?")),
        (FedAttn(2, question_apart=False), ("notes:\n- a is b.\n- c is d.", " it is e.\nwhat is a?")),
        (FedAttn(2, segments="even"), ("notes:\n- a is b.\n- c is d. it is e.\n", "what is a?")),
        (
            FedAttn(3, segments="even", question_apart=False),
            ("notes:\n- a is b.\n", "- c is d. it is", " e.\nwhat is a?"),
        ),
        (FedAttn(1), ("notes:\n- a is b.\n- c is d. it is e.\nwhat is a?",)),
    ],
    ids=str,
)
def test_segments(how: FedAttn, parts: tuple[str, ...]) -> None:
    assert segments("notes:\n- a is b.\n- c is d. it is e.\nwhat is a?", how) == parts
    assert segments("what is a?", how, "a is b.\nc is d. it is e.") == parts


def test_a_question_of_several_lines_stays_whole_under_a_document() -> None:
    assert segments("what is a?\nA b\nB c", FedAttn(2), "a is b.")[-1] == "what is a?\nA b\nB c"


def test_blocks_vary_what_fedattn_is_told() -> None:
    told = {"sync_every": [1, 2], "participants": [2, 3], "exchange": [0.5, 1], "score": ["norm"]}
    block = {"protocol": {"name": ["fedattn"], **told}}
    settings = build_evaluation(
        {"protocol": {"name": "fedattn"}, "blocks": {"x": block}, "task": "tiny-evidence-pooled"}
    )
    check_evaluation(settings)
    found = [case for case in cases(settings, settings.senders) if not case.is_alone]
    assert len(found) == 8 == len({case.method.of(FedAttn) for case in found})
    assert {case.senders for case in found} == {("qwen3-0.6b#2",), ("qwen3-0.6b#2", "qwen3-0.6b#3")}
    assert {case.way for case in found} >= {"fedattn (N=2, H=1, exchange 50% norm)", "fedattn (N=3, H=2)"}


def test_blocks_of_several_counts_take_settings_of_any_copy() -> None:
    block = {"protocol": ["fedattn"], "protocol.participants": [2, 4]}
    values = {"blocks": {"x": block}, "task": "tiny-evidence-pooled", "members": {"qwen3-0.6b#4": {"label": "room=b"}}}
    settings = build_evaluation(values)
    check_evaluation(settings)
    assert neutral(settings).member("qwen3-0.6b#4").label == "room=b"
    with pytest.raises(FedrayError, match=r"members.qwen3-0.6b#4 is for nobody"):
        check_evaluation(build_evaluation({**values, "blocks": {"x": {**block, "protocol.participants": [2, 3]}}}))


def test_blocks_are_refused_by_name() -> None:
    values = {"blocks": {"x": {"protocol": ["fedattn"], "protocol.exchange": [0.0]}}, "task": "tiny-evidence-pooled"}
    with pytest.raises(FedrayError, match=r"blocks.x: protocol.exchange must be above 0"):
        check_evaluation(build_evaluation(values))
