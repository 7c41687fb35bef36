"""plan=true: what a run would take (memory of every member, bytes on the wire, downloads), and nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fedray.evaluation.screen import FederateScreen
from fedray.federation import sources
from fedray.federation.estimate import RequestLoad, Room, check_room, needs, on_gpus, on_machine, this_machine
from fedray.federation.prepare import check_ray, placements
from fedray.llm.loading import check_prompts
from fedray.llm.source import Source
from fedray.protocols import protocol_of
from fedray.questions.tasks import Question, has_documents, texts_read
from fedray.reporting.job import Job, Status
from fedray.reporting.report import Report, Who
from fedray.settings.settings import Settings
from fedray.types import Need

BYTES_PER_TOKEN = 3  # of a choice, about


class DryRun(Job[Settings, "Sheet"]):
    """Estimates a run of the questions, or of the prompt."""

    name = "federate"

    def __init__(self, settings: Settings, questions: Sequence[Question]) -> None:
        private = settings.private or has_documents(settings, questions)
        super().__init__(settings, Sheet(settings.zoo.name, members=settings.takes_part), private=private)
        self.questions = questions or [Question("prompt", settings.prompt or "")]
        self.needed: tuple[Need, ...] = ()

    def work(self) -> None:
        """Raises FedrayError where a member cannot be had, and where the members do not fit."""
        settings = self.settings
        found = sources.pinned(sources.sources(settings))
        protocol_of(settings).check_sources(settings, found)
        self.load = _load(settings, found, self.questions)
        lacking = sources.missing(list(found.values()))
        downloads = {name: sum(file.size for file in files) for name, files in lacking.items()}
        self.needed = tuple(needs(settings, found, sources.devices(settings), self.load, downloads))
        self.room = _room(settings, found)
        check_room(self.needed, self.room, together=not settings.ray.enabled)

    def report(self, status: Status) -> Report | None:
        if not self.needed:
            return None
        s, who = self.settings, Who(self.settings.receiver, self.settings.takes_part[1:])
        return Report(self.name, s.zoo.name, s.seed, "planned", who, s.method.canonical(), needs=self.needed)

    def show(self, report: Report) -> None:
        self.screen.show(self.settings, self.needed, self.load, self.room)


def _load(settings: Settings, found: Mapping[str, Source], questions: Sequence[Question]) -> RequestLoad:
    """The requests to come: their longest prompt, batch and answer. A participant of FedAttn, which has a segment, is
    given room for the whole prompt: of as many rows are others' keys and values."""
    tokens: dict[str, int] = {}
    for name, source in found.items():
        tokens |= check_prompts([source], texts_read(questions, settings, name))
    offered = [question.offered or () for question in questions]
    longest = max((len(choice.encode()) for row in offered for choice in row), default=0) // BYTES_PER_TOKEN
    rows = min(settings.task.batch_size, len(questions))
    at_a_time = min(settings.batches_at_a_time, math.ceil(len(questions) / rows))
    most = max([1, *map(len, offered)])
    return RequestLoad(tokens, settings.generation.max_tokens, rows, most, longest, at_a_time)


def _room(settings: Settings, found: Mapping[str, Source]) -> Room:
    """What is free where the members will be. Raises FedrayError where a cluster has no place for them."""
    if not settings.ray.enabled:
        return this_machine()
    check_ray()
    from fedray.runtime import cluster, placement

    wanted, ray = placements(settings, found), settings.ray
    if cluster.will_embed(ray.address):
        placement.place(wanted, nodes=[placement.this_machine(ray.num_cpus)])
        return this_machine()
    connection = cluster.connect(ray.address, namespace=ray.namespace)
    try:
        nodes = placement.alive_nodes()
        placement.place(wanted, nodes=nodes)
    finally:
        connection.close()
    return Room(int(sum(node.memory_bytes for node in nodes)))


class Sheet(FederateScreen):
    """What a person sees of it."""

    def show(self, settings: Settings, needed: Sequence[Need], load: RequestLoad, room: Room) -> None:
        sizes = ("weights", "fusers", "cache", "work", "loading", "process", "in all")
        self.table(
            "What it would take, MiB at the peak",
            ("member", "role", "in", "size", *sizes),
            ((n.member, n.role, f"{n.dtype}, {n.device}", _millions(n), *map(_mib, _parts(n))) for n in needed),
        )
        self.line("in all: weights, process, and the larger of loading and the rest, which comes after it\n")
        longest = max(load.tokens.values(), default=0)
        prompts = "1 prompt" if load.rows == 1 else f"{load.rows} prompts"
        prompts = prompts if load.at_a_time == 1 else f"{load.at_a_time} batches of {prompts}"
        self.line(f"at a time: {prompts} of up to {longest} tokens, {load.answer} tokens of answer")
        machine, gpus = on_machine(needed, not settings.ray.enabled), on_gpus(needed)
        self.line(f"memory: {_mib(machine)} MiB with driver and Ray, {_mib(room.machine)} MiB are free")
        if gpus and room.gpus is not None:
            self.line(f"GPU memory: {_mib(gpus)} MiB, {_mib(room.gpus)} MiB are free")
        for need in needed:
            if need.wire_per_token:
                of = "segment" if settings.protocol.copies else "prompt"
                self.line(f"on the wire: {need.wire_per_token:,} bytes per token of {need.member}'s {of}")
        for need in needed if self.zoo == "hub" else ():
            size = "size unknown, the hub cannot be asked" if need.download is None else f"{_mib(need.download)} MiB"
            if need.revision:
                self.line(f"to download: {need.member} {size} (commit {need.revision})")


def _parts(need: Need) -> tuple[int, ...]:
    return need.weights, need.fusers, need.cache, need.work, need.loading, need.processes, need.total


def _millions(need: Need) -> str:
    return f"{need.parameters / 1e6:,.0f} M"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f}"
