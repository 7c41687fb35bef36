"""The names of LLMs: those of the catalogue, and those any decoder has."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import Call

from fedray.command_line import check
from fedray.llm.catalogue import CATALOGUE, NAMES, resolve, safe_name, shortening, slug
from fedray.settings.settings import MemberSettings
from fedray.types import FedrayError

pytest.importorskip("hydra")
pytestmark = pytest.mark.usefixtures("without_a_store")


def test_catalogue() -> None:
    assert resolve("llama-3.2-1b") == "llama-1b"
    assert [resolve(name) for name in NAMES] == list(NAMES)
    assert CATALOGUE["qwen2.5-1.5b"].repo == "Qwen/Qwen2.5-1.5B-Instruct"
    with pytest.raises(FedrayError, match=r"unknown sender 'qwen2.5-coder' \(did you mean qwen2.5-coder-0.5b"):
        resolve("qwen2.5-coder", "sender")
    assert set(NAMES) <= set(CATALOGUE) and {"qwen3-8b", "gemma-3-1b"} <= set(CATALOGUE)
    assert [entry.config["num_hidden_layers"] for entry in map(CATALOGUE.get, NAMES) if entry] == [28, 24, 24, 28, 16]


def test_any_decoder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("hf:Org/My.LLM-7B", zoo="hub") == "hf:Org/My.LLM-7B"
    assert resolve("./my llm", zoo="hub") == str(tmp_path / "my llm")
    assert (slug("hf:Org/My.LLM-7B"), safe_name("hf:Org/My.LLM-7B")) == ("org-my.llm-7b", "org-my_llm-7b")
    assert (slug("/data/my llm"), slug("qwen2.5-0.5b"), safe_name("qwen2.5-0.5b")) == (
        "my-llm",
        "qwen2.5-0.5b",
        "qwen2_5-0_5b",
    )


SHORT = [
    (["/data/llm"], ["llm"]),
    (["/data/a/llm", "/data/b/llm"], ["a/llm", "b/llm"]),
    (["/data/a/x/llm", "/data/b/x/llm", "/data/other"], ["a/x/llm", "b/x/llm", "other"]),
    (["/a/llm", "/x/a/llm", "/llm"], ["/a/llm", "x/a/llm", "/llm"]),
    (["/data/llm", "/data/llm#2", "/data/llm/sub", "/data/llm.v2"], ["llm", "llm#2", "sub", "llm.v2"]),
    (["/data/llama-1b", "llama-1b", "hf:org/llama-1b"], ["data/llama-1b", "llama-1b", "hf:org/llama-1b"]),
    (["/data/a b/m (1).gguf", "/data/c/m (1).gguf"], ["a b/m (1).gguf", "c/m (1).gguf"]),
    (["/data/ünï/模型.gguf"], ["模型.gguf"]),
    (["qwen3-0.6b", "llama-1b"], ["qwen3-0.6b", "llama-1b"]),
    ([], []),
]


@pytest.mark.parametrize(("names", "wanted"), SHORT, ids=[" ".join(names) for names, _ in SHORT])
def test_names_are_shown_as_short_as_tells_them_apart(names: list[str], wanted: list[str]) -> None:
    short = shortening(names)
    assert [short(name) for name in names] == wanted and len({*wanted}) == len(names)
    assert short(" + ".join(names)) == " + ".join(wanted)
    assert short("".join(f"{name}'s, " for name in names)) == "".join(f"{name}'s, " for name in wanted)


def test_other_paths_stay_as_they_are() -> None:
    short = shortening(["/data/llm"])
    for text in ("/data/llm/out", "/more/data/llm", "/data/llm-2", "./data/llm2", "a/data/llm"):
        assert short(text) == text
    assert short("all but /data/llm.") == "all but llm."


def test_any_decoder_may_take_part(call: Call, tmp_path: Path) -> None:
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "config.json").write_text("{}")
    settings = call.settings(
        "zoo=hub",
        "senders=[hf:Org/LLM-1.5B,./llm,smollm2-135m]",
        "members.hf:Org/LLM-1.5B.dtype=bfloat16",
        "members.org-llm-1_5b.revision=0123456",
        "++members.smollm2-135m.num_gpus=0.5",
    )
    assert settings.senders == ("hf:Org/LLM-1.5B", str(tmp_path / "llm"), "smollm2-135m")
    assert settings.member("hf:Org/LLM-1.5B") == MemberSettings(dtype="bfloat16", revision="0123456")
    assert settings.member("smollm2-135m").num_gpus == 0.5
    check(settings)
