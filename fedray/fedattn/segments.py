"""A prompt in contiguous segments, one per participant, the task publisher's last. Text only: nothing is tokenized.

A cut changes no token of Qwen's and Llama 3's: it lies before the first line that shows something after line breaks, or
in front of a single space, where their pre-tokenizers begin a new piece. GPT-2's kind joins blank lines in front of a
cut, which it reads apart elsewhere. No part is blank.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from fedray.prompts import notes_prompt, one_line
from fedray.sharing import FedAttn
from fedray.types import FedrayError

_LINE = r"(?<=\n)(?=[^\S\r\n]*\S)"  # a blank line belongs to what stands above it
_CUTS = {
    "even": re.compile(_LINE + r"|(?<=\S)(?= \S)"),  # between words
    "sentence": re.compile(_LINE + r"|(?<=[.?!])(?= \S)"),
}


def segments(prompt: str, how: FedAttn, document: str = "") -> tuple[str, ...]:
    """The parts of a prompt, which joined are the prompt; document: notes that stand above it.

    With `question_apart` the last part is the prompt under its document, or the last sentence where there is none.
    Raises FedrayError where there are fewer parts than participants.
    """
    prompt = prompt.strip()
    whole = notes_prompt(document.splitlines(), prompt)
    if how.participants == 1:
        return (whole,)
    last = len(whole) - len(prompt)  # where the question begins
    if how.question_apart and not last:
        last = max((match.start() for match in _CUTS["sentence"].finditer(whole)), default=0)
    end = last if how.question_apart else len(whole)
    possible = [match.start() for match in _CUTS[how.segments].finditer(whole) if match.start() < end]
    wanted = how.participants - 1 - how.question_apart
    if (how.question_apart and not last) or len(possible) < wanted:
        raise too_many(how, len(possible) + 1 + (how.question_apart and last > 0), whole)
    cuts = [*_even(possible, wanted, end), *([last] if how.question_apart else [])]
    return tuple(whole[a:b] for a, b in pairwise([0, *cuts, len(whole)]))


def id_segments(ids: Sequence[int], how: FedAttn) -> tuple[tuple[int, ...], ...]:
    """A prompt's token ids in even parts. Raises FedrayError where there are fewer ids than participants."""
    if len(ids) < how.participants:
        raise too_many(how, len(ids), f"{len(ids)} token ids")
    cuts = [len(ids) * k // how.participants for k in range(how.participants + 1)]
    return tuple(tuple(ids[a:b]) for a, b in pairwise(cuts))


def too_many(how: FedAttn, there: int, prompt: str) -> FedrayError:
    shown = one_line(prompt)
    shown = shown if len(shown) <= 60 else shown[:59] + "…"
    unit = "words" if how.segments == "even" else "sentences"
    return FedrayError(
        f"protocol.participants={how.participants} are more than the segments of {shown!r}, which has {there} (the "
        f"context in {unit}{', the question apart' if how.question_apart else ''}): ask with more context, or take "
        f"fewer participants{'' if how.segments == 'even' else ', or protocol.segments=even'}"
    )


def _even(possible: Sequence[int], wanted: int, end: int) -> list[int]:
    """`wanted` ascending cuts, each the nearest to its even share that leaves enough for those after it."""
    cuts: list[int] = []
    first = 0
    for k in range(1, wanted + 1):
        left = range(first, len(possible) - (wanted - k))
        best = min(left, key=lambda i: abs(possible[i] - end * k / (wanted + 1)))
        cuts.append(possible[best])
        first = best + 1
    return cuts
