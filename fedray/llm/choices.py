"""Score choices: of each its log-probability behind a prompt, and whether greedy decoding would generate it.

Memory stays bounded, however many rows and choices there are: what all choices of a row begin with is read once, caches
are copied for so many rows at a time, and logits are computed at the positions that are read off, slice by slice.
Shape legend: B batch, R continuations, Q tokens, D hidden, N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedray.llm.cache import layers_of
from fedray.llm.decoding import Context, extend, pad
from fedray.llm.memory import COPIED, LOGITS
from fedray.llm.token_ids import shared


def score(
    model: Any, context: Context, logits_BV: Tensor, choices: Sequence[Sequence[list[int]]], fill: int
) -> tuple[list[list[float]], list[list[bool]]]:
    """Score every choice after `context`, which stays as it is; logits_BV are its next-token logits.

    choices[b][c] are the token ids of choice c of row b. Where logits are NaN, infinite or minus infinity throughout,
    scores are NaN.
    """
    slots, longest = context.visible_BS.shape[1], max(len(ids) for row in choices for ids in row)
    size = sum(t.nbytes for layer in layers_of(context.cache) for t in layer) // max(1, len(choices) * slots)
    at_a_time = max(1, COPIED // max(1, size * (slots + longest)))
    scores: list[list[float]] = []
    greedy: list[list[bool]] = []
    for start in range(0, len(choices), at_a_time):
        some = choices[start : start + at_a_time]
        rows = list(range(start, start + len(some)))
        for of_row, said in _score(model, context, rows, logits_BV[rows], some, fill, at_a_time):
            scores.append(of_row)
            greedy.append(said)
    return scores, greedy


def _score(
    model: Any,
    context: Context,
    rows: list[int],
    logits_BV: Tensor,
    choices: Sequence[Sequence[list[int]]],
    fill: int,
    at_a_time: int,
) -> list[tuple[list[float], list[bool]]]:
    """Score the choices of some rows of a context."""
    same = [begin[: _same(row)] for row in choices for begin in row[:1]]
    before, on_the_way = [0.0] * len(rows), [True] * len(rows)
    if any(same):
        context, rows = context.select(rows), list(range(len(rows)))
        first, as_said = _first(logits_BV, same)
        states_BQD = _read(model, context, same, fill)
        rest, going_on = _along(model, states_BQD, same)
        before = [a + b for a, b in zip(first, rest, strict=True)]
        on_the_way = [a and b for a, b in zip(as_said, going_on, strict=True)]
        here = [b for b, ids in enumerate(same) if ids]
        last = states_BQD[here, [len(same[b]) - 1 for b in here]]
        logits_BV = logits_BV.index_copy(0, last.new_tensor(here, dtype=torch.long), model.lm_head(last).float())
    flat = [(b, ids[len(same[b]) :]) for b, row in enumerate(choices) for ids in row]
    first, as_said = _first(logits_BV, [ids for _, ids in flat], [b for b, _ in flat])
    long = [i for i, (_, ids) in enumerate(flat) if len(ids) > 1]
    for start in range(0, len(long), at_a_time):
        part = long[start : start + at_a_time]
        copied, ends = context.select([rows[flat[i][0]] for i in part]), [flat[i][1] for i in part]
        rest, going_on = _along(model, _read(model, copied, [ids[:-1] for ids in ends], fill), ends)
        for i, more, said in zip(part, rest, going_on, strict=True):
            first[i], as_said[i] = first[i] + more, as_said[i] and said
    found, told = iter(first), iter(as_said)
    return [
        ([before[b] + next(found) for _ in row], [next(told) and on_the_way[b] for _ in row])
        for b, row in enumerate(choices)
    ]


def _same(row: Sequence[list[int]]) -> int:
    """Count the tokens that all choices of a row begin with; each has one more at least."""
    return min([len(ids) - 1 for ids in row] + [shared(row[0], ids) for ids in row])


def _first(
    logits_BV: Tensor, texts: Sequence[list[int]], rows: Sequence[int] | None = None
) -> tuple[list[float], list[bool]]:
    """Read the first token of each text off the logits of its row; one without tokens is certain."""
    log_p, most = torch.log_softmax(logits_BV, dim=-1), logits_BV.argmax(-1).tolist()
    places = range(len(texts)) if rows is None else rows
    pairs = list(zip(places, texts, strict=True))
    return (
        [float(log_p[b, ids[0]]) if ids else 0.0 for b, ids in pairs],
        [not ids or ids[0] == most[b] for b, ids in pairs],
    )


def _read(model: Any, context: Context, texts: Sequence[list[int]], fill: int) -> Tensor:
    """Read a text on top of every row; returns the hidden states (R, Q, D)."""
    ids_RQ, valid_RQ = pad(list(texts), fill, context.next_position_B.device)
    states_RQD = extend(model, context, ids_RQ, valid_RQ)
    assert states_RQD is not None, "only cache_only computes none"
    return states_RQD


def _along(model: Any, states_RQD: Tensor, texts: Sequence[list[int]]) -> tuple[list[float], list[bool]]:
    """Read all tokens but the first of each text off the states behind the one before: the sum of their
    log-probabilities, and whether each is the likeliest."""
    places = [(r, q, ids[q + 1]) for r, ids in enumerate(texts) for q in range(len(ids) - 1)]
    sums, as_said = [0.0] * len(texts), [True] * len(texts)
    at_a_time = max(1, LOGITS // (4 * model.config.vocab_size))
    for start in range(0, len(places), at_a_time):
        rows, at, tokens = (list(of) for of in zip(*places[start : start + at_a_time], strict=True))
        log_p_NV = torch.log_softmax(model.lm_head(states_RQD[rows, at]).float(), dim=-1)
        picked = log_p_NV[list(range(len(rows))), tokens].tolist()
        for r, log_p, most, token in zip(rows, picked, log_p_NV.argmax(-1).tolist(), tokens, strict=True):
            sums[r], as_said[r] = sums[r] + log_p, as_said[r] and most == token
    return sums, as_said
