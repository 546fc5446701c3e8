"""The groups in their order, and how one of them is run: its cases, what no case names, and what nobody compared."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType

from conformance_checks.files import check_files, check_unopened
from conformance_checks.folder import GoldenFolder
from conformance_checks.record import Group, Recorder
from conformance_checks.run import Run

KINDS = {  # group (and module) -> the kinds of case in index.json that belong to it
    "voices": ("voice", "voice_variant", "voice_recipe"),
    "sine": ("sine",),
    "rmvpe": ("rmvpe", "rmvpe_decode"),
    "content": ("hubert", "hubert_recipe"),
    "functions": ("function",),
    "pitch": ("f0",),
    "pipeline": ("pipeline",),
    "hostile": ("hostile",),
}
FILES = "files"  # the group of the set itself: hashes, array layouts, cases of a kind nobody knows
GROUPS = (*KINDS, FILES)


def run_groups(run: Run, only: tuple[str, ...]) -> Iterator[Group]:
    """Each wanted group when it is done; all of them if `only` is empty.

    Files that no check opened can only be told when everything ran, so `files` comes last.
    """
    wanted = [name for name in GROUPS if not only or name in only]
    for name in wanted:
        yield run_files(run, complete=len(wanted) == len(GROUPS)) if name == FILES else run_group(run, name)


def run_group(run: Run, name: str) -> Group:
    """Every case of the group. An array of its files that no check asked for is a failure."""
    cases = [case for case in run.folder.cases if case["kind"] in KINDS[name]]
    group = Group(name, cases=len(cases))
    for case in cases:
        with run.recorder(group, case["id"]) as record:
            module(name).check_case(case, run, record)
    extra = group_extra(name) if cases else None
    if extra:
        with run.recorder(group, f"{name}/forms") as record:
            extra(run, record)
    run.forget()
    for file in sorted({file for case in cases for file in case["files"] if file.endswith(".npz")}):
        with run.recorder(group, f"{name}/coverage") as record:
            missed = run.folder.arrays(file).untouched()
            record.holds(file, not missed, f"unchecked arrays, which no check compared: {', '.join(missed)}")
    return group


def module(name: str) -> ModuleType:
    """The checks of a group, imported when needed: a library that lacks a part fails that part's cases only."""
    return importlib.import_module(f"conformance_checks.{name}")


def group_extra(name: str) -> Callable[[Run, Recorder], None] | None:
    """What a group checks beyond its cases, if it does."""
    try:
        return getattr(module(name), "check_forms", None)
    except ImportError:  # already told by every case
        return None


def run_files(run: Run, complete: bool) -> Group:
    """The set itself, and cases that no group would have run."""
    group = Group(FILES, cases=len(run.folder.index["files"]))
    with run.recorder(group, "files/index") as record:
        check_files(run.folder, record)
        check_kinds(run.folder, record)
    if complete:
        with run.recorder(group, "files/unopened") as record:
            check_unopened(run.folder, record)
    return group


def check_kinds(folder: GoldenFolder, record: Recorder) -> None:
    """Every case belongs to a group."""
    known = {kind for kinds in KINDS.values() for kind in kinds}
    for case in folder.cases:
        record.holds(case["id"], case["kind"] in known, f"is of kind {case['kind']}, which no group checks")
