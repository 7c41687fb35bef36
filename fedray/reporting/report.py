"""report.json: what every job leaves behind.

Schema version 2. A `Report` is the file: its fields are the keys, their comments say what each is and in which unit;
who took part, how they answered, what was found and what it cost are nested (docs/report.md, generated from here).
Shares (accuracy, stderr, gate weights) lie between 0 and 1; absent figures are null, never NaN.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fedray.files import write_whole
from fedray.methods.method import Method
from fedray.protocols import KINDS, STANDALONE
from fedray.reporting.schema_1 import from_schema_1
from fedray.schema import Schema
from fedray.text import mask
from fedray.types import FedrayError, Missing, Need

SCHEMA = 2
NAME = "report.json"


@dataclass(frozen=True, slots=True)
class Spread:
    """Wall-clock seconds of one phase over the requests that had it."""

    mean: float
    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What the federated answers cost. A request is a batch of up to `task.batch_size` questions, or a single one."""

    payload_bytes: int = 0  # bytes of caches as they lay on the wire, all batches together
    bytes_per_token: float = 0.0  # payload_bytes over the receiver's prompt tokens
    bytes_per_token_analytic: float | None = None  # every sender's whole cache, or a 32-bit token id of each; else null
    seconds: Mapping[str, Spread] = field(default_factory=dict)  # phase -> seconds per request
    requests: int = 0  # whose seconds these are; of an evaluation, single questions asked once more
    at_a_time: int = 1  # requests on their way together: `total` and `transfer` hold what one waited for the others
    tokens_per_s: float | None = None  # of answers, asked in batches
    wall_s: float | None = None  # that asking took


@dataclass(frozen=True, slots=True)
class MemberReport:
    """A member, and where it ran."""

    name: str
    role: str  # receiver | sender
    family: str  # transformers' model type
    parameters: int
    device: str
    node: str
    pid: int
    dtype: str = ""
    revision: str = ""  # the commit of its repository on the Hugging Face hub
    memory_bytes: int | None = None  # the most it held at a time, of its process and its GPU
    prompting: str = "chat"  # chat, or completion: it goes on with the text


@dataclass(frozen=True, slots=True)
class Answered:
    """One question as asked, and the texts that came back."""

    question: str
    choices: tuple[str, ...] | None  # None: answered freely
    gold: str | None  # the right answer, where it is known
    alone: str | None  # the receiver's own answer; None: it failed, which counts as wrong
    federated: str | None  # the federation's answer; None: it failed, which counts as wrong
    by_member: Mapping[str, str | None] = field(default_factory=dict)  # both ways: what each member answered
    read: Mapping[str, str] = field(default_factory=dict)  # rephrase: the rewrite that each sender read


@dataclass(frozen=True, slots=True)
class Tracked:
    """Where MLflow keeps the run."""

    uri: str
    run_id: str


@dataclass(frozen=True, slots=True)
class Learned:
    """A fuser or gate: one that was trained (or would have been, had the job not ended), or one that is in a registry.

    figures: the last of its training (loss, accuracy, gain, ...); validation: accuracy on questions about entities that
    no training has seen, per group, with it and by the receiver alone.
    """

    name: str  # sender--receiver, or gate--receiver
    role: str  # fuser | gate | llm
    status: str  # complete | interrupted | failed | random (never trained, zoo=shapes)
    hash: str | None = None  # of its content, once it is in the registry
    path: str | None = None  # its folder there
    control: str = "none"  # what its training was denied: none | identical | single
    steps: int = 0  # trained, in all
    resumed_at: int = 0  # the step of the checkpoint this run went on from
    questions: int = 0  # it was trained on
    seconds: float = 0.0  # of this run
    figures: Mapping[str, float | None] = field(default_factory=dict)
    validation: Mapping[str, float] = field(default_factory=dict)
    validation_alone: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Leaked:
    """What rewrites give away of n questions; `figures` are those of fedray/privacy/leakage.py, None: not measured."""

    phrasing: str  # that the questions have in common: all, or one that the task knows
    seen_by: str  # one sender, all senders pooling, or what another question's rewrites would tell
    n: int
    figures: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Measured:
    """A row of a benchmark. Its ratio (its value, where there is no baseline) should be at most or at least `limit`."""

    name: str
    value: float
    unit: str
    baseline: float | None = None  # of the same run, in the same unit
    ratio: float | None = None  # value over baseline
    limit: float | None = None
    sense: str = ""  # at most | at least
    against: str = ""  # what the baseline is

    @property
    def holds(self) -> bool | None:
        """Whether it is within its limit; None where it has none."""
        if self.limit is None:
            return None
        found = self.value if self.ratio is None else self.ratio
        return found <= self.limit if self.sense == "at most" else found >= self.limit


@dataclass(frozen=True, slots=True)
class Data:
    """A data set that was read: for questions, or to train on."""

    name: str
    split: str
    repo: str | None  # on the hub; None: a local copy
    revision: str | None  # the hub's commit, where it is known
    subsets: int  # that were there
    rows: int  # that could be used
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> rows that could not
    hash: str = ""  # of the content that could be used, whatever it was read from


@dataclass(frozen=True, slots=True)
class Compared:
    """Two ways of answering the same questions, paired: what b changes over a."""

    task: str
    rows: tuple[int, int]  # a and b in `rows`
    a: str
    b: str
    n: int
    accuracy_a: float
    accuracy_b: float
    points: float  # b over a
    rescued: int  # a wrong, b right
    harmed: int
    p: float  # as p_alone
    low: float | None = None  # of a 95 % interval of `points`, clustered as stderr is; None: a single cluster
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a sender gives a federation and what it brings: with it against without it."""

    task: str
    receiver: str
    way: str
    of: int  # senders in all
    sender: str
    points: float  # accuracy that goes with it, in percentage points
    p: float
    bytes_per_token: float  # that go with it


@dataclass(frozen=True, slots=True)
class SenderOrder:
    """In which order senders join, and why; fixed before any test question was asked."""

    by: str  # validation: by their gain as the only sender; given: as they were named
    senders: tuple[str, ...]
    gains: Mapping[str, float] = field(default_factory=dict)  # percentage points over the receiver alone
    n: int = 0  # validation questions


@dataclass(frozen=True, slots=True)
class Who:
    """Who took part."""

    receiver: str
    senders: tuple[str, ...] = ()  # as asked for; `missing` names those that took no part
    type: str | None = None  # homogeneous | heterogeneous, and token | cache (FedRefine, Appendix A); null: neither
    missing: tuple[Missing, ...] = ()  # members that took no part in some request, and why
    members: tuple[MemberReport, ...] = ()
    order: SenderOrder | None = None  # of an evaluation


@dataclass(frozen=True, slots=True)
class Effect:
    """A difference of accuracies on the same questions, in percentage points."""

    points: float
    low: float | None = None  # of a 95 % interval, clustered by what the question is about; null: a single cluster
    high: float | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" ({self.low:+.1f} to {self.high:+.1f})"
        return f"{self.points:+.1f}{interval}"


@dataclass(frozen=True, slots=True)
class Found:
    """What came of the questions. What has no answer, and what cannot be read, is wrong."""

    n: int = 0  # answers, of all seeds together
    accuracy: float | None = None  # federated, over the questions whose answer is known
    stderr: float | None = None  # of `accuracy`; in an evaluation clustered by what the question is about
    accuracy_alone: float | None = None  # the receiver alone, over the same questions
    f1: float | None = None  # mean token F1 of federated answers, where the scoring has one (exact)
    f1_alone: float | None = None  # the same of the receiver alone
    p_value: float | None = None  # exact McNemar test against the receiver alone, two-sided; of seeds the largest
    rescued: int = 0  # questions wrong alone and right federated
    harmed: int = 0  # questions right alone and wrong federated
    system_gain: Effect | None = None  # G: federated over alone
    pairing_gain: Effect | None = None  # P: over other questions' messages (their documents, where senders hold some)
    harm: Effect | None = None  # alone over other questions' messages
    soft_gain: Effect | None = None  # over soft prompts: as many trained slots, which depend on nothing
    question_gain: Effect | None = None  # of documents: over senders that read their own and another question
    sender_gains: Mapping[str, Effect] = field(default_factory=dict)  # P of each sender's messages alone (donors.each)
    donors: str = ""  # those other questions: how many for each, and with which answer (any, different, same)
    read: str = ""  # read: the lower bounds of G, P and soft_gain are above 0; no effect: P is 0 within 2 points
    failed: int = 0  # questions that got no answer
    unrephrased: int = 0  # questions that no rewrite kept whole: the receiver answered them alone
    unparseable: int = 0  # federated answers in which no choice and no number could be read
    unparseable_alone: int = 0  # the same of the receiver alone
    by_member: Mapping[str, float] = field(default_factory=dict)  # both ways: accuracy of each member's own answers
    groups: Mapping[str, float] = field(default_factory=dict)  # accuracy of each group of questions
    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # group -> sender -> mean gate weight
    speculation: Mapping[str, float | None] = field(default_factory=dict)  # of specfed: Speculation.figures

    def numbers(self) -> dict[str, float | None]:
        """Name what is a number, of effects their points."""
        found = {of.name: getattr(self, of.name) for of in fields(self)}
        found |= {f"pairing_gain/{name}": gain for name, gain in self.sender_gains.items()}
        found = {name: value.points if isinstance(value, Effect) else value for name, value in found.items()}
        return {name: value for name, value in found.items() if value is None or isinstance(value, int | float)}


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A row of an evaluation: one way of answering a task, with all its drawings (seeds) of the questions together."""

    task: str
    scoring: str  # as in Report
    seeds: tuple[int, ...]
    way: str  # a short label of `how` and `temperature`
    who: Who
    how: Method  # what its protocol does not read is at its default
    temperature: float | None  # of the answers; null: as the settings say
    found: Found
    cost: Cost
    leakage: tuple[Leaked, ...] = ()  # where questions were rephrased; of the first seed

    @property
    def is_alone(self) -> bool:
        """Whether it is the line that everything is compared with."""
        return self.how.protocol.name == STANDALONE.name and self.temperature is None

    @property
    def accuracy(self) -> float:
        return self.found.accuracy or 0.0

    @property
    def stderr(self) -> float:
        return self.found.stderr or 0.0

    @property
    def p_value(self) -> float:
        return 1.0 if self.found.p_value is None else self.found.p_value

    @property
    def gain_points(self) -> float:
        """The gain over the receiver alone, in percentage points."""
        return 100 * (self.accuracy - (self.found.accuracy_alone or 0.0))

    @property
    def gain_percent(self) -> float | None:
        """The same relative to the receiver alone, in per cent."""
        return self.gain_points / self.found.accuracy_alone if self.found.accuracy_alone else None

    @property
    def seconds(self) -> Spread | None:
        """Of a question asked on its own."""
        return self.cost.seconds.get("total")


@dataclass(frozen=True, slots=True)
class Report:
    """One run of one job. Fields with a default may be absent from a job they do not concern."""

    job: str  # federate | evaluate | train_fuser | train_gate | registry | import_c2c | build_zoo | benchmark
    zoo: str  # what stands behind the names: tiny | hub | shapes
    seed: int
    status: str  # complete | interrupted | failed | planned (plan=true: nothing was loaded)
    who: Who = Who("")  # without a receiver where a job concerns none
    how: Method | None = None  # of an evaluation what its blocks start from; of a training what it trains for
    task: str | None = None  # task name, or the file the questions came from; null: a single prompt
    scoring: str = "text"  # how answers were read: fedray/questions/scoring.py
    data: tuple[Data, ...] = ()  # the data sets behind the tasks, or the training
    found: Found = Found()
    cost: Cost = Cost()
    answers: tuple[Answered, ...] = ()
    learned: tuple[Learned, ...] = ()  # fusers and gates the job trained, used or found
    needs: tuple[Need, ...] = ()  # what each member would take, estimated
    rows: tuple[Evaluated | Measured, ...] = ()  # of an evaluation, or of a benchmark
    comparisons: tuple[Compared, ...] = ()
    contributions: tuple[Contribution, ...] = ()
    tracking: Tracked | None = None
    schema: int = SCHEMA

    @property
    def evaluated(self) -> tuple[Evaluated, ...]:
        """The rows of an evaluation."""
        return tuple(row for row in self.rows if isinstance(row, Evaluated))


def unwritable(path: Path, error: OSError) -> FedrayError:
    """What to say where a job's output cannot be written."""
    remedy = "make room and run the same command again, or choose another folder: output=DIR"
    return FedrayError(f"{path} cannot be written ({error.strerror}); {remedy}")


def write(report: Report, folder: Path, *, private: bool = False) -> Path:
    """Atomically write report.json into a folder. private: readable by its owner only.

    Passwords in URIs are masked. Raises FedrayError where the folder cannot be written.
    """
    path = folder / NAME
    keys = {"schema": report.schema, **_plain(asdict(report))}
    try:
        write_whole(path, json.dumps(keys, indent=1, ensure_ascii=False, allow_nan=False) + "\n", private=private)
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def read(path: Path) -> Report:
    """Read a report.json, or the one in a folder. Raises FedrayError: missing, damaged, of another schema."""
    path = path / NAME if path.is_dir() else path
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FedrayError(f"{path} cannot be read ({error.strerror}); name a job's output folder") from error
    except ValueError as error:
        raise FedrayError(f"{path} is not a report ({error}); run the job again") from error
    schema = keys.get("schema") if isinstance(keys, dict) else None
    if schema not in (1, SCHEMA):
        raise FedrayError(
            f"{path} has report schema {schema}, this version reads 1 and {SCHEMA}; use the fedray that wrote it"
        )
    known = {field.name for field in fields(Report)}
    try:
        keys = from_schema_1(keys) if schema == 1 else keys
        return Schema(Report, kinds=KINDS).read({key: value for key, value in keys.items() if key in known})
    except (FedrayError, AttributeError, KeyError, TypeError) as error:
        raise FedrayError(f"{path} does not hold report schema {schema} ({error}); run the job again") from error


def _plain(value: Any) -> Any:
    """JSON's own values: a number that is not finite becomes null."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
