"""What a federation will take before anything of it is loaded: memory per member, bytes on the wire, downloads.

Read from configurations alone; plan=true prints it, and what surely does not fit is refused with the figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import psutil
import torch

from fedray.fusion.build import build_fuser
from fedray.fusion.fuser import FuserConfig
from fedray.llm import memory
from fedray.llm.cache import spec_of
from fedray.llm.catalogue import original_of
from fedray.llm.loading import default_dtype
from fedray.llm.source import Source, config_of
from fedray.methods.method import Wire
from fedray.protocols import protocol_of
from fedray.registry.layers_read import layers_read
from fedray.registry.planner import Planner
from fedray.schema import picked
from fedray.settings.settings import Settings
from fedray.types import FedrayError, KVSpec, Layers, MemberInfo, Need
from fedray.wire.codecs import GROUP, SIDES, CacheSide, sizes
from fedray.wire.selection import keep_layers

HEAD_BYTES = 700 << 20  # the driver, and what Ray runs besides the members on a machine of its own


@dataclass(frozen=True, slots=True)
class RequestLoad:
    """The requests to come. tokens: member -> of its longest prompt; answer: tokens; rows: prompts in a batch; choices:
    per row, where they are scored; choice_tokens: of the longest; at_a_time: batches on their way together.
    """

    tokens: Mapping[str, int]
    answer: int = 0
    rows: int = 1
    choices: int = 1
    choice_tokens: int = 0
    at_a_time: int = 1


@dataclass(frozen=True, slots=True)
class Room:
    """Memory that is free, in bytes: the machine's (or a cluster's), and that of its GPUs; None where nobody knows."""

    machine: int
    gpus: int | None = None


IDLE = RequestLoad({})


def needs(
    s: Settings,
    sources: Mapping[str, Source],
    devices: Mapping[str, str],
    load: RequestLoad = IDLE,
    downloads: Mapping[str, int | None] | None = None,
) -> list[Need]:
    """What each member takes, the receiver first. Raises FedrayError where a configuration cannot be had.

    sources, devices, downloads (bytes): by member.
    """
    protocol = protocol_of(s)
    members = [_Foretold(s, source, devices) for source in sources.values()]
    receiver, senders = members[0], members[1:] if s.protocol.fuses else []
    planner = Planner(s.registry.path, s.zoo.path, s.zoo.name)
    configs = [planner.fuser_config(sender.info, receiver.info, s.method) for sender in senders]
    fusers = _fuser_bytes([config for config in configs if config is not None], memory.BYTES[receiver.dtype])
    wire, sending = s.wire, [(m, config and layers_read(config)) for m, config in zip(senders, configs, strict=True)]
    if protocol.sends is not None:
        share, layers = protocol.sends(s, receiver.spec)
        wire, sending = replace(wire, keep=share), [(member, layers) for member in members[1:]]
    sent = {member.source.name: member.wire_bytes(wire, layers, load) for member, layers in sending}
    downloads = downloads or {}
    return [
        receiver.need("receiver", load, fusers, senders, downloads, 0),
        *(
            member.need("sender", load, 0, senders, downloads, sent.get(member.source.name, 0))
            for member in members[1:]
        ),
    ]


def shares_weights(s: Settings, name: str, devices: Mapping[str, str]) -> bool:
    """Whether a member is a copy that computes with its LLM's weights: in one process, where both stand alike."""
    llm = original_of(name)
    if s.ray.enabled or name == llm or llm not in devices:
        return False
    own, its = s.member(name), s.member(llm)
    return (devices[name], own.dtype, own.revision) == (devices[llm], its.dtype, its.revision)


class _Foretold:
    """One member as its configuration describes it."""

    def __init__(self, s: Settings, source: Source, devices: Mapping[str, str]) -> None:
        self.source, self.device = source, devices[source.name]
        self.config = config_of(source)
        self.dtype = s.member(source.name).dtype or default_dtype(source.zoo, self.device)
        self.spec: KVSpec = spec_of(self.config)
        self.parameters = memory.count_parameters(self.config)
        self.replicas = s.replicas(source.name)
        self.loads = not shares_weights(s, source.name, devices)
        self.scores = s.protocol.crosses == "token" and not s.protocol.speaks  # as a sender

    @property
    def info(self) -> MemberInfo:
        """Enough of it to look up its fusers."""
        return MemberInfo(self.source.name, "", 0, self.spec, "", "", self.device, self.dtype, "", 0, 0)

    def kv_bytes(self, tokens: int) -> int:
        return tokens * self.spec.values_per_token() * memory.BYTES[self.dtype]

    def wire_bytes(self, wire: Wire, layers: Layers | None, load: RequestLoad) -> int:
        """Bytes a token of its prompt takes on the wire; layers: those a fuser reads, None is all."""
        tokens = load.tokens.get(self.source.name) or GROUP
        kept = (max(1, math.ceil(tokens * wire.keep)),)
        everything = tuple(range(self.spec.layers))
        sides = keep_layers(layers or (everything, everything), wire.keep_layers, wire.layer_score)
        blocks = [
            CacheSide(side, len(of), self.spec.kv_heads, kept, self.spec.head_dim)
            for side, of in zip(SIDES, sides, strict=True)
        ]
        return round(sum(sum(sizes(wire.codec, block, memory.BYTES[self.dtype])) for block in blocks) / tokens)

    def need(
        self,
        role: str,
        load: RequestLoad,
        fusers: int,
        senders: Sequence[_Foretold],
        downloads: Mapping[str, int | None],
        wire_per_token: int,
    ) -> Need:
        size, kind = memory.BYTES[self.dtype], self.device.partition(":")[0]
        own = load.tokens.get(self.source.name, 0)
        others = [(s, load.tokens.get(s.source.name, 0)) for s in senders if role == "receiver"]
        foreign = sum(tokens for _, tokens in others)
        weights = self.parameters * size if self.loads else 0
        # Others' caches as they came, projected, and all once more where they stand before one's own; a sender's own is
        # packed and lies in the object store too.
        sent = sum(sender.kv_bytes(tokens) for sender, tokens in others)
        standing = self.kv_bytes(own + foreign)
        copies = 2 if role == "receiver" else 3
        cache = load.rows * (sent + copies * standing + self.kv_bytes(load.answer))
        work = memory.work_bytes(self.config, load.rows, own, foreign, self.dtype)
        if load.choices > 1 and (role == "receiver" or self.scores):
            row = standing + self.kv_bytes(load.choice_tokens)
            copied, logits = memory.scoring_bytes(self.config, load.rows, load.choices, row)
            cache, work = cache + copied, work + logits
        held = 1 if role == "receiver" else 2  # of every other batch: what was read, and a sender's payload
        cache += (load.at_a_time - 1) * load.rows * held * self.kv_bytes(own)
        return picked(
            Need,
            self,  # its device, dtype, parameters and replicas
            member=self.source.name,
            role=role,
            revision=self.source.revision or "",
            prompt_tokens=own,
            weights=weights,
            cache=cache,
            fusers=fusers,
            work=work,
            process=memory.PROCESS_BYTES[kind],
            loading=memory.loading_bytes(self.config, weights, self.dtype, self.source.zoo) if self.loads else 0,
            wire_per_token=wire_per_token,
            download=downloads.get(self.source.name),
        )


def _fuser_bytes(configs: Sequence[FuserConfig], size: int) -> int:
    """Fusers in `size` bytes per number, one of which is just being read: it comes in 32 bit and is brought to the
    LLM's precision parameter by parameter."""
    resident, reading = 0, 0
    for config in configs:
        with torch.device("meta"):
            counts = [parameter.numel() for parameter in build_fuser(config).parameters()]
        resident += sum(counts) * size
        reading = max(reading, sum(counts) * (4 - size) + (max(counts, default=0) * size if size < 4 else 0))
    return resident + reading


def this_machine() -> Room:
    """What is free here now."""
    free = psutil.virtual_memory().available
    gpus = range(torch.cuda.device_count())
    return Room(free, sum(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus))


def on_machine(needed: Sequence[Need], together: bool) -> int:
    """Bytes of the machine's memory that members, driver and Ray take. together: all members in one process."""
    models = sum(need.model for need in needed if need.device == "cpu")
    processes = max(need.process for need in needed) if together else HEAD_BYTES + sum(n.processes for n in needed)
    return models + processes


def on_gpus(needed: Sequence[Need]) -> int:
    """Bytes of GPU memory that members take, each in a process of its own."""
    there = [need for need in needed if need.device.startswith("cuda")]
    return sum(need.model + need.replicas * memory.CONTEXT_BYTES["cuda"] for need in there)


def check_room(needed: Sequence[Need], room: Room, *, together: bool) -> None:
    """Refuse what does not fit. Raises FedrayError with the figures."""
    for what, takes, free in (
        ("the machine's", on_machine(needed, together), room.machine),
        ("the GPUs'", on_gpus(needed), room.gpus),
    ):
        if free is not None and takes > free:
            if what != "the machine's" and not free:
                on_gpu = next(need.member for need in needed if need.device.startswith("cuda"))
                raise FedrayError(f"{on_gpu} is to be on a GPU, and there is none here: leave its device out")
            largest = max(needed[1:] or needed, key=lambda need: need.model)
            raise FedrayError(
                f"the members take {_gib(takes)} of {what} memory, where {_gib(free)} are free ({_listed(needed)}): "
                f"leave out {largest.member}, take a smaller dtype, or shorter prompts and smaller batches"
            )


def _listed(needed: Sequence[Need]) -> str:
    return ", ".join(f"{need.member} {_gib(need.model)}" for need in needed)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
