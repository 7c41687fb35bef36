"""The body of jobs/import_c2c.py: import a fuser that Cache-to-Cache has published into the registry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from fedray.errors import unknown
from fedray.fusion.c2c import C2CFuser
from fedray.llm import loading
from fedray.llm.catalogue import CATALOGUE, repo_of
from fedray.methods.method import NO_GATE, FuserChoice, Fusion, Method
from fedray.registry import c2c_checkpoint as published
from fedray.registry import hub
from fedray.registry.store import Registry
from fedray.reporting.job import Job, Status
from fedray.reporting.report import Learned, Report, Who
from fedray.reporting.screen import Screen
from fedray.settings.settings import ZooSettings
from fedray.training.llms import pin, revisions
from fedray.training.settings import ImportJob
from fedray.types import FedrayError

WAY = Method(fuser=FuserChoice("c2c"), fusion=Fusion("mix"), gate=NO_GATE)


class ImportC2C(Job[ImportJob, Screen]):
    """Import of one fuser."""

    name = "import_c2c"

    def __init__(self, settings: ImportJob) -> None:
        super().__init__(settings, Screen(settings.zoo.name))
        self.made: Report | None = None
        self.lines: tuple[str, ...] = ()

    def work(self) -> None:
        settings = self.settings
        assert settings.source is not None and settings.sender is not None
        folder, origin = find(settings.source, settings.revision)
        if settings.zoo.path is None:  # in a zoo of one's own, names stand for other LLMs
            check_names(published.read_recipe(folder), settings.sender, settings.receiver)
        llms = pin(settings, (settings.sender, settings.receiver))
        sender, receiver = (loading.describe(loading.sketch_source(source)) for source in llms.values())
        fuser, recipe = published.read_checkpoint(folder, sender, receiver)
        training = {"published": origin, "recipe": recipe, **revisions((sender, receiver))}
        made = Registry(settings.root, embedded=None).add_fuser(fuser, sender, receiver, training, halve=False)
        opened, gates = _gates(fuser)
        size = sum(parameter.numel() for parameter in fuser.parameters())
        use = f"receiver={receiver.name} '+senders=[{sender.name}]' fuser=c2c gate=none registry.path={settings.root}"
        self.lines = (
            f"{made.name} {made.hash} is in {settings.root}: {size:,} parameters, {opened} of {gates} gates open",
            f"use it: python jobs/federate.py {_zoo(settings.zoo)}{use}",
        )
        figures = {"gates": gates, "open_gates": opened}
        learned = Learned(made.name, "fuser", "complete", made.hash, made.path, figures=figures)
        who, how = Who(receiver.name, (sender.name,)), WAY
        task, zoo = origin["source"], settings.zoo.name
        self.made = Report(self.name, zoo, 0, "complete", who, how, task, learned=(learned,))

    def report(self, status: Status) -> Report | None:
        return self.made

    def show(self, report: Report) -> None:
        for line in self.lines:
            self.screen.line(line)


def run(settings: ImportJob) -> int:
    """Run the job; returns the exit code. Prints `report: PATH` last. Raises FedrayError."""
    return ImportC2C(settings).run()


def _zoo(zoo: ZooSettings) -> str:
    """Write a zoo as the command line names it."""
    name = "" if zoo.name == "tiny" else f"zoo={zoo.name} "
    return name if zoo.path is None else f"{name}zoo.path={zoo.path} "


def find(source: str, revision: str | None = None) -> tuple[Path, dict[str, str]]:
    """Find the folder of a published pair, downloading from the hub, and its origin.

    source: a folder, or ORG/NAME/PAIR; where a repository holds one pair, PAIR may be left out. Raises FedrayError.
    """
    path = Path(source)
    if path.is_dir():
        return path, {"source": path.resolve().name}
    parts = PurePosixPath(source).parts
    repo, pair = "/".join(parts[:2]), "/".join(parts[2:])
    if not hub.is_repo(repo) or source.startswith("."):
        raise FedrayError(f"{source} is no folder, and no pair on the hub, which is written ORG/NAME/PAIR")
    root = hub.download(repo, [f"*{published.MAP}"], revision)  # a few bytes each: they list the pairs
    pairs = sorted(file.parent.parent.relative_to(root).as_posix() for file in root.rglob(f"final/{published.MAP}"))
    if not pairs:
        raise FedrayError(f"{repo} holds no published C2C fuser: no final/{published.MAP} is there")
    if not pair and len(pairs) > 1:
        raise FedrayError(f"{repo} holds {len(pairs)} pairs: name one, as in {repo}/{pairs[0]}, of {', '.join(pairs)}")
    pair = pair or pairs[0]
    if pair not in pairs:
        raise unknown(f"pair in {repo}:", pair, pairs)
    files = [str(PurePosixPath(pair, name)) for name in (published.FILES, published.RECIPE)]
    root = hub.download(repo, files, revision)
    return root / pair, {"source": str(PurePosixPath(repo, pair)), "commit": root.name}


def check_names(recipe: Mapping[str, Any], sender: str, receiver: str) -> None:
    """Check that a recipe is of the LLMs these names stand for: LLMs of one shape may differ. Raises FedrayError."""
    asked = {"sender": sender, "receiver": receiver}
    for (role, name), trained in zip(asked.items(), published.trained_for(recipe), strict=True):
        repo = repo_of(name)
        if trained and repo and _bare(trained) != _bare(repo):
            known = [other.name for other in CATALOGUE.values() if _bare(other.repo) == _bare(trained)]
            remedy = f"say {role}={known[0]}" if known else "name the pair it was trained for"
            raise FedrayError(f"this fuser was trained with {trained} as its {role}, and {name} is {repo}: {remedy}")


def _bare(repo: str) -> str:
    """Strip owner or folder from a model's name."""
    return repo.rstrip("/").rpartition("/")[2].lower()


def _gates(fuser: C2CFuser) -> tuple[int, int]:
    """Count the open gates and all gates: one each for keys and values per layer."""
    logits = [float(tensor) for name, tensor in fuser.state_dict().items() if name.endswith("gate_logit")]
    return sum(logit > 0 for logit in logits), len(logits)
