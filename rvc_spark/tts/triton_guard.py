"""Stands between this process and a Triton server, so that the server never outlives whoever started it.

A program of its own (`python -I -S triton_guard.py SETTINGS`) that imports nothing of this package, because it must be
up in milliseconds and must live in whatever Python there is. It starts the server, and ends it when told to, when its
input closes, or when its parent is gone, however that died. The kernel's own "signal on parent death" would not do: it
fires when the *thread* that started the server ends, and says nothing of the model processes, which outlive a server
that was killed. Those are adopted by the guard (child subreaper) and ended too; what they left in shared memory is
deleted by its name.

    SETTINGS (JSON): command, log, shared (folder), prefix (of names in it), grace (seconds between SIGTERM and SIGKILL)
    standard input:  `stop SECONDS` ends the server with that grace; the end of the input does so with the usual one
    standard output: {"pid": N} when it runs
    exit status:     that of the server; 128 + N when signal N ended it
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
TICK = 0.1  # seconds between two looks; a killed parent is noticed at once by the closed input, this is the second net


def die_with_guard() -> None:
    """In the server, before it begins: should the guard itself be killed, the kernel kills the server. One thread here,
    so the thread whose death counts is the guard's whole life."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def children() -> list[int]:
    """Every process whose parent is the guard now: the server, and what it left behind."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            text = Path("/proc", entry, "stat").read_text(encoding="utf-8", errors="replace") if entry.isdigit() else ""
        except OSError:
            continue
        fields = text.rpartition(")")[2].split()
        if len(fields) > 1 and int(fields[1]) == os.getpid():
            found.append(int(entry))
    return found


def end_group(server: subprocess.Popen[bytes], grace: float) -> None:
    """SIGTERM, patience, SIGKILL; then everything that still hangs on the guard, until nothing does."""
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(grace)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    while left := children():
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass  # it ended by itself meanwhile


def sweep(folder: Path, prefix: str) -> None:
    """Delete what the model processes left in shared memory."""
    for left in folder.glob(f"{prefix}*") if folder.is_dir() else ():
        left.unlink(missing_ok=True)


class Watch:
    """Looks at the input, the parent and a signal, and says when the server shall end and how patiently."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.parent = os.getppid()
        self.told = False
        self._input = b""
        self._open = True

    def on_signal(self, *_signal: object) -> None:
        """SIGTERM and SIGHUP to the guard mean: end the server."""
        self.told = True

    def over(self) -> bool:
        """Wait one tick; whether it is time to end."""
        if select.select([0], [], [], TICK)[0]:
            gained = os.read(0, 4_096)
            self._input += gained
            self.told = self.told or not gained
        if self._input.startswith(b"stop ") and b"\n" in self._input:
            self.grace = float(self._input.split(b"\n")[0][5:])
            self.told = True
        return self.told or os.getppid() != self.parent


def main(settings: dict) -> int:
    """Start, watch, end, clean."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    watch = Watch(float(settings["grace"]))
    signal.signal(signal.SIGTERM, watch.on_signal)
    signal.signal(signal.SIGHUP, watch.on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open(settings["log"], "ab") as log:
        server = subprocess.Popen(
            settings["command"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0,
            preexec_fn=die_with_guard,
        )  # fmt: skip
    os.write(1, json.dumps({"pid": server.pid}).encode() + b"\n")
    os.close(1)
    try:
        while server.poll() is None and not watch.over():
            pass
    finally:
        end_group(server, watch.grace)
        sweep(Path(settings["shared"]), settings["prefix"])
    code = server.returncode
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
