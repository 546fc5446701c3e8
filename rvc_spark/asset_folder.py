"""The assets folder on the disk: where a file lies, whether it is the right one, and who may write it now.

    rmvpe/rmvpe.pt            the file          rmvpe/rmvpe.pt.part       a download that is under way or was broken off
    .state/rmvpe.json         size, time and sha256 it had when it was last read through
    .state/rmvpe.lock         held by the one process that writes it

Reading hundreds of megabytes at every start would be felt, so a file whose size and time are those of the record counts
as checked. Knows nothing of where files come from.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import filelock

from rvc_spark.catalogue import Asset
from rvc_spark.errors import AssetError, ChecksumError, DiskSpaceError
from rvc_spark.part_file import DISK_MARGIN, Disk, discard, wrong_content
from rvc_spark.transport import Cancelled

BLOCK = 1 << 20
LOCK_POLL_SECONDS = 0.25
State = Literal["ready", "unchecked", "unpinned", "wrong", "partial", "missing"]
Report = Callable[[int, int | None, str], None]


@dataclass(frozen=True)
class Seen:
    """A file as it was when it was last read through, and what vouched for it: `catalogue`, `hub` or `nobody`."""

    size: int
    mtime_ns: int
    sha256: str
    vouched_by: str
    source: str


@dataclass(frozen=True)
class AssetStatus:
    """One asset on this disk.

    `state` is `ready` (read through and right), `unchecked` (right size, not read through yet), `unpinned` (there, but
    nothing says what it should be), `wrong`, `partial` (a download to go on with) or `missing`.
    """

    asset: Asset
    path: Path
    state: State
    bytes_here: int


class AssetFolder:
    """Files of a catalogue under `root`. Every write goes to a name beside the target and is renamed."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self.root, self.disk = Path(root), disk or Disk()

    def path(self, asset: Asset) -> Path:
        """Where the file belongs."""
        return self.root / asset.path

    def part(self, asset: Asset) -> Path:
        """Where its download grows."""
        return self.root / f"{asset.path}.part"

    def seen(self, asset: Asset) -> Seen | None:
        """The record of the last reading, None if there is none that can be understood."""
        try:
            with (self.root / ".state" / f"{asset.id}.json").open("rb") as file:
                seen = Seen(**json.loads(file.read(BLOCK)))
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        texts = isinstance(seen.sha256, str) and isinstance(seen.vouched_by, str)
        return seen if texts and isinstance(seen.size, int) and isinstance(seen.mtime_ns, int) else None

    def pin(self, asset: Asset) -> str | None:
        """The sha256 the file must have: the catalogue's, else the one recorded when it first came."""
        seen = self.seen(asset)
        return asset.sha256 or (seen.sha256 if seen else None)

    def status(self, asset: Asset) -> AssetStatus:
        """What can be said without reading the file."""
        path, seen, pin = self.path(asset), self.seen(asset), self.pin(asset)
        try:
            here = path.stat()
        except OSError:
            part = self.part(asset)
            size = part.stat().st_size if part.is_file() else 0
            return AssetStatus(asset, path, "partial" if size else "missing", size)
        state: State = "unchecked" if pin else "unpinned"
        if not path.is_file() or asset.bytes not in (None, here.st_size):
            state = "wrong"
        elif seen is not None and (seen.size, seen.mtime_ns) == (here.st_size, here.st_mtime_ns):
            state = "ready" if seen.sha256 == pin else "wrong"
        return AssetStatus(asset, path, state, here.st_size)

    def check(self, asset: Asset, *, again: bool = False, report: Report | None = None) -> AssetStatus:
        """Like `status`, but a file that is unchecked is read through; with `again` every file is."""
        status = self.status(asset)
        pin = self.pin(asset)
        if pin is None or not (status.state == "unchecked" or (again and status.state in ("ready", "wrong"))):
            return status
        if not status.path.is_file():
            return status
        found = sha256_file(status.path, report)
        seen = self.seen(asset)
        vouched, source = ("catalogue", "checked here") if seen is None else (seen.vouched_by, seen.source)
        with suppress(AssetError):  # a folder that cannot be written costs another reading next time, nothing more
            if found == pin:
                self.remember(asset, found, vouched, source)
            elif asset.sha256 is not None:  # it will be known to be wrong without reading it again
                self.remember(asset, found, "nobody", source)
        state: State = "ready" if found == pin else "wrong"
        return AssetStatus(asset, status.path, state, status.bytes_here)

    def remember(self, asset: Asset, sha256: str, vouched_by: str, source: str) -> None:
        """Record that the file, as it lies there now, has this digest."""
        here = self.path(asset).stat()
        target = self.root / ".state" / f"{asset.id}.json"
        with self.trouble_named(asset):
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = target.with_name(f"{target.name}.{os.getpid()}.{threading.get_ident()}.new")
            seen = Seen(here.st_size, here.st_mtime_ns, sha256, vouched_by, source)
            scratch.write_text(json.dumps(asdict(seen)), encoding="utf-8")
            os.replace(scratch, target)

    def place(self, asset: Asset, finished: Path, sha256: str, vouched_by: str, source: str) -> Path:
        """Move a finished, proven file to its name, in one step."""
        with self.trouble_named(asset):
            os.replace(finished, self.path(asset))
        discard(self.part(asset))
        self.remember(asset, sha256, vouched_by, source)
        return self.path(asset)

    def fill(self, asset: Asset, blocks: Iterable[bytes], source: str, *, vouched_by: str = "catalogue") -> Path:
        """Put content that is at hand (a copy, an archive's member) at the asset's place if it is the right one.

        Raises ChecksumError, and leaves what was there; the caller holds the lock.
        """
        pin, target = self.pin(asset), self.path(asset)
        scratch = target.with_name(f"{target.name}.new")
        digest, size, head = hashlib.sha256(), 0, b""
        limit = asset.bytes
        try:
            with self.trouble_named(asset):
                target.parent.mkdir(parents=True, exist_ok=True)
                self.check_room(asset, asset.bytes or 0)
                with self.disk.open(scratch, "wb") as file:
                    for block in blocks:
                        head = head or block[:512]
                        size += len(block)
                        if limit is not None and size > limit:
                            break
                        digest.update(block)
                        file.write(block)
                    file.flush()
                    os.fsync(file.fileno())
            if size != (limit or size) or digest.hexdigest() != (pin or digest.hexdigest()):
                what = wrong_content(head)
                found = f"it is {what}" if what else f"{size} bytes, sha256 {digest.hexdigest()}"
                raise ChecksumError(
                    f"{source} is not {asset.id}: {found}; wanted {limit or 'any number of'} bytes, sha256 {pin}",
                    "Give the right file, or fetch it.",
                )
            return self.place(asset, scratch, digest.hexdigest(), vouched_by, source)
        finally:
            scratch.unlink(missing_ok=True)

    def check_room(self, asset: Asset, needed: int) -> None:
        """Raises DiskSpaceError if `needed` bytes and some to spare do not fit."""
        folder = self.path(asset).parent
        free = self.disk.free(folder)
        if needed + DISK_MARGIN > free:
            raise DiskSpaceError(
                f"{asset.id} needs {needed} bytes (and {DISK_MARGIN} to spare); {folder} has {free} free",
                "Free some space and start again.",
            )

    @contextmanager
    def lock(self, asset: Asset, cancel: threading.Event, report: Report) -> Iterator[None]:
        """Be the only writer of this file, across threads and processes. Raises Cancelled while waiting in vain."""
        with self.trouble_named(asset):
            self.part(asset).parent.mkdir(parents=True, exist_ok=True)
            (self.root / ".state").mkdir(parents=True, exist_ok=True)
        with only_writer(self.root / ".state" / f"{asset.id}.lock", cancel, report):
            yield

    @contextmanager
    def trouble_named(self, asset: Asset) -> Iterator[None]:
        """Disk errors in here become ours."""
        try:
            yield
        except OSError as failed:
            if failed.errno in (errno.ENOSPC, errno.EDQUOT):
                free = self.disk.free(self.root)
                problem = f"the disk of {self.root} is full ({free} bytes free) while writing {asset.id}"
                raise DiskSpaceError(problem, "Free some space and start again.") from failed
            problem = f"{self.path(asset)} cannot be written: {failed}"
            raise AssetError(problem, "Check the folder and its rights.") from failed


@contextmanager
def only_writer(lock_file: Path, cancel: threading.Event, report: Report) -> Iterator[None]:
    """Hold a lock file, waiting for whoever has it. Raises Cancelled, or AssetError where locks do not work."""
    lock = filelock.FileLock(lock_file, thread_local=False)
    waiting = False
    while not lock.is_locked:
        try:
            lock.acquire(timeout=LOCK_POLL_SECONDS)
        except filelock.Timeout as busy:
            if cancel.is_set():
                raise Cancelled("the download was cancelled", "Start it again.") from busy
            if not waiting:
                report(0, None, "waiting for another process that fetches it")
            waiting = True
        except (OSError, NotImplementedError) as failed:
            raise AssetError(f"{lock_file} cannot be locked: {failed}", "Check the folder and its rights.") from failed
    try:
        yield
    finally:
        lock.release()


def sha256_file(path: Path, report: Report | None = None) -> str:
    """Hex sha256 of a file. Raises AssetError if it cannot be read."""
    digest, done = hashlib.sha256(), 0
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
                done += len(block)
                if report is not None and done % (32 * BLOCK) == 0:
                    report(done, total, "checking")
    except OSError as failed:
        raise AssetError(f"{path} cannot be read: {failed}", "Check the file and its rights.") from failed
    return digest.hexdigest()


def file_blocks(path: Path) -> Iterator[bytes]:
    """A file's content in pieces of 1 MiB."""
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
    except OSError as failed:
        raise AssetError(f"{path} cannot be read: {failed}", "Check the file and its rights.") from failed
