"""What the Triton client costs: time between a chunk leaving the model and reaching the listener, and until the first.

    python tools/benchmark.py triton [--concurrency 1 4 16 64] [--requests 64] [--chunk-ms 100] [--json]

A quick stand-in model on the embedded server writes the clock into each chunk as it sends it; so the time the model
takes is subtracted, and what remains is the server's transport, gRPC and the client. Chunks are one second of sound;
`--chunk-ms` is how far apart the model sends them, 0 as fast as it can (then the machine is what is measured).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np

from rvc_spark.audio import Audio
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.triton_client import TritonSparkClient
from rvc_spark.tts.triton_embedded import launch
from rvc_spark.tts.triton_runtime import ensure_runtime

MODEL = Path(__file__).resolve().parent.parent / "tests" / "quick_spark_model.py"
SAMPLES = 16_000  # of a chunk
CHUNKS = 8


@dataclass(frozen=True)
class Overhead:
    """Of one concurrency; milliseconds. first: from the request to the first chunk, the model's own wait subtracted."""

    concurrency: int
    chunks: int
    chunk_p50: float
    chunk_p95: float
    chunk_p99: float
    first_p50: float
    first_p95: float
    chunks_per_second: float


def measure(concurrencies: list[int], *, requests: int, chunk_ms: float) -> list[Overhead]:
    """Start a server, ask, end it. requests: of each concurrency, in all; at least one for each task."""
    quick = _quick_model()
    recording = Audio(0.1 * np.random.default_rng(0).standard_normal(96_000, dtype=np.float32), SAMPLES)
    with tempfile.TemporaryDirectory() as folder:
        repository = quick.write_repository(Path(folder) / "models")
        runtime = ensure_runtime(RVCConfig().triton_dir)
        with launch(repository, runtime, models=("spark_tts",)) as server:
            with TritonSparkClient("127.0.0.1", server.grpc_port) as client:
                voice = client.prepare(recording)
                client.synthesize("to begin with", voice)
                text = f"stamp chunks={CHUNKS} samples={SAMPLES} first={chunk_ms:g} delay={chunk_ms:g}"
                speak = partial(client.stream, text, voice)
                return [
                    _one(speak, number, max(1, requests // number), quick.stamp_of, chunk_ms)
                    for number in concurrencies
                ]


def _one(
    speak: Callable[[], Iterable[Audio]], concurrency: int, each: int, stamp_of: Callable[..., int], wait_ms: float
) -> Overhead:
    late: list[float] = []
    firsts: list[float] = []

    def work() -> None:
        for _ in range(each):
            asked, first = time.monotonic_ns(), True
            for piece in speak():
                now = time.monotonic_ns()
                late.append((now - stamp_of(piece.samples)) / 1e6)
                if first:
                    firsts.append((now - asked) / 1e6 - wait_ms)
                    first = False

    workers = [threading.Thread(target=work) for _ in range(concurrency)]
    start = time.monotonic()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.monotonic() - start
    found = [*np.percentile(late, (50, 95, 99)), *np.percentile(firsts, (50, 95)), len(late) / seconds]
    return Overhead(concurrency, len(late), *(round(float(value), 2) for value in found))


def _quick_model() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quick_spark_model", MODEL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 4, 16, 64], help="requests at once")
    parser.add_argument("--requests", type=int, default=64, help="of each concurrency, in all (default: 64)")
    parser.add_argument("--chunk-ms", type=float, default=100.0, help="between the chunks of a request (default: 100)")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args(arguments)
    rows = measure(options.concurrency, requests=options.requests, chunk_ms=options.chunk_ms)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return 0
    print("requests at once   chunk p50   p95   p99 ms   first p50   p95 ms   chunks/s")
    for row in rows:
        print(
            f"{row.concurrency:16d} {row.chunk_p50:11.2f} {row.chunk_p95:5.1f} {row.chunk_p99:5.1f}"
            f"    {row.first_p50:10.2f} {row.first_p95:5.1f}    {row.chunks_per_second:7.0f}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
