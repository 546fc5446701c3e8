"""A `.part` on the disk, the record of where it came from, and what its bytes give away.

    name.part        what has arrived so far, never anything else
    name.part.json   its origin: url, etag, last-modified, full size, sha256 it should have

A `.part` without a readable record is worthless, since nothing shows what it is the beginning of.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

MAX_RECORD_BYTES = 64 << 10
DISK_MARGIN = 16 << 20  # bytes left free for everybody else


@dataclass(frozen=True)
class Disk:
    """The two things asked of a disk, so that a full one can be tried out."""

    open: Callable[..., IO[bytes]] = open
    free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free


@dataclass(frozen=True)
class Record:
    """What `.part.json` holds. `sha256` is what the catalogue says the whole file must have, if it says so."""

    url: str
    etag: str | None
    last_modified: str | None
    total: int | None
    sha256: str | None

    @property
    def validator(self) -> str | None:
        """For If-Range: a strong etag, else the date. A weak etag promises nothing about bytes."""
        strong = self.etag if self.etag and not self.etag.startswith("W/") else None
        return strong or self.last_modified


def record_path(part: Path) -> Path:
    """Where a `.part` keeps its origin."""
    return part.with_name(part.name + ".json")


def discard(part: Path) -> None:
    """Remove a `.part` and its record."""
    part.unlink(missing_ok=True)
    record_path(part).unlink(missing_ok=True)


def wrong_content(head: bytes) -> str | None:
    """`a web page` or `a Git LFS pointer` if a file that starts like this is one, else None."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a web page"
    return "a Git LFS pointer" if start.startswith(b"version https://git-lfs") else None


def git_blob_sha1(path: Path) -> str:
    """The id git gives a file: sha1 of `blob <size>`, a zero byte and the content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_record(part: Path) -> Record | None:
    """The origin of a `.part`, or None if it is missing or not ours; then the `.part` is worthless."""
    try:
        with record_path(part).open("rb") as file:
            record = Record(**json.loads(file.read(MAX_RECORD_BYTES)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    texts = (record.url, record.etag or "", record.last_modified or "", record.sha256 or "")
    sane = all(isinstance(text, str) and text.isascii() and (text.isprintable() or not text) for text in texts)
    return record if sane and isinstance(record.total, int | None) else None


def write_record(part: Path, record: Record) -> None:
    """Keep the origin beside the `.part`, all of it or nothing."""
    target = record_path(part)
    scratch = target.with_name(target.name + ".new")
    scratch.write_text(json.dumps(asdict(record)), encoding="utf-8")
    os.replace(scratch, target)
