"""How members answer, as one value: what of it each protocol reads, and loose values that become it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from support.methods import method

from fedray.evaluation.cases import Case
from fedray.methods.fedattn import FedAttn
from fedray.methods.method import (
    C2C,
    NO_GATE,
    T2T,
    CacheToCache,
    Ensemble,
    FuserChoice,
    Fusion,
    Gate,
    Method,
    ProtocolSettings,
    Route,
    SelfRefine,
    Standalone,
    TextToText,
    Wire,
)
from fedray.methods.specfed import SpecFed
from fedray.protocols import ALONE, METHOD, PROTOCOLS, protocol_of
from fedray.protocols.self_consistency import SelfConsistency
from fedray.schema import changed
from fedray.types import FedrayError, Plan

FUSED = FuserChoice("c2c")
GATE = Gate("random", "lazy", 0.25)
HINTS = T2T("hint", 8, "same", True)
WIRE = Wire("int4", 0.5, "norm", 0.75, "deep")
ALL: dict[str, Any] = {
    "fuser": FUSED,
    "fusion": Fusion("mix"),
    "fusion_order": "sequential",
    "compile": "default",
    "gate": GATE,
    "control": "noise",
    "rephrase": "shared",
    "t2t": HINTS,
    "answer_all": True,
    "vote": True,
    "on_missing": "text",
    "wire": WIRE,
}  # no part is at its default
TOLD: dict[str, tuple[ProtocolSettings, ...]] = {
    "standalone": (Standalone(),),
    "self_refine": (SelfRefine(), SelfRefine(5)),
    "self_consistency": (SelfConsistency(), SelfConsistency(9, 1.5)),
    "ensemble": (Ensemble(),),
    "route": (Route(),),
    "t2t": (TextToText(),),
    "specfed": (
        SpecFed(),
        SpecFed("none", top_k=1.0, reconstruct="renorm", measure=True),
        SpecFed("llama-1b", "auto", 1, "renorm", (0.5, 1.5), "gate", "strict", 2.0, True),
    ),
    "fedattn": (
        FedAttn(),
        FedAttn(5, 4, -1, "deep", (1, 2), "even", False, 0.5, 0.75, 0.25, "rare"),
    ),
    "c2c": (CacheToCache(),),
}
EVERY = [told for of_protocol in TOLD.values() for told in of_protocol]
CANONICAL: list[tuple[ProtocolSettings, Method]] = [
    (Standalone(), Method(Standalone(), gate=NO_GATE)),
    (SelfRefine(5), Method(SelfRefine(5), gate=NO_GATE)),
    (SelfConsistency(9), Method(SelfConsistency(9), gate=NO_GATE)),
    (Ensemble(), Method(Ensemble(), gate=NO_GATE, rephrase="shared", on_missing="text")),
    (Route(), Method(Route(), FUSED, Fusion("mix"), gate=GATE, rephrase="shared", on_missing="text")),
    (
        TextToText(),
        Method(TextToText(), FUSED, Fusion("mix"), gate=GATE, rephrase="shared", t2t=HINTS, on_missing="text"),
    ),
    (SpecFed(), Method(SpecFed(), gate=NO_GATE, on_missing="text")),
    (SpecFed(weigh="gate"), Method(SpecFed(weigh="gate"), FUSED, Fusion("mix"), gate=GATE, on_missing="text")),
    (FedAttn(), Method(FedAttn(), gate=NO_GATE, on_missing="text", wire=Wire("int4"))),
    (CacheToCache(), Method(**ALL | {"t2t": T2T("hint", 8)})),
]


def ids(value: object) -> str:
    return value.name if isinstance(value, ProtocolSettings) else ""


def test_all_protocols_are_here() -> None:
    assert TOLD.keys() == PROTOCOLS.keys()
    assert all(isinstance(told, PROTOCOLS[name].settings) for name, of in TOLD.items() for told in of)
    assert set(ALL) | {"protocol"} == {of.name for of in fields(Method)}
    assert not [name for name, value in ALL.items() if value == getattr(C2C, name)]


# -- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("told", "canonical"), CANONICAL, ids=ids)
def test_what_a_protocol_does_not_read_is_at_its_default(told: ProtocolSettings, canonical: Method) -> None:
    found = Method(told, **ALL).canonical()
    for name, part in canonical.parts().items():
        assert getattr(found, name) == part, name
    assert found == canonical


@pytest.mark.parametrize("told", EVERY, ids=ids)
@pytest.mark.parametrize("parts", [{}, ALL], ids=["defaults", "all"])
def test_what_is_canonical_stays_as_it_is(told: ProtocolSettings, parts: dict[str, Any]) -> None:
    once = Method(told, **parts).canonical()
    assert once.canonical() == once and type(once.protocol) is type(told)


@pytest.mark.parametrize("told", EVERY, ids=ids)
@pytest.mark.parametrize("part", ALL)
def test_a_part_that_is_read_makes_another_method_and_no_other_does(told: ProtocolSettings, part: str) -> None:
    plain, other = Method(told).canonical(), Method(told, **{part: ALL[part]}).canonical()
    read = set(told.reads)
    if plain.weighs:
        read |= {"gate", "fuser", "fusion"}
    if told.name == "t2t":  # whose hints are gated
        read |= {"t2t"}
    if told.crosses == "cache":
        read |= {"wire"}
    if told.name == "c2c":
        read |= {"t2t"}  # of senders without a fuser
        read -= {"fusion_order"}  # of mix alone
    assert (plain != other) == (part in read)


def test_the_gate_of_text_is_read_where_it_lets_in() -> None:
    heard = Method(TextToText(), gate=GATE, fusion=Fusion("mix")).canonical()
    assert heard == Method(TextToText(), gate=NO_GATE) and not heard.weighs
    gated = Method(TextToText(), gate=GATE, fusion=Fusion("mix"), t2t=T2T(gate="same")).canonical()
    assert (gated.gate, gated.fusion, gated.weighs) == (GATE, Fusion("mix"), True)


def test_what_goes_with_another_setting_is_read_with_it_alone() -> None:
    for one, other in (
        (Method(fusion_order="sequential"), Method()),
        (Method(vote=True), Method()),
        (Method(wire=Wire(score="norm", layer_score="deep")), Method()),
        (Method(wire=Wire("int8", keep_layers=0.5, score="norm")), Method(wire=Wire("int8", keep_layers=0.5))),
        (Method(t2t=T2T(gate="same", full=True)), Method()),
        (Method(FedAttn(score="rare")), Method(FedAttn())),
        (Method(SpecFed(draft="llama-1b")), Method(SpecFed())),
        (Method(SpecFed("none", gamma=8)), Method(SpecFed("none", gamma="auto"))),
        (Method(SpecFed(top_k=1.0, reconstruct="renorm")), Method(SpecFed(top_k=1.0))),
    ):
        assert one != other and one.canonical() == other.canonical()
    for one, other in (
        (Method(fusion=Fusion("mix"), fusion_order="sequential"), Method(fusion=Fusion("mix"))),
        (Method(answer_all=True, vote=True), Method(answer_all=True)),
        (Method(wire=Wire(keep=0.5, score="norm")), Method(wire=Wire(keep=0.5))),
        (Method(wire=Wire(keep_layers=0.5, layer_score="deep")), Method(wire=Wire(keep_layers=0.5))),
        (Method(FedAttn(score="rare", exchange=0.5)), Method(FedAttn(exchange=0.5))),
        (Method(SpecFed("none")), Method(SpecFed())),
        (Method(SpecFed(gamma=8)), Method(SpecFed(gamma="auto"))),
        (Method(SpecFed(top_k=1, reconstruct="renorm")), Method(SpecFed(top_k=1))),
        (Method(SelfRefine(2)), Method(SelfRefine())),
        (Method(SelfConsistency(2)), Method(SelfConsistency())),
    ):
        assert one.canonical() != other.canonical()


def test_one_entry_is_not_all_of_them() -> None:
    """1 counts, 1.0 is a share; as numbers they are equal."""
    one, all_of_them = (Case("tiny-tell", "a", ("b",), Method(SpecFed(top_k=k)).canonical()) for k in (1, 1.0))
    assert one != all_of_them and len({one, all_of_them}) == 2
    assert one.way == "specfed (gamma 4, K 1, spread)" and all_of_them.way == "specfed (gamma 4, K 1.0, spread)"
    assert one.method.of(SpecFed).share is None and all_of_them.method.of(SpecFed).share == 1.0


def test_alone_is_whoever_reads_nothing_of_others() -> None:
    assert Method(Standalone(), **ALL).canonical() == ALONE == Method(Standalone()).canonical()
    assert Method(SelfRefine(), **ALL).canonical() != ALONE


# -- loose values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", EVERY, ids=ids)
@pytest.mark.parametrize("parts", [{}, ALL], ids=["defaults", "all"])
def test_its_parts_are_read_as_it_is(told: ProtocolSettings, parts: dict[str, Any]) -> None:
    for made in (Method(told, **parts), Method(told, **parts).canonical()):
        again = METHOD.read(made.parts())
        assert again == made and repr(again) == repr(made), "and 1 stays 1, 1.0 stays 1.0"
        assert METHOD.read(made) == made


@pytest.mark.parametrize("told", EVERY, ids=ids)
def test_mappings_as_in_a_report_are_read_as_it_is(told: ProtocolSettings) -> None:
    made = Method(told, **ALL)
    own = {of.name: getattr(told, of.name) for of in fields(told)}
    gate = {"kind": "random", "route": "lazy", "threshold": 0.25}
    assert METHOD.read({**made.parts(), "protocol": own, "gate": gate}) == made


def test_bare_values_stand_for_first_fields() -> None:
    assert method(protocol="t2t", gate="open", t2t="hint", wire="int8") == Method(
        TextToText(), gate=Gate("open"), t2t=T2T("hint"), wire=Wire("int8")
    )
    assert {name: type(method(protocol=name).protocol) for name in PROTOCOLS} == {
        name: protocol.settings for name, protocol in PROTOCOLS.items()
    }


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"protocol": "t2"}, r"unknown protocol 't2' \(did you mean t2t\?\)"),
        ({"protocol": {"name": "c2c", "gamma": 4}}, "protocol.gamma belongs to protocol=specfed, not to c2c: leave it"),
        (
            {"protocol": {"name": "specfed", "sync_every": 2}},
            "protocol.sync_every belongs to protocol=fedattn, not to specfed",
        ),
        ({"protocol": {"name": "specfed", "rounds": 2}}, "protocol.rounds belongs to protocol=self_refine, not to"),
        ({"protocol": {"name": "specfed", "gama": 2}}, "unknown setting 'protocol.gama': did you mean protocol.gamma"),
        ({"protocol": {"name": "self_refine", "rounds": 0}}, "protocol.rounds must be from 1 to 100, got 0"),
        ({"protocol": SelfRefine(0)}, "protocol.rounds must be from 1 to 100, got 0"),
        ({"protocol": {"gamma": 4}}, "protocol.name is missing: choose one of standalone, "),
        ({"gate": {"kind": "opne"}}, r"unknown gate 'opne' \(did you mean open or none\?\)"),
        ({"rounds": 3}, "unknown setting 'rounds'"),
    ],
)
def test_loose_values_that_cannot_be_meant(parts: dict[str, Any], says: str) -> None:
    with pytest.raises(FedrayError, match=says):
        METHOD.read(parts)


# -- shown ----------------------------------------------------------------------------------------------------------


def test_settings_are_named_as_on_the_command_line() -> None:
    flat = Method(SelfRefine(2), gate=GATE, wire=Wire("int8")).flat()
    assert flat["protocol"] == "self_refine" and flat["protocol.rounds"] == 2
    assert (flat["gate"], flat["gate.route"], flat["gate.threshold"]) == ("random", "lazy", 0.25)
    assert (flat["wire"], flat["wire.keep"], flat["t2t"], flat["t2t.max_tokens"]) == ("int8", 1.0, "answer", 32)
    assert (flat["fuser"], flat["vote"], flat["compile"]) == ("mlp", False, None)
    assert set(flat) <= set(METHOD.names) and "protocol.name" not in flat and "protocol.gamma" not in flat


@pytest.mark.parametrize(
    ("made", "label"),
    [
        (Method(Standalone()), "standalone"),
        (Method(), "c2c"),
        (Method(gate=Gate("open"), rephrase="shared"), "c2c (gate open, rephrase shared)"),
        (Method(gate=NO_GATE, fusion=Fusion("mix"), answer_all=True), "c2c (no gate, mix, both ways)"),
        (Method(control="noise", wire=WIRE), "c2c (control noise, int4, norm 50%, deep 75% of layers)"),
        (Method(TextToText(), t2t=T2T(gate="same", full=True)), "t2t gated full"),
        (Method(SpecFed("none", top_k=1.0)), "specfed (no drafts, K 1.0, spread)"),
        (Method(SpecFed(gamma="auto", top_k=320, measure=True)), "specfed (gamma auto, K 320, spread, measured)"),
        (Method(FedAttn(5, 1, exchange=0.5)), "fedattn (N=5, H=1, exchange 50% random)"),
        (Method(SelfRefine()), "self_refine"),
        (Method(gate=Gate("learned", "lazy", 0.7)), "c2c (lazy, threshold 0.7)"),
        (Method(TextToText(), t2t=T2T("hint", 8)), "t2t (hints, 8 tokens)"),
    ],
)
def test_labels(made: Method, label: str) -> None:
    assert made.canonical().label() == label
    assert Case("tiny", "a", (), made.canonical(), 0.8).way == Case("tiny", "a", (), made.canonical()).method.label(
        "T 0.8"
    )


def test_a_protocol_is_looked_up_by_method_and_by_plan() -> None:
    for name, protocol in PROTOCOLS.items():
        how = method(protocol=name)
        assert protocol_of(how) is protocol_of(Plan("a", (), how)) is protocol


def test_settings_of_another_protocol_are_no_ones_own() -> None:
    assert Method(SpecFed()).of(SpecFed) == SpecFed()
    with pytest.raises(AssertionError, match="specfed is run with the settings of FedAttn"):
        Method(SpecFed()).of(FedAttn)


def test_baselines() -> None:
    own = SpecFed(gamma=8, top_k=320, reconstruct="renorm", measure=True, vocab="strict")
    assert own.baseline == SpecFed("none", gamma=0, top_k=1.0, vocab="strict")
    assert replace(Method(own), protocol=own.baseline).canonical() == Method(own.baseline).canonical()
    assert all(told.baseline is None for told in EVERY if told.name != "specfed")


# -- changed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"gate": {"route": "eager"}}, Method(SelfRefine(2), gate=Gate("open", "eager", 0.25))),
        ({"gate": "none"}, Method(SelfRefine(2), gate=NO_GATE)),
        ({"protocol": {"rounds": 4}}, Method(SelfRefine(4), gate=Gate("open", "lazy", 0.25))),
        ({"protocol": {"name": "t2t"}}, Method(TextToText(), gate=Gate("open", "lazy", 0.25))),
    ],
)
def test_of_a_part_only_what_is_named_changes(changes: dict[str, object], expected: Method) -> None:
    assert METHOD.read(changed(Method(SelfRefine(2), gate=Gate("open", "lazy", 0.25)), changes)) == expected
