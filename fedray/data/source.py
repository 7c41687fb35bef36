"""Read a data set, from the hub (cached, or streamed) or from local files, and validate every row.

`datasets` downloads, caches and streams; what goes wrong there becomes one sentence that names the data set and the
remedy. Data sets that are made by a script are refused by `datasets` itself.
"""

from __future__ import annotations

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

from fedray.data import files
from fedray.data.catalogue import DataSet
from fedray.data.local import check_formats, files_of
from fedray.data.rows import EMPTY, Item, LeftOut, Row, TrainingTalk, WrongRow
from fedray.types import FedrayError

T = TypeVar("T", Item, TrainingTalk)
_IDS = ("id", "_id", "qid")  # of a row: the hub's, HotpotQA's own, StrategyQA's
Numbered = tuple[str, int, str, Any]  # subset, the row's number in it, where it stands, the row


@dataclass(frozen=True, slots=True)
class DataSource:
    """The source of what was read. revision: the hub's commit, None of a local copy; rows: that can be used; left_out:
    reason -> how many cannot; hash: of the content, wherever it comes from."""

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
) -> tuple[dict[str, tuple[str, T]], DataSource]:
    """Read every row that can be used, in the data set's order: id -> (group, content), and their source.

    path: a local copy (local.py says what it may look like), else the hub's. first: read so many rows and no more.
    Raises FedrayError: no such split, a row in another schema, offline, a damaged file.
    """
    data.check(split)
    kept: dict[str, tuple[str, T]] = {}
    left_out: Counter[str] = Counter()
    opened = _Local(data, split, path) if path else _Hub(data, split, revision)
    subsets = set()
    for subset, number, place, row in islice(opened.rows(streaming), first):
        subsets.add(subset)
        try:
            if not isinstance(row, Mapping):
                raise WrongRow("this is no row with named columns")
            content = data.read(row)
        except WrongRow as error:
            raise FedrayError(f"{data.name}: {place}: {error}; see that it has the columns {data.schema}") from error
        content = EMPTY if isinstance(content, Item) and not content.whole else content
        if isinstance(content, LeftOut):
            left_out[content.reason] += 1
        else:
            kept[_id(row, subset, number, kept)] = (data.subsets.get(subset, ""), content)
    if not kept:
        raise FedrayError(f"{data.name}: {opened.place()} holds no row that can be used: {_why(left_out)}")
    beside = [c.beside for _, c in kept.values() if c.beside]
    read_is = repr(list(kept.values())) + (repr(beside) if beside else "")
    digest = hashlib.sha256(read_is.encode()).hexdigest()[:16]
    repo = None if path else data.repo
    return kept, DataSource(data.name, split, repo, opened.revision, len(subsets), len(kept), dict(left_out), digest)


class _Hub:
    """A data set on the hub, or in its cache."""

    def __init__(self, data: DataSet[Any], split: str, revision: str | None) -> None:
        self._data, self._split, self._asked = data, split, revision
        self.revision: str | None = None

    def place(self, subset: str = "") -> str:
        pinned = f"at revision {self._asked}" if self._asked else ""
        return " ".join(filter(None, (self._data.repo, subset, self._data.splits[self._split], pinned)))

    def rows(self, streaming: bool) -> Iterator[Numbered]:
        datasets = _package()
        for subset in self._data.subsets:
            remedy = f"connect, or give a local copy: data.path=DIR with the columns {self._data.schema}"
            with _explained(f"{self.place(subset)} cannot be read from the hub", remedy):
                builder = datasets.load_dataset_builder(self._data.repo, subset, revision=self._asked)
                if re.fullmatch(r"[0-9a-f]{40}", builder.hash or ""):
                    self.revision = builder.hash
                split = self._data.splits[self._split]
                if not streaming:
                    builder.download_and_prepare()
                found = builder.as_streaming_dataset(split=split) if streaming else builder.as_dataset(split=split)
                for number, row in enumerate(found, 1):
                    yield subset, number, f"row {number} of {self.place(subset)}", row


class _Local:
    """A data set's files on this disk."""

    revision = None

    def __init__(self, data: DataSet[Any], split: str, path: Path) -> None:
        self._files = files_of(data, split, path)
        self._data, self._path = data, path

    def place(self, subset: str = "") -> str:
        paths = self._files.get(subset, ())
        return str(paths[0] if len(paths) == 1 else self._path)

    def rows(self, streaming: bool) -> Iterator[Numbered]:
        """Read rows as they come, streamed or not."""
        for subset, paths in self._files.items():
            check_formats(paths)
            found = ((f"{place} of {path}", row) for path in paths for place, row in self._read(path))
            for number, (place, row) in enumerate(found, 1):
                yield subset, number, place, row

    def _read(self, path: Path) -> Iterator[tuple[str, Any]]:
        try:
            yield from files.rows(path)
        except FedrayError as error:
            raise FedrayError(f"{self._data.name}: {error}") from error


@contextmanager
def _explained(what: str, remedy: str) -> Iterator[None]:
    """Raise errors of `datasets`, its hub client, pyarrow or pandas as FedrayError."""
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
    """Import the datasets package, without progress bars off a terminal. Raises FedrayError: not installed."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise FedrayError(f"data sets need {error.name}: pip install 'fedray[evaluation]'") from error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    for name in ("datasets", "huggingface_hub"):  # what goes wrong is raised, and said in one sentence
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return datasets


def _id(row: Row, subset: str, number: int, taken: Mapping[str, object]) -> str:
    own = str(next(filter(None, map(row.get, _IDS)), ""))
    named = "/".join(filter(None, (subset, own or str(number))))
    return named if own and named not in taken else f"{subset}/{number}"


def _why(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count} times {reason}" for reason, count in left_out.items()) or "it is empty"
