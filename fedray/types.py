"""Frozen values that cross a border between rooms, processes or machines.

Nothing here knows torch, Ray or MLflow. Seconds are wall-clock floats, bytes are integers, shapes use the legend
B batch, N kv heads, T tokens, H head dim, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fedray.errors import FedrayError
from fedray.methods.method import C2C, Method
from fedray.methods.specfed import Speculation
from fedray.schema import within
from fedray.text import one_line, printable

Prompting = Literal["chat", "completion"]
REASON = 500  # characters of a reason that are kept


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
    revision: str = ""  # the commit of its repository on the Hugging Face hub, where it comes from there
    vocabulary: str = ""  # hash of its tokens and their ids; "" where it has no tokenizer
    cache_space: str = ""  # what two LLMs must share so that a cache of one can stand in the other's
    prompting: Prompting = "chat"


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a member can be asked now. ready: how many of its replicas can; reason: why none can; restarts: how often
    they came back."""

    ready: int = 1
    replicas: int = 1
    reason: str = ""
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Need:
    """What one member will take, foretold from its configuration; bytes, at the peak of one request.

    cache: its own and others' caches of the longest prompt and answer, for a whole batch; work: activations and logits;
    process: the interpreter and its libraries, in the machine's memory even where the rest is on a GPU; loading: what
    is in memory twice while it loads. wire_per_token: of its cache, where it sends; download: None where nobody knows.
    """

    member: str
    role: str  # receiver | sender
    device: str
    dtype: str
    revision: str
    parameters: int
    prompt_tokens: int  # of the longest prompt
    weights: int
    cache: int
    fusers: int
    work: int
    process: int
    loading: int
    wire_per_token: int
    download: int | None
    replicas: int = 1  # each takes all of it

    @property
    def model(self) -> int:
        """Where the LLM stands: its device's memory, of all replicas."""
        return self.replicas * (self.weights + max(self.fusers + self.cache + self.work, self.loading))

    @property
    def processes(self) -> int:
        return self.replicas * self.process

    @property
    def total(self) -> int:
        return self.model + self.processes


@dataclass(frozen=True, slots=True)
class Usage:
    """What an exchange cost, measured where the work happened.

    seconds: phase -> wall-clock seconds; payload_bytes: bytes of caches as they lay on the wire;
    prompt_tokens: receiver prompt tokens; answer_tokens: decoded or scored tokens. read_tokens: member -> prompt tokens
    that went through its LLM; reused_tokens: member -> those that it still held from a conversation's earlier turns.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    payload_bytes: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    read_tokens: Mapping[str, int] = field(default_factory=dict)
    reused_tokens: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            _sums(self.seconds, other.seconds),
            self.payload_bytes + other.payload_bytes,
            self.prompt_tokens + other.prompt_tokens,
            self.answer_tokens + other.answer_tokens,
            _sums(self.read_tokens, other.read_tokens),
            _sums(self.reused_tokens, other.reused_tokens),
        )


def _sums(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {**one, **{name: one.get(name, 0) + value for name, value in other.items()}}


@dataclass(frozen=True, slots=True)
class Missing:
    """A member that took no part, and why: one printable line of bounded length, whoever wrote it."""

    member: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", one_line(printable(self.reason, REASON)))


NO_NUMBERS = (
    "the logits of its LLM are no numbers (NaN or infinity): its weights are damaged, or its numbers too large for its "
    "dtype"
)
Layers = tuple[tuple[int, ...], tuple[int, ...]]  # whose keys, and whose values; ascending


@dataclass(frozen=True, slots=True)
class Artifact:
    """A fuser or gate in the registry: found by content hash, loaded by the member that uses it."""

    name: str  # "<sender>--<receiver>" or "gate--<receiver>"
    hash: str
    path: str  # folder with model.safetensors and manifest.json, readable from the member's machine
    reads_ids: bool = False  # a fuser whose sender must read the receiver's token ids instead of the text
    layers: Layers | None = None  # of the sender, that a fuser reads; None: all
    tokens: str = "prompt"  # that a fuser reads: of the prompt, of the user's "text" in it, or of a "draft" behind it
    unrotated: bool = False  # whether it reads keys without the sender's positions
    config: Mapping[str, Any] | None = None  # of a fuser without a folder: it needs no training, or has random weights


@dataclass(frozen=True, slots=True)
class Generation:
    """How an answer is decoded. temperature 0 is greedy; full goes on to max_tokens past the answer's end (to measure
    equal budgets)."""

    max_tokens: int = within(32, 1)
    temperature: float = within(0.0, 0)
    seed: int = within(0, 0, 2**32 - 1)
    full: bool = False


@dataclass(frozen=True, slots=True)
class Talk:
    """What was said before the prompts of a request, and where members keep what they have read of it.

    before: per row the texts of earlier turns, the user's and the answer to it by turns; every member reads them in its
    own chat template. session: under which members keep what they read until the next turn ("": they keep nothing);
    held_by: members that have read an earlier turn in it, which raise SessionLost where they hold it no longer.
    lost: why all is read again from the beginning; the answer says so.
    """

    before: tuple[tuple[str, ...], ...] = ()
    session: str = ""
    held_by: frozenset[str] = frozenset()
    lost: str = ""


UNNAMED = "request"  # the id of a request that was given none


@dataclass(frozen=True, slots=True)
class Request:
    """A batch of B prompts for one receiver.

    choices: per row the answer texts to choose from; the row is scored instead of generated.
    asked: member -> what it reads of each row instead of `prompts` (controls; a part that it alone can know).
    token_ids: per row the prompt's token ids, read by every member as they are, instead of text.
    evidence: member -> per row a document that only this member reads ("" is none).
    weights: member -> per row the gate weight of what it sends, for gate=oracle.
    talk: the conversation that the prompts (or token ids, which hold all of it) are the next turn of.
    donors: ways of pairing messages anew: per way and row the other row whose messages it is answered with as well.
    begun: what the answer begins with, where it is streamed: it is not told again, and the rest goes on from it.
    """

    prompts: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...] | None = None
    asked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    token_ids: tuple[tuple[int, ...], ...] | None = None
    evidence: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    talk: Talk | None = None
    donors: tuple[tuple[int, ...], ...] = ()
    generation: Generation = Generation()
    deadline_s: float | None = None
    begun: str = ""
    id: str = UNNAMED

    def __post_init__(self) -> None:
        of_members = (self.asked, self.evidence, self.weights)
        before = self.talk.before or None if self.talk else None
        columns = (self.choices, self.token_ids, before, *(column for kind in of_members for column in kind.values()))
        sizes = {len(column) for column in columns if column is not None}
        if self.token_ids is None or self.prompts:
            sizes.add(len(self.prompts))
        if len(sizes) > 1 or sizes == {0}:
            raise FedrayError(
                f"request {self.id}: prompts, choices, token ids, weights, evidence must be equally many, at least one"
            )
        if any(len(way) != self.rows() or not set(way) <= set(range(self.rows())) for way in self.donors):
            raise FedrayError(f"request {self.id}: donors must name a row of the request for every row")
        if any(len(turns) % 2 for turns in before or ()):
            raise FedrayError(f"request {self.id}: earlier turns must be pairs, of what the user said and the answer")
        if any(not row or not all(row) for row in self.choices or ()):
            raise FedrayError(f"request {self.id}: a multiple-choice row needs choices, and every choice a text")
        if any(not row for row in self.token_ids or ()):
            raise FedrayError(f"request {self.id}: a row of token ids is empty; give the members something to read")

    def rows(self) -> int:
        return len(self.token_ids if self.token_ids is not None else self.prompts)

    def select(self, rows: Sequence[int]) -> Request:
        """The same request with some of its rows."""

        def pick(values: tuple[Any, ...] | None) -> Any:
            return None if values is None else tuple(values[i] for i in rows)

        return replace(
            self,
            prompts=pick(self.prompts or None) or (),
            choices=pick(self.choices),
            asked={member: pick(texts) for member, texts in self.asked.items()},
            token_ids=pick(self.token_ids),
            evidence={member: pick(documents) for member, documents in self.evidence.items()},
            weights={member: pick(weights) for member, weights in self.weights.items()},
            talk=self.talk and replace(self.talk, before=pick(self.talk.before or None) or ()),
            donors=self.donors if tuple(rows) == tuple(range(self.rows())) else (),
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """Who answers, who helps, and through which learned parts; made by the coordinator, held by the request."""

    receiver: str
    senders: tuple[str, ...]
    method: Method = C2C  # canonical
    speakers: tuple[str, ...] = ()  # senders without a fuser that give a hint in text instead (on_missing=text)
    fusers: Mapping[str, Artifact] = field(default_factory=dict)  # sender -> its fuser into the receiver
    soft_prompts: Mapping[str, Artifact] = field(default_factory=dict)  # the same, what control=soft reads in its place
    gate_artifact: Artifact | None = None
    peers: tuple[Plan, ...] = ()  # both ways: the plans of the other members, each a receiver too
    contexts: Mapping[str, int] = field(default_factory=dict)  # sender -> tokens that it holds at most
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt's answer. choice: index of the chosen answer text; scores: log-likelihood of every choice's text;
    greedy: whether greedy decoding would begin with it; weights: gate weight per sender. failed: the LLM's logits were
    no numbers, so that there is no answer."""

    text: str
    tokens: tuple[int, ...] = ()
    choice: int | None = None
    scores: tuple[float, ...] = ()
    greedy: tuple[bool, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    failed: bool = False


def failed_rows(member: str, rows: Sequence[Row]) -> tuple[Missing, ...]:
    """Name a member of whose answers some failed."""
    failed = sum(row.failed for row in rows)
    return (Missing(member, f"in {failed} of {len(rows)} answers {NO_NUMBERS}"),) if failed else ()


@dataclass(frozen=True, slots=True)
class Round:
    """What the server says after a round. tokens: what each row's answer goes on with; ended: rows that are done;
    drafts: the next round's, per row; missing: workers whose payload does not hold together."""

    tokens: tuple[tuple[int, ...], ...]
    ended: tuple[bool, ...]
    drafts: tuple[tuple[int, ...], ...]
    usage: Usage
    speculation: Speculation = field(default_factory=Speculation)
    missing: tuple[Missing, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a protocol returns: a row per prompt, who took part, who did not and why, and what it cost.

    by_member: each member's own rows, where every one answered (both ways); read: sender -> the rewrite of each row
    that it read ("" is nothing), under rephrasing; unrephrased: row that no rewrite kept whole, answered by the
    receiver alone -> what was wrong with the last one. reread: which member had lost a conversation, so that all of it
    was read again ("" is none). resumed: whether the receiver died in the middle and a stream went on from what it had
    told, since a replay led elsewhere. deranged: per way of `Request.donors` the rows as answered so; none where the
    protocol does not pair anew, or somebody failed. versions: fuser or gate -> hash of the one it was answered by.
    """

    rows: tuple[Row, ...]
    receiver: str
    senders: tuple[str, ...]
    missing: tuple[Missing, ...] = ()
    usage: Usage = Usage()
    by_member: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    read: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unrephrased: Mapping[int, str] = field(default_factory=dict)
    reread: str = ""
    resumed: bool = False
    speculation: Speculation | None = None  # of specfed: its rounds
    deranged: tuple[tuple[Row, ...], ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The answer to the first (often the only) prompt."""
        return self.rows[0].text


@dataclass(frozen=True, slots=True)
class Receipt:
    """The small value that travels beside a payload: who computed it and what it cost.

    lengths: tokens of each row that it holds, where others must know that (FedAttn's positions, SpecFed's room)."""

    member: str
    usage: Usage
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Rewrites:
    """Rephrased prompts. rows: per prompt as many rewrites as were asked for, or none where too few were faithful;
    flaws: per prompt what was wrong with the last rewrite that was thrown away ("" is nothing)."""

    rows: tuple[tuple[str, ...], ...]
    flaws: tuple[str, ...]
    usage: Usage


@dataclass(frozen=True, slots=True)
class Opening:
    """What a receiver knows after reading its own prompt: gate weights (B rows of one weight per sender) and cost."""

    weights: tuple[tuple[float, ...], ...]
    usage: Usage
