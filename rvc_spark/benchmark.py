"""How fast conversion is here: stages and whole, first and warm, memory, streaming, loading; as JSON and for people.

    plan = BenchmarkPlan(seconds=(3, 60), folder=default_folder())
    report = run_benchmark(plan, say)

Every figure comes from a process of its own (`benchmark_worker`), so peaks of memory and first calls are honest. The
networks are of full size with random weights unless the plan names others. Prints nothing; `say` takes its lines.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from rvc_spark.benchmark_machine import load_average, machine
from rvc_spark.benchmark_models import FULL_SIZE, ModelSet, ModelSizes, default_folder, make_models, speech
from rvc_spark.benchmark_process import Companion
from rvc_spark.errors import ConfigError

FORMAT = 1  # of the report
LENGTHS = (1.0, 3.0, 10.0, 60.0, 300.0)  # seconds
MOST_SECONDS = 3600.0
LOAD_LIMIT = 600.0  # seconds a process may take to import and load
CALL_LIMIT = 120.0  # and a call, per second of sound and in any case, on the slowest machine worth measuring
STREAM_SECONDS = 20.0
STREAM_BLOCKS = {"cpu": 0.25, "cuda": 0.1}  # seconds
MANY_CLIPS, MANY_SECONDS = 32, 10.0
SWITCHES = 4  # there and back
Say = Callable[[str], None]


@dataclass(frozen=True)
class BenchmarkPlan:
    """What to measure. Raises ConfigError for a length or a number that makes no sense.

    Attributes:
        folder: where the networks are made, and kept for the next time.
        seconds: lengths of the clips.
        devices, precisions, f0_methods: every combination is measured.
        threads: of torch and OpenMP.
        runs: warm calls per clip, at most; the median counts.
        patience: seconds after which no further warm call of a clip is begun.
        sizes: of the networks that are made.
        streaming, loading: whether to measure these too.
        many: whether to measure many clips at once; None: on a GPU, where they are converted together.
    """

    folder: Path = field(default_factory=default_folder)
    seconds: tuple[float, ...] = LENGTHS
    devices: tuple[str, ...] = ("cpu",)
    precisions: tuple[str, ...] = ("fp32",)
    f0_methods: tuple[str, ...] = ("rmvpe",)
    threads: int = 1
    runs: int = 5
    patience: float = 20.0
    sizes: ModelSizes = FULL_SIZE
    streaming: bool = True
    loading: bool = True
    many: bool | None = None

    def __post_init__(self) -> None:
        for seconds in self.seconds:
            if not 0.1 <= seconds <= MOST_SECONDS:
                raise ConfigError(f"a clip of {seconds:g} s is outside 0.1 to {MOST_SECONDS:g} s", "Choose another.")
        for name, value in (("threads", self.threads), ("runs", self.runs)):
            if not 1 <= value <= 1024:
                raise ConfigError(f"{name}={value} is outside 1 to 1024", "Choose a value in that range.")

    def places(self) -> Iterator[tuple[str, str]]:
        """(device, precision) of every combination."""
        yield from product(self.devices, self.precisions)


def run_benchmark(plan: BenchmarkPlan, say: Say) -> dict[str, Any]:
    """Measure everything; returns the report, ready for JSON.

    Raises BenchmarkError when a process dies or refuses, OutputError when the networks cannot be written.
    """
    about = machine(plan.threads)
    say(headline(about))
    say(f"networks of {plan.sizes.name} size in {plan.folder} ...")
    files = make_models(plan.folder, plan.sizes)
    report: dict[str, Any] = {"format": FORMAT, "machine": about, "sizes": plan.sizes.name, "rows": []}
    report |= {"many": [], "streaming": [], "loading": [], "when": time.strftime("%Y-%m-%dT%H:%M:%S")}
    for device, precision in plan.places():
        for method, seconds in product(plan.f0_methods, plan.seconds):
            with ours(plan.threads) as worker:
                row = _clip(worker, plan, files, (device, precision, method), seconds)
            report["rows"].append(row)
            say(row_line(row))
        if plan.many or (plan.many is None and device.startswith("cuda")):
            with ours(plan.threads) as worker:
                row = _many(worker, plan, files, (device, precision))
            report["many"].append(row)
            say(many_line(row))
        if plan.streaming:
            with ours(plan.threads) as worker:
                row = _stream(worker, plan, files, (device, precision))
            report["streaming"].append(row)
            say(stream_line(row))
        if plan.loading:
            with ours(plan.threads) as worker:
                row = _loading(worker, plan, files, (device, precision))
            report["loading"].append(row)
            say(loading_line(row))
    about["load_after"] = load_average()
    return report


def ours(threads: int) -> Companion:
    """A process with this package."""
    return Companion([sys.executable, "-m", "rvc_spark.benchmark_worker"], "the benchmark's process", threads)


def load_request(files: ModelSet, threads: int, device: str, precision: str) -> dict[str, Any]:
    """What makes a worker load the benchmark's voice."""
    config = {**files.config(), "device": device, "precision": precision, "offline": True}
    return {
        "do": "load", "threads": threads, "config": config, "voice": str(files.voice), "index": str(files.index),
    }  # fmt: skip


def call_limit(seconds: float) -> float:
    """Seconds a call on a clip may take before it counts as stuck."""
    return CALL_LIMIT * (1 + seconds)


def _clip(
    worker: Companion, plan: BenchmarkPlan, files: ModelSet, place: tuple[str, str, str], seconds: float
) -> dict[str, Any]:
    """First and warm calls and stages of one length."""
    device, precision, method = place
    loaded = worker.ask(load_request(files, plan.threads, device, precision), LOAD_LIMIT)
    job = {"f0_method": method, "sound": str(speech(seconds, plan.folder))}
    first = worker.ask({"do": "convert", **job}, call_limit(seconds))
    warm: list[float] = []
    while len(warm) < plan.runs and (not warm or sum(warm) < plan.patience):
        last = worker.ask({"do": "convert", **job}, call_limit(seconds))
        warm.append(last["seconds"])
    stages = worker.ask({"do": "stages", **job}, call_limit(seconds))
    roofline = worker.ask({"do": "roofline", **job}, LOAD_LIMIT)
    worked = roofline["decoder_flops"] * seconds
    return {
        "device": device, "precision": loaded["precision"], "precision_asked": precision, "f0_method": method,
        "seconds": seconds, "import_seconds": loaded["import_seconds"], "load_seconds": loaded["load_seconds"],
        "first_seconds": first["seconds"], "warm_seconds": statistics.median(warm), "warm_least": min(warm),
        "runs": len(warm), "rtf": statistics.median(warm) / seconds, "stages": stages["stages"],
        **roofline, "decoder_share": worked / stages["stages"]["decoder"] / roofline["peak_flops"],
        "peak_bytes": last["peak_bytes"], "device_peak_bytes": last["device_peak_bytes"], "engines": last["engines"],
    }  # fmt: skip


def _many(worker: Companion, plan: BenchmarkPlan, files: ModelSet, place: tuple[str, str]) -> dict[str, Any]:
    """Many clips of one length, one after the other and at once."""
    device, precision = place
    loaded = worker.ask(load_request(files, plan.threads, device, precision), LOAD_LIMIT)
    seconds = min(MANY_SECONDS, max(plan.seconds))
    job = {"do": "many", "sound": str(speech(seconds, plan.folder)), "count": MANY_CLIPS}
    found = worker.ask({**job, "f0_method": plan.f0_methods[0]}, 4 * call_limit(seconds * MANY_CLIPS))
    return {
        "device": device, "precision": loaded["precision"], "precision_asked": precision,
        "f0_method": plan.f0_methods[0], "seconds": seconds, **found,
        "ratio": found["one_by_one_seconds"] / found["together_seconds"],
    }  # fmt: skip


def _stream(worker: Companion, plan: BenchmarkPlan, files: ModelSet, place: tuple[str, str]) -> dict[str, Any]:
    """How late each block of a stream leaves."""
    device, precision = place
    loaded = worker.ask(load_request(files, plan.threads, device, precision), LOAD_LIMIT)
    seconds = min(STREAM_SECONDS, max(plan.seconds))
    block = STREAM_BLOCKS["cuda" if device.startswith("cuda") else "cpu"]
    job = {"do": "live", "sound": str(speech(seconds, plan.folder)), "block": block}
    found = worker.ask({**job, "f0_method": plan.f0_methods[0]}, call_limit(seconds))
    took = found["seconds"]
    return {
        "device": device, "precision": loaded["precision"], "precision_asked": precision, "seconds": seconds,
        "f0_method": plan.f0_methods[0], "block_seconds": block, "delay_seconds": found["delay_seconds"],
        "blocks": len(took), "p50_seconds": percentile(took, 50), "p99_seconds": percentile(took, 99),
    }  # fmt: skip


def _loading(worker: Companion, plan: BenchmarkPlan, files: ModelSet, place: tuple[str, str]) -> dict[str, Any]:
    """Import, first load, and switching between two voices."""
    device, precision = place
    loaded = worker.ask(load_request(files, plan.threads, device, precision), LOAD_LIMIT)
    voices = [str(files.voice), str(files.other)]
    found = worker.ask({"do": "switch", "voices": voices, "rounds": SWITCHES}, LOAD_LIMIT)
    return {
        "device": device, "precision": loaded["precision"], "precision_asked": precision,
        "import_seconds": loaded["import_seconds"], "load_seconds": loaded["load_seconds"],
        "switch_first_seconds": found["first_seconds"],
        "switch_warm_seconds": statistics.median(found["warm_seconds"]),
    }  # fmt: skip


def percentile(values: list[float], share: float) -> float:
    """The least value that `share` percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)]


# --- words for people ------------------------------------------------------------------------------------------------


def headline(about: dict[str, Any]) -> str:
    """One line about the machine."""
    named = ", ".join(f"{name} {number}" for name, number in about["packages"].items())
    gpu = f", {about['gpu']}" if about["gpu"] else ""
    return (
        f"{about['processor']}{gpu}, {about['cores']} cores, {about['threads']} threads, load {about['load']}; "
        f"python {about['python']}, {named}"
    )


def row_line(row: dict[str, Any]) -> str:
    """One line about a clip."""
    memory = "" if row["peak_bytes"] is None else f", peak {row['peak_bytes'] / 1e6:.0f} MB"
    device_peak = row["device_peak_bytes"]
    memory += "" if device_peak is None else f" and {device_peak / 1e6:.0f} MB on the device"
    return (
        f"{place_words(row)} {row['f0_method']:>6} {row['seconds']:6g} s: first {row['first_seconds']:.2f} s, "
        f"warm {row['warm_seconds']:.2f} s (least of {row['runs']}: {row['warm_least']:.2f}), "
        f"RTF {row['rtf']:.3f}{memory}; {stage_words(row)}; decoder at {row['decoder_share']:.0%} of a matrix product"
    )


def many_line(row: dict[str, Any]) -> str:
    """One line about many clips."""
    return (
        f"{place_words(row)} {row['f0_method']:>6} {row['clips']} clips of {row['seconds']:g} s: "
        f"one by one {row['one_by_one_seconds']:.2f} s, at once {row['together_seconds']:.2f} s "
        f"({row['ratio']:.2f} times as fast), "
        f"RTF {row['together_seconds'] / row['clips'] / row['seconds']:.4f}; {stage_words(row)}"
    )


def stream_line(row: dict[str, Any]) -> str:
    """One line about a stream."""
    return (
        f"{place_words(row)} stream of {row['block_seconds'] * 1000:.0f} ms blocks: computed in "
        f"{row['p50_seconds'] * 1000:.0f} ms (p50), {row['p99_seconds'] * 1000:.0f} ms (p99); "
        f"delay {row['delay_seconds'] * 1000:.0f} ms before that"
    )


def loading_line(row: dict[str, Any]) -> str:
    """One line about loading."""
    return (
        f"{place_words(row)} import {row['import_seconds']:.2f} s, load {row['load_seconds']:.2f} s; another voice: "
        f"{row['switch_first_seconds'] * 1000:.0f} ms from disk, {row['switch_warm_seconds'] * 1000:.1f} ms again"
    )


def stage_words(row: dict[str, Any]) -> str:
    """Seconds of each stage."""
    return ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["stages"].items())


def place_words(row: dict[str, Any]) -> str:
    """`cpu fp32`, or `cpu fp32 (asked: bf16)`."""
    asked = "" if row["precision"] == row["precision_asked"] else f" (asked: {row['precision_asked']})"
    return f"{row['device']} {row['precision']}{asked}"
