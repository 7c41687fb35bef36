"""Several requests as one batch, and the batch's answer as theirs.

A batch's answers equal its rows' alone, so only what comes of a batch as a whole has to be shared out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain, pairwise
from typing import Any

from fedray.types import Answer, Missing, Plan, Request, Row, Usage, failed_rows

COLUMNS = ("asked", "evidence", "weights")  # of a request, by member


def kind(request: Request, plan: Plan) -> tuple[Any, ...] | None:
    """What requests of one batch have in common; None: this one is answered by itself.

    Of a conversation, of token ids, and where what is drawn for a row depends on the rows beside it.
    """
    drawn = request.generation.temperature > 0 or plan.method.draws
    if drawn or request.talk or request.donors or request.token_ids is not None:
        return None
    who = (frozenset(getattr(request, column)) for column in COLUMNS)
    return plan, request.generation, request.choices is None, *who


def merged(requests: Sequence[Request], deadline_s: float | None) -> Request:
    """One request of the rows of several that are of one `kind`."""
    first = requests[0]
    if len(requests) == 1:
        return replace(first, deadline_s=deadline_s)

    def of_member(column: str) -> Mapping[str, tuple[Any, ...]]:
        return {name: _joined(getattr(r, column)[name] for r in requests) for name in getattr(first, column)}

    return replace(
        first,
        prompts=_joined(r.prompts for r in requests),
        choices=None if first.choices is None else _joined(r.choices or () for r in requests),
        **{column: of_member(column) for column in COLUMNS},
        deadline_s=deadline_s,
    )


def parts(answer: Answer, requests: Sequence[Request]) -> list[Answer]:
    """The answer to each request of a batch: its rows, who was heard in them, and its share of the cost.

    Seconds are the batch's. Bytes on the wire and tokens read are shared out by the bytes that a request's rows have
    to read, on the wire times the senders that its gate let in; tokens of the answer are a request's own. Shares add
    up to what the batch took. `missing` names those who could have been heard in these rows.
    """
    if len(requests) == 1:
        return [answer]
    ends = list(accumulate((r.rows() for r in requests), initial=0))
    rows_of = [range(*ends) for ends in pairwise(ends)]
    shares = _shares(answer, requests, rows_of)
    return [_part(answer, rows, usage) for rows, usage in zip(rows_of, shares, strict=True)]


def _part(answer: Answer, rows: range, usage: Usage) -> Answer:
    def pick(of_rows: Sequence[Row]) -> tuple[Row, ...]:
        return tuple(of_rows[b] for b in rows)

    own = {name: pick(of_rows) for name, of_rows in answer.by_member.items()}
    whose = {answer.receiver: (answer.rows, pick(answer.rows))} | {n: (answer.by_member[n], own[n]) for n in own}
    of_batch = {missing for name, (whole, _) in whose.items() for missing in failed_rows(name, whole)}
    failed = chain.from_iterable(failed_rows(name, part) for name, (_, part) in whose.items())
    missing = [m for m in answer.missing if m not in of_batch and _could_be_heard(answer, m, rows)]
    return replace(
        answer,
        rows=pick(answer.rows),
        senders=tuple(name for name in answer.senders if any(_heard(answer, name, b) for b in rows)),
        missing=(*missing, *failed),
        usage=usage,
        by_member=own,
        read={name: tuple(texts[b] for b in rows) for name, texts in answer.read.items()},
        unrephrased={b - rows.start: why for b, why in answer.unrephrased.items() if b in rows},
    )


def _heard(answer: Answer, sender: str, row: int) -> bool:
    """Whether a sender may be heard in a row: the gate lets it in, and it had something to read."""
    return row not in answer.unrephrased and answer.rows[row].weights.get(sender, 1.0) > 0


def _could_be_heard(answer: Answer, missing: Missing, rows: range) -> bool:
    """Both ways everybody answers, and is missing to everybody."""
    everybody = missing.member == answer.receiver or bool(answer.by_member)
    return everybody or any(_heard(answer, missing.member, b) for b in rows)


def _shares(answer: Answer, requests: Sequence[Request], rows_of: Sequence[range]) -> list[Usage]:
    usage, senders = answer.usage, answer.senders
    read = [_bytes_read(request) for request in requests]
    heard = [sum(_heard(answer, name, b) for name in senders for b in rows) for rows in rows_of]
    own = [sum(len(answer.rows[b].tokens) for b in rows) for rows in rows_of]
    others = _apportioned(max(0, usage.answer_tokens - sum(own)), read)  # what members said for each other

    def by_member(tokens: Mapping[str, int]) -> list[dict[str, int]]:
        found = {name: _apportioned(count, read) for name, count in tokens.items()}
        return [{name: counts[i] for name, counts in found.items()} for i in range(len(requests))]

    return [
        Usage(usage.seconds, sent, prompt, said + beside, read_tokens, reused)
        for sent, prompt, said, beside, read_tokens, reused in zip(
            _apportioned(usage.payload_bytes, [a * b for a, b in zip(read, heard, strict=True)]),
            _apportioned(usage.prompt_tokens, read),
            own,
            others,
            by_member(usage.read_tokens),
            by_member(usage.reused_tokens),
            strict=True,
        )
    ]


def _bytes_read(request: Request) -> int:
    """Bytes of the prompts and documents of a request."""
    texts = chain(request.prompts, chain.from_iterable(request.evidence.values()))
    return sum(len(text.encode(errors="replace")) for text in texts)


def _apportioned(whole: int, weights: Sequence[int]) -> list[int]:
    """Share out a whole number by weights, to the last one."""
    weights = weights if sum(weights) else [1] * len(weights)
    ends = [whole * upto // sum(weights) for upto in accumulate(weights, initial=0)]
    return [after - before for before, after in pairwise(ends)]


def _joined(columns: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(chain.from_iterable(columns))
