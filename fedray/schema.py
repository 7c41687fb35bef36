"""Parse nested mappings into frozen dataclasses by their type hints, or raise one sentence on the wrong setting."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from fedray.errors import FedrayError, nearest, unknown
from fedray.text import check_text

T = TypeVar("T")
_hints = cache(get_type_hints)
_WANTED = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


def within(default: Any, low: float, high: float = math.inf) -> Any:
    """Declare a dataclass field with its default and the range of its number, or of every number of its tuple."""
    return field(default=default, metadata={"range": (low, high)})


def check_range(path: str, value: float | None, low: float, high: float = math.inf) -> None:
    """Validate a number by the name of its setting; None is in every range. Raises FedrayError."""
    if value is None or (math.isfinite(value) and low <= value <= high):
        return
    wanted = f"at least {low}" if high == math.inf else f"from {low} to {high}"
    wanted += "" if math.isfinite(value) else " and finite"
    raise FedrayError(f"{path} must be {wanted}, got {value}")


def picked(cls: type[T], *sources: object, **others: Any) -> T:
    """Make a dataclass of `others` and, by its fields' names, of attributes of the sources; the first that has one."""
    names = {of.name for of in fields(cast(Any, cls)) if of.init} - others.keys()
    found = {name: getattr(source, name) for source in reversed(sources) for name in names if hasattr(source, name)}
    return cls(**found, **others)


def attributes(source: object, *names: str) -> dict[str, Any]:
    """Read some attributes, by name."""
    return {name: getattr(source, name) for name in names}


class Schema(Generic[T]):
    """A parser of values into one dataclass.

    keys: those that mappings may have, by dotted path. kinds: base dataclass -> name -> the dataclass that stands for
    it where values have that `name`.

    Understood hints: str, int, float, bool, Path, Literal, X | None, tuple[X, ...], Mapping[str, X], dataclasses,
    X | Y, which are told apart by their type, dataclasses by their keys, and Any.
    Where a dataclass is wanted, a bare value stands for its first field: gate="open" is gate={"kind": "open"}.
    """

    def __init__(
        self,
        root: type[T],
        keys: Mapping[str, tuple[str, ...]] | None = None,
        kinds: Mapping[type, Mapping[str, type]] | None = None,
    ) -> None:
        self.root = root
        self.keys = keys or {}
        self.kinds = kinds or {}
        self.names = tuple(self._walk(root, ""))

    def with_keys(self, more: Mapping[str, tuple[str, ...]]) -> Schema[T]:
        """Copy the schema with further keys of mappings."""
        keys = {path: (*keys, *more.get(path, ())) for path, keys in self.keys.items()}
        return Schema(self.root, keys, self.kinds)

    def read(self, values: Mapping[str, Any] | T) -> T:
        """Parse nested values.

        Raises FedrayError on an unknown or a missing key, an unknown choice, a wrong type or a number out of range.
        """
        return cast(T, self._dataclass(self.root, values, ""))

    def hint(self, path: str) -> Any:
        """Find the type of a setting by its dotted name, without None; None for what is no setting."""
        hint: Any = self.root
        for part in path.split("."):
            if is_dataclass(hint):
                among = (get_type_hints(kind) for kind in (hint, *self.kinds.get(cast(type, hint), {}).values()))
                hint = next((found[part] for found in among if part in found), None)
            elif get_origin(hint) is Mapping:
                hint = get_args(hint)[1]
            else:
                return None
            kinds = [kind for kind in get_args(hint) if kind is not type(None)]
            if get_origin(hint) in (Union, UnionType) and len(kinds) == 1:
                (hint,) = kinds
        return hint

    def unknown(self, path: str) -> FedrayError:
        """Make the error for a setting that does not exist."""
        close = nearest(path, self.names, count=2)
        if close:
            return FedrayError(f"unknown setting {path!r}: did you mean {' or '.join(close)}?")
        parent = path.rpartition(".")[0] + "."
        inside = [name for name in self.names if name.startswith(parent) and name.count(".") == path.count(".")]
        choices = sorted({name.split(".")[0] for name in self.names}) if not inside or parent == "." else inside
        return FedrayError(f"unknown setting {path!r}: choose one of {', '.join(choices)}")

    def _walk(self, hint: Any, path: str) -> Iterator[str]:
        """List every dotted name below a hint, branches included."""
        prefix = f"{path}." if path else ""
        if path:
            yield path
        if is_dataclass(hint):
            kinds = (hint, *self.kinds.get(cast(type, hint), {}).values())
            for name, inner in {name: inner for kind in kinds for name, inner in _fields(kind).items()}.items():
                yield from self._walk(inner, prefix + name)
        elif get_origin(hint) is Mapping:
            for key in self.keys.get(path, ()):
                yield from self._walk(get_args(hint)[1], prefix + key)

    def _read(self, hint: Any, value: Any, path: str) -> Any:
        if hint is Any:
            return value
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in (Union, UnionType):
            kinds = [argument for argument in arguments if argument is not type(None)]
            return None if value is None else self._read(_fitting(kinds, value), value, path)
        if is_dataclass(hint):
            return self._dataclass(cast(type, hint), value, path)
        if origin is Literal:
            if value not in arguments:
                raise unknown(path.removesuffix(".name").removesuffix(".kind"), value, arguments)
            return value
        if origin is tuple:
            if not isinstance(value, list | tuple):
                example = value if isinstance(value, str) else "a,b"
                raise FedrayError(f"{path} must be a list such as [{example}], got {_shown(value)}")
            return tuple(self._read(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
        if origin is Mapping:
            return self._mapping(arguments[1], value, path)
        return _scalar(hint, value, path)

    def _dataclass(self, cls: type, value: Any, path: str) -> Any:
        if cls in self.kinds:
            cls, value = self._kind(cls, value, path)
        hints = {of.name: _hints(cls)[of.name] for of in fields(cls) if of.init}
        if isinstance(value, cls):
            value = attributes(value, *hints)
        elif value is None:
            raise FedrayError(f"{path} must be a setting of its own, got null")
        elif not isinstance(value, Mapping):
            value = {next(iter(hints)): value}
        prefix = f"{path}." if path else ""
        for key in value:
            if key not in hints:
                raise self._foreign(cls, f"{prefix}{key}") or self.unknown(f"{prefix}{key}")
        read = {key: self._read(hints[key], inner, prefix + key) for key, inner in value.items()}
        for of in fields(cls):
            if (limits := of.metadata.get("range")) and of.name in read:
                found = read[of.name]
                for number in found if isinstance(found, tuple) else (found,):
                    if not isinstance(number, str):
                        check_range(prefix + of.name, number, *limits)
        needed = (of for of in fields(cls) if of.default is MISSING and of.default_factory is MISSING)
        if absent := [f"{prefix}{of.name}" for of in needed if of.name not in read]:
            raise FedrayError(f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} missing")
        return cls(**read)

    def _kind(self, base: type, value: Any, path: str) -> tuple[type, Any]:
        """The kind that a value names, or is, and the rest of the value."""
        kinds = self.kinds[base]
        if isinstance(value, base):
            return type(value), value
        value = dict(value) if isinstance(value, Mapping) else {"name": value}
        if "name" not in value:
            raise FedrayError(f"{path}.name is missing: choose one of {', '.join(kinds)}")
        return kinds[self._read(Literal[tuple(kinds)], value.pop("name"), f"{path}.name")], value

    def _foreign(self, cls: type, path: str) -> FedrayError | None:
        """The error for a key that another kind has."""
        parent, _, key = path.rpartition(".")
        for kinds in self.kinds.values():
            own = next((name for name, kind in kinds.items() if kind is cls), None)
            others = [name for name, kind in kinds.items() if key in _fields(kind)]
            if own and others:
                return FedrayError(
                    f"{path} belongs to {parent}={' or '.join(others)}, not to {own}: leave it out, or choose that"
                )
        return None

    def _mapping(self, hint: Any, value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise FedrayError(f"{path} must be a mapping of names, got {_shown(value)}")
        for key, inner in value.items():
            if path in self.keys and key not in self.keys[path]:
                deeper = next(iter(inner), "") if isinstance(inner, Mapping) else ""
                raise self.unknown(".".join(filter(None, (path, key, deeper))))
        return {key: self._read(hint, inner, f"{path}.{key}") for key, inner in value.items()}


def changed(value: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Name the parts of a dataclass as they are but for the changes, for a schema to read.

    Of a part that is settings of its own only what is named changes, unless that is another kind by its `name`.
    """
    parts = attributes(value, *_keys(value))
    own = {name: part for name, part in parts.items() if is_dataclass(part)}
    for name, change in changes.items():
        partly = name in own and isinstance(change, Mapping) and "name" not in change
        parts[name] = {**attributes(own[name], *_keys(own[name])), **change} if partly else change
    return parts


def _fitting(kinds: Sequence[Any], value: Any) -> Any:
    """Find the kind that a value is of (of dataclasses, the one that has all its keys); else the first."""
    return next((kind for kind in kinds if _fits(kind, value)), kinds[0])


def _fits(kind: Any, value: Any) -> bool:
    if isinstance(value, Mapping):
        return is_dataclass(kind) and value.keys() <= _keys(kind)
    return value in get_args(kind) if get_origin(kind) is Literal else type(value) is kind


def _fields(cls: Any) -> dict[str, Any]:
    """Names and types of a dataclass's fields."""
    return {of.name: _hints(cls)[of.name] for of in fields(cls)}


def _keys(kind: Any) -> set[str]:
    return {of.name for of in fields(kind)}


def _scalar(hint: type, value: Any, path: str) -> Any:
    if isinstance(value, str | Path):
        check_text(str(value), path)
    if hint is Path and isinstance(value, str | Path):
        return Path(os.path.expanduser(value))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise FedrayError(f"{path} is too large a number") from error
    if hint is Path or type(value) is not hint:
        raise FedrayError(f"{path} must be {_WANTED[hint]}, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """Format a value as on the command line."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
