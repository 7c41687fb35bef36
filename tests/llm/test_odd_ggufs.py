"""GGUF files that cannot be members: one sentence with file, reason and remedy, before anything is converted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ggufs
import numpy as np
import pytest
from commandline import Call
from gguf import GGUFWriter

from fedray.jobs import federate
from fedray.llm.loading import load
from fedray.llm.source import Source, pin
from fedray.settings.check import check_llm_folders
from fedray.settings.settings import Settings
from fedray.types import FedrayError

pytestmark = pytest.mark.usefixtures("cache")
QUESTION = "what is the color of the bird?"
QUIET = ("zoo=hub", "ray=none", "tracking=none", "generation.max_tokens=4")


def fedrated(settings: Settings) -> int | None:
    return federate.run(settings)


Edit = Callable[[Path], Any]


def cut(share: float) -> Edit:
    return lambda f: f.write_bytes(f.read_bytes()[: round(f.stat().st_size * share)])


def anew(kind: str = "llama", **more: Any) -> Edit:
    return lambda f: ggufs.write(f, kind, **more)


def adding(add: Callable[[GGUFWriter], Any]) -> Edit:
    return anew(edit=lambda writer: add(writer) and None)


def holding(content: bytes) -> Edit:
    return lambda f: f.write_bytes(content)


def patched(old: bytes, new: bytes) -> Edit:
    """Replaces bytes of the header."""

    def patch(file: Path) -> None:
        content = file.read_bytes()
        assert old in content
        file.write_bytes(content.replace(old, new, 1))

    return patch


def typed(number: int) -> Edit:
    """Says of the first tensor that it is of another type."""
    name = b"output_norm.weight"
    before = name + (1).to_bytes(4, "little") + (32).to_bytes(8, "little")
    return patched(before + bytes(4), before + number.to_bytes(4, "little"))


def sized(**sizes: Any) -> Edit:
    return anew(sizes={**ggufs.SIZES, **{name.replace("__", "."): size for name, size in sizes.items()}})


ODD: dict[str, tuple[Edit, str]] = {
    "empty": (holding(b""), "it ends in its header; download it again"),
    "cut in its magic": (holding(b"GG"), "is cut short, it ends in its header"),
    "cut in its metadata": (cut(0.02), "is cut short, it ends in its header"),
    "cut in its tensors": (cut(0.6), r"is cut short \([\d,]+ of [\d,]+ bytes\); download it again"),
    "cut by a byte": (lambda f: f.write_bytes(f.read_bytes().rstrip(b"\0")[:-1]), r"is cut short \([\d,]+ of"),
    "a page": (holding(b"<!DOCTYPE html>" * 9), "is damaged .it begins with b'<!DO' and not with b'GGUF'"),
    "a pointer": (holding(b"version https://git-lfs.github.com/spec/v1\n"), "is damaged .it begins with b'vers'"),
    "version 1": (patched(b"GGUF\3\0\0\0", b"GGUF\1\0\0\0"), "is damaged .its version is 1, and 2 and 3 are read"),
    "big-endian": (patched(b"GGUF\3\0\0\0", b"GGUF\0\0\0\3"), "is damaged .its version is 50331648"),
    "text that is none": (patched(b"general.architecture", b"\xff" * 20), "is damaged .*utf-8"),
    "tensors without end": (
        lambda f: f.write_bytes(f.read_bytes()[:8] + b"\xff" * 8 + f.read_bytes()[16:]),
        "is (damaged|cut short)",
    ),
    "values without end": (
        lambda f: f.write_bytes(f.read_bytes()[:16] + b"\xff" * 8 + f.read_bytes()[24:]),
        "is (damaged|cut short)",
    ),
    "an alignment of nothing": (
        adding(lambda w: w.add_uint32("general.alignment", 0)),
        "is damaged .its alignment is 0",
    ),
    "an architecture nobody reads": (
        patched(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0bloom"),
        "cannot take part: GGUF files of bloom are not read; choose one of llama, qwen2, qwen3, gemma3",
    ),
    "a type nobody knows": (typed(99), "holds output_norm.weight in ggml's type 99, which the package gguf does not"),
    "a type nobody reads": (
        typed(24),
        "is quantized as I8, which the package gguf cannot read; take the LLM in another",
    ),
    "a RoPE that is not read": (
        adding(lambda w: w.add_string("llama.rope.scaling.type", "yarn")),
        "cannot take part: transformers leaves out the yarn RoPE of GGUF files; take the LLM's safetensors",
    ),
    "frequencies that are not read": (
        adding(lambda w: w.add_tensor("rope_freqs.weight", np.ones(4, np.float32))),
        "cannot take part: transformers leaves out rope_freqs.weight of tiny.gguf; take the LLM's safetensors",
    ),
    "biases that are not read": (
        adding(lambda w: w.add_tensor("blk.0.attn_q.bias", np.ones(32, np.float32))),
        "transformers leaves out blk.0.attn_q.bias",
    ),
    "a tensor missing": (anew(without="blk.1.ffn_down.weight"), "lacks model.layers.1.mlp.down_proj.weight .1 tensors"),
    "tensors of another shape": (
        patched(b"llama.attention.head_count_kv\4\0\0\0\2", b"llama.attention.head_count_kv\4\0\0\0\1"),
        "blk.0.attn_k.weight of tiny.gguf is 16x32, and by its metadata 8x32; download",
    ),
    "metadata without layers": (sized(block_count=None), "the metadata of tiny.gguf have no llama.block_count"),
    "a part of one": (
        adding(lambda w: w.add_uint16("split.count", 3)),
        "tiny.gguf is one of 3 parts of a GGUF: make them one with `llama-gguf-split --merge FIRST-PART WHOLE.gguf`",
    ),
    "a tokenizer nobody knows": (
        patched(b"\4\0\0\0\0\0\0\0gpt2", b"\4\0\0\0\0\0\0\0bert"),
        "the tokenizer of tiny.gguf cannot be built .*'bert'.*; take another conversion",
    ),
    "a template that fails": (
        adding(lambda w: w.kv_data[0].pop("tokenizer.chat_template") and w.add_chat_template("{{ 1 / 0 }}")),
        "its chat template fails .division by zero",
    ),
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_odd_is_one_sentence_before_anything_starts(what: str, file: Path, call: Call, cache: Path) -> None:
    edit, says = ODD[what]
    edit(file)
    with pytest.raises(FedrayError, match=says) as raised:
        pin(Source(str(file), "hub"))
    said = str(raised.value)
    assert said.startswith("./tiny.gguf") and "\n" not in said and len(said) < 500
    code, told = call(*QUIET, "receiver=tiny.gguf", "protocol=standalone", f"prompt={QUESTION}", job=fedrated)
    assert code == 2 and said in " ".join(told.split())
    assert not cache.exists()


def test_parts_are_told_apart_from_files(file: Path, tmp_path: Path) -> None:
    names = [f"big-{part:05d}-of-00003.gguf" for part in (1, 2, 3)]
    (tmp_path / "llm").mkdir()
    for name in names:
        ggufs.write(tmp_path / "llm" / name, edit=lambda writer: writer.add_uint16("split.count", 3))
    merge = rf"`llama-gguf-split --merge {names[0]}"
    with pytest.raises(FedrayError, match=rf"^./llm .*holds parts of a GGUF: make them one with {merge}"):
        check_llm_folders([str(tmp_path / "llm")])
    with pytest.raises(FedrayError, match=rf"{names[0]} is one of 3 parts of a GGUF: make them one with {merge}"):
        pin(Source(str(tmp_path / "llm" / names[0]), "hub"))
    (tmp_path / "llm" / names[1]).unlink()
    (tmp_path / "llm" / names[2]).unlink()
    for name in ("llm", f"llm/{names[0]}"):
        with pytest.raises(FedrayError, match=rf"one of 3 parts of a GGUF, and {names[1]} is missing: copy it"):
            pin(Source(str(tmp_path / name), "hub"))


def test_folders_hold_one(file: Path, call: Call) -> None:
    shutil.copy(file, "other.gguf")
    code, said = call(*QUIET, "receiver=.", f"prompt={QUESTION}", job=fedrated)
    assert (
        code == 2
        and ". is no LLM's folder, it holds 2 GGUF files (other.gguf, tiny.gguf): name the file, as in ./other" in said
    )
    Path("config.json").write_text("{}")
    with pytest.raises(FedrayError, match=r"has no model.safetensors; .*2 GGUF files .*: name the file"):
        pin(Source(str(file.parent), "hub"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("zoo=hub", "receiver=nowhere.gguf"), "./nowhere.gguf does not exist: check the path, or name hf:org"),
        (("receiver=tiny.gguf",), "tiny.gguf is a GGUF file: add zoo=hub"),
        (("zoo=shapes", "receiver=./tiny.gguf"), "./tiny.gguf is a GGUF file: add zoo=hub"),
        (("zoo=hub", "receiver=hf:acme/llm/../x.gguf"), "names no repository: write hf:org/name, or hf:org/na"),
        (("zoo=hub", "receiver=hf:acme/llm/x.bin"), "names no repository: write hf:org/name, or hf:org/name/file.gguf"),
    ],
)  # fmt: skip
def test_names_that_are_none(arguments: tuple[str, ...], says: str, file: Path, call: Call) -> None:
    code, said = call("ray=none", "tracking=none", *arguments, f"prompt={QUESTION}", job=fedrated)
    assert code == 2 and says in said


def test_without_the_package_it_is_one_sentence(file: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedray.llm.gguf_header.find_spec", lambda name: None)
    code, said = call(*QUIET, "receiver=tiny.gguf", "protocol=standalone", f"prompt={QUESTION}", job=fedrated)
    assert (
        code == 2
        and "./tiny.gguf is a GGUF file, and the package gguf is not installed: pip install 'fedray[gguf]'" in said
    )


def test_a_file_without_a_tokenizer_reads_ids(file: Path) -> None:
    ggufs.write(file, tokenizer=False, edit=lambda writer: writer.add_vocab_size(600))
    llm = load(str(pin(Source(str(file), "hub")).name), zoo="hub")
    assert llm.tokenizer is None
