"""What a request will take, in bytes of KV, and a batch, in seconds: learnt from the batches before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fedray.llm.memory import BYTES
from fedray.types import Answer, MemberInfo, Plan, Request

FORGETTING = 0.25  # share of the latest batch in what is expected of the next


class Expectation:
    """What is expected, by exponentially weighted means over batches before.

    Seconds are a straight line over rows, fitted by least squares; it never falls, and never rises faster than rows do.
    """

    def __init__(self, members: Mapping[str, MemberInfo]) -> None:
        self._members = members
        self.tokens_per_byte = 1.0  # most that tokenizers of bytes make
        self.latest_s: float | None = None  # that a batch took on average, lately; None: there was none
        self._base = self._each = self._rows = self._squares = self._products = 0.0

    def took(self, rows: int, seconds: float) -> None:
        share = 1.0 if self.latest_s is None else FORGETTING
        self.latest_s = _weighted(self.latest_s or 0.0, seconds, share)
        self._rows = _weighted(self._rows, rows, share)
        self._squares = _weighted(self._squares, rows * rows, share)
        self._products = _weighted(self._products, rows * seconds, share)
        spread = self._squares - self._rows**2
        slope = (self._products - self._rows * self.latest_s) / spread if spread > 1e-6 * self._squares else 0.0
        self._each = min(max(slope, 0.0), self.latest_s / self._rows)
        self._base = self.latest_s - self._each * self._rows

    def seconds(self, rows: int) -> float:
        return self._base + rows * self._each

    def rows_in(self, seconds: float, most: int) -> int:
        """Rows of a batch for requests that have so long. It may take half of that, so that who comes while it is
        answered can be in the next one, and in any case as long for its rows as it takes without any."""
        longest = max(seconds / 2, 2 * self._base) - self._base
        return most if longest >= most * self._each else max(1, int(longest / self._each))

    def read(self, answer: Answer, request: Request) -> None:
        """Learn how many tokens the receiver's texts have."""
        size = _text_bytes(request, answer.receiver)
        if request.token_ids is None and size and answer.usage.prompt_tokens:
            share = min(1.0, answer.usage.prompt_tokens / size)
            self.tokens_per_byte = _weighted(self.tokens_per_byte, share, FORGETTING)

    def sizes(self, request: Request, plan: Plan) -> tuple[float, float]:
        """Bytes of KV that a request will take: in all members, and in those that send."""
        sizes = {name: self._kv_bytes(request, name) for name in (plan.receiver, *plan.speakers, *plan.senders)}
        sent = plan.senders if plan.method.protocol.crosses == "cache" else ()
        return sum(sizes.values()), sum(sizes[name] for name in sent)

    def _kv_bytes(self, request: Request, member: str) -> float:
        info, share = self._members[member], self.tokens_per_byte
        texts = _text_bytes(request, member) * share
        prompts = texts if request.token_ids is None else sum(map(len, request.token_ids))
        if request.choices is None:
            answers = request.rows() * request.generation.max_tokens
        else:
            answers = sum(len(text.encode(errors="replace")) for row in request.choices for text in row) * share
        tokens = min(prompts + answers, request.rows() * info.context)
        return tokens * info.spec.values_per_token() * BYTES[info.dtype]


def _weighted(before: float, latest: float, share: float) -> float:
    return before + share * (latest - before)


def _text_bytes(request: Request, member: str) -> int:
    """Bytes of all that a member reads of a request, as UTF-8."""
    return sum(len(text.encode(errors="replace")) for text in _texts(request, member))


def _texts(request: Request, member: str) -> Iterator[str]:
    yield from request.asked.get(member, request.prompts)
    yield from request.evidence.get(member, ())
    for turns in request.talk.before if request.talk else ():
        yield from turns
