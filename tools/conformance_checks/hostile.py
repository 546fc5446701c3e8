"""Files that would run code if anything in them were executed: opened by a child process in a folder of its own."""

from __future__ import annotations

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
REFUSED, OPENED = "refused", "opened"  # what the child says


def check_case(case: dict[str, Any], run: Run, record: Recorder) -> None:
    """Each file through every door a user could push it through: voice, content encoder, pitch network, index."""
    for name in case["files"]:
        path = run.folder.path(name).resolve()
        for door in ("voice", "content", "rmvpe", "index"):
            check_door(path, door, record)


def check_door(path: Path, door: str, record: Recorder) -> None:
    """No canary, no crash, and an error of the library's own tree if the file is refused."""
    quantity = f"{path.name} as {door}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            child = subprocess.run(
                [sys.executable, str(OPENER), door, str(path)],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(Path(rvc_spark.errors.__file__).parents[1])},
                capture_output=True,
                text=True,
                timeout=TIME_LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            record.fail(quantity, f"was still being opened after {TIME_LIMIT:g} s")
            return
        left = sorted(entry.name for entry in Path(folder).iterdir())
    record.holds(f"{quantity}, executed nothing", CANARY not in left, f"code in the file ran: {CANARY} was created")
    record.holds(f"{quantity}, left nothing", not set(left) - {CANARY}, f"left {left} in the working directory")
    verdict = child.stdout.strip()
    tail = child.stderr.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
    record.holds(f"{quantity}, named error", verdict in (REFUSED, OPENED), f"the loader broke: {tail[0]}")
