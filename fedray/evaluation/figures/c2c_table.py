"""The published C2C fusers: what two papers report of them, in per cent, beside the rows of an evaluation.

C2C: Cache-to-Cache (arXiv 2510.03215). Draft-KV (arXiv 2609.34754) measured the fuser of the first pair again, and with
caches of another question (deranged), which is what it gains by being there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedray.methods.method import NO_GATE, FuserChoice
from fedray.reporting.report import Effect, Evaluated

RECEIVER = "qwen3-0.6b"
C2C, DRAFT_KV = "2510.03215", "2609.34754"  # on arXiv
TITLE = "Published C2C fusers, against the papers"
HEADINGS = ("task", "sender", "way", C2C, DRAFT_KV, "G, P there", "here", "deranged", "G", "P", "harm")
SHOWN = ("task", "sender", "way", C2C, DRAFT_KV, "G, P there", "here", "P")  # on a screen
NOTE = (
    "C2C (arXiv 2510.03215) and Draft-KV (arXiv 2609.34754): accuracies in per cent, of Draft-KV's caches matched / "
    "deranged; G is over alone, P over other questions' messages. The papers' prompts and text exchange are their own: "
    "compare in kind, not to the decimal, and only with the weights that the fusers were published for."
)
_CACHES = (FuserChoice("c2c"), NO_GATE)
_SETS = ("mmlu-redux", "arc-challenge", "openbookqa", "ceval")
Key = tuple[str, str]  # sender ("": nobody), protocol
_C2C: Mapping[Key, Sequence[float]] = {
    ("", "standalone"): (35.53, 41.04, 39.20, 32.04),
    ("qwen2.5-0.5b", "t2t"): (41.03, 49.48, 44.00, 35.88),
    ("qwen2.5-0.5b", "c2c"): (42.92, 54.52, 52.60, 41.77),
    ("llama-1b", "t2t"): (43.32, 50.00, 41.20, 35.27),
    ("llama-1b", "c2c"): (44.42, 53.39, 47.80, 40.77),
}
_DRAFT_KV: Mapping[Key, Sequence[float]] = {
    ("", "standalone"): (30.63, 39.08, 39.20, 31.05),
    ("qwen2.5-0.5b", "t2t"): (39.99, 50.26, 46.00, 33.06),
    ("qwen2.5-0.5b", "c2c"): (42.92, 54.52, 52.60, 41.75),
}
_DERANGED: Mapping[Key, Sequence[float]] = {("qwen2.5-0.5b", "c2c"): (43.39, 54.10, 52.60, 41.01)}


@dataclass(frozen=True, slots=True)
class Reported:
    """What the papers report of one way on one set, in per cent. alone: the receiver alone in Draft-KV."""

    c2c: float
    draft_kv: float | None = None
    deranged: float | None = None
    alone: float | None = None

    @property
    def gains(self) -> str:
        """System gain and pairing gain in Draft-KV, in points."""
        if self.draft_kv is None or self.deranged is None or self.alone is None:
            return ""
        return f"{self.draft_kv - self.alone:+.1f}, {self.draft_kv - self.deranged:+.1f}"

    @property
    def again(self) -> str:
        found = (self.draft_kv, self.deranged)
        return " / ".join(f"{percent:.2f}" for percent in found if percent is not None)


def published(row: Evaluated) -> Reported | None:
    """Find what the papers report of a row; None where they have no such row."""
    how, who = row.how, row.who
    key = ("+".join(who.senders), how.protocol.name)
    as_published = how.published and how.rephrase == "none" and row.temperature is None
    c2c = not how.protocol.fuses or (how.fuser, how.gate) == _CACHES
    if who.receiver != RECEIVER or row.task not in _SETS or key not in _C2C or not as_published or not c2c:
        return None
    place = _SETS.index(row.task)
    draft_kv, deranged = (figures[key][place] if key in figures else None for figures in (_DRAFT_KV, _DERANGED))
    return Reported(_C2C[key][place], draft_kv, deranged, _DRAFT_KV["", "standalone"][place])


def lines(rows: Sequence[Evaluated]) -> Iterator[tuple[str, ...]]:
    """Write the rows that the papers have, where one of them is of a published fuser: the cells of a table."""
    found = [(row, beside) for row in rows if (beside := published(row))]
    if not any(row.how.protocol.fuses for row, _ in found):
        return
    for row, beside in found:
        effects, pairing = row.found, row.found.pairing_gain
        accuracy = f"{100 * row.accuracy:.2f} ± {100 * row.stderr:.2f}"
        deranged = "" if pairing is None else f"{100 * row.accuracy - pairing.points:.2f}"
        papers = (f"{beside.c2c:.2f}", beside.again, beside.gains)
        here = (accuracy, deranged, *map(_points, (effects.system_gain, pairing, effects.harm)))
        yield (row.task, "+".join(row.who.senders) or "-", row.how.protocol.name, *papers, *here)


def _points(effect: Effect | None) -> str:
    return "" if effect is None else f"{effect.points:+.1f}"
