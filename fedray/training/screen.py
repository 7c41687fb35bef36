"""The screen of a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.progress import TaskID

from fedray.reporting import screen
from fedray.reporting.report import Learned
from fedray.training.pace import Pace, duration
from fedray.training.worker_group import Tell

# Running figures beside the bar, in short.
_SHOWN = {
    "loss": "loss {:.3f}",
    "accuracy": "right {:.0%}",
    "gain": "gain {:.3f}",
    "validation/loss": "validation {:.3f}",
    "validation/accuracy": "{:.0%}",
}


class TrainingScreen(screen.Screen):
    """Screen with a progress bar per phase."""

    @contextmanager
    def progress(self, name: str) -> Iterator[Tell]:
        """Show a live bar per phase; yields the function that updates it."""
        self.line(f"{name} (zoo={self.zoo})")
        with self.bars() as bars:
            shown: dict[str, TaskID] = {}
            seen: dict[str, float] = {}

            def tell(phase: str, step: int, of: int, running: Mapping[str, float]) -> None:
                if phase not in shown:
                    shown[phase] = bars.add_task(phase, total=of, running="")
                seen.update({key: running[key] for key in _SHOWN if key in running})
                figures = "  ".join(_SHOWN[key].format(value) for key, value in seen.items()) if running else ""
                bars.update(shown[phase], completed=step, total=of, running=figures)

            yield tell

    def foretold(self, pace: Pace, steps: int) -> None:
        """Say once what the training will take."""
        takes, step = duration(pace.whole_s), f"{pace.step_s:.3g} s"
        self.line(f"about {takes} to step {steps} ({step} each, validation apart); patience may end it before")

    def learned(self, part: Learned, trust: Mapping[str, Mapping[str, float]], root: str) -> None:
        """Print the validation of what was trained, and where it is stored."""
        shares = [(g, f"{part.validation_alone[g]:.1%}", f"{share:.1%}") for g, share in part.validation.items()]
        self.table("Validation questions, right answers", ("questions", "alone", "with the fuser, no gate"), shares)
        senders = tuple(next(iter(trust.values()), ()))
        weights = [(group, *(f"{row[sender]:.2f}" for sender in senders)) for group, row in trust.items()]
        self.table("Whom the gate trusts for what, mean weight", ("questions", *senders), weights)
        there = f"{part.hash} is in {root}: use it with registry.path={root}"
        self.line(f"{part.name} {there if part.hash else 'is a control and was not registered'}")
