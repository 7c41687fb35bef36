"""The data sets by name: their repositories, splits, and readers of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fedray.data import own, reading, rows
from fedray.data.rows import Item, LeftOut, Row, TrainingTalk
from fedray.data.subjects import CEVAL, MMLU, categories
from fedray.errors import unknown
from fedray.extensions import Entries
from fedray.types import FedrayError

T = TypeVar("T", Item, TrainingTalk)


@dataclass(frozen=True, slots=True)
class DataSet(Generic[T]):
    """A data set.

    splits: our name of a split -> the hub's; schema: the columns that are read, in words; subsets: the hub's
    configurations that are read one after the other -> the group their rows are counted under; siblings: its other
    configurations, which are something else; scoring: how its questions were published to be scored; keeps_answers:
    whether its test split comes without answers.
    """

    name: str
    repo: str
    schema: str
    read: Callable[[Row], T | LeftOut]
    splits: Mapping[str, str]
    subsets: Mapping[str, str] = field(default_factory=lambda: {"default": ""})
    siblings: tuple[str, ...] = ()
    scoring: str = "letters-generated"
    keeps_answers: bool = False

    @property
    def main(self) -> str:
        """The split of a file whose name says none."""
        return next(split for split in ("test", "validation", "train") if split in self.splits)

    @property
    def evaluated(self) -> str:
        """The split to evaluate on: of tests, or where there are none with answers of validation."""
        return "validation" if self.keeps_answers else self.main

    def check(self, split: str) -> None:
        """Validate a split. Raises FedrayError naming the splits there are."""
        if split not in self.splits:
            raise FedrayError(f"{self.name} has no {split} split: choose {' or '.join(self.splits)}")


_ALL = {"train": "train", "validation": "validation", "test": "test"}
_TRAIN, _TEST, _VAL = {"train": "train"}, {"test": "test"}, {"validation": "val"}
_VALIDATED = {"train": "train", "validation": "validation"}
_LABELLED = "choices {text: [...], label: [...]}, answerKey"
_OPENBOOKQA, _ARC = f"question_stem, {_LABELLED}", f"question, {_LABELLED}"
_MMLU_REDUX = "question, choices [...], answer, error_type, correct_answer"
_CEVAL = "question, A, B, C, D, answer"
_GSM8K = "question, answer"
_HOTPOTQA = "question, answer, type, supporting_facts {title: [...]}, context {title: [...], sentences: [[...], ...]}"
_MUSIQUE = "question, answer, answer_aliases [...], answerable, paragraphs [{title, paragraph_text, is_supporting}]"
_SQUAD = "title, context, question, answers {text: [...]}"
_STRATEGYQA = "term, question, answer, facts"
_OPENHERMES = "conversations [{from: human|gpt|system, value: ...}, ...]"
_BENCHMARKS: tuple[DataSet[Item], ...] = (
    DataSet("openbookqa", "allenai/openbookqa", _OPENBOOKQA, rows.labelled, _ALL, {"main": ""}, ("additional",)),
    DataSet("arc-challenge", "allenai/ai2_arc", _ARC, rows.labelled, _ALL, {"ARC-Challenge": ""}, ("ARC-Easy",)),
    DataSet("mmlu-redux", "edinburgh-dawg/mmlu-redux-2.0", _MMLU_REDUX, rows.listed, _TEST, categories(MMLU)),
    DataSet("ceval", "ceval/ceval-exam", _CEVAL, rows.lettered, _VAL | _TEST, categories(CEVAL), keeps_answers=True),
    DataSet("gsm8k", "openai/gsm8k", _GSM8K, rows.numbered, _TRAIN | _TEST, {"main": ""}, ("socratic",), "number"),
    DataSet(
        "hotpotqa",
        "hotpotqa/hotpot_qa",
        _HOTPOTQA,
        reading.hotpotqa,
        _VALIDATED,
        {"distractor": ""},
        ("fullwiki",),
        "exact",
    ),
    DataSet("musique", "dgslibisey/MuSiQue", _MUSIQUE, reading.musique, _VALIDATED, scoring="exact"),
    DataSet("squad", "rajpurkar/squad", _SQUAD, reading.squad, _VALIDATED, {"plain_text": ""}, scoring="exact"),
    DataSet("strategyqa", "ChilleD/StrategyQA", _STRATEGYQA, reading.strategyqa, _TRAIN | _TEST),
)
BENCHMARKS = Entries("fedray.tasks", {data.name: data for data in _BENCHMARKS}, DataSet).sound()
_WORLD = "tiny tiny-unasked tiny-phrasings tiny-joint tiny-joint-halves tiny-evidence tiny-evidence-pooled"
_WORLD += " tiny-evidence-question tiny-unmet"
# task -> how its questions are scored where nobody says otherwise
TASKS = {
    **dict.fromkeys(_WORLD.split(), "text"),
    "tiny-tell": "told",
    **{name: data.scoring for name, data in BENCHMARKS.items()},
}
OPENHERMES = DataSet("openhermes", "teknium/OpenHermes-2.5", _OPENHERMES, rows.openhermes, _TRAIN)
OWN = DataSet("own", "", own.TALKS, own.talk, _TRAIN, {"": ""})
TALKS = {data.name: data for data in (OPENHERMES, OWN)}  # conversations to train on


def benchmark(name: str) -> DataSet[Item]:
    """Find a data set to evaluate on. Raises FedrayError with the nearest names."""
    if name not in BENCHMARKS:
        raise unknown("data set", name, BENCHMARKS)
    return BENCHMARKS[name]
