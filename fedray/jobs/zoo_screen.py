"""What jobs/build_zoo.py shows: a bar per part that is being trained, then what was built and how long it took."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.progress import TaskID

from fedray.reporting.screen import Screen
from fedray.zoo.build import Progress


class ZooScreen(Screen):
    """The screen of jobs/build_zoo.py."""

    @contextmanager
    def follow(self) -> Iterator[Callable[[Progress], None]]:
        """A live bar per part; call what it yields as parts go on."""
        with self.bars() as bars:
            shown: dict[str, TaskID] = {}

            def follow(progress: Progress) -> None:
                name = str(progress.task)
                if name not in shown:
                    shown[name] = bars.add_task(name, total=progress.steps, running="")
                running = ", ".join(f"{key} {value:.3f}" for key, value in progress.metrics.items())
                bars.update(shown[name], completed=progress.step, running=running)

            yield follow

    def built(self, seconds: Mapping[str, float], seed: int) -> None:
        """Print what this run built."""
        rows = [(name, f"{spent:.0f}") for name, spent in seconds.items()]
        self.table(f"World seed {seed}", ("built", "seconds"), rows)
        if not rows:
            self.line("everything is there already")
