"""Can this machine run the Triton image: an engine, its daemon, the NVIDIA runtime, a GPU new enough, the image itself.

Every "no" is an error of its own with the next step. Starts no container.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvc_spark.errors import TritonBootError
from rvc_spark.rvc_config import subprocess_environment
from rvc_spark.tts.triton_log import OnProgress, clean, report
from rvc_spark.tts.triton_platform import IN_PROCESS

ENGINES = ("docker", "podman")
MIN_CAPABILITY = (8, 0)  # TensorRT-LLM 25.02 has no attention kernels for older devices, such as the T4 (7.5)
IMAGE_BYTES = 40_000_000_000  # packed layers beside the unpacked image of more than 20 GB
CDI_FOLDERS = (Path("/etc/cdi"), Path("/var/run/cdi"))  # where the NVIDIA toolkit describes devices
ASK_SECONDS = 30.0  # a daemon that hangs must not hang the search
INSTEAD = "Or let the embedded server run: --kind embedded."

# Lines of a pull or a build that a waiting person wants: a layer that has come, a step that has begun.
_STEP = re.compile(r"Pull complete|Copying blob|^#\d+ \[\s*\d+/\d+\]|^Step \d+/\d+|^STEP \d+/\d+")

# How an engine's own words about a pull or a start map to a sentence: (pattern, what is wrong, what to do).
FAILURES = (
    (r"(?i)no space left on device", "the disk is full", "Free 40 GB, or move the engine's data folder."),
    (
        r"(?i)pull access denied|unauthorized|denied: |authentication required",
        "the registry refuses the image",
        "Log in with `docker login`, or build the image from the Dockerfile of this project.",
    ),
    (
        r"(?i)manifest unknown|not found: manifest|manifest for .* not found|repository does not exist"
        r"|failed to resolve source metadata.*not found",
        "the registry has no such image",
        "Check its name and tag, or build the image from the Dockerfile of this project.",
    ),
    (
        r"(?i)no such host|i/o timeout|connection refused|TLS handshake|network is unreachable|dial tcp"
        r"|name resolution",
        "the registry does not answer",
        "Check the network or the proxy of the container engine.",
    ),
    (
        r"(?i)could not select device driver|unknown or invalid runtime|nvidia-container-cli|unresolvable CDI",
        "the engine cannot hand a GPU to a container",
        "Install the NVIDIA Container Toolkit and restart the engine.",
    ),
    (
        r"(?i)port is already allocated|address already in use",
        "a port is in use",
        "End the program that listens on it, or choose another port: rvc-spark triton up --port N.",
    ),
    (
        r"(?i)no kernel image is available",
        "the GPU is too old for the image",
        "It needs compute capability 8.0 (Ampere) or newer.",
    ),
)


@dataclass(frozen=True)
class ContainerEngine:
    """A working docker or podman that hands GPUs to containers. compose: its compose command; empty if it has none."""

    name: str
    program: str
    compose: tuple[str, ...]
    gpu: str
    root: Path | None  # where images lie, if that is a folder of this machine


def find_engine() -> ContainerEngine:
    """The container engine that can run a GPU image here. Raises TritonBootError naming the first thing that lacks."""
    found = [(name, path) for name in ENGINES if (path := shutil.which(name))]
    if not found:
        raise TritonBootError("no Docker: neither docker nor podman is installed", INSTEAD)
    gpu = find_gpu()
    problems = []
    for name, path in found:
        try:
            return _working(name, path, gpu)
        except TritonBootError as error:
            problems.append(error)
    raise problems[0]


def find_gpu() -> str:
    """Name and capability of the newest GPU. Raises TritonBootError when there is none or all are too old."""
    program = shutil.which("nvidia-smi")
    if program is None:
        raise TritonBootError("no Docker: there is no NVIDIA GPU here (no nvidia-smi)", f"{INSTEAD} {IN_PROCESS}")
    done = ask([program, "--query-gpu=name,compute_cap", "--format=csv,noheader"])
    rows = [row.rpartition(",") for row in done.stdout.splitlines() if "," in row]
    devices = [(tuple(int(n) for n in re.findall(r"\d+", cap)[:2]), name.strip()) for name, _, cap in rows]
    devices = [device for device in devices if len(device[0]) == 2]
    if done.returncode or not devices:
        words = clean(done.stderr or done.stdout) or "it lists none"
        raise TritonBootError(f"no Docker: nvidia-smi shows no GPU ({words})", f"Check the NVIDIA driver. {INSTEAD}")
    capability, name = max(devices)
    if capability < MIN_CAPABILITY:
        raise TritonBootError(
            f"no Docker: {name} is too old for the image, compute capability {capability[0]}.{capability[1]} < 8.0",
            INSTEAD,
        )
    return f"{name}, capability {capability[0]}.{capability[1]}"


def _working(name: str, program: str, gpu: str) -> ContainerEngine:
    template = "{{json .}}" if name == "docker" else "json"
    done = ask([program, "info", "--format", template])
    if done.returncode:
        words = clean(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it said nothing")
        raise TritonBootError(
            f"no Docker: the daemon of {name} does not answer ({words})",
            f"Start it, or add yourself to its group. {INSTEAD}",
        )
    try:
        told: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise TritonBootError(
            f"no Docker: {name} info answered no JSON: {done.stdout[:80]!r}", f"Update {name}. {INSTEAD}"
        ) from error
    if not _gives_gpus(name, told):
        raise TritonBootError(
            f"no Docker: {name} has no NVIDIA runtime and no CDI device",
            f"Install the NVIDIA Container Toolkit (nvidia-ctk runtime configure) and restart {name}. {INSTEAD}",
        )
    root = told.get("DockerRootDir") or (told.get("store") or {}).get("graphRoot") or ""
    has_compose = ask([program, "compose", "version"]).returncode == 0
    folder = Path(root) if root and Path(root).is_dir() else None
    return ContainerEngine(name, program, (program, "compose") if has_compose else (), gpu, folder)


def _gives_gpus(name: str, told: dict[str, Any]) -> bool:
    described = any(any(folder.glob("*nvidia*")) for folder in CDI_FOLDERS if folder.is_dir())
    if name == "podman":
        return described
    devices = json.dumps(told.get("DiscoveredDevices") or [])
    return "nvidia" in (told.get("Runtimes") or {}) or "nvidia.com/gpu" in devices


def image_is_here(engine: ContainerEngine, image: str) -> bool:
    """Whether the engine has the image already."""
    return ask([engine.program, "image", "inspect", "--format", "{{.Id}}", image]).returncode == 0


def pull_image(engine: ContainerEngine, image: str, on_progress: OnProgress = None) -> None:
    """Fetch an image, its layers followed. Raises TritonBootError: no room, refused, unknown, no network."""
    need_room(engine, image)
    report(on_progress, 0.05, f"fetching the image {image}")
    follow([engine.program, "pull", image], f"the image {image} cannot be fetched", on_progress)


def need_room(engine: ContainerEngine, image: str) -> None:
    """Raises TritonBootError when the engine's disk cannot hold another image of this size."""
    free = shutil.disk_usage(engine.root).free if engine.root is not None else IMAGE_BYTES
    if free < IMAGE_BYTES:
        raise TritonBootError(
            f"{engine.root} has {free / 1e9:.0f} GB free; the image {image} needs {IMAGE_BYTES / 1e9:.0f} GB",
            f"Free some space, or move the data folder of {engine.name}. {INSTEAD}",
        )


def follow(command: Sequence[str], what: str, on_progress: OnProgress = None) -> None:
    """Run a long command of an engine; its telling lines become progress up to 0.4. Raises TritonBootError: `what`."""
    lines: list[str] = []
    steps = 0
    with subprocess.Popen(
        list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        encoding="utf-8", errors="replace", env=subprocess_environment(),
    ) as running:  # fmt: skip
        try:
            for line in running.stdout:
                lines = [*lines, line.rstrip()][-200:]
                if _STEP.search(line):
                    steps += 1
                    report(on_progress, min(0.05 + 0.01 * steps, 0.4), clean(line)[:120])
        except BaseException:
            running.terminate()  # the wait was interrupted
            raise
        code = running.wait()
    if code:
        raise engine_problem(what, lines)


def engine_problem(what: str, lines: Sequence[str]) -> TritonBootError:
    """An engine's words as one sentence that says what is wrong and what to do."""
    text = "\n".join(lines)
    told = [line for line in lines if line.strip()]
    last = told[-1] if told else "no reason given"
    words = clean(next((line for line in told if re.match(r"(?i)\s*error", line)), last))
    for pattern, problem, next_step in FAILURES:
        if re.search(pattern, text):
            return TritonBootError(f"{what}: {problem} ({words})", f"{next_step} {INSTEAD}")
    return TritonBootError(f"{what}: {words}", f"Mend that and try again. {INSTEAD}")


def ask(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a short command of an engine; one that does not run or hangs counts as failed."""
    try:
        return subprocess.run(
            list(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8", errors="replace",
            timeout=ASK_SECONDS, check=False, env=subprocess_environment(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(list(command), 124, "", f"no answer within {ASK_SECONDS:g} s")
    except OSError as error:
        return subprocess.CompletedProcess(list(command), 127, "", str(error.strerror))
