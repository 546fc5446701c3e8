"""What was made is kept under what it was made from, so that nothing is ever made twice.

    <key>.vocals.wav, <key>.accompaniment.wav     written beside (in .<run>.draft/), synced, renamed
    <key>.json                                    the sidecar: recipe, sizes, digests, facts; renamed last
    .runs/<run>.lock                              held while a cover is being made
    .keys/<key>.lock                              held by the one who makes this artefact

The key is the sha256 of the whole recipe: stage and its version, digests of inputs and model, parameters. Without its
sidecar an artefact does not exist, so a process killed at any moment leaves nothing that could be trusted; with it,
every file is held to its size each time and to its digest once per process. All names are made from the key: nothing
that stands in a sidecar is ever a path. Links are refused. Knows nothing of sound.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from rvc_spark.asset_folder import sha256_file
from rvc_spark.covers.artefact_files import empty_folder, is_held, read_plain, sync
from rvc_spark.covers.recipe import Recipe, differences
from rvc_spark.errors import AssetError, OutputError

POLL_SECONDS = 0.25
YOUNG_SECONDS = 60.0
FORMAT = 1
GIB = 1 << 30
DAY = 86_400.0
_KEY = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}\.[a-z0-9]{1,8}")
_OURS = re.compile(r"(?P<key>[0-9a-f]{64})\.(?P<name>json|[a-z][a-z0-9_]{0,31}\.[a-z0-9]{1,8})")
_DRAFT = re.compile(r"\.(?P<run>[0-9a-f]{16})\.draft")
_RUN = re.compile(r"(?P<run>[0-9a-f]{16})\.lock")


@dataclass(frozen=True)
class Artefact:
    """A finished stage. files: name -> path; digests: name -> sha256; facts: what else the stage found out."""

    key: str
    recipe: Mapping[str, Any]
    files: Mapping[str, Path]
    digests: Mapping[str, str]
    facts: Mapping[str, Any]
    seconds: float  # of work it took


class Draft:
    """An artefact in the making: `path(name)` is where to write; facts may be added until it is finished."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = {}

    def path(self, name: str) -> Path:
        """Where the file of this name, such as `vocals.wav`, is to be written."""
        assert _NAME.fullmatch(name), name
        return self.folder / name


@dataclass(frozen=True)
class Limits:
    """What may stay: bytes in all, and days since an artefact was last used."""

    bytes: int = 10 * GIB
    days: float = 30.0


@dataclass(frozen=True)
class Pruned:
    """What a pruning removed and what it left."""

    removed: int
    freed: int  # bytes
    kept: int
    bytes_left: int


class ArtefactStore:
    """Artefacts below `root`, shared by any number of processes."""

    def __init__(self, root: Path, limits: Limits | None = None) -> None:
        """Raises OutputError: the place is a link, no folder, or cannot be written."""
        self.root, self.limits = Path(root), limits or Limits()
        self._verified: set[tuple[str, int, int, int]] = set()  # path, inode, size, time of what was read through
        try:
            for folder in (self.root, self.root / ".runs", self.root / ".keys"):
                folder.mkdir(parents=True, exist_ok=True)
                if folder.is_symlink() or not folder.is_dir():
                    raise OutputError(f"{folder} is a link", "Name a real folder: `covers` in rvc_spark.yaml.")
        except OSError as error:
            raise _unwritable(self.root, error) from error

    # ------------------------------------------------------------------------------------------------- reading

    def find(self, recipe: Recipe) -> Artefact | None:
        """The finished artefact of a recipe, or None. One that is damaged is removed and None too."""
        key = recipe.key
        if key is None:
            return None
        artefact = self._read(key)
        if artefact is None or artefact.recipe != json.loads(json.dumps(recipe.plain())):
            return None
        for name, path in artefact.files.items():
            if not self._whole(path, artefact.digests[name]):
                self._remove(key)
                return None
        with suppress(OSError):
            os.utime(self.root / f"{key}.json")  # it was used now
        return artefact

    def _read(self, key: str) -> Artefact | None:
        """What the sidecar says, if it says what a sidecar says and its files have the right size."""
        try:
            said = json.loads(read_plain(self.root / f"{key}.json"))
            files, facts = said["files"], said["facts"]
            sizes = {name: files[name]["bytes"] for name in files}
            digests = {name: files[name]["sha256"] for name in files}
            seconds = float(said["seconds"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        good = said.get("format") == FORMAT and said.get("key") == key and isinstance(facts, dict)
        if not good or not all(_NAME.fullmatch(name) and _KEY.fullmatch(str(digests[name])) for name in files):
            return None
        paths = {name: self.root / f"{key}.{name}" for name in files}
        for name, path in paths.items():
            with suppress(OSError):
                here = path.lstat()
                if stat.S_ISREG(here.st_mode) and here.st_size == sizes[name]:
                    continue
            return None
        return Artefact(key, said.get("recipe", {}), paths, digests, facts, seconds)

    def _whole(self, path: Path, digest: str) -> bool:
        """Whether a file is the one that was written: read through once, known by its inode and time after that."""
        try:
            here = path.lstat()
            state = (str(path), here.st_ino, here.st_size, here.st_mtime_ns)
            if state not in self._verified:
                if sha256_file(path) != digest:
                    return False
                self._verified.add(state)
        except (OSError, AssetError):
            return False
        return True

    def nearest(self, recipe: Recipe) -> Mapping[str, Any] | None:
        """The recipe of the same stage, among all that are kept, that differs least; the newest of equals."""
        wanted = json.loads(json.dumps(recipe.plain()))
        found = []
        for key in self._keys():
            artefact = self._read(key)
            if artefact is not None and artefact.recipe.get("stage") == recipe.stage:
                with suppress(OSError):
                    age = -(self.root / f"{key}.json").stat().st_mtime
                    found.append((len(differences(artefact.recipe, wanted)), age, key, artefact.recipe))
        return min(found)[3] if found else None

    # ------------------------------------------------------------------------------------------------- writing

    @contextmanager
    def run(self) -> Iterator[str]:
        """A stretch of work: what is used from now on is not pruned by others. Gives the name drafts are made under."""
        name = secrets.token_hex(8)
        lock = filelock.FileLock(self.root / ".runs" / f"{name}.lock", thread_local=False)
        with self._trouble_named():
            lock.acquire()
            self._sweep()
        try:
            yield name
        finally:
            lock.release()
            with suppress(OSError):
                (self.root / ".runs" / f"{name}.lock").unlink(missing_ok=True)

    def only_maker(self, recipe: Recipe) -> Generator[None, None, filelock.BaseFileLock]:
        """Become the one process that makes this; yields while another one does. Returns the lock, to be released."""
        lock = filelock.FileLock(self.root / ".keys" / f"{recipe.key}.lock", thread_local=False)
        while True:
            with self._trouble_named():
                try:
                    return lock.acquire(timeout=POLL_SECONDS).lock
                except filelock.Timeout:
                    pass
            yield

    @contextmanager
    def draft(self, run: str) -> Iterator[Draft]:
        """A folder for files in the making; emptied and gone in the end."""
        folder = self.root / f".{run}.draft"
        with self._trouble_named():
            empty_folder(folder)
            folder.mkdir()
        try:
            yield Draft(folder)
        finally:
            empty_folder(folder)

    def keep(self, recipe: Recipe, draft: Draft, seconds: float) -> Artefact:
        """Make a draft the artefact of a recipe: files first, each synced and renamed, the sidecar last.

        Raises OutputError when the disk does not take it.
        """
        key = recipe.key
        assert key is not None
        with self._trouble_named():
            files: dict[str, dict[str, Any]] = {}
            with suppress(FileNotFoundError):
                (self.root / f"{key}.json").unlink()  # whatever it vouched for is about to change
            for path in sorted(draft.folder.iterdir()):
                sync(path)
                files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
                os.replace(path, self.root / f"{key}.{path.name}")
            said = {
                "format": FORMAT, "key": key, "recipe": recipe.plain(), "files": files, "facts": draft.facts,
                "seconds": round(seconds, 3),
            }  # fmt: skip
            sidecar = draft.folder / "sidecar.json"
            sidecar.write_text(json.dumps(said, allow_nan=False), encoding="utf-8")
            sync(sidecar)
            sync(self.root)
            os.replace(sidecar, self.root / f"{key}.json")
            sync(self.root)
        artefact = self._read(key)
        if artefact is None:
            raise OutputError(f"what was just written to {self.root} is not there", "Check the disk.")
        for path in artefact.files.values():  # read through while it was hashed
            here = path.lstat()
            self._verified.add((str(path), here.st_ino, here.st_size, here.st_mtime_ns))
        return artefact

    # ------------------------------------------------------------------------------------------------- pruning

    def prune(self, limits: Limits | None = None) -> Pruned:
        """Remove artefacts not used for `days`, then the longest unused until `bytes` hold the rest.

        What a run that is under way may still need stays, as do files that are not ours. Raises OutputError.
        """
        limits = limits or self.limits
        now, began = time.time(), self._oldest_run()
        kept, removed, freed = [], 0, 0
        with self._trouble_named():
            self._sweep()
            for used, key, size in sorted(self._sizes()):
                if used < began and (now - used > limits.days * DAY or not (self.root / f"{key}.json").exists()):
                    removed, freed = removed + 1, freed + self._remove(key)
                else:
                    kept.append((used, key, size))
            total = sum(size for _, _, size in kept)
            for used, key, size in list(kept):
                if total <= limits.bytes or used >= began:
                    break
                kept.remove((used, key, size))
                removed, freed, total = removed + 1, freed + self._remove(key), total - size
        return Pruned(removed, freed, len(kept), total)

    def _sizes(self) -> list[tuple[float, str, int]]:
        """(last used, key, bytes) of everything that looks like an artefact, also where its sidecar is missing."""
        sizes: dict[str, list[tuple[float, int]]] = {}
        with os.scandir(self.root) as entries:
            for entry in entries:
                found = _OURS.fullmatch(entry.name)
                if found:
                    here = entry.stat(follow_symlinks=False)
                    sizes.setdefault(found["key"], []).append((here.st_mtime, here.st_size))
        return [(max(used for used, _ in rows), key, sum(size for _, size in rows)) for key, rows in sizes.items()]

    def _keys(self) -> list[str]:
        with os.scandir(self.root) as entries:
            names = [entry.name.removesuffix(".json") for entry in entries if entry.name.endswith(".json")]
        return [name for name in names if _KEY.fullmatch(name)]

    def _oldest_run(self) -> float:
        """When the oldest run that is still alive began; the far future if there is none."""
        began = [float("inf")]
        for path in (self.root / ".runs").iterdir():
            if _RUN.fullmatch(path.name) and is_held(path):
                with suppress(OSError):
                    began.append(path.lstat().st_mtime - 1)
        return min(began)

    def _sweep(self) -> None:
        """Remove what killed runs have left: their drafts and locks."""
        for path in list(self.root.iterdir()):
            draft = _DRAFT.fullmatch(path.name)
            if draft and not is_held(self.root / ".runs" / f"{draft['run']}.lock"):
                empty_folder(path)
        for path in list((self.root / ".runs").iterdir()):
            with suppress(FileNotFoundError):  # a young one may be about to be locked by whoever has just made it
                old = time.time() - path.lstat().st_mtime > YOUNG_SECONDS
                if _RUN.fullmatch(path.name) and old and not is_held(path):
                    path.unlink()

    def _remove(self, key: str) -> int:
        """Sidecar first, so that what is left for a moment is not trusted; returns the bytes freed."""
        freed = 0
        names = [f"{key}.json"]
        with os.scandir(self.root) as entries:
            names += [e.name for e in entries if e.name.startswith(f"{key}.") and _OURS.fullmatch(e.name)]
        for name in dict.fromkeys(names):
            with suppress(FileNotFoundError):
                freed += (self.root / name).lstat().st_size
                (self.root / name).unlink()
        with suppress(OSError):
            (self.root / ".keys" / f"{key}.lock").unlink(missing_ok=True)
        return freed

    @contextmanager
    def _trouble_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _unwritable(self.root, error) from error


def _unwritable(root: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{root} cannot be used for intermediate results ({error.strerror or error})",
        "Free some space, `rvc-spark cover --prune`, or name another folder: `covers` in rvc_spark.yaml.",
    )
