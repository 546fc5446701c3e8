"""Many requests at once with random cancels and a server that is killed and comes back: what is left afterwards.

    python tests/soak_triton.py --requests 20000 --together 16
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import queue
import random
import signal
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from quick_spark_model import waveform
from triton_place import (
    client_of,
    counters,
    eventually,
    open_files,
    own_threads,
    quick_server,
    resident_bytes,
    threads,
    voice,
)

from rvc_spark.errors import RvcSparkError
from rvc_spark.triton_client import Reference, TritonSettings, TritonSparkClient

ONE = ("spark_tts",)
QUIET_SHARE = 0.1  # of the requests, before anything is measured: buffers and pools find their size


@dataclass
class SoakResult:
    """What became of the requests, and what the client left behind. growth: of resident memory, as a share."""

    ended: int = 0
    whole: int = 0
    cancelled: int = 0
    failed: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    untyped: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    threads_left: int = 0
    files_left: int = 0
    active_left: int = 0
    growth: float = 0.0
    seconds: float = 0.0


def soak(folder: Path, *, requests: int, together: int, seed: int) -> SoakResult:
    """Run it. Half way the server is killed and started again on its port."""
    told = SoakResult()
    start = time.monotonic()
    first = quick_server(folder, models=ONE)
    server = first.__enter__()
    ports = server.ports
    quiet = round(requests * QUIET_SHARE)
    with client_of(server) as client:
        prepared = [client.prepare(voice(1.0, number)) for number in range(5)]
        _batch(client, prepared, told, range(quiet), together, seed)
    eventually(lambda: not own_threads())
    gc.collect()
    before = (threads(), open_files(), resident_bytes())
    with client_of(server) as client:
        half = (requests + quiet) // 2
        _batch(client, prepared, told, range(quiet, half), together, seed)
        killer = threading.Timer(0.1, os.kill, (server.pid, signal.SIGKILL))
        killer.start()
        _batch(client, prepared, told, range(half, half + 5 * together), together, seed)
        killer.join()
        first.__exit__(None, None, None)
        with quick_server(folder, models=ONE, ports=ports) as again, client_of(again) as observer:
            _batch(client, prepared, told, range(half + 5 * together, requests), together, seed)
            eventually(lambda: counters(observer)["active"] == 0)
            told.active_left = counters(observer)["active"]
    eventually(lambda: not own_threads())
    gc.collect()
    eventually(lambda: threads() <= before[0] and open_files() <= before[1], 5)
    told.threads_left = max(0, threads() - before[0])
    told.files_left = max(0, open_files() - before[1])
    told.growth = round(resident_bytes() / before[2] - 1, 4)
    told.seconds = round(time.monotonic() - start, 1)
    return told


def _batch(
    client: TritonSparkClient, voices: list[Reference], told: SoakResult, numbers: range, together: int, seed: int
) -> None:
    """Run requests, `together` at a time."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in numbers:
        waiting.put(number)
    lock = threading.Lock()

    def work() -> None:
        while True:
            try:
                number = waiting.get_nowait()
            except queue.Empty:
                return
            chance = random.Random(seed * 1_000_003 + number)
            outcome, detail = _one(client, voices[number % len(voices)], chance, number)
            with lock:
                told.ended += 1
                if outcome == "error":
                    told.failed += 1
                    told.errors[detail] = told.errors.get(detail, 0) + 1
                elif outcome in ("untyped", "wrong"):
                    getattr(told, outcome).append(detail)
                else:
                    setattr(told, outcome, getattr(told, outcome) + 1)

    workers = [threading.Thread(target=work, name="soak") for _ in range(together)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _one(client: TritonSparkClient, spoken_by: Reference, chance: random.Random, number: int) -> tuple[str, str]:
    """One request: what became of it, and more words where it went wrong."""
    shape = f"chunks={chance.randint(1, 6)} samples={chance.randint(10, 8000)} delay={chance.randint(0, 25)}"
    text = f"Request {number} {shape}"
    if chance.random() < 0.03:
        text += " fail=1 words=speech"
    stop_after = chance.randint(0, 3) if chance.random() < 0.25 else None
    settings = TritonSettings(seed=number, sentence_seconds=20, first_chunk_seconds=20)
    heard: list[np.ndarray] = []
    try:
        if chance.random() < 0.2:
            finished = asyncio.run(_listen(client, text, spoken_by, settings, stop_after, heard))
        else:
            stream = client.stream(text, spoken_by, settings=settings)
            for piece in stream:
                heard.append(piece.samples)
                if stop_after is not None and len(heard) > stop_after:
                    stream.close()
            finished = stream.finished
    except RvcSparkError as error:
        return "error", type(error).__name__
    except Exception as error:  # noqa: BLE001 what must not happen is what is looked for
        return "untyped", repr(error)
    samples = np.concatenate(heard) if heard else np.zeros(0, np.float32)
    expected = waveform(text, number)
    right = np.array_equal(samples, expected if finished else expected[: len(samples)])
    if not right or not finished and stop_after is None:
        return "wrong", f"{text}: {len(samples)} of {len(expected)} samples, finished={finished}"
    return "whole" if finished else "cancelled", ""


async def _listen(client, text, spoken_by, settings, stop_after, heard) -> bool:
    async with client.astream(text, spoken_by, settings=settings) as stream:
        async for piece in stream:
            heard.append(piece.samples)
            if stop_after is not None and len(heard) > stop_after:
                break
    return stream.finished


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--together", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = soak(Path(folder), requests=options.requests, together=options.together, seed=options.seed)
    print(json.dumps(asdict(told), indent=1))


if __name__ == "__main__":
    main()
