"""Folders that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from scarce import full_disk

from fedray.disk import whole_folder, write_whole


def test_a_folder_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with whole_folder(tmp_path / "deep" / "final") as folder:
            (folder / text).write_text(text)
            assert not (tmp_path / "deep" / "final" / text).exists()
    assert [path.name for path in (tmp_path / "deep" / "final").iterdir()] == ["two"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["final"]
    assert (tmp_path / "deep" / "final").stat().st_mode & 0o777 == 0o755


def test_what_fails_halfway_leaves_the_one_before(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "final") as folder:
        (folder / "one").touch()
    with pytest.raises(OSError, match="no room"), whole_folder(tmp_path / "final") as folder:
        (folder / "two").touch()
        raise OSError("no room")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["final", "final/one"]


def test_a_text_takes_the_place_of_the_one_before_or_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "text"
    for text in ("one", "two"):
        write_whole(path, text)
    with full_disk(1000), pytest.raises(OSError, match="File too large"):
        write_whole(path, "x" * 2000)
    assert path.read_text() == "two" and list(path.parent.iterdir()) == [path]
