"""Align receiver layers and tokens with those of a sender.

Layers: the paper's case study aligns bottom-up; the published C2C code aligns the last layers. Tokens: by character
spans of the same text, so any two tokenizers align; template tokens align by their distance from the prompt's end.
What of this a `mix` fuser was trained with is one of TOKEN_ALIGNMENTS:

    assembled  text by its characters; template tokens after it read the sender's last token, where its answer stands
    text       text by its characters; template tokens are the receiver's own (C2C between different tokenizers)
    ids        the sender reads the receiver's token ids, template and all, one to one (C2C as published)
"""

from __future__ import annotations

from collections.abc import Sequence

from fedray.llm.model import HEAD, TAIL, Span

LAYER_ALIGNMENTS = ("bottom_up", "last_aligned", "first", "all")  # the last two are of drafts (fusion/draft.py)
TOKEN_ALIGNMENTS = ("assembled", "text", "ids")


def align_layers(sender_layers: int, receiver_layers: int, how: str = "bottom_up") -> list[int]:
    """Align layers: receiver layer t reads sender layer t, or S-T+t as published; clamped to the sender."""
    if how in ("bottom_up", "all"):
        return [min(t, sender_layers - 1) for t in range(receiver_layers)]
    if how == "last_aligned":
        return [min(max(sender_layers - receiver_layers + t, 0), sender_layers - 1) for t in range(receiver_layers)]
    if how == "first":
        return [0] * receiver_layers
    raise ValueError(f"layer alignment {how!r}; choose one of {', '.join(LAYER_ALIGNMENTS)}")


def align_tokens(sender: Sequence[Span], receiver: Sequence[Span]) -> list[int]:
    """Align tokens: per receiver token the sender token with the largest overlap in the text, or -1.

    On a tie it is the one of the same span, which differs only where tokens cut through a character, or the later one.
    Tokens after the text align by their distance from the end, tokens before it are not aligned: a causal LLM has
    read nothing of the question there. Pieces of one character, which share its span, align piece by piece from the
    last: two LLMs that cut a text alike read it token by token.
    """
    if list(sender) == list(receiver):  # of one tokenizer: what follows would find each token itself
        return [i if kind == TAIL or 0 <= kind < end else -1 for i, (kind, end) in enumerate(receiver)]
    tail = {span[1]: i for i, span in enumerate(sender) if span[0] == TAIL}
    text = [(i, *span) for i, span in enumerate(sender) if span[0] >= 0]
    aligned: list[int] = []
    first = 0
    for position, (kind, end) in enumerate(receiver):
        if kind == HEAD:
            aligned.append(-1)
        elif kind == TAIL:
            aligned.append(tail.get(end, -1))
        else:
            while first < len(text) and text[first][2] <= kind:
                first += 1
            best, longest = -1, (0, False)
            for place in range(first, len(text)):
                index, a, b = text[place]
                if a >= end:
                    break
                overlap = (min(b, end) - max(a, kind), (a, b) == (kind, end))
                if overlap >= longest and overlap[0] > 0:
                    best, longest = index, overlap
            aligned.append(_piece(best, sender, position, receiver))
    return aligned


def _piece(best: int, sender: Sequence[Span], position: int, receiver: Sequence[Span]) -> int:
    """Align pieces of one character: `best`, or an earlier piece if the receiver's token is an earlier one too."""
    span = receiver[position]
    following = 0
    while position + following + 1 < len(receiver) and receiver[position + following + 1] == span:
        following += 1
    while following and best > 0 and sender[best] == sender[best - 1] == span:
        best, following = best - 1, following - 1
    return best
