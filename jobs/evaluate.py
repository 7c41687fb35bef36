"""Compare ways of answering with several LLMs: python jobs/evaluate.py +experiment=figure3 output=outputs/figure3"""

from __future__ import annotations

from fedray.command_line import EVALUATION, launch
from fedray.evaluation.settings import EvaluateSettings


def evaluate(settings: EvaluateSettings) -> int:
    from fedray.jobs.evaluate import run  # torch and Ray are imported after the settings are checked

    return run(settings)


if __name__ == "__main__":
    launch(evaluate, "evaluate", form=EVALUATION)
