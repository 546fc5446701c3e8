"""Many requests at once to the project's own models on a real server, random cancels, and the server killed once.

    python tests/soak_spark.py --requests 1000 --together 16

Makes a tiny checkpoint, boots the embedded server under its supervisor, kills it half way, and tells how every request
ended and what is left. Exit code 1 unless all ended in sound, by their own cancel, or in a typed error.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from spark_maker import make_spark_folder

from rvc_spark.audio import Audio
from rvc_spark.errors import RvcSparkError
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.triton_client import Reference, TritonSettings, TritonSparkClient
from rvc_spark.tts.triton_ports import Ports
from rvc_spark.tts.triton_server import BootOptions, TritonHandle, boot_triton

CANCELLED_SHARE = 0.3
PAUSE_AFTER_ERROR = 0.3  # seconds; else all requests would fail while the server is away


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def one(client: TritonSparkClient, voice: Reference, number: int) -> str:
    """How a request ended."""
    rng = random.Random(number)
    settings = TritonSettings(seed=number, chunk_seconds=0.2, chunk_scale=1.5)
    text = f"Request {number}, a sentence of some length that is spoken."
    leaves = rng.random() < CANCELLED_SHARE
    try:
        with client.stream(text, voice, settings=settings) as pieces:
            frames = 0
            for piece in pieces:
                frames += piece.frames
                if leaves:
                    return "cancelled"
            return "whole" if pieces.finished and frames else "UNFINISHED"
    except RvcSparkError as error:
        time.sleep(PAUSE_AFTER_ERROR)
        return type(error).__name__


def soak(server: TritonHandle, client: TritonSparkClient, requests: int, together: int) -> dict:
    """Run all requests; the server is killed when half of them have begun."""
    noise = np.random.default_rng(0).standard_normal(40_000).astype(np.float32)
    voice = client.prepare(Audio(0.1 * noise, 16_000))
    ends: Counter[str] = Counter()
    memory: list[int] = []
    lock = threading.Lock()
    numbers: Iterator[int] = iter(range(requests))

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
                if number == requests // 10:
                    memory.append(resident_bytes())
                if number == requests // 2 and server.pid is not None:
                    os.kill(server.pid, signal.SIGKILL)
            if number is None:
                return
            end = one(client, voice, number)
            with lock:
                ends[end] += 1

    began = time.perf_counter()
    workers = [threading.Thread(target=work) for _ in range(together)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - began
    gc.collect()
    memory.append(resident_bytes())
    return {
        "ends": dict(ends), "seconds": round(seconds, 1), "memory_growth": round(memory[-1] / memory[0] - 1, 4),
        "events": [str(event) for event in server.events],
        "speaks_afterwards": client.synthesize("After it all.", voice).frames > 0,
    }  # fmt: skip


def main() -> int:
    """Run it and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000)
    parser.add_argument("--together", type=int, default=16)
    options = parser.parse_args()
    threads_before = threading.active_count()
    with tempfile.TemporaryDirectory() as folder:
        config = RVCConfig(spark=make_spark_folder(Path(folder) / "Spark-TTS-0.5B", features=False))
        with boot_triton(config, BootOptions(kind="embedded", ports=Ports())) as server:
            with TritonSparkClient("127.0.0.1", int(server.address.rpartition(":")[2])) as client:
                report = soak(server, client, options.requests, options.together)
    time.sleep(1.0)  # gRPC's own threads end a moment later
    report["threads_left"] = threading.active_count() - threads_before
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    known = {"whole", "cancelled", "TritonUnreachableError", "TritonModelError", "TritonTimeoutError"}
    all_told = sum(report["ends"].values()) == options.requests and set(report["ends"]) <= known
    return 0 if all_told and report["speaks_afterwards"] and report["threads_left"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
