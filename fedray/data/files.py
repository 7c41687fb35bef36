"""Read rows of local files by their suffixes (any case, each also with .gz behind it).

Values come as they are written: no number is rounded, no NA or None becomes empty. What is wrong is refused here, with
file and line: no UTF-8, no JSON, a damaged archive, a line with too few cells.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from fedray.text import check_text, decode_text
from fedray.types import FedrayError

# Of data sets
FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".arrow": "arrow"}
SUFFIXES = (".txt", *FORMATS)  # of questions, too
_REMEDY = 'write rows such as {"question": "..."}'
Found = Iterator[tuple[str, Any]]  # "line 3" or "row 3", and what stands there: a row, or whatever is in its place


def suffix(path: Path) -> str:
    """Get a file's suffix in lower case, without the .gz behind it."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def is_packed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def rows(path: Path) -> Found:
    """Read place and content of every row, in the file's order; a .txt has a question on each line.

    Raises FedrayError, one sentence with file and line: no such file, an unknown suffix, content that is not what the
    suffix says.
    """
    reader = _READERS.get(suffix(path))
    if reader is None:
        raise FedrayError(
            f"{path} is of an unknown kind: name it {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, as it is"
        )
    try:
        with _open(path) as file:
            yield from reader(file, path)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise FedrayError(f"{path} cannot be read ({reason}): mend it or name another") from error


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if is_packed(path) else path.open("rb")  # pyright: ignore[reportReturnType]


def _text(file: IO[bytes], path: Path) -> Found:
    for number, line in _lines(decode_text(file.read(), str(path))):
        yield f"line {number}", {"question": line}


def _json_lines(file: IO[bytes], path: Path) -> Found:
    for number, line in enumerate(file, 1):
        text = decode_text(line, str(path), number)
        if text.strip():
            yield f"line {number}", _row(text, f"{path}, line {number}")


def _json_whole(file: IO[bytes], path: Path) -> Found:
    """Read a list of rows, {"data": [rows]}, or rows line by line."""
    text = decode_text(file.read(), str(path))
    lines = list(_lines(text))
    if len(lines) > 1 and all(line[0] + line[-1] == "{}" for _, line in lines):
        for number, line in lines:
            yield f"line {number}", _row(line, f"{path}, line {number}")
        return
    found = _json(text, str(path)) if lines else []
    listed = found.get("data") if isinstance(found, dict) else found
    if not isinstance(listed, list):
        raise FedrayError(
            f'{path} must be a list of rows, or {{"data": [rows]}}: put [ ] around them, or name the file .jsonl'
        )
    for number, row in enumerate(listed, 1):
        yield f"row {number}", _whole(row, text, f"{path}, row {number}")


def _row(text: str, where: str) -> Any:
    return _whole(_json(text, where), text, where)


def _json(text: str, where: str) -> Any:
    """Read JSON; decimals stay as they are written. Raises FedrayError."""
    try:
        return json.loads(text, parse_float=str)
    except RecursionError as error:
        raise FedrayError(f"{where} is nested too deeply: {_REMEDY}") from error
    except ValueError as error:
        raise FedrayError(f"{where} is not JSON ({error}): {_REMEDY}") from error


def _whole(row: Any, text: str, where: str) -> Any:
    """Validate that no escape in a row's text is half a character, and return the row. Raises FedrayError."""
    if "\\u" in text:
        try:
            check_text(json.dumps(row, ensure_ascii=False), where)
        except RecursionError as error:
            raise FedrayError(f"{where} is nested too deeply: {_REMEDY}") from error
    return row


def _cells(delimiter: str) -> Callable[[IO[bytes], Path], Found]:
    def read(file: IO[bytes], path: Path) -> Found:
        text = io.StringIO(decode_text(file.read(), str(path)), newline="")
        lines = csv.reader(text, delimiter=delimiter, strict=True)
        header: list[str] = []
        began = 1
        try:
            for cells in lines:
                where, place, began = f"{path}, line {began}", f"line {began}", lines.line_num + 1
                if not any(cell.strip() for cell in cells):
                    continue
                if not header:
                    header = _header(cells, where)
                elif len(cells) != len(header):
                    raise FedrayError(f"{where} has {len(cells)} cells, and the header {len(header)}: mend or quote it")
                else:
                    yield place, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise FedrayError(f"{path}, line {began} cannot be read ({error}): mend or quote it") from error

    return read


def _header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise FedrayError(f"{where} names the column {twice!r} twice: rename one")
    return names


def _tables(file: IO[bytes], path: Path) -> Found:
    """Read Parquet, or Arrow as `datasets` keeps it."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise FedrayError(f"{path} needs {error.name}: pip install 'fedray[evaluation]'") from error
    content = io.BytesIO(file.read()) if is_packed(path) else file
    try:
        parquet = suffix(path) == ".parquet"
        batches = pq.ParquetFile(content).iter_batches(1000) if parquet else pa.ipc.open_stream(content)
        yield from _batches(batches, path)
    except pa.ArrowException as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise FedrayError(f"{path} cannot be read ({reason}): mend it or name another") from error


def _batches(batches: Any, path: Path) -> Found:
    number = 0
    for batch in batches:
        try:
            found = batch.to_pylist()
        except UnicodeDecodeError:
            found = _one_by_one(batch, path, number)
        for row in found:
            number += 1
            yield f"row {number}", row


def _one_by_one(batch: Any, path: Path, before: int) -> Iterator[Any]:
    """Read the rows up to the one that is no UTF-8, which is refused."""
    for index in range(batch.num_rows):
        try:
            yield from batch.slice(index, 1).to_pylist()
        except UnicodeDecodeError as error:
            where = f"{path}, row {before + index + 1}"
            raise FedrayError(f"{where} has text that is not UTF-8 ({error}): convert it to UTF-8") from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Number the lines that are not blank."""
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip():
            yield number, line.strip()


_READERS: dict[str, Callable[[IO[bytes], Path], Found]] = {
    ".txt": _text,
    ".jsonl": _json_lines,
    ".json": _json_whole,
    ".csv": _cells(","),
    ".tsv": _cells("\t"),
    ".parquet": _tables,
    ".arrow": _tables,
}
