"""Frozen values that cross a border between rooms, processes or machines.

Nothing here knows torch, Ray or MLflow. Seconds are wall-clock floats, bytes are integers, shapes use the legend
B batch, N kv heads, T tokens, H head dim, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


class FedrayError(ValueError):
    """A mistake of the user's or of the outside world: one sentence that says what is wrong, where, and the remedy."""


class SessionLost(FedrayError):
    """A member does not hold the session a call refers to (released, timed out, or the member was restarted)."""


@dataclass(frozen=True, slots=True)
class KVSpec:
    """The space a KV cache lives in: L layers of N kv heads with head dim H (keys post-RoPE)."""

    layers: int
    kv_heads: int
    head_dim: int

    def values_per_token(self) -> int:
        """Numbers per token, keys and values of all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def __str__(self) -> str:
        return f"{self.layers}x{self.kv_heads}x{self.head_dim}"


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """Who a member is and where it runs."""

    name: str
    family: str
    parameters: int
    spec: KVSpec
    weights_hash: str
    tokenizer_hash: str
    device: str
    dtype: str
    node: str
    pid: int
    context: int  # longest prompt plus answer, tokens
    layers: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What an exchange cost, measured where the work happened.

    seconds: phase -> wall-clock seconds; payload_bytes: bytes of caches as they lay on the wire;
    prompt_tokens: receiver prompt tokens; answer_tokens: decoded or scored tokens.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    payload_bytes: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        seconds = dict(self.seconds)
        for phase, value in other.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + value
        return Usage(
            seconds,
            self.payload_bytes + other.payload_bytes,
            self.prompt_tokens + other.prompt_tokens,
            self.answer_tokens + other.answer_tokens,
        )


@dataclass(frozen=True, slots=True)
class Missing:
    """A member that took no part, and why."""

    member: str
    reason: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """A fuser or gate in the registry: found by content hash, loaded by the member that uses it."""

    name: str  # "<sender>--<receiver>" or "gate--<receiver>"
    hash: str
    path: str  # folder with model.safetensors and manifest.json, readable from the member's machine


@dataclass(frozen=True, slots=True)
class Generation:
    """How an answer is decoded. temperature 0 is greedy."""

    max_tokens: int = 32
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """A batch of B prompts for one receiver.

    choices: per row the answer texts to choose from; the row is scored instead of generated.
    sender_prompts: what senders read instead of `prompts` (controls and rephrasing); same length B.
    token_ids: per row the prompt's token ids, read by every member as they are, instead of text.
    """

    prompts: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...] | None = None
    sender_prompts: tuple[str, ...] | None = None
    token_ids: tuple[tuple[int, ...], ...] | None = None
    generation: Generation = Generation()
    deadline_s: float | None = None
    id: str = "request"

    def __post_init__(self) -> None:
        sizes = {len(v) for v in (self.choices, self.sender_prompts, self.token_ids) if v is not None}
        if self.token_ids is None or self.prompts:
            sizes.add(len(self.prompts))
        if len(sizes) > 1 or sizes == {0}:
            raise FedrayError(f"request {self.id}: prompts, choices and token ids must be equally many, at least one")
        if any(not row or not all(row) for row in self.choices or ()):
            raise FedrayError(f"request {self.id}: a multiple-choice row needs choices, and every choice a text")
        if any(not row for row in self.token_ids or ()):
            raise FedrayError(f"request {self.id}: a row of token ids is empty; give the members something to read")

    def rows(self) -> int:
        return len(self.token_ids if self.token_ids is not None else self.prompts)

    def select(self, rows: list[int]) -> Request:
        """The same request with some of its rows."""

        def pick(values: tuple[Any, ...] | None) -> Any:
            return None if values is None else tuple(values[i] for i in rows)

        return replace(
            self,
            prompts=pick(self.prompts) or (),
            choices=pick(self.choices),
            sender_prompts=pick(self.sender_prompts),
            token_ids=pick(self.token_ids),
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """Who answers, who helps, and through which learned parts; made by the coordinator, held by the request."""

    receiver: str
    senders: tuple[str, ...]
    protocol: str = "c2c"
    fusion: str = "concat"
    fusion_order: str = "parallel"  # parallel | sequential: how several senders mix
    speakers: tuple[str, ...] = ()  # senders without a fuser that give a hint in text instead (on_missing=text)
    fusers: Mapping[str, Artifact] = field(default_factory=dict)  # sender -> its fuser into the receiver
    gate: str = "learned"  # learned | open | random | none
    gate_artifact: Artifact | None = None
    route: str = "eager"  # eager | lazy
    threshold: float = 0.5  # gate weights below it count as 0: not sent; 0.5 is where own and sender weigh the same
    on_missing: str = "alone"  # alone | text | error
    control: str = "none"  # none | mismatched | noise | constant
    seed: int = 0
    missing: tuple[Missing, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt's answer. choice: index of the chosen answer text; weights: gate weight per sender."""

    text: str
    tokens: tuple[int, ...] = ()
    choice: int | None = None
    scores: tuple[float, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a protocol returns: a row per prompt, who took part, who did not and why, and what it cost."""

    rows: tuple[Row, ...]
    receiver: str
    senders: tuple[str, ...]
    missing: tuple[Missing, ...] = ()
    usage: Usage = Usage()

    @property
    def text(self) -> str:
        """The answer to the first (often the only) prompt."""
        return self.rows[0].text


@dataclass(frozen=True, slots=True)
class Receipt:
    """The small value that travels beside a payload: what was computed and what it cost."""

    member: str
    usage: Usage
    tokens: tuple[int, ...] = ()  # prompt tokens per row


@dataclass(frozen=True, slots=True)
class Opening:
    """What a receiver knows after reading its own prompt: gate weights (B rows of one weight per sender) and cost."""

    weights: tuple[tuple[float, ...], ...]
    usage: Usage
