"""Screens of jobs/federate.py and jobs/evaluate.py. Every table says which zoo its figures come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.text import Text

from fedray.evaluation import leakage_table
from fedray.evaluation.figures import c2c_table
from fedray.evaluation.metrics import Comparison, Effects
from fedray.evaluation.record import Outcome, Result
from fedray.evaluation.table import p_value, per_token, share, who
from fedray.reporting.report import Cost, Evaluated, Found, Learned, MemberReport, Report, SenderOrder
from fedray.reporting.screen import Screen
from fedray.text import printable
from fedray.types import Missing

_STYLES: dict[Outcome, str] = {"rescued": "green", "harmed": "red", "both right": "", "both wrong": "dim", "": ""}
_SHOWN: dict[Outcome, int] = {"rescued": 2, "harmed": 1, "both right": 1, "both wrong": 1, "": 5}
LEAKAGE = ("rows", "seen by", "n", "Jaccard", "ROUGE-L", "entities kept", "template copies", "linked (blind)")
Update = Callable[[int], None]


class FederateScreen(Screen):
    """The screen of jobs/federate.py."""

    def members(self, members: Sequence[MemberReport], kind: str | None = None) -> None:
        headings = ["member", "role", "family", "parameters", "device", "node", "pid"]
        rows = [[m.name, m.role, m.family, f"{m.parameters:,}", m.device, m.node, str(m.pid)] for m in members]
        if self.zoo != "tiny":
            headings += ["dtype", "commit"]
            rows = [[*row, m.dtype, m.revision[:12] or "-"] for row, m in zip(rows, members, strict=True)]
        self.table("Who takes part", headings, rows)
        if kind:
            self.line(f"type: {kind} (FedRefine, Appendix A)\n")

    def learned(self, learned: Sequence[Learned]) -> None:
        """Which versions of fusers and gates are in use."""
        if learned:
            versions = (f"{part.name} {str(part.hash)[:8]}" for part in learned)
            self.line(f"learned parts: {', '.join(versions)}\n")

    def untrained(self, learned: Sequence[Learned]) -> None:
        """Say that answers mean nothing where fusers were never trained."""
        names = [part.name for part in learned if part.status == "random"]
        if names:
            self.line(f"random weights, never trained, so that no answer means anything: {', '.join(names)}\n")

    @contextmanager
    def progress(self, total: int) -> Iterator[Callable[[int, Comparison | None], None]]:
        """A live bar; call what it yields with the questions done so far and their comparison."""
        with self.bars() as bar:
            task = bar.add_task("questions", total=total, running="")

            def update(done: int, found: Comparison | None) -> None:
                running = f"alone {found.accuracy_alone:.1%}  federated {found.accuracy:.1%}" if found else ""
                bar.update(task, completed=done, running=running)

            yield update

    def alone(self, receiver: str, text: str) -> None:
        self.line(Text.assemble((f"{self.short(receiver)} alone  ", "bold"), printable(text)))

    def stream(self, pieces: Iterable[str]) -> None:
        """Show an answer as it is decoded."""
        self.console.print(Text("the federation  ", "bold green"), end="")
        for piece in pieces:
            self.console.print(Text(printable(piece)), end="", soft_wrap=True)
        self.console.print()

    def details(self, result: Result) -> None:
        """Of a single prompt: what senders read in its place, and what each member answered."""
        answered = result.answered()
        for sender, text in answered.read.items():
            self.line(Text.assemble((f"{self.short(sender)} read  ", "dim"), printable(text)))
        for name, text in answered.by_member.items():
            self.line(Text.assemble((f"{self.short(name)} answered  ", "dim"), printable(text or "-")))

    def summary(
        self,
        report: Report,
        results: Sequence[Result],
        found: Mapping[str, Comparison],
        effects: Mapping[str, Effects],
    ) -> None:
        """Everything a finished (or interrupted) run has to say."""
        if report.task is not None and results:
            self.examples(results)
        if found:
            self.accuracy(found, report.scoring, effects)
            self.f1(report.found)
            self.pairing(report.found)
        if report.found.by_member:
            rows = ((name, f"{share:.1%}") for name, share in report.found.by_member.items())
            self.table("Accuracy of each member's own answers", ("member", "accuracy"), rows)
        if report.cost.seconds:
            self.seconds(report.cost)
        if report.found.speculation:
            self.speculation(report.found.speculation)
        if report.found.weights:
            self.trust(report.found.weights)
        if report.who.missing:
            self.missing(report.who.missing)

    def examples(self, results: Sequence[Result]) -> None:
        rows: list[list[Text]] = []
        for result in _some(results):
            a = result.answered()
            texts = (a.question, a.gold or "-", a.alone or "-", a.federated or "-", result.outcome)
            rows.append([Text(printable(text), _STYLES[result.outcome]) for text in texts])
        self.table("Some of the questions", ("question", "gold", "alone", "federated", ""), rows)

    def accuracy(
        self, found: Mapping[str, Comparison], scoring: str, effects: Mapping[str, Effects] | None = None
    ) -> None:
        rows: list[tuple[str, ...]] = []
        for name, c in found.items():
            alone = f"{c.accuracy_alone:.1%} ± {c.stderr_alone:.1%}"
            federated = f"{c.accuracy:.1%} ± {c.stderr:.1%}"
            p = "< 0.0001" if c.p_value < 1e-4 else f"{c.p_value:.4f}"
            pairing = (effects or {}).get(name)
            shown = "-" if pairing is None or pairing.pairing_gain is None else str(pairing.pairing_gain)
            rows.append((name, str(c.n), alone, federated, shown, str(c.rescued), str(c.harmed), p))
        headings = ("questions", "n", "alone", "federated", "P (95 %)", "rescued", "harmed", "paired p-value")
        how = "" if scoring == "text" else f" by {scoring}"
        self.table(f"Accuracy{how}, ± one standard error", headings, rows)

    def f1(self, found: Found) -> None:
        """Token F1, beside an accuracy of answers in a few words."""
        if found.f1 is not None and found.f1_alone is not None:
            self.line(f"token F1: alone {found.f1_alone:.1%}, federated {found.f1:.1%}\n")

    def pairing(self, found: Found) -> None:
        """What P is, and whether messages were read."""
        if found.pairing_gain is None:
            return
        lines = [f"system gain G {found.system_gain}, pairing gain P {found.pairing_gain}, harm {found.harm} points"]
        if found.question_gain is not None:
            lines.append(f"P is over other documents; over another question about one's own: {found.question_gain}")
        lines += [f"P of {name} alone: {gain}" for name, gain in found.sender_gains.items()]
        said = f": {found.read}" if found.read else ""
        lines.append(f"P is over answers with other questions' messages, donors per question: {found.donors}{said}\n")
        self.line("\n".join(lines))

    def seconds(self, cost: Cost) -> None:
        rows = ((phase, f"{p.p50:.3f}", f"{p.p95:.3f}") for phase, p in cost.seconds.items())
        together = f", {cost.at_a_time} at a time" if cost.at_a_time > 1 else ""
        self.table(f"Seconds per request, a batch of questions{together}", ("phase", "p50", "p95"), rows)
        wire = f"{cost.bytes_per_token:,.0f} bytes per token of the receiver's prompts"
        self.line(f"on the wire: {wire}, {cost.payload_bytes:,} bytes in all (zoo={self.zoo})\n")

    def speculation(self, figures: Mapping[str, float | None]) -> None:
        rows = ((name.replace("_", " "), f"{value:,.4g}") for name, value in figures.items() if value is not None)
        self.table("Rounds of SpecFed, means", ("", ""), rows)

    def trust(self, trust: Mapping[str, Mapping[str, float]]) -> None:
        senders = sorted({sender for group in trust.values() for sender in group})
        rows: list[list[str | Text]] = []
        for group, weights in trust.items():
            best = max(weights.values())
            rows.append([group, *(_weight(weights.get(sender), best) for sender in senders)])
        self.table("Whom the gate trusted for what, mean weight", ("questions", *senders), rows)

    def unrephrased(self, flaws: Mapping[int, str], n: int) -> None:
        """Questions that no rewrite stood for, and what was wrong with one of those."""
        if flaws:
            flaw = printable(next(iter(flaws.values())))
            self.line(f"{len(flaws)} of {n} questions kept no whole rewrite ({flaw}): the receiver answered them alone")

    def unparseable(self, report: Report) -> None:
        """Answers in which nothing could be read."""
        found = report.found
        if found.unparseable or found.unparseable_alone:
            self.line(
                f"no choice or number could be read in {found.unparseable_alone} of {found.n} answers alone and "
                f"{found.unparseable} federated: they count as wrong"
            )

    def unheard(self, holders: Mapping[str, int], n: int) -> None:
        """Evidence that its holder read for nothing."""
        for name, count in holders.items():
            self.line(
                f"the evidence of {name} was not heard in {count} of {n} questions: the gate, which does not read it, "
                "shut its holder out; gate=open lets everybody in"
            )

    def missing(self, missing: Sequence[Missing]) -> None:
        self.table("Who was missing", ("member", "why"), ((m.member, m.reason) for m in missing))


def _weight(weight: float | None, best: float) -> Text:
    if weight is None:
        return Text("-", "dim")
    return Text(f"{weight:.2f}", "bold green" if weight == best and weight > 0 else "")


def _some(results: Sequence[Result]) -> list[Result]:
    """A few of each outcome."""
    return [r for outcome, count in _SHOWN.items() for r in [r for r in results if r.outcome == outcome][:count]]


class EvaluateScreen(FederateScreen):
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

    def order(self, order: SenderOrder) -> None:
        gains = [(name, f"{order.gains[name]:+.1f}") for name in order.senders if name in order.gains]
        if gains:
            title = f"Order of the senders, by gain in points as the only one on {order.n} {order.by} questions"
            self.table(title, ("sender", "gain"), gains)

    def rows(self, rows: Sequence[Evaluated], order: Sequence[str]) -> None:
        """The table of a finished, or interrupted, evaluation."""
        headings = ("task", "receiver", "senders", "way", "n", "accuracy", "points", "p", "P (95 %)", "read")
        headings = (*headings, "mean s", "bytes/token")
        shown: list[tuple[str, ...]] = []
        for row in rows:
            named = (row.task, row.who.receiver, who(row.who.senders, order) or "-", row.way, str(row.found.n))
            gain = ("", "") if row.is_alone else (f"{row.gain_points:+.1f}", p_value(row.p_value))
            gain += ("" if row.found.pairing_gain is None else str(row.found.pairing_gain), row.found.read)
            seconds = "-" if row.seconds is None else f"{row.seconds.mean:.3f}"
            sent = per_token(row.cost.bytes_per_token)
            shown.append((*named, share(row), *gain, seconds, sent))
        self.table("Every case, ± one standard error; p against the receiver alone", headings, shown)
        for row in rows:
            if lost := row.found.unrephrased:
                kept = f"{lost} of {row.found.n} questions kept no whole rewrite"
                self.line(f"{row.way}: {kept}, the receiver answered them alone")
            if gains := row.found.sender_gains:
                self.line(f"{row.way}: P of each alone: {', '.join(f'{s} {gain}' for s, gain in gains.items())}")
        if published := list(c2c_table.lines(rows)):
            chosen = [c2c_table.HEADINGS.index(heading) for heading in c2c_table.SHOWN]
            self.table(c2c_table.TITLE, c2c_table.SHOWN, ([line[i] for i in chosen] for line in published))
            self.line(f"{c2c_table.NOTE}\n")
        if told := [line for line in leakage_table.lines(rows) if leakage_table.ALL in line]:
            chosen = [leakage_table.HEADINGS.index(heading) for heading in LEAKAGE]
            title = "What rephrasing gives away, by row; of one who counts words, and of a blind guess"
            self.table(title, LEAKAGE, ([line[i] for i in chosen] for line in told))
