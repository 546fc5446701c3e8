"""A profile as one file, for another machine: a plain zip of its folder, without what can be made again.

It is read as if a stranger had made it: names must be those of a profile's files, sizes are counted while bytes come
out, every hash is compared and every sound opened, all in a hidden folder; only then it appears among the others, or
nothing does. Links to voices of one machine do not travel.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rvc_spark.archives import ArchiveLimits, walk, write_member
from rvc_spark.errors import OutputError, ProfileError, ProfileExistsError
from rvc_spark.profiles.private_files import PRIVATE_FILE, make_private_folder, plain_blocks, read_plain
from rvc_spark.profiles.profile_draft import ALIVE, ProfileDraft
from rvc_spark.profiles.profile_names import checked_name
from rvc_spark.profiles.profile_record import (
    MAX_FILES,
    MAX_RECORD_BYTES,
    RECORD,
    Links,
    StoredFile,
    is_profile_file,
    parse_record,
)
from rvc_spark.profiles.profile_store import ProfileStore
from rvc_spark.profiles.voice_profile import VoiceProfile

SUFFIX = ".rvcprofile.zip"
LIMITS = ArchiveLimits(members=MAX_FILES + 8, total_bytes=8 << 30, depth=2)
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the same profile gives the same archive


def export_profile(profile: VoiceProfile, target: str | Path) -> Path:
    """Write a profile into one file; a folder gets `NAME.rvcprofile.zip` in it. Only its owner may read the file.

    Raises ProfileError or AudioError when the profile is damaged, OutputError, DiskSpaceError.
    """
    profile.check()
    target = Path(target)
    if target.is_dir():
        target = target / f"{_plain(profile.name)}{SUFFIX}"
    if target.resolve().is_relative_to(profile.folder.resolve()):
        raise OutputError(f"{target} is inside the profile", "Name a place outside of it.")
    scratch = target.with_name(f".{target.name}.{os.getpid()}.part")
    record = replace(profile.record, links=Links())
    try:
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE), "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # what is in it is compressed already
                archive.writestr(zipfile.ZipInfo(RECORD, ZIP_DATE), record.encoded())
                for name, entry in sorted(record.files.items()):
                    with archive.open(zipfile.ZipInfo(name, ZIP_DATE), "w", force_zip64=True) as member:
                        for block in plain_blocks(profile.folder / name, entry.bytes):
                            member.write(block)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written ({error})", "Check the folder and its permissions.") from error
    finally:
        scratch.unlink(missing_ok=True)
    return target


def import_profile(
    store: ProfileStore, archive: str | Path, *, name: str | None = None, restore: bool = False
) -> VoiceProfile:
    """Take a profile from an archive into a store; it is there whole, or nothing is.

    Args:
        name: what it shall be called here; None keeps its name.
        restore: take it although a profile with its id was deleted here.

    Raises ArchiveError (damaged, hostile, a bomb), ProfileError (no profile, a hash that differs), AudioError,
    ProfileExistsError (id or name are taken, or it was deleted), DiskSpaceError.
    """
    archive = Path(archive)
    if name is not None:
        name = checked_name(name)
    if not archive.is_file():
        raise ProfileError(f"{archive} is not a file", "Give the path of an exported profile.")
    with store.draft() as scratch:  # its id is found inside; until then it has one of its own
        _unpack(archive, scratch.folder)
        record = parse_record(read_plain(scratch.folder / RECORD, MAX_RECORD_BYTES))
        wanted = record.name if name is None else name
        _refuse_known(store, record.id, restore)
        with store.reserved(wanted) as kept, store.draft(record.id) as draft:
            _move(scratch, draft, record.files)
            moved = replace(record, name=kept, links=Links())
            VoiceProfile(draft.folder, replace(moved, id=draft.id)).check()
            profile = draft.commit(moved)
    if restore:
        store.forget_tombstone(profile.id)
    return profile


def _refuse_known(store: ProfileStore, identity: str, restore: bool) -> None:
    if os.path.lexists(store.root / identity):
        raise ProfileExistsError(
            f"the profile {identity} is here already", "Delete it first, if the archive shall replace it."
        )
    tombstone = store.tombstone(identity)
    if tombstone is not None and not restore:
        raise ProfileExistsError(
            f"the profile {identity} was deleted here at {tombstone.deleted}",
            "If its owner agrees again, import it with restore=True (--restore).",
        )


def _unpack(archive: Path, folder: Path) -> None:
    for member in walk(archive, LIMITS):
        name = member.name.as_posix()
        if name != RECORD and not is_profile_file(name):
            raise ProfileError(f"the archive holds {ascii(name[:80])}, which no profile has", "Do not trust it.")
        if name == RECORD and member.declared_bytes > MAX_RECORD_BYTES:
            raise ProfileError(f"{RECORD} has {member.declared_bytes:,} bytes in the archive", "Do not trust it.")
        target = folder / name
        make_private_folder(target.parent)
        write_member(member, target)
        os.chmod(target, PRIVATE_FILE)
    if not (folder / RECORD).is_file():
        raise ProfileError(f"the archive holds no {RECORD}", "Give an archive that `profiles export` wrote.")


def _move(scratch: ProfileDraft, draft: ProfileDraft, files: Mapping[str, StoredFile]) -> None:
    """The listed files into the draft, which computes their hashes anew and so proves or disproves the record's."""
    for name, entry in sorted(files.items()):
        written = draft.add(name, plain_blocks(scratch.folder / name, entry.bytes))
        if written != entry:
            raise ProfileError(f"{name} in the archive is not the file its record lists", "Get the archive again.")
    here = {path.relative_to(scratch.folder).as_posix() for path in scratch.folder.rglob("*") if path.is_file()}
    if extra := sorted(here - {*files, RECORD, ALIVE}):
        raise ProfileError(f"the archive holds {ascii(extra[0][:80])}, which is not in its record", "Do not trust it.")


def _plain(name: str) -> str:
    """A name as a file's: letters, digits and a few signs."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:60]
