"""Compare the vocabularies of LLMs."""

from __future__ import annotations

from collections.abc import Sequence

from fedray.llm.model import hash_vocabulary
from fedray.llm.source import Source, config_of, tokenizer_of
from fedray.types import FedrayError


def check_vocabularies(server: Source, workers: Sequence[Source], vocab: str) -> None:
    """Compare the workers' vocabularies with the server's, before any LLM is loaded.

    Raises FedrayError under vocab=strict where a worker has other tokens than the server, under vocab=map where every
    worker has (one must know all the tokens that are drafted).
    """
    own = _tokens(server)
    others = [worker.name for worker in workers if _tokens(worker) != own]
    if others and (vocab == "strict" or len(others) == len(workers)):
        why = "protocol.vocab=strict wants one" if vocab == "strict" else "one worker at least must have the draft's"
        raise FedrayError(
            f"{', '.join(others)} and {server.name}, the draft at the server, have different vocabularies, and {why}: "
            "choose another protocol.draft, or other senders"
        )


def _tokens(source: Source) -> str:
    """Hash the vocabulary, as MemberInfo.vocabulary; its size where there is no tokenizer or a made-up one."""
    known = "" if source.zoo == "shapes" else hash_vocabulary(tokenizer_of(source))
    return known or str(config_of(source).vocab_size)
