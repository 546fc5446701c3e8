"""A real tritonserver, started, watched, killed and ended. Its models are trivial: numpy is all they need."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from spark_maker import make_spark_folder
from trivial_triton import (
    BROKEN,
    ONE,
    PATIENCE,
    config,
    doubles,
    gone,
    leftovers,
    repository,
    runtime,
    shared_prefix,
    shared_runtime,
    stub_pids,
    until,
    write_model,
)

from rvc_spark.errors import (
    ConfigError,
    TritonBootError,
    TritonModelError,
    TritonRequestError,
    TritonUnreachableError,
)
from rvc_spark.tts.triton_embedded import EmbeddedServer, launch
from rvc_spark.tts.triton_http import UNHEALTHY, ServerApi
from rvc_spark.tts.triton_log import BootLog, LogReader
from rvc_spark.tts.triton_ports import Ports, holder_of
from rvc_spark.tts.triton_server import BootOptions, TritonHandle, boot_triton
from rvc_spark.tts.triton_state import read_state, remove_state, write_state
from rvc_spark.tts.triton_supervisor import Supervisor, SupervisorSettings, probe, stubs_of

__all__ = ["config", "repository", "runtime", "shared_runtime"]  # fixtures

INSIDE = '''
import sys
import numpy as np
import rvc_spark
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        told = [int(np.__version__.split(".")[0]), sys.version_info[0], sys.version_info[1], sys.flags.isolated]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([told], np.float32))]) for _ in requests]
'''

SLEEPER = '''
import time


class TritonPythonModel:
    def initialize(self, args):
        time.sleep(60)

    def execute(self, requests):
        return []
'''

SUICIDE = '''
import os, signal


class TritonPythonModel:
    def initialize(self, args):
        os.kill(os.getppid(), signal.SIGKILL)

    def execute(self, requests):
        return []
'''

REFUSER = '''
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        raise ValueError("INVALID_TEXT: nothing to say")
'''


@pytest.fixture
def server(runtime, repository) -> Iterator[EmbeddedServer]:
    """Running on free ports; killed at the end, because a patient end takes the server three seconds."""
    started = launch(repository, runtime)
    yield started
    started.stop(grace=0)


# --- the server as a child process


def test_serves_whole_and_in_pieces_and_ends_without_a_trace(runtime, repository) -> None:
    steps = []
    server = launch(repository, runtime, on_progress=steps.append)
    assert doubles(server.api)
    assert [event["y"] for event in server.api.stream("count", {"x": 3})] == [0.0, 1.0, 2.0]
    assert [step.message for step in steps][0].startswith("starting the Triton server")
    assert any("is loaded" in step.message for step in steps) and steps[-1].fraction == 1.0
    assert [step.fraction for step in steps] == sorted(step.fraction for step in steps)
    prefix = shared_prefix(server.pid)
    assert len(leftovers(prefix)) == 2, "the test would not notice what is left in shared memory"
    processes = [server.pid, server.guard_pid, *stub_pids(server.pid)]
    assert len(processes) == 4
    assert server.stop() == 0 and not server.alive
    assert server.stop() == 0
    assert all(gone(pid) for pid in processes) and not leftovers(prefix)
    assert holder_of(server.grpc_port) is None and not server.api.live()
    assert "successfully loaded 'double'" in server.log_path.read_text()


def test_only_the_loopback_listens(server) -> None:
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:] + Path("/proc/net/tcp6").read_text().splitlines()[1:]
    ports = {server.ports.grpc, server.ports.http, server.ports.metrics}
    places = [row.split()[1].split(":") for row in rows if row.split()[3] == "0A"]
    mine = [place for place, port in places if int(port, 16) in ports]
    assert len(mine) >= 3 and set(mine) <= {"0100007F", "0000000000000000FFFF00000100007F"}


def test_models_see_numpy_1_this_python_and_this_package(runtime, tmp_path) -> None:
    server = launch(write_model(tmp_path / "inside", "inside", INSIDE), runtime)
    try:
        told = server.api.infer("inside", ONE)["outputs"][0]["data"]
    finally:
        server.stop(grace=0)
    assert told == [1.0, *sys.version_info[:2], 1.0]


def test_a_model_that_does_not_load_speaks_for_itself(runtime, repository) -> None:
    write_model(repository, "broken", BROKEN)
    said = "broken does not load: ValueError: the weights are made of cheese"
    with pytest.raises(TritonBootError, match=said) as caught:
        launch(repository, runtime)
    assert "/" not in caught.value.problem.replace("http://", "")
    assert not subprocess.run(["pgrep", "-f", str(repository)], capture_output=True).stdout


def test_only_the_models_asked_for_are_loaded(runtime, repository) -> None:
    write_model(repository, "broken", BROKEN)
    server = launch(repository, runtime, models=("double",))
    try:
        assert doubles(server.api) and not server.api.model_ready("count")
    finally:
        server.stop(grace=0)


def test_a_server_that_dies_or_sleeps_while_loading(runtime, tmp_path) -> None:
    with pytest.raises(TritonBootError, match="ended with status 137 before it was ready"):
        launch(write_model(tmp_path / "a", "suicide", SUICIDE), runtime)
    with pytest.raises(TritonBootError, match="not ready after 1 s; waiting for sleeper"):
        launch(write_model(tmp_path / "b", "sleeper", SLEEPER), runtime, timeout=1)
    with pytest.raises(TritonBootError, match="holds no model"):
        launch(tmp_path / "nothing", runtime)
    assert not subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True).stdout


@pytest.mark.parametrize(
    "mode, program, words",
    [
        (0o644, "", "cannot be started: .*Permission denied"),
        (0o755, "#!/bin/sh\necho /opt/x/tritonserver: error while loading libz.so.9 >&2; exit 127\n",
         "ended with status 127 before it was ready: tritonserver: error while loading libz.so.9"),
        (0o755, "#!/bin/sh\nkill -SEGV $$\n", "ended with status 139 before it was ready: it said nothing"),
    ],
)  # fmt: skip
def test_a_binary_that_does_not_run_here(runtime, repository, tmp_path, mode, program, words) -> None:
    broken = replace(runtime, site=tmp_path / "site")
    broken.server.parent.mkdir(parents=True)
    broken.server.write_text(program)
    broken.server.chmod(mode)
    with pytest.raises(TritonBootError, match=words):
        launch(repository, broken)


def test_logs_of_ended_servers_are_few_and_running_ones_are_kept(config, runtime, repository) -> None:
    handle = boot_triton(config, options(repository))
    try:
        for number in range(60):
            (handle.log_path.parent / f"server-1-{number}.log").write_text("old")
            os.utime(handle.log_path.parent / f"server-1-{number}.log", (number, number))
        os.utime(handle.log_path, (0, 0))
        launch(repository, runtime).stop(grace=0)
        assert handle.log_path.exists() and len(list(handle.log_path.parent.iterdir())) == 21
    finally:
        handle.stop(grace=0)


def test_a_start_can_be_given_up(runtime, tmp_path) -> None:
    give_up = threading.Event()
    threading.Timer(0.5, give_up.set).start()
    began = time.monotonic()
    with pytest.raises(TritonBootError, match="given up"):
        launch(write_model(tmp_path / "b", "sleeper", SLEEPER), runtime, give_up=give_up)
    assert time.monotonic() - began < 20


def test_a_port_in_use_is_named_with_its_holder(runtime, repository) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TritonBootError, match=f"port {port} cannot be used: process {os.getpid()} "):
            launch(repository, runtime, ports=Ports(grpc=port))
    with pytest.raises(TritonBootError, match="its own"):
        launch(repository, runtime, ports=Ports(grpc=5000, http=5000))
    with pytest.raises(TritonBootError, match="1 to 65535"):
        launch(repository, runtime, ports=Ports(grpc=70_000))


def test_the_thread_that_started_it_may_end(runtime, repository) -> None:
    """The kernel's signal on parent death would fire here: it goes by thread."""
    made: list[EmbeddedServer] = []
    thread = threading.Thread(target=lambda: made.append(launch(repository, runtime)))
    thread.start()
    thread.join()
    try:
        time.sleep(0.5)
        assert doubles(made[0].api)
    finally:
        made[0].stop(grace=0)


OWNER = """
import sys, time
from pathlib import Path
from rvc_spark.tts.triton_embedded import launch
from rvc_spark.tts.triton_runtime import ensure_runtime
server = launch(Path(sys.argv[1]), ensure_runtime(Path(sys.argv[2])))
print(server.pid, server.guard_pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("victim", ["owner", "guard"])
def test_it_never_outlives_its_owner_or_guard(config, repository, victim) -> None:
    words = [sys.executable, "-c", OWNER, str(repository), str(config.triton_dir)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as owner:
        server, guard = (int(word) for word in owner.stdout.readline().split())
        pids, prefix = [server, guard, *stub_pids(server)], shared_prefix(server)
        os.kill(owner.pid if victim == "owner" else guard, signal.SIGKILL)
        until(lambda: all(gone(pid) for pid in pids))
        owner.kill()
    if victim == "owner":  # a killed guard cannot sweep
        assert not leftovers(prefix)


# --- the supervisor


@pytest.fixture
def supervisor(server, runtime, repository) -> Iterator[Supervisor]:
    """Not started: the tests do its rounds."""
    made = Supervisor(
        server, lambda give_up: launch(repository, runtime, ports=server.ports, give_up=give_up),
        SupervisorSettings(restarts=2),
    )  # fmt: skip
    yield made
    made.server.stop(grace=0)


@pytest.mark.parametrize("model", ["double", "count"])
def test_a_model_whose_process_died_is_loaded_again(supervisor, model) -> None:
    api = supervisor.server.api
    supervisor.look()
    assert supervisor.events == ()
    for pid in stub_pids(supervisor.server.pid):
        if f"/{model}/" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)
    until(lambda: not stubs_of(supervisor.server)[model])
    with pytest.raises(TritonModelError, match=UNHEALTHY):  # from now on the server cannot unload it any more
        probe(api, model, api.config(model), PATIENCE)
    assert api.ready() and api.model_ready(model), "the server notices by itself now; the supervisor may rest"
    supervisor.look()
    assert [(event.kind, event.what) for event in supervisor.events] == [("reloaded", model)]
    assert doubles(api) and len(api.stream("count", {"x": 2})) == 2
    supervisor.look()
    assert len(supervisor.events) == 1


def test_one_of_several_instances_is_missed(runtime, tmp_path) -> None:
    server = launch(write_model(tmp_path / "many", instances=3), runtime)
    watch = Supervisor(server, lambda give_up: server)
    try:
        old = stub_pids(server.pid)
        os.kill(old[1], signal.SIGKILL)
        until(lambda: len(stubs_of(server)["double"]) == 2)
        watch.look()
        assert watch.events[0].kind == "reloaded" and len(stubs_of(server)["double"]) == 3
        assert not stubs_of(server)["double"] & set(old)
        assert doubles(server.api)
    finally:
        server.stop(grace=0)


def test_a_model_that_refuses_the_probe_lives(runtime, tmp_path) -> None:
    server = launch(write_model(tmp_path / "no", "refuser", REFUSER), runtime)
    watch = Supervisor(server, lambda give_up: server)
    try:
        watch.look()
        assert watch.events == ()
        with pytest.raises(TritonModelError, match="INVALID_TEXT: nothing to say"):
            server.api.infer("refuser", ONE)
    finally:
        server.stop(grace=0)


def test_a_model_that_cannot_come_back_is_tried_and_given_up(supervisor, repository) -> None:
    write_model(repository, "double", BROKEN)
    for pid in stub_pids(supervisor.server.pid):
        if "/double/" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)
    until(lambda: not stubs_of(supervisor.server)["double"])
    for _ in range(4):
        supervisor.look()
    assert [event.kind for event in supervisor.events] == ["silent", "silent", "gave up"]
    assert "made of cheese" in supervisor.events[0].message
    assert len(supervisor.server.api.stream("count", {"x": 2})) == 2


def test_a_dead_server_is_started_again_on_its_ports_until_it_is_given_up(supervisor) -> None:
    ports = supervisor.server.ports
    for kind in ("restarted", "restarted", "gave up"):
        os.kill(supervisor.pid, signal.SIGKILL)
        until(lambda: not supervisor.alive)
        supervisor.look()
        assert supervisor.events[-1].kind == kind and supervisor.server.ports == ports
        if kind == "restarted":
            assert doubles(supervisor.server.api)
    supervisor.look()
    assert len(supervisor.events) == 3 and supervisor.over


# --- the door


def options(repository: Path, **changes) -> BootOptions:
    chosen = {"kind": "embedded", "repository": repository, "models": ("double",), **changes}
    return BootOptions(**chosen, supervisor=SupervisorSettings(interval=0.1))


def test_boot_and_find_it_again(config, repository) -> None:
    steps = []
    first = boot_triton(config, options(repository, kind="auto"), on_progress=steps.append)
    try:
        assert first.kind.value == "embedded" and first.owned and first.alive
        assert f"no server at localhost:{config.triton_port}" in first.why
        assert first.address == f"127.0.0.1:{config.triton_port}"
        assert [step.fraction for step in steps] == sorted(step.fraction for step in steps)
        second = boot_triton(config, options(repository, kind="auto"))
        assert second.kind.value == "running" and not second.owned
        assert f"started from here by process {os.getpid()}" in second.why
        second.stop()
        assert first.alive and doubles(ServerApi("127.0.0.1", first.ports.http))
        assert boot_triton(config, options(repository)).kind.value == "running"
        with pytest.raises(TritonModelError, match="no model spark_tts that is ready"):
            boot_triton(config)
        with pytest.raises(TritonBootError, match="so no docker server can be started on port"):
            boot_triton(config, BootOptions(kind="docker", models=("double",)))
        state = read_state(config.triton_dir, config.triton_port)
        assert state.owned and state.server_pid == first.pid and state.kind == "embedded" and not state.dedicated
        os.kill(first.pid, signal.SIGKILL)
        until(lambda: first.events)
        assert first.events[0].kind == "restarted" and first.alive
        assert read_state(config.triton_dir, config.triton_port).server_pid == first.pid
    finally:
        first.stop(grace=0)
    assert read_state(config.triton_dir, config.triton_port) is None
    assert not first.alive and first.over
    first.stop()
    with pytest.raises(TritonBootError, match="no server at localhost"):
        boot_triton(config, BootOptions(kind="running"))


def test_the_end_of_a_block_and_of_the_process_end_it(config, repository) -> None:
    with boot_triton(config, options(repository)) as handle:
        assert handle.alive
    assert not handle.alive and gone(handle.pid or 0) and handle.pid is None
    script = (
        "import sys; from pathlib import Path; from rvc_spark import BootOptions, RVCConfig, boot_triton\n"
        "options = BootOptions(kind='embedded', repository=Path(sys.argv[1]), models=('double',))\n"
        "print(boot_triton(RVCConfig(root=sys.argv[2], triton_port=int(sys.argv[3])), options).pid)"
    )
    words = [sys.executable, "-c", script, str(repository), str(config.root), str(config.triton_port)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert gone(int(done.stdout)) and read_state(config.triton_dir, config.triton_port) is None


def test_two_boots_at_once_make_one_server(config, repository) -> None:
    made: list[TritonHandle] = []
    threads = [
        threading.Thread(target=lambda: made.append(boot_triton(config, options(repository)))) for _ in range(3)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    try:
        assert sorted(handle.kind.value for handle in made) == ["embedded", "running", "running"]
    finally:
        for handle in made:
            if handle.owned:
                handle.stop(grace=0)


def test_a_state_file_of_a_dead_owner_means_nothing(config, repository) -> None:
    handle = boot_triton(config, options(repository))
    state = read_state(config.triton_dir, config.triton_port)
    handle.stop(grace=0)
    for stale in ({"pid": 2**22 + 1}, {"began": state.began - 1}):
        write_state(config.triton_dir, config.triton_port, type(state)(**{**vars(state), **stale}))
        assert not read_state(config.triton_dir, config.triton_port).owned
    handle = boot_triton(config, options(repository))
    assert handle.kind.value == "embedded"
    handle.stop(grace=0)
    path = config.triton_dir / "servers" / f"{config.triton_port}.json"
    for damage in ("", "{", "[]", '{"pid": 1}', "\0" * 100):
        path.write_text(damage)
        assert read_state(config.triton_dir, config.triton_port) is None
    remove_state(config.triton_dir, config.triton_port)
    remove_state(config.triton_dir, config.triton_port)


def test_a_server_with_another_signature_is_refused_and_not_left_running(config, tmp_path) -> None:
    folder = write_model(tmp_path / "other", "spark_tts")
    with pytest.raises(TritonModelError, match="no input reference_wav; .*no output waveform") as caught:
        boot_triton(config, options(folder, models=("spark_tts",)))
    assert "one more output, y" in caught.value.problem
    assert not subprocess.run(["pgrep", "-f", str(folder)], capture_output=True).stdout
    with pytest.raises(TritonBootError, match="no model trumpet, only spark_tts"):
        boot_triton(config, options(folder, models=("trumpet",)))


def test_what_is_no_triton_server_is_named(config, repository) -> None:
    with socket.create_server(("127.0.0.1", config.triton_port)) as other:
        stop = threading.Event()

        def answer() -> None:
            other.settimeout(0.1)
            while not stop.is_set():
                try:
                    line, _ = other.accept()
                except TimeoutError:
                    continue
                with line:
                    line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        with pytest.raises(TritonBootError, match="not by a Triton server"):  # it accepts and says nothing
            boot_triton(config, options(repository))
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with pytest.raises(TritonBootError, match=f"not by a Triton server: process {os.getpid()} "):
                boot_triton(config, options(repository, kind="auto"))
        finally:
            stop.set()
            thread.join()


def test_the_projects_own_models_boot_and_bear_the_probes(config, tmp_path) -> None:
    spark = config.model_copy(update={"spark": make_spark_folder(tmp_path / "Spark-TTS-0.5B"), "device": "cpu"})
    handle = boot_triton(spark, BootOptions(kind="embedded", supervise=False))
    try:
        assert handle.signature.rvc_spark and handle.signature.decoupled
        assert str(handle.signature).startswith("spark_tts, streaming, rvc-spark ")
        handle._server.look()
        assert handle.events == ()
    finally:
        handle.stop(grace=0)


def test_a_kind_that_is_none() -> None:
    with pytest.raises(ConfigError, match="kind='vm' is no way.*auto, running, docker, embedded"):
        BootOptions(kind="vm")


def test_another_machine_is_never_replaced_by_this_one(config) -> None:
    remote = config.model_copy(update={"triton_host": "triton.invalid"})
    with pytest.raises(TritonBootError, match="no server at triton.invalid:.* on this machine only"):
        boot_triton(remote)


def test_api_errors_have_their_kinds(server) -> None:
    with pytest.raises(TritonModelError, match="trumpet"):
        server.api.metadata("trumpet")
    with pytest.raises(TritonRequestError):
        server.api.infer("double", [{**ONE[0], "datatype": "INT32"}])
    with pytest.raises(TritonRequestError, match="decoupled"):
        server.api.infer("count", ONE)
    nobody = ServerApi("127.0.0.1", 1)
    assert not nobody.live() and not nobody.model_ready("double")
    with pytest.raises(TritonUnreachableError, match="no Triton server answers"):
        nobody.index()


# --- its log


def test_the_log_is_read_as_it_grows(tmp_path) -> None:
    path = tmp_path / "log"
    reader = LogReader(path)
    assert list(reader.lines()) == []
    path.write_bytes(b"one\ntw")
    assert list(reader.lines()) == ["one"] and reader.rest() == "tw"
    with open(path, "ab") as stream:
        stream.write("o\ndreié\n".encode()[:-2])
    assert list(reader.lines()) == ["two"]
    path.write_bytes(b"new\n")
    assert list(reader.lines()) == ["new"]
    story = BootLog(LogReader(path))
    path.write_text(
        "I1121 12:30:09.287506 6817 model_lifecycle.cc:849] \"successfully loaded 'good'\"\n"
        "E1121 12:30:09.287487 6817 model_lifecycle.cc:642] \"failed to load 'bad' version 1: Internal: OSError: no "
        "/home/someone/models/weights.bin\\n\\nAt:\\n  /home/someone/bad/1/model.py(4): initialize\\n\"\n"
        "error: creating server: Internal - failed to load all models\n"
    )
    story.look()
    assert story.loaded == ["good"] and story.failed == {"bad": "OSError: no weights.bin"}
    assert story.last_words() == "creating server: Internal - failed to load all models"
