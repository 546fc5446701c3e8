"""A real Triton server with the quick stand-in model, and looks at what a client leaves behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from quick_spark_model import COUNTERS, write_repository

from rvc_spark.audio import Audio
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.triton_client import TritonConnection, TritonSparkClient
from rvc_spark.tts.triton_embedded import EmbeddedServer, launch
from rvc_spark.tts.triton_ports import Ports
from rvc_spark.tts.triton_runtime import ensure_runtime


@contextmanager
def quick_server(
    folder: Path, *, models: tuple[str, ...] = ("*",), ports: Ports | None = None
) -> Iterator[EmbeddedServer]:
    """The server on free ports; the environment it lives in is the shared one."""
    repository = folder / "models"
    if not repository.exists():
        write_repository(repository)
    server = launch(repository, ensure_runtime(RVCConfig().triton_dir), models=models, ports=ports)
    try:
        yield server
    finally:
        server.stop(grace=2.0)  # with a request that hangs on a dead model it would wait for ten seconds


def client_of(server: EmbeddedServer, model: str = "spark_tts", **changes: object) -> TritonSparkClient:
    """A client of one of the server's models."""
    return TritonSparkClient(TritonConnection("127.0.0.1", server.grpc_port, model=model, **changes))


def voice(seconds: float = 3.0, seed: int = 0, rate: int = 16_000) -> Audio:
    """A recording; another seed is another voice."""
    noise = np.random.default_rng(seed).standard_normal(round(seconds * rate), dtype=np.float32)
    return Audio(0.1 * noise, rate)


def counters(client: TritonSparkClient) -> dict[str, int]:
    """What the model has counted."""
    return dict(zip(COUNTERS, map(int, client.synthesize("report", voice()).samples), strict=True))


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether it comes true within a time that is long enough for a busy machine."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def open_files() -> int:
    """File handles and sockets of this process."""
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    """Threads of Python and of the libraries."""
    return len(os.listdir("/proc/self/task"))


def own_threads() -> list[str]:
    """Names of the client's threads that run."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("triton")]


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
