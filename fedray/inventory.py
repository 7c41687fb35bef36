"""What there is: LLMs, fusers and gates; jobs/registry.py is thin over it."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedray import report as reports
from fedray.disk import whole_folder
from fedray.fusion import hub
from fedray.fusion.manifest import Manifest, version_folder
from fedray.fusion.registry import SHIPPED, Registry
from fedray.fusion.store import MANIFEST, WEIGHTS, read_weights, write_version
from fedray.llm import loading
from fedray.llm.catalogue import CATALOGUE, EMBEDDED, NAMES
from fedray.report import Learned, Report
from fedray.training.settings import RegistryJob
from fedray.types import FedrayError


class Inventory:
    """The LLMs of a zoo, and the registry of its fusers and gates under one's own."""

    def __init__(self, registry: Path | None, zoo: Path | None) -> None:
        self.zoo = zoo
        self.registry = Registry(registry, SHIPPED if zoo is None else zoo / "registry")

    def llms(self) -> list[Learned]:
        root = (self.zoo or EMBEDDED) / "llms"
        there = [name for name in NAMES if (root / name / "model.safetensors").is_file()]
        return [
            Learned(name, "llm", "complete", loading.check_weights(name, self.zoo)[:16], str(root / name))
            for name in there
        ]

    def learned(self) -> list[tuple[Manifest, Path]]:
        """All fusers and gates by name, the newest version first."""
        return sorted(self.registry.list(), key=lambda version: (version[0].role, version[0].name))

    def home(self, version: Path) -> str:
        """Where a version lies, in words."""
        own = self.registry.path
        if own and version.is_relative_to(own):
            return str(own)
        return "embedded" if self.zoo is None else str(self.zoo)

    def export(self, name: str, digest: str | None, to: Path, form: str = "registry") -> Path:
        """Copy an LLM to TO/llms/NAME, or a version to TO/NAME/HASH, so that TO is a zoo or a registry of its own.

        form: "hub" writes a version to TO/NAME as a repository of the hub. Raises FedrayError: unknown, damaged, or TO
        cannot be written.
        """
        if form == "hub":
            return hub.write(*self.registry.pick(name, digest), to / name)
        if name in CATALOGUE:
            loading.check_weights(name, self.zoo)
            return _copy((self.zoo or EMBEDDED) / "llms" / name, to / "llms" / name)
        manifest, version = self.registry.pick(name, digest)
        blob = read_weights(manifest, version)
        with _to(version_folder(to, manifest.name, manifest.hash)) as target:
            write_version(to, manifest, blob)
            shutil.copystat(version / MANIFEST, target / MANIFEST)  # the newest here is the newest there
        return target

    def push(self, name: str, digest: str | None, repo: str, private: bool) -> tuple[Manifest, str]:
        """Commit a version to a repository of the hub; returns it and the commit's address. Raises FedrayError."""
        manifest, version = self.registry.pick(name, digest)
        with tempfile.TemporaryDirectory(prefix="fedray-") as temporary:
            folder = hub.write(manifest, version, Path(temporary, manifest.name), repo)
            return manifest, hub.push(folder, repo, f"{manifest.name} {manifest.hash}", private=private)

    def load(self, where: str, revision: str | None = None) -> tuple[Manifest, Path]:
        """Take a version from a folder of `export`, or a repository of `push`, into one's own registry.

        Raises FedrayError: unknown, out of reach, not what it says.
        """
        folder = Path(where)
        manifest, blob = hub.read(folder if folder.is_dir() else hub.download(where, hub.FILES, revision))
        return manifest, Path(self.registry.adopt(manifest, blob).path)


def run(settings: RegistryJob) -> int:
    """Do the job; returns the exit code. Prints `report: PATH` last. Raises FedrayError."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    inventory = Inventory(settings.registry.path, settings.zoo.path)
    actions: dict[str, Callable[[RegistryJob, Inventory, Console], Iterable[Learned]]] = {
        "list": _list,
        "show": _show,
        "delete": _delete,
        "export": _export,
        "push": _push,
        "load": _load,
    }
    learned = tuple(actions[settings.action](settings, inventory, console))
    for problem in inventory.registry.problems.values():
        console.print(Text(f"passed over: {problem}"), soft_wrap=True)
    report = Report("registry", settings.zoo.name, "", (), 0, "complete", task=settings.action, learned=learned)
    print(f"report: {reports.write(report, settings.output).absolute()}")
    return 0


def _list(settings: RegistryJob, inventory: Inventory, console: Console) -> list[Learned]:
    llms, learned = inventory.llms(), inventory.learned()
    _table(console, "LLMs", ("name", "hash", "size"), [(m.name, m.hash or "", _size(Path(m.path or ""))) for m in llms])
    headings = ("name", "fuser", "fusion", "hash", "size", "in")
    for role, title in (("fuser", "Fusers"), ("gate", "Gates")):
        rows = [(m.name, *_kind(m), m.hash, _size(path), inventory.home(path)) for m, path in learned if m.role == role]
        _table(console, title, headings, rows)
    return [*llms, *(_learned(m, path) for m, path in learned)]


def _show(settings: RegistryJob, inventory: Inventory, console: Console) -> list[Learned]:
    assert settings.name is not None
    if settings.name in CATALOGUE:
        (llm,) = [llm for llm in inventory.llms() if llm.name == settings.name] or [None]
        if llm is None:
            raise FedrayError(f"zoo.path={inventory.zoo} has no {settings.name}: rebuild it, or leave zoo.path out")
        entry = CATALOGUE[settings.name]
        facts = {"hash": llm.hash, "family": entry.family, "stands for": entry.repo, "folder": llm.path}
        _table(console, settings.name, ("", ""), [(key, str(value)) for key, value in facts.items()])
        return [llm]
    manifest, path = inventory.registry.pick(settings.name, settings.hash)
    facts = {**asdict(manifest), "folder": str(path)}
    _table(console, f"{manifest.name} {manifest.hash}", ("", ""), [(key, _text(v)) for key, v in facts.items()])
    return [_learned(manifest, path)]


def _delete(settings: RegistryJob, inventory: Inventory, console: Console) -> list[Learned]:
    assert settings.name is not None
    if settings.name in CATALOGUE:
        raise FedrayError(f"{settings.name} is an LLM of the zoo, and a zoo is read-only: name a fuser or a gate")
    folder = inventory.registry.delete(settings.name, settings.hash)
    console.print(Text(f"{settings.name} {folder.name} is gone from {folder.parent.parent}"), soft_wrap=True)
    return []


def _export(settings: RegistryJob, inventory: Inventory, console: Console) -> list[Learned]:
    assert settings.name is not None and settings.to is not None
    target = inventory.export(settings.name, settings.hash, settings.to, settings.form)
    option = "zoo.path" if settings.name in CATALOGUE else "registry.path"
    use = f"{option}={settings.to} uses it" if settings.form == "registry" else f"load {target} takes it in elsewhere"
    console.print(Text(f"{settings.name} is in {target}: {use}"), soft_wrap=True)
    return []


def _push(settings: RegistryJob, inventory: Inventory, console: Console) -> list[Learned]:
    assert settings.name is not None and settings.to is not None
    repo = settings.to.as_posix()
    manifest, address = inventory.push(settings.name, settings.hash, repo, settings.private)
    console.print(Text(f"{manifest.name} {manifest.hash} is on the hub: {address}"), soft_wrap=True)
    console.print(Text(f"take it in with: python jobs/registry.py load {repo} registry.path=DIR"), soft_wrap=True)
    return []


def _load(settings: RegistryJob, inventory: Inventory, console: Console) -> list[Learned]:
    assert settings.name is not None
    manifest, path = inventory.load(settings.name, settings.revision)
    console.print(Text(f"{manifest.name} {manifest.hash} is in {inventory.home(path)}"), soft_wrap=True)
    return [_learned(manifest, path)]


def _learned(manifest: Manifest, path: Path) -> Learned:
    counts = (manifest.training.get(key, 0) for key in ("steps", "questions"))
    steps, questions = (count if type(count) is int else 0 for count in counts)  # nobody has checked the record
    return Learned(manifest.name, manifest.role, "complete", manifest.hash, str(path), steps=steps, questions=questions)


def _kind(manifest: Manifest) -> tuple[str, str]:
    return manifest.kind if manifest.role == "fuser" else "", manifest.operator


def _size(folder: Path) -> str:
    try:
        return f"{(folder / WEIGHTS).stat().st_size / 2**20:.2f} MiB"
    except OSError:  # somebody has just deleted it
        return ""


def _text(value: object) -> str:
    return json.dumps(value, indent=1) if isinstance(value, Mapping) else str(value)


def _copy(source: Path, target: Path) -> Path:
    """A folder's files, all of them or none."""
    with _to(target), whole_folder(target) as folder:
        for file in source.iterdir():
            shutil.copy2(file, folder)
    return target


@contextmanager
def _to(target: Path) -> Iterator[Path]:
    """Where something is exported to. Raises FedrayError where that cannot be written."""
    try:
        yield target
    except OSError as error:
        raise FedrayError(f"{target} cannot be written ({error.strerror}); choose another folder: to=DIR") from error


def _table(console: Console, title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(headings))
    for row in rows:
        table.add_row(*map(Text, row))
    if table.row_count:
        console.print(Text(title, "bold"))
        console.print(table)
