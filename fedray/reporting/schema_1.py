"""Reports of schema 1, in which everything lay flat, as those of schema 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedray.methods.method import Method, Wire

_WHO = ("receiver", "senders", "type", "missing", "members")
_FOUND = ("n", "accuracy", "stderr", "accuracy_alone", "rescued", "harmed", "failed", "unrephrased", "by_member")
_WITHOUT_METHOD = ("registry", "benchmark", "build_zoo")
_COST = ("payload_bytes", "bytes_per_token", "bytes_per_token_analytic", "at_a_time", "tokens_per_s", "wall_s")


def from_schema_1(old: Mapping[str, Any]) -> dict[str, Any]:
    """Nest who took part, how they answered, what was found and what it cost; the rest is as it was."""
    same = ("job", "zoo", "seed", "status", "task", "scoring", "data", "answers", "learned", "needs", "tracking")
    graded = _picked(old, ("unparseable", "unparseable_alone", "p_value"))
    return {
        **_picked(old, (*same, "comparisons", "contributions")),
        "who": {**_picked(old, _WHO), "order": old.get("order")},
        "how": None if old.get("job") in _WITHOUT_METHOD else _method(old),
        "found": _found(old, old.get("trust", {})) | graded,
        "cost": _cost(old.get("usage", {})),
        "rows": [_row(row) if "way" in row else row for row in old.get("rows", ())],
        "schema": 2,
    }


def _row(old: Mapping[str, Any]) -> dict[str, Any]:
    weights = {"all": old["weights"]} if old.get("weights") else {}
    found = _found(old, weights) | {"unparseable": round(old["unparseable"] * old["n"]), "p_value": old["p_alone"]}
    return {
        **_picked(old, ("task", "scoring", "seeds", "way", "leakage")),
        "who": _picked(old, _WHO),
        "how": _method(old),
        "temperature": old.get("temperature") or None,
        "found": found,
        "cost": _cost({**old, "seconds": old["latency"]}) | {"requests": old["latency_requests"]},
    }


def _method(old: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a method; of specfed and fedattn what a row said, of other protocols their names."""
    told = dict(old.get("fedattn") or {})
    if old.get("gamma", "none") != "none" or old.get("top_k", "none") != "none":
        gamma, top_k = old["gamma"], old["top_k"]
        told |= {
            "draft": "none" if gamma == "none" else None,
            "gamma": 0 if gamma == "none" else int(gamma) if gamma.isdigit() else gamma,
            "top_k": int(top_k) if top_k.isdigit() else float(top_k),
            "reconstruct": old["reconstruct"],
            "measure": old["measured"],
        }
    wire = {"codec": old["wire"]} if "wire" in old else {}
    parts = set(Method.__dataclass_fields__) - {"protocol", "gate", "t2t", "wire"}
    return {
        **{key: old[key] for key in parts & old.keys() if key in ("rephrase", "control") or old[key] != "none"},
        "protocol": {"name": old.get("protocol", "c2c"), **told},
        "gate": {"kind": old.get("gate", "learned")},
        "t2t": _named(old, gate="t2t_gate", full="full"),
        "wire": wire | _picked(old, tuple(Wire.__dataclass_fields__)),
    }


def _found(old: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    return {**_picked(old, _FOUND), "weights": weights, "speculation": old.get("speculation", {})}


def _cost(old: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's batches no mean was kept."""
    seconds = {phase: {"mean": spread["p50"], **spread} for phase, spread in old.get("seconds", {}).items()}
    return {**_picked(old, _COST), "seconds": seconds}


def _picked(old: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: old[name] for name in names if name in old}


def _named(old: Mapping[str, Any], **names: str) -> dict[str, Any]:
    return {new: old[name] for new, name in names.items() if name in old}
