"""Keeps an embedded server useful: a model whose process died is loaded again, a server that died is started again.

tritonserver does neither: the process of a Python model is never restarted, and health, readiness and model readiness
go on saying yes. So every round sends a real inference through every Python model, and counts the model processes,
because an inference reaches only one of a model's instances. A model that answers with an error is alive; only the
server's own word that its process is gone counts, so a model need not be able to do anything with the probe.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rvc_spark.errors import (
    RvcSparkError,
    TritonError,
    TritonModelError,
    TritonRequestError,
    TritonTimeoutError,
    TritonUnreachableError,
)
from rvc_spark.tts.triton_embedded import GRACE, EmbeddedServer
from rvc_spark.tts.triton_http import UNHEALTHY, ServerApi

STUB = "triton_python_backend_stub"
DEAD_SECONDS, BUSY_SECONDS = 2.0, 10.0  # patience with the unloading of a model without and with living processes
EVENTS_KEPT = 200
DYING_SECONDS = 2.0  # a server that was killed refuses connections a moment before its end is known


@dataclass(frozen=True)
class SupervisorSettings:
    """interval: seconds between rounds. probe_seconds: a model silent for longer is busy or stuck, which is reported
    but not mended, because a long request looks the same. restarts: servers started anew within `window` seconds, at
    most; the same number of reloads per model. load_seconds: patience with one model."""

    interval: float = 5.0
    probe_seconds: float = 20.0
    restarts: int = 3
    window: float = 600.0
    load_seconds: float = 120.0


@dataclass(frozen=True)
class ServerEvent:
    """Something that happened to a running server. `at`: seconds since the epoch; `what`: a model, or "server"."""

    at: float
    kind: Literal["reloaded", "restarted", "silent", "gave up"]
    what: str
    message: str

    def __str__(self) -> str:
        return f"{time.strftime('%H:%M:%S', time.localtime(self.at))} {self.what} {self.kind}: {self.message}"


class Supervisor:
    """Owns a server from its start to its end. `look` is one round; `start` does them in a thread until `stop`.

    relaunch: starts a new server on the same ports; it is given an event that is set when the start should be given up.
    """

    def __init__(
        self, server: EmbeddedServer, relaunch: Callable[[threading.Event], EmbeddedServer],
        settings: SupervisorSettings | None = None,
    ) -> None:  # fmt: skip
        self.server = server
        self.settings = settings or SupervisorSettings()
        self._relaunch = relaunch
        self._on_event: Callable[[ServerEvent], None] | None = None
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._events: list[ServerEvent] = []
        self._mended: dict[str, list[float]] = {}
        self._given_up: set[str] = set()
        self._unloaded: dict[str, str] = {}  # models that did not load again, with the reason they had to
        self._expected = counts_of(server)

    @property
    def events(self) -> tuple[ServerEvent, ...]:
        """What happened so far, oldest first."""
        return tuple(self._events)

    @property
    def alive(self) -> bool:
        """Whether the server's process runs."""
        return self.server.alive

    @property
    def over(self) -> bool:
        """Whether the server has ended and nobody will start it again."""
        watched = self._thread is not None and self._thread.is_alive()
        return not self.server.alive and (not watched or "server" in self._given_up)

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self.server.pid

    @property
    def log_path(self) -> Path:
        """Of the present server."""
        return self.server.log_path

    def start(self, on_event: Callable[[ServerEvent], None] | None = None) -> None:
        """Begin to watch. on_event: called with every event, from the watching thread."""
        self._on_event = on_event
        self._thread = threading.Thread(target=self._watch, name="triton-supervisor", daemon=True)
        self._thread.start()

    def stop(self, grace: float = GRACE) -> None:
        """Watch no longer and end the server, as `EmbeddedServer.stop`. Harmless when called again."""
        self._ending.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self.server.stop(grace)

    def look(self) -> None:
        """One round: mend what died since the last one."""
        if self._ending.is_set():
            return
        if not self.server.alive:
            self._restart(f"the server ended with status {self.server.exit_code}")
            return
        try:
            models = python_models(self.server.api)
        except TritonError as error:
            if not self.server.ended(DYING_SECONDS):
                self._tell("silent", "server", error.problem)
                return
            self._restart(f"the server ended with status {self.server.exit_code}")
            return
        running = stubs_of(self.server)
        for model, reason in self._unloaded.copy().items():
            self._reload(model, reason)
        for model, config in models.items():
            if self._ending.is_set():
                return
            reason = ""
            if len(running[model]) < self._expected[model]:
                reason = f"{self._expected[model] - len(running[model])} of its processes died"
            else:
                reason = self._probe(model, config)
            if reason:
                self._reload(model, reason)

    def _watch(self) -> None:
        while not self._ending.wait(self.settings.interval):
            self.look()

    def _probe(self, model: str, config: dict[str, Any]) -> str:
        """Why a model must be loaded again; empty when it lives."""
        try:
            probe(self.server.api, model, config, self.settings.probe_seconds)
        except TritonTimeoutError as error:
            self._tell("silent", model, error.problem)
        except TritonUnreachableError:
            pass  # the server itself: the next round
        except TritonError as error:  # else refused by the model itself, so it lives
            return "its process died" if UNHEALTHY in error.problem else ""
        return ""

    def _reload(self, model: str, reason: str) -> None:
        if not self._may_mend(model, reason):
            return
        began = time.monotonic()
        try:
            reload_model(self.server, model, self.settings.load_seconds)
        except TritonUnreachableError:
            return  # the server died meanwhile; the next round starts it anew
        except TritonError as error:
            self._unloaded[model] = reason
            self._tell("silent", model, f"{reason}, and it does not load again: {error.problem}")
            return
        self._unloaded.pop(model, None)
        self._tell("reloaded", model, f"{reason}; ready again after {time.monotonic() - began:.1f} s")

    def _restart(self, reason: str) -> None:
        if not self._may_mend("server", reason):
            return
        began = time.monotonic()
        try:
            self.server = self._relaunch(self._ending)
        except RvcSparkError as error:
            self._tell("silent", "server", f"{reason}, and it does not start again: {error.problem}")
            return
        self._expected = counts_of(self.server)
        self._unloaded.clear()
        self._tell("restarted", "server", f"{reason}; ready again after {time.monotonic() - began:.1f} s")

    def _may_mend(self, what: str, reason: str) -> bool:
        """Whether another attempt is allowed; says once when it is not."""
        now = time.monotonic()
        recent = [at for at in self._mended.get(what, []) if now - at < self.settings.window]
        if len(recent) >= self.settings.restarts:
            if what not in self._given_up:
                self._given_up.add(what)
                self._tell("gave up", what, f"{reason}, for the {len(recent) + 1}th time")
            return False
        self._given_up.discard(what)
        self._mended[what] = [*recent, now]
        return True

    def _tell(self, kind: Literal["reloaded", "restarted", "silent", "gave up"], what: str, message: str) -> None:
        event = ServerEvent(time.time(), kind, what, message)
        self._events = [*self._events, event][-EVENTS_KEPT:]
        if self._on_event is not None:
            self._on_event(event)


def python_models(api: ServerApi) -> dict[str, dict[str, Any]]:
    """Configurations of every model with the Python backend that the server has or had loaded."""
    names = {row["name"] for row in api.index() if row.get("state")}
    configs = {}
    for name in sorted(names):
        try:
            configs[name] = api.config(name)
        except (TritonModelError, TritonRequestError):  # not loaded at this moment
            continue
    return {name: config for name, config in configs.items() if config.get("backend") == "python"}


def probe(api: ServerApi, model: str, config: dict[str, Any], timeout: float) -> None:
    """Send the smallest request a model's configuration allows: one element of zero, or one empty text, per input.

    Returns when the model answered; raises the errors of `ServerApi`, also for an answer that is an error.
    """
    needed = [item for item in config.get("input", []) if not item.get("optional")]
    batched = int(config.get("max_batch_size", 0)) > 0
    inputs = []
    for item in needed:
        shape = [1] * batched + [max(int(size), 1) for size in item["dims"]]
        datatype = str(item["data_type"]).removeprefix("TYPE_")
        datatype = "BYTES" if datatype == "STRING" else datatype
        count = 1
        for size in shape:
            count *= size
        nothing: Any = {"BYTES": "", "BOOL": False}.get(datatype, 0)
        inputs.append({"name": item["name"], "shape": shape, "datatype": datatype, "data": [nothing] * count})
    if config.get("model_transaction_policy", {}).get("decoupled"):
        values = {item["name"]: item["data"] if len(item["data"]) > 1 else item["data"][0] for item in inputs}
        api.stream(model, values, timeout)
    else:
        api.infer(model, inputs, timeout)


def reload_model(server: EmbeddedServer, model: str, timeout: float) -> None:
    """Unload a model and load it again. Raises the errors of `ServerApi`.

    A dead instance that has been asked for something since stays "unloading" for ever; the model can be loaded beside
    it all the same. What still runs of its processes then is ended, or its memory would be held twice.
    """
    api, old = server.api, stubs_of(server)[model]
    api.unload(model, timeout)
    deadline = time.monotonic() + (BUSY_SECONDS if old else DEAD_SECONDS)
    while any(row["name"] == model and row.get("state") not in (None, "UNAVAILABLE") for row in api.index()):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    api.load(model, timeout)
    for pid in old & stubs_of(server)[model]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def stubs_of(server: EmbeddedServer) -> defaultdict[str, set[int]]:
    """The processes of each model of a server at this moment."""
    found: defaultdict[str, set[int]] = defaultdict(set)
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if len(words) < 2 or not words[0].endswith(STUB.encode()):
                continue
            parent = int((entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == server.pid:
            found[Path(words[1].decode("utf-8", "replace")).parent.parent.name].add(int(entry.name))
    return found


def counts_of(server: EmbeddedServer) -> Counter[str]:
    """How many processes each model of a server has at this moment."""
    return Counter({model: len(pids) for model, pids in stubs_of(server).items()})
