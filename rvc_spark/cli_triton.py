"""rvc-spark triton up|status|logs|down: a Triton server that stays when the command has ended, from a terminal.

`up` starts the same command again as a process of its own, with --foreground, which owns and watches the server; `down`
asks that process to end. A server started from a notebook belongs to the notebook: `status` shows it, `down` does not
touch it.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.markup import escape

from rvc_spark.cli_output import errors, progress_bar, say

KINDS = ("auto", "docker", "embedded")
POLL = 0.1  # seconds
DOWN_SECONDS = 60.0  # the server itself is killed 15 s after it was asked to end
LOG_LINES = 40


def _config() -> Any:
    from rvc_spark.rvc_config import RVCConfig

    return RVCConfig()


def _port(arguments: argparse.Namespace) -> int:
    return _config().triton_port if arguments.port is None else arguments.port


def _options(arguments: argparse.Namespace) -> Any:
    from rvc_spark.tts.triton_ports import Ports, usual_ports
    from rvc_spark.tts.triton_server import BootOptions

    chosen: dict[str, Any] = {"kind": arguments.kind, "dedicated": arguments.foreground}
    chosen |= {"timeout": arguments.timeout, "image": arguments.image}
    if arguments.repository is not None:
        chosen["repository"] = arguments.repository
    if arguments.model:
        chosen["models"] = tuple(arguments.model)
    if arguments.port is not None:
        chosen["ports"] = usual_ports(arguments.port) if arguments.port else Ports()
    return BootOptions(**chosen)


def command_up(arguments: argparse.Namespace) -> int:
    """Make sure that a server runs."""
    return _up_here(arguments) if arguments.foreground else _up_detached(arguments)


def _report(handle: Any) -> dict[str, Any]:
    return {
        "state": "ready", "kind": handle.kind.value, "why": handle.why, "address": handle.address,
        "http_address": handle.http_address, "models": list(handle.models), "pid": handle.pid,
        "signature": str(handle.signature) if handle.signature else None, "log": str(handle.log_path or ""),
    }  # fmt: skip


def _up_here(arguments: argparse.Namespace) -> int:
    """Start a server and stay with it until SIGTERM, Ctrl-C or its end."""
    from rvc_spark.tts.triton_server import boot_triton

    def end(*_signal: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)

    def tell(step: Any) -> None:
        say({"progress": round(step.fraction, 3), "message": step.message}, arguments.json, [])

    with progress_bar(arguments.json) as bar:
        handle = boot_triton(options=_options(arguments), on_progress=tell if arguments.json else bar)
    try:
        say(_report(handle), arguments.json, [f"{handle.address}: {handle.kind}"])
        if not handle.owned:
            return 0
        seen = 0
        while not handle.over:
            for event in handle.events[seen:]:
                say({"event": str(event)}, arguments.json, [str(event)])
                seen += 1
            time.sleep(POLL)
        errors.print(f"[red]the server ended[/]: {escape(str(handle.events[-1]) if handle.events else 'see its log')}")
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        handle.stop()


def _up_detached(arguments: argparse.Namespace) -> int:
    """Start `up --foreground` as a process of its own and follow it until its server is ready."""
    from rvc_spark.rvc_config import subprocess_environment

    folder = _config().triton_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / f"up-{_port(arguments)}.log"
    command = [sys.executable, "-m", "rvc_spark", "triton", "up", "--foreground", "--json", "--kind", arguments.kind]
    command += [] if arguments.timeout is None else ["--timeout", str(arguments.timeout)]
    command += [] if arguments.image is None else ["--image", arguments.image]
    command += [] if arguments.port is None else ["--port", str(arguments.port)]
    command += [] if arguments.repository is None else ["--repository", str(arguments.repository.resolve())]
    command += [word for model in arguments.model for word in ("--model", model)]
    with open(record, "wb") as sink:
        owner = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True,
            env=subprocess_environment(),
        )  # fmt: skip
    try:
        with progress_bar(arguments.json) as bar:
            ready = _follow(owner, record, bar)
    except BaseException:
        owner.terminate()
        owner.wait()
        raise
    if "error" in ready:
        say(ready, arguments.json, [])
        errors.print(f"[red]{escape(ready.get('kind', 'error'))}[/]: {escape(ready['error'])}", soft_wrap=True)
        return owner.wait() or 1
    port = ready["address"].rpartition(":")[2]
    running = ready["kind"] == "running"
    stop = "rvc-spark triton down" + ("" if port == str(_config().triton_port) else f" --port {port}")
    said = "it was running already" if running else f"end it with: {stop}"
    say(
        {**ready, "stop": None if running else stop}, arguments.json,
        [f"{ready['address']}: {ready['kind']} ({ready['why']})", said],
    )  # fmt: skip
    return 0


def _follow(owner: subprocess.Popen[bytes], record: Path, bar: Any) -> dict[str, Any]:
    """Wait for the line that says ready, or for the one that says why not."""
    from rvc_spark.tts.triton_log import BootProgress, LogReader

    reader = LogReader(record)
    other = ""
    while True:
        ended = owner.poll() is not None
        for line in reader.lines():
            try:
                told = json.loads(line)
            except ValueError:
                other = line
                continue
            if "error" in told or told.get("state") == "ready":
                return told
            if bar is not None and "progress" in told:
                bar(BootProgress(told["progress"], told["message"]))
        if ended:
            return {"error": f"the process of the server ended with status {owner.returncode}: {other}"}
        time.sleep(POLL)


def command_status(arguments: argparse.Namespace) -> int:
    """Every server started from here, and what answers at the configured address; exit code 1 if nothing does."""
    from rvc_spark.errors import RvcSparkError
    from rvc_spark.tts.triton_find import FoundServer, find_running
    from rvc_spark.tts.triton_state import all_states

    config = _config()
    port = _port(arguments)
    states = all_states(config.triton_dir)
    if arguments.port is not None:
        states = {number: state for number, state in states.items() if number == port}
    reports = [_status(state) for state in states.values()]
    if port not in states:
        host = config.triton_host if arguments.port is None else "127.0.0.1"
        try:
            found = find_running(host, port, ())
        except RvcSparkError as error:
            found = error.problem
        if isinstance(found, FoundServer):
            reports.append({"state": "ready", "kind": "running", "why": found.reason, "address": f"{host}:{port}"})
        else:
            reports.append({"state": "none", "why": found, "address": f"{host}:{port}"})
    for report in reports:
        say(report, arguments.json, _status_lines(report))
    return 0 if any(report["state"] == "ready" for report in reports) else 1


def _status(state: Any) -> dict[str, Any]:
    from rvc_spark.tts.triton_http import ServerApi

    host, _, port = state.http_address.rpartition(":")
    api = ServerApi(host, int(port), timeout=3.0)
    ready = api.ready() and all(api.model_ready(model) for model in state.models)
    return {
        "state": ("ready" if ready else "not ready") if state.owned else "abandoned", "kind": state.kind,
        "why": state.why, "address": state.address, "http_address": state.http_address, "models": list(state.models),
        "pid": state.pid, "server_pid": state.server_pid, "container": state.container,
        "uptime_seconds": round(time.time() - state.at, 1), "log": state.log, "events": list(state.events),
    }  # fmt: skip


def _status_lines(report: dict[str, Any]) -> list[str]:
    if "pid" not in report:
        return [f"{report['address']}: {report['state']}, {report['why']}"]
    minutes, seconds = divmod(int(report["uptime_seconds"]), 60)
    return [
        f"{report['address']}: {report['state']}, {report['kind']} ({report['why']})",
        f"  models {', '.join(report['models'])}; process {report['pid']}, server {report['server_pid']}; "
        f"up {minutes} min {seconds} s",
        f"  log {report['log']}",
        *(f"  {event}" for event in report["events"]),
    ]


def command_logs(arguments: argparse.Namespace) -> int:
    """The log of the server on a port, also after its end."""
    from rvc_spark.errors import TritonBootError
    from rvc_spark.tts.triton_log import LogReader, tail
    from rvc_spark.tts.triton_state import read_state

    config, port = _config(), _port(arguments)
    state = read_state(config.triton_dir, port)
    logs = [Path(state.log)] if state is not None and state.log else []
    if not logs:
        folder = config.triton_dir / "logs"
        logs = sorted(folder.glob(f"server-{port}-*.log"), key=lambda path: path.stat().st_mtime)
    if not logs:
        raise TritonBootError(f"no server was started from here on port {port}", "Start one with rvc-spark triton up.")
    reader = LogReader(logs[-1])
    old = list(reader.lines()) if arguments.follow else tail(logs[-1], arguments.lines)
    for line in old[-arguments.lines :] if arguments.lines > 0 else []:
        say({"line": line}, arguments.json, [line])
    while arguments.follow:
        ended = state is None or not state.owned
        for line in reader.lines():
            say({"line": line}, arguments.json, [line])
        if ended:
            break
        time.sleep(POLL)
    return 0


def command_down(arguments: argparse.Namespace) -> int:
    """End the server on a port, if it was started by `up`; harmless when there is none."""
    from rvc_spark.errors import TritonBootError
    from rvc_spark.tts.triton_state import ask_to_end, read_state, remove_state

    config, port = _config(), _port(arguments)
    state = read_state(config.triton_dir, port)
    report: dict[str, Any] = {"port": port, "stopped": False}
    if state is None:
        say(report, arguments.json, [f"no server started from here runs on port {port}"])
        return 0
    if state.owned and not state.dedicated:
        raise TritonBootError(
            f"the server on port {port} belongs to process {state.pid}, which does other things as well",
            "End it there: its handle has stop(), and it ends with that process.",
        )
    report["stopped"] = ask_to_end(state)
    deadline = time.monotonic() + DOWN_SECONDS
    while state.owned:
        if time.monotonic() > deadline:
            raise TritonBootError(
                f"process {state.pid} of the server on port {port} did not end within {DOWN_SECONDS:g} s",
                f"kill -KILL {state.pid} ends it together with its server.",
            )
        time.sleep(POLL)
    if state.container:
        _remove_container(state.container)
    remove_state(config.triton_dir, port, state.pid)
    said = "is stopped" if report["stopped"] else "had died already; what was noted of it is gone"
    say(report, arguments.json, [f"the server on port {port} {said}"])
    return 0


def _remove_container(container: str) -> None:
    """A container outlives an owner that was killed."""
    import shutil

    from rvc_spark.tts.triton_containers import ENGINES
    from rvc_spark.tts.triton_docker import remove_container

    for engine in ENGINES:
        if (program := shutil.which(engine)) is not None:
            remove_container(program, container)
            return


def add_triton(commands: Any) -> None:
    """The `triton` branch of the command line."""
    triton = commands.add_parser("triton", help="a Triton server on this machine: up, status, logs, down")
    actions = triton.add_subparsers(dest="action", required=True, metavar="ACTION")
    made = {}
    for name, run, help_text in (
        ("up", command_up, "start a server, or say that one runs; it stays until `down`"),
        ("status", command_status, "which servers run, of what kind and why; exit code 1 if none"),
        ("logs", command_logs, "what a server wrote"),
        ("down", command_down, "end the server"),
    ):
        made[name] = actions.add_parser(name, help=help_text)
        made[name].add_argument("--json", action="store_true", help="print one JSON object per result")
        made[name].add_argument("--port", type=int, help="of gRPC; HTTP is one below (default: TRITON_SERVER_PORT)")
        made[name].set_defaults(run=run)
    made["up"].add_argument("--kind", choices=KINDS, default="auto", help="default: Docker where it can, else embedded")
    made["up"].add_argument("--repository", type=Path, help="another folder of models, for the embedded server")
    made["up"].add_argument("--model", action="append", default=[], help="wait for this one (default: spark_tts)")
    made["up"].add_argument("--timeout", type=float, help="seconds for loading (default: 300, in Docker 3600)")
    made["up"].add_argument("--image", help="of Docker, fetched if it is not here (default: our own, which is built)")
    made["up"].add_argument("--foreground", action="store_true", help="stay with the server; Ctrl-C ends it")
    made["logs"].add_argument("-f", "--follow", action="store_true", help="go on until the server ends")
    made["logs"].add_argument("-n", "--lines", type=int, default=LOG_LINES, help=f"default: {LOG_LINES}")
