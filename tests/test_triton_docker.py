"""Docker and podman without either: a fake program on PATH answers what real ones were recorded to say.

What is tested is which commands are given and what is made of the answers; no container has run here.
"""

from __future__ import annotations

import http.server
import json
import shutil
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest
from spark_maker import make_spark_folder
from trivial_triton import three_free_ports, until

from rvc_spark.errors import AssetError, TritonBootError
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.tts import triton_containers, triton_docker
from rvc_spark.tts.triton_containers import engine_problem, find_engine, find_gpu, pull_image
from rvc_spark.tts.triton_docker import IMAGE, ContainerPlan, remove_container
from rvc_spark.tts.triton_log import tail
from rvc_spark.tts.triton_server import BootOptions, TritonHandle, boot_triton
from rvc_spark.tts.triton_signature import INPUTS, OUTPUTS
from rvc_spark.tts.triton_state import read_state

CONTAINER = "0123456789abcdef" * 4
NO_DAEMON = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
INFO = {"ServerVersion": "28.2.2", "Runtimes": {"io.containerd.runc.v2": {}, "nvidia": {}, "runc": {}}}

# The fake: the first rule whose pattern is found in the command answers. `touch` and `unless` make it remember.
PROGRAM = """#!{python} -IS
import json, os, re, sys, time
folder = {folder!r}
name = os.path.basename(sys.argv[0])
with open(os.path.join(folder, "calls"), "a") as calls:
    calls.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
with open(os.path.join(folder, "rules.json")) as stream:
    rules = json.load(stream)
said = " ".join([name, *sys.argv[1:]])
for rule in rules:
    if re.search(rule["match"], said) and not os.path.exists(os.path.join(folder, rule.get("unless", "never"))):
        if "touch" in rule:
            open(os.path.join(folder, rule["touch"]), "w").close()
        sys.stdout.write(rule.get("out", ""))
        sys.stdout.flush()
        sys.stderr.write(rule.get("err", ""))
        time.sleep(rule.get("sleep", 0))
        sys.exit(rule.get("code", 0))
sys.stderr.write("unexpected: " + said)
sys.exit(99)
"""


class Fake:
    """Programs of chosen names, alone on PATH, that answer by rules and remember their calls."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.folder = folder
        self.rules: list[dict] = []
        for name in names:
            program = folder / "bin" / name
            program.write_text(PROGRAM.format(python=sys.executable, folder=str(folder)))
            program.chmod(0o755)

    def says(self, match: str, out: str = "", **more) -> None:
        """Add a rule before the others."""
        self.rules.insert(0, {"match": match, "out": out, **more})
        (self.folder / "rules.json").write_text(json.dumps(self.rules))

    def calls(self, word: str = "") -> list[list[str]]:
        """Commands given so far that hold a word."""
        path = self.folder / "calls"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in found if not word or word in call]

    def did(self, name: str) -> bool:
        """Whether a rule with that `touch` has answered."""
        return (self.folder / name).exists()


@pytest.fixture
def make_fake(tmp_path, monkeypatch):
    """Puts fakes on an otherwise empty PATH. By default: a healthy docker without compose, an L4, the image is here."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(triton_containers, "CDI_FOLDERS", (tmp_path / "cdi",))
    monkeypatch.setattr(triton_docker, "POLL", 0.02)

    def make(*names: str) -> Fake:
        fake = Fake(tmp_path, names or ("docker", "nvidia-smi"))
        fake.says("nvidia-smi", "NVIDIA L4, 8.9\n")
        fake.says("^(docker|podman) info", json.dumps(INFO))
        fake.says("compose version", code=1, err="docker: unknown command: docker compose\n")
        fake.says("image inspect", "sha256:1\n")
        fake.says(" run ", CONTAINER + "\n", touch="up")
        fake.says(" ps ", CONTAINER + "\n")
        fake.says(" ps ", "", unless="up")
        fake.says(" inspect --format {{.State", "running 0\n")
        fake.says(" logs ", "I1121 12:30 model_lifecycle.cc:849] \"successfully loaded 'vocoder'\"\n", sleep=600)
        fake.says(" (stop|rm|down) ", CONTAINER + "\n", touch="down")
        return fake

    return make


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_spark_folder(tmp_path_factory.mktemp("spark") / "Spark-TTS-0.5B")


@pytest.fixture
def config(tmp_path, checkpoint) -> RVCConfig:
    grpc = three_free_ports()
    return RVCConfig(root=tmp_path / "home", spark=checkpoint, triton_host="localhost", triton_port=grpc)


class PublicServer(http.server.BaseHTTPRequestHandler):
    """What the public repository's server tells over HTTP."""

    def do_GET(self) -> None:  # noqa: N802 - the name the base class calls
        shaped = {"inputs": INPUTS, "outputs": OUTPUTS}
        content: object = {}
        if self.path == "/v2/models/spark_tts":
            content = {
                key: [{"name": name, "datatype": kind, "shape": list(shape)} for name, (kind, shape) in rows.items()]
                for key, rows in shaped.items()
            }
        if self.path.endswith("/config"):
            content = {"model_transaction_policy": {"decoupled": False}, "parameters": {}}
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: object) -> None:
        """Silence."""


@pytest.fixture
def served(config, tmp_path):
    """Once the fake was told to start the container, something answers on its HTTP port."""
    ending = threading.Event()

    def serve() -> None:
        until(lambda: (tmp_path / "up").exists() or ending.is_set())
        if ending.is_set():
            return
        with http.server.ThreadingHTTPServer(("127.0.0.1", config.triton_port - 1), PublicServer) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            ending.wait()
            server.shutdown()
            thread.join()

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    ending.set()
    thread.join()


def refused(config: RVCConfig, pattern: str, **changes) -> TritonBootError:
    with pytest.raises(TritonBootError, match=pattern) as caught:
        boot_triton(config, BootOptions(kind="docker", timeout=10, **changes))
    assert caught.value.exit_code == 12 and caught.value.next_step
    return caught.value


# --- can it run here


def test_nothing_installed(make_fake, config) -> None:
    make_fake("nvidia-smi")
    refused(config, "neither docker nor podman is installed")


def test_no_gpu_old_gpu_broken_driver(make_fake, config) -> None:
    fake = make_fake("docker")
    refused(config, "no NVIDIA GPU here")
    fake = make_fake()
    fake.says("nvidia-smi", "Tesla T4, 7.5\n")
    refused(config, "Tesla T4 is too old for the image, compute capability 7.5 < 8.0")
    fake.says("nvidia-smi", "Tesla T4, 7.5\nNVIDIA H200, 9.0\n")
    assert find_gpu() == "NVIDIA H200, capability 9.0"
    fake.says("nvidia-smi", "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", code=9)
    refused(config, "nvidia-smi shows no GPU .NVIDIA-SMI has failed")
    fake.says("nvidia-smi", "No devices were found\n")
    refused(config, "shows no GPU .No devices were found")
    assert not fake.calls("run")


def test_no_daemon(make_fake, config) -> None:
    fake = make_fake()
    fake.says("docker info", json.dumps({"ServerErrors": [NO_DAEMON]}), err=NO_DAEMON + "\n", code=1)
    error = refused(config, "the daemon of docker does not answer .Cannot connect to the Docker daemon")
    assert "Start it" in error.next_step
    fake.says("docker info", "not json")
    refused(config, "docker info answered no JSON")


def test_a_daemon_that_hangs(make_fake, config, monkeypatch) -> None:
    monkeypatch.setattr(triton_containers, "ASK_SECONDS", 0.5)
    make_fake().says("docker info", sleep=60)
    began = time.monotonic()
    refused(config, "no answer within 0.5 s")
    assert time.monotonic() - began < 20


def test_the_nvidia_runtime(make_fake, config, tmp_path) -> None:
    fake = make_fake("docker", "podman", "nvidia-smi")
    fake.says("^(docker|podman) info", json.dumps({"Runtimes": {"runc": {}}}))
    refused(config, "docker has no NVIDIA runtime and no CDI device")
    fake.says("docker info", json.dumps({"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]}))
    assert find_engine().name == "docker"
    fake.says("docker info", err=NO_DAEMON, code=1)
    (tmp_path / "cdi").mkdir()
    (tmp_path / "cdi" / "nvidia.yaml").touch()
    fake.says("podman info", json.dumps({"store": {"graphRoot": str(tmp_path)}}))
    engine = find_engine()
    assert (engine.name, engine.compose, engine.root) == ("podman", (), tmp_path)


# --- the image


def test_auto_never_fetches_gigabytes_by_itself(make_fake, config) -> None:
    fake = make_fake()
    fake.says("image inspect", code=1, err="Error response from daemon: No such image\n")
    with pytest.raises(TritonBootError, match=f"the image {IMAGE} is not on this machine") as caught:
        triton_docker.prepare_docker(config, None, None, fetch=False)
    assert "--kind docker" in caught.value.next_step and not fake.calls("pull")
    offline = config.model_copy(update={"offline": True})
    refused(offline, "not on this machine and offline mode is on")
    assert not fake.calls("pull")


@pytest.mark.parametrize(
    "said, found",
    [
        (
            "Error response from daemon: pull access denied for soar97/triton-spark-tts, repository does not exist or "
            "may require 'docker login': denied: requested access to the resource is denied",
            "the registry refuses the image",
        ),
        (
            "Error response from daemon: manifest for soar97/triton-spark-tts:25.02 not found: manifest unknown: "
            "manifest unknown",
            "the registry has no such image",
        ),
        (
            'Error response from daemon: Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io:'
            " no such host",
            "the registry does not answer",
        ),
        (
            "failed to register layer: write /usr/lib/libcudnn.so: no space left on device",
            "the disk is full",
        ),
        ("Error response from daemon: toomanyrequests: slow down", "cannot be fetched: Error response from"),
    ],
)
def test_an_image_that_cannot_be_pulled(make_fake, config, said, found) -> None:
    fake = make_fake()
    fake.says("image inspect", code=1)
    fake.says(" pull ", "25.02: Pulling from soar97/triton-spark-tts\n", err=said + "\n", code=1)
    refused(config, found, image="x/y:1")
    assert fake.calls("pull") == [["docker", "pull", "x/y:1"]] and not fake.calls("run")
    fake.says(" build ", "#2 [1/3] FROM nvcr.io/nvidia/tritonserver\n", err=said + "\n", code=1)
    refused(config, found.replace("fetched", "built"))
    assert len(fake.calls("pull")) == 1 and not fake.calls("run")


def test_no_room_for_the_image(make_fake, config, tmp_path, monkeypatch) -> None:
    fake = make_fake()
    fake.says("docker info", json.dumps({**INFO, "DockerRootDir": str(tmp_path)}))
    fake.says("image inspect", code=1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**11, 10**11, 3 * 10**9))
    refused(config, "has 3 GB free; the image .* needs 40 GB")
    refused(config, "has 3 GB free; the image x/y:1 needs 40 GB", image="x/y:1")
    assert not fake.calls("pull") and not fake.calls("build")


def test_the_projects_own_image_is_built(make_fake, config, served) -> None:
    fake = make_fake()
    fake.says("image inspect", code=1)
    steps_said = "#5 [2/3] RUN python3 -m pip install\n#6 [3/3] COPY . /opt/rvc_spark/python/rvc_spark\n#6 DONE 1s\n"
    fake.says(" build ", steps_said)
    steps = []
    boot_triton(config, BootOptions(kind="docker"), on_progress=steps.append).stop()
    (build,) = fake.calls("build")
    assert build[1:4] == ["build", "--tag", IMAGE] and Path(build[5]).is_file() and (Path(build[6]) / "tts").is_dir()
    said = [step.message for step in steps]
    assert f"building the image {IMAGE}" in said and "#5 [2/3] RUN python3 -m pip install" in said


def test_no_checkpoint(make_fake, config, tmp_path) -> None:
    fake = make_fake()
    with pytest.raises(AssetError, match="assets get spark"):
        boot_triton(config.model_copy(update={"spark": tmp_path / "nowhere"}), BootOptions(kind="docker"))
    assert not fake.calls("run")


def test_the_pull_is_followed(make_fake) -> None:
    fake = make_fake()
    fake.says(" pull ", "".join(f"a{n}: Pull complete\n" for n in range(3)) + "Status: Downloaded newer image\n")
    steps = []
    pull_image(find_engine(), "x/y:1", steps.append)
    assert [step.message for step in steps[1:]] == [f"a{n}: Pull complete" for n in range(3)]


# --- starting, waiting, ending


def test_run_wait_and_stop(make_fake, config, served) -> None:
    fake = make_fake()
    steps = []
    with boot_triton(config, BootOptions(kind="docker"), on_progress=steps.append) as handle:
        assert_healthy(handle, config)
        port = config.triton_port
        (run,) = fake.calls("run")
        assert run[:5] == ["docker", "run", "--detach", "--name", f"rvc-spark-triton-{port}"]
        assert run[5:7] == ["--gpus", "all"] and run[-1] == IMAGE
        published = [run[n + 1] for n, word in enumerate(run) if word == "--publish"]
        assert published == [f"127.0.0.1:{port - 1}:8000", f"127.0.0.1:{port}:8001", f"127.0.0.1:{port + 1}:8002"]
        assert f"{config.spark_dir}:{triton_docker.CHECKPOINT_INSIDE}:ro" in run
        assert steps[-1].fraction == 1.0
        until(lambda: "vocoder" in "".join(tail(handle.log_path, 5)))
    ending = [call[1:3] for call in fake.calls(f"rvc-spark-triton-{port}")[-2:]]
    assert ending == [["stop", "--time"], ["rm", "--force"]]
    assert read_state(config.triton_dir, port) is None and not handle.owned


def test_compose_where_there_is_one(make_fake, config, served, tmp_path, monkeypatch) -> None:
    compose = tmp_path / "compose.yaml"
    compose.write_text("services: {}\n")
    monkeypatch.setattr(triton_docker, "COMPOSE_FILE", compose)
    fake = make_fake()
    fake.says("compose version", "Docker Compose version v2.36.2\n")
    fake.says("compose .* up ", touch="up")
    with boot_triton(config, BootOptions(kind="docker")) as handle:
        assert_healthy(handle, config)
    project = ["docker", "compose", "--file", str(compose), "--project-name", f"rvc-spark-triton-{config.triton_port}"]
    assert fake.calls("up") == [[*project, "up", "--detach", "--no-build"]]
    assert fake.calls("down") == [[*project, "down", "--timeout", "15"]]
    assert not fake.calls("run")


def assert_healthy(handle: TritonHandle, config: RVCConfig) -> None:
    assert handle.kind.value == "docker" and handle.owned and handle.alive and handle.pid is None
    assert handle.address == f"127.0.0.1:{config.triton_port}"
    assert f"no server at localhost:{config.triton_port}; docker with NVIDIA L4, capability 8.9" in handle.why
    assert handle.signature.rvc_spark is None and not handle.signature.decoupled
    assert read_state(config.triton_dir, config.triton_port).container == CONTAINER


@pytest.mark.parametrize(
    "log, found",
    [
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device\n", "the GPU is too old"),
        ("download failed\nerror: no checkpoint in /opt/rvc_spark/checkpoint\n", "error: no checkpoint in checkpoint"),
    ],
)
def test_a_container_that_ends(make_fake, config, log, found) -> None:
    fake = make_fake()
    fake.says(" logs ", log, touch="logged")
    fake.says(" inspect --format {{.State", "exited 3\n")
    fake.says(" inspect --format {{.State", "running 0\n", unless="logged")
    refused(config, f"the container ended with status 3: .*{found}")
    assert fake.did("down") and read_state(config.triton_dir, config.triton_port) is None


def test_a_container_that_does_not_start(make_fake, config) -> None:
    fake = make_fake()
    said = 'docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]].\n'
    fake.says(" run ", err=said, code=125)
    refused(config, "cannot hand a GPU to a container")
    assert fake.did("down")


def test_a_container_whose_model_fails_or_that_is_slow(make_fake, config) -> None:
    fake = make_fake()
    with pytest.raises(TritonBootError, match="not ready after 0.5 s"):
        boot_triton(config, BootOptions(kind="docker", timeout=0.5))
    assert fake.did("down")
    words = "failed to load 'tensorrt_llm' version 1: Internal: engine of another GPU"
    fake.says(" logs ", f'E1121 model_lifecycle.cc:642] "{words}"\n', sleep=600)
    refused(config, "the model tensorrt_llm does not load in the container: engine of another GPU")


def test_docker_serves_its_own_models_only(make_fake, config, tmp_path) -> None:
    make_fake()
    refused(config, "the image brings its own models", repository=tmp_path)


def test_a_container_whose_owner_died_is_removed(make_fake) -> None:
    fake = make_fake()
    remove_container("docker", CONTAINER)
    assert fake.calls() == [["docker", "rm", "--force", CONTAINER]]
    fake.says(" rm ", err=f"Error response from daemon: No such container: {CONTAINER}\n", code=1)
    remove_container("docker", CONTAINER)
    fake.says(" rm ", err=NO_DAEMON, code=1)
    with pytest.raises(TritonBootError, match="cannot be removed: Cannot connect"):
        remove_container("docker", CONTAINER)


def test_podman_hands_over_gpus_by_cdi(tmp_path) -> None:
    engine = triton_containers.ContainerEngine("podman", "/usr/bin/podman", (), "NVIDIA L4", None)
    ports = triton_docker.Ports(8001, 8000, 8002)
    plan = ContainerPlan(engine, IMAGE, ports, tmp_path, tmp_path, tmp_path / "none.yaml")
    assert "--device nvidia.com/gpu=all" in " ".join(plan.up()) and "--gpus" not in plan.up()


def test_an_unknown_failure_keeps_the_engines_words() -> None:
    error = engine_problem("the image x cannot be started", ["warning", "Error: the moon is full"])
    assert error.problem == "the image x cannot be started: Error: the moon is full"
    assert engine_problem("it", []).problem == "it: no reason given"
