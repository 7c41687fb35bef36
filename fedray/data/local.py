"""Find a data set's local files, and by their names splits and subsets.

FOLDER/test.jsonl                               one split, one file
FOLDER/main/train-00000-of-00001.parquet        as `hf download --repo-type dataset` lays it out
FOLDER/val/accountant_val.csv                   subsets in the files' names
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedray.data.catalogue import BENCHMARKS, TALKS, DataSet
from fedray.data.files import FORMATS, is_packed, suffix
from fedray.types import FedrayError

NOTES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # of the datasets package
_WORDS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def files_of(data: DataSet[Any], split: str, path: Path) -> dict[str, list[Path]]:
    """Find the files of a split: subset -> files. A folder may hold a subset only, or one folder per data set.

    Raises FedrayError: nothing there that can be read, another split, several formats at once.
    """
    root = _root(data, path)
    found = _by_subset(data, root, _files(root, data))
    splits = {subset: {file: _split(data, file, root) for file in files} for subset, files in found.items()}
    chosen = {subset: [f for f, s in of.items() if s == split] for subset, of in splits.items()}
    chosen = {subset: files for subset, files in chosen.items() if files}
    if not chosen:
        there = sorted({s for of in splits.values() for s in of.values()})
        raise FedrayError(
            f"{data.name} has no {split} split in {root}, which holds {', '.join(there)}: say the split in the files' "
            f"names, as in {split}.parquet, or choose another"
        )
    return chosen


def _root(data: DataSet[Any], path: Path) -> Path:
    """Find the data set's own folder or file. Raises FedrayError where a folder holds other data sets only."""
    there = [name for name in (*BENCHMARKS, *TALKS) if (path / name).is_dir()]
    if data.name in there:
        return path / data.name
    if there:
        raise FedrayError(f"{path} holds {', '.join(there)} and no {data.name}: put a copy into {path / data.name}")
    return path


def check_formats(files: Sequence[Path]) -> None:
    """Validate that files are of one format: several would hold the same twice. Raises FedrayError."""
    kinds = {suffix(file) + ".gz" * is_packed(file): (FORMATS[suffix(file)], is_packed(file)) for file in files}
    if len(set(kinds.values())) > 1:
        raise FedrayError(f"{files[0].parent} holds the same as {' and '.join(sorted(kinds))}: leave one of them there")


def _files(root: Path, data: DataSet[Any]) -> list[Path]:
    if not root.exists():
        raise FedrayError(f"{data.name}: data.path={root} does not exist: name a folder or a file")
    below = [root] if root.is_file() else sorted(root.rglob("*"))
    below = [file for file in below if not any(part.startswith(".") for part in _parts(file, root))]
    found = [file for file in below if suffix(file) in FORMATS and file.name not in NOTES]
    if not found:
        raise FedrayError(
            f"{data.name}: {root} holds no file that ends in {', '.join(FORMATS)}: name another data.path"
        )
    return found


def _by_subset(data: DataSet[Any], root: Path, files: Iterable[Path]) -> dict[str, list[Path]]:
    """Group files by the subset that a folder or the beginning of their name says, without those of other subsets."""
    known = sorted((*data.subsets, *data.siblings), key=len, reverse=True)
    named: dict[str, list[Path]] = {}
    for file in files:
        subset = next((s for s in known if _names(file, root, s)), "")
        named.setdefault(subset, []).append(file)
    own = {subset: named[subset] for subset in data.subsets if subset in named}
    if not own and "" in named:  # no name says a subset: all of them in one
        return {next(iter(data.subsets)) if len(data.subsets) == 1 else "": named[""]}
    if not own:
        first = next(iter(data.subsets))
        raise FedrayError(
            f"{data.name}: no file below {root} is of a subset of it: name files or folders as on the hub, as in "
            f"{first}/{data.main}.parquet"
        )
    return own


def _names(file: Path, root: Path, subset: str) -> bool:
    *folders, name = _parts(file, root)
    return subset in folders or re.match(rf"{re.escape(subset)}([-_.]|$)", name) is not None


def _split(data: DataSet[Any], file: Path, root: Path) -> str:
    """Find the split that a file's name (or else its folder's) says; the only file of the only split needs no name."""
    if file == root and len(data.splits) == 1:
        return data.main
    for part in reversed(_parts(file, root)):
        words = re.split(r"[^a-z]+", part.lower())
        for split, theirs in data.splits.items():
            if theirs in words:
                return split
        for split, alike in _WORDS.items():
            for word in set(alike) & set(words):  # C-Eval has dev beside val: there it is another split
                return split if data.splits.get(split, split) == split else word
    return data.main


def _parts(file: Path, root: Path) -> tuple[str, ...]:
    return (file.name,) if file == root else file.relative_to(root).parts
