"""One file over HTTP into a `.part` that any later process can go on with, and proof that it is the right file.

A `.part` is continued only where the server shows that its file is still the same; whatever cannot be shown is fetched
anew. Knows nothing of catalogues, locks or the final name: the caller moves the finished `.part`.
"""

from __future__ import annotations

import email.utils
import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rvc_spark.errors import AssetError, ChecksumError, DiskSpaceError, DownloadError
from rvc_spark.part_file import (
    DISK_MARGIN,
    Disk,
    Record,
    discard,
    git_blob_sha1,
    read_record,
    write_record,
    wrong_content,
)
from rvc_spark.transport import Cancelled, ConnectionTrouble, Response, Transport

HEAD_BYTES = 512  # enough to tell a web page or an LFS pointer from a file
PROGRESS_SECONDS = 0.1
MEANINGFUL_BYTES = 64 << 10  # an attempt that got this much further was not in vain
UNREACHABLE_ATTEMPTS = 2  # whoever has no network should not wait long to hear it
_BUSY = {408, 425, 429, 500, 502, 503, 504}
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True)
class Expected:
    """What the file must be. Without a sha256, `hub_digest` asks for the one the hub serves with the file."""

    name: str  # for messages
    sha256: str | None = None
    bytes: int | None = None
    max_bytes: int = 16 << 30
    hub_digest: bool = False


@dataclass(frozen=True)
class Received:
    """A finished `.part`: its digest and size, and what vouched for it: `catalogue`, `hub` or `nobody`."""

    sha256: str
    bytes: int
    vouched_by: str


class _Restart(DownloadError):
    """The `.part` is no beginning of what the source serves."""


class Download:
    """One file being fetched; `run` may be called with one source after another."""

    def __init__(
        self, transport: Transport, part: Path, expected: Expected,
        report: Callable[[int, int | None, str], None], disk: Disk | None = None,
    ) -> None:  # fmt: skip
        self.transport, self.part, self.report = transport, part, report
        self.disk = disk or Disk()
        self.expected = expected
        self.sha256, self.bytes = expected.sha256, expected.bytes  # the hub may fill these in
        self.git_sha1: str | None = None
        self.digest, self.offset = hashlib.sha256(), 0  # of the first `offset` bytes of the .part
        self._fresh = True  # every byte of the .part came in this very run
        self._last_report = 0.0

    def run(self, url: str) -> Received:
        """Fetch from one source, with as many attempts as the options allow.

        Raises ChecksumError, DiskSpaceError, Cancelled, or DownloadError saying what the source did.
        """
        failures, furthest, restarts = 0, self.part.stat().st_size if self.part.exists() else 0, 0
        while True:
            try:
                return self._attempt(url)
            except _Restart as why:
                restarts += 1
                if restarts > 2:
                    raise DownloadError(why.problem, why.next_step) from why
                self._start_over()
                self.report(0, self.bytes, f"starting again: {why.problem}")
            except ConnectionTrouble as trouble:
                failures = 1 if self.offset >= furthest + MEANINGFUL_BYTES else failures + 1
                furthest = max(furthest, self.offset)
                allowed = self.transport.options.attempts
                if failures >= (min(allowed, UNREACHABLE_ATTEMPTS) if trouble.unreachable else allowed):
                    problem = f"{trouble.problem} ({failures} attempts in a row without progress)"
                    raise DownloadError(problem, trouble.next_step) from trouble
                self._wait(trouble, failures)

    def _wait(self, trouble: ConnectionTrouble, failures: int) -> None:
        options = self.transport.options
        seconds = min(30.0, options.backoff_seconds * 2 ** (failures - 1))
        if trouble.wait is not None:
            seconds = min(max(seconds, trouble.wait), options.retry_after_cap)
        self.report(self.offset, self.bytes, f"{trouble.problem}; again in {seconds:.0f} s")
        if self.transport.cancel.wait(seconds):
            raise Cancelled("the download was cancelled", "Start it again to go on where it stopped.")

    def _attempt(self, url: str) -> Received:
        record = self._resume(url)
        vouched = self.sha256 or self.git_sha1 or not self.expected.hub_digest
        if self.offset and self.offset == self.bytes and vouched:
            return self._finish()
        headers = {}
        if self.offset and record is not None:
            headers["Range"] = f"bytes={self.offset}-"
            if record.url == url and record.validator:
                headers["If-Range"] = record.validator
        with self.transport.get(url, headers) as response:
            total = self._accept(response, record, url)
            self._check_room(total)
            self._write(response, total)
        return self._finish()

    def _resume(self, url: str) -> Record | None:
        """Find out how much of the `.part` may be used: sets `offset` and `digest`, removes what cannot be trusted."""
        size = self.part.stat().st_size if self.part.exists() else 0
        record = read_record(self.part)
        if size == 0 or record is None or not self._usable(record, size, url):
            self._start_over()
            return None
        if record.url != url:
            self._fresh = False  # should the whole be wrong, nobody could say which source's piece is
        if size != self.offset:
            self.report(0, self.bytes, "checking what is there already")
            self.digest, self.offset, self._fresh = hashlib.sha256(), 0, False
            with self.disk.open(self.part, "rb") as file:
                while block := file.read(1 << 20):
                    self._check_cancel()
                    self.digest.update(block)
                    self.offset += len(block)
        return record

    def _usable(self, record: Record, size: int, url: str) -> bool:
        total = self.bytes if self.bytes is not None else record.total
        if record.sha256 != self.expected.sha256 or (total is not None and size > total):
            return False
        if record.url == url and record.validator:
            return True
        # another mirror, or a server without validators: only a known sha256 can show that the pieces fit
        return self.expected.sha256 is not None and total is not None

    def _accept(self, response: Response, record: Record | None, url: str) -> int | None:
        """Judge the answer's head: returns the full size if it is known, and sets `offset` to where the body goes."""
        _refuse_status(response, asked_for_range=bool(self.offset))
        headers = response.headers
        if headers.get("content-encoding", "identity") != "identity":
            raise DownloadError("the server compresses what it was asked to send plainly", "Try another source.")
        if self.expected.sha256 is None and self.expected.hub_digest:
            self._take_hub_digest(response)
        length = headers.get("content-length", "")
        total = int(length) if length.isdecimal() and len(length) < 19 else None
        if response.status == 206:
            total = self._check_range(headers, record, url)
        elif self.offset:  # 200: the range was ignored, or the file is another one by now
            self._start_over()
        if (self.bytes is not None and total not in (None, self.bytes)) or _is_page(headers):
            _name_wrong_content(next(iter(response.blocks()), b"")[:HEAD_BYTES], headers)
            raise DownloadError(
                f"the server offers {total} bytes where {self.expected.name} has {self.bytes}", "Try another source."
            )
        total = self.bytes if total is None else total
        limit = min(self.expected.max_bytes, self.bytes or self.expected.max_bytes)
        if total is not None and total > limit:
            raise DownloadError(f"the server offers {total} bytes; the limit is {limit}", "Check the address.")
        if response.status == 200:
            fresh = Record(url, headers.get("etag"), headers.get("last-modified"), total, self.expected.sha256)
            with self._disk_trouble_named():
                write_record(self.part, fresh)
        return total

    def _check_range(self, headers: Any, record: Record | None, url: str) -> int:
        found = _RANGE.fullmatch(headers.get("content-range", ""))
        if found is None or record is None:
            raise _Restart("the server answered a part of the file without saying which", "Try another source.")
        first, last, total = (int(number) for number in found.groups())
        if first != self.offset or last != total - 1 or (record.total or total) != total:
            raise _Restart(
                f"the server was asked for bytes {self.offset}- of {record.total} and gave {first}-{last} of {total}",
                "Try another source.",
            )
        if record.url == url and record.etag and headers.get("etag", record.etag) != record.etag:
            raise _Restart("the file on the server has changed", "Try again.")
        return total

    def _take_hub_digest(self, response: Response) -> None:
        """The hub names the sha256 of large files (x-linked-etag), and the git blob id of small ones (etag)."""
        named = (response.hub.get("x-linked-etag") or response.hub.get("etag") or "").removeprefix("W/").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", named):
            self.sha256 = named
        elif re.fullmatch(r"[0-9a-f]{40}", named):
            self.git_sha1 = named
        else:
            raise DownloadError("the source names no digest that the file could be checked by", "Try another source.")
        size = response.hub.get("x-linked-size", "")
        if self.bytes is None and size.isdecimal() and len(size) < 19:
            self.bytes = int(size)

    def _check_room(self, total: int | None) -> None:
        needed = (total or 0) - self.offset
        free = self.disk.free(self.part.parent)
        if needed + DISK_MARGIN > free:
            raise DiskSpaceError(
                f"{self.expected.name} needs {needed} more bytes (and {DISK_MARGIN} to spare); "
                f"{self.part.parent} has {free} free",
                "Free some space and start again; what has arrived is kept.",
            )

    def _write(self, response: Response, total: int | None) -> None:
        limit = total if total is not None else self.expected.max_bytes
        head = b"" if self.offset == 0 else None  # None: the beginning was looked at when it came
        with self._disk_trouble_named(), self.disk.open(self.part, "ab", buffering=0) as file:
            for block in response.blocks():
                if self.offset + len(block) > limit:
                    self._start_over()
                    raise DownloadError(f"the server sends more than the {limit} bytes expected", "Try another source.")
                if head is not None:
                    head += block[:HEAD_BYTES]
                    if len(head) >= HEAD_BYTES:
                        self._check_head(head)
                        head = None
                self._append(file, block)
                self._progress(total)
            if head:
                self._check_head(head)
            os.fsync(file.fileno())
        if total is not None and self.offset < total:
            raise ConnectionTrouble(f"the connection ended at byte {self.offset} of {total}", "Try again.")

    def _append(self, file: IO[bytes], block: bytes) -> None:
        """All of `block`, unbuffered: a disk that fills up may take a piece of it, and that piece counts."""
        view = memoryview(block)
        while view:
            count = file.write(view)
            self.digest.update(view[:count])
            self.offset += count
            view = view[count:]

    def _check_head(self, head: bytes) -> None:
        try:
            _name_wrong_content(head, {})
        except DownloadError:
            self._start_over()
            raise

    @contextmanager
    def _disk_trouble_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as failed:
            if failed.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskSpaceError(
                    f"the disk of {self.part.parent} was full at byte {self.offset} of {self.expected.name}",
                    "Free some space and start again; what has arrived is kept.",
                ) from failed
            raise AssetError(f"{self.part} cannot be written: {failed}", "Check the folder and its rights.") from failed

    def _finish(self) -> Received:
        if self.bytes is not None and self.offset != self.bytes:
            self._wrong(f"{self.expected.name} has {self.offset} bytes instead of {self.bytes}")
        found = self.digest.hexdigest()
        if self.sha256 is not None and found != self.sha256:
            self._wrong(f"{self.expected.name} has sha256 {found} instead of {self.sha256}")
        if self.git_sha1 is not None and git_blob_sha1(self.part) != self.git_sha1:
            self._wrong(f"{self.expected.name} is not the git blob {self.git_sha1}")
        self._progress(self.offset, final=True)
        hub = self.expected.sha256 is None and (self.sha256 or self.git_sha1)
        return Received(found, self.offset, "catalogue" if self.expected.sha256 else "hub" if hub else "nobody")

    def _wrong(self, problem: str) -> None:
        """A finished file that is not the one: never kept. If some of it is from an earlier run, one clean try more."""
        fresh = self._fresh
        self._start_over()
        if not fresh:
            raise _Restart(f"{problem}, and part of it was from an earlier run", "Try another source.")
        raise ChecksumError(problem, "The source serves another file; it was deleted. Try another source.")

    def _start_over(self) -> None:
        discard(self.part)
        self.digest, self.offset, self._fresh = hashlib.sha256(), 0, True

    def _check_cancel(self) -> None:
        if self.transport.cancel.is_set():
            raise Cancelled("the download was cancelled", "Start it again to go on where it stopped.")

    def _progress(self, total: int | None, final: bool = False) -> None:
        self._check_cancel()
        now = time.monotonic()
        if final or now - self._last_report >= PROGRESS_SECONDS:
            self._last_report = now
            self.report(self.offset, total, "checked" if final else "downloading")


def _refuse_status(response: Response, *, asked_for_range: bool) -> None:
    """Raise what an answer other than 200 or an expected 206 means."""
    status = response.status
    if status == 200 or (status == 206 and asked_for_range):
        return
    if status in _BUSY:
        trouble = ConnectionTrouble(f"the server answered {status}", "Try again later.")
        trouble.wait = _retry_after(response.headers.get("retry-after"))
        raise trouble
    if asked_for_range and status in (206, 416):
        raise _Restart(f"the server has no byte range like the one asked for ({status})", "Try another source.")
    if status in (401, 403):
        raise DownloadError(
            f"the server refuses access ({status})", "If the file is gated, accept its terms there and set HF_TOKEN."
        )
    if status in (404, 410):
        raise DownloadError(f"the file is not there ({status})", "Try another source.")
    raise DownloadError(f"the server answered {status}", "Try another source.")


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header, in either of its two forms."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value.strip()[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _is_page(headers: Any) -> bool:
    return headers.get("content-type", "").split(";")[0].strip().lower() in ("text/html", "application/xhtml+xml")


def _name_wrong_content(head: bytes, headers: Any) -> None:
    """Raise DownloadError if the first bytes are those of a web page or a Git LFS pointer."""
    wrong = wrong_content(head)
    if wrong is None and _is_page(headers):
        wrong = "a web page"
    if wrong is not None:
        raise DownloadError(f"the server sent {wrong} instead of the file", "Check the address, or try another source.")
