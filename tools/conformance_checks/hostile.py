"""Files that would run code if anything in them were executed: opened by a child process in a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import rvc_spark.errors
from conformance_checks.record import Recorder
from conformance_checks.run import Run

CANARY = "RVC_PICKLE_CANARY_EXECUTED"
TIME_LIMIT = 120.0  # seconds, most of it the start of Python and torch on a slow machine
OPENER = Path(__file__).with_name("open_untrusted.py")
DOORS = ("voice", "inspect", "content", "fairseq", "rmvpe", "index")  # every way a user could push a file in
SAFE = ("refused", "opened")  # by an error of the library's tree, or read as data with what is hostile ignored


def check_case(case: dict[str, Any], run: Run, record: Recorder) -> None:
    """Each file of the case through every door."""
    for name in case["files"]:
        check_file(run.folder.path(name).resolve(), record)


def check_file(path: Path, record: Recorder) -> None:
    """No canary, nothing left behind, and each door refuses as the library means to, or reads the rest."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            child = subprocess.run(
                [sys.executable, str(OPENER), str(path), *DOORS],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(Path(rvc_spark.errors.__file__).parents[1])},
                capture_output=True,
                text=True,
                timeout=TIME_LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            record.fail(path.name, f"was still being opened after {TIME_LIMIT:g} s")
            return
        left = sorted(entry.name for entry in Path(folder).iterdir())
    record.holds(f"{path.name}, executed nothing", CANARY not in left, f"code in the file ran: {CANARY} was created")
    record.holds(f"{path.name}, left nothing", not set(left) - {CANARY}, f"left {left} in the working directory")
    record.same(f"{path.name}, exit code of the opener", child.returncode, 0)
    for door, verdict in told_verdicts(child.stdout).items():
        reason = f"the loader broke: {(child.stderr.strip().splitlines() or ['without a word'])[-1]}"
        record.holds(f"{path.name} as {door}", verdict in SAFE, reason)


def told_verdicts(output: str) -> dict[str, str]:
    """What the child said of each door; "nothing" for a door it did not come to."""
    told = dict(json.loads(line) for line in output.splitlines() if line.startswith("["))
    return {door: told.get(door, "nothing") for door in DOORS}
