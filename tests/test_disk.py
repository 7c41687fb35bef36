"""Folders that are there whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from errno import EBADF, EIO
from pathlib import Path
from threading import Thread

import pytest
from scarce import full_disk

from fedray.files import whole_folder, write_whole


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


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_the_one_before_is_there_until_the_new_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every rename and removal the bytes of one of them lie under the final name or beside it."""
    with whole_folder(tmp_path / "final") as folder:
        (folder / "one").touch()
    reader = os.open(tmp_path / "final", os.O_RDONLY)
    seen: list[list[str]] = []
    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: seen.append(names(tmp_path / "final")) or rmtree(*a, **k))
    with whole_folder(tmp_path / "final") as folder:
        (folder / "two").touch()
        assert os.listdir(reader) == ["one"]
    assert seen == [["two"]] * 2, "nothing is removed before the new one is in its place"
    assert names(tmp_path) == ["final", "final/two"]
    os.close(reader)


def test_a_replacement_that_fails_puts_the_one_before_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with whole_folder(tmp_path / "final") as folder:
        (folder / "one").touch()
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.startswith(".new-") and not target.exists():
            raise OSError(EIO, "no more")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no more"), whole_folder(tmp_path / "final") as folder:
        (folder / "two").touch()
    assert names(tmp_path) == ["final", "final/one"]


def test_what_a_kill_leaves_between_two_renames_is_put_back(tmp_path: Path) -> None:
    for left in (".old-a/one", ".old-b/final", ".new-c"):
        (tmp_path / left).mkdir(parents=True)
        (tmp_path / left / "file").touch()
    with whole_folder(tmp_path / "final") as folder:
        (folder / "new").touch()
        assert names(tmp_path / "one") == ["file"] == names(tmp_path / "final")
    assert names(tmp_path) == ["final", "final/new", "one", "one/file"]


def test_many_writers_of_one_folder(tmp_path: Path) -> None:
    failed: list[Exception] = []

    def write(text: str) -> None:
        try:
            for _ in range(20):
                with whole_folder(tmp_path / "final") as folder:
                    (folder / text).touch()
        except Exception as error:  # noqa: BLE001  # whatever it is, the test names it
            failed.append(error)

    threads = [Thread(target=write, args=(text,)) for text in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and len(names(tmp_path)) == 2


def test_locks_that_a_file_system_lacks_are_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".new-alive").mkdir()

    def lacking(handle: int, how: int) -> None:
        raise OSError(EBADF, "a network file system")

    monkeypatch.setattr(fcntl, "flock", lacking)
    with whole_folder(tmp_path / "final") as folder:
        (folder / "one").touch()
    assert names(tmp_path) == [".new-alive", "final", "final/one"], "nobody knows who works there"


def test_a_text_takes_the_place_of_the_one_before_or_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "text"
    for text in ("one", "two"):
        write_whole(path, text)
    with full_disk(1000), pytest.raises(OSError, match="File too large"):
        write_whole(path, "x" * 2000)
    assert path.read_text() == "two" and list(path.parent.iterdir()) == [path]
