"""A worker with another vocabulary than the server's: where both have a token boundary, and which tokens mean the same.

Tokens mean the same where their bytes are the same, and where they end an answer. The worker reads the answer in its
own tokens; it has a say only at those places between the server's tokens where one of its own ends too.
Shape legend: N positions, V vocabulary (of the worker, then of the server).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fedray.llm.letters import letters_of
from fedray.llm.token_bytes import token_bytes
from fedray.types import FedrayError
from fedray.wire.vocabulary import Vocabulary


class Translation:
    """From the server's tokens to the worker's, and from the worker's distributions to the server's."""

    def __init__(self, name: str, tokenizer: Any, size: int, stops: frozenset[int], server: Vocabulary) -> None:
        """size: columns of the worker's distributions; stops: its ids that end an answer."""
        self._name, self._letters, self._server = name, letters_of(tokenizer), server
        self._own = token_bytes(tokenizer, size)
        of_bytes = {token: i for i, token in enumerate(server.tokens) if token}
        pairs = [(i, of_bytes[token]) for i, token in enumerate(self._own) if token in of_bytes]
        pairs += [(i, server.stops[0]) for i in sorted(stops) if server.stops and not self._own[i]]
        self._from, self._to = (torch.tensor(side, dtype=torch.long) for side in zip(*pairs, strict=True))

    def read(self, said: Sequence[int], drafts: Sequence[int]) -> tuple[list[int], list[int | None]]:
        """(the worker's ids of the text, and how many of them stand before each position): None where its tokens have
        no boundary. Positions are those behind `said` and behind every draft; what is no text (a character that is not
        finished yet, or never will be) is not read, and a position in it stands for the end of the text before it.
        Raises FedrayError.
        """
        pieces = [self._server.tokens[i] for i in (*said, *drafts)]
        whole = b"".join(pieces)
        text = _readable(whole)
        ids, _ = self._letters.encode(text)
        ends = [0, *accumulate(len(self._own[i]) for i in ids)]
        if ends[-1] != len(text.encode()):
            raise FedrayError(f"{self._name} does not keep the answer's text as it is in its tokens: leave it out")
        before = {end: count for count, end in enumerate(ends)}
        places = [0, *accumulate(map(len, pieces))][len(said) :]
        return ids, [before.get(min(place, ends[-1])) for place in places]

    def distribution(self, own_NV: Tensor) -> Tensor:
        """(N, V of the server): the mass of tokens that mean the same; what is missing to one has no counterpart."""
        found_NV = own_NV.new_zeros(len(own_NV), len(self._server.tokens))
        return found_NV.index_add_(1, self._to.to(own_NV.device), own_NV[:, self._from.to(own_NV.device)])


def _readable(whole: bytes) -> str:
    """A text up to where it is none: the last token may end in the middle of a character."""
    try:
        return whole.decode()
    except UnicodeDecodeError as error:
        return whole[: error.start].decode()
