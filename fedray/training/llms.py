"""The LLMs of the jobs about learned parts: pinned once, on the driver, so that every worker loads the same files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from fedray.federation.sources import pinned
from fedray.llm.catalogue import safe_name, slug
from fedray.llm.loading import default_dtype
from fedray.llm.source import Source, weights_hash
from fedray.registry.store import SHIPPED, Registry
from fedray.training.settings import FuserJob, GateJob, ImportJob, LLMSettings
from fedray.types import MemberInfo


def pin(settings: FuserJob | GateJob | ImportJob, names: Iterable[str]) -> dict[str, Source]:
    """Pin LLMs to commits, by name; of the hub's files their configurations alone are read.

    Raises FedrayError naming the first that cannot be had.
    """
    zoo, members = settings.zoo, settings.members
    revisions = {name: members.get(safe_name(name), LLMSettings()).revision for name in names}
    return pinned([Source(name, zoo.name, zoo.path, revision) for name, revision in revisions.items()])


def hashes(llms: Mapping[str, Source]) -> dict[str, str]:
    """Compute the hashes of their weights, by name, before any is loaded. Raises FedrayError naming a damaged file."""
    return {name: weights_hash(source)[:16] for name, source in llms.items()}


def dtype_of(settings: FuserJob | GateJob) -> Literal["float32", "bfloat16"]:
    """Choose the dtype of the frozen LLMs: as given, or the default of their zoo on that device.

    Never float16, in which gradients vanish without a scale; a GPU without bfloat16 emulates it.
    """
    if settings.llm_dtype is not None:
        return settings.llm_dtype
    if isinstance(settings, FuserJob) and settings.precision == "float32":
        return "float32"
    return "float32" if default_dtype(settings.zoo.name, settings.device) == "float32" else "bfloat16"


def revisions(members: Iterable[MemberInfo]) -> dict[str, Any]:
    """Record the commits of LLMs for a manifest; empty where none comes from a repository."""
    found = {slug(member.name): member.revision for member in members if member.revision}
    return {"revisions": found} if found else {}


def registry_of(settings: FuserJob | GateJob) -> Registry:
    """Open the user's registry over the zoo's, where a federation looks."""
    zoo = settings.zoo
    shipped = SHIPPED if zoo.name == "tiny" else None
    return Registry(settings.root.absolute(), shipped if zoo.path is None else zoo.path / "registry")
