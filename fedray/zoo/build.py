"""Builds the embedded zoo from nothing: tokenizers and LLMs, then fusers, then gates.

Every part is one task in a process of its own with one torch thread, so that the same seed gives the same hashes on
the same platform whatever else runs. What is already there is kept: a killed build goes on where it stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedray.files import whole_folder, write_whole
from fedray.fusion.norms import RECORD, norms_of
from fedray.llm.catalogue import WORLD
from fedray.llm.loading import describe, load
from fedray.llm.model import LLM
from fedray.llm.source import HASHES, hash_file
from fedray.methods.method import FuserChoice, with_fusion
from fedray.methods.parts import FUSERS
from fedray.protocols import METHOD
from fedray.registry.store import Registry, fuser_name, load_fuser, read_manifest
from fedray.training import dictation
from fedray.training.checkpoint import FOLDER as CHECKPOINTS
from fedray.training.checkpoint import Checkpoint
from fedray.training.contributions import Contributions
from fedray.training.conversations import PHRASINGS_PER_FACT, LabelledPrompt, believed, conversations
from fedray.training.data import BATCH, prefill
from fedray.training.dataset import dictated, for_gate
from fedray.training.fuser_trainer import FuserTraining, accuracy_by_group
from fedray.training.gate_trainer import GateRecipe, GateTraining
from fedray.training.pair import Pair
from fedray.training.recipe import FuserRecipe
from fedray.training.settings import STEPS
from fedray.training.text_pair import TextPair
from fedray.types import FedrayError, MemberInfo
from fedray.world.world import World
from fedray.zoo.pretrain import RECIPES, build_tokenizer, pretrain

DEFAULT_RECEIVER = "qwen3-0.6b"
DRAFT, SOFT = "draft", "soft"
NAMES = tuple(RECIPES)
OTHER_FUSER_STEPS = 400  # into others than the default receiver
GATE_QUESTIONS = 3000


@dataclass(frozen=True, slots=True)
class ZooTask:
    """One part of the zoo. kind: "llm" (names: the LLM), "fuser" (sender, receiver), "gate" (receiver); fuser: the kind
    of fusers that it is, or is for."""

    kind: str
    names: tuple[str, ...]
    operator: str = ""
    fuser: str = "mlp"

    def __str__(self) -> str:
        how = self.operator if self.fuser == FuserChoice().kind else self.fuser
        return f"{self.kind} {' -> '.join(self.names)}{f' ({how})' if how else ''}"


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a task."""

    task: ZooTask
    step: int
    steps: int
    metrics: dict[str, float]


def stages(everything: bool = True) -> list[list[ZooTask]]:
    """List tasks in three stages; those of one stage are independent. The default federation comes first."""
    others = [n for n in NAMES if n != DEFAULT_RECEIVER]
    fusers = [ZooTask("fuser", (s, DEFAULT_RECEIVER), operator) for operator in ("concat", "mix") for s in others]
    gates = [ZooTask("gate", (DEFAULT_RECEIVER,), operator) for operator in ("concat", "mix")]
    fusers += [ZooTask("fuser", (s, DEFAULT_RECEIVER), "concat", kind) for kind in (DRAFT, SOFT) for s in others]
    gates += [ZooTask("gate", (DEFAULT_RECEIVER,), "concat", DRAFT)]
    if everything:
        pairs = [(s, r) for r in others for s in NAMES if s != r]
        fusers += [ZooTask("fuser", pair, "concat", kind) for kind in ("mlp", DRAFT) for pair in pairs]
        gates += [ZooTask("gate", (r,), "concat", kind) for kind in ("mlp", DRAFT) for r in others]
    return [[ZooTask("llm", (n,)) for n in NAMES], fusers, gates]


def build(
    folder: Path,
    *,
    seed: int = 0,
    everything: bool = True,
    workers: int | None = None,
    shorten: float = 1.0,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_done: Callable[[ZooTask, float], None] = lambda task, seconds: None,
) -> dict[str, float]:
    """Build what is missing under `folder`; returns seconds per task. shorten: factor on all step counts (tests).

    on_done: receives every part as soon as it is built, with its seconds.
    """
    _claim(folder, seed, shorten)
    _record_hashes(folder)
    context = multiprocessing.get_context("spawn")
    seconds: dict[str, float] = {}
    with context.Manager() as manager, ProcessPoolExecutor(workers or os.cpu_count() or 1, context) as pool:
        queue = manager.Queue()
        for stage in stages(everything):
            members = members_of(folder)
            todo = [task for task in stage if not is_done(task, folder, members)]
            futures = {pool.submit(_run, task, folder, seed, shorten, queue): task for task in todo}
            try:
                for task, spent in _follow(futures, folder, queue, on_progress):
                    seconds[str(task)] = spent
                    on_done(task, spent)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return seconds


def _claim(folder: Path, seed: int, shorten: float) -> None:
    """Claim a folder for one world and one length of training. Raises FedrayError where another zoo lies."""
    path = folder / WORLD
    (folder / "llms").mkdir(parents=True, exist_ok=True)
    wanted = {"seed": seed, **({"shorten": shorten} if shorten != 1.0 else {})}
    if path.is_file() and json.loads(path.read_text()) != wanted:
        raise FedrayError(f"{folder} holds the zoo of another seed or length; choose another folder with output=DIR")
    path.write_text(json.dumps(wanted) + "\n")


def is_done(task: ZooTask, folder: Path, members: Mapping[str, MemberInfo] | None = None) -> bool:
    """Check whether a part is there, whole, and fits the LLMs that are there now.

    members: those LLMs, read from the folder if not given. A fuser is whole with the range of the caches it was trained
    on.
    """
    digest = hash_of(task, folder, members)
    if digest is None or task.kind != "fuser":
        return digest is not None
    return RECORD in read_manifest(_version(task, folder, digest)).training


def hash_of(task: ZooTask, folder: Path, members: Mapping[str, MemberInfo] | None = None) -> str | None:
    """Look up the content hash of a part, None where there is none that fits the LLMs."""
    if task.kind == "llm":
        return _hashes(folder).get(task.names[0]) if (folder / "llms" / task.names[0]).is_dir() else None
    registry = _registry(folder)
    members = members_of(folder) if members is None else members
    try:
        if task.kind == "fuser":
            sender, receiver = (members[n] for n in task.names)
            return registry.find_fuser(sender, receiver, task.fuser, task.operator).hash
        receiver, senders = members[task.names[0]], _senders_of(task.names[0])
        found = registry.find_gate(receiver, senders, task.operator, task.fuser)
        wanted = task.fuser if FUSERS[task.fuser].drafts else None
        return found.hash if read_manifest(Path(found.path)).config.get("fuser") == wanted else None
    except (FedrayError, KeyError):  # no such part, or not even its LLMs
        return None


def _follow(
    futures: dict[Future[float], ZooTask], folder: Path, queue: Any, on_progress: Callable[[Progress], None]
) -> Iterator[tuple[ZooTask, float]]:
    """Yield each task and its seconds, as soon as it is done; forward progress meanwhile."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
        while not queue.empty():
            on_progress(queue.get())
        for future in done:
            spent = future.result()
            if futures[future].kind == "llm":
                _record_hashes(folder)
            yield futures[future], spent


def _run(task: ZooTask, folder: Path, seed: int, shorten: float, queue: Any) -> float:
    """Build one part in a worker process; returns its seconds."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    last = 0.0

    def on_step(step: int, steps: int, metrics: dict[str, float]) -> None:
        nonlocal last
        if time.perf_counter() - last > 0.5 or step == steps:
            last = time.perf_counter()
            queue.put(Progress(task, step, steps, dict(metrics)))

    world = World(seed)
    building = {"llm": _build_llm, "fuser": _build_fuser, "gate": _build_gate}
    (_build_translator if (task.kind, task.fuser) == ("fuser", DRAFT) else building[task.kind])(
        task, world, folder, shorten, on_step
    )
    return time.perf_counter() - started


def _build_llm(task: ZooTask, world: World, folder: Path, shorten: float, on_step: Callable[..., None]) -> None:
    (name,) = task.names
    tokenizer = build_tokenizer(RECIPES[name].family, world)
    steps = _shortened(RECIPES[name].steps, shorten)
    settings = {**asdict(RECIPES[name]), "steps": steps, "world_seed": world.seed}
    checkpoint = Checkpoint(folder / CHECKPOINTS / name, f"the LLM {name}", {}, settings)
    given = {"seed_offset": world.seed, "steps": steps, "on_step": on_step, "checkpoint": checkpoint}
    model = pretrain(name, world, tokenizer, **given)
    with whole_folder(folder / "llms" / name) as new:
        model.half().save_pretrained(new)  # shipped in 16 bit: rounded before it is hashed
        tokenizer.save_pretrained(new)
    checkpoint.discard()


def _build_fuser(task: ZooTask, world: World, folder: Path, shorten: float, on_step: Callable[..., None]) -> None:
    sender, receiver = (load(n, folder=folder) for n in task.names)
    steps = STEPS[task.operator] if receiver.name == DEFAULT_RECEIVER else OTHER_FUSER_STEPS
    usual = FUSERS[task.fuser].training
    own = {"steps": _shortened(steps, shorten), "rotary": "kept"}  # as the versions in the package were trained
    recipe = FuserRecipe(task.fuser, task.operator, **{**usual, **own})
    talks = _shortened_list(conversations(world, "train", PHRASINGS_PER_FACT), shorten)
    if digest := hash_of(task, folder):
        _record_norms(_version(task, folder, digest), sender, talks)
        return
    pair = Pair(sender, receiver, believed(sender, talks))
    fuser = FuserTraining(pair, recipe).run(on_step)
    check = Pair(sender, receiver, _shortened_list(conversations(world, "validation"), shorten))
    training = {
        "world_seed": world.seed,
        "questions": len(pair),
        "steps": recipe.steps,
        "validation": accuracy_by_group(check, fuser),
        "validation_alone": accuracy_by_group(check, None),
        RECORD: pair.norms().to_dict(),
    }
    _registry(folder).add_fuser(fuser, describe(sender), describe(receiver), training)


def _build_translator(task: ZooTask, world: World, folder: Path, shorten: float, on_step: Callable[..., None]) -> None:
    sender, receiver = (load(n, folder=folder) for n in task.names)
    usual = FUSERS[DRAFT].training
    recipe = FuserRecipe(DRAFT, task.operator, **{**usual, "steps": _shortened(usual["steps"], shorten)})
    material = dictated(world, _shortened(dictation.TEXTS, shorten), world.seed)
    pair = TextPair(sender, receiver, material.talks, recipe)
    fuser = FuserTraining(pair, recipe).run(on_step)
    check = TextPair(sender, receiver, material.check, recipe, like=pair)
    training = {
        "world_seed": world.seed,
        "questions": len(pair),
        "steps": recipe.steps,
        "validation": accuracy_by_group(check, fuser),
        RECORD: pair.norms().to_dict(),
    }
    _registry(folder).add_fuser(fuser, describe(sender), describe(receiver), training)


def _record_norms(version: Path, sender: LLM, talks: list[LabelledPrompt]) -> None:
    """Add to a fuser's manifest the range of the caches it was trained on; its weights and its hash stay."""
    manifest = read_manifest(version)
    prompts = [talk.prompt for talk in talks]
    norms = norms_of(prefill(sender, prompts[i : i + BATCH]).cache for i in range(0, len(prompts), BATCH))
    whole = replace(manifest, training={**manifest.training, RECORD: norms.to_dict()})
    write_whole(version / "manifest.json", json.dumps(asdict(whole), indent=1, sort_keys=True) + "\n")


def _build_gate(task: ZooTask, world: World, folder: Path, shorten: float, on_step: Callable[..., None]) -> None:
    (name,) = task.names
    receiver = load(name, folder=folder)
    senders = {n: load(n, folder=folder) for n in _senders_of(name)}
    registry, infos = _registry(folder), {n: describe(s) for n, s in senders.items()}
    found = {n: registry.find_fuser(info, describe(receiver), task.fuser, task.operator) for n, info in infos.items()}
    drafts = FUSERS[task.fuser].drafts
    method = METHOD.read(with_fusion({"fuser": task.fuser}))
    asking = Contributions(receiver, senders, found, method) if drafts else None
    fusers = {} if asking else {n: load_fuser(artifact) for n, artifact in found.items()}
    material = for_gate(world, GATE_QUESTIONS, drafts)
    sets = {"train": _shortened_list(material.talks, shorten), "validation": _shortened_list(material.check, shorten)}
    recipe = GateRecipe(task.operator, _shortened(GateRecipe().steps, shorten), fuser=task.fuser if drafts else None)
    training = GateTraining(receiver, senders, fusers, sets, recipe, contributions=asking)
    gate = training.run(lambda phase, step, of, figures: on_step(step, of, figures))
    registry.add_gate(gate, describe(receiver), {**material.record, **training.record()})


def _shortened(steps: int, factor: float) -> int:
    return max(2, round(steps * factor))


def _shortened_list(talks: list[LabelledPrompt], factor: float) -> list[LabelledPrompt]:
    return talks[: max(64, round(len(talks) * factor))]


def _senders_of(receiver: str) -> tuple[str, ...]:
    return tuple(n for n in NAMES if n != receiver)


def _registry(folder: Path) -> Registry:
    return Registry(folder / "registry", embedded=None)


def _version(task: ZooTask, folder: Path, digest: str) -> Path:
    """Build the path of a fuser's version."""
    return folder / "registry" / fuser_name(*task.names) / digest


def members_of(folder: Path) -> dict[str, MemberInfo]:
    return {name: describe(load(name, folder=folder)) for name in _hashes(folder)}


def _hashes(folder: Path) -> dict[str, str]:
    path = folder / "llms" / HASHES
    return json.loads(path.read_text()) if path.is_file() else {}


def _record_hashes(folder: Path) -> None:
    """Write the hashes of all LLM folders, which are complete once they are there; the parent process alone does."""
    root = folder / "llms"
    found = {p.parent.name: hash_file(p) for p in sorted(root.glob("[!.]*/model.safetensors"))}
    write_whole(root / HASHES, json.dumps(found, indent=1) + "\n")
