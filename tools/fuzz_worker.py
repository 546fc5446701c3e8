"""The process in which spoiled files are opened: one path per line in, one JSON report per line out.

Run by `fuzz.py`, which survives when this one does not. A report names what escaped, the processor time and how far the
memory's high-water mark rose.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from rvc_spark.errors import RvcSparkError

ADDRESS_SPACE = 6 << 30  # bytes beyond what the loaded libraries have mapped


def open_checkpoint(path: Path) -> None:
    """A voice, from outline to folded network."""
    from rvc_spark.infer.checkpoint import inspect_checkpoint, read_checkpoint
    from rvc_spark.infer.synthesizer import load_synthesizer

    inspect_checkpoint(path)
    load_synthesizer(read_checkpoint(path))


def open_index(path: Path) -> None:
    """An index, and one search in it."""
    import numpy as np

    from rvc_spark.infer.index import read_index

    index = read_index(path)
    index.search(np.ones((3, index.dim), np.float32), k=8)


def open_fairseq(path: Path) -> None:
    """A content encoder in fairseq's container."""
    from rvc_spark.infer.fairseq import read_fairseq

    read_fairseq(path)


TARGETS: dict[str, Callable[[Path], None]] = {
    "checkpoint": open_checkpoint,
    "index": open_index,
    "fairseq": open_fairseq,
}


class HighWater:
    """How much memory one call took at its peak. Linux can reset the mark; elsewhere it only ever rises."""

    def __init__(self) -> None:
        self._status = Path("/proc/self/status")
        self._reset = Path("/proc/self/clear_refs")

    def start(self) -> int:
        """Bytes in use now, with the mark set down to them where the system allows it."""
        if self._status.exists():
            self._reset.write_text("5")
            return self._field("VmRSS")
        return self._rusage()

    def peak(self) -> int:
        """Bytes at the mark."""
        return self._field("VmHWM") if self._status.exists() else self._rusage()

    def _field(self, name: str) -> int:
        line = next(line for line in self._status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) << 10

    @staticmethod
    def _rusage() -> int:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used << 10


def report(target: Callable[[Path], None], path: Path, memory: HighWater) -> dict[str, object]:
    """Open one file and say how it went. Every exception is caught here: finding them is this program's purpose."""
    before, started = memory.start(), time.process_time()
    outcome, detail = "read", ""
    try:
        target(path)
    except RvcSparkError as refusal:
        outcome, detail = "refused", str(refusal)
    except BaseException as escaped:
        outcome, detail = "escaped", "".join(traceback.format_exception(escaped)[-6:])
        if isinstance(escaped, KeyboardInterrupt):
            raise
    seconds = time.process_time() - started
    return {"outcome": outcome, "detail": detail, "seconds": seconds, "memory": max(memory.peak() - before, 0)}


def main(name: str, seed: str) -> None:
    """Open the seed once, so that libraries are loaded before anything is measured, then serve paths."""
    target, memory = TARGETS[name], HighWater()
    report(target, Path(seed), memory)
    if Path("/proc/self/statm").exists():
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE, mapped + ADDRESS_SPACE))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(report(target, Path(line.rstrip("\n")), memory)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
