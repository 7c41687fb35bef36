"""Conversations of several turns as an LLM reads them: earlier turns stand in its own template before the last."""

from __future__ import annotations

from collections.abc import Sequence

from fedray.llm.model import HEAD, LLM, TAIL, Encoded, Span, encode, render
from fedray.types import FedrayError

_MARK = "fedray-turn-{}-text"  # stands for a turn while a template is taken apart


def encode_turns(llm: LLM, turns: Sequence[str]) -> Encoded:
    """Turns of the user and the assistant, the user's last, with the generation prompt behind them.

    spans: places in all turns' texts, one after the other; the template between them is no text of anybody's and is
    aligned with nothing. A context that is too short for them is not noticed here. Raises FedrayError where the last
    turn is empty, or the template does not hold them all.
    """
    if len(turns) == 1:
        return encode(llm.tokenizer, llm.template, turns[0])
    if not turns[-1].strip():
        raise FedrayError("the prompt is empty; give the members something to read")
    ids: list[int] = []
    spans: list[Span] = []
    read = 0
    pieces = _pieces(llm, len(turns))
    for number, template in enumerate(pieces):
        found = llm.tokenizer(template, add_special_tokens=False, verbose=False)["input_ids"] if template else []
        last = number == len(pieces) - 1
        spans += [(TAIL, len(found) - 1 - i) if last else (HEAD, len(ids) + i) for i in range(len(found))]
        ids += found
        if not last:
            text = turns[number].strip()
            said = llm.tokenizer(
                text, return_offsets_mapping=True, add_special_tokens=False, split_special_tokens=True, verbose=False
            )
            ids += said["input_ids"]
            spans += [(read + a, read + b) for a, b in said["offset_mapping"]]
            read += len(text)
    return Encoded(ids, spans)


def _pieces(llm: LLM, turns: int) -> list[str]:
    """What the LLM's template puts before, between and behind so many turns; a base model gets a line for each."""
    if not llm.tokenizer.chat_template:
        return [llm.template[0], *["\n"] * turns]
    roles, marks = ("user", "assistant"), [_MARK.format(number) for number in range(turns)]
    rest = render(llm.tokenizer, [{"role": roles[i % 2], "content": mark} for i, mark in enumerate(marks)])
    pieces = []
    for number, mark in enumerate(marks):
        if rest.count(mark) != 1:
            raise FedrayError(
                f"the chat template of {llm.name} holds turn {number + 1} of {turns} {rest.count(mark)} times after "
                "those before it; it must be once: ask without a conversation"
            )
        before, _, rest = rest.partition(mark)
        pieces.append(before)
    return [*pieces, rest]
