"""table.md: an evaluation as Markdown, beside what the paper reports (FedRefine, arXiv 2603.28772, case study).

The paper gives no table, no number of questions and no error bars; what it says in words stands here as it says it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedray.evaluation import leakage_table
from fedray.evaluation.figures import c2c_table
from fedray.evaluation.metrics import MARGIN
from fedray.files import write_whole
from fedray.llm.catalogue import shortening
from fedray.reporting.report import Contribution, Evaluated, Report, unwritable

NAME = "table.md"
FULL_HOUSE = 4  # senders in the paper's case study
PAPER_KV, PAPER_TOKEN = "88 KB/token", "16 B/token"
PAPER = {  # protocol, rephrase -> what the paper says of four senders
    ("c2c", "none"): f"+21.2 % over alone; {PAPER_KV}",
    ("c2c", "shared"): "3 % below original",
    ("t2t", "none"): f"C2C about 15 % above; {PAPER_TOKEN}",
}


def write(report: Report, folder: Path) -> Path:
    """Write table.md into a folder. Raises FedrayError when it cannot be written."""
    path = folder / NAME
    try:
        write_whole(path, as_markdown(report))
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def as_markdown(report: Report) -> str:
    """The paper's claims beside what was measured, every row, paired comparisons, and what each sender brings."""
    order = report.who.order.senders if report.who.order else report.who.senders
    lines = [
        f"# Evaluation: zoo={report.zoo}, receiver {report.who.receiver}, n={report.found.n}",
        "",
        f"Status: {report.status}. Seconds are those of questions asked one at a time, on {os.cpu_count()} CPU cores. "
        "± is one standard error, clustered by entity; p is the exact McNemar test against the receiver alone.",
        "",
        *_order(report),
        *_claims(report),
        *_section(c2c_table.TITLE, c2c_table.HEADINGS, list(c2c_table.lines(report.evaluated)), c2c_table.NOTE),
        *_rows(report.evaluated, order),
        *_speculation(report.evaluated),
        *_comparisons(report, order),
        *_contributions(report.contributions),
        *_leakage(report.evaluated),
    ]
    whose = (report.who, *(row.who for row in report.evaluated))
    return shortening(name for who in whose for name in (who.receiver, *who.senders))("\n".join(lines) + "\n")


def _order(report: Report) -> Iterator[str]:
    order = report.who.order
    if order is None or not any(len(row.who.senders) > 1 for row in report.evaluated):
        return
    gains = [f"{name} ({order.gains[name]:+.1f})" if name in order.gains else name for name in order.senders]
    why = f"by gain in points as the only sender, {order.n} validation questions" if order.n else "as given"
    yield from (f"Order of the senders, fixed before any test question ({why}): {', '.join(gains)}.", "")


def _claims(report: Report) -> Iterator[str]:
    """The paper's sentences about four senders, each beside its own figure here."""
    whole = [r for r in report.evaluated if len(r.who.senders) == FULL_HOUSE]
    found = {key: r for r in whole if r.who.receiver == report.who.receiver and (key := paper_key(r))}
    c2c, shared, t2t = (found.get(key) for key in PAPER)
    claims: list[tuple[str, str, str]] = []
    if c2c:
        percent = "" if c2c.gain_percent is None else f" ({c2c.gain_percent:+.1f} %)"
        claims.append(("C2C over the receiver alone", "+21.2 %", f"{c2c.gain_points:+.1f} points{percent}"))
    if c2c and shared:
        claims.append(("rephrasing costs C2C", "3 %", _difference(shared, c2c)))
    if c2c and t2t:
        claims.append(("C2C above T2T", "about 15 %", _difference(t2t, c2c)))
    if shared and t2t and shared.seconds and t2t.seconds:
        seconds = f"{shared.seconds.mean:.3f} s against {t2t.seconds.mean:.3f} s"
        claims.append(("rephrased C2C against T2T, mean seconds", "significantly lower", seconds))
    full = next((r for r in whole if r.how.t2t.full and r.how.rephrase == "none"), None)
    for name, row in (("C2C", c2c), ("rephrased C2C", shared)):
        if row and full and row.seconds and full.seconds:
            seconds = f"{row.seconds.mean:.3f} s against {full.seconds.mean:.3f} s"
            claims.append((f"{name} against T2T with every hint at its full budget, mean seconds", "", seconds))
    for row, said in ((c2c, PAPER_KV), (t2t, PAPER_TOKEN)):
        if row and row.cost.bytes_per_token_analytic:
            measured, analytic = per_token(row.cost.bytes_per_token), f"{row.cost.bytes_per_token_analytic:,.0f}"
            sent = f"{measured} B measured, {analytic} B analytic"
            claims.append((f"bytes per token, {row.how.protocol.name}", said.removesuffix("/token"), sent))
    note = (
        "The paper does not say whether its per cent are points or relative; points are in percentage points, per "
        "cent in brackets are relative. Measured bytes count what the gate let through, analytic bytes every sender's "
        "whole cache."
    )
    yield from _section("Four senders, against the paper", ("", "paper", f"here (zoo={report.zoo})"), claims, note)


def _difference(low: Evaluated, high: Evaluated) -> str:
    points = 100 * (high.accuracy - low.accuracy)
    return f"{points:.1f} points" + (f" ({points / low.accuracy:.1f} %)" if low.accuracy else "")


def _rows(rows: Sequence[Evaluated], order: Sequence[str]) -> Iterator[str]:
    """Every case with its figures, and the paper's where it has one."""
    headings = ("row", "task", "receiver", "senders", "way", "type", "accuracy", "P (95 %)", "over soft")
    headings = (*headings, "read", "harm", "points", "relative", "p", "rescued", "harmed", "mean s", "p50 s", "p95 s")
    headings = (*headings, "B/token", "analytic", "paper (4 senders)")
    notes = [*_pairing(rows), *(note for row in rows for note in _notes(row, order))]
    cells = [(str(number), *_row(row, order)) for number, row in enumerate(rows, 1)]
    yield from _section("Every case", headings, cells, *notes)


def _row(row: Evaluated, order: Sequence[str]) -> tuple[str, ...]:
    key = paper_key(row)
    paper = PAPER[key] if key and len(row.who.senders) == FULL_HOUSE else ""
    seconds = [f"{getattr(row.seconds, q):.3f}" if row.seconds else "" for q in ("mean", "p50", "p95")]
    gain, found = ("",) * 5, row.found
    if not row.is_alone:
        percent = "" if row.gain_percent is None else f"{row.gain_percent:+.1f} %"
        gain = (f"{row.gain_points:+.1f}", percent, p_value(row.p_value), str(found.rescued), str(found.harmed))
    return (
        row.task if row.scoring == "text" else f"{row.task} ({row.scoring})",
        row.who.receiver,
        who(row.who.senders, order),
        row.way,
        row.who.type or "",
        share(row),
        "" if found.pairing_gain is None else str(found.pairing_gain),
        "" if found.soft_gain is None else str(found.soft_gain),
        found.read,
        "" if found.harm is None else str(found.harm),
        *gain,
        *seconds,
        per_token(row.cost.bytes_per_token),
        "" if row.cost.bytes_per_token_analytic is None else f"{row.cost.bytes_per_token_analytic:,.0f}",
        paper,
    )


def _pairing(rows: Sequence[Evaluated]) -> Iterator[str]:
    """Say what P is, and how its donors were drawn."""
    if donors := sorted({row.found.donors for row in rows if row.found.pairing_gain is not None}):
        yield (
            "P: pairing gain, points over the same way with other questions' messages (donors per question and their "
            f"answer: {', '.join(donors)}; of documents, other documents); harm: alone over those. Intervals are "
            "paired and clustered by entity. over soft: points over as many trained slots that depend on nothing "
            "(control=soft). read: the lower bounds of G, of P and, of slots, of what is over soft prompts are above "
            f"0; no effect: P is within {MARGIN:g} points by two one-sided tests. "
        )


def _notes(row: Evaluated, order: Sequence[str]) -> Iterator[str]:
    """What a row does not show: failures and those who were missing."""
    what = f"{row.way}, {who(row.who.senders, order) or 'nobody'} for {row.who.receiver}"
    found = row.found
    if found.sender_gains:
        yield f"- {what}: P of each alone: {', '.join(f'{s} {gain}' for s, gain in found.sender_gains.items())}."
    if found.unrephrased:
        kept = f"{found.unrephrased} of {found.n} questions kept no whole rewrite"
        yield f"- {what}: {kept}; the receiver answered alone."
    if found.failed or found.unparseable:
        unread = f"{found.unparseable / found.n:.1%} of the answers named no choice"
        yield f"- {what}: {found.failed} questions failed, {unread}."
    yield from (f"- {what}: {missing.member} was missing, {missing.reason}." for missing in row.who.missing)


def _speculation(rows: Sequence[Evaluated]) -> Iterator[str]:
    """Rounds of SpecFed, and the receiver's own speed beside them."""
    headings = ("way", "tokens/forward", "acceptance", "B/position", "B/token", "tokens/s", "epsilon", "Delta (bound)")
    note = (
        "A forward pass is one row's, of every worker; bytes per position are one worker's, bytes per token all "
        "workers' for a token of the answer; tokens/s in batches."
    )
    cells = [_rounds(row) for row in rows if row.found.speculation]
    yield from _section("SpecFed (arXiv 2604.25777)", (*headings, "Delta alpha (bound)", "accuracy"), cells, note)


def _rounds(row: Evaluated) -> tuple[str, ...]:
    figures = row.found.speculation

    def bounded(name: str) -> str:
        value, bound = figures[name], figures[f"{name}_bound"]
        return "" if value is None else f"{_figure(value, 4)} ({_figure(bound, 4)})"

    return (
        row.way,
        *(_figure(figures[name]) for name in ("tokens_per_forward", "acceptance")),
        *(_figure(figures[name], 0) for name in ("bytes_per_position", "bytes_per_token")),
        _figure(row.cost.tokens_per_s, 1),
        _figure(figures["epsilon"], 4),
        *map(bounded, ("delta", "gap")),
        f"{row.accuracy:.1%}",
    )


def _figure(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _comparisons(report: Report, order: Sequence[str]) -> Iterator[str]:
    headings = ("rows", "receiver", "senders", "a", "b", "n", "a right", "b right", "points", "95 %")
    cells: list[tuple[str, ...]] = []
    for c in report.comparisons:
        b = report.evaluated[c.rows[1]].who
        interval = "" if c.low is None or c.high is None else f"{c.low:+.1f} to {c.high:+.1f}"
        named = (f"{c.rows[0] + 1}, {c.rows[1] + 1}", b.receiver, who(b.senders, order), c.a, c.b, str(c.n))
        shares = (f"{c.accuracy_a:.1%}", f"{c.accuracy_b:.1%}", f"{c.points:+.1f}", interval)
        cells.append((*named, *shares, str(c.rescued), str(c.harmed), p_value(c.p)))
    title = "Paired comparisons: what b changes over a"
    yield from _section(title, (*headings, "rescued", "harmed", "p"), cells)


def _contributions(found: Sequence[Contribution]) -> Iterator[str]:
    headings = ("task", "receiver", "way", "senders", "sender", "bytes/token given", "points gained", "p")
    cells: list[tuple[str, ...]] = []
    for c in found:
        figures = (per_token(c.bytes_per_token), f"{c.points:+.1f}", p_value(c.p))
        cells.append((c.task, c.receiver, c.way, str(c.of), c.sender, *figures))
    yield from _section("What each sender gives and brings: with it against without it", headings, cells)


def _leakage(rows: Sequence[Evaluated]) -> Iterator[str]:
    note = (
        "Shares of words the questions and their rewrites have in common, and how often one who counts words picks "
        "the right one of n questions (of one group: about one entity; in brackets a blind guess). Template copies "
        "are rewrites that word for word are a phrasing the LLM was taught. Low figures prove no privacy: whoever "
        "answers a rewrite knows what was asked."
    )
    cells = list(leakage_table.lines(rows))
    yield from _section("What rephrasing gives away", leakage_table.HEADINGS, cells, note)


def _section(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *notes: str) -> Iterator[str]:
    """Write a table under its title, and notes below it; nothing where it has no rows."""
    if rows:
        yield from (f"## {title}", "", f"| {' | '.join(headings)} |", "|" + "---|" * len(headings))
        yield from (f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)
        yield from ("", *notes, "") if notes else ("",)


def paper_key(row: Evaluated) -> tuple[str, str] | None:
    """Which of the paper's ways a row is: as published, nothing gated that the paper does not gate, no control."""
    how = row.how
    key = (how.protocol.name, how.rephrase)
    learned = not how.protocol.fuses or how.gate.kind == "learned"
    return key if how.published and learned and key in PAPER else None


def who(senders: Sequence[str], order: Sequence[str]) -> str:
    """Who helps: "all 4", "first 2", "all but llama-1b" of the senders in their order, or names."""
    if len(senders) < 2:
        return "".join(senders)
    if set(senders) == set(order):
        return f"all {len(order)}"
    if tuple(senders) == tuple(order[: len(senders)]):
        return f"first {len(senders)}"
    out = [name for name in order if name not in senders]
    return f"all but {out[0]}" if len(out) == 1 and set(senders) < set(order) else " + ".join(senders)


def share(row: Evaluated) -> str:
    """Accuracy ± one standard error, with the token F1 where there is one."""
    f1 = "" if row.found.f1 is None else f", F1 {row.found.f1:.1%}"
    return f"{row.accuracy:.1%} ± {row.stderr:.1%}{f1}"


def p_value(p: float) -> str:
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


STARS = "* p<0.05  ** p<0.01  *** p<0.001, McNemar against the receiver alone"


def stars(p: float) -> str:
    """How sure a difference is."""
    return "***" if p < 0.001 else "**" if p < 0.01 else "*" if p < 0.05 else "n.s."


def per_token(count: float) -> str:
    """Bytes per token; of text there is less than one."""
    return f"{count:,.0f}" if count >= 10 or count == 0 else f"{count:.1f}"
