"""What a run can be told: frozen, typed settings, and the cheap checks that come before anything expensive starts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from fedray.data.catalogue import BENCHMARKS, TASKS
from fedray.llm.catalogue import CATALOGUE, NAMES, is_copy, is_foreign, original_of, resolve, safe_name
from fedray.methods.method import Method, with_fusion
from fedray.methods.parts import FUSERS
from fedray.protocols import KINDS, protocol_of
from fedray.schema import Schema, attributes, within
from fedray.text import decode_text
from fedray.types import FedrayError, Generation, Prompting

Scoring = Literal["text", "text-normalized", "letters", "letters-generated", "number", "told", "exact", "contains"]
if TYPE_CHECKING:
    Task = str
else:
    Task = Literal[tuple(TASKS)]
OF_FEW_WORDS = ("exact", "contains")  # scorings that have a token F1 beside their accuracy
OWN_SCORING = {
    name: how for name, how in TASKS.items() if how in ("number", "told", "exact")
}  # of a task's own questions alone


@dataclass(frozen=True, slots=True)
class ZooSettings:
    name: Literal["tiny", "hub", "shapes"] = "tiny"
    path: Path | None = None  # a zoo built elsewhere (llms/NAME, registry/); None is the embedded one, or the hub


@dataclass(frozen=True, slots=True)
class TaskSettings:
    name: Task = "tiny"
    limit: int | None = within(200, 1)  # questions; None asks all
    split: Literal["train", "validation", "test"] = "test"
    batch_size: int = within(32, 1, 256)
    shots: int = within(0, 0, 64)  # solved examples of the training split above each question
    batches_in_flight: int = within(2, 1, 16)  # on Ray: senders read the next while one is answered; 1: one by one
    scoring: Scoring | None = None  # fedray/questions/scoring.py; None: as the task was published
    max_tokens: int | None = within(None, 1, 4096)  # of a free answer; None: as its scoring needs

    @property
    def scored_by(self) -> str:
        """The scoring, set or implied."""
        return self.scoring or TASKS[self.name]

    def of(self, name: str) -> TaskSettings:
        """The same of another task; in place of tests that have no answers, its validation split."""
        if name == self.name:
            return self
        found = BENCHMARKS.get(name) if self.split == "test" else None
        return replace(self, name=name, split=found.evaluated if found else self.split)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Where the data sets of real tasks are read from."""

    path: Path | None = None  # a folder of local copies, one per data set, or one data set's folder or file
    streaming: bool = False  # read the hub's rows as they come, without keeping them
    revision: str | None = None  # of the data set on the hub: a branch, tag or commit


@dataclass(frozen=True, slots=True)
class Donors:
    """Whose messages every question is answered with as well, to see whether its own are read (questions/donors.py).

    count: per question; 0: none; None: 1, in an evaluation 3, or as many as there are; each: besides, the messages of
    each sender alone are a donor's.
    """

    count: int | None = within(None, 0, 16)
    answer: Literal["any", "different", "same"] = "different"  # of the donor, compared with the question's
    each: bool = False


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    path: Path | None = None  # the user's registry, in front of the embedded one


@dataclass(frozen=True, slots=True)
class RaySettings:
    enabled: bool = True  # False keeps all members in this process
    address: str | None = None  # None: RAY_ADDRESS, or a cluster of our own
    namespace: str = "fedray"
    num_cpus: float | None = within(None, 1)  # of our own cluster
    cpus_per_member: float | None = within(None, 0.001)
    gpus_per_member: float = within(0.0, 0)
    object_store_mb: int = within(256, 80)  # Ray refuses less than 75 MiB

    @property
    def of_cluster(self) -> dict[str, Any]:
        """What a cluster is connected to, or started, with."""
        return attributes(self, "namespace", "num_cpus", "object_store_mb")


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """Whose requests a running federation takes (`Federation.submit`)."""

    kv_mb: float = within(4096.0, 1)  # predicted KV caches of what waits or is being answered, in all members
    quota: int | None = within(None, 1)  # a tenant's requests waiting or being answered; None: as many as fit


@dataclass(frozen=True, slots=True)
class MemberSettings:
    """What one member has of its own; None is what all members have."""

    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    num_cpus: float | None = within(None, 0.001)
    num_gpus: float | None = within(None, 0)
    label: str | None = None  # "key=value" of the node it must run on
    revision: str | None = None  # branch, tag or commit of its repository; None is main
    replicas: int | None = within(None, 1, 64)  # actors that share its requests, on Ray; None is one


@dataclass(frozen=True, slots=True)
class TrackingSettings:
    enabled: bool = True
    uri: str = "sqlite:///mlflow.db"
    experiment: str = "fedray"
    traces: int = within(5, 0)  # requests that leave a trace


def _dated_folder() -> Path:
    return Path(datetime.now().strftime("outputs/%Y-%m-%d/%H-%M-%S"))


@dataclass(frozen=True)
class Settings(Method):
    """One run. `build` makes it from nested values, `check` says whether it can be meant."""

    receiver: str = "qwen3-0.6b"
    senders: tuple[str, ...] = ("qwen2.5-0.5b", "qwen2.5-coder-0.5b", "qwen2.5-1.5b", "llama-1b")
    evidence: Mapping[str, str] = field(default_factory=dict)  # by safe name: a text or a file only this member reads
    zoo: ZooSettings = ZooSettings()
    task: TaskSettings = TaskSettings()
    data: DataSettings = DataSettings()
    donors: Donors = Donors()
    plan: bool = False  # say what it would take, and load nothing
    prompt: str | None = None
    questions: Path | None = None  # rows in the schema of a data set (fedray/data/own.py), or .txt, a question per line
    generation: Generation = field(default_factory=Generation)
    prompting: Prompting | None = None  # of all members; None: a chat where there is a chat template, else a completion
    deadline_s: float | None = within(None, 0.001)
    registry: RegistrySettings = RegistrySettings()
    ray: RaySettings = RaySettings()
    admission: AdmissionSettings = AdmissionSettings()
    members: Mapping[str, MemberSettings] = field(default_factory=dict)  # by safe name: qwen2_5-0_5b
    tracking: TrackingSettings = TrackingSettings()
    seed: int = within(0, 0, 2**32 - 1)
    output: Path = field(default_factory=_dated_folder)
    usual_donors: ClassVar[int] = 1

    @property
    def method(self) -> Method:
        """How members answer together."""
        return Method(**self.parts())

    def member(self, name: str) -> MemberSettings:
        """What was said about one member; what was not said of a copy alone is as its LLM has it."""
        of_all_copies = self.members.get(safe_name(original_of(name)), MemberSettings())
        own = asdict(self.members.get(safe_name(name), MemberSettings()))
        return replace(of_all_copies, **{key: value for key, value in own.items() if value is not None})

    def replicas(self, name: str) -> int:
        return self.member(name).replicas or 1

    @property
    def takes_part(self) -> tuple[str, ...]:
        """Members by name, the receiver first."""
        return (self.receiver, *(self.senders if self.protocol.needs_senders else ()))

    @property
    def batches_at_a_time(self) -> int:
        """Batches on their way together: one in one process, where nobody could go on meanwhile, and under a deadline,
        which counts from a batch's start, so that a sender busy with the one before would be late without being slow.
        """
        return self.task.batches_in_flight if self.ray.enabled and self.deadline_s is None else 1

    @property
    def private(self) -> bool:
        """Whether prompts, answers and what is said of them on the command line are for their owner's eyes only."""
        return self.rephrase != "none" or bool(self.evidence)

    def documents(self) -> dict[str, str]:
        """Member -> the text of its evidence. Raises FedrayError where a file cannot be read."""
        return {n: _document(self.evidence[safe_name(n)]) for n in self.takes_part if safe_name(n) in self.evidence}


S = TypeVar("S", bound=Settings)
T = TypeVar("T")
BY_MEMBER: dict[str, tuple[str, ...]] = {key: tuple(map(safe_name, CATALOGUE)) for key in ("members", "evidence")}
SCHEMA = Schema(Settings, BY_MEMBER, KINDS)


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """A rebuild of the embedded zoo (jobs/build_zoo.py)."""

    output: Path = Path("outputs/zoo")  # where the zoo is built; what is there already is kept
    seed: int = within(0, 0, 2**32 - 1)  # of the world: another seed, other entities and facts
    everything: bool = True  # False: the default federation only
    workers: int | None = within(None, 1)  # tasks at a time; None is one per core
    shorten: float = within(1.0, 0.001, 1)  # factor on all training lengths, to try the build
    tracking: TrackingSettings = field(default_factory=TrackingSettings)


BUILD_SCHEMA = Schema(BuildSettings)


def build(values: Mapping[str, Any]) -> Settings:
    """Settings from nested values; see `read`. Where the receiver answers alone, nobody is a sender by default."""
    settings = read(SCHEMA, values)
    nobody = values.get("senders") is None and not settings.protocol.needs_senders
    return replace(settings, senders=()) if nobody else settings


def read(schema: Schema[S], values: Mapping[str, Any]) -> S:
    """Settings, or a job's own kind of them, from nested values, names canonical; what is not given has its default.

    Receiver and senders default to the protocol's, or to everyone but the receiver; fusion to what the fuser
    implies, gate to what the zoo implies, generation.seed to seed.
    Raises FedrayError on an unknown key or name and on a value of the wrong type.
    """
    values = named_safely({key: value for key, value in values.items() if (key, value) != ("senders", None)})
    gate = values.get("gate", {})
    implied_gate = isinstance(gate, Mapping) and gate.get("kind") is None
    if implied_gate:
        values["gate"] = {key: value for key, value in gate.items() if key != "kind"}
    values = with_fusion(values)
    schema = with_copies(with_strangers(schema, values.get("receiver"), values.get("senders")), values)
    settings = schema.read(values)
    zoo = settings.zoo.name
    protocol = protocol_of(settings)
    default, among = protocol.settings.receiver or settings.receiver, protocol.settings.senders or NAMES
    receiver = resolve(settings.receiver if "receiver" in values else default, "receiver", zoo)
    named = None
    if "senders" in values:
        named = tuple(resolve(name, "sender", zoo, copied=True) for name in settings.senders)
    receiver, senders = protocol.roles(settings.protocol, receiver, named, zoo)
    if senders is None:
        senders = tuple(name for name in among if name != receiver)
    task = settings.task
    if settings.questions is not None and task.scoring is None and task.name in OWN_SCORING:
        task = replace(task, scoring="text")  # what the task's name implies is about its own questions
    ungated = zoo == "shapes" or not FUSERS[settings.fuser.kind].trained or any(map(is_copy, senders))
    given = values.get("generation", {})
    seeded = isinstance(given, Generation) or (isinstance(given, Mapping) and "seed" in given)
    return replace(
        settings,
        receiver=receiver,
        senders=senders,
        task=task,
        gate=replace(settings.gate, kind="open") if implied_gate and ungated else settings.gate,
        generation=settings.generation if seeded else replace(settings.generation, seed=settings.seed),
    )


def named_safely(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values, what is said of members under their safe names."""
    values = dict(values)
    for key in BY_MEMBER:
        if isinstance(values.get(key), Mapping):
            named = {safe_name(str(name)): value for name, value in values[key].items()}
            values[key] = {name: value for name, value in named.items() if value is not None}
    return values


def with_strangers(schema: Schema[T], receiver: Any, senders: Any) -> Schema[T]:
    """The schema that also knows the settings of members that are not in the catalogue."""
    named = [receiver, *(senders if isinstance(senders, list | tuple) else ())]
    strangers = tuple(safe_name(name) for name in named if isinstance(name, str) and is_foreign(name))
    return schema.with_keys(dict.fromkeys(BY_MEMBER, strangers)) if strangers else schema


def with_copies(schema: Schema[T], values: Mapping[str, Any]) -> Schema[T]:
    """The schema that also knows the settings of copies (members.llama-1b__2) of members it knows."""
    named = values.get("members")
    originals = {name: name.rpartition("__")[0] for name in (named if isinstance(named, Mapping) else ())}
    known = schema.keys["members"]
    strangers = tuple(name for name, original in originals.items() if original in known and name not in known)
    return schema.with_keys({"members": strangers}) if strangers else schema


def _document(text: str) -> str:
    """A text, or the text of the file it names."""
    path = Path(os.path.expanduser(text))
    try:
        if not path.is_file():
            if re.fullmatch(r"\S*/\S*|\S+\.\w{1,5}", text):  # one word with a slash or an ending: a path, mistyped
                raise FedrayError(f"no evidence file {text!r}: check the path, or write the evidence as a sentence")
            return text
    except OSError:  # a text too long for a file's name
        return text
    try:
        return decode_text(path.read_bytes(), f"evidence file {text}")
    except OSError as error:
        raise FedrayError(f"cannot read evidence file {text!r} ({error}): it must be UTF-8 text") from error
