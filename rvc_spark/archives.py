"""Archives from strangers: zip, tar and tar.gz, read member by member under limits, written only inside one folder.

What a header says is never believed: sizes are counted while bytes come out, names are checked before a file is made,
and links and devices are refused outright. A refusal leaves nothing behind. Knows nothing of voices, catalogues or
downloads, and never opens an archive found inside an archive.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from gzip import GzipFile
from pathlib import Path, PurePosixPath
from typing import IO

from rvc_spark.errors import ArchiveError, DiskSpaceError

BLOCK = 256 << 10  # bytes moved at once; also the most that is held of a member
_EOCD, _EOCD64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_DIRECTION = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}  # these reorder what is shown
_MAX_DIRECTORY = 16 << 20  # bytes of a zip's member list: zipfile reads it into memory whole
_MAX_TAR_HEADER_READ = 1 << 20  # bytes of one extended tar header: tarfile reads it into memory whole
_RESERVED = {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10))}
# OSError: gzip's own, and offsets that point nowhere; RuntimeError: headers chained until Python's recursion limit
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OSError)


@dataclass(frozen=True)
class ArchiveLimits:
    """How much one archive may ask for. The defaults let every voice bundle through and stop bombs early."""

    members: int = 20_000
    total_bytes: int = 8 << 30
    ratio: float = 200.0  # unpacked bytes per packed byte; weights compress by less than 2
    harmless_bytes: int = 32 << 20  # below this no ratio can hurt: empty text compresses 1000 to 1
    depth: int = 16  # folders within folders


@dataclass(frozen=True)
class Member:
    """One file in an archive. `blocks()` may be read once, before the next member is asked for."""

    name: PurePosixPath
    declared_bytes: int
    _open: Callable[[], IO[bytes]]
    _spend: Callable[[int], None]

    def blocks(self) -> Iterator[bytes]:
        """The content in pieces of at most 256 KiB, counted as they come. Raises ArchiveError past a limit."""
        try:
            with self._open() as stream:
                while block := stream.read(BLOCK):
                    self._spend(len(block))
                    yield block
        except _BROKEN as broken:
            raise ArchiveError(f"{self.name} in the archive is damaged: {broken}", "Get the archive again.") from broken


class _Budget:
    """Counts what really came out of an archive."""

    def __init__(self, limits: ArchiveLimits, packed_bytes: int) -> None:
        self.limits, self.packed, self.spent = limits, max(1, packed_bytes), 0

    def spend(self, count: int) -> None:
        self.spent += count
        if self.spent > self.limits.total_bytes:
            raise ArchiveError(
                f"the archive unpacks to more than {self.limits.total_bytes} bytes",
                "Unpack it yourself if you trust it, and give the files instead.",
            )
        if self.spent > self.limits.harmless_bytes and self.spent > self.limits.ratio * self.packed:
            raise ArchiveError(
                f"the archive is a bomb: {self.packed} bytes have unpacked to {self.spent} so far, "
                f"more than {self.limits.ratio:g} to 1",
                "Do not open it; get the files from somewhere else.",
            )


class _Names:
    """Every name seen so far, as a disk that ignores case and Unicode form would see it."""

    def __init__(self, limits: ArchiveLimits) -> None:
        self.limits, self.count = limits, 0
        self.files: set[str] = set()
        self.folders: dict[str, str] = {}

    def add(self, raw: str, is_folder: bool) -> PurePosixPath | None:
        """The safe relative path, or None for the archive's own top folder."""
        self.count += 1
        if self.count > self.limits.members:
            raise ArchiveError(
                f"the archive has more than {self.limits.members} members", "Give an archive with fewer files."
            )
        path = safe_name(raw, depth=self.limits.depth)
        if path is None:
            return None
        parents = [path, *path.parents][:-1] if is_folder else list(path.parents)[:-1]
        for folder in parents:
            spelled = folder.as_posix()
            if _folded(spelled) in self.files or self.folders.setdefault(_folded(spelled), spelled) != spelled:
                raise _collision(spelled)
        if not is_folder:
            key = _folded(path.as_posix())
            if key in self.files or key in self.folders:
                raise _collision(path.as_posix())
            self.files.add(key)
        return path


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _collision(name: str) -> ArchiveError:
    return ArchiveError(
        f"the archive has two members for the place {name!r} (upper and lower case count as one)",
        "Repack it with names that differ.",
    )


def safe_name(raw: str, *, depth: int = 16) -> PurePosixPath | None:
    """A member's name as a relative path that is inside its folder on every system; None if it is the folder itself.

    Raises ArchiveError for `..`, absolute paths, drive letters, control and direction-changing characters, and names
    that Windows reserves or would quietly shorten.
    """
    shown = ascii(raw[:120])
    if any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} or c in _DIRECTION for c in raw):
        raise ArchiveError(f"the archive has a member with control characters in its name: {shown}", _REPACK)
    name = raw.replace("\\", "/")
    if name.startswith("/") or ":" in name:
        raise ArchiveError(f"the archive has a member with an absolute path or a drive: {shown}", _REPACK)
    parts = [part for part in name.split("/") if part not in ("", ".")]
    for part in parts:
        if part == "..":
            raise ArchiveError(f"the archive tries to write outside its folder: {shown}", _REPACK)
        if part != part.rstrip(". ") or part.split(".")[0].rstrip().lower() in _RESERVED:
            raise ArchiveError(f"the archive has a member whose name Windows cannot keep: {shown}", _REPACK)
        if len(part.encode()) > 240:
            raise ArchiveError(f"the archive has a member whose name is longer than 240 bytes: {shown}", _REPACK)
    if len(parts) > depth:
        raise ArchiveError(f"the archive has folders {len(parts)} deep, more than {depth}: {shown}", _REPACK)
    return PurePosixPath(*parts) if parts else None


_REPACK = "Do not trust it; if it is yours, repack it with plain relative names."


def archive_kind(path: Path) -> str | None:
    """`zip`, `tar` or `tar.gz` by the first bytes, None for anything else. The file's suffix is not looked at."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as failed:
        raise ArchiveError(f"{path} cannot be read: {failed.strerror}", "Check the path.") from failed
    if head[:4] in (b"PK\x03\x04", _EOCD):
        return "zip"
    if head[:2] == b"\x1f\x8b":
        return "tar.gz"
    return "tar" if head[257:262] == b"ustar" else None


def walk(path: Path, limits: ArchiveLimits | None = None) -> Iterator[Member]:
    """The files of an archive in their order, each with its content as a bounded stream.

    A zip's names are all checked before the first member is given; a tar's as they come, since it has no directory.
    Raises ArchiveError for a damaged, encrypted, hostile or unknown archive; AssetError leaves pass through.
    """
    limits = limits or ArchiveLimits()
    kind = archive_kind(path)
    if kind is None:
        raise ArchiveError(f"{path.name} is not a zip, tar or tar.gz archive", "Check what was downloaded.")
    try:
        yield from (_walk_zip if kind == "zip" else _walk_tar)(path, limits)
    except _BROKEN as broken:
        raise ArchiveError(f"{path.name} is damaged or not what it seems: {broken}", "Get it again.") from broken


def _walk_zip(path: Path, limits: ArchiveLimits) -> Iterator[Member]:
    with path.open("rb") as file:
        _check_directory_size(file, limits)
        budget = _Budget(limits, path.stat().st_size)
        names = _Names(limits)
        with zipfile.ZipFile(file) as archive:
            members = [(info, names.add(info.orig_filename, info.is_dir())) for info in archive.infolist()]
            for info, _ in members:
                _check_zip_member(info)
            for info, name in members:
                if name is not None and not info.is_dir():
                    yield Member(name, info.file_size, lambda info=info: archive.open(info), budget.spend)


def _check_directory_size(file: IO[bytes], limits: ArchiveLimits) -> None:
    """Read the zip's closing record by hand: its member list must be small before zipfile loads all of it."""
    end = file.seek(0, os.SEEK_END)
    start = max(0, end - (1 << 16) - 64)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(_EOCD)
    if at < 0 or len(tail) < at + 22:
        raise ArchiveError("the zip has no closing record: it was cut short", "Download it again.")
    count, size = struct.unpack_from("<HL", tail, at + 10)
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR64:
        (where,) = struct.unpack_from("<Q", tail, at - 12)
        file.seek(min(where, end))
        record = file.read(56)
        if record[:4] == _EOCD64 and len(record) == 56:
            count, size = struct.unpack_from("<QQ", record, 32)
    file.seek(0)
    if count > limits.members or size > _MAX_DIRECTORY:
        raise ArchiveError(
            f"the zip lists {count} members in {size} bytes; the limits are {limits.members} and {_MAX_DIRECTORY}",
            "Give an archive with fewer files.",
        )


def _check_zip_member(info: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    shown = ascii(info.filename[:120])
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError(f"the archive has a link or device in it: {shown}", _REPACK)
    if info.flag_bits & 0x1:
        raise ArchiveError(f"the archive is encrypted ({shown})", "Unpack it with its password and give the files.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(
            f"the archive uses compression {info.compress_type} ({shown}); only stored and deflate are read",
            "Repack it as an ordinary zip.",
        )


class _ForwardReader:
    """What tarfile reads from: counts everything, cannot go back, and never hands out a large header at once."""

    def __init__(self, stream: IO[bytes], spend: Callable[[int], None], header_bytes: int) -> None:
        self.stream, self.spend, self.header_left = stream, spend, header_bytes
        self.position, self.in_content, self.last_header = 0, False, b""

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= _MAX_TAR_HEADER_READ:
            raise ArchiveError(f"the tar has a header of {count} bytes, more than {_MAX_TAR_HEADER_READ}", _REPACK)
        block = self.stream.read(count)
        self.position += len(block)
        self.spend(len(block))
        if not self.in_content:
            self.last_header = block
            self.header_left -= len(block)
            if self.header_left < 0:
                raise ArchiveError("the tar consists of headers rather than files", _REPACK)
        return block

    def tell(self) -> int:
        return self.position

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or position < self.position:
            raise tarfile.ReadError("it points backwards")
        was, self.in_content = self.in_content, True
        while self.position < position and self.read(min(BLOCK, position - self.position)):
            pass
        self.in_content = was
        return self.position

    def drain(self) -> None:
        self.in_content = True
        while self.read(BLOCK):
            pass


class _Content:
    """One tar member's bytes; `in_content` tells the reader that these are not header bytes."""

    def __init__(self, stream: IO[bytes], reader: _ForwardReader) -> None:
        self.stream, self.reader = stream, reader

    def __enter__(self) -> _Content:
        self.reader.in_content = True
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.reader.in_content = False
        self.stream.close()

    def read(self, count: int) -> bytes:
        return self.stream.read(count)


def _walk_tar(path: Path, limits: ArchiveLimits) -> Iterator[Member]:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = GzipFile(fileobj=file, mode="rb") if compressed else file
        budget = _Budget(limits, path.stat().st_size)
        # every member costs a header of 512 bytes and perhaps an extended one
        reader = _ForwardReader(stream, budget.spend, header_bytes=(8 << 20) + 2048 * limits.members)
        names = _Names(limits)
        with tarfile.open(fileobj=reader, mode="r:", errorlevel=2) as archive:
            while (info := archive.next()) is not None:
                archive.members = []  # tarfile remembers every member; nothing here needs that
                name = names.add(info.name, info.isdir())
                if not (info.isreg() or info.isdir()) or info.issparse():
                    raise ArchiveError(f"the archive has a link or device in it: {ascii(info.name[:120])}", _REPACK)
                if name is not None and info.isreg():
                    # the reader has counted already, so the member itself spends nothing
                    yield Member(name, info.size, lambda info=info: _content(archive, info, reader), lambda count: None)
            if not reader.last_header or reader.last_header.strip(b"\0"):  # tarfile ends without a word here
                raise ArchiveError(f"{path.name} is cut short or damaged in the middle", "Get it again.")
            reader.drain()  # gzip's checksum comes last


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo, reader: _ForwardReader) -> IO[bytes]:
    stream = archive.extractfile(info)
    if stream is None:
        raise ArchiveError(f"the archive has a member without content: {ascii(info.name[:120])}", _REPACK)
    return _Content(stream, reader)  # type: ignore[return-value]


def unpack(
    archive: Path,
    folder: Path,
    *,
    limits: ArchiveLimits | None = None,
    keep: Callable[[PurePosixPath], bool] | None = None,
) -> tuple[Path, ...]:
    """Unpack into `folder`, which must not exist yet or be empty; all of it appears at once, or nothing does.

    Args:
        keep: which members are written; every member's name is checked all the same.

    Returns the files written, in the archive's order. Raises ArchiveError, or DiskSpaceError with the numbers.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArchiveError(f"{folder} exists and is not an empty folder", "Choose a new folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".unpack-", dir=folder.parent))
    try:
        written = []
        for member in walk(archive, limits):
            if keep is None or keep(member.name):
                target = scratch / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                write_member(member, target)
                written.append(member.name)
        if not written:
            raise ArchiveError(f"{archive.name} holds none of the files that are wanted", "Check what was given.")
        scratch.chmod(0o755)  # mkdtemp makes folders that only their owner may enter
        if folder.exists():
            folder.rmdir()
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return tuple(folder / name for name in written)


def write_member(member: Member, target: Path) -> int:
    """Write one member to a file that must not exist; returns its bytes. Raises DiskSpaceError on a full disk."""
    free = shutil.disk_usage(target.parent).free
    if member.declared_bytes > free:
        raise DiskSpaceError(
            f"{member.name} needs {member.declared_bytes} bytes and {target.parent} has {free} free",
            "Free some space and try again.",
        )
    total = 0
    try:
        with target.open("xb") as file:
            for block in member.blocks():
                file.write(block)
                total += len(block)
    except OSError as failed:
        if failed.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskSpaceError(
                f"the disk of {target.parent} was full after {total} bytes of {member.name}", "Free some space."
            ) from failed
        raise ArchiveError(f"{member.name} cannot be unpacked: {failed}", "Check the folder.") from failed
    return total
