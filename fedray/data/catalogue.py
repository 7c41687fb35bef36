"""The data sets by name: where they lie on the hub, which splits they have, and how their rows read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fedray.data import rows
from fedray.data.rows import Item, LeftOut, Row, TrainingTalk
from fedray.data.subjects import CEVAL, MMLU, categories
from fedray.errors import unknown
from fedray.types import FedrayError

T = TypeVar("T", Item, TrainingTalk)


@dataclass(frozen=True, slots=True)
class DataSet(Generic[T]):
    """One data set.

    splits: our name of a split -> the hub's; schema: the columns that are read, in words; subsets: the hub's
    configurations that are read one after the other -> the group their rows are counted under; siblings: its other
    configurations, which are something else.
    """

    name: str
    repo: str
    schema: str
    read: Callable[[Row], T | LeftOut]
    splits: Mapping[str, str]
    subsets: Mapping[str, str] = field(default_factory=lambda: {"default": ""})
    siblings: tuple[str, ...] = ()

    @property
    def main(self) -> str:
        """The split that a file holds whose name says nothing."""
        return "test" if "test" in self.splits else "train"

    def check(self, split: str) -> None:
        """Raises FedrayError naming the splits there are."""
        if split not in self.splits:
            raise FedrayError(f"{self.name} has no {split} split: choose {' or '.join(self.splits)}")


_CHOICES = "choices {text: [...], label: [...]}, answerKey"
_ALL = {"train": "train", "validation": "validation", "test": "test"}
BENCHMARKS: dict[str, DataSet[Item]] = {
    data.name: data
    for data in (
        DataSet(
            "openbookqa",
            "allenai/openbookqa",
            f"question_stem, {_CHOICES}",
            rows.labelled,
            _ALL,
            {"main": ""},
            siblings=("additional",),
        ),
        DataSet(
            "arc-challenge",
            "allenai/ai2_arc",
            f"question, {_CHOICES}",
            rows.labelled,
            _ALL,
            {"ARC-Challenge": ""},
            siblings=("ARC-Easy",),
        ),
        DataSet(
            "mmlu-redux",
            "edinburgh-dawg/mmlu-redux-2.0",
            "question, choices [...], answer, error_type, correct_answer",
            rows.listed,
            {"test": "test"},
            categories(MMLU),
        ),
        DataSet(
            "ceval",
            "ceval/ceval-exam",
            "question, A, B, C, D, answer",
            rows.lettered,
            {"validation": "val", "test": "test"},
            categories(CEVAL),
        ),
        DataSet(
            "gsm8k",
            "openai/gsm8k",
            "question, answer",
            rows.numbered,
            {"train": "train", "test": "test"},
            {"main": ""},
            siblings=("socratic",),
        ),
    )
}
OPENHERMES: DataSet[TrainingTalk] = DataSet(
    "openhermes",
    "teknium/OpenHermes-2.5",
    "conversations [{from: human|gpt|system, value: ...}, ...]",
    rows.openhermes,
    {"train": "train"},
)


def benchmark(name: str) -> DataSet[Item]:
    """A data set to evaluate on. Raises FedrayError with the nearest names."""
    if name not in BENCHMARKS:
        raise unknown("data set", name, BENCHMARKS)
    return BENCHMARKS[name]
