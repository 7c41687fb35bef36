"""Before members load: what stands behind their names, where each will be, and its files in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from fedray.llm import hub
from fedray.llm.catalogue import shown
from fedray.llm.gguf_conversion import converted
from fedray.llm.source import Source, folder_of, gguf_header, pin, whole_gguf
from fedray.settings.settings import Settings


def sources(s: Settings, names: Sequence[str] | None = None) -> list[Source]:
    """Where the members come from, the receiver first; names: others than those that take part."""
    zoo, of = (s.zoo.name, absolute(s.zoo.path)), names or s.takes_part
    return [Source(name, *zoo, s.member(name).revision, s.prompting) for name in of]


def pinned(wanted: Sequence[Source]) -> dict[str, Source]:
    """The sources at their commits, all asked at once. Raises FedrayError naming the first that cannot be had."""
    asked = [source.name for source in wanted if source.repository is not None]
    told = Console(stderr=True).status(f"asking the hub for {', '.join(asked)}") if asked else nullcontext()
    with told, ThreadPoolExecutor(max(1, len(wanted))) as pool:
        return {source.name: source for source in pool.map(pin, wanted)}


def resources(s: Settings, name: str) -> dict[str, Any]:
    """What a member asks Ray for: its own settings, else those of all. Ray chooses the GPU, so cuda:1 is cuda here."""
    own = s.member(name)
    gpus = s.ray.gpus_per_member if own.num_gpus is None else own.num_gpus
    on_gpu = gpus > 0 if own.device is None else own.device.startswith("cuda")
    return {
        "device": "cuda" if on_gpu else own.device or "cpu",
        "dtype": own.dtype,
        "num_cpus": s.ray.cpus_per_member if own.num_cpus is None else own.num_cpus,
        "num_gpus": gpus or (1.0 if on_gpu else 0.0),
        "label": own.label,
    }


def devices(s: Settings) -> dict[str, str]:
    """Where each member will stand."""
    if s.ray.enabled:
        return {name: resources(s, name)["device"] for name in s.takes_part}
    return {name: s.member(name).device or "cpu" for name in s.takes_part}


def missing(wanted: Sequence[Source]) -> dict[str, list[hub.File]]:
    """Member -> files of its repository that the cache lacks, all asked at once; a member whose hub cannot be asked is
    left out. Raises FedrayError."""
    repositories = {source.name: source.repository if source.name == source.llm else None for source in wanted}
    asked = {name: repository for name, repository in repositories.items() if repository is not None}
    with ThreadPoolExecutor(max(1, len(asked))) as pool:
        listed = dict(zip(asked, pool.map(hub.files, asked.values()), strict=True))
    lacking = {name: [file for file in files if not file.cached] for name, files in listed.items() if files}
    return {name: [] for name in repositories.keys() - asked.keys()} | lacking


def download(wanted: Sequence[Source]) -> None:
    """Bring what the cache lacks, the files of all members side by side, under a bar; then convert GGUF files.

    Raises FedrayError.
    """
    lacking = {name: files for name, files in missing(wanted).items() if files}
    files = [file for of_member in lacking.values() for file in of_member]
    if files:
        with _bar("downloading", DownloadColumn(), TransferSpeedColumn()) as bar:
            task = bar.add_task(", ".join(lacking), total=sum(file.size for file in files))
            hub.download(files, lambda size: bar.update(task, advance=size))
    _convert([source for source in wanted if source.name == source.llm and gguf_header(source) is not None])


def _convert(wanted: Sequence[Source]) -> None:
    found = {source: whole_gguf(source) for source in wanted}
    lacking = {source: file for source, file in found.items() if not converted(file).is_dir()}
    if lacking:
        with _bar("converting", DownloadColumn()) as bar:
            task = bar.add_task("", total=sum(file.stat().st_size for file in lacking.values()))
            for source in lacking:
                bar.update(task, description=source.title)
                folder_of(source, arrived=lambda size: bar.update(task, advance=size))


@contextmanager
def loading(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on the terminal while members load; the yielded function is told each name."""
    with _bar("loading", MofNCompleteColumn()) as bar:
        task = bar.add_task("", total=total)
        yield lambda name: bar.update(task, advance=1, description=shown(name))


def say(text: str) -> None:
    Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)


def absolute(path: Path | None) -> Path | None:
    """Actors have working folders of their own."""
    return None if path is None else path.absolute()


def _bar(what: str, *columns: ProgressColumn) -> Progress:
    console = Console(stderr=True)
    seen = console.is_terminal or console.is_jupyter
    shown = (TextColumn(what), BarColumn(), *columns, TextColumn("{task.description}"), TimeElapsedColumn())
    return Progress(*shown, console=console, transient=True, disable=not seen)
