"""What settings cannot mean: refused in one sentence, before torch or Ray is imported."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from fedray.data.catalogue import BENCHMARKS
from fedray.data.files import SUFFIXES, suffix
from fedray.llm.catalogue import CATALOGUE, NAMES, original_of, repo_of, resolve, safe_name
from fedray.llm.files import check_folder
from fedray.methods.parts import CODECS
from fedray.protocols import protocol_of
from fedray.settings.settings import (
    BUILD_SCHEMA,
    OF_FEW_WORDS,
    OWN_SCORING,
    SCHEMA,
    BuildSettings,
    Settings,
    ZooSettings,
    with_copies,
    with_strangers,
)
from fedray.tracking.checks import check_store
from fedray.types import FedrayError


def check(settings: Settings) -> None:
    """Refuse what cannot be meant, before torch or Ray is imported. Raises FedrayError with one sentence."""
    schema = with_strangers(SCHEMA, settings.receiver, settings.senders)
    with_copies(schema, {"members": settings.members}).read(settings)
    _check_names(settings)
    _check_members(settings)
    _check_exchange(settings)
    protocol_of(settings).check(settings)
    _check_compile(settings)
    _check_questions(settings)
    _check_task(settings)
    _check_folders(settings)
    check_output(settings.output)
    check_store(settings.tracking)


def _check_names(settings: Settings) -> None:
    zoo, protocol = settings.zoo.name, settings.protocol
    receiver = resolve(settings.receiver, "receiver", zoo)
    senders = [resolve(sender, "sender", zoo, copied=True) for sender in settings.senders]
    others = [*dict.fromkeys(sender for sender in senders if sender != receiver)]
    if not others:
        others = [name for name in NAMES if name != receiver] if receiver in NAMES else ["NAME"]
    example = f"'+senders=[{','.join(others)}]'"
    if receiver in senders:
        raise FedrayError(f"{receiver} is the receiver and among the senders: leave it out, as in {example}")
    repeated = [sender for sender in dict.fromkeys(senders) if senders.count(sender) > 1]
    if repeated:
        raise FedrayError(f"{repeated[0]} is more than once among the senders: name it once, as in {example}")
    check_apart((receiver, *senders))
    if not senders and protocol.needs_senders and not protocol.copies:
        raise FedrayError(f"protocol={protocol.name} needs a sender: name some, as in {example}")
    settings.fusion.check(settings.fuser.kind)


def check_apart(names: Sequence[str]) -> None:
    """Raises FedrayError where two LLMs would go by one name."""
    keys = [safe_name(name) for name in names]
    alike = [name for name in names if keys.count(safe_name(name)) > 1]
    if alike:
        raise FedrayError(f"{' and '.join(alike)} go by the same name, {safe_name(alike[0])}: rename one of them")


def _check_exchange(settings: Settings) -> None:
    """What does not go together."""
    protocol, rephrase = settings.protocol, settings.rephrase
    settings.wire.check(settings.fuser.kind)
    CODECS[settings.wire.codec]  # of a package, which may not be importable
    if settings.fusion_order == "sequential" and settings.fusion.operator != "mix":
        raise FedrayError(
            f"fusion_order=sequential is about fusion=mix, where one sender's change can build on another's: leave it "
            f"out of fusion={settings.fusion.operator}, or choose fusion=mix"
        )
    if rephrase == "distinct" and settings.fusion.operator == "mix" and protocol.fuses:
        raise FedrayError("rephrase=distinct does not go with fusion=mix, which needs one text for all: use shared")
    if rephrase != "none" and settings.control == "mismatched":
        raise FedrayError("control=mismatched gives senders another question: leave rephrase out")
    if settings.control != "none" and not protocol.fuses:
        raise FedrayError(f"control={settings.control} is about caches: choose protocol=c2c, not {protocol.name}")
    if settings.control in ("zero", "self", "soft") and settings.fusion.operator == "mix":
        raise FedrayError(
            f"control={settings.control} is about slots of their own, which fusion=mix has not: choose fusion=concat, "
            "or control=noise"
        )
    if settings.evidence:
        check_documents(settings)
    strangers = settings.evidence.keys() - {safe_name(n) for n in (settings.receiver, *settings.senders)}
    if strangers:
        raise FedrayError(f"evidence.{min(strangers)} is for nobody who takes part: add that member to the senders")
    settings.documents()  # a file that is not there is refused now, not after loading
    if settings.vote and not settings.answer_all:
        raise FedrayError("vote=true counts the answers of all members: add answer_all=true")
    apart = rephrase != "none" or settings.control == "mismatched"
    if settings.answer_all and (not protocol.fuses or apart):
        raise _not_alike()
    untold = settings.prompt is not None or settings.questions is not None or settings.task.name in BENCHMARKS
    if settings.gate.kind == "oracle" and untold:
        raise FedrayError("gate=oracle must be told who knows, as only the tiny tasks can: choose gate=learned")


def check_documents(settings: Settings) -> None:
    """Validate that members may read documents of their own. Raises FedrayError."""
    if settings.fusion.operator == "mix":
        raise FedrayError("evidence does not go with fusion=mix, which needs one text for all: use fusion=concat")
    if settings.answer_all:
        raise _not_alike()


def _not_alike() -> FedrayError:
    return FedrayError(
        "answer_all=true goes with protocol=c2c, and without rephrase, evidence and control=mismatched: "
        "everybody reads the same prompt"
    )


def _check_compile(settings: Settings) -> None:
    """Whether receivers stand where a mode of torch.compile makes sense, and can be compiled for."""
    if settings.compile is None:
        return
    receivers = settings.takes_part if settings.answer_all else (settings.receiver,)
    on_gpu = [_on_gpu(settings, name) for name in receivers]
    if settings.compile == "reduce-overhead" and not any(on_gpu):
        raise FedrayError(
            f"compile=reduce-overhead replays CUDA graphs and {' and '.join(receivers)} would run on CPUs: add "
            f"members.{settings.receiver}.device=cuda, or choose compile=default"
        )
    elsewhere = settings.ray.enabled and bool(settings.ray.address or os.environ.get("RAY_ADDRESS"))
    if not all(on_gpu) and not elsewhere and cpp_compiler() is None:
        raise FedrayError(
            f"compile={settings.compile} needs a C++ compiler on CPUs and there is none: install g++, name one with "
            "the environment variable CXX, or leave compile out"
        )


def cpp_compiler() -> str | None:
    """Where the C++ compiler lies that torch.compile would call for a CPU of this machine; None where there is none."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++"))


def _on_gpu(settings: Settings, name: str) -> bool:
    """As fedray.federation.sources.resources places members."""
    own = settings.member(name)
    if own.device is not None:
        return own.device.startswith("cuda")
    gpus = settings.ray.gpus_per_member if own.num_gpus is None else own.num_gpus
    return settings.ray.enabled and gpus > 0


def _check_members(settings: Settings) -> None:
    known = {safe_name(name): name for name in (*CATALOGUE, settings.receiver, *settings.senders)}
    if absent := next((key for key in settings.members if key not in known), None):  # of an LLM that is known
        original, _, number = absent.rpartition("__")
        there = ", ".join(name for name in settings.senders if original_of(name) != name) or "none"
        raise FedrayError(f"members.{known[original]}#{number} is for nobody who takes part: the copies are {there}")
    for name, member in settings.members.items():
        check_revision(name, member.revision, settings.zoo)
        if member.device is not None and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", member.device):
            raise FedrayError(f"members.{name}.device must be cpu, cuda, cuda:0 or mps, got {member.device!r}")
        if member.label is not None and not re.fullmatch(r"[^=\s]+=[^=\s]+", member.label):
            raise FedrayError(f"members.{name}.label must be a node's label as key=value, got {member.label!r}")
        if (count := member.replicas or 1) > 1 and not settings.ray.enabled:
            raise FedrayError(f"members.{name}.replicas={count} are actors of Ray: leave ray.enabled=false out")


def check_revision(name: str, revision: str | None, zoo: ZooSettings) -> None:
    """Raises FedrayError where a member (by its safe name) has a revision and comes from no repository."""
    if revision is not None and zoo.name != "hub":
        raise FedrayError(f"members.{name}.revision is of a repository on the Hugging Face hub: add zoo=hub")


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
    if suffix(path) not in SUFFIXES:
        endings = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise FedrayError(f"questions file {str(path)!r} must end in {endings}, each also with .gz behind it")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise FedrayError(f"cannot read questions file {str(path)!r}: {error.strerror}; check the path") from error
    if empty:
        raise FedrayError(f"questions file {str(path)!r} is empty: write one question per line")


def _check_task(settings: Settings) -> None:
    """A split that the data set has, and a scoring that goes with its questions."""
    task = settings.task
    if task.shots and (settings.prompt is not None or settings.questions is not None):
        raise FedrayError(f"task.shots={task.shots} is of a task, and questions of your own have no training split")
    if task.shots and settings.rephrase != "none":
        raise FedrayError(f"rephrase rewrites a question, not the examples of task.shots={task.shots}: leave one out")
    if settings.prompt is not None:
        return
    if task.name in BENCHMARKS and settings.questions is None:
        BENCHMARKS[task.name].check(task.split)
    own = OWN_SCORING.get(task.name) if settings.questions is None else None
    in_words = OF_FEW_WORDS if own == "exact" or settings.questions is not None else ()
    if task.scored_by not in (own, *in_words) and (own or task.scored_by in (*OWN_SCORING.values(), *OF_FEW_WORDS)):
        asked = f"task={task.name}" if settings.questions is None else "questions of your own"
        fits = " or ".join(in_words) if own == "exact" else own or "text, text-normalized, letters or letters-generated"
        raise FedrayError(f"task.scoring={task.scored_by} does not go with {asked}: choose {fits}")
    if settings.vote and task.scored_by == "text-normalized":
        raise FedrayError("vote=true counts choices as members make them: leave task.scoring=text-normalized out")


def _check_folders(settings: Settings) -> None:
    if settings.data.path is not None and not settings.data.path.exists():
        raise FedrayError(f"data.path={settings.data.path} does not exist: name a folder or a file, or leave it out")
    for key, folder in (("zoo.path", settings.zoo.path), ("registry.path", settings.registry.path)):
        if folder is not None and not folder.is_dir():
            raise FedrayError(f"{key}={folder} is no folder: check the path, or leave it out for the embedded one")
    check_llm_folders(list(map(original_of, settings.takes_part)))


def check_llm_folders(names: Sequence[str]) -> None:
    """Raises FedrayError where a name is a folder without an LLM."""
    for name in names:
        if repo_of(name) is None:
            check_folder(name)


def check_output(output: Path, key: str = "output") -> None:
    """Raises FedrayError where a job could not write; key: the setting that names the folder."""
    existing = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise FedrayError(f"cannot write to {key} folder {str(output)!r}: choose another with {key}=DIR")


def check_build(settings: BuildSettings) -> None:
    """Refuse a build that cannot be meant. Raises FedrayError."""
    BUILD_SCHEMA.read(settings)
    check_output(settings.output)
    check_store(settings.tracking)
