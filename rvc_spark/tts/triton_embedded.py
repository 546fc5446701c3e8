"""A real tritonserver as a child of this process, bound to the loopback, ended with it.

It serves any repository with the Python backend. It does not choose a repository, watch for models that die, or know
what the models do.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from rvc_spark.errors import TritonBootError
from rvc_spark.tts import triton_guard
from rvc_spark.tts.triton_http import ServerApi
from rvc_spark.tts.triton_log import BootLog, LogReader, OnProgress, report
from rvc_spark.tts.triton_platform import IN_PROCESS
from rvc_spark.tts.triton_ports import LOOPBACK, Ports, holder_of, settle_ports
from rvc_spark.tts.triton_runtime import Runtime
from rvc_spark.tts.triton_state import all_states

ALL_MODELS = ("*",)
SHARED_MEMORY = Path("/dev/shm")  # where the Python backend puts tensors; 1 MB and more per model instance
GRACE = 15.0  # seconds between SIGTERM and SIGKILL; 3 s measured for small models, 11 to 13 s with torch in them
EXIT_TIMEOUT = 10  # seconds the server waits for requests in flight when it is told to end
KEPT_LOGS = 20
POLL = 0.05  # seconds
PORT_TRIES = 3  # a port that was free a moment ago can be taken by another program


@dataclass
class EmbeddedServer:
    """A running server. `stop` ends it; so does the end of this process, however it comes about."""

    ports: Ports
    log_path: Path
    repository: Path
    pid: int
    _guard: subprocess.Popen[bytes]
    _stopping: threading.Lock = field(default_factory=threading.Lock)

    @property
    def grpc_port(self) -> int:
        """Of inference over gRPC."""
        return self.ports.grpc

    @property
    def http_port(self) -> int:
        """Of health, loading and JSON."""
        return self.ports.http

    @property
    def address(self) -> str:
        """gRPC address, `127.0.0.1:8001`."""
        return f"{LOOPBACK}:{self.ports.grpc}"

    @property
    def api(self) -> ServerApi:
        """The server's HTTP API."""
        return ServerApi(LOOPBACK, self.ports.http)

    @property
    def guard_pid(self) -> int:
        """The process that ends the server should this one die."""
        return self._guard.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 + N when signal N ended it."""
        return self._guard.poll()

    @property
    def alive(self) -> bool:
        """Whether the process runs; says nothing of its models."""
        return self.exit_code is None

    def ended(self, within: float) -> bool:
        """Whether the process has ended, or does so within some seconds."""
        try:
            self._guard.wait(within)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, grace: float = GRACE) -> int:
        """End the server and all its model processes and return its exit code; harmless when it has ended already.

        Streams in flight may finish within `grace` seconds, then everything is killed.
        """
        with self._stopping:
            if self._guard.poll() is None:
                try:
                    self._guard.stdin.write(f"stop {grace}\n".encode())
                    self._guard.stdin.flush()
                except (BrokenPipeError, ValueError):
                    pass  # it ended just now
            code = self._guard.wait()
            self._guard.stdin.close()
            return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        self.stop()


def launch(
    repository: Path, runtime: Runtime, *, ports: Ports | None = None, models: Sequence[str] = ALL_MODELS,
    timeout: float = 60.0, on_progress: OnProgress = None, give_up: threading.Event | None = None,
) -> EmbeddedServer:  # fmt: skip
    """Start a server on a model repository and return when it and its models are ready.

    models: which to load; ("*",) is every one of the repository. ports: None or 0: free ones. give_up: ends the start
    when another thread sets it.
    Raises TritonBootError with the model's own words when one does not load, when the process dies, when a port is in
    use or when `timeout` seconds passed; nothing is left running then.
    """
    wanted, given_up = ports or Ports(), give_up or threading.Event()
    if not any(repository.glob("*/config.pbtxt")):
        raise TritonBootError(
            f"{repository} holds no model: no folder with a config.pbtxt", "Name the folder of a model repository."
        )
    chosen_here = 0 in (wanted.grpc, wanted.http, wanted.metrics)
    for attempt in range(PORT_TRIES):
        server = _start(repository, runtime, settle_ports(wanted), models)
        try:
            for _ in _waiting(server, models, timeout, on_progress):
                if given_up.wait(POLL):
                    raise TritonBootError("the start of the Triton server was given up", "Start it again.")
            return server
        except _PortTaken as error:
            server.stop(grace=0.0)
            if not chosen_here or attempt + 1 == PORT_TRIES:
                raise TritonBootError(error.problem, error.next_step) from error
        except BaseException:
            server.stop(grace=0.0)
            raise
    raise AssertionError("unreachable")


class _PortTaken(TritonBootError):
    """Another program took one of the ports between the choice and the start."""


def server_command(repository: Path, runtime: Runtime, ports: Ports, models: Sequence[str], prefix: str) -> list[str]:
    """tritonserver's command line. Its own defaults would listen on every address of the machine."""
    command = [str(runtime.server), "--model-repository", str(repository), "--backend-directory", str(runtime.backends)]
    for name, port in (("http", ports.http), ("grpc", ports.grpc), ("metrics", ports.metrics)):
        command += [f"--{name}-address", LOOPBACK, f"--{name}-port", str(port)]
    command += ["--model-control-mode", "explicit"]  # the only mode in which a model whose process died can be reloaded
    for model in models:
        command += ["--load-model", model]
    return [
        *command, "--disable-auto-complete-config",  # or every model.py is imported once more, in a throw-away process
        "--exit-timeout-secs", str(EXIT_TIMEOUT), "--allow-gpu-metrics", "false",
        "--backend-config", f"python,shm-region-prefix-name={prefix}",
    ]  # fmt: skip


def _start(repository: Path, runtime: Runtime, ports: Ports, models: Sequence[str]) -> EmbeddedServer:
    prefix = f"rvc_spark_{secrets.token_hex(6)}_"
    log = _new_log(runtime.logs, ports)
    settings = {
        "command": server_command(repository.resolve(), runtime, ports, models, prefix), "log": str(log),
        "shared": str(SHARED_MEMORY), "prefix": prefix, "grace": GRACE,
    }  # fmt: skip
    try:
        with open(log, "ab") as errors:
            guard = subprocess.Popen(
                [str(runtime.python), "-I", "-S", triton_guard.__file__, json.dumps(settings)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=runtime.environment(),
                start_new_session=True, cwd=runtime.folder,
            )  # fmt: skip
    except OSError as error:
        raise TritonBootError(f"the Triton server cannot be started: {error}", IN_PROCESS) from error
    told = guard.stdout.readline()
    guard.stdout.close()
    if not told:
        guard.stdin.close()
        guard.wait()
        story = BootLog(LogReader(log))
        story.look()
        raise TritonBootError(
            f"the Triton server cannot be started: {story.last_words()}",
            f"Its log is {log.name}; rvc-spark triton logs shows it. {IN_PROCESS}",
        )
    return EmbeddedServer(ports, log, repository, json.loads(told)["pid"], guard)


def _new_log(folder: Path, ports: Ports) -> Path:
    """An empty log file for one run; of ended servers only the last few are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    noted = {state.log for state in all_states(folder.parent).values()}
    older = sorted((path for path in folder.glob("server-*.log") if str(path) not in noted), key=_age)
    for path in older[: max(0, len(older) - KEPT_LOGS + 1)]:
        path.unlink(missing_ok=True)
    log = folder / f"server-{ports.grpc}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    log.write_bytes(b"")
    return log


def _age(path: Path) -> float:
    """When a file was last written; 0 for one that another process has just removed."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _waiting(
    server: EmbeddedServer, models: Sequence[str], timeout: float, on_progress: OnProgress
) -> Iterator[None]:
    """One step per look at the log, until the server and its models are ready. Raises TritonBootError as soon as that
    cannot come any more."""
    log = BootLog(LogReader(server.log_path))
    folders = {path.parent.name for path in server.repository.glob("*/config.pbtxt")}
    expected = folders if tuple(models) == ALL_MODELS else set(models)
    deadline = time.monotonic() + timeout
    report(on_progress, 0.4, f"starting the Triton server on {server.address}")
    while True:
        ended = not server.alive
        known = len(log.loaded)
        log.look()
        if len(log.loaded) > known:
            count = len(set(log.loaded) & expected)
            report(on_progress, 0.4 + 0.55 * count / len(expected), f"{log.loaded[-1]} is loaded")
        if log.failed:
            model, words = next(iter(log.failed.items()))
            raise TritonBootError(f"the model {model} does not load: {words}", "Mend that and start again.")
        if ended:
            raise _death(server, log)
        if server.api.ready() and all(server.api.model_ready(name) for name in expected):
            report(on_progress, 1.0, f"ready on {server.address}")
            return
        if time.monotonic() > deadline:
            missing = sorted(name for name in expected if not server.api.model_ready(name))
            raise TritonBootError(
                f"the Triton server was not ready after {timeout:g} s; waiting for {', '.join(missing) or 'it'}",
                "Give it more time, or see what it does with rvc-spark triton logs.",
            )
        yield


def _death(server: EmbeddedServer, log: BootLog) -> TritonBootError:
    """Why a server ended before it was ready."""
    for port in (server.ports.grpc, server.ports.http, server.ports.metrics):
        if log.port_taken and (holder := holder_of(port)):
            return _PortTaken(f"port {port} cannot be used: {holder} took it meanwhile", "Choose another port.")
    kind = _PortTaken if log.port_taken else TritonBootError
    return kind(
        f"the Triton server ended with status {server.exit_code} before it was ready: {log.last_words()}",
        f"Its log is {server.log_path}. {IN_PROCESS}",
    )
