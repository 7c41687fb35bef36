"""What was measured is kept beside a registry's versions, once, and survives a crash."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fedray.methods.method import Method
from fedray.registry.evaluations import NAME, SPLIT, Recorded, append, read
from fedray.registry.store import SHIPPED, Registry
from fedray.types import FedrayError

ONE = Recorded(
    "qwen3-0.6b", ("llama-1b",), Method().flat(), {"qwen3-0.6b": "a", "llama-1b": "b"}, {"gate--qwen3-0.6b": "c"},
    "tiny", "tiny", "text", (0,), "3 different", 100, 0.9, 0.4, 70.0, 512.0, 0.01,
)  # fmt: skip


def test_it_is_added_to_and_read_again(tmp_path: Path) -> None:
    other = replace(ONE, task="tiny-unmet", pairing_gain=None, seconds=None)
    assert append(tmp_path, [ONE]) == 1 and append(tmp_path, [other]) == 1
    assert read(tmp_path) == [ONE, other]
    assert append(tmp_path, [replace(ONE, seconds=0.5), ONE]) == 0, "the same was measured"
    assert append(tmp_path, [replace(ONE, parts={}), replace(ONE, seeds=(1,))]) == 2, "these are others"
    assert Registry(tmp_path, embedded=None).list() == [] and not Registry(tmp_path, embedded=None).problems


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    append(tmp_path, [ONE])
    with (tmp_path / NAME).open("a") as file:
        file.write('{"receiver": "qwen3')
    assert read(tmp_path) == [ONE] and read(tmp_path / "nowhere") == []
    other = replace(ONE, task="tiny-unmet")
    append(tmp_path, [other])
    assert read(tmp_path) == [ONE, other]


def test_a_folder_that_cannot_be_written_costs_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FedrayError, match=r"cannot write .*evaluations.jsonl"):
        append(tmp_path / "file", [ONE])


def test_the_embedded_zoo_has_some() -> None:
    found = read(SHIPPED)
    kinds = {evaluation.method["fuser"] for evaluation in found}
    assert {"mlp", "draft", "identity"} <= kinds and all(one.split == SPLIT and one.n for one in found)
    hashes = {manifest.hash for manifest, _ in Registry().list()}
    trained = {digest for one in found if one.method["fuser"] != "identity" for digest in one.parts.values()}
    assert trained <= hashes, "what was measured is what is shipped"
