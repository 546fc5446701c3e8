"""Carrying assets between machines without a network: files, folders and zips in, a zip out.

A file is what its sha256 says, whatever it is called and wherever it lies. Knows nothing of downloads.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rvc_spark.archives import ArchiveLimits, archive_kind, walk
from rvc_spark.asset_folder import AssetFolder, Report, file_blocks, sha256_file
from rvc_spark.catalogue import Asset
from rvc_spark.errors import AssetError, ChecksumError, DiskSpaceError
from rvc_spark.part_file import DISK_MARGIN, wrong_content

MAX_FILES = 100_000  # in a folder that is searched
BUNDLE_LIMITS = ArchiveLimits(members=MAX_FILES, total_bytes=256 << 30, ratio=1000.0)
LISTING = "rvc_spark_assets.json"  # for people; importing goes by content alone
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the same files give the same bundle

Chosen = Sequence[tuple[Asset, Report]]


@dataclass(frozen=True)
class ImportReport:
    """Ids that were placed now, ids that were there already, and names of files that are in no catalogue."""

    placed: tuple[str, ...]
    already: tuple[str, ...]
    unknown: tuple[str, ...]


def import_file(folder: AssetFolder, asset: Asset, source: Path, *, accept: bool = False) -> Path:
    """Put `source` at the place of `asset`. With `accept`, a file that nobody published a sha256 of is vouched for now.

    Raises ChecksumError naming both digests when it is another file, AssetError when it cannot be read.
    """
    if not source.is_file():
        raise AssetError(f"{source} is not a file", "Give the path of the file itself.")
    pin = folder.pin(asset)
    if pin is None and not accept:
        raise AssetError(f"nothing says what {asset.id} must be", "Vouch for the file with `--unpinned accept`.")
    with source.open("rb") as file:
        wrong = wrong_content(file.read(512))
    if wrong is not None:
        raise ChecksumError(f"{source} is {wrong}, not {asset.id}", "Give the file itself.")
    with folder.lock(asset, threading.Event(), _silent):
        if source.resolve() != folder.path(asset).resolve():
            vouched = "catalogue" if asset.sha256 else "hub" if pin else "nobody"
            return folder.fill(asset, file_blocks(source), str(source), vouched_by=vouched)
        found = sha256_file(source)
        if pin is not None and found != pin:
            raise ChecksumError(f"{source} has sha256 {found}; {asset.id} has {pin}", "Fetch it instead.")
        folder.remember(asset, found, "catalogue" if asset.sha256 else "nobody", "imported in its place")
        return folder.path(asset)


def import_bundle(folder: AssetFolder, every: Chosen, source: Path) -> ImportReport:
    """Place whatever of the catalogue is found in `source`: a file, a folder (links are not followed), a zip or tar.

    Raises AssetError when there is nothing to read, ArchiveError when an archive is hostile or damaged; files that
    were placed before that stay, since each was proven by itself.
    """
    finder = _Finder(folder, every)
    if source.is_dir():
        for number, path in enumerate(_files(source)):
            if number >= MAX_FILES:
                raise AssetError(f"{source} has more than {MAX_FILES} files", "Give the folder that holds the assets.")
            name = path.relative_to(source).as_posix()
            finder.consider(name, path.stat().st_size, lambda path=path: file_blocks(path))
    elif not source.is_file():
        raise AssetError(f"{source} is neither a file nor a folder", "Check the path.")
    elif finder.consider(source.name, source.stat().st_size, lambda: file_blocks(source)):
        pass  # a catalogued file may itself be a zip: .pth files and mute.zip are
    elif archive_kind(source) is not None:
        finder.unknown.clear()
        for member in walk(source, BUNDLE_LIMITS):
            finder.consider(member.name.as_posix(), member.declared_bytes, member.blocks)
    return ImportReport(tuple(finder.placed), tuple(finder.already), tuple(finder.unknown))


class _Finder:
    """Matches content to assets. Only what has the size of an asset is read at all."""

    def __init__(self, folder: AssetFolder, every: Chosen) -> None:
        self.folder = folder
        self.pinned = [(pin, asset, report) for asset, report in every if (pin := folder.pin(asset)) is not None]
        self.placed: list[str] = []
        self.already: list[str] = []
        self.unknown: list[str] = []

    def consider(self, name: str, size: int, blocks: Callable[[], Iterator[bytes]]) -> bool:
        """Place the content if it is an asset. `blocks` is called once at most: an archive's member streams by."""
        leaf = name.rsplit("/", 1)[-1]
        likely = {
            pin: (asset, report) for pin, asset, report in self.pinned
            if asset.bytes == size or (asset.bytes is None and asset.path.rsplit("/", 1)[-1] == leaf)
        }  # fmt: skip
        if len(likely) == 1:
            ((asset, _),) = likely.values()
            if self.folder.check(asset).state == "ready":
                self.already.append(asset.id)
                return True
        if likely and self._place(likely, size, blocks):
            return True
        self.unknown.append(name)
        return False

    def _place(self, likely: dict[str, tuple[Asset, Report]], size: int, blocks: Callable[[], Iterator[bytes]]) -> bool:
        first, report = next(iter(likely.values()))
        scratch = self.folder.root / ".state" / f"import.{os.getpid()}.{threading.get_ident()}.new"
        digest, done = hashlib.sha256(), 0
        try:
            with self.folder.trouble_named(first):
                scratch.parent.mkdir(parents=True, exist_ok=True)
                self.folder.path(first).parent.mkdir(parents=True, exist_ok=True)
                self.folder.check_room(first, size)
                with self.folder.disk.open(scratch, "wb") as file:
                    for block in blocks():
                        digest.update(block)
                        file.write(block)
                        done += len(block)
                        report(done, size, "importing")
                    file.flush()
                    os.fsync(file.fileno())
            found = digest.hexdigest()
            if found not in likely:
                return False
            asset, _ = likely[found]
            with self.folder.lock(asset, threading.Event(), _silent):
                if self.folder.check(asset).state == "ready":
                    self.already.append(asset.id)
                else:
                    vouched = "catalogue" if asset.sha256 else "hub"
                    self.folder.place(asset, scratch, found, vouched, "imported")
                    self.placed.append(asset.id)
            return True
        finally:
            scratch.unlink(missing_ok=True)


def export_bundle(folder: AssetFolder, chosen: Chosen, target: Path) -> tuple[str, ...]:
    """Write the chosen assets that are there and right into an uncompressed zip; returns their ids.

    The bundle lists each file's licence and digest, so that who receives it knows what it is. Raises AssetError when
    there is nothing to write, DiskSpaceError when it does not fit.
    """
    ready = [(asset, report, status) for asset, report in chosen if (status := folder.check(asset)).state == "ready"]
    if not ready:
        raise AssetError("none of the chosen assets is here and right", "Fetch them first.")
    needed = sum(status.bytes_here for _, _, status in ready)
    target.parent.mkdir(parents=True, exist_ok=True)
    free = folder.disk.free(target.parent)
    if needed + DISK_MARGIN > free:
        raise DiskSpaceError(f"the bundle needs {needed} bytes; {target.parent} has {free} free", "Free some space.")
    listing = [
        {"id": asset.id, "path": asset.path, "licence": asset.licence, "sha256": folder.pin(asset)}
        for asset, _, _ in ready
    ]
    scratch = target.with_name(target.name + ".new")
    try:
        with folder.trouble_named(ready[0][0]), zipfile.ZipFile(scratch, "w", zipfile.ZIP_STORED) as bundle:
            bundle.writestr(zipfile.ZipInfo(LISTING, ZIP_DATE), json.dumps({"version": 1, "assets": listing}, indent=1))
            for asset, report, status in ready:
                done = 0
                with bundle.open(zipfile.ZipInfo(asset.path, ZIP_DATE), "w", force_zip64=True) as member:
                    for block in file_blocks(status.path):
                        member.write(block)
                        done += len(block)
                        report(done, status.bytes_here, "exporting")
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
    return tuple(asset.id for asset, _, _ in ready)


def _files(folder: Path) -> Iterator[Path]:
    for here, folders, names in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted(names):
            path = Path(here) / name
            if path.is_file() and not path.is_symlink():
                yield path


def _silent(done: int, total: int | None, message: str) -> None:
    return None
