"""What a batch is to make: the rows of a table, or the texts and sounds of a folder, checked one by one.

    id,text,key
    greeting,"Good morning, everybody.",
    low,The same voice a little lower.,-3

Columns: `text` or `audio` (one of both in each row), and where wanted `id`, `voice`, `engine`, `reference`,
`transcript`, and any field of ConversionSettings. An item that cannot be made keeps its place, with the reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rvc_spark.errors import ConfigError, RvcSparkError, TextError
from rvc_spark.folder_conversion import SOUND_SUFFIXES
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.jobs.batch_csv import CsvRow, read_small_file, read_table
from rvc_spark.jobs.batch_names import distinct_names, id_problem
from rvc_spark.processing.utils import normalise_text
from rvc_spark.tts.choose import ENGINES

TEXT_SUFFIXES = frozenset({".txt", ".md"})
TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".txt"})
MAX_ITEMS = 50_000
MAX_TEXT_BYTES = 1 << 20  # of one file; longer ones hold more than may be spoken at once anyway
MAX_FOLDER_TEXT_BYTES = 64 << 20
OWN_COLUMNS = ("id", "text", "audio", "voice", "engine", "reference", "transcript")
COLUMNS = (*OWN_COLUMNS, *ConversionSettings.names())
EXAMPLE = """id,text,key
welcome,"Good morning, and welcome aboard.",
question,How many roads must a voice walk down?,
low,The same voice five semitones lower.,-5
"""

_KINDS = {item.name: str(item.type) for item in fields(ConversionSettings)}
_MARKDOWN = (  # headings, quotations and bullets at the start of a line; emphasis, code, links and pictures within
    (re.compile(r"^[ ]{0,3}(#{1,6}\s+|>\s?)", re.MULTILINE), ""),
    (re.compile(r"!?\[([^][\n]*)\]\([^()\n]*\)"), r"\1"),
    (re.compile(r"(\*{1,3}|_{2,3}|`{1,3}|~~)(?=\S)([^*_`~\n]+)(?<=\S)\1"), r"\2"),
)


@dataclass(frozen=True)
class BatchEntry:
    """One item: a text to be spoken or a sound to be converted, or an `error` that says why neither.

    id: unlike every other one. name: of its files, without suffix; may lead through folders. place: where it was found,
    in words. number: its place in the order, from 1. settings: fields of ConversionSettings that the row sets. None
    everywhere else: as the batch has it.
    """

    id: str
    name: str
    place: str
    number: int = 0
    text: str | None = None
    audio: Path | None = None
    voice: str | Path | None = None
    engine: str | None = None
    reference: Path | None = None
    transcript: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    error: RvcSparkError | None = None

    @property
    def title(self) -> str:
        """What it is, for people: the text, or the name of the recording."""
        return self.text or (self.audio.name if self.audio else "")


@dataclass(frozen=True)
class BatchList:
    """All items in order. notes: what a person should know, such as columns that were not used."""

    source: Path
    entries: tuple[BatchEntry, ...]
    notes: tuple[str, ...] = ()


def read_batch(source: str | Path, *, output: Path | None = None, outside: bool = False) -> BatchList:
    """Read a table or look through a folder. What is wrong with one item is in its entry.

    Args:
        source: a .csv, .tsv or .txt file (UTF-8; commas, semicolons or tabs), or a folder.
        output: a folder that is left out, because results lie there.
        outside: let rows name files that do not lie in the folder of the table.

    Raises ConfigError: no list and no folder, nothing in it, more than MAX_ITEMS.
    """
    source = Path(source)
    if source.is_dir():
        return _read_folder(source, output)
    if source.suffix.lower() not in TABLE_SUFFIXES:
        raise ConfigError(
            f"{str(source)!r:.300} is no list: it is neither a folder nor one of {' '.join(sorted(TABLE_SUFFIXES))}",
            "Give a CSV file with a column text or audio, or a folder.",
        )
    return _read_csv(source, outside)


def example_batch(folder: str | Path) -> Path:
    """A list of three sentences to try things with, as `example.csv` in the folder. Raises OSError's as they come."""
    path = Path(folder) / "example.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != EXAMPLE:
        path.write_text(EXAMPLE, encoding="utf-8")
    return path


# ---- a table ---------------------------------------------------------------------------------------------------------


def _read_csv(path: Path, outside: bool) -> BatchList:
    table = read_table(path, COLUMNS, MAX_ITEMS)
    if not {"text", "audio"} & set(table.header):
        raise ConfigError(f"{path.name!r} has neither a column text nor a column audio", "Add one of them.")
    if not table.rows:
        raise ConfigError(f"{path.name!r} holds no rows", "Write one row per text below the header.")
    reader = _RowReader(path.parent, table.header, table.delimiter, outside)
    entries = [reader.entry(row) for row in table.rows]
    return BatchList(path, _named(entries), reader.notes())


class _RowReader:
    """Rows of one table to entries; remembers which ids are taken."""

    def __init__(self, folder: Path, header: tuple[str, ...], delimiter: str, outside: bool) -> None:
        self._folder, self._header, self._delimiter, self._outside = folder, header, delimiter, outside
        self._places: dict[str, str] = {}

    def notes(self) -> tuple[str, ...]:
        """Columns that are not used, with the known name that was perhaps meant."""
        notes = []
        for name in self._header:
            if name and name not in COLUMNS:
                near = get_close_matches(name, COLUMNS, n=1)
                notes.append(f"column {name!r:.60} is not used{f'; is {near[0]} meant?' if near else ''}")
        return tuple(notes)

    def entry(self, row: CsvRow) -> BatchEntry:
        """One row; with an error in it where something is wrong."""
        place = f"row {row.number} (line {row.line})"
        entry = BatchEntry("", "", place)
        try:
            if row.problem:
                raise ConfigError(f"{place}: {row.problem}", 'Write " as "" inside a quoted cell, and close it.')
            cells = self._cells(row, place)
            text, audio = cells.get("text"), cells.get("audio")
            entry = replace(entry, id=self._id(cells.get("id"), place), text=text)
            if (text is None) == (audio is None):
                problem = "has both text and audio" if text else "has neither text nor audio"
                raise ConfigError(f"{place} {problem}", "Fill one of the two columns.")
            if text is not None:
                _check_text(text, f"{place}, column text")
            return self._filled(entry, cells)
        except RvcSparkError as error:
            return replace(entry, error=error)

    def _cells(self, row: CsvRow, place: str) -> dict[str, str]:
        """Name -> value of the cells that are not empty."""
        extra = [cell for cell in row.cells[len(self._header) :] if cell.strip()]
        if extra:
            raise ConfigError(
                f"{place} has {len(row.cells)} cells, the header {len(self._header)}; the first too many is "
                f"{extra[0]!r:.80}",
                f"A text that holds {self._delimiter!r} needs quotation marks around it.",
            )
        cells = {name: cell.strip() for name, cell in zip(self._header, row.cells, strict=False) if cell.strip()}
        for name, value in cells.items():
            if any("\ud800" <= letter <= "\udfff" for letter in value):
                raise ConfigError(
                    f"{place}, column {name!r:.60}: {_printable(value)} is not UTF-8", "Save the list as 'CSV UTF-8'."
                )
        return cells

    def _id(self, value: str | None, place: str) -> str:
        if value is None:
            return ""
        problem = id_problem(value)
        if problem is None and value in self._places:
            problem = f"it is also the id of {self._places[value]}"
        if problem is not None:
            raise ConfigError(
                f"{place}, column id: {_printable(value)} cannot be used, {problem}",
                "Give each row an id of its own: up to 100 letters, digits, '-' and '_'.",
            )
        self._places[value] = place
        return value

    def _filled(self, entry: BatchEntry, cells: dict[str, str]) -> BatchEntry:
        place = entry.place
        engine = cells.get("engine")
        if engine is not None and engine not in ("auto", *ENGINES):
            raise ConfigError(
                f"{place}, column engine: {engine!r:.60} is unknown", f"Choose auto, {', '.join(ENGINES)}."
            )
        voice: str | Path | None = cells.get("voice")
        if voice is not None and voice.endswith(".pth"):
            voice = self._file(voice, f"{place}, column voice")
        files = {
            name: self._file(cells[name], f"{place}, column {name}") if name in cells else None
            for name in ("audio", "reference")
        }
        return replace(
            entry, **files, voice=voice, engine=engine, transcript=cells.get("transcript"),
            settings=self._settings(cells, place),
        )  # fmt: skip

    def _settings(self, cells: dict[str, str], place: str) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        for name in _KINDS:
            if name not in cells:
                continue
            where = f"{place}, column {name}"
            value = _setting(name, cells[name], where)
            settings[name] = str(self._file(value, where)) if name == "f0_curve" else value
            try:
                ConversionSettings().changed(**{name: settings[name]})
            except RvcSparkError as error:
                raise type(error)(f"{where}: {error.problem}", error.next_step) from error
        return settings

    def _file(self, value: str, where: str) -> Path:
        """A file a row names, below the folder of the table. A list from elsewhere must not reach what is not its."""
        try:
            path = (self._folder / value).resolve()
            inside = self._outside or path.is_relative_to(self._folder.resolve())
            found = inside and path.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, links in a circle
            raise ConfigError(f"{where}: {_printable(value)} is not a name of a file", "Correct it.") from error
        if not inside:
            raise ConfigError(
                f"{where}: {_printable(value)} lies outside the folder of the list",
                "Put the file beside the list, or allow it with outside=True.",
            )
        if not found:
            raise ConfigError(
                f"{where}: there is no file {_printable(value)}", "Paths start at the folder of the list."
            )
        return path


def _setting(name: str, value: str, where: str) -> Any:
    """The value of a cell as the type its setting has. Decimal commas are understood."""
    kind = _KINDS[name]
    if kind not in ("int", "float") and name != "auto_key":
        return value
    try:
        number = float(value.replace(",", "."))
        return int(number) if kind == "int" and number.is_integer() else number
    except (ValueError, OverflowError) as error:
        if name == "auto_key":
            return value
        raise ConfigError(f"{where}: {_printable(value)} is not a number", "Write it like 3 or 0.5.") from error


def _check_text(text: str, where: str) -> None:
    try:
        normalise_text(text)
    except TextError as error:
        raise TextError(f"{where}: {error.problem}", error.next_step) from error


def _printable(value: str) -> str:
    return ascii(value) if len(value) <= 80 else f"{ascii(value[:60])[:-1]}...'"


# ---- a folder --------------------------------------------------------------------------------------------------------


def _read_folder(folder: Path, output: Path | None) -> BatchList:
    entries: list[BatchEntry] = []
    size = 0
    for path in _files(folder, output):
        entry = _entry_of_file(path, path.relative_to(folder))
        size += len(entry.text or "")
        entries.append(entry)
        if len(entries) > MAX_ITEMS or size > MAX_FOLDER_TEXT_BYTES:
            raise ConfigError(
                f"{folder} holds more than {MAX_ITEMS:,} files or {MAX_FOLDER_TEXT_BYTES >> 20} million letters",
                "Divide it into several folders.",
            )
    if not entries:
        known = " ".join(sorted(TEXT_SUFFIXES | SOUND_SUFFIXES))
        raise ConfigError(f"{folder} holds no texts and no sounds", f"Known suffixes: {known}.")
    return BatchList(folder, _named(_with_ids(entries)))


def _files(folder: Path, output: Path | None) -> Iterator[Path]:
    """Texts and sounds below a folder in order. Hidden ones, links to folders and the results are left out."""
    avoided = None if output is None else output.resolve()
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and (here / name).resolve() != avoided
        )
        for name in sorted(names):
            path = here / name
            if path.suffix.lower() in TEXT_SUFFIXES | SOUND_SUFFIXES and not name.startswith("."):
                if path.is_file():
                    yield path


def _entry_of_file(path: Path, relative: Path) -> BatchEntry:
    place = relative.as_posix().encode("utf-8", "backslashreplace").decode()
    entry = BatchEntry(place, "", place)
    if path.suffix.lower() in SOUND_SUFFIXES:
        return replace(entry, audio=path)
    try:
        data = read_small_file(path, MAX_TEXT_BYTES)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise TextError(f"{place} is not UTF-8 at byte {error.start + 1}", "Save it as UTF-8.") from error
        text = spoken_markdown(text) if path.suffix.lower() == ".md" else text
        _check_text(text, place)
    except RvcSparkError as error:
        return replace(entry, error=error)
    return replace(entry, text=text)


def spoken_markdown(text: str) -> str:
    """Markdown without the marks that nobody would read out: of headings, quotations, emphasis and links."""
    for pattern, replacement in _MARKDOWN:
        text = pattern.sub(replacement, text)
    return text


def _with_ids(entries: list[BatchEntry]) -> list[BatchEntry]:
    """`sub/a.wav` is called `sub/a`, or `sub/a_wav` where there is also a `sub/a.txt`."""
    stems = [entry.id.rpartition(".")[0] for entry in entries]
    count: dict[str, int] = {}
    for stem in stems:
        count[stem.casefold()] = count.get(stem.casefold(), 0) + 1
    return [
        replace(entry, id=stem if count[stem.casefold()] == 1 else f"{stem}_{entry.id.rpartition('.')[2]}")
        for entry, stem in zip(entries, stems, strict=True)
    ]


# ---- both ------------------------------------------------------------------------------------------------------------


def _named(entries: list[BatchEntry]) -> tuple[BatchEntry, ...]:
    """Entries with an id each, by number where they have none, and with file names."""
    given = {entry.id for entry in entries}
    used: set[str] = set()
    ids = []
    for number, entry in enumerate(entries, start=1):
        text = entry.id or f"{number:04d}"
        while text in used or (not entry.id and text in given):
            text += "_"
        used.add(text)
        ids.append(text)
    names = distinct_names(ids)
    return tuple(
        replace(entry, id=text, name=name, number=number)
        for number, (entry, text, name) in enumerate(zip(entries, ids, names, strict=True), start=1)
    )
