"""Whether an evaluation can be meant, case by case, before anything expensive starts."""

from __future__ import annotations

from dataclasses import replace

from fedray.data.catalogue import BENCHMARKS
from fedray.errors import FedrayError
from fedray.evaluation.cases import cases, neutral
from fedray.evaluation.settings import EvaluateSettings
from fedray.settings.check import check


def check_evaluation(settings: EvaluateSettings) -> None:
    """Validate every case of an evaluation, before torch or Ray is imported. Raises FedrayError."""
    for name, block in settings.blocks.items():
        try:
            for case in cases(replace(settings, blocks={name: block}), settings.senders):
                check(case.settings(settings, settings.seed))
        except FedrayError as error:
            raise FedrayError(f"blocks.{name}: {error}") from error
    check(neutral(settings))
    if settings.plan:
        raise FedrayError("plan=true is for jobs/federate.py, which says what a federation takes: leave it out here")
    if settings.prompt is not None:
        raise FedrayError("an evaluation asks questions whose answers are known: leave prompt out")
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds):
        raise FedrayError(f"seeds must be different numbers, at least one, got {list(settings.seeds)}")
    data = BENCHMARKS.get(settings.task.name)
    unsplit = data is not None and ("validation" not in data.splits or data.main == "validation")
    if settings.ordered and (settings.questions is not None or unsplit):
        what = settings.task.name if settings.questions is None else "a file of questions"
        other = "other " if data is not None and "validation" in data.splits and settings.questions is None else ""
        raise FedrayError(f"{what} has no {other}validation split to order the senders by: add order=given")
