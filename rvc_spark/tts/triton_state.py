"""Which servers were started from here: one small file per gRPC port, so that every process knows of every server.

A file whose owner is gone is worth nothing: process ids are used again, so the owner is known by its id and the moment
it began.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import filelock

from rvc_spark.errors import TritonBootError

LOCK_PATIENCE_S = 900.0  # another process may be fetching an image or loading a model of gigabytes


@dataclass(frozen=True)
class ServerState:
    """A server started from here. pid: the process that owns and watches it; began: see `process_start`; at: seconds
    since the epoch; container: of Docker, "" otherwise; dedicated: the owner does nothing else, so it may be ended."""

    pid: int
    began: int
    kind: str
    why: str
    address: str
    http_address: str
    server_pid: int
    models: tuple[str, ...]
    repository: str
    log: str
    at: float
    container: str = ""
    dedicated: bool = False
    events: tuple[str, ...] = ()

    @property
    def owned(self) -> bool:
        """Whether the process that started it still lives."""
        return process_start(self.pid) == self.began


def folder_of(triton_dir: Path) -> Path:
    """Where the files are."""
    return triton_dir / "servers"


def write_state(triton_dir: Path, port: int, state: ServerState) -> None:
    """Note a server; the file appears whole."""
    folder = folder_of(triton_dir)
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{port}-{secrets.token_hex(4)}"
    beside.write_text(json.dumps(asdict(state)), encoding="utf-8")
    os.replace(beside, folder / f"{port}.json")


def read_state(triton_dir: Path, port: int) -> ServerState | None:
    """What was noted of a port; None when nothing was or the file is damaged."""
    try:
        content = json.loads((folder_of(triton_dir) / f"{port}.json").read_text(encoding="utf-8"))
        known = {item.name for item in fields(ServerState)}
        content = {name: value for name, value in content.items() if name in known}
        return ServerState(**{**content, "models": tuple(content["models"]), "events": tuple(content["events"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def remove_state(triton_dir: Path, port: int, pid: int | None = None) -> None:
    """Forget a port; with `pid`, only if that process owns what is noted."""
    state = read_state(triton_dir, port)
    if pid is None or state is None or state.pid == pid:
        (folder_of(triton_dir) / f"{port}.json").unlink(missing_ok=True)


def all_states(triton_dir: Path) -> dict[int, ServerState]:
    """Every noted server by its gRPC port, those whose owner died included."""
    ports = sorted(int(path.stem) for path in folder_of(triton_dir).glob("*.json") if path.stem.isdigit())
    states = {port: read_state(triton_dir, port) for port in ports}
    return {port: state for port, state in states.items() if state is not None}


@contextmanager
def only_one(triton_dir: Path, port: int) -> Iterator[None]:
    """Hold the lock of a port while a server is started or ended on it. Raises TritonBootError after long waiting."""
    try:
        folder_of(triton_dir).mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder_of(triton_dir) / f"{port}.lock", timeout=LOCK_PATIENCE_S):
            yield
    except filelock.Timeout as error:
        raise TritonBootError(
            f"another process has been starting a server on port {port} for {LOCK_PATIENCE_S / 60:.0f} minutes",
            "End that process, or choose another port.",
        ) from error


def process_start(pid: int) -> int:
    """When a process began, in clock ticks since the machine did; 0: it is not there, 1: the system does not tell."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return 0
        except PermissionError:
            pass
        return 1
    try:
        fields_ = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields_[0] in "ZX" else int(fields_[19])


def ask_to_end(state: ServerState) -> bool:
    """Ask the owner of a server to end it and itself; False when it is gone already."""
    if not state.owned:
        return False
    try:
        os.kill(state.pid, signal.SIGTERM)
    except ProcessLookupError:
        return False
    return True
