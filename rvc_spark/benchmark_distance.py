"""What a faster precision costs: the same clip, voice and seed in float32 and in another precision, compared.

Two voices are heard: the benchmark's, of full size with random weights, and the demo voice, which is small and trained.
The distance is that of log-mel spectrograms, beside what another seed of the same voice does; f0 is compared frame by
frame. Prints nothing; `say` takes its lines.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from rvc_spark.benchmark import LOAD_LIMIT, BenchmarkPlan, Say, call_limit, load_request, ours, place_words
from rvc_spark.benchmark_models import ModelSet, make_models, speech
from rvc_spark.infer.mel_distance import log_mel_distance
from rvc_spark.rvc_config import RVCConfig

SECONDS = 10.0  # of the clip, at most
PLAIN = ("exact", "fp32")


def run_distances(plan: BenchmarkPlan, say: Say) -> list[dict[str, Any]]:
    """Compare every precision of the plan but float32 with it, on each device; returns rows ready for JSON.

    Raises BenchmarkError when a process dies or refuses.
    """
    files = make_models(plan.folder, plan.sizes)
    rows = []
    for device, precision in plan.places():
        if precision in PLAIN:
            continue
        for voice in ("random", "demo"):
            row = _distance(plan, files, device, precision, voice)
            if row["precision"] != "fp32":  # where the device has nothing faster there is nothing to compare
                rows.append(row)
                say(distance_line(row))
    return rows


def _distance(plan: BenchmarkPlan, files: ModelSet, device: str, precision: str, voice: str) -> dict[str, Any]:
    seconds = min(SECONDS, max(plan.seconds))
    job = {"do": "convert", "f0_method": plan.f0_methods[0], "sound": str(speech(seconds, plan.folder))}
    sounds, pitches = [], []
    with TemporaryDirectory(prefix="rvc_spark_benchmark_") as folder:
        for number, (chosen, seed) in enumerate((("exact", 0), (precision, 0), ("exact", 1))):
            sound, pitch = (str(Path(folder) / f"{name}{number}.npy") for name in ("sound", "f0"))
            with ours(plan.threads) as worker:
                loaded = worker.ask(_request(plan, files, device, chosen, voice), LOAD_LIMIT)
                done = worker.ask({**job, "seed": seed, "keep": sound, "keep_f0": pitch}, call_limit(seconds))
            sounds.append(np.load(sound))
            pitches.append(np.load(pitch))
            if number == 1:
                used = loaded["precision"]
    exact, other, again = sounds
    return {
        "device": device, "precision": used, "precision_asked": precision, "voice": voice, "seconds": seconds,
        "f0_method": plan.f0_methods[0], "log_mel_db": log_mel_distance(exact, other, done["rate"]),
        "log_mel_db_seed": log_mel_distance(exact, again, done["rate"]),
        "difference_db": _level(other - exact) - _level(exact), **compare_pitch(pitches[0], pitches[1]),
    }  # fmt: skip


def _request(plan: BenchmarkPlan, files: ModelSet, device: str, precision: str, voice: str) -> dict[str, Any]:
    request = load_request(files, plan.threads, device, precision)
    if voice == "demo":
        demo = next(iter(sorted(RVCConfig().demo_dir.glob("*.pth"))))
        config = {"device": device, "precision": precision, "offline": True, "rmvpe": str(files.rmvpe)}
        request |= {"config": config, "voice": str(demo), "index": None}
    return request


def compare_pitch(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """f0 in Hz per frame, 0 unvoiced: cents apart where both are voiced (mean, most), share of frames that disagree."""
    both = (one > 0) & (other > 0)
    cents = np.abs(1200 * np.log2(other[both] / one[both])) if both.any() else np.zeros(1)
    return {
        "f0_cents_mean": float(cents.mean()), "f0_cents_most": float(cents.max()),
        "voicing_differs": float(np.mean((one > 0) != (other > 0))),
    }  # fmt: skip


def _level(sound: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(sound, dtype=np.float64)) + 1e-20))


def distance_line(row: dict[str, Any]) -> str:
    """One line for people."""
    return (
        f"{place_words(row)} beside fp32, {row['voice']} voice: log-mel {row['log_mel_db']:.3f} dB apart (another seed "
        f"{row['log_mel_db_seed']:.2f} dB), difference at {row['difference_db']:.1f} dB; f0 {row['f0_cents_mean']:.2f} "
        f"cents apart, voicing differs in {row['voicing_differs']:.1%} of the frames"
    )
