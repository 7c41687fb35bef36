"""Text that no LLM can read is refused where it comes in."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedray.settings.check import check
from fedray.settings.settings import build
from fedray.text import check_text, decode_text
from fedray.types import FedrayError


@pytest.mark.parametrize(
    "text", ["", "plain", "\u00e9\u4e2d\U0001f600", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")]
)
def test_text_comes_back(text: str) -> None:
    assert check_text(text, "this") == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("what? \ud83d", r"this has \\ud83d without the other half"),
        ("\udfff", r"this has \\udfff without"),
        (b"na\xefve".decode("utf-8", "surrogateescape"), r"this has byte 0xef \(\\udcef\), which is not UTF-8"),
    ],
)
def test_half_a_character_is_refused(text: str, says: str) -> None:
    with pytest.raises(FedrayError, match=says) as error:
        check_text(text, "this")
    str(error.value).encode()


def test_bytes_are_decoded_or_refused_with_their_line() -> None:
    assert decode_text("\ufeffa\nb".encode(), "q.txt") == "a\nb"
    with pytest.raises(FedrayError, match=r"^q.txt, line 3 has byte 0xff, which is not UTF-8: convert it to UTF-8$"):
        decode_text(b"a\nb\n\xff", "q.txt")
    with pytest.raises(FedrayError, match=r"^q.txt, line 8 has byte 0x80"):
        decode_text(b"\x80", "q.txt", 8)


def test_prompts_and_evidence_are_checked(tmp_path: Path) -> None:
    with pytest.raises(FedrayError, match="prompt has "):
        check(build({"prompt": "what? \ud83d"}))
    with pytest.raises(FedrayError, match=r"evidence\.llama-1b has "):
        check(build({"evidence": {"llama-1b": "a fact \udc80"}}))
    (tmp_path / "fact.txt").write_bytes(b"one\ntw\xf6\n")
    with pytest.raises(FedrayError, match=r"^evidence file .*fact.txt, line 2 has byte 0xf6, which is not UTF-8"):
        check(build({"evidence": {"llama-1b": str(tmp_path / "fact.txt")}}))
    (tmp_path / "fact.txt").write_bytes("\ufeffone".encode())
    assert build({"evidence": {"llama-1b": str(tmp_path / "fact.txt")}}).documents() == {"llama-1b": "one"}
