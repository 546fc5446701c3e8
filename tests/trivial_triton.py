"""Trivial models for a real Triton server, a place to run it in, and eyes for what it leaves behind.

The fixtures are imported by the test files that use them.

    write_model(folder / "models", "double")                    # y = 2 x
    write_model(folder / "models", "count", COUNT, decoupled=True)   # 0, 1, ... x-1, one answer each
    write_model(folder / "models", "broken", BROKEN)            # refuses to load
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rvc_spark.errors import TritonBootError
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.tts.triton_http import ServerApi
from rvc_spark.tts.triton_platform import check_platform, choose_interpreter
from rvc_spark.tts.triton_runtime import Runtime, ensure_runtime
from rvc_spark.tts.triton_state import process_start

PATIENCE = 30.0  # seconds; bounds that mean "does not hang"
ONE = [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]

DOUBLE = '''
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", (2 * x).astype(np.float32))]))
        return answers
'''

COUNT = '''
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for number in range(int(pb_utils.get_input_tensor_by_name(request, "x").as_numpy().flat[0])):
                tensor = pb_utils.Tensor("y", np.full((1, 1), number, np.float32))
                sender.send(pb_utils.InferenceResponse([tensor]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
'''

BROKEN = '''
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("the weights are made of cheese")

    def execute(self, requests):
        return []
'''

CONFIG = '''name: "{name}"
backend: "python"
max_batch_size: 4
input [ {{ name: "x", data_type: TYPE_FP32, dims: [ -1 ] }} ]
output [ {{ name: "y", data_type: TYPE_FP32, dims: [ -1 ] }} ]
instance_group [ {{ kind: KIND_CPU, count: {instances} }} ]
model_transaction_policy {{ decoupled: {decoupled} }}
'''


def write_model(
    repository: Path, name: str = "double", source: str = DOUBLE, *, instances: int = 1, decoupled: bool = False
) -> Path:
    """One Python-backend model `name` (x FP32 [B, n] -> y FP32 [B, n]) in a repository folder, which is returned."""
    version = repository / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / "model.py").write_text(source, encoding="utf-8")
    config = CONFIG.format(name=name, instances=instances, decoupled=str(decoupled).lower())
    (repository / name / "config.pbtxt").write_text(config, encoding="utf-8")
    return repository


def doubles(api: ServerApi) -> bool:
    """Whether the model `double` answers rightly."""
    return api.infer("double", ONE)["outputs"][0]["data"] == [2.0, 4.0]


def until(what: Callable[[], object], seconds: float = PATIENCE) -> object:
    """Wait until something is true; fails when it does not become so."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    return process_start(pid) == 0


def stub_pids(server_pid: int) -> list[int]:
    """The model processes of a server."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(server_pid)], capture_output=True, text=True).stdout
    return [int(word) for word in found.split()]


def shared_prefix(server_pid: int) -> str:
    """How the names of one server's regions in shared memory begin; other servers may run on this machine."""
    words = Path(f"/proc/{server_pid}/cmdline").read_text().split("\0")
    return next(word.partition("shm-region-prefix-name=")[2] for word in words if "shm-region-prefix-name=" in word)


def leftovers(prefix: str) -> list[Path]:
    """What a server's model processes have in shared memory."""
    assert prefix
    return list(Path("/dev/shm").glob(f"{prefix}*"))


@pytest.fixture(scope="session")
def shared_runtime() -> Runtime:
    """The project's own runtime, made if it is missing; where the platform cannot have one, nothing here can run."""
    try:
        check_platform()
        choose_interpreter()
    except TritonBootError as error:
        pytest.skip(error.problem)
    return ensure_runtime(RVCConfig().triton_dir)


@pytest.fixture
def config(shared_runtime, tmp_path) -> RVCConfig:
    """A configuration of its own that uses the shared runtime, on ports nobody else has."""
    home = tmp_path / "home" / "assets" / "triton"
    home.mkdir(parents=True)
    (home / "runtime").symlink_to(shared_runtime.folder)
    grpc = three_free_ports()
    return RVCConfig(root=tmp_path / "home", triton_host="localhost", triton_port=grpc)


def three_free_ports() -> int:
    """The middle one of three neighbours that are free."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as middle:
            port = middle.getsockname()[1]
            try:
                for neighbour in (port - 1, port + 1):
                    socket.create_server(("127.0.0.1", neighbour)).close()
            except OSError:
                continue
            return port


@pytest.fixture
def runtime(config) -> Runtime:
    """The shared runtime under this test's own folder, so that its logs are its own."""
    return ensure_runtime(config.triton_dir)


@pytest.fixture
def repository(tmp_path) -> Path:
    """One model that doubles, one that counts."""
    folder = write_model(tmp_path / "models")
    return write_model(folder, "count", COUNT, decoupled=True)
