"""A voice from an address somebody gives: fetched under rules for strangers, unpacked to nothing but .pth and .index.

The address may come from anyone, so it must not reach this machine's own network, and what it serves must not write
outside the weights folder. Whether a .pth is a good voice is not known here; reading it finds out.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from rvc_spark.archives import ArchiveLimits, archive_kind, safe_name, unpack, walk
from rvc_spark.asset_folder import Report, file_blocks, only_writer, sha256_file
from rvc_spark.asset_sources import from_drive
from rvc_spark.catalogue import check_url
from rvc_spark.download import Download, Expected
from rvc_spark.errors import ArchiveError, AssetError, ChecksumError, DiskSpaceError, OutputError
from rvc_spark.part_file import Disk, discard
from rvc_spark.transport import NetworkOptions, Transport

VOICE_SUFFIXES = (".pth", ".index")
MAX_VOICE_FILES = 64
VOICE_LIMITS = ArchiveLimits(members=10_000, total_bytes=4 << 30)
_HUB_PAGE = re.compile(r"(https://huggingface\.co/[^?#]+?)/blob/")
_DRIVE_LINK = re.compile(
    r"https://drive\.google\.com/(?:file/d/|open\?id=|uc\?(?:export=download&)?id=)([\w-]{10,100})"
)
_OTHER_ARCHIVES = {b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"\xfd7zX": "xz", b"BZh9": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}
_INDEX_MAGIC = (b"IwFl", b"IxF2", b"IxFI", b"IwF2", b"IwPQ", b"IxPT")  # the first bytes of faiss files


@dataclass(frozen=True)
class VoiceRequest:
    """What is known and allowed about an address that gives a voice."""

    folder: Path | None = None  # where .pth go; the store's weights folder by default
    index_folder: Path | None = None  # where .index go; beside the .pth by default
    name: str | None = None  # what the voice shall be called
    sha256: str | None = None  # of the file at the address, if its giver says
    max_bytes: int = 2 << 30
    allow_private: bool = False  # addresses of this machine and its network
    replace: bool = False  # overwrite files of the same name that differ


@dataclass(frozen=True)
class VoiceFiles:
    """What came: the files, and the sha256 of what the address served."""

    voices: tuple[Path, ...]
    indexes: tuple[Path, ...]
    sha256: str


@dataclass(frozen=True)
class Means:
    """What a fetch works with."""

    network: NetworkOptions
    disk: Disk
    cancel: threading.Event | None
    report: Report
    stop: threading.Event = field(default_factory=threading.Event)  # used when nobody gave a switch


def fetch_voice(url: str, folder: Path, request: VoiceRequest, means: Means) -> VoiceFiles:
    """Download, look inside, and put .pth and .index files into `folder`; all of them or none.

    Takes zip, tar and tar.gz bundles, and a bare .pth or .index. Raises DownloadError, ChecksumError, DiskSpaceError,
    ArchiveError, or AssetError when nothing in it is a voice or a file of that name is already there.
    """
    if request.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", request.sha256):
        raise AssetError(f"{request.sha256!r:.80} is not a sha256", "Give 64 hexadecimal digits, or none.")
    if request.name is not None and (safe_name(request.name, depth=1) is None or request.name.startswith(".")):
        raise AssetError(f"{request.name!r:.80} cannot name a voice", "Give a plain name.")
    url = check_url(_HUB_PAGE.sub(r"\1/resolve/", url.strip()))
    cancel = means.cancel or means.stop
    with _named(folder):
        downloads = folder / ".downloads"
        downloads.mkdir(parents=True, exist_ok=True)
    part = downloads / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.part"
    with only_writer(part.with_suffix(".lock"), cancel, means.report):
        sha256 = _download(url, part, request, means, cancel)
        means.report(part.stat().st_size, part.stat().st_size, "unpacking")
        with only_writer(downloads / "place.lock", cancel, means.report):
            try:
                voices, indexes = _place(part, _leaf(url), folder, request)
            except ArchiveError:
                discard(part)  # it will not get better by being kept
                raise
        discard(part)
    return VoiceFiles(voices, indexes, sha256)


def _download(url: str, part: Path, request: VoiceRequest, means: Means, cancel: threading.Event) -> str:
    network = replace(means.network, allow_private=request.allow_private)
    if drive := _DRIVE_LINK.match(url):
        if request.sha256 is None:
            raise AssetError("a Google Drive address needs the file's sha256", "Ask its owner, or download it by hand.")
        found = from_drive(drive[1], part, request.max_bytes, cancel, means.report, means.disk)
        if found != request.sha256:
            discard(part)
            raise ChecksumError(f"the file has sha256 {found} instead of {request.sha256}", "Ask where it came from.")
        return found
    with Transport(network, cancel) as transport:
        expected = Expected(_leaf(url) or "the voice", request.sha256, max_bytes=request.max_bytes)
        return Download(transport, part, expected, means.report, means.disk).run(url).sha256


def _leaf(url: str) -> str:
    """The last piece of an address as a file name, empty if it cannot be one."""
    raw = unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    try:
        name = safe_name(raw, depth=1)
    except ArchiveError:
        return ""
    return "" if name is None or name.name.startswith(".") else name.name


def _place(part: Path, leaf: str, folder: Path, request: VoiceRequest) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    with _named(folder):
        scratch = Path(tempfile.mkdtemp(prefix=".voice-", dir=folder))
        try:
            moves = _targets(_open_up(part, leaf, scratch / "in"), folder, request)
            _move(moves)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    targets = [target for _, target in moves]
    return (
        tuple(target for target in targets if target.suffix == ".pth"),
        tuple(target for target in targets if target.suffix == ".index"),
    )


def _move(moves: list[tuple[Path, Path]]) -> None:
    """All files to their names, or, if one cannot be moved, none that was not there before."""
    new: list[Path] = []
    finished = False
    try:
        for source, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                new.append(target)
            os.replace(source, target)
        finished = True
    finally:
        for target in new if not finished else ():
            target.unlink(missing_ok=True)


def _open_up(part: Path, leaf: str, inside: Path) -> list[Path]:
    """The voice files of what was downloaded, as files under `inside`."""
    with part.open("rb") as file:
        head = file.read(16)
    for magic, kind in _OTHER_ARCHIVES.items():
        if head.startswith(magic):
            raise ArchiveError(f"the file is a {kind} archive, which is not read", "Unpack it and give the files.")
    kind = archive_kind(part)
    names = [member.name for member in walk(part, VOICE_LIMITS)] if kind is not None else []
    wanted = [name for name in names if _wanted(name)]
    if wanted:
        if len(wanted) > MAX_VOICE_FILES:
            raise ArchiveError(
                f"the archive holds {len(wanted)} voice files, more than {MAX_VOICE_FILES}", "Take fewer."
            )
        return list(unpack(part, inside, limits=VOICE_LIMITS, keep=_wanted))
    is_checkpoint = kind == "zip" and any(name.name == "data.pkl" for name in names)  # torch writes zips, too
    if kind is not None and not is_checkpoint:
        nested = [name.name for name in names if name.suffix.lower() in (".zip", ".7z", ".rar", ".gz")]
        hint = f"It holds another archive, {nested[0]}: unpack that yourself." if nested else "Check the address."
        raise ArchiveError("the archive holds no .pth and no .index", hint)
    suffix = ".pth" if is_checkpoint else ".index" if head[:4] in _INDEX_MAGIC else PurePosixPath(leaf).suffix.lower()
    if suffix not in VOICE_SUFFIXES:
        raise ArchiveError(f"what {leaf or 'the address'} serves is neither a voice nor an archive of one", "Check it.")
    inside.mkdir()
    target = inside / f"{PurePosixPath(leaf).stem or 'voice'}{suffix}"
    with target.open("xb") as file:
        for block in file_blocks(part):
            file.write(block)
    return [target]


def _wanted(name: PurePosixPath) -> bool:
    return (
        name.suffix.lower() in VOICE_SUFFIXES
        and not name.name.startswith(".")  # `._voice.pth` is a Mac's note about the file
        and "__MACOSX" not in name.parts
    )


def _targets(found: list[Path], folder: Path, request: VoiceRequest) -> list[tuple[Path, Path]]:
    """Where each file goes, flat; refused before anything moves if a place is taken by something else."""
    voices = sum(path.suffix.lower() == ".pth" for path in found)
    moves: list[tuple[Path, Path]] = []
    taken: set[str] = set()
    for path in found:
        suffix = path.suffix.lower()
        stem = path.stem
        if request.name is not None:
            stem = request.name if suffix == ".pth" and voices == 1 else f"{request.name}-{path.stem}"
        base = folder if suffix == ".pth" else request.index_folder or folder
        target = base / f"{stem}{suffix}"
        if target.name.casefold() in taken:
            raise ArchiveError(f"the archive holds two files called {target.name}", "Unpack it and rename one.")
        taken.add(target.name.casefold())
        same = target.is_file() and target.stat().st_size == path.stat().st_size
        if target.exists() and not request.replace and not (same and sha256_file(target) == sha256_file(path)):
            raise AssetError(f"{target} exists and is another file", "Give the voice a name, or allow replacing.")
        moves.append((path, target))
    return moves


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as failed:
        if failed.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskSpaceError(f"the disk of {folder} is full", "Free some space and start again.") from failed
        raise OutputError(f"{folder} cannot be written: {failed}", "Check the folder and its rights.") from failed
