"""Parsing of the command line before Hydra: names, folders and prompts are free text, whatever Hydra's grammar.

A setting whose type is text, a path or a list of texts takes what the shell passes as it is; Hydra receives it in the
quotes of its grammar. Three things mean something else: `null` alone unsets a setting; a value, or an item of a list,
that is one quoted string as a whole means what is between the quotes; a comma separates the items of a list and, with
-m, the runs of a sweep, unless it stands between such quotes.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from fedray.llm.catalogue import is_foreign, safe_name
from fedray.schema import Schema
from fedray.text import check_text
from fedray.types import FedrayError

_MULTIRUN = frozenset({"-m", "--multirun", "hydra.mode=MULTIRUN"})
_WORDS = r"prompt|hash|evidence\..+|(?:.+\.)?(?:label|revision|uri|experiment|namespace)"
_NO_PATH = re.compile(_WORDS)  # ~ means nothing
_WHOLE = re.compile(rf"{_WORDS}|name|to|source")  # commas are part of it
_FUNCTION = re.compile(r"(?:choice|shuffle|sort)\(.*\)", re.DOTALL)  # of Hydra's sweeps
_PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)$)[a-z][a-z0-9_.:/-]*", re.IGNORECASE | re.ASCII)
_QUOTED = r"""(["'])(?:\\.|(?!{0})[^\\])*{0}"""
_ITEM = re.compile(rf"[ \t]*(?:({_QUOTED.format(chr(92) + '2')})|([^,]*?))[ \t]*(?:,|\Z)", re.DOTALL)
_WHOLLY_QUOTED = re.compile(_QUOTED.format(r"\1"), re.DOTALL)


def overrides(
    arguments: Sequence[str], schema: Schema[Any], words: Sequence[str] = (), groups: Collection[str] = ()
) -> list[str]:
    """Translate arguments into Hydra's grammar; words: settings that bare words stand for, in their order; groups:
    Hydra's own.

    Raises FedrayError on an argument that is no Unicode, an empty path, and a list without an end.
    """
    for argument in arguments:
        check_text(argument, f"the argument {argument!r}")
    sweeps = not _MULTIRUN.isdisjoint(arguments)
    known = frozenset((*schema.names, *groups))
    return [_override(argument, schema, known, sweeps, arguments) for argument in _named(arguments, words)]


def quoted(text: str) -> str:
    """Quote a text for Hydra: escaped are quotes, and the backslashes in front of one."""
    return '"' + re.sub(r'(\\*)("|\Z)', lambda m: m[1] * 2 + ('\\"' if m[2] else ""), text) + '"'


def literal(text: str) -> str:
    """Escape interpolations: ${, and the backslashes in front of one."""
    return re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + r"\${", text)


def for_shell(argument: str) -> str:
    """Quote an argument for the shell."""
    key, equals, value = argument.partition("=")
    readable = equals and re.fullmatch(r"[\w.-]+", key) and not value.startswith(("[", "{"))
    return f"{key}={shlex.quote(value)}" if readable else shlex.quote(argument)


def uncut(argument: str, arguments: Sequence[str]) -> str:
    """Join an argument that the shell has split at unquoted spaces."""
    pieces: list[list[str]] = [[]]
    for piece in arguments:
        if "=" in piece or piece.startswith("-"):
            pieces.append([])
        pieces[-1].append(piece)
    return next((" ".join(cut) for cut in pieces if argument in cut), argument)


def _named(arguments: Sequence[str], words: Sequence[str]) -> Iterator[str]:
    """Name bare words: show llama-1b becomes action=show name=llama-1b."""
    left = iter(words)
    for argument in arguments:
        is_path = argument.startswith(("./", "../", "/", "~/"))
        bare = is_path or ("=" not in argument and not argument.startswith(("-", "+", "~")))
        word = next(left, None) if bare else None
        yield f"{word}={argument}" if word else argument


def _override(
    argument: str, schema: Schema[Any], known: Collection[str], sweeps: bool, arguments: Sequence[str]
) -> str:
    key, equals, value = argument.partition("=")
    key, name = _key(key, known)
    kind = schema.hint(name)
    if not equals or value == "null" or kind not in (str, Path, tuple[str, ...]):
        return f"{key}{equals}{value}"
    if kind is Path and value in ("", "''", '""'):
        raise FedrayError(f"{name} is empty: name a folder or a file, or leave it out")
    if kind == tuple[str, ...] and value.startswith("["):
        if not value.rstrip().endswith("]"):
            whole = uncut(argument, arguments)
            whole = whole if whole.endswith("]") else argument.rstrip(", ") + "]"
            raise FedrayError(
                f"cannot read the argument {argument!r}: the list has no end; quoted for the shell it is "
                f"{for_shell(whole)}"
            )
        lists = [_items(one[1:-1]) for one in re.split(r"(?<=\])\s*,\s*(?=\[)", value.strip())]
        for items in lists:
            _check_commas(items, f"{name}=[{{}}]")
        return f"{key}=" + ",".join(f"[{','.join(_text(item, name) for item in items)}]" for items in lists)
    if kind is Path or _WHOLE.fullmatch(name):
        return f"{key}={_text(value, name)}"
    if sweeps and _FUNCTION.fullmatch(value):
        return f"{key}={value}"
    one = not sweeps and is_foreign(value)  # a folder with a comma in its name; names of the catalogue have none
    items = [value] if one else _items(value) or [""]
    _check_commas(items, f"{name}={{}}")
    return f"{key}=" + ",".join(_text(item, name) for item in items)


def _key(key: str, known: Collection[str]) -> tuple[str, str]:
    """Split a key into its form for Hydra and the setting it names; + before an existing setting is dropped."""
    name = key.lstrip("+")
    group, _, rest = name.partition(".")
    member, _, its = (rest, "", "") if group == "evidence" else rest.rpartition(".")
    if group in ("evidence", "members") and member:  # a member's own name has dots, and any decoder may be one
        name = ".".join(filter(None, (group, safe_name(member), its)))
        return f"++{name}", name
    return (name if name in known else key), name


def _items(text: str) -> list[str]:
    """Split a text at the commas outside quotes; the quotes of items stay."""
    items, at = [], 0
    while at < len(text) or (at and text[at - 1] == ","):
        found = _ITEM.match(text, at)
        assert found is not None, "the unquoted form takes anything"
        items.append(found[1] or found[3])
        if found.end() == len(text) and not found[0].endswith(","):
            break
        at = found.end()
    return items


def _check_commas(items: Sequence[str], form: str) -> None:
    """Check that no existing folder was split at a comma of its name. Raises FedrayError; form: around the items."""
    for first, item in enumerate(items):
        for end in range(first + 2, len(items) + 1) if is_foreign(item) else ():
            whole = ",".join(items[first:end])
            if os.path.exists(os.path.expanduser(whole)) and not os.path.exists(os.path.expanduser(item)):
                good = form.format(",".join((*items[:first], quoted(whole), *items[end:])))
                raise FedrayError(f"{whole} is one folder with a comma in its name: quote it, as in {for_shell(good)}")


def _text(value: str, name: str) -> str:
    """Quote a free text so that Hydra returns it unchanged: its own quotes removed, ~ expanded, quoted anew."""
    if _WHOLLY_QUOTED.fullmatch(value):
        value = re.sub(rf"(\\+)({value[0]}|\Z)", lambda m: m[1][: len(m[1]) // 2] + m[2], value[1:-1])
    if not _NO_PATH.fullmatch(name):
        value = os.path.expanduser(value)
    if name == "output":  # Hydra's own folder: hydra.run.dir, with its ${now:...}, and ??? would be none
        return quoted("./???" if value == "???" else value)
    return value if _PLAIN.fullmatch(value) else quoted(literal(value))
