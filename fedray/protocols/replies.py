"""What members reply, checked before it is added up or shown: of the right types, of bounded size, printable.

A member is its own program, and may be another's. What is not as it was asked for raises FedrayError, which costs that
member its part; what is comes back made anew, so that nothing else of it is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedray.text import printable
from fedray.types import Answer, FedrayError, Opening, Receipt, Request, Row, Usage, failed_rows

CHARACTERS_PER_TOKEN = 64  # more than tokens have, on average
PHASES = 32  # of one call
TEMPLATE, MARKS = 1024, 64  # tokens that a chat template may add, and for each turn
TOKENS_PER_BYTE = 4
_NAME = 200  # characters of a phase
_LARGEST = 1 << 53  # bytes or tokens
_REST = 64  # characters of a text that no token of the answer accounts for


def cost(member: str, reply: object) -> Usage:
    """Validate the usage of a receipt, an opening or an answer: all are numbers, and tokens the member's own."""
    if not isinstance(reply, (Receipt, Answer, Opening)) or type(reply.usage) is not Usage:
        raise FedrayError(f"{member} replied with {type(reply).__name__} that tells no usage; its program is at fault")
    found = reply.usage
    return Usage(
        {printable(phase, _NAME): s for phase, s in _pairs(member, "seconds", found.seconds, math.inf)},
        _count(member, found.payload_bytes),
        _count(member, found.prompt_tokens),
        _count(member, found.answer_tokens),
        *(
            {name: int(n) for name, n in _pairs(member, "tokens", of, _LARGEST) if name == member}
            for of in (found.read_tokens, found.reused_tokens)
        ),
    )


def lengths(member: str, reply: object, texts: Sequence[str | Sequence[int]], context: int) -> tuple[int, ...]:
    """Validate the tokens of each row, as a receipt tells them.

    Of token ids there are as many; of a text at least one, no more than it can have, and fewer than the context holds.
    """
    found = reply.lengths if isinstance(reply, Receipt) else ()
    if not _are(found, int) or len(found) != len(texts) or not all(map(_may_be, found, texts)) or max(found) >= context:
        raise FedrayError(f"{member} told other lengths than {len(texts)} prompts can have in its context of {context}")
    return found


def _may_be(tokens: int, text: str | Sequence[int]) -> bool:
    return 0 < tokens <= most_tokens(text) if isinstance(text, str) else tokens == len(text)


def most_tokens(*turns: str) -> int:
    """Bound the tokens of a text, or of a conversation's turns, in any tokenizer: some normalize before they cut."""
    return TEMPLATE + sum(TOKENS_PER_BYTE * len(turn.encode(errors="replace")) + MARKS for turn in turns)


def answer(member: str, reply: object, request: Request) -> Answer:
    """Validate a member's own answer to a request; rows that failed are named in `missing`."""
    found = rows(member, reply, request)
    return Answer(found, member, (), failed_rows(member, found), cost(member, reply))


def rows(member: str, reply: object, request: Request) -> tuple[Row, ...]:
    """Validate a row per prompt, each with a choice or a text of printable characters."""
    found = reply.rows if isinstance(reply, Answer) else ()
    if type(found) is not tuple or len(found) != request.rows() or not all(type(row) is Row for row in found):
        raise FedrayError(f"{member} answered something else than {request.rows()} rows; its program is at fault")
    return tuple(_row(member, row, request, b) for b, row in enumerate(found))


def _row(member: str, row: Row, request: Request, b: int) -> Row:
    if row.failed is True:
        return Row("", failed=True)
    if request.choices is None:
        if type(row.text) is not str:
            raise FedrayError(f"{member} answered with {type(row.text).__name__} where a text was asked for")
        most = request.generation.max_tokens
        text = printable(row.text, CHARACTERS_PER_TOKEN * most + _REST)
        return Row(text, _tokens(row, most), weights=_weights(member, row))
    choices, scores = request.choices[b], row.scores
    sound = _are(scores, float) and len(scores) == len(choices) and all(s <= math.inf for s in scores)  # no NaN
    if not sound or type(row.choice) is not int or not 0 <= row.choice < len(choices) or max(scores) == -math.inf:
        raise FedrayError(f"{member} scored something else than {len(choices)} choices, or with numbers that are none")
    greedy = row.greedy if _are(row.greedy, bool) and len(row.greedy) == len(choices) else ()
    text = choices[row.choice]
    return Row(text, _tokens(row, len(text.encode())), row.choice, scores, greedy, _weights(member, row))


def _tokens(row: Row, most: int) -> tuple[int, ...]:
    return row.tokens[:most] if _are(row.tokens, int) else ()


def _weights(member: str, row: Row) -> dict[str, float]:
    return {printable(name, _NAME): float(w) for name, w in _pairs(member, "weights", row.weights, 1.01)}


def _are(found: object, kind: type) -> bool:
    return type(found) is tuple and all(type(one) is kind for one in found)


def _count(member: str, found: object) -> int:
    if type(found) is not int or not 0 <= found < _LARGEST:
        raise FedrayError(f"{member} told a usage that is no number of bytes or tokens; its program is at fault")
    return found


def _pairs(member: str, what: str, found: object, largest: float) -> list[tuple[str, Any]]:
    """Names and numbers that are not negative."""
    pairs = list(found.items()) if isinstance(found, Mapping) and len(found) <= PHASES else None
    if pairs is None or not all(
        type(name) is str and type(n) in (int, float) and 0 <= n < largest for name, n in pairs
    ):
        raise FedrayError(f"{member} told a usage whose {what} are no numbers by name; its program is at fault")
    return pairs
