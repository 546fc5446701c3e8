"""The set itself: its files have the recorded bytes, its arrays the recorded layout, and nothing lies unused."""

from __future__ import annotations

from conformance_checks.folder import Arrays, GoldenFolder, sha256
from conformance_checks.record import Recorder


def check_files(folder: GoldenFolder, record: Recorder) -> None:
    """Presence, size, SHA-256 and array layout of everything in `files`; nothing unlisted; cases name listed files."""
    listed = folder.index["files"]
    for name, told in listed.items():
        path = folder.root / name
        if not path.is_file():
            record.fail(name, "is missing")
            continue
        record.same(f"{name}, bytes", path.stat().st_size, told["bytes"])
        record.same(f"{name}, sha256", sha256(path), told["sha256"])
        if name.endswith(".npz"):
            check_layout(folder, name, record)
    for name in folder.unlisted():
        record.fail(name, "lies in the folder but index.json does not list it")
    for case in folder.cases:
        missing = [name for name in case["files"] if name not in listed]
        record.holds(f"{case['id']}, files", not missing, f"names {missing}, which index.json does not list")


def check_layout(folder: GoldenFolder, name: str, record: Recorder) -> None:
    """Names, dtypes and shapes of the arrays of one file."""
    told = folder.index["arrays"].get(name, {})
    found = Arrays(folder.root / name, name).layout()  # looked at here without counting as used by a check
    differing = sorted(key for key in told.keys() | found.keys() if told.get(key) != found.get(key))
    record.holds(f"{name}, arrays", not differing, f"differ from the index in {differing[:5]}")


def check_unopened(folder: GoldenFolder, record: Recorder) -> None:
    """After a complete run: every listed file was used by some check."""
    for name in folder.index["files"]:
        record.holds(f"{name}, opened", folder.was_opened(name), "no check opened it")
