"""A profile that is being made: in a hidden folder beside its place, and moved there by one rename when it is whole.

    .creating-ID/ --- every file written and brought to the disk --- rename ---> ID/

Whoever dies on the way leaves a `.creating-*` behind. Its maker holds a lock inside it, so the next one to look can
tell an abandoned one from one that is being worked on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import filelock

from rvc_spark.errors import OutputError, ProfileExistsError
from rvc_spark.profiles.private_files import erase, make_private_folder, sync_folder, write_private
from rvc_spark.profiles.profile_names import is_id, new_id
from rvc_spark.profiles.profile_record import RECORD, ProfileRecord, StoredFile
from rvc_spark.profiles.voice_profile import DERIVED, VoiceProfile, open_profile

CREATING = ".creating-"
ALIVE = ".alive"  # locked by whoever makes the profile
_LOCKED_AFTER = 3600.0  # seconds; a folder without a lock file is only just begun, or was abandoned long ago


class ProfileDraft:
    """Files of a profile to be; use it with `with`. What is not committed is erased.

    place: the folder it becomes; it must not exist. identity: None makes a new id.
    Raises ProfileExistsError, OutputError.
    """

    def __init__(self, place: Path, identity: str | None = None) -> None:
        self.place, self.id = place, identity or new_id()
        if os.path.lexists(place):
            raise ProfileExistsError(f"{place} is there already", "Name a place that is free.")
        self.folder = make_private_folder(place.parent / f"{CREATING}{new_id()}")
        self._alive = filelock.FileLock(self.folder / ALIVE, thread_local=False)
        self._alive.acquire(timeout=0)
        self._files: dict[str, StoredFile] = {}

    def __enter__(self) -> ProfileDraft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._alive.release()
        if self.folder.exists():
            erase(self.folder)

    @property
    def derived_folder(self) -> Path:
        """For what can be made again, made when it is asked for."""
        return make_private_folder(self.folder / DERIVED, parents=False)

    def add(self, name: str, content: bytes | Iterable[bytes]) -> StoredFile:
        """Write a file that the record will list. name: relative, with `/`. Raises OutputError, DiskSpaceError."""
        path = self.folder / name
        make_private_folder(path.parent, parents=False)
        self._files[name] = StoredFile(*write_private(path, content))
        return self._files[name]

    def commit(self, record: ProfileRecord) -> VoiceProfile:
        """Write the record and move everything to its place; the record gets the id and the files of the draft.

        Raises ProfileExistsError when the place was taken meanwhile, OutputError.
        """
        record = replace(record, id=self.id, files=dict(self._files))
        write_private(self.folder / RECORD, record.encoded())
        self._alive.release()
        (self.folder / ALIVE).unlink(missing_ok=True)
        open_profile(self.folder, identity=self.id)  # what would be refused later is refused now
        try:
            for folder in sorted({(self.folder / name).parent for name in self._files}):
                sync_folder(folder)
            sync_folder(self.folder)
            if os.path.lexists(self.place):
                raise ProfileExistsError(f"{self.place} is there already", "Name a place that is free.")
            os.rename(self.folder, self.place)
            sync_folder(self.place.parent)
        except OSError as error:
            raise OutputError(f"{self.place} cannot be made ({error})", "Check space and permissions.") from error
        return VoiceProfile(self.place, record)


def sweep_drafts(root: Path) -> int:
    """Erase what makers that died left behind; returns how many. Whoever is at work is left alone."""
    swept = 0
    for folder in root.glob(f"{CREATING}*"):
        if is_id(folder.name.removeprefix(CREATING)) and _abandoned(folder):
            erase(folder)
            swept += 1
    return swept


def _abandoned(folder: Path) -> bool:
    if folder.is_symlink():
        return True
    alive = folder / ALIVE
    try:
        if not alive.is_file() or alive.is_symlink():
            return time.time() - folder.lstat().st_mtime > _LOCKED_AFTER
        with filelock.FileLock(alive, timeout=0):
            return True
    except filelock.Timeout:
        return False
    except FileNotFoundError:  # it was committed or erased at this moment
        return False
