"""Spark-TTS in process: tokens per second, codec speed, first sound, real-time factor, exactness of short contexts.

    python tools/benchmark.py spark [--checkpoint FOLDER | --size tiny|full] [--device cpu] [--precision fp32 bf16]

Random weights cost what real ones cost. How much a shorter context errs is a property of the weights: with random
ones it shows the reach, and a real checkpoint (`--checkpoint`) shows what is heard.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rvc_spark.rvc_config import RVCConfig
from rvc_spark.tts.bicodec import load_bicodec
from rvc_spark.tts.chunk_schedule import ChunkSchedule, ChunkSettings
from rvc_spark.tts.spark import SparkEngine
from rvc_spark.tts.spark_checkpoint import SparkFolder
from rvc_spark.tts.spark_decode import WindowedCodec
from rvc_spark.tts.spark_networks import SparkNetworks
from rvc_spark.tts.spark_settings import SparkSettings
from rvc_spark.tts.spark_voice import SparkVoice

MAKER = Path(__file__).resolve().parent.parent / "tests" / "spark_maker.py"
CONTEXTS: tuple[int | str, ...] = (0, 5, 10, 20, 33, 50, 60, "exact")
TEXT = "The quick brown fox jumps over the lazy dog, and nobody in the whole village was surprised."
TOKENS_PER_SECOND = 50


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint folder; default: one with random weights is made")
    parser.add_argument("--size", choices=("tiny", "full"), default="full", help="of the one that is made")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--tokens", type=int, default=100, help="tokens per spoken text (default: 100, 2 s)")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 4], help="texts at once (default: 1 4)")
    parser.add_argument("--threads", type=int, help="of torch (default: all cores)")
    parser.add_argument("--no-contexts", action="store_true", help="leave the table of contexts out")
    parser.add_argument("--profile", action="store_true", help="where the time of speaking goes, by operator")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        "torch": torch.__version__, "device": device_name(options.device), "threads": torch.get_num_threads(),
        "checkpoint": str(options.checkpoint or f"random, {options.size}"),
    }  # fmt: skip
    tell(options, f"torch {report['torch']} on {report['device']}, {report['threads']} threads, {report['checkpoint']}")
    with tempfile.TemporaryDirectory(prefix="spark-benchmark-") as scratch:
        folder = options.checkpoint or made(Path(scratch), options.size)
        report["codec"] = codec_speed(folder, options)
        if not options.no_contexts:
            report["contexts"] = contexts(folder, options)
        report["speech"] = [speech(folder, precision, options) for precision in options.precision]
    if options.json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0


def tell(options: argparse.Namespace, line: str) -> None:
    """A line for people; with --json on standard error."""
    (sys.stderr if options.json else sys.stdout).write(line + "\n")
    (sys.stderr if options.json else sys.stdout).flush()


def device_name(device: str) -> str:
    """Which one it is."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "cpu"


def made(folder: Path, size: str) -> Path:
    """A checkpoint with random weights that rarely ends a sentence by itself."""
    spec = importlib.util.spec_from_file_location("spark_maker", MAKER)
    maker = importlib.util.module_from_spec(spec)
    sys.modules["spark_maker"] = maker
    spec.loader.exec_module(maker)
    return maker.make_spark_folder(folder / "Spark-TTS-0.5B", size=size, end_bias=-1.0, features=False)


def timed(work: Callable[[], Any], device: str, repeats: int = 3) -> float:
    """Best of a few runs after one that warms up, in seconds."""
    best = float("inf")
    for number in range(repeats + 1):
        began = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        if number:
            best = min(best, time.perf_counter() - began)
    return best


def codec_speed(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Real-time factor of decoding a whole utterance, and of the first window of the default schedule."""
    codec = load_bicodec(SparkFolder(folder).bicodec, device=options.device, parts="decode")
    tokens = np.random.default_rng(0).integers(0, codec.semantic_size, 400).tolist()
    voice = torch.arange(codec.token_count, dtype=torch.int32, device=options.device).reshape(1, 1, -1)
    ids = torch.tensor(tokens, device=options.device)[None]
    whole = timed(lambda: codec.detokenise(ids, voice), options.device)
    first = ChunkSchedule(ChunkSettings(), WindowedCodec(codec).reach).push(400)[0]
    window = timed(lambda: WindowedCodec(codec).utterance(voice.flatten().tolist())(tokens, first), options.device)
    found = {
        "whole_rtf": whole / (400 / TOKENS_PER_SECOND), "first_window_seconds": window,
        "first_window_rtf": window / ((first.keep_stop - first.keep_start) / TOKENS_PER_SECOND),
    }  # fmt: skip
    tell(options, f"codec, fp32: whole decode RTF {found['whole_rtf']:.3f}; first second with its context in "
                  f"{window * 1000:.0f} ms")  # fmt: skip
    return found


def contexts(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Error of streams with shorter contexts against the whole decode, for chunks of 1 s."""
    codec = load_bicodec(SparkFolder(folder).bicodec, device=options.device, parts="decode")
    tokens = np.random.default_rng(1).integers(0, codec.semantic_size, 300).tolist()
    voice = torch.arange(codec.token_count, dtype=torch.int32, device=options.device)
    whole = codec.detokenise(torch.tensor(tokens, device=options.device)[None], voice.reshape(1, 1, -1))
    whole = whole[0, 0].float().cpu().numpy()
    rows = []
    for context in CONTEXTS:
        windowed = WindowedCodec(codec)
        schedule = ChunkSchedule(ChunkSettings(1.0, 1.0, context=context), windowed.reach)
        decode = windowed.utterance(voice.tolist())
        sound = np.concatenate([decode(tokens, window) for window in [*schedule.push(300), *schedule.finish()]])
        error = sound - whole
        noise = float(np.sqrt(np.mean(error**2)))
        decibels = 20 * np.log10(float(np.sqrt(np.mean(whole**2))) / noise) if noise else float("inf")
        rows.append({
            "context": context, "worst": float(np.abs(error).max()), "snr_db": round(float(decibels), 1),
            "waits_seconds": 1.0 + (windowed.reach if context == "exact" else int(context)) / TOKENS_PER_SECOND,
        })  # fmt: skip
        tell(options, f"context {context!s:>5}: signal to error {decibels:6.1f} dB, worst sample "
                      f"{rows[-1]['worst']:.1e}, first second after {rows[-1]['waits_seconds']:.2f} s of tokens")
    return rows


def speech(folder: Path, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second, first sound and real-time factor, from text to samples."""
    networks = SparkNetworks(
        RVCConfig(spark=folder, device=options.device, precision=precision), slots=max(options.concurrency)
    )
    voice = SparkVoice(tuple(range(32)))
    rows = []
    try:
        networks.parts()
        one_text(networks, voice, 2, 0)  # kernels are compiled
        for count in options.concurrency:
            rows.append(at_once(networks, voice, count, options))
            row = rows[-1]
            tell(options, f"speech, {networks.precision.language_model.value}, {count} at once: "
                          f"{row['tokens_per_second']:.1f} tokens/s, first second of sound after "
                          f"{row['first_seconds']:.2f} s, real-time factor {row['rtf']:.2f}")  # fmt: skip
        profile = profiled(networks, voice, options) if options.profile else None
    finally:
        networks.close()
    return {"precision": networks.precision.language_model.value, "runs": rows, "profile": profile}


def one_text(networks: SparkNetworks, voice: SparkVoice, tokens: int, seed: int) -> tuple[float, int]:
    """Seconds to the first sound, and samples."""
    settings = SparkSettings(seed=seed, max_tokens=tokens, chunks=ChunkSettings(first_seconds=1.0))
    engine = SparkEngine(settings, networks=networks, voice=voice)
    began = time.perf_counter()
    first, samples = 0.0, 0
    for piece in engine.stream(None, TEXT):
        first = first or time.perf_counter() - began
        samples += piece.frames
    return first, samples


def at_once(networks: SparkNetworks, voice: SparkVoice, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """`count` texts started together."""
    found: list[tuple[float, int]] = []
    threads = [
        threading.Thread(target=lambda seed=seed: found.append(one_text(networks, voice, options.tokens, seed)))
        for seed in range(count)
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - began
    seconds = sum(samples for _, samples in found) / 16_000
    return {
        "concurrency": count, "seconds": elapsed, "sound_seconds": seconds, "rtf": elapsed / seconds,
        "tokens_per_second": seconds * TOKENS_PER_SECOND / elapsed,
        "first_seconds": sorted(first for first, _ in found)[len(found) // 2],
    }  # fmt: skip


def profiled(networks: SparkNetworks, voice: SparkVoice, options: argparse.Namespace) -> dict[str, Any]:
    """Where the time of one text goes: prompt, tokens and codec; and the codec's time by operator."""
    before = networks.stats()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:  # of this thread
        began = time.perf_counter()
        one_text(networks, voice, min(options.tokens, 60), 0)
        elapsed, after = time.perf_counter() - began, networks.stats()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    codec = sum(event.self_cpu_time_total for event in events) / 1e6
    shares = {
        "prompt": (after.prefill_seconds - before.prefill_seconds) / elapsed,
        "tokens": (after.decode_seconds - before.decode_seconds) / elapsed, "codec": codec / elapsed,
    }  # fmt: skip
    tell(options, "    " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()) + " of the time")
    operators = {event.key: event.self_cpu_time_total / 1e6 / codec for event in events[:8]}
    for name, share in operators.items():
        tell(options, f"      codec: {share:6.1%} {name}")
    return {"shares": shares, "codec_operators": operators}


if __name__ == "__main__":
    sys.exit(main())
