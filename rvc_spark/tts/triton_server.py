"""The door to a Triton server: take the one that runs, else start one, in Docker or embedded; and say why that one.

    with boot_triton() as server:
        print(server.address, server.kind)     # 127.0.0.1:8001 embedded (no server at localhost:8001; no Docker: ...)

A server that was running is used and never stopped. One that was started here ends with the handle, with this process,
or with a SIGKILL of it. Knows nothing of how speech is requested.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from rvc_spark.errors import ConfigError, TritonBootError
from rvc_spark.rvc_config import Choice, RVCConfig
from rvc_spark.tts.triton_docker import ContainerPlan, DockerServer, launch_docker, prepare_docker
from rvc_spark.tts.triton_embedded import GRACE, EmbeddedServer, launch
from rvc_spark.tts.triton_find import FoundServer, find_running, is_local
from rvc_spark.tts.triton_http import ServerApi
from rvc_spark.tts.triton_log import BootProgress, OnProgress, report
from rvc_spark.tts.triton_platform import check_platform, choose_interpreter
from rvc_spark.tts.triton_ports import LOOPBACK, Ports, settle_ports, usual_ports
from rvc_spark.tts.triton_runtime import ensure_runtime
from rvc_spark.tts.triton_signature import FRONT_MODEL, ModelSignature, check_signature, read_signature
from rvc_spark.tts.triton_state import (
    ServerState,
    only_one,
    process_start,
    read_state,
    remove_state,
    write_state,
)
from rvc_spark.tts.triton_supervisor import ServerEvent, Supervisor, SupervisorSettings

KINDS = ("auto", "running", "docker", "embedded")
EMBEDDED_SECONDS = 300.0  # a model of half a gigabyte from a slow disk
DOCKER_SECONDS = 3_600.0  # the first start in a container builds an engine for the GPU
EVENTS_NOTED = 20  # in the state file, for `rvc-spark triton status`


@dataclass(frozen=True)
class BootOptions:
    """How to come to a server.

    kind: "auto" takes what runs, else Docker, else embedded; the others take only that. repository: of models; None is
    the project's own, filled for the checkpoint of the configuration. models: those without which the server is of no
    use; a server started here loads all of its repository. ports: None follows the configuration; a 0 in it lets the
    system choose. timeout: seconds for loading; None is EMBEDDED_SECONDS or DOCKER_SECONDS. image: of Docker; None is
    the project's own. dedicated: this process is there for the server alone, so `rvc-spark triton down` may end it.
    """

    kind: Literal["auto", "running", "docker", "embedded"] = "auto"
    repository: Path | None = None
    models: tuple[str, ...] = (FRONT_MODEL,)
    ports: Ports | None = None
    timeout: float | None = None
    supervise: bool = True
    supervisor: SupervisorSettings = field(default_factory=SupervisorSettings)
    image: str | None = None
    dedicated: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"kind={self.kind!r:.40} is no way to a Triton server", f"Choose {', '.join(KINDS)}.")


class TritonHandle:
    """A server to talk to. If it was started here, `stop`, the end of a `with` block or of this process end it.

    address, http_address: `127.0.0.1:8001`, `127.0.0.1:8000` (None: not known). kind: what it is and why.
    signature: of `spark_tts`; None where it could not be asked or another model was.
    """

    def __init__(
        self, kind: Choice, host: str, ports: Ports, models: tuple[str, ...], signature: ModelSignature | None = None,
        server: Supervisor | DockerServer | None = None, note: _Note | None = None,
    ) -> None:  # fmt: skip
        self.kind, self.models, self.signature = kind, models, signature
        self.address = f"{host}:{ports.grpc}"
        self.http_address = f"{host}:{ports.http}" if ports.http else None
        self.ports = ports
        self._server, self._note = server, note
        self._owner = os.getpid()  # a forked child inherits this object, but not the server
        self._stopping = threading.Lock()
        if server is not None:
            atexit.register(self.stop)

    @property
    def why(self) -> str:
        """Why this server and none of those looked for before it."""
        return self.kind.reason

    @property
    def owned(self) -> bool:
        """Whether it was started by this handle and has not been stopped."""
        return self._server is not None

    @property
    def alive(self) -> bool:
        """Whether the server answers now."""
        if self._server is not None:
            return self._server.alive
        host, _, port = (self.http_address or "").rpartition(":")
        return bool(port) and ServerApi(host, int(port)).live()

    @property
    def over(self) -> bool:
        """Whether a server started here has ended and will not be started again."""
        return self._server is None or self._server.over

    @property
    def events(self) -> tuple[ServerEvent, ...]:
        """What the supervisor had to do, oldest first."""
        return self._server.events if self._server is not None else ()

    @property
    def pid(self) -> int | None:
        """Process id of an embedded server started here."""
        return self._server.pid if isinstance(self._server, Supervisor) else None

    @property
    def log_path(self) -> Path | None:
        """The log of a server started here."""
        return self._server.log_path if self._server is not None else None

    def stop(self, grace: float = GRACE) -> None:
        """End the server if it was started here; streams in flight have `grace` seconds. Harmless when called again."""
        if os.getpid() != self._owner:
            return
        with self._stopping:
            if self._server is not None:
                self._server.stop(grace)  # an engine that does not obey raises, and may be asked again
                self._server = None
                atexit.unregister(self.stop)
                if self._note is not None:
                    self._note.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Triton at {self.address}: {self.kind}>"


def boot_triton(
    config: RVCConfig | None = None, options: BootOptions | None = None, *,
    on_progress: Callable[[BootProgress], None] | None = None,
) -> TritonHandle:  # fmt: skip
    """A server whose models are ready: what runs at the configured address, else Docker, else embedded; and why.

    Raises TritonBootError when none can be had, naming for "auto" why each was not; TritonModelError when the server
    that runs has another `spark_tts`. Nothing is left running after an error.
    """
    config, options = config or RVCConfig(), options or BootOptions()
    ports = options.ports or usual_ports(config.triton_port)
    report(on_progress, 0.0, "looking for a Triton server")
    found = _running(config, options, ports)
    if isinstance(found, TritonHandle):
        report(on_progress, 1.0, f"{found.kind}")
        return found
    if options.kind == "docker" and options.repository is not None:
        raise TritonBootError(
            f"the image brings its own models, so repository={str(options.repository)!r} cannot be served by Docker",
            "Serve that folder with kind='embedded'.",
        )
    if options.kind == "running":
        raise TritonBootError(found, "Start one with rvc-spark triton up, or set TRITON_SERVER_ADDR and _PORT.")
    if options.ports is None and not is_local(config.triton_host):
        raise TritonBootError(
            f"{found}, and a server can be started on this machine only",
            "Start it there, or set TRITON_SERVER_ADDR=localhost.",
        )
    with only_one(config.triton_dir, ports.grpc) if ports.grpc else nullcontext():
        found = _running(config, options, ports)  # another process may have started one while this one waited
        if isinstance(found, TritonHandle):
            return found
        return _started(config, options, ports, found, on_progress)


def _running(config: RVCConfig, options: BootOptions, ports: Ports) -> TritonHandle | str:
    """A handle on the server that runs, or why there is none."""
    if not ports.grpc:
        return "a port of its own was asked for"
    host = config.triton_host if options.ports is None else LOOPBACK
    found = find_running(host, ports.grpc, options.models, tls=config.triton_tls)
    if not isinstance(found, FoundServer):
        return found
    state = read_state(config.triton_dir, ports.grpc) if is_local(host) else None
    reason = found.reason
    if state is not None and state.owned:
        reason = f"{reason}, {state.kind}, started from here by process {state.pid}"
    ours = state is not None and state.owned and state.kind == options.kind
    if options.kind in ("docker", "embedded") and not ours:
        raise TritonBootError(
            f"{reason}, so no {options.kind} server can be started on port {ports.grpc}",
            "Use it with kind='auto', end it, or choose another port.",
        )
    place = Ports(found.grpc_port, found.http_port or 0, 0)
    return TritonHandle(Choice("running", reason), found.host, place, options.models, found.signature)


def _started(
    config: RVCConfig, options: BootOptions, ports: Ports, none_running: str, on_progress: OnProgress
) -> TritonHandle:
    """Docker, else embedded."""
    reasons = [none_running]
    settled = settle_ports(ports)
    if options.kind == "auto" and options.repository is not None:
        reasons.append("Docker's image serves its own models only")
    if options.kind == "docker" or (options.kind == "auto" and options.repository is None):
        try:
            fetch = options.kind == "docker"
            plan = prepare_docker(config, settled, options.image, fetch=fetch, on_progress=on_progress)
        except TritonBootError as error:
            if options.kind == "docker":
                raise
            reasons.append(error.problem)
        else:
            return _docker(config, options, plan, "; ".join(reasons), on_progress)
    try:
        return _embedded(config, options, ports, "; ".join(reasons), on_progress)
    except TritonBootError as error:
        if options.kind != "auto":
            raise
        raise type(error)(f"{'; '.join(reasons)}; {error.problem}", error.next_step) from error


def _docker(
    config: RVCConfig, options: BootOptions, plan: ContainerPlan, why: str, on_progress: OnProgress
) -> TritonHandle:
    logs = config.triton_dir / "logs"
    timeout = options.timeout or DOCKER_SECONDS
    server = launch_docker(plan, logs, models=options.models, timeout=timeout, on_progress=on_progress)
    return _handle(config, options, Choice("docker", f"{why}; {server.reason}"), plan.ports, server)


def _embedded(
    config: RVCConfig, options: BootOptions, ports: Ports, why: str, on_progress: OnProgress
) -> TritonHandle:
    check_platform()
    choose_interpreter()  # before a repository is written that nothing here could serve
    repository = options.repository or own_repository(config)
    runtime = ensure_runtime(config.triton_dir, on_progress, offline=config.offline)
    timeout = options.timeout or EMBEDDED_SECONDS
    began = time.monotonic()
    server = launch(repository, runtime, ports=ports, timeout=timeout, on_progress=on_progress)

    def again(give_up: threading.Event) -> EmbeddedServer:
        return launch(repository, runtime, ports=server.ports, timeout=timeout, give_up=give_up)

    choice = Choice("embedded", f"{why}; ready after {time.monotonic() - began:.1f} s")
    supervisor = Supervisor(server, again, options.supervisor)
    return _handle(config, options, choice, server.ports, supervisor)


def own_repository(config: RVCConfig) -> Path:
    """The project's model repository, filled for the configuration's checkpoint. Raises what the filling raises."""
    from rvc_spark.tts.triton_repository import RepositorySettings, write_repository

    device, precision = config.device_choice().value, config.precision_choice().value
    settings = RepositorySettings(config.spark_dir, device=device, precision=precision)
    return write_repository(config.triton_dir / "model_repo", settings)


def _handle(
    config: RVCConfig, options: BootOptions, choice: Choice, ports: Ports, server: Supervisor | DockerServer
) -> TritonHandle:
    """Check what was started, note it for other processes, begin to watch it. A failure here ends the server."""
    try:
        api = ServerApi(LOOPBACK, ports.http)
        for model in options.models:
            if not api.model_ready(model):
                known = ", ".join(sorted({row["name"] for row in api.index()}))
                raise TritonBootError(f"the repository has no model {model}, only {known}", "Name one of those.")
        signature = None
        if FRONT_MODEL in options.models:
            signature = read_signature(api)
            check_signature(signature, f"{LOOPBACK}:{ports.grpc}")
        note = _Note(config.triton_dir, ports, choice, options, server)
        note.write()
        if isinstance(server, Supervisor) and options.supervise:
            server.start(note.write)
        return TritonHandle(choice, LOOPBACK, ports, options.models, signature, server, note)
    except BaseException:
        server.stop(grace=0.0)
        raise


class _Note:
    """The state file of one server, kept true while it is restarted."""

    def __init__(
        self, folder: Path, ports: Ports, choice: Choice, options: BootOptions, server: Supervisor | DockerServer
    ) -> None:
        self._folder, self._ports, self._server = folder, ports, server
        pid = os.getpid()
        self._state = ServerState(
            pid=pid, began=process_start(pid), kind=choice.value, why=choice.reason,
            address=f"{LOOPBACK}:{ports.grpc}", http_address=f"{LOOPBACK}:{ports.http}", server_pid=0,
            models=options.models, repository=str(options.repository or ""), log="", at=time.time(),
            dedicated=options.dedicated,
        )  # fmt: skip

    def write(self, _event: ServerEvent | None = None) -> None:
        """Write down what is true now."""
        server = self._server
        state = replace(
            self._state, server_pid=server.pid or 0, log=str(server.log_path or ""),
            container=server.container if isinstance(server, DockerServer) else "",
            events=tuple(str(event) for event in server.events[-EVENTS_NOTED:]),
        )  # fmt: skip
        write_state(self._folder, self._ports.grpc, state)

    def forget(self) -> None:
        """The server is no more."""
        remove_state(self._folder, self._ports.grpc, self._state.pid)
