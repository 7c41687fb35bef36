"""Settings of jobs/registry.py: what there is in a registry, taken along, and put into service."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fedray.llm.catalogue import NAMES
from fedray.schema import Schema
from fedray.settings.check import check_output
from fedray.training.settings import RegistryUser, check_own_zoo
from fedray.types import FedrayError

Action = Literal["list", "show", "delete", "export", "push", "load", "alias", "rollback", "affected"]


@dataclass(frozen=True, slots=True)
class RegistryJob(RegistryUser):
    """Settings of jobs/registry.py."""

    action: Action = "list"
    name: str | None = None  # an LLM, a fuser (sender--receiver) or a gate (gate--receiver); load: ORG/NAME or a folder
    hash: str | None = None  # a version, by the beginning of its hash; None is the newest; rollback: the one to leave
    alias: Literal["stable", "canary"] = "stable"  # what `alias` makes of a version
    share: float | None = None  # of the traffic that a canary answers, between 0 and 1
    to: Path | None = None  # where export puts a copy; push: the repository, as ORG/NAME
    form: Literal["registry", "hub"] = "registry"  # export: a registry of its own, or a folder as push makes it
    private: bool = True  # push: whether a repository that is made is private
    revision: str | None = None  # load: a branch, tag or commit; None is the newest
    output: Path = field(default_factory=lambda: Path("outputs/registry_job"))


REGISTRY_JOB = Schema(RegistryJob)


def check_registry_job(settings: RegistryJob) -> None:
    """Validate settings. Raises FedrayError."""
    REGISTRY_JOB.read(settings)
    check_own_zoo(settings.zoo)
    action, name = settings.action, settings.name
    if action == "affected" and not name:
        raise FedrayError("affected by what: name an LLM, as in affected qwen3-0.6b")
    if action != "list" and not name:
        raise FedrayError(f"{action} what: name an LLM, a fuser or a gate, as in {action} qwen2.5-0.5b--qwen3-0.6b")
    if action == "export" and settings.to is None:
        raise FedrayError(f"export {name} needs a folder to go to: add to=DIR")
    if action == "push" and (settings.to is None or len(settings.to.parts) != 2 or settings.to.is_absolute()):
        raise FedrayError(f"push {name} needs a repository on the hub to go to: add to=ORG/NAME")
    if action in ("push", "export") and name in NAMES and (action == "push" or settings.form == "hub"):
        raise FedrayError(f"{name} is an LLM: only fusers and gates become repositories; export it without form=hub")
    if action in ("alias", "rollback") and name in NAMES:
        raise FedrayError(f"{name} is an LLM: only fusers and gates have aliases, as {action} qwen2.5-0.5b--qwen3-0.6b")
    if action == "alias":
        _check_share(settings)
    if action in ("load", "alias", "rollback"):
        check_output(settings.root, "registry.path")
    if settings.hash is not None and not re.fullmatch(r"[0-9a-f]{4,16}", settings.hash):
        raise FedrayError(f"hash={settings.hash} is no hash: give at least its first four hexadecimal digits")
    check_output(settings.output)


def _check_share(settings: RegistryJob) -> None:
    share = settings.share
    if settings.alias == "canary" and share is None:
        raise FedrayError("alias=canary needs the share of the traffic that it answers: add one, as in share=0.1")
    if settings.alias == "canary" and not 0 < (share or 0) < 1:
        raise FedrayError(f"share={share} is no share of the traffic: it must lie between 0 and 1, as in share=0.1")
    if settings.alias == "stable" and share is not None:
        raise FedrayError(f"share={share} is for alias=canary: leave it out, the stable version answers all the rest")
