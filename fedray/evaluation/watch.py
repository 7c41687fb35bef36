"""What a person sees of an evaluation: two bars while it asks, and its rows afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from fedray.evaluation import leaks
from fedray.evaluation.screen import Screen
from fedray.evaluation.words import p_value, per_token, who
from fedray.report import Evaluated, Order

LEAKAGE = ("rows", "seen by", "n", "Jaccard", "ROUGE-L", "entities kept", "template copies", "linked (blind)")
Update = Callable[[int], None]


class Watch(Screen):
    """The screen of jobs/evaluate.py."""

    @contextmanager
    def follow(self, cases: int) -> Iterator[Callable[[str, int], Update]]:
        """A bar over cases and one over questions. Call what it yields with a case's label and its questions; what that
        returns hears how many of them have been asked."""
        with self.bars(running=False) as bars:
            rows = bars.add_task("cases", total=cases)
            questions = bars.add_task("", total=None)
            begun = 0

            def begin(label: str, total: int) -> Update:
                nonlocal begun
                bars.update(rows, completed=begun)
                bars.reset(questions, total=total, description=label)
                begun += 1
                return lambda done: bars.update(questions, completed=done)

            yield begin
            bars.update(rows, completed=begun)

    def order(self, order: Order) -> None:
        gains = [(name, f"{order.gains[name]:+.1f}") for name in order.senders if name in order.gains]
        if gains:
            title = f"Order of the senders, by gain in points as the only one on {order.n} {order.by} questions"
            self.table(title, ("sender", "gain"), gains)

    def rows(self, rows: Sequence[Evaluated], order: Sequence[str]) -> None:
        """The table of a finished, or interrupted, evaluation."""
        headings = ("task", "receiver", "senders", "way", "n", "accuracy", "points", "p", "mean s", "bytes/token")
        shown = [
            (
                row.task,
                row.receiver,
                who(row.senders, order) or "-",
                row.way,
                str(row.n),
                f"{row.accuracy:.1%} ± {row.stderr or 0:.1%}",
                f"{row.gain_points:+.1f}" if row.way != "standalone" else "",
                p_value(row.p_alone) if row.way != "standalone" else "",
                "-" if row.latency_mean is None else f"{row.latency_mean:.3f}",
                per_token(row.bytes_per_token),
            )
            for row in rows
        ]
        self.table("Every case, ± one standard error; p against the receiver alone", headings, shown)
        for row in rows:
            if row.unrephrased:
                self.line(
                    f"{row.way}: {row.unrephrased} of {row.n} questions kept no whole rewrite, the receiver answered "
                    "them alone"
                )
        if told := [line for line in leaks.lines(rows) if leaks.ALL in line]:
            chosen = [leaks.HEADINGS.index(heading) for heading in LEAKAGE]
            title = "What rephrasing gives away, by row; of one who counts words, and of a blind guess"
            self.table(title, LEAKAGE, ([line[i] for i in chosen] for line in told))
