"""What a run can be told: frozen, typed settings, and the cheap checks that come before anything expensive starts."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, TypeVar

from fedray.data.catalogue import BENCHMARKS
from fedray.llm.catalogue import CATALOGUE, NAMES, is_foreign, repo_of, resolve, safe_name
from fedray.schema import Schema
from fedray.types import T2T, FedrayError, Generation, Wire

Task = Literal[
    "tiny",
    "tiny-unseen",
    "tiny-phrasings",
    "tiny-joint",
    "tiny-joint-halves",
    "tiny-evidence",
    "tiny-evidence-pooled",
    "openbookqa",
    "arc-challenge",
    "mmlu-redux",
    "ceval",
    "gsm8k",
]
Scoring = Literal["text", "text-normalized", "letters", "letters-generated", "number"]
ALONE = ("standalone", "self_refine")  # protocols in which the receiver needs nobody


@dataclass(frozen=True, slots=True)
class ZooSettings:
    name: Literal["tiny", "hub", "shapes"] = "tiny"
    path: Path | None = None  # a zoo built elsewhere (llms/NAME, registry/); None is the embedded one, or the hub


@dataclass(frozen=True, slots=True)
class ProtocolSettings:
    name: Literal["standalone", "self_refine", "t2t", "c2c", "route", "ensemble"] = "c2c"


@dataclass(frozen=True, slots=True)
class GateSettings:
    kind: Literal["learned", "open", "random", "none", "oracle"] = "learned"
    route: Literal["eager", "lazy"] = "eager"
    threshold: float = 0.5  # gate weights below it count as 0


@dataclass(frozen=True, slots=True)
class TaskSettings:
    name: Task = "tiny"
    limit: int | None = 200  # questions; None asks all
    split: Literal["train", "validation", "test"] = "test"
    batch_size: int = 32
    scoring: Scoring | None = None  # fedray/evaluation/scoring.py; None: as the task was published
    max_tokens: int | None = None  # of a free answer; None: what the scoring needs, or generation.max_tokens

    @property
    def scored_by(self) -> Scoring:
        """The scoring, said or implied."""
        implied = "number" if self.name == "gsm8k" else "letters-generated" if self.name in BENCHMARKS else "text"
        return self.scoring or implied


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Where the data sets of real tasks are read from."""

    path: Path | None = None  # a folder of local copies, one per data set, or one data set's folder or file
    streaming: bool = False  # read the hub's rows as they come, without keeping them
    revision: str | None = None  # of the data set on the hub: a branch, tag or commit


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    path: Path | None = None  # the user's registry, in front of the embedded one


@dataclass(frozen=True, slots=True)
class RaySettings:
    enabled: bool = True  # False keeps all members in this process
    address: str | None = None  # None: RAY_ADDRESS, or a cluster of our own
    namespace: str = "fedray"
    num_cpus: float | None = None  # of our own cluster
    cpus_per_member: float | None = None
    gpus_per_member: float = 0.0
    object_store_mb: int = 256


@dataclass(frozen=True, slots=True)
class MemberSettings:
    """What one member has of its own; None is what all members have."""

    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    label: str | None = None  # "key=value" of the node it must run on
    revision: str | None = None  # branch, tag or commit of its repository; None is main


@dataclass(frozen=True, slots=True)
class TrackingSettings:
    enabled: bool = True
    uri: str = "sqlite:///mlflow.db"
    experiment: str = "fedray"
    traces: int = 5  # requests that leave a trace


def _dated_folder() -> Path:
    return Path(datetime.now().strftime("outputs/%Y-%m-%d/%H-%M-%S"))


@dataclass(frozen=True, slots=True)
class Settings:
    """One run. `build` makes it from nested values, `check` says whether it can be meant."""

    receiver: str = "qwen3-0.6b"
    senders: tuple[str, ...] = ("qwen2.5-0.5b", "qwen2.5-coder-0.5b", "qwen2.5-1.5b", "llama-1b")
    protocol: ProtocolSettings = ProtocolSettings()
    fuser: Literal["mlp", "c2c"] = "mlp"
    fusion: Literal["concat", "mix"] = "concat"
    fusion_order: Literal["parallel", "sequential"] = "parallel"  # how several senders mix
    gate: GateSettings = GateSettings()
    control: Literal["none", "mismatched", "noise", "constant"] = "none"
    rephrase: Literal["none", "shared", "distinct"] = "none"
    t2t: T2T = field(default_factory=T2T)
    rounds: int = 3  # of self_refine, at most
    answer_all: bool = False  # c2c both ways: every member answers
    vote: bool = False  # answer_all: the majority's answer instead of the receiver's
    evidence: Mapping[str, str] = field(default_factory=dict)  # by safe name: a text or a file only this member reads
    zoo: ZooSettings = ZooSettings()
    task: TaskSettings = TaskSettings()
    data: DataSettings = DataSettings()
    plan: bool = False  # say what it would take, and load nothing
    prompt: str | None = None
    questions: Path | None = None  # .jsonl or .json in OpenBookQA's schema, or .txt with a question per line
    generation: Generation = field(default_factory=Generation)
    deadline_s: float | None = None
    on_missing: Literal["alone", "text", "error"] = "alone"
    wire: Wire = field(default_factory=Wire)
    registry: RegistrySettings = RegistrySettings()
    ray: RaySettings = RaySettings()
    members: Mapping[str, MemberSettings] = field(default_factory=dict)  # by safe name: qwen2_5-0_5b
    tracking: TrackingSettings = TrackingSettings()
    seed: int = 0
    output: Path = field(default_factory=_dated_folder)

    def member(self, name: str) -> MemberSettings:
        """What was said about one member."""
        return self.members.get(safe_name(name), MemberSettings())

    @property
    def takes_part(self) -> tuple[str, ...]:
        """Members by name, the receiver first."""
        return (self.receiver, *(() if self.protocol.name in ALONE else self.senders))

    def documents(self) -> dict[str, str]:
        """Member -> the text of its evidence. Raises FedrayError where a file cannot be read."""
        return {n: _document(self.evidence[safe_name(n)]) for n in self.takes_part if safe_name(n) in self.evidence}


S = TypeVar("S", bound=Settings)
BY_MEMBER: dict[str, tuple[str, ...]] = {key: tuple(map(safe_name, CATALOGUE)) for key in ("members", "evidence")}
SCHEMA = Schema(Settings, keys=BY_MEMBER)


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """A rebuild of the embedded zoo (jobs/build_zoo.py)."""

    output: Path = Path("outputs/zoo")  # where the zoo is built; what is there already is kept
    seed: int = 0  # of the world: another seed, other entities and facts
    everything: bool = True  # False: the default federation only
    workers: int | None = None  # tasks at a time; None is one per core
    shorten: float = 1.0  # factor on all training lengths, to try the build
    table: bool = True  # measure the default federation on all held-out questions afterwards
    tracking: TrackingSettings = field(default_factory=TrackingSettings)


BUILD_SCHEMA = Schema(BuildSettings)


def check_build(settings: BuildSettings) -> None:
    """Refuse a build that cannot be meant. Raises FedrayError."""
    check_range("seed", settings.seed, 0, 2**32 - 1)
    check_range("workers", settings.workers, 1)
    check_range("shorten", settings.shorten, 0.001, 1)
    check_output(settings.output)


def build(values: Mapping[str, Any]) -> Settings:
    """Settings from nested values; see `read`."""
    return read(SCHEMA, values)


def read(schema: Schema[S], values: Mapping[str, Any]) -> S:
    """Settings, or a job's own kind of them, from nested values, names canonical; what is not given has its default.

    Senders default to everyone but the receiver, fusion to what the fuser implies, gate to what the zoo implies,
    generation.seed to seed. Raises FedrayError on an unknown key or name and on a value of the wrong type.
    """
    values = {key: value for key, value in values.items() if (key, value) != ("senders", None)}
    for key in BY_MEMBER:
        if isinstance(values.get(key), Mapping):
            named = {safe_name(str(name)): value for name, value in values[key].items()}
            values[key] = {name: value for name, value in named.items() if value is not None}
    gate = values.get("gate", {})
    implied_gate = isinstance(gate, Mapping) and gate.get("kind") is None
    if implied_gate:
        values["gate"] = {key: value for key, value in gate.items() if key != "kind"}
    settings = _with_strangers(schema, values.get("receiver"), values.get("senders")).read(values)
    zoo = settings.zoo.name
    receiver = resolve(settings.receiver, "receiver", zoo)
    senders = settings.senders if "senders" in values else tuple(name for name in NAMES if name != receiver)
    implied = "mix" if settings.fuser == "c2c" else "concat"
    given = values.get("generation", {})
    seeded = isinstance(given, Generation) or (isinstance(given, Mapping) and "seed" in given)
    return replace(
        settings,
        receiver=receiver,
        senders=tuple(resolve(sender, "sender", zoo) for sender in senders),
        gate=replace(settings.gate, kind="open") if implied_gate and zoo == "shapes" else settings.gate,
        fusion=settings.fusion if "fusion" in values else implied,
        generation=settings.generation if seeded else replace(settings.generation, seed=settings.seed),
    )


def _with_strangers(schema: Schema[S], receiver: Any, senders: Any) -> Schema[S]:
    """The schema that also knows the settings of members that are not in the catalogue."""
    named = [receiver, *(senders if isinstance(senders, list | tuple) else ())]
    strangers = tuple(safe_name(name) for name in named if isinstance(name, str) and is_foreign(name))
    return schema.with_keys(dict.fromkeys(BY_MEMBER, strangers)) if strangers else schema


def check(settings: Settings) -> None:
    """Refuse what cannot be meant, before torch or Ray is imported. Raises FedrayError with one sentence."""
    _with_strangers(SCHEMA, settings.receiver, settings.senders).read(settings)
    _check_names(settings)
    _check_numbers(settings)
    _check_members(settings)
    _check_exchange(settings)
    _check_questions(settings)
    _check_task(settings)
    _check_folders(settings)
    check_output(settings.output)


def _check_names(settings: Settings) -> None:
    zoo = settings.zoo.name
    receiver = resolve(settings.receiver, "receiver", zoo)
    senders = [resolve(sender, "sender", zoo) for sender in settings.senders]
    others = dict.fromkeys(sender for sender in senders if sender != receiver) or (n for n in NAMES if n != receiver)
    example = f"'+senders=[{','.join(others)}]'"
    if receiver in senders:
        raise FedrayError(f"{receiver} is the receiver and among the senders: leave it out, as in {example}")
    repeated = [sender for sender in dict.fromkeys(senders) if senders.count(sender) > 1]
    if repeated:
        raise FedrayError(f"{repeated[0]} is more than once among the senders: name it once, as in {example}")
    keys = [safe_name(name) for name in (receiver, *senders)]
    alike = [name for name in (receiver, *senders) if keys.count(safe_name(name)) > 1]
    if alike:
        raise FedrayError(
            f"{' and '.join(alike)} go by the same name, {safe_name(alike[0])}: rename one of the folders"
        )
    if not senders and settings.protocol.name not in ALONE:
        raise FedrayError(f"protocol={settings.protocol.name} needs a sender: name some, as in {example}")
    if settings.fuser == "c2c" and settings.fusion != "mix":
        raise FedrayError(
            f"fusion={settings.fusion} does not go with fuser=c2c, which mixes: leave fusion out, or choose fuser=mlp"
        )


def _check_exchange(settings: Settings) -> None:
    """What does not go together."""
    name, rephrase = settings.protocol.name, settings.rephrase
    if settings.fusion_order == "sequential" and settings.fusion != "mix":
        raise FedrayError(
            f"fusion_order=sequential is about fusion=mix, where one sender's change can build on another's: leave it "
            f"out of fusion={settings.fusion}, or choose fusion=mix"
        )
    if rephrase == "distinct" and settings.fusion == "mix" and name == "c2c":
        raise FedrayError("rephrase=distinct does not go with fusion=mix, which needs one text for all: use shared")
    if rephrase != "none" and settings.control == "mismatched":
        raise FedrayError("control=mismatched gives senders another question: leave rephrase out")
    if settings.control != "none" and name != "c2c":
        raise FedrayError(f"control={settings.control} is about caches: choose protocol=c2c, not {name}")
    if settings.evidence and settings.fusion == "mix":
        raise FedrayError("evidence does not go with fusion=mix, which needs one text for all: use fusion=concat")
    strangers = settings.evidence.keys() - {safe_name(n) for n in (settings.receiver, *settings.senders)}
    if strangers:
        raise FedrayError(f"evidence.{min(strangers)} is for nobody who takes part: add that member to the senders")
    settings.documents()  # a file that is not there is refused now, not after loading
    if settings.vote and not settings.answer_all:
        raise FedrayError("vote=true counts the answers of all members: add answer_all=true")
    apart = rephrase != "none" or settings.evidence or settings.control == "mismatched"
    if settings.answer_all and (name != "c2c" or apart):
        raise FedrayError(
            "answer_all=true goes with protocol=c2c, and without rephrase, evidence and control=mismatched: "
            "everybody reads the same prompt"
        )
    untold = settings.prompt is not None or settings.questions is not None or settings.task.name in BENCHMARKS
    if settings.gate.kind == "oracle" and untold:
        raise FedrayError("gate=oracle must be told who knows, as only the tiny tasks can: choose gate=learned")


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("seed", 0, 2**32 - 1),
    ("task.limit", 1, math.inf),
    ("task.batch_size", 1, 256),
    ("task.max_tokens", 1, 4096),
    ("gate.threshold", 0, 1),
    ("wire.keep", 0.01, 1),
    ("generation.max_tokens", 1, math.inf),
    ("generation.temperature", 0, math.inf),
    ("generation.seed", 0, 2**32 - 1),
    ("t2t.max_tokens", 1, 4096),
    ("rounds", 1, 100),
    ("deadline_s", 0.001, math.inf),
    ("ray.num_cpus", 1, math.inf),
    ("ray.cpus_per_member", 0.001, math.inf),
    ("ray.gpus_per_member", 0, math.inf),
    ("ray.object_store_mb", 80, math.inf),  # Ray refuses less than 75 MiB
    ("tracking.traces", 0, math.inf),
)


def _check_numbers(settings: Settings) -> None:
    for path, low, high in _RANGES:
        check_range(path, attrgetter(path)(settings), low, high)


def check_range(path: str, value: float | None, low: float, high: float = math.inf) -> None:
    """Raises FedrayError naming the setting; None is in every range."""
    if value is None or (math.isfinite(value) and low <= value <= high):
        return
    wanted = f"at least {low}" if high == math.inf else f"from {low} to {high}"
    raise FedrayError(f"{path} must be {wanted}, got {value}")


def _check_members(settings: Settings) -> None:
    for name, member in settings.members.items():
        if member.revision is not None and settings.zoo.name != "hub":
            raise FedrayError(f"members.{name}.revision is of a repository on the Hugging Face hub: add zoo=hub")
        check_range(f"members.{name}.num_cpus", member.num_cpus, 0.001)
        check_range(f"members.{name}.num_gpus", member.num_gpus, 0)
        if member.device is not None and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", member.device):
            raise FedrayError(f"members.{name}.device must be cpu, cuda, cuda:0 or mps, got {member.device!r}")
        if member.label is not None and not re.fullmatch(r"[^=\s]+=[^=\s]+", member.label):
            raise FedrayError(f"members.{name}.label must be a node's label as key=value, got {member.label!r}")


def _document(text: str) -> str:
    """A text, or the text of the file it names."""
    path = Path(text).expanduser()
    try:
        if not path.is_file():
            if re.fullmatch(r"\S*/\S*|\S+\.\w{1,5}", text):  # one word with a slash or an ending: a path, mistyped
                raise FedrayError(f"no evidence file {text!r}: check the path, or write the evidence as a sentence")
            return text
    except OSError:  # a text too long for a file's name
        return text
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FedrayError(f"cannot read evidence file {text!r} ({error}): it must be UTF-8 text") from error


def _check_questions(settings: Settings) -> None:
    if settings.prompt is not None and settings.questions is not None:
        raise FedrayError("prompt and questions are both given: choose one of them")
    if settings.prompt is not None and not settings.prompt.strip():
        raise FedrayError('the prompt is empty: ask something, as in prompt="what is the color of the bird tari?"')
    if settings.prompt is not None and settings.control == "mismatched":
        raise FedrayError("control=mismatched needs other questions to read: leave prompt out, or choose control=noise")
    path = settings.questions
    if path is None:
        return
    if path.suffix not in (".jsonl", ".json", ".txt"):
        raise FedrayError(f"questions file {str(path)!r} must end in .jsonl, .json or .txt")
    try:
        empty = not path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise FedrayError(f"cannot read questions file {str(path)!r}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise FedrayError(f"cannot read questions file {str(path)!r}: it is not UTF-8 text; convert it") from error
    if empty:
        raise FedrayError(f"questions file {str(path)!r} is empty: write one question per line")


def _check_task(settings: Settings) -> None:
    """A split that the data set has, and a scoring that goes with its questions and with the protocol."""
    task, protocol = settings.task, settings.protocol.name
    if settings.prompt is not None:
        return
    if task.name in BENCHMARKS and settings.questions is None:
        BENCHMARKS[task.name].check(task.split)
    if (task.scored_by == "number") != (task.name == "gsm8k" and settings.questions is None):
        fits = "number" if task.name == "gsm8k" else "text, text-normalized, letters or letters-generated"
        raise FedrayError(f"task.scoring={task.scored_by} does not go with task={task.name}: choose {fits}")
    if protocol == "ensemble" and task.scored_by not in ("text", "letters"):
        raise FedrayError("protocol=ensemble needs likelihoods as they are: task.scoring=letters or text")
    if settings.vote and task.scored_by == "text-normalized":
        raise FedrayError("vote=true counts choices as members make them: leave task.scoring=text-normalized out")


def _check_folders(settings: Settings) -> None:
    if settings.data.path is not None and not settings.data.path.exists():
        raise FedrayError(f"data.path={settings.data.path} does not exist: name a folder or a file, or leave it out")
    for key, folder in (("zoo.path", settings.zoo.path), ("registry.path", settings.registry.path)):
        if folder is not None and not folder.is_dir():
            raise FedrayError(f"{key}={folder} is no folder: check the path, or leave it out for the embedded one")
    for name in (settings.receiver, *settings.senders):
        if repo_of(name) is None and not Path(name, "config.json").is_file():
            raise FedrayError(f"{name} is no LLM's folder, it has no config.json: check the path, or name hf:org/name")


def check_output(output: Path, key: str = "output") -> None:
    """Raises FedrayError where a job could not write; key: the setting that names the folder."""
    existing = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise FedrayError(f"cannot write to {key} folder {str(output)!r}: choose another with {key}=DIR")
