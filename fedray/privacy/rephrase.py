"""Rephrase questions by the receiver's LLM, so that no sender reads the original (FedRefine, section 5).

A rewrite is used only if it keeps what an answer needs: every rare word (names, numbers) and every choice that stands
in the prompt. It hides the wording, not the intent; `leakage` measures what still leaks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fedray.privacy.leakage import rare_words
from fedray.prompts import one_line, rephrase_prompt
from fedray.types import Generation, Row

ATTEMPTS = 6  # per rewrite that is wanted; the first is greedy, the others are sampled
TEMPERATURE = 0.7

Generate = Callable[[Sequence[str], Generation], Sequence[Row]]  # prompts -> the LLM's answer to each


def rewrite(
    prompts: Sequence[str],
    choices: Sequence[Sequence[str]] | None,
    count: int,
    generate: Generate,
    pieces: Callable[[str], int],
    generation: Generation,
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Generate `count` different faithful rewrites of every prompt, or none of a prompt that has too few of them.

    pieces: into how many tokens a word falls. Returns the rewrites, and per prompt the last flaw that was found.
    """
    kept: list[list[str]] = [[] for _ in prompts]
    flaws = [""] * len(prompts)
    for attempt in range(ATTEMPTS * count):
        rows = [b for b in range(len(prompts)) if len(kept[b]) < count]
        if not rows:
            break
        how = replace(generation, temperature=TEMPERATURE if attempt else 0.0, seed=generation.seed + attempt)
        for b, row in zip(rows, generate([rephrase_prompt(prompts[b]) for b in rows], how), strict=True):
            unfinished = len(row.tokens) >= how.max_tokens
            flaw = flaw_of(prompts[b], row.text, () if choices is None else choices[b], pieces)
            flaw = flaw or ("it does not end" if unfinished else "") or ("it is said twice" * (row.text in kept[b]))
            if flaw:
                flaws[b] = flaw
            else:
                kept[b].append(row.text)
    return tuple(tuple(row) if len(row) == count else () for row in kept), tuple(flaws)


def flaw_of(original: str, rewritten: str, choices: Sequence[str], pieces: Callable[[str], int]) -> str:
    """Find why a rewrite cannot stand for the original; "" where it can."""
    if not rewritten.strip():
        return "it is empty"
    if one_line(rewritten).casefold() == one_line(original).casefold():
        return "it is the original"
    lost = [choice for choice in choices if choice in original and choice not in rewritten]
    if lost:
        return f"the choice {lost[0]!r} is lost"
    gone = rare_words(original, pieces) - rare_words(rewritten, pieces)
    return f"the word {min(gone)!r} is lost" if gone else ""
