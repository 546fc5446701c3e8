"""All enrolled voices of one machine, in one private folder.

    ROOT/ID/                a profile, see `voice_profile`
         .creating-*        one that is being made          .deleting-*    one that is being erased
         .tombstones/ID.json    that there was one and when it was deleted, and nothing of whose voice it was
         .locks/NN.lock     names fall into a few slots, so that a lock file tells nobody's name

Nothing outside ROOT is ever written or deleted; a link inside it is listed as damage and not followed. Two programs
that enrol one name wait for each other, and the second is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import filelock

from rvc_spark.errors import OutputError, ProfileError, ProfileExistsError, ProfileNotFoundError, RvcSparkError
from rvc_spark.profiles.consent import now
from rvc_spark.profiles.private_files import erase, make_private_folder, read_plain, replace_private, sync_folder
from rvc_spark.profiles.profile_draft import ProfileDraft, sweep_drafts
from rvc_spark.profiles.profile_names import PREFIX, checked_name, is_id, name_key, new_id
from rvc_spark.profiles.profile_record import MAX_LINK, RECORD, Links
from rvc_spark.profiles.strict_json import parse_object
from rvc_spark.profiles.voice_profile import VoiceProfile, open_profile
from rvc_spark.rvc_config import RVCConfig

TOMBSTONES, LOCKS, DELETING = ".tombstones", ".locks", ".deleting-"
TOMBSTONE_FORMAT = "rvc_spark deleted profile"
MAX_TOMBSTONE_BYTES = 4_096
LOCK_SLOTS = 64
WAIT_SECONDS = 900.0  # for another enrolment of the same name; one of thirty recordings takes a minute or two
MAX_PROFILES = 10_000


@dataclass(frozen=True)
class ProfileListing:
    """One folder of the store. `profile` is None where `error` says what is damaged."""

    id: str
    profile: VoiceProfile | None
    error: str | None

    @property
    def name(self) -> str:
        """For people; a damaged profile is called by its id."""
        return self.id if self.profile is None else self.profile.name


@dataclass(frozen=True)
class Tombstone:
    """A profile that was deleted, and when (ISO 8601)."""

    id: str
    deleted: str


class ProfileStore:
    """The profiles under `root`, which is made private when it is first written to. Safe in threads and processes.

    A root that is a link or a file is refused with a ProfileError when it is looked at.
    """

    def __init__(self, root: str | Path) -> None:
        given = Path(root)
        self.root = given.parent.resolve() / given.name

    @classmethod
    def of(cls, config: RVCConfig | None = None) -> ProfileStore:
        """The store of a configuration."""
        return cls((config or RVCConfig()).profiles_dir)

    # ---- looking ---------------------------------------------------------------------------------------------------

    def listings(self) -> list[ProfileListing]:
        """Every profile by name; a damaged one is listed with the reason and spoils no other."""
        found = []
        for identity in self._ids():
            try:
                found.append(ProfileListing(identity, open_profile(self.root / identity, identity=identity), None))
            except RvcSparkError as error:
                if os.path.lexists(self.root / identity):  # else it was deleted at this moment
                    found.append(ProfileListing(identity, None, str(error)))
        return sorted(found, key=lambda listing: (listing.profile is None, name_key(listing.name), listing.id))

    def profiles(self) -> list[VoiceProfile]:
        """Every profile that is in order, by name."""
        return [listing.profile for listing in self.listings() if listing.profile is not None]

    def get(self, reference: str) -> VoiceProfile:
        """A profile by name or id, with or without `profile:` before it.

        Raises ProfileNotFoundError naming the nearest names, ProfileError when it is damaged.
        """
        wanted = reference.removeprefix(PREFIX).strip()
        if is_id(wanted) and os.path.lexists(self.root / wanted):
            return open_profile(self.root / wanted, identity=wanted)
        known = {name_key(profile.name): profile for profile in self.profiles()}
        if (found := known.get(name_key(wanted[: 4 * MAX_LINK]))) is not None:
            return found
        names = [profile.name for profile in known.values()]
        near = get_close_matches(wanted[:MAX_LINK], names, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Profiles: {', '.join(names[:20]) or 'none yet'}."
        raise ProfileNotFoundError(f"there is no profile {ascii(wanted[:80])}", hint)

    def find(self, reference: str) -> VoiceProfile | None:
        """Like `get`, None where there is no such profile. Raises ProfileError when it is damaged."""
        try:
            return self.get(reference)
        except ProfileNotFoundError:
            return None

    def tombstone(self, identity: str) -> Tombstone | None:
        """The mark of a deleted profile, None where there is none."""
        path = self.root / TOMBSTONES / f"{identity}.json"
        if not is_id(identity) or not os.path.lexists(path):
            return None
        fields = parse_object(read_plain(path, MAX_TOMBSTONE_BYTES), path.name)
        if fields.text("format", 40) != TOMBSTONE_FORMAT or fields.text("id", 40) != identity:
            fields.refuse("", "is no tombstone of that profile")
        return Tombstone(identity, fields.text("deleted", 40))

    def _ids(self) -> list[str]:
        if self.root.is_symlink():
            raise ProfileError(f"{self.root} is a link, not a folder", "Name the folder itself.")
        try:
            names = sorted(name for name in os.listdir(self.root) if is_id(name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ProfileError(f"{self.root} cannot be read ({error.strerror})", "Check its permissions.") from error
        return names[:MAX_PROFILES]

    # ---- making ----------------------------------------------------------------------------------------------------

    @contextmanager
    def reserved(self, name: str) -> Iterator[str]:
        """Hold a name while a profile of it is made; gives the name in the form that is kept.

        Another program that wants the name waits here. Raises ProfileExistsError when a profile has it, ProfileError
        for a name that cannot be one, or when the other takes longer than WAIT_SECONDS.
        """
        name = checked_name(name)
        self._make()
        slot = hashlib.sha256(name_key(name).encode()).digest()[0] % LOCK_SLOTS
        with self._lock(f"{slot:02d}", f"another program enrols {name!r}"):
            self.sweep()
            if any(name_key(profile.name) == name_key(name) for profile in self.profiles()):
                raise ProfileExistsError(
                    f"there is a profile {name!r} already",
                    f"Choose another name such as {_next_name(name, self.profiles())!r}, or delete the old one first.",
                )
            yield name

    def draft(self, identity: str | None = None) -> ProfileDraft:
        """A profile to be, in this store. identity: of an imported one. Raises ProfileExistsError."""
        self._make()
        identity = identity or new_id()
        return ProfileDraft(self.root / identity, identity)

    def link(self, reference: str, *, voice: str | None = None, index: str | Path | None = None) -> VoiceProfile:
        """Note the RVC voice and the index that were trained for a profile; None takes a note away.

        Raises ProfileNotFoundError, ProfileError, OutputError.
        """
        profile = self.get(reference)
        links = Links(voice, None if index is None else str(index))
        with self._lock(profile.id, "another program changes it"):
            profile = self.get(profile.id)
            record = replace(profile.record, links=links)
            replace_private(profile.folder / RECORD, record.encoded())
        return self.get(profile.id)

    @contextmanager
    def changing(self, profile: VoiceProfile) -> Iterator[None]:
        """Hold a profile while something derived of it is made. Raises ProfileError, also when it is gone."""
        with self._lock(profile.id, f"another program works on {profile.name!r}"):
            open_profile(profile.folder, identity=profile.id)
            yield

    # ---- deleting --------------------------------------------------------------------------------------------------

    def delete(self, reference: str) -> Tombstone:
        """Erase a profile, damaged or not, with all that was derived of it; what stays is that it existed and when.

        A damaged one is named by its id. Raises ProfileNotFoundError, OutputError when something could not be erased.
        """
        wanted = reference.removeprefix(PREFIX).strip()
        identity = wanted if is_id(wanted) and os.path.lexists(self.root / wanted) else self.get(reference).id
        self._make()
        with self._lock(identity, "another program works on it"):
            tombstone = Tombstone(identity, now())
            told = {"format": TOMBSTONE_FORMAT, "id": identity, "deleted": tombstone.deleted}
            make_private_folder(self.root / TOMBSTONES)
            replace_private(self.root / TOMBSTONES / f"{identity}.json", json.dumps(told, indent=1).encode())
            doomed = self.root / f"{DELETING}{new_id()}"
            try:
                os.rename(self.root / identity, doomed)
                sync_folder(self.root)
            except FileNotFoundError as error:
                raise ProfileNotFoundError(f"profile {identity} is gone already", "There is nothing to do.") from error
            except OSError as error:
                raise OutputError(f"{identity} cannot be deleted ({error})", "Check its permissions.") from error
            erase(doomed)
        self._forget_lock(identity)
        return tombstone

    def forget_tombstone(self, identity: str) -> None:
        """Remove the mark of a deleted profile, so that it may be imported again."""
        if is_id(identity):
            (self.root / TOMBSTONES / f"{identity}.json").unlink(missing_ok=True)

    def sweep(self) -> int:
        """Erase what programs that died left half made or half erased; returns how many folders."""
        doomed = list(self.root.glob(f"{DELETING}*"))
        for folder in doomed:
            erase(folder)
        return len(doomed) + sweep_drafts(self.root)

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _make(self) -> None:
        make_private_folder(self.root)
        make_private_folder(self.root / LOCKS)

    @contextmanager
    def _lock(self, name: str, busy: str) -> Iterator[None]:
        self._make()
        lock = filelock.FileLock(self.root / LOCKS / f"{name}.lock", mode=0o600, thread_local=False)
        try:
            lock.acquire(timeout=WAIT_SECONDS)
        except filelock.Timeout as error:
            raise ProfileError(f"{busy} for over {WAIT_SECONDS:g} s", "Wait for it, or end it.") from error
        except OSError as error:
            raise OutputError(f"{self.root / LOCKS} cannot be written ({error})", "Check its permissions.") from error
        try:
            yield
        finally:
            lock.release()

    def _forget_lock(self, identity: str) -> None:
        (self.root / LOCKS / f"{identity}.lock").unlink(missing_ok=True)


def _next_name(name: str, profiles: list[VoiceProfile]) -> str:
    """`Anna 2`, the first that is free."""
    taken = {name_key(profile.name) for profile in profiles}
    return next(f"{name} {count}" for count in range(2, len(taken) + 3) if name_key(f"{name} {count}") not in taken)


def describe(profile: VoiceProfile) -> dict[str, Any]:
    """A profile for machines: everything but paths and sound."""
    record = profile.record
    return {
        "id": record.id, "name": record.name, "created": record.created, "grade": record.grade,
        "samples": len(record.samples), "seconds": round(profile.seconds, 2), "language": record.language,
        "f0_hz": None if record.f0 is None else [record.f0.low_hz, record.f0.median_hz, record.f0.high_hz],
        "transcript": profile.transcript, "engine": record.engine, "voice": record.links.voice,
        "consent": {"who": record.consent.who, "when": record.consent.when, "method": record.consent.method},
        "originals": any(sample.original for sample in record.samples),
    }  # fmt: skip
