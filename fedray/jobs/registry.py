"""The body of jobs/registry.py: LLMs, fusers and gates, and what can be done with them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from fedray.files import whole_folder
from fedray.llm.catalogue import CATALOGUE, EMBEDDED, NAMES
from fedray.llm.source import check_weights
from fedray.registry import hub, service
from fedray.registry.aliases import kind_of
from fedray.registry.manifest import Manifest, version_folder
from fedray.registry.store import SHIPPED, Registry
from fedray.registry.versions import MANIFEST, WEIGHTS, read_weights, write_version
from fedray.reporting.job import Job, Status
from fedray.reporting.report import Learned, Report
from fedray.reporting.screen import Screen
from fedray.training.registry_settings import RegistryJob
from fedray.types import FedrayError


class Inventory:
    """The LLMs of a zoo, and the registry of its fusers and gates under the user's own."""

    def __init__(self, registry: Path | None, zoo: Path | None) -> None:
        self.zoo = zoo
        self.registry = Registry(registry, SHIPPED if zoo is None else zoo / "registry")

    def llms(self) -> list[Learned]:
        root = (self.zoo or EMBEDDED) / "llms"
        return [
            Learned(name, "llm", "complete", check_weights(name, self.zoo)[:16], str(root / name))
            for name in NAMES
            if (root / name / "model.safetensors").is_file()
        ]

    def learned(self) -> list[tuple[Manifest, Path]]:
        """List all fusers and gates by name, the newest version first."""
        return sorted(self.registry.list(), key=lambda version: (version[0].role, version[0].name))

    def home(self, version: Path) -> str:
        """Describe where a version lies."""
        own = self.registry.path
        if own and version.is_relative_to(own):
            return str(own)
        return "embedded" if self.zoo is None else str(self.zoo)

    def alias_of(self, manifest: Manifest) -> str:
        """Name what aliases call a version; "" where none names it."""
        alias = self.registry.aliases().get(kind_of(manifest))
        return "" if alias is None else alias.of(manifest.hash)

    def export(self, name: str, digest: str | None, to: Path, form: str = "registry") -> Path:
        """Copy an LLM to TO/llms/NAME, or a version to TO/NAME/HASH, so that TO is a zoo or a registry of its own.

        form: "hub" writes a version to TO/NAME as a repository of the hub. Raises FedrayError: unknown, damaged, or TO
        cannot be written.
        """
        if form == "hub":
            return hub.write(*self.registry.pick(name, digest), to / name)
        if name in CATALOGUE:
            check_weights(name, self.zoo)
            with _to(to / "llms" / name) as target, whole_folder(target) as folder:
                for file in ((self.zoo or EMBEDDED) / "llms" / name).iterdir():
                    shutil.copy2(file, folder)
            return target
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
        """Load a version from a folder of `export`, or a repository of `push`, into the user's registry.

        Raises FedrayError: unknown, out of reach, invalid.
        """
        folder = Path(where)
        manifest, blob = hub.read(folder if folder.is_dir() else hub.download(where, hub.FILES, revision))
        return manifest, Path(self.registry.adopt(manifest, blob).path)


class RegistryCommand(Job[RegistryJob, Screen]):
    """One command: list, show, delete, export, push, load, alias, rollback or affected."""

    name = "registry"

    def __init__(self, settings: RegistryJob) -> None:
        super().__init__(settings, Screen(settings.zoo.name))
        self.inventory = Inventory(settings.registry.path, settings.zoo.path)
        self.learned: tuple[Learned, ...] = ()
        self.tables: list[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = []  # title, headings, rows
        self.lines: list[str] = []

    def work(self) -> None:
        action: Callable[[str], Sequence[Learned]] = getattr(self, f"_{self.settings.action}")
        self.learned = tuple(action(self.settings.name or ""))

    def report(self, status: Status) -> Report | None:
        if status == "failed":
            return None
        settings = self.settings
        return Report("registry", settings.zoo.name, 0, status, task=settings.action, learned=self.learned)

    def show(self, report: Report) -> None:
        for title, headings, rows in self.tables:
            self.screen.table(title, headings, rows)
        for line in self.lines:
            self.screen.line(line)
        self.screen.passed_over(self.inventory.registry.problems)

    def _list(self, _: str) -> list[Learned]:
        inventory = self.inventory
        llms, learned = inventory.llms(), inventory.learned()
        sizes = [(m.name, m.hash or "", _size(Path(m.path or ""))) for m in llms]
        alias = inventory.alias_of
        self.tables.append(("LLMs", ("name", "hash", "size"), sizes))
        for role, title in (("fuser", "Fusers"), ("gate", "Gates")):
            of_role = [(m, path) for m, path in learned if m.role == role]
            rows = [(m.name, *_kind(m), m.hash, alias(m), _size(path), inventory.home(path)) for m, path in of_role]
            self.tables.append((title, ("name", "fuser", "fusion", "hash", "alias", "size", "in"), rows))
        return [*llms, *(_learned(m, path) for m, path in learned)]

    def _show(self, name: str) -> list[Learned]:
        inventory = self.inventory
        if name in CATALOGUE:
            llm = next((llm for llm in inventory.llms() if llm.name == name), None)
            if llm is None:
                raise FedrayError(f"zoo.path={inventory.zoo} has no {name}: rebuild it, or leave zoo.path out")
            entry = CATALOGUE[name]
            facts = {"hash": llm.hash, "family": entry.family, "stands for": entry.repo, "folder": llm.path}
            title, found = name, llm
        else:
            manifest, path = inventory.registry.pick(name, self.settings.hash)
            facts = {**asdict(manifest), "alias": inventory.alias_of(manifest), "folder": str(path)}
            title, found = f"{manifest.name} {manifest.hash}", _learned(manifest, path)
        self.tables.append((title, ("", ""), [(key, _text(value)) for key, value in facts.items()]))
        return [found]

    def _delete(self, name: str) -> list[Learned]:
        if name in CATALOGUE:
            raise FedrayError(f"{name} is an LLM of the zoo, and a zoo is read-only: name a fuser or a gate")
        folder = self.inventory.registry.delete(name, self.settings.hash)
        self.lines.append(f"{name} {folder.name} is gone from {folder.parent.parent}")
        return []

    def _export(self, name: str) -> list[Learned]:
        to, form = self.settings.to, self.settings.form
        assert to is not None
        target = self.inventory.export(name, self.settings.hash, to, form)
        option = "zoo.path" if name in CATALOGUE else "registry.path"
        use = f"{option}={to} uses it" if form == "registry" else f"load {target} takes it in elsewhere"
        self.lines.append(f"{name} is in {target}: {use}")
        return []

    def _push(self, name: str) -> list[Learned]:
        assert self.settings.to is not None
        repo = self.settings.to.as_posix()
        manifest, address = self.inventory.push(name, self.settings.hash, repo, self.settings.private)
        self.lines += [
            f"{manifest.name} {manifest.hash} is on the hub: {address}",
            f"take it in with: python jobs/registry.py load {repo} registry.path=DIR",
        ]
        return []

    def _load(self, name: str) -> list[Learned]:
        manifest, path = self.inventory.load(name, self.settings.revision)
        self.lines.append(f"{manifest.name} {manifest.hash} is in {self.inventory.home(path)}")
        return [_learned(manifest, path)]

    def _alias(self, name: str) -> list[Learned]:
        settings, registry = self.settings, self.inventory.registry
        if settings.alias == "canary":
            assert settings.share is not None
            made = service.try_canary(registry, settings.root, name, settings.hash, settings.share)
            told = f"the canary of {settings.share:g} of the traffic"
        else:
            made, told = service.make_stable(registry, settings.root, name, settings.hash), "stable"
        return self._in_service(*made, told)

    def _rollback(self, name: str) -> list[Learned]:
        manifest, path, passed = service.roll_back(
            self.inventory.registry, self.settings.root, name, self.settings.hash
        )
        self.lines += (f"passed over: {reason}" for reason in passed)
        return self._in_service(manifest, path, "stable again")

    def _in_service(self, manifest: Manifest, path: Path, told: str) -> list[Learned]:
        self.lines.append(
            f"{kind_of(manifest)}: {manifest.hash} is {told}; a federation that runs takes it up at refresh()"
        )
        return [_learned(manifest, path)]

    def _affected(self, name: str) -> list[Learned]:
        found = service.dependents(self.inventory.registry, name)
        counts = []
        for role, title in (("fuser", "Fusers"), ("gate", "Gates")):
            of_role = [part for part in found if part.versions[0][0].role == role]
            rows = [
                (part.name, part.role, ", ".join(kind_of(m).removeprefix(f"{part.name} ") for m, _ in part.versions))
                for part in of_role
            ]
            self.tables.append((title, ("name", f"{name} is", "kinds"), rows))
            counts.append(f"{len(of_role)} {role}{'' if len(of_role) == 1 else 's'}")
        self.lines.append(f"if the weights of {name} change, {' and '.join(counts)} are to be trained anew")
        return [_learned(*version) for part in found for version in part.versions]


def run(settings: RegistryJob) -> int:
    """Run the job; returns the exit code. Prints `report: PATH` last. Raises FedrayError."""
    return RegistryCommand(settings).run()


def _learned(manifest: Manifest, path: Path) -> Learned:
    counts = (manifest.training.get(key, 0) for key in ("steps", "questions"))
    steps, questions = (count if type(count) is int else 0 for count in counts)  # the record is not validated
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


@contextmanager
def _to(target: Path) -> Iterator[Path]:
    """Translate errors of writing to a folder to FedrayError."""
    try:
        yield target
    except OSError as error:
        raise FedrayError(f"{target} cannot be written ({error.strerror}); choose another folder: to=DIR") from error
