"""Write docs/report.md from the dataclasses of report.json: `python tests/support/report_page.py > docs/report.md`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from fedray.methods.method import ProtocolSettings
from fedray.protocols import PROTOCOLS
from fedray.reporting.report import Report

_FIELD = re.compile(r"^    (\w+): ([^=#]+?)(?: = [^#]*)?(?:  # (.*))?$")


def page() -> str:
    """The whole page, as Markdown."""
    lines = [
        "# report.json, schema 2",
        "",
        "Every job leaves one. Generated from `fedray/reporting/report.py` by `tests/support/report_page.py`.",
        "Shares lie between 0 and 1; absent figures are null, never NaN. `fedray.reporting.report.read` also reads",
        "reports of schema 1, in which everything lay flat.",
        "",
    ]
    for cls in _classes(Report, {}):
        lines += _table(cls)
    return "\n".join(lines)


def _classes(cls: Any, seen: dict[Any, None]) -> dict[Any, None]:
    """The dataclasses that a report nests, each once, in the order they are met."""
    if cls not in seen:
        seen[cls] = None
        for hint in get_type_hints(cls).values():
            for inner in _inner(hint):
                _classes(inner, seen)
        if cls is ProtocolSettings:
            for protocol in PROTOCOLS.values():
                _classes(protocol.settings, seen)
    return seen


def _inner(hint: Any) -> Iterator[Any]:
    if is_dataclass(hint):
        yield hint
    for argument in get_args(hint):
        yield from _inner(argument)


def _table(cls: Any) -> Iterator[str]:
    title = (
        f"protocol {cls.name}" if issubclass(cls, ProtocolSettings) and cls is not ProtocolSettings else cls.__name__
    )
    own = {m[1]: (m[2], m[3] or "") for line in inspect.getsource(cls).splitlines() if (m := _FIELD.match(line))}
    about = " ".join(re.sub(r"\s*Source.*", "", inspect.getdoc(cls) or "").split())
    yield from (f"## {title}", "", about, "", "| key | type | |", "|---|---|---|")
    for field in fields(cls):
        hint, comment = own.get(field.name, ("str", ""))
        yield f"| {field.name} | {hint.replace('|', 'or')} | {comment.replace('|', 'or')} |"
    yield ""


if __name__ == "__main__":
    print(page(), end="")
