"""What a batch has finished, kept so that no interruption loses it: one line of JSON per item, added when it is done.

    out/results.jsonl      {"id": "greeting", "status": "done", "fingerprint": ..., "file": "sounds/greeting.flac", ...}
    out/sounds/            complete files only
    out/pictures/          one spectrogram per item
    out/report.html ...    made from the above

A line is on the disk before the next item begins. A line that was cut off by a power failure is dropped; its item is
made again. The last line of an id counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from rvc_spark.errors import OutputError

RESULTS = "results.jsonl"
SOUNDS, PICTURES = "sounds", "pictures"
FORMAT = {"format": "rvc_spark batch", "version": 1}
MAX_RECORD_BYTES = 4 << 20
_LOCK = ".lock"
_LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.part")
_HASH_BLOCK = 1 << 20


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file that appears complete or not at all. Raises OutputError."""
    beside = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise _unwritable(path, error) from error
    return path


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


class BatchStore:
    """The folder of a batch, open for one process at a time; use it with `with`.

    Attributes: folder; records, id -> what is known of it.
    """

    def __init__(self, folder: str | Path) -> None:
        """Raises OutputError: not a folder, one with other things in it, or one another process works in."""
        self.folder = Path(folder)
        check_folder(self.folder)
        try:
            for name in ("", SOUNDS, PICTURES):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(self.folder / _LOCK, thread_local=False)
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise OutputError(f"another batch is at work in {self.folder}", "Wait for it, or name another.") from error
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        try:
            self._remove_leftovers()
            self.records = read_records(self.folder)
            lines = [FORMAT, *self.records.values()]
            write_whole(self.folder / RESULTS, b"".join(map(_line, lines)))  # drops what is broken or superseded
        except BaseException:
            self._lock.release()
            raise

    def add(self, record: dict[str, Any]) -> None:
        """Keep what became of an item: on the disk when this returns. Raises OutputError."""
        path = self.folder / RESULTS
        try:
            with open(path, "ab") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(path, error) from error
        self.records[record["id"]] = record

    def close(self) -> None:
        """Let others work here."""
        self._lock.release()

    def __enter__(self) -> BatchStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _remove_leftovers(self) -> None:
        """Temporary files of a process that was killed; the lock says that nobody is writing them."""
        for place, _, names in os.walk(self.folder):
            for name in filter(_LEFTOVER.fullmatch, names):
                Path(place, name).unlink(missing_ok=True)


def check_folder(folder: Path) -> None:
    """Raises OutputError unless the folder is new, empty, or that of an earlier batch: nothing else is touched."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is not a folder", "Name a folder for the results.")
    try:
        held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    except OSError as error:
        raise _unwritable(folder, error) from error
    if RESULTS not in held and held - {SOUNDS, PICTURES, _LOCK, ".ipynb_checkpoints"}:
        raise OutputError(
            f"{folder} holds other things, {sorted(held)[0]!r:.60} for one, and no {RESULTS} of an earlier batch",
            "Name a new folder for the results.",
        )


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Id -> last record, in the order of their first. A line that is no record is left out.

    Raises OutputError: the file is of something else, or of a newer version.
    """
    path = folder / RESULTS
    if not path.is_file():
        return {}
    records: dict[str, dict[str, Any]] = {}
    try:
        lines = _parsed_lines(path)
        head = next(lines, FORMAT)
        if head != FORMAT:
            raise OutputError(f"{path} is not a list of results that can be read here", "Name a new folder.")
        for record in lines:
            if isinstance(record, dict) and isinstance(record.get("id"), str):
                records[record["id"]] = record
    except OSError as error:
        raise OutputError(f"{path} cannot be read ({error.strerror})", "Check its permissions.") from error
    return records


def _parsed_lines(path: Path) -> Iterator[Any]:
    with open(path, "rb") as file:
        while line := file.readline(MAX_RECORD_BYTES):
            if not line.endswith(b"\n"):
                continue  # cut off, or far too long
            try:
                yield json.loads(line, parse_constant=_no_number)
            except (ValueError, RecursionError):
                yield None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _line(record: dict[str, Any]) -> bytes:
    """One line. Numbers are finite by now: JSON knows no others."""
    return json.dumps(record, ensure_ascii=True, allow_nan=False).encode() + b"\n"


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path} cannot be written ({error.strerror or error})", "Free some space or choose another.")
