"""Open thousands of spoiled files and see that each is read or refused, quickly, in little memory, without a trace.

    python tools/fuzz.py checkpoint --seconds 600
    python tools/fuzz.py index --seconds 600 --seed 7
    python tools/fuzz.py fairseq --seconds 600 --keep found

Failures: the process dies, anything but an RvcSparkError comes out, more than 2 s of processor time, more than 256 MiB
of memory beyond eight times the file, or a file or folder that appears in the working folder. The input of each failure
is kept. Exit code 1 when there was one. The same --seed and --inputs give the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_mutations import mutate

ROOT = Path(__file__).resolve().parent.parent
SEED_FILES = {
    "checkpoint": ("tests/golden/rvc/voices/**/*.pth",),
    "index": ("tests/golden/rvc/**/*.index",),
    "fairseq": ("tests/golden/rvc/hubert/*.pt",),
}
SECONDS = 2.0  # processor time of one file
MEMORY = 256 << 20
HANG = 60.0  # wall time after which the process is ended; machines are shared
SEED_BYTES = 2 << 20


@dataclass
class Tally:
    """What was seen so far."""

    read: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    memory: int = 0

    @property
    def inputs(self) -> int:
        return self.read + self.refused + len(self.failures)


class Worker:
    """The process that opens the files, restarted when it dies."""

    def __init__(self, target: str, seed: Path, folder: Path) -> None:
        self._command = [sys.executable, str(Path(__file__).with_name("fuzz_worker.py")), target, str(seed)]
        self._folder = folder
        self._start()

    def _start(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=self._folder,
            env=environment,
        )
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._pump, args=(self._process, lines), daemon=True).start()
        self._lines = lines
        if self._answer(HANG) != "ready":
            raise SystemExit("the worker does not start: run tools/fuzz_worker.py by hand to see why")

    @staticmethod
    def _pump(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
        for line in process.stdout or ():
            lines.put(line.rstrip("\n"))
        lines.put("")  # the end: it died or was told to stop

    def _answer(self, seconds: float) -> str | None:
        try:
            return self._lines.get(timeout=seconds)
        except queue.Empty:
            return None

    def open(self, path: Path) -> dict[str, object]:
        """The worker's report on one file; says `died` or `hung` when there is none."""
        if self._process.stdin is None:
            raise SystemExit("the worker has no input")
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        answer = self._answer(HANG)
        if answer:
            return json.loads(answer)
        self.stop()
        code = self._process.returncode
        self._start()
        return {"outcome": "hung" if answer is None else "died", "detail": f"exit code {code}"}

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def verdict(report: dict[str, object], size: int, left: list[str]) -> str | None:
    """Why a report is a failure, None when it is not."""
    if report["outcome"] in ("died", "hung", "escaped"):
        return f"{report['outcome']}: {report['detail']}"
    if left:
        return f"left behind: {', '.join(left)}"
    if float(str(report["seconds"])) > SECONDS:
        return f"took {report['seconds']:.2f} s of processor time"
    if int(str(report["memory"])) > MEMORY + 8 * size:
        return f"took {int(str(report['memory'])) >> 20} MiB for a file of {size:,} bytes"
    return None


def seed_paths(target: str, folder: Path | None) -> list[Path]:
    """The well-formed files to spoil."""
    patterns = SEED_FILES[target] if folder is None else tuple(f"**/*{Path(p).suffix}" for p in SEED_FILES[target])
    found = [path for pattern in patterns for path in sorted((folder or ROOT).glob(pattern))]
    small = [path for path in found if 0 < path.stat().st_size <= SEED_BYTES]
    if not small:
        raise SystemExit(f"no seeds for {target} in {folder or ROOT}: give a folder with --seeds")
    return small


def fuzz(options: argparse.Namespace) -> Tally:
    """Spoil and open files until the time or the number of inputs is used up."""
    paths = seed_paths(options.target, options.seeds)
    seeds = [path.read_bytes() for path in paths]
    tally, started = Tally(), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        empty = Path(scratch) / "cwd"
        empty.mkdir()
        worker = Worker(options.target, paths[0], empty)
        try:
            while time.monotonic() - started < options.seconds and tally.inputs < options.inputs:
                data = mutate(seeds, random.Random(f"{options.seed}/{tally.inputs}"))
                path = Path(scratch) / f"input{paths[0].suffix}"
                path.write_bytes(data)
                report = worker.open(path)
                left = sorted(entry.name for entry in empty.iterdir())
                failure = verdict(report, len(data), left)
                count(tally, report, failure)
                if failure is not None:
                    keep(options, tally, data, failure)
                    for entry in empty.iterdir():
                        entry.rmdir() if entry.is_dir() else entry.unlink()
        finally:
            worker.stop()
    return tally


def count(tally: Tally, report: dict[str, object], failure: str | None) -> None:
    """Add one report."""
    tally.slowest = max(tally.slowest, float(str(report.get("seconds", 0))))
    tally.memory = max(tally.memory, int(str(report.get("memory", 0))))
    if failure is not None:
        tally.failures.append(failure)
    elif report["outcome"] == "read":
        tally.read += 1
    else:
        tally.refused += 1


def keep(options: argparse.Namespace, tally: Tally, data: bytes, failure: str) -> None:
    """Save the input of a failure and its reason."""
    options.keep.mkdir(parents=True, exist_ok=True)
    name = options.keep / f"{options.target}-{options.seed}-{tally.inputs - 1}"
    name.with_suffix(".bin").write_bytes(data)
    name.with_suffix(".txt").write_text(failure + "\n", encoding="utf-8")
    sys.stderr.write(f"{name}.bin: {failure.strip().splitlines()[-1][:200]}\n")


def main() -> int:
    """Run the chosen target and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=sorted(SEED_FILES))
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--inputs", type=int, default=sys.maxsize, help="at most so many files")
    parser.add_argument("--seed", default="0", help="of the changes (default: 0)")
    parser.add_argument("--seeds", type=Path, default=None, help="folder of well-formed files to spoil")
    parser.add_argument("--keep", type=Path, default=ROOT / "TEMP" / "fuzz", help="where inputs of failures go")
    options = parser.parse_args()
    tally = fuzz(options)
    sys.stdout.write(
        f"{options.target}: {tally.inputs:,} inputs, {tally.read:,} read, {tally.refused:,} refused, "
        f"{len(tally.failures)} failures, slowest {tally.slowest:.2f} s, most memory {tally.memory >> 20} MiB\n"
    )
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
