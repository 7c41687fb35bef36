"""Whether LLMs speak in the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedray.llm.source import Source, config_of, tokenizer_of
from fedray.types import FedrayError


def check_vocabularies(server: Source, workers: Sequence[Source], vocab: str) -> None:
    """Raises FedrayError before any LLM is loaded: under vocab=strict where a worker has other tokens than the server,
    under vocab=map where every worker has (somebody must know all the tokens that are drafted)."""
    own = _tokens(server)
    others = [worker.name for worker in workers if _tokens(worker) != own]
    if others and (vocab == "strict" or len(others) == len(workers)):
        why = "protocol.vocab=strict wants one" if vocab == "strict" else "one worker at least must have the draft's"
        raise FedrayError(
            f"{', '.join(others)} and {server.name}, the draft at the server, have different vocabularies, and {why}: "
            "choose another protocol.draft, or other senders"
        )


def _tokens(source: Source) -> Mapping[str, int] | int:
    """Tokens and their ids; of an LLM without a tokenizer, and of one with a made-up one, how many it has."""
    if source.zoo == "shapes":
        return int(config_of(source).vocab_size)
    tokenizer = tokenizer_of(source)
    return int(config_of(source).vocab_size) if tokenizer is None else tokenizer.get_vocab()
