"""`rvc-spark triton up|status|logs|down` with a real server that stays when the command has ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from trivial_triton import (
    BROKEN,
    PATIENCE,
    config,
    doubles,
    gone,
    leftovers,
    repository,
    shared_prefix,
    shared_runtime,
    stub_pids,
    until,
    write_model,
)

from rvc_spark.cli import main
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.tts.triton_http import ServerApi
from rvc_spark.tts.triton_server import BootOptions, boot_triton
from rvc_spark.tts.triton_state import read_state, write_state

__all__ = ["config", "repository", "shared_runtime"]  # fixtures


@pytest.fixture
def home(config, monkeypatch) -> Iterator[RVCConfig]:
    """What the command line sees: a root and a port of this test's own. No server is left at the end."""
    monkeypatch.setenv("RVC_ROOT", str(config.root))
    monkeypatch.setenv("TRITON_SERVER_PORT", str(config.triton_port))
    yield config
    main(["triton", "down"])


def run(capsys, *words: str) -> tuple[int, list[dict], str]:
    """Exit code, JSON objects of standard output, standard error."""
    code = main(["triton", *words, "--json"])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def up(repository: Path, *words: str) -> list[str]:
    return ["up", "--kind", "embedded", "--repository", str(repository), "--model", "double", *words]


@contextmanager
def followed() -> Iterator[list[str]]:
    """`logs --follow` in a process of its own, which must end by itself when the server does."""
    command = [sys.executable, "-m", "rvc_spark", "triton", "logs", "-f", "-n", "1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        lines: list[str] = []
        reading = threading.Thread(target=lambda: lines.extend(follower.stdout))
        reading.start()
        yield lines
        reading.join(PATIENCE)
        assert follower.wait(PATIENCE) == 0


def test_up_status_logs_down_each_twice(capsys, home, repository) -> None:
    port = str(home.triton_port)
    code, (report,), _ = run(capsys, "status")
    assert code == 1 and report["state"] == "none" and "no server at localhost" in report["why"]

    code, (first,), _ = run(capsys, *up(repository))
    assert code == 0 and first["kind"] == "embedded" and first["address"] == f"127.0.0.1:{port}"
    assert first["stop"] == "rvc-spark triton down"
    api = ServerApi("127.0.0.1", home.triton_port - 1)
    assert doubles(api)
    code, (second,), _ = run(capsys, *up(repository))
    assert code == 0 and second["kind"] == "running" and second["stop"] is None
    assert "started from here by process" in second["why"]

    code, (report,), _ = run(capsys, "status")
    assert code == 0 and report["state"] == "ready" and report["models"] == ["double"]
    assert report["server_pid"] == first["pid"] and report["uptime_seconds"] > 0 and report["pid"] != os.getpid()
    owner = read_state(home.triton_dir, home.triton_port)
    assert owner.dedicated and owner.pid == report["pid"]
    assert main(["triton", "status"]) == 0
    assert "embedded (no server at localhost" in capsys.readouterr().out

    code, lines, _ = run(capsys, "logs", "-n", "5")
    assert code == 0 and len(lines) == 5
    assert run(capsys, "logs", "-n", "0")[1] == []

    pids = [owner.pid, owner.server_pid, *stub_pids(owner.server_pid)]
    with followed() as lines:
        until(lambda: any("Started GRPCInferenceService" in line for line in lines))
        assert not any("Signal (15)" in line for line in lines)
        code, (report,), _ = run(capsys, "down")
    assert any("Signal (15)" in line for line in lines), "the last words were not followed"
    assert code == 0 and report == {"port": int(port), "stopped": True}
    assert all(gone(pid) for pid in pids) and not api.live()
    code, (report,), _ = run(capsys, "down")
    assert code == 0 and not report["stopped"]
    assert run(capsys, "status")[0] == 1
    assert any("successfully unloaded" in line["line"] for line in run(capsys, "logs", "-n", "100")[1])


def test_an_owner_killed_takes_its_server_along_and_is_forgotten(capsys, home, repository) -> None:
    run(capsys, *up(repository))
    state = read_state(home.triton_dir, home.triton_port)
    pids, prefix = [state.server_pid, *stub_pids(state.server_pid)], shared_prefix(state.server_pid)
    os.kill(state.pid, signal.SIGKILL)
    until(lambda: all(gone(pid) for pid in pids))
    until(lambda: not leftovers(prefix))
    code, (report,), _ = run(capsys, "status")
    assert code == 1 and report["state"] == "abandoned"
    code, (report,), _ = run(capsys, *up(repository))
    assert code == 0 and report["kind"] == "embedded"
    run(capsys, "down")
    write_state(home.triton_dir, home.triton_port, state)
    code, (report,), _ = run(capsys, "down")
    assert code == 0 and not report["stopped"] and read_state(home.triton_dir, home.triton_port) is None


def test_up_that_fails_says_why_and_leaves_nothing(capsys, home, repository) -> None:
    write_model(repository, "broken", BROKEN)
    code, (report,), err = run(capsys, *up(repository))
    assert code == 12 and report["kind"] == "TritonBootError"
    assert "broken does not load: ValueError: the weights are made of cheese" in err
    assert not subprocess.run(["pgrep", "-f", str(repository)], capture_output=True).stdout
    code, (report,), err = run(capsys, *up(repository, "--port", "70000"))
    assert code == 12 and "1 to 65535" in report["error"]


def test_the_foreground_ends_with_sigterm(home, repository) -> None:
    words = [sys.executable, "-m", "rvc_spark", "triton", *up(repository, "--foreground", "--json", "--port", "0")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as owner:
        told = [json.loads(owner.stdout.readline())]
        while "state" not in told[-1]:
            told.append(json.loads(owner.stdout.readline()))
        ready = told[-1]
        assert ready["kind"] == "embedded" and ready["address"] != f"127.0.0.1:{home.triton_port}"
        assert told[0]["message"] == "looking for a Triton server" and told[-2]["progress"] == 1.0
        owner.terminate()
        assert owner.wait(30) == 0
    assert gone(ready["pid"])


def test_a_servers_owner_with_other_work_is_left_alone(capsys, home, repository) -> None:
    handle = boot_triton(home, BootOptions(kind="embedded", repository=repository, models=("double",)))
    try:
        code, (report,), err = run(capsys, "down")
        assert code == 12 and f"belongs to process {os.getpid()}" in err and handle.alive
        code, (report,), _ = run(capsys, "status", "--port", str(home.triton_port))
        assert code == 0 and report["pid"] == os.getpid()
    finally:
        handle.stop(grace=0)


def test_logs_of_nothing(capsys, home) -> None:
    code, (report,), _ = run(capsys, "logs")
    assert code == 12 and "no server was started from here" in report["error"]
