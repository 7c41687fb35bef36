"""GGUF files and the cache of their conversions."""

from __future__ import annotations

import shutil
from pathlib import Path

import ggufs
import pytest
from huggingface_hub import constants


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of conversions; the working folder holds the files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets" / "fedray" / "gguf"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of every architecture that is read."""
    folder = tmp_path_factory.mktemp("ggufs")
    for kind in ggufs.KINDS:
        ggufs.write(folder / f"{kind}.gguf", kind, tied=kind != "qwen2", template=kind != "qwen3")
    return folder


@pytest.fixture
def file(tiny: Path, tmp_path: Path, cache: Path) -> Path:
    return Path(shutil.copy(tiny / "llama.gguf", tmp_path / "tiny.gguf"))
