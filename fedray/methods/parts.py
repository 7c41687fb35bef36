"""Fusers and codecs by the names that users write; their modules, which need torch, are imported when one is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any

from fedray.extensions import Entries

OPERATORS = ("concat", "mix")


@dataclass(frozen=True, slots=True)
class FuserKind:
    """A fuser class, as "module:Class".

    operators: those that it can be trained for, the usual one first; fusion: what else of `fusion` it implies; drafts:
    it reads what the sender drafts, not the prompt; trained: False where it needs no training and is in no registry;
    training: settings of its training where nobody says otherwise; imported_by: the job that imports published ones.
    """

    where: str
    operators: tuple[str, ...] = OPERATORS
    fusion: Mapping[str, str] = field(default_factory=dict)
    drafts: bool = False
    trained: bool = True
    training: Mapping[str, Any] = field(default_factory=dict)
    imported_by: str = ""

    @property
    def implied(self) -> dict[str, str]:
        """What of `fusion` nobody needs to say."""
        return {"operator": self.operators[0], **self.fusion}

    def load(self) -> Any:
        return resolve_name(self.where)


@dataclass(frozen=True, slots=True)
class CodecKind:
    """A codec, as "module:object"."""

    where: str

    def load(self) -> Any:
        return resolve_name(self.where)


_FUSERS = {
    "mlp": FuserKind("fedray.fusion.mlp:MLPFuser"),
    "c2c": FuserKind("fedray.fusion.c2c:C2CFuser", ("mix",), imported_by="jobs/import_c2c.py"),
    "draft": FuserKind(
        "fedray.fusion.draft:DraftFuser",
        ("concat",),
        {"read": "prompt", "slots": "inline"},
        drafts=True,
        training={"hidden": 160, "layers": "first", "steps": 1000, "batch_size": 384, "learning_rate": 2e-3},
    ),
    "soft": FuserKind("fedray.fusion.soft:SoftPrompt", ("concat",), training={"hidden": 32}),
    "identity": FuserKind("fedray.fusion.identity:IdentityFuser", ("concat",), {"read": "prompt"}, trained=False),
}
_CODECS = {name: CodecKind(f"fedray.wire.codecs:{name.upper()}") for name in ("none", "int8", "int4")}
FUSERS = Entries("fedray.fusers", _FUSERS, FuserKind)
CODECS = Entries("fedray.codecs", _CODECS, CodecKind)
