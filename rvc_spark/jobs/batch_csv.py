"""A table as people export it, row by row: commas, semicolons or tabs; a row that is broken spoils no other.

The reader of the standard library gives up a whole file at one stray quotation mark, or takes everything behind it for
one cell. Here such a row is reported with its line and reading goes on at the next.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rvc_spark.errors import ConfigError

MAX_LIST_BYTES = 32 << 20
MAX_COLUMNS = 100
MAX_CELL_CHARS = 1_000_000
MAX_BROKEN_ROWS = 100  # more, and it is not a table with a slip but another kind of file
DELIMITERS = (",", ";", "\t")
_NO_DELIMITER = "\x1f"  # of a table with one column, where commas belong to the text
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")


@dataclass(frozen=True)
class CsvRow:
    """One row: its number (1 is the first below the header), its line in the file, and its cells or what is wrong."""

    number: int
    line: int
    cells: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class CsvTable:
    """A header in lower case, the delimiter that was recognised, and what is below it."""

    header: tuple[str, ...]
    delimiter: str
    rows: tuple[CsvRow, ...]


class _Broken(ValueError):
    """What is wrong with a row."""


def read_small_file(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit`; ConfigError for anything else, a pipe or a device above all."""
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path.name!r} is not a plain file", "Give a file of texts, or a folder.")
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(f"{str(path)!r:.300} cannot be read ({reason})", "Check the name.") from error
    if len(data) > limit:
        raise ConfigError(f"{path.name!r} has more than {limit:,} bytes", "Divide it into several files.")
    return data


def read_table(path: Path, known: Sequence[str], max_rows: int) -> CsvTable:
    """Read a CSV file in UTF-8 with a header.

    Args:
        known: column names; the delimiter is the one with which most of them appear in the header.
        max_rows: a longer table is refused.

    Raises ConfigError: unreadable, too large, no header with a known name, the same column twice, or not a table.
    """
    data = read_small_file(path, MAX_LIST_BYTES)
    if data.startswith(_WIDE_MARKS):
        raise ConfigError(f"{path.name!r} is not UTF-8 but UTF-16 or 32", "Save it as 'CSV UTF-8'.")
    # A byte that is not UTF-8 becomes a lone surrogate, which its row is refused for; the other rows are fine.
    text = data.decode("utf-8-sig", "surrogateescape")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    start = next((number for number, line in enumerate(lines) if line.strip()), None)
    if start is None:
        raise ConfigError(f"{path.name!r} is empty", "Its first line names the columns: id,text.")
    delimiter, header = _header(lines[start], known, path)
    rows = tuple(_rows(lines, start + 1, delimiter, max_rows, path))
    return CsvTable(header, delimiter, rows)


def _header(line: str, known: Sequence[str], path: Path) -> tuple[str, tuple[str, ...]]:
    best: tuple[str, ...] = ()
    chosen = _NO_DELIMITER
    for delimiter in DELIMITERS:
        try:
            cells, _ = _record([line], 0, delimiter)
        except _Broken:
            continue
        names = tuple(cell.strip().casefold() for cell in cells)
        if len(set(names) & set(known)) > len(set(best) & set(known)):
            best, chosen = names, delimiter
    if not best:
        raise ConfigError(
            f"the first line of {path.name!r} names no known column: {line!r:.100}",
            f"Name them there: id,text. Known are {', '.join(known)}.",
        )
    if len(best) > MAX_COLUMNS:
        raise ConfigError(f"{path.name!r} has {len(best):,} columns, up to {MAX_COLUMNS} are taken", "Remove some.")
    twice = next((name for name in best if name and best.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{path.name!r} has the column {twice!r:.60} twice", "Remove or rename one.")
    return (_NO_DELIMITER if len(best) == 1 else chosen), best


def _rows(lines: list[str], start: int, delimiter: str, max_rows: int, path: Path) -> Iterator[CsvRow]:
    at, number, broken = start, 0, 0
    while at < len(lines):
        line, used = at + 1, 1
        if lines[at].strip(f" {delimiter}"):
            number += 1
            if number > max_rows:
                raise ConfigError(f"{path.name!r} has more than {max_rows:,} rows", "Divide it into several files.")
            try:
                cells, used = _record(lines, at, delimiter)
                yield CsvRow(number, line, tuple(cells))
            except _Broken as problem:
                broken += 1
                if broken > MAX_BROKEN_ROWS:
                    raise ConfigError(
                        f"{path.name!r} has broken quotation marks in more than {MAX_BROKEN_ROWS} rows",
                        "Export it again as CSV; inside a quoted cell a quotation mark is written twice.",
                    ) from problem
                yield CsvRow(number, line, problem=str(problem))
        at += used


def _record(lines: Sequence[str], at: int, delimiter: str) -> tuple[list[str], int]:
    """The cells of the row that begins at `lines[at]`, and how many lines it takes. Raises _Broken."""
    cells: list[str] = []
    line, place, used = lines[at], 0, 1
    while True:
        begin = place
        while line[begin : begin + 1] == " ":
            begin += 1
        if line[begin : begin + 1] == '"':
            cell, line, place, more = _quoted(lines, at + used - 1, begin + 1)
            used += more
            if line[place:].strip(" ") and line[place:].lstrip(" ")[0] != delimiter:
                raise _Broken("a quotation mark closes before the end of its cell")
            place = len(line) - len(line[place:].lstrip(" "))
        else:
            end = line.find(delimiter, place)
            end = len(line) if end < 0 else end
            cell, place = line[place:end], end
        cells.append(cell)
        if place >= len(line):
            return cells, used
        place += 1  # the delimiter


def _quoted(lines: Sequence[str], at: int, place: int) -> tuple[str, str, int, int]:
    """The cell behind an opened quotation mark: it, the line it ends in, the place behind it, and lines it added."""
    parts: list[str] = []
    size = more = 0
    line = lines[at]
    while True:
        end = line.find('"', place)
        parts.append(line[place:] + "\n" if end < 0 else line[place:end])
        size += len(parts[-1])
        if size > MAX_CELL_CHARS or (end < 0 and at + more + 1 >= len(lines)):
            raise _Broken("a quotation mark is opened and not closed")
        if end < 0:
            more += 1
            line, place = lines[at + more], 0
        elif line[end + 1 : end + 2] == '"':
            parts.append('"')
            place = end + 2
        else:
            return "".join(parts), line, end + 1, more
