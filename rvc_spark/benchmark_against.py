"""This package beside a checkout of the published RVC program: how much faster, and how far apart the sounds are.

Both run in processes of their own, with the same files, the same samples, settings and number of threads, and take
turns (A, B, A, B ...), so that a machine that is busy for a while is busy for both. The least and the median of the
warm calls are told, and processor time, which others do not disturb. Noise differs from program to program, so sounds
are compared twice: with noise, beside what another seed does to the reference itself, and with zeros in place of all
noise, without index and loudness, where the programs should agree.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from rvc_spark.benchmark import LOAD_LIMIT, BenchmarkPlan, Say, call_limit, load_request, ours
from rvc_spark.benchmark_machine import load_average
from rvc_spark.benchmark_models import ModelSet, make_models, speech
from rvc_spark.benchmark_process import Companion
from rvc_spark.errors import BenchmarkError
from rvc_spark.infer.mel_distance import log_mel_distance
from rvc_spark.rvc_config import PACKAGE

BRIDGE = PACKAGE / "benchmark_reference.py"
SETTINGS = {"index_rate": 0.75, "protect": 0.33, "rms_mix_rate": 0.25}  # what both programs begin with


@dataclass(frozen=True)
class Rival:
    """A checkout of the reference, and the Python it runs in (None: this one)."""

    folder: Path
    python: str | None = None

    def start(self, files: ModelSet, threads: int) -> Companion:
        """Its process. Raises BenchmarkError when there is no such folder or Python."""
        folder = self.folder.resolve()
        if not (folder / "infer").is_dir():
            raise BenchmarkError(
                f"{folder} is no checkout of the reference: it has no folder infer",
                "Clone https://github.com/RVC-Project/Retrieval-based-Voice-Conversion-WebUI and give its folder.",
            )
        python = shutil.which(self.python or sys.executable)
        if python is None:
            raise BenchmarkError(f"there is no Python {self.python!r}", "Give the path of an interpreter.")
        # The script is handed over as text: were its folder on the path, the reference would import our modules.
        code = BRIDGE.read_text(encoding="utf-8")
        return Companion(
            [python, "-c", code], "the reference", threads, PYTHONPATH=str(folder), rmvpe_root=str(files.rmvpe),
            HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1",
        )  # fmt: skip


def run_against(plan: BenchmarkPlan, rival: Rival, say: Say) -> list[dict[str, Any]]:
    """Measure both programs for every combination of the plan; returns rows ready for JSON.

    Raises BenchmarkError when the checkout cannot run: it names the module that is missing.
    """
    files = make_models(plan.folder, plan.sizes)
    rows = []
    for device, precision in plan.places():
        with ours(plan.threads) as mine, rival.start(files, plan.threads) as theirs:
            loaded = mine.ask(load_request(files, plan.threads, device, precision), LOAD_LIMIT)
            known = theirs.ask(
                {
                    "do": "load", "threads": plan.threads, "device": device, "hubert": str(files.hubert),
                    "half": device.startswith("cuda") and loaded["precision"] != "fp32", "voice": str(files.voice),
                    "index": str(files.index),
                },
                LOAD_LIMIT,
            )  # fmt: skip
            say(f"the reference has the layout of {known['layout']}, {known['versions']}")
            for method, seconds in product(plan.f0_methods, plan.seconds):
                job = {**SETTINGS, "f0_method": method, "sound": str(speech(seconds, plan.folder))}
                pair = _Pair(mine, theirs, job, known["profile"], seconds, known["rate"])
                row = {
                    "device": device, "precision": loaded["precision"], "precision_asked": precision,
                    "f0_method": method, "seconds": seconds, "layout": known["layout"],
                    **pair.times(plan.runs, plan.patience), "difference": pair.difference(), "load": load_average(),
                }  # fmt: skip
                rows.append(row)
                say(against_line(row))
    return rows


@dataclass(frozen=True)
class _Pair:
    mine: Companion
    theirs: Companion
    job: dict[str, Any]
    profile: str  # how the reference treats unvoiced frames
    seconds: float
    rate: int

    def _ask(self, program: Companion, **changes: Any) -> dict[str, Any]:
        return program.ask({"do": "convert", "seed": 0, **self.job, **changes}, call_limit(self.seconds))

    def times(self, runs: int, patience: float) -> dict[str, Any]:
        first = [self._ask(program) for program in (self.mine, self.theirs)]
        warm: tuple[list[dict[str, Any]], ...] = ([], [])
        while len(warm[0]) < runs and (not warm[0] or sum(item["seconds"] for item in warm[1]) < patience):
            for taken, program in zip(warm, (self.mine, self.theirs), strict=True):
                taken.append(self._ask(program))
        ours_, reference = (_figures(*pair) for pair in zip(first, warm, strict=True))
        ratios = {
            name: reference[figure] / ours_[figure]
            for name, figure in (
                ("ratio", "warm_seconds"), ("ratio_least", "warm_least"), ("ratio_cpu", "warm_cpu_least"),
            )
        }  # fmt: skip
        return {"ours": ours_, "reference": reference, "runs": len(warm[0]), **ratios}

    def difference(self) -> dict[str, float]:
        """How far apart the sounds are, see `compare_sounds`."""
        with TemporaryDirectory(prefix="rvc_spark_benchmark_") as folder:

            def kept(program: Companion, name: str, **changes: Any) -> np.ndarray:
                path = Path(folder) / f"{name}.npy"
                self._ask(program, keep=str(path), **changes)
                return np.load(path)

            noisy = kept(self.mine, "ours", profile=self.profile)
            reference, again = kept(self.theirs, "reference"), kept(self.theirs, "again", seed=1)
            # Among random vectors all are about as near, so the last bit of a feature decides which is taken; and
            # the reference, whose result is some frames short, lays the source's loudness over it a little stretched.
            plain = {"index_rate": 0.0, "rms_mix_rate": 1.0}
            quiet = kept(self.mine, "quiet", do="silent", profile=self.profile, **plain)
            still = kept(self.theirs, "still", silent=True, **plain)
        return compare_sounds((noisy, reference, again), (quiet, still), self.rate)


def _figures(first: dict[str, Any], warm: list[dict[str, Any]]) -> dict[str, float]:
    """Of one program: the first call, the median and the least of the warm ones, and the least of processor time."""
    taken = [call["seconds"] for call in warm]
    return {
        "first_seconds": first["seconds"], "warm_seconds": statistics.median(taken), "warm_least": min(taken),
        "warm_cpu_least": min(call["cpu_seconds"] for call in warm),
    }  # fmt: skip


def compare_sounds(
    noisy: tuple[np.ndarray, np.ndarray, np.ndarray], silent: tuple[np.ndarray, np.ndarray], rate: int
) -> dict[str, float]:
    """The difference of two programs' sounds.

    Args:
        noisy: ours, the reference's, and the reference's with another seed, float32 [N].
        silent: ours and the reference's without noise.

    Returns:
        samples (difference of lengths), log_mel_db with noise, log_mel_db_seed (the reference against itself),
        log_mel_db_silent, and rms_db_silent: level of the difference below that of the reference.
    """
    mine, theirs, again = noisy
    count = min(map(len, (*noisy, *silent)))
    quiet, still = (sound[:count].astype(np.float64) for sound in silent)
    rms = np.sqrt(np.mean((quiet - still) ** 2)) / max(np.sqrt(np.mean(still**2)), 1e-12)
    return {
        "samples": len(mine) - len(theirs),
        "log_mel_db": log_mel_distance(theirs[:count], mine[:count], rate),
        "log_mel_db_seed": log_mel_distance(theirs[:count], again[:count], rate),
        "log_mel_db_silent": log_mel_distance(still, quiet, rate),
        "rms_db_silent": float(20 * np.log10(rms + 1e-12)),
    }


def against_line(row: dict[str, Any]) -> str:
    """One line for people."""
    mine, theirs, far = row["ours"], row["reference"], row["difference"]
    return (
        f"{row['device']} {row['precision']} {row['f0_method']:>6} {row['seconds']:6g} s: ours "
        f"{mine['warm_seconds']:.2f} s, reference {theirs['warm_seconds']:.2f} s: {row['ratio']:.2f} times as fast "
        f"(least of {row['runs']}: {row['ratio_least']:.2f}, processor time {row['ratio_cpu']:.2f}; "
        f"load {row['load']}). log-mel {far['log_mel_db']:.2f} dB "
        f"apart, another seed {far['log_mel_db_seed']:.2f} dB; without noise {far['log_mel_db_silent']:.3f} dB, "
        f"difference at {far['rms_db_silent']:.1f} dB; {far['samples']:+d} samples"
    )
