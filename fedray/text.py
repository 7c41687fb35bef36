"""Validate text that comes in as Unicode, and mask passwords in what is shown or stored."""

from __future__ import annotations

import re

from fedray.errors import FedrayError

_KEPT = frozenset("\n\t\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}")
MASKED = "://***@"
_USERINFO = re.compile(r"://[^\s/\"'<>]*@")  # greedy: a password may hold an @ of its own


def mask(text: str) -> str:
    """Mask user name and password of every URI in a text.

    >>> mask("MLflow at http://me:secret@host:5000/x fails")
    'MLflow at http://***@host:5000/x fails'
    """
    return _USERINFO.sub(MASKED, text)


def check_text(text: str, where: str) -> str:
    """Validate Unicode and return the text: a lone surrogate is read by no tokenizer and stored in no file.

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


def printable(text: str, limit: int | None = None) -> str:
    """Sanitize text of others for terminals and files, and cut it to `limit` characters.

    Control characters, escape sequences, bidirectional marks and lone surrogates go; line breaks and tabs stay, other
    white space becomes a space. The joiners of Indic and Persian scripts and of emoji stay.
    """
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    return "".join(c if c.isprintable() or c in _KEPT else " " if c.isspace() else "" for c in text)


def one_line(text: str) -> str:
    """Join the lines of a text, as of a note, which ends at a line break."""
    return " ".join(text.split())
