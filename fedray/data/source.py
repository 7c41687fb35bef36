"""Reading a data set: from the hub (cached, or streamed) or from files on this disk, every row checked.

`datasets` downloads, caches and streams; what goes wrong there becomes one sentence that names the data set and the
remedy. Data sets that are made by a script are refused by `datasets` itself.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from fedray.data.catalogue import DataSet
from fedray.data.local import files_of, format_of
from fedray.data.rows import Item, LeftOut, Row, Talk, WrongRow
from fedray.types import FedrayError

T = TypeVar("T", Item, Talk)


@dataclass(frozen=True, slots=True)
class Source:
    """What was read. revision: the hub's commit, None of a local copy; rows: that can be used; left_out: reason ->
    how many cannot; hash: of the content, whatever it was read from."""

    name: str
    split: str
    repo: str | None
    revision: str | None
    subsets: int
    rows: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    hash: str = ""


def read(
    data: DataSet[T],
    split: str,
    *,
    path: Path | None = None,
    streaming: bool = False,
    revision: str | None = None,
    first: int | None = None,
) -> tuple[dict[str, tuple[str, T]], Source]:
    """Id -> (group, content) of every row that can be used, in the data set's order, and where they came from.

    path: a local copy (local.py says what it may look like), else the hub's. first: read so many rows and no more.
    Raises FedrayError: no such split, a row in another schema, offline, a damaged file.
    """
    data.check(split)
    kept: dict[str, tuple[str, T]] = {}
    left_out: Counter[str] = Counter()
    opened = _Local(data, split, path) if path else _Hub(data, split, revision)
    subsets = set()
    for subset, number, row in islice(opened.rows(streaming), first):
        subsets.add(subset)
        try:
            content = _usable(data.read(row))
        except WrongRow as error:
            where = f"{data.name}: row {number} of {opened.place(subset)}"
            raise FedrayError(f"{where}: {error}; see that it has the columns {data.schema}") from error
        if isinstance(content, LeftOut):
            left_out[content.reason] += 1
        else:
            kept[_id(row, subset, number, kept)] = (data.subsets.get(subset, ""), content)
    if not kept:
        raise FedrayError(f"{data.name}: {opened.place()} holds no row that can be used: {_why(left_out)}")
    digest = hashlib.sha256(repr(list(kept.values())).encode()).hexdigest()[:16]
    repo = None if path else data.repo
    return kept, Source(data.name, split, repo, opened.revision, len(subsets), len(kept), dict(left_out), digest)


class _Hub:
    """A data set on the hub, or in its cache."""

    def __init__(self, data: DataSet[Any], split: str, revision: str | None) -> None:
        self._data, self._split, self._asked = data, split, revision
        self.revision: str | None = None

    def place(self, subset: str = "") -> str:
        pinned = f"at revision {self._asked}" if self._asked else ""
        return " ".join(filter(None, (self._data.repo, subset, self._data.splits[self._split], pinned)))

    def rows(self, streaming: bool) -> Iterator[tuple[str, int, Row]]:
        datasets = _package()
        for subset in self._data.subsets:
            remedy = f"connect, or give a local copy: data.path=DIR with the columns {self._data.schema}"
            with _explained(f"{self.place(subset)} cannot be read from the hub", remedy):
                builder = datasets.load_dataset_builder(self._data.repo, subset, revision=self._asked)
                if re.fullmatch(r"[0-9a-f]{40}", builder.hash or ""):
                    self.revision = builder.hash
                yield from _numbered(subset, builder, self._data.splits[self._split], streaming)


class _Local:
    """A data set's files on this disk."""

    revision = None

    def __init__(self, data: DataSet[Any], split: str, path: Path) -> None:
        self._files = files_of(data, split, path)
        self._data, self._path = data, path

    def place(self, subset: str = "") -> str:
        files = self._files.get(subset, ())
        return str(files[0] if len(files) == 1 else self._path)

    def rows(self, streaming: bool) -> Iterator[tuple[str, int, Row]]:
        datasets = _package()
        for subset, files in self._files.items():
            kind = format_of(files)
            how: dict[str, Any] = {}
            with _explained(f"{self._data.name}: {self.place(subset)} cannot be read", "mend it or name another"):
                if kind == "csv":  # every value as it is written: no number is rounded, no NA taken for nothing
                    columns = datasets.Features({name: datasets.Value("string") for name in _header(files[0])})
                    how = {"features": columns, "keep_default_na": False}
                names = [glob.escape(str(file.absolute())) for file in files]
                builder = datasets.load_dataset_builder(kind, data_files={"rows": names}, **how)
                yield from _numbered(subset, builder, "rows", streaming)


def _numbered(subset: str, builder: Any, split: str, streaming: bool) -> Iterator[tuple[str, int, Row]]:
    if streaming:
        found = builder.as_streaming_dataset(split=split)
    else:
        try:
            builder.download_and_prepare()
        except StopIteration as error:
            raise ValueError("a file is empty") from error
        found = builder.as_dataset(split=split)
    for number, row in enumerate(found, 1):
        yield subset, number, row


@contextmanager
def _explained(what: str, remedy: str) -> Iterator[None]:
    """One sentence for whatever goes wrong in `datasets`, its hub client, pyarrow or pandas."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except FedrayError:
        raise
    except (DatasetsError, OSError, ValueError, TypeError) as error:
        cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
        reason = " ".join((str(cause).strip() or type(cause).__name__).splitlines()[0].split()).rstrip(".")
        raise FedrayError(f"{what} ({reason}): {remedy}") from error


def _package() -> Any:
    """The datasets package, quiet where nobody watches. Raises FedrayError where it is not installed."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise FedrayError(f"data sets need {error.name}: pip install 'fedray[evaluation]'") from error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    for name in ("datasets", "huggingface_hub"):  # what goes wrong is raised, and said in one sentence
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return datasets


def _header(file: Path) -> list[str]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return next(csv.reader(lines), [])


def _usable(content: T | LeftOut) -> T | LeftOut:
    if isinstance(content, Item) and not (content.question and all(content.choices)):
        return LeftOut("an empty question or choice")
    return content


def _id(row: Row, subset: str, number: int, taken: Mapping[str, object]) -> str:
    own = str(row.get("id") or "")
    named = "/".join(filter(None, (subset, own or str(number))))
    return named if own and named not in taken else f"{subset}/{number}"


def _why(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count} times {reason}" for reason, count in left_out.items()) or "it is empty"
