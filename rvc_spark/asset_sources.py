"""Sources that are not a plain download: the Hugging Face cache, Google Drive, a member of an archive.

Each puts a proven file at its place or says why not. Knows nothing of retries or of which source is tried first.
"""

from __future__ import annotations

import errno
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from rvc_spark.archives import walk
from rvc_spark.asset_folder import AssetFolder, Report, file_blocks, sha256_file
from rvc_spark.catalogue import Asset, Source
from rvc_spark.errors import ChecksumError, DiskSpaceError, DownloadError, MissingPackageError
from rvc_spark.part_file import Disk, git_blob_sha1
from rvc_spark.transport import Cancelled

HUB_CACHE = Path.home() / ".cache" / "huggingface" / "hub"  # where the hub's own library keeps files by default


def from_hub_cache(folder: AssetFolder, asset: Asset, cache: Path | None, report: Report) -> Path | None:
    """Copy the file from the hub's cache if it lies there and is the right one, else None.

    The cache names every blob by its sha256 (or by its git id, when small), so that files without a published sha256
    can be proven as well: by what the hub called them when they were fetched at the pinned commit.
    """
    for source in asset.sources if cache is not None else ():
        if source.kind != "hf":
            continue
        repository = cache / f"models--{source.repo.replace('/', '--')}"
        pin = folder.pin(asset)
        found = repository / "blobs" / pin if pin else repository / "snapshots" / source.revision / source.path
        try:
            blob = found.resolve(strict=True)
            blob.relative_to(repository.resolve(strict=True))
        except (OSError, ValueError, RuntimeError):  # not there, or a link that leads out of the cache
            continue
        if not blob.is_file() or not (pin or _is_named_by_content(blob)):
            continue
        report(0, asset.bytes, "copying from the Hugging Face cache")
        try:
            return folder.fill(asset, file_blocks(blob), str(found), vouched_by="catalogue" if asset.sha256 else "hub")
        except ChecksumError:  # a damaged cache entry is the cache's trouble; the file is fetched instead
            continue
    return None


def _is_named_by_content(blob: Path) -> bool:
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return sha256_file(blob) == blob.name
    return re.fullmatch(r"[0-9a-f]{40}", blob.name) is not None and git_blob_sha1(blob) == blob.name


def from_archive(
    folder: AssetFolder, asset: Asset, source: Source, archive_path: Callable[[str], Path], cancel: threading.Event
) -> Path:
    """Take one member out of an archive asset, which `archive_path` fetches first. Raises ArchiveError."""
    archive = archive_path(source.reference)
    for member in walk(archive):
        if member.name.as_posix() == source.path:
            return folder.fill(asset, _until(member.blocks(), cancel), f"{archive.name}:{source.path}")
    raise DownloadError(f"{archive.name} has no member {source.path!r}", "Try another source.")


def _until(blocks: Iterator[bytes], cancel: threading.Event) -> Iterator[bytes]:
    for block in blocks:
        if cancel.is_set():
            raise Cancelled("the download was cancelled", "Start it again.")
        yield block


class _Sink:
    """What gdown writes to: counts, hashes, and refuses more than the file may have."""

    name = "download"

    def __init__(self, file: IO[bytes], limit: int, cancel: threading.Event, report: Report) -> None:
        self.file, self.limit, self.cancel, self.report = file, limit, cancel, report
        self.digest, self.size = hashlib.sha256(), 0

    def write(self, block: bytes) -> int:
        if self.cancel.is_set():
            raise Cancelled("the download was cancelled", "Start it again.")
        self.size += len(block)
        if self.size > self.limit:
            raise DownloadError(f"Google Drive sends more than {self.limit} bytes", "Check the file's id.")
        self.digest.update(block)
        self.report(self.size, None, "downloading from Google Drive")
        self.file.write(block)
        return len(block)

    def flush(self) -> None:
        self.file.flush()

    def tell(self) -> int:
        return self.size


def from_drive(drive_id: str, target: Path, limit: int, cancel: threading.Event, report: Report, disk: Disk) -> str:
    """Fetch a Google Drive file to `target` through gdown; returns its sha256.

    Drive often refuses popular files for a day, and there is no way to go on with half of one: it is the last resort.
    Raises MissingPackageError without gdown, DownloadError when Drive does not give the file.
    """
    try:
        import gdown
        import gdown.exceptions
    except ImportError as missing:
        raise MissingPackageError("Google Drive sources need gdown", "pip install 'gdown>=5.2'") from missing
    # gdown 5 has the first only; requests' own errors, which it lets through, are OSErrors
    named = (getattr(gdown.exceptions, name, None) for name in ("FileURLRetrievalError", "DownloadError"))
    refusals: tuple[type[Exception], ...] = (OSError, *(kind for kind in named if kind is not None))
    done = False
    try:
        with disk.open(target, "wb") as file:
            sink = _Sink(file, limit, cancel, report)
            gdown.download(id=drive_id, output=sink, quiet=True, use_cookies=False)
        done = True
    except refusals as failed:
        if getattr(failed, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise DiskSpaceError(f"the disk was full at byte {sink.size} of {target}", "Free some space.") from failed
        text = " ".join(str(failed).split())[:300]
        raise DownloadError(f"Google Drive does not give {drive_id}: {text}", "Try again tomorrow.") from failed
    finally:
        if not done:
            target.unlink(missing_ok=True)
    return sink.digest.hexdigest()
