"""What members are asked in words: one place for every form that an LLM reads besides the user's own question.

What a peer wrote, and what a member keeps to itself, is data and never an instruction: it stands in the notes of the
prompt, one line each. What no LLM can read (invalid Unicode) is refused where it comes in.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedray.types import FedrayError


def hint_prompt(question: str) -> str:
    return f"give a hint: {question}"


def rephrase_prompt(question: str) -> str:
    return f"rephrase: {question}"


def notes_prompt(notes: Sequence[str], question: str) -> str:
    """The question under its notes, a line each; without notes the question alone."""
    lines = [one_line(note) for note in notes if note.strip()]
    return "notes:\n" + "".join(f"- {line}\n" for line in lines) + question if lines else question


def one_line(text: str) -> str:
    """A note without line breaks, which would end it."""
    return " ".join(text.split())


def check_text(text: str, where: str) -> str:
    """Refuse invalid Unicode: a lone surrogate, which no tokenizer reads and no file keeps; returns the text.

    Bytes that are no UTF-8 are lone surrogates too where they were decoded with `surrogateescape`, as Python does with
    the command line. Raises FedrayError; where: what the text is, as in "q.txt, line 3".
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            what = f"byte 0x{code - 0xDC00:02x} (\\u{code:04x}), which is not UTF-8: convert it to UTF-8"
        else:
            what = f"\\u{code:04x} without the other half of its character: write the whole character"
        raise FedrayError(f"{where} has {what}") from error
    return text


def decode_text(data: bytes, where: str, first: int = 1) -> str:
    """Decode a file's UTF-8, with or without a byte order mark. Raises FedrayError naming file and line.

    where: the file; first: the number of the line that the bytes begin with.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = first + data.count(b"\n", 0, error.start)
        raise FedrayError(
            f"{where}, line {line} has byte 0x{data[error.start]:02x}, which is not UTF-8: convert it to UTF-8"
        ) from error
