"""What an embedded zoo can do, on all held-out questions: the table every rebuild has to reach.

Members alone, each sender, senders added one by one, and the controls that a real gain must not survive, for both
operators. Everything runs in this process: the figures are those of the Ray path, which the tests hold equal to it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from fedray.evaluation.measure import batches
from fedray.evaluation.metrics import compare, holm
from fedray.llm.catalogue import NAMES
from fedray.member.member import Member
from fedray.protocols import ALONE, METHOD, protocol_of
from fedray.protocols.group import LocalGroup
from fedray.questions.scoring import is_right
from fedray.questions.tasks import Question, load_task, mismatched, request_fields
from fedray.registry.planner import Planner
from fedray.settings.settings import Settings, TaskSettings, ZooSettings
from fedray.types import Plan, Request
from fedray.world.world import KNOWLEDGE

OPERATORS = ("concat", "mix")
CONTROLS = ("mismatched", "noise", "constant")
BATCH = 64


@dataclass(frozen=True, slots=True)
class TableRow:
    """One way of answering. groups: accuracy per domain; harm_p: Holm-adjusted p per domain that the only sender does
    not know; bytes_per_token: payload bytes over receiver prompt tokens."""

    name: str
    receiver: str
    senders: tuple[str, ...]
    fusion: str
    gate: str
    control: str
    n: int
    accuracy: float
    accuracy_alone: float
    p_value: float
    rescued: int
    harmed: int
    bytes_per_token: float
    groups: Mapping[str, float]
    groups_alone: Mapping[str, float]
    harm_p: Mapping[str, float]


class Zoo:
    """All five LLMs of a zoo in one process, asked the same questions again and again."""

    def __init__(self, folder: Path | None, split: str = "test", limit: int | None = None, task: str = "tiny") -> None:
        settings = Settings(
            zoo=ZooSettings(path=folder),
            task=TaskSettings(name=task, limit=limit, split=split),  # pyright: ignore[reportArgumentType]
        )
        self.questions = load_task(settings)
        self.group = LocalGroup({name: Member(name, folder=folder) for name in NAMES})
        self.planner = Planner(None, folder)
        self._alone: dict[str, list[bool]] = {}

    def plan(self, receiver: str, senders: Sequence[str], gate: str = "learned", **choices: str) -> Plan:
        infos, method = self.group.members, METHOD.read({**choices, "gate": {"kind": gate, "route": "lazy"}})
        return self.planner.plan(infos[receiver], [infos[s] for s in senders], method)

    def alone(self, receiver: str) -> list[bool]:
        if receiver not in self._alone:
            plan = Plan(receiver, (), ALONE)
            self._alone[receiver] = self._ask(plan, None)[0]
        return self._alone[receiver]

    def row(self, name: str, plan: Plan) -> TableRow:
        others = mismatched(self.questions, seed=0) if plan.method.control == "mismatched" else None
        before = self.alone(plan.receiver)
        after, bytes_per_token = self._ask(plan, others) if plan.senders else (before, 0.0)
        found = compare(before, after)
        return TableRow(
            name=name,
            receiver=plan.receiver,
            senders=plan.senders,
            fusion=plan.method.fusion,
            gate=plan.method.gate.kind,
            control=plan.method.control,
            n=found.n,
            accuracy=found.accuracy,
            accuracy_alone=found.accuracy_alone,
            p_value=found.p_value,
            rescued=found.rescued,
            harmed=found.harmed,
            bytes_per_token=bytes_per_token,
            groups=self._by_group(after),
            groups_alone=self._by_group(before),
            harm_p=self._harm(plan, before, after),
        )

    def _ask(self, plan: Plan, others: list[str] | None) -> tuple[list[bool], float]:
        right: list[bool] = []
        payload, tokens = 0, 0
        read = dict(zip(self.questions, others, strict=True)) if others else None
        for batch in batches(self.questions, BATCH):
            request = Request(
                prompts=tuple(q.prompt for q in batch),
                **request_fields(batch, plan, read),
            )
            answer = asyncio.run(_run(request, plan, self.group))
            right += [is_right(row.choice, q.gold or 0) for row, q in zip(answer.rows, batch, strict=True)]
            payload += answer.usage.payload_bytes
            tokens += answer.usage.prompt_tokens
        return right, payload / tokens

    def _by_group(self, right: Sequence[bool]) -> dict[str, float]:
        return {g: sum(r) / len(r) for g, r in _split(self.questions, right).items()}

    def _harm(self, plan: Plan, before: Sequence[bool], after: Sequence[bool]) -> dict[str, float]:
        """For one sender: per domain it does not know, the paired p-value of the change, Holm-adjusted."""
        if len(plan.senders) != 1:
            return {}
        own = KNOWLEDGE[plan.senders[0]][0]
        one, two = _split(self.questions, before), _split(self.questions, after)
        foreign = [g for g in one if g != own]
        return dict(zip(foreign, holm([compare(one[g], two[g]).p_value for g in foreign]), strict=True))


async def _run(request: Request, plan: Plan, group: LocalGroup):
    return await protocol_of(plan).run(request, plan, group)


def measure(zoo: Zoo, receiver: str, on_row: Callable[[TableRow], None], operators: Sequence[str] = OPERATORS) -> None:
    """All rows of one receiver, handed out as they are measured."""
    senders = [name for name in NAMES if name != receiver]
    for name in NAMES:
        on_row(zoo.row(f"{name} alone", Plan(name, (), ALONE)))
    for fusion in operators:
        for sender in senders:
            on_row(zoo.row(f"{fusion}: {sender}", zoo.plan(receiver, [sender], fusion=fusion)))
        for count in range(2, len(senders) + 1):
            on_row(zoo.row(f"{fusion}: {count} senders", zoo.plan(receiver, senders[:count], fusion=fusion)))
        on_row(zoo.row(f"{fusion}: 4 senders, gate open", zoo.plan(receiver, senders, fusion=fusion, gate="open")))
        for control in CONTROLS:
            for gate in ("learned", "open"):
                plan = zoo.plan(receiver, senders, fusion=fusion, gate=gate, control=control)
                on_row(zoo.row(f"{fusion}: {control}, gate {gate}", plan))


def run(folder: Path, seed: int) -> list[TableRow]:
    """Measure the default receiver's table of the zoo in `folder`, show it, and leave table.md and table.json there."""
    screen = Console(width=None if sys.stdout.isatty() else 120)
    rows: list[TableRow] = []

    def show(row: TableRow) -> None:
        rows.append(row)
        screen.print(f"{row.name}: {row.accuracy:.1%}, alone {row.accuracy_alone:.1%}", highlight=False)

    zoo = Zoo(folder)
    screen.print(f"all {len(zoo.questions)} held-out questions (zoo=tiny, world seed {seed})", style="bold")
    measure(zoo, NAMES[0], show)
    title = f"zoo=tiny, world seed {seed}, receiver {NAMES[0]}"
    (folder / "table.md").write_text(as_markdown(rows, title), encoding="utf-8")
    (folder / "table.json").write_text(json.dumps(as_json(rows), indent=1) + "\n", encoding="utf-8")
    screen.print(f"table: {folder / 'table.md'}", highlight=False, soft_wrap=True)
    return rows


def oracle(rows: Sequence[TableRow]) -> float:
    """Accuracy if the best member for each question's domain had answered alone: what a federation aims at."""
    alone = [row.groups for row in rows if row.name.endswith(" alone")]
    groups = alone[0]
    return sum(max(member[g] for member in alone) for g in groups) / len(groups)


def as_markdown(rows: Sequence[TableRow], title: str) -> str:
    """The table as Markdown; accuracies in per cent."""
    groups = list(rows[0].groups)
    lines = [
        f"# {title}",
        "",
        f"n = {rows[0].n} questions; best member per domain: {oracle(rows):.1%}",
        "",
        "| row | accuracy | alone | p | rescued | harmed | bytes/token | " + " | ".join(groups) + " |",
        "|---|---|---|---|---|---|---|" + "---|" * len(groups),
    ]
    for row in rows:
        cells = [
            f"{value:.1%}" + (f" (p {row.harm_p[g]:.2f})" if g in row.harm_p else "") for g, value in row.groups.items()
        ]
        lines.append(
            f"| {row.name} | {row.accuracy:.1%} | {row.accuracy_alone:.1%} | {row.p_value:.2g} | {row.rescued} | "
            f"{row.harmed} | {row.bytes_per_token:,.0f} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines) + "\n"


def as_json(rows: Sequence[TableRow]) -> list[dict[str, object]]:
    return [asdict(row) for row in rows]


def _split(questions: Sequence[Question], right: Sequence[bool]) -> dict[str, list[bool]]:
    groups: dict[str, list[bool]] = {}
    for question, ok in zip(questions, right, strict=True):
        groups.setdefault(question.group, []).append(ok)
    return dict(sorted(groups.items()))
