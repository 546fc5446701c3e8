"""The three ports of a server: which are free, and who holds one that is not."""

from __future__ import annotations

import os
import socket
from dataclasses import astuple, dataclass
from pathlib import Path

from rvc_spark.errors import TritonBootError

LOOPBACK = "127.0.0.1"
_LISTENING = "0A"  # state in /proc/net/tcp


@dataclass(frozen=True)
class Ports:
    """Where a server listens on the loopback; 0 lets the system choose a free one."""

    grpc: int = 0
    http: int = 0
    metrics: int = 0


def usual_ports(grpc: int) -> Ports:
    """The convention every Triton server keeps: HTTP one below gRPC, metrics one above."""
    return Ports(grpc, max(grpc - 1, 1), min(grpc + 1, 65_535))


def settle_ports(wanted: Ports) -> Ports:
    """The same ports with a free one for every 0. Raises TritonBootError naming a port in use and its holder."""
    named = [port for port in astuple(wanted) if port]
    for port in named:
        if not 1 <= port <= 65_535 or named.count(port) > 1:
            raise TritonBootError(
                f"ports {named} cannot be used: each must be 1 to 65535 and its own",
                "Choose others, or 0 for free ones.",
            )
        check_free(port)
    held: list[socket.socket] = []
    try:
        chosen = []
        for port in astuple(wanted):
            while not port or (port in named and port not in astuple(wanted)):
                held.append(socket.create_server((LOOPBACK, 0)))
                port = held[-1].getsockname()[1]
            chosen.append(port)
        return Ports(*chosen)
    finally:
        for one in held:
            one.close()


def check_free(port: int) -> None:
    """Raises TritonBootError when something listens on that port of the loopback, naming who where it can be told."""
    try:
        socket.create_server((LOOPBACK, port)).close()
    except OSError as error:
        holder = holder_of(port)
        raise TritonBootError(
            f"port {port} cannot be used: {f'{holder} listens on it' if holder else error.strerror or error}",
            "End that program, or choose another port: rvc-spark triton up --port N, or TRITON_SERVER_PORT.",
        ) from error


def holder_of(port: int) -> str | None:
    """`process 123 (python3)` for whoever listens on a port of this machine; None when it is nobody."""
    sockets = _listeners(port)
    if not sockets:
        return None
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if any(os.readlink(link) in sockets for link in (entry / "fd").iterdir()):
                return f"process {entry.name} ({(entry / 'comm').read_text(encoding='utf-8').strip()})"
        except OSError:  # another user's process, or one that has just ended
            continue
    return "another user's process"


def _listeners(port: int) -> set[str]:
    """`socket:[inode]` of every listening socket on a port, as the links in /proc/PID/fd read."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            columns = row.split()
            if columns[3] == _LISTENING and int(columns[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{columns[9]}]")
    return found
