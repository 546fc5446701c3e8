"""The Triton image in a container: command lines, start, wait, stop. With compose where there is one, else with `run`.

Ports are published on the loopback alone. What the container does inside (fetch, convert, build, serve) is the image's
business; whether this machine can run it at all is `triton_containers`' question.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rvc_spark.errors import TritonBootError
from rvc_spark.rvc_config import PACKAGE, RVCConfig, subprocess_environment
from rvc_spark.tts.spark_checkpoint import SparkFolder
from rvc_spark.tts.triton_build import CHECKPOINT_INSIDE, IMAGE, SHARED_MEMORY, WORK_INSIDE, image_command
from rvc_spark.tts.triton_containers import (
    ContainerEngine,
    ask,
    engine_problem,
    find_engine,
    follow,
    image_is_here,
    need_room,
    pull_image,
)
from rvc_spark.tts.triton_http import ServerApi
from rvc_spark.tts.triton_log import BootLog, LogReader, OnProgress, clean, report
from rvc_spark.tts.triton_ports import LOOPBACK, Ports
from rvc_spark.tts.triton_supervisor import ServerEvent

COMPOSE_FILE = PACKAGE / "tts" / "triton" / "compose.yaml"
STOP_SECONDS = 20  # between SIGTERM and SIGKILL
LOG_SECONDS = 10.0  # for the rest of an ended container's log
POLL = 1.0  # seconds; each look at a container is a program started


@dataclass(frozen=True)
class ContainerPlan:
    """Everything the command lines are made of. checkpoint: the Spark-TTS folder, read only in the container; work:
    where engines and filled repositories are kept between runs."""

    engine: ContainerEngine
    image: str
    ports: Ports
    checkpoint: Path
    work: Path
    compose_file: Path

    @property
    def name(self) -> str:
        """Of the container, and of the compose project: one per port."""
        return f"rvc-spark-triton-{self.ports.grpc}"

    @property
    def composed(self) -> bool:
        """Whether compose does it."""
        return bool(self.engine.compose) and self.compose_file.is_file()

    def variables(self) -> dict[str, str | None]:
        """What the compose file reads from the environment."""
        return {
            "TRITON_IMAGE": self.image, "TRITON_GRPC_PORT": str(self.ports.grpc),
            "TRITON_HTTP_PORT": str(self.ports.http), "TRITON_METRICS_PORT": str(self.ports.metrics),
            "SPARK_CHECKPOINT": str(self.checkpoint), "TRITON_WORK": str(self.work),
        }  # fmt: skip

    def up(self) -> list[str]:
        """Start the container in the background."""
        if self.composed:
            return [*self._compose(), "up", "--detach", "--no-build"]
        gpus = ["--device", "nvidia.com/gpu=all"] if self.engine.name == "podman" else ["--gpus", "all"]
        published = []
        for inside, outside in ((8000, self.ports.http), (8001, self.ports.grpc), (8002, self.ports.metrics)):
            published += ["--publish", f"{LOOPBACK}:{outside}:{inside}"]
        return [
            self.engine.program, "run", "--detach", "--name", self.name, *gpus, "--shm-size", SHARED_MEMORY, *published,
            "--volume", f"{self.checkpoint}:{CHECKPOINT_INSIDE}:ro", "--volume", f"{self.work}:{WORK_INSIDE}",
            self.image,
        ]  # fmt: skip

    def down(self, grace: int = STOP_SECONDS) -> list[list[str]]:
        """End the container and forget it; harmless when there is none."""
        if self.composed:
            return [[*self._compose(), "down", "--timeout", str(grace)]]
        stop = [self.engine.program, "stop", "--time", str(grace), self.name]
        return [stop, [self.engine.program, "rm", "--force", self.name]]

    def container(self) -> list[str]:
        """Prints the id of the container."""
        if self.composed:
            return [*self._compose(), "ps", "--all", "--quiet"]
        return [self.engine.program, "ps", "--all", "--quiet", "--no-trunc", "--filter", f"name=^{self.name}$"]

    def _compose(self) -> list[str]:
        return [*self.engine.compose, "--file", str(self.compose_file), "--project-name", self.name]


@dataclass
class DockerServer:
    """A container that was started here. `stop` ends and removes it."""

    plan: ContainerPlan
    container: str
    log_path: Path
    events: tuple[ServerEvent, ...] = ()  # the container's own restart policy is not seen from here
    pid: int | None = None  # its processes are not ours
    _follower: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def reason(self) -> str:
        """For people."""
        return f"{self.plan.engine.name} with {self.plan.engine.gpu}, image {self.plan.image}"

    @property
    def alive(self) -> bool:
        """Whether the container runs."""
        return self.status()[0] == "running"

    @property
    def over(self) -> bool:
        """Whether the container has ended for good."""
        return self.status()[0] not in ("running", "restarting", "created", "paused")

    def status(self) -> tuple[str, int]:
        """The engine's word for the container's state, and its exit code. `("gone", 0)` when it is no more."""
        done = ask([
            self.plan.engine.program, "inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", self.container
        ])  # fmt: skip
        words = done.stdout.split()
        return (words[0], int(words[1])) if done.returncode == 0 and len(words) == 2 else ("gone", 0)

    def follow(self) -> None:
        """Let the engine write the container's log to `log_path` until it ends."""
        with open(self.log_path, "ab") as log:
            self._follower = subprocess.Popen(
                [self.plan.engine.program, "logs", "--follow", self.container], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, env=subprocess_environment(), start_new_session=True,
            )  # fmt: skip

    def stop(self, grace: float = STOP_SECONDS) -> None:
        """End the container, which has `grace` seconds before it is killed.

        Raises TritonBootError when the engine does not obey; then it still runs.
        """
        take_down(self.plan, grace)
        self.stop_following()

    def finish_log(self) -> None:
        """After the container's end: let the engine write what is left of its log."""
        if self._follower is not None:
            try:
                self._follower.wait(LOG_SECONDS)
            except subprocess.TimeoutExpired:
                self.stop_following()

    def stop_following(self) -> None:
        """End the program that writes the log."""
        if self._follower is not None:
            self._follower.terminate()
            self._follower.wait()


def take_down(plan: ContainerPlan, grace: float = STOP_SECONDS) -> None:
    """Run the commands that end a container. Raises TritonBootError with the engine's words."""
    for command in plan.down(round(grace)):
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            env=subprocess_environment(**plan.variables()),
        )  # fmt: skip
        if done.returncode and "no such container" not in done.stderr.lower():
            raise engine_problem(f"the container {plan.name} cannot be ended", done.stderr.splitlines())


def prepare_docker(
    config: RVCConfig, ports: Ports, image: str | None, *, fetch: bool, on_progress: OnProgress = None
) -> ContainerPlan:
    """Everything up to the start. image: None is the project's own, which is built, not fetched. fetch: get the image
    when it is not here, which "auto" never does by itself: that takes gigabytes.

    Raises TritonBootError naming what lacks, AssetError without a checkpoint.
    """
    name = image or IMAGE
    engine = find_engine()
    if not image_is_here(engine, name):
        if not fetch:
            raise TritonBootError(
                f"no Docker: the image {name} is not on this machine",
                "Get it (more than 20 GB) with rvc-spark triton up --kind docker.",
            )
        if config.offline:
            raise TritonBootError(
                f"the image {name} is not on this machine and offline mode is on",
                "Bring it with `docker load`, or unset RVC_SPARK_OFFLINE.",
            )
        _get_image(engine, name, image is None, on_progress)
    SparkFolder(config.spark_dir).check()
    return ContainerPlan(engine, name, ports, config.spark_dir, config.triton_dir / "container", COMPOSE_FILE)


def _get_image(engine: ContainerEngine, name: str, own: bool, on_progress: OnProgress) -> None:
    if not own:
        pull_image(engine, name, on_progress)
        return
    need_room(engine, name)
    report(on_progress, 0.05, f"building the image {name}")
    follow(image_command(engine.program, name), f"the image {name} cannot be built", on_progress)


def launch_docker(
    plan: ContainerPlan, logs: Path, *, models: Sequence[str], timeout: float, on_progress: OnProgress = None
) -> DockerServer:
    """Start the container, follow its log, wait for server and models. Raises TritonBootError; nothing is left then."""
    plan.work.mkdir(parents=True, exist_ok=True)
    logs.mkdir(parents=True, exist_ok=True)
    report(on_progress, 0.4, f"starting the image {plan.image} with {plan.engine.name}")
    done = subprocess.run(
        plan.up(), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
        env=subprocess_environment(**plan.variables()),
    )  # fmt: skip
    found = ask_container(plan)
    if done.returncode or not found:
        take_down_quietly(plan)
        raise engine_problem(f"the image {plan.image} cannot be started", done.stderr.splitlines())
    log = logs / f"server-{plan.ports.grpc}-{time.strftime('%Y%m%d-%H%M%S')}-{found[:12]}.log"
    log.write_bytes(b"")
    server = DockerServer(plan, found, log)
    try:
        server.follow()
        _wait(server, models, timeout, on_progress)
        return server
    except BaseException:
        server.stop_following()
        take_down_quietly(plan)
        raise


def ask_container(plan: ContainerPlan) -> str:
    """The id of the plan's container; empty when there is none."""
    done = subprocess.run(
        plan.container(), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
        env=subprocess_environment(**plan.variables()),
    )  # fmt: skip
    words = done.stdout.split()
    return words[0] if done.returncode == 0 and words else ""


def take_down_quietly(plan: ContainerPlan) -> None:
    """As `take_down`, after an error that matters more than this one."""
    try:
        take_down(plan)
    except TritonBootError:
        pass


def _wait(server: DockerServer, models: Sequence[str], timeout: float, on_progress: OnProgress) -> None:
    log = BootLog(LogReader(server.log_path))
    api = ServerApi(LOOPBACK, server.plan.ports.http)
    deadline = time.monotonic() + timeout
    lines: list[str] = []
    while not (api.ready() and all(api.model_ready(name) for name in models)):
        fresh = log.look()
        lines = [*lines, *fresh][-200:]
        if fresh:
            report(on_progress, 0.5, clean(fresh[-1])[:120])
        if log.failed:
            model, words = next(iter(log.failed.items()))
            raise engine_problem(f"the model {model} does not load in the container", [words])
        state, code = server.status()
        if state not in ("running", "created", "restarting"):
            server.finish_log()
            lines = [*lines, *log.look(), log.reader.rest()]
            raise engine_problem(f"the container ended with status {code}", lines or [f"its state is {state}"])
        if time.monotonic() > deadline:
            raise TritonBootError(
                f"the server in the container was not ready after {timeout:g} s", "See rvc-spark triton logs."
            )
        time.sleep(POLL)
    report(on_progress, 1.0, f"ready on {LOOPBACK}:{server.plan.ports.grpc}")


def remove_container(engine: str, container: str) -> None:
    """End a container whose owner died. Raises TritonBootError with the engine's words."""
    done = ask([engine, "rm", "--force", container])
    if done.returncode and "no such container" not in done.stderr.lower():
        raise engine_problem(f"the container {container[:12]} cannot be removed", done.stderr.splitlines())
