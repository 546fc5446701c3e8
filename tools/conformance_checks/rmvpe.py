"""The pitch network: mel front end, salience, and the step from salience to Hz."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch

from conformance_checks.folder import Arrays, case_file
from conformance_checks.limits import (
    DECODED_F0,
    MEL,
    MEL_FILTER,
    SALIENCE,
    SALIENCE_F0,
    SALIENCE_MARGIN,
    Limit,
)
from conformance_checks.record import Recorder, as_array
from conformance_checks.run import Run
from rvc_spark.infer.mel import mel_filters
from rvc_spark.infer.rmvpe import (
    BINS,
    CENTS_PER_BIN,
    FIRST_CENT,
    HOP,
    MEL_HIGH,
    MEL_LOW,
    MELS,
    N_FFT,
    RMVPE,
    SAMPLE_RATE,
    decode_salience,
    load_rmvpe,
)

MARGIN = Limit(2 * SALIENCE.absolute, network=True)  # the difference of two saliences
CENTS = Limit(1e-9)
WINDOW = Limit(1e-5)  # measured through the logarithm in float32
CLICK = 1e4  # far above the floor of the logarithm even at the window's ends
THRESHOLD = re.compile(r"f0_thr_([\d.]+)")


def check_case(case: dict[str, Any], run: Run, record: Recorder) -> None:
    """One signal through a recipe network, or the decoder on salience made by hand."""
    arrays = run.folder.arrays(case_file(case, ".npz"))
    if case["kind"] == "rmvpe_decode":
        check_decoder(case, arrays, record)
        return
    prefix, threshold = case["prefix"], case["threshold"]
    path = run.recipe_file(case["recipe"])
    model = run.loaded(path, lambda: load_rmvpe(path, run.device))
    samples = arrays.given(prefix + "in.audio")
    mel = model.mel(samples)
    salience = model.salience(mel)
    record.against(arrays, prefix + "mel", mel, MEL)
    record.against(arrays, prefix + "hidden", salience, SALIENCE)
    clear = arrays.given(prefix + "margin") > SALIENCE_MARGIN
    found = {
        "f0": model.f0(samples, threshold),
        "f0 of the recorded salience": decode_salience(arrays.given(prefix + "hidden"), threshold),
    }
    wanted = arrays.expected(prefix + "f0")
    for name, f0 in found.items():
        record.same(f"{prefix}{name}, frames", len(f0), len(wanted))
        record.compare(prefix + name, as_array(f0)[clear], wanted[clear], SALIENCE_F0)
    record.against(arrays, prefix + "margin", decision_margin(as_array(salience), threshold), MARGIN)


def decision_margin(salience: np.ndarray, threshold: float) -> np.ndarray:
    """[N, 360] -> [N]: how far each frame is from another answer (second best bin, or the threshold)."""
    ordered = np.sort(salience, axis=1)
    best, second = ordered[:, -1], ordered[:, -2]
    return np.minimum(best - second, np.abs(best - threshold))


def check_decoder(case: dict[str, Any], arrays: Arrays, record: Recorder) -> None:
    """Every threshold of the file, and the constants of the front end."""
    salience = arrays.given("in.salience")
    thresholds = []
    for key in arrays.keys("f0_thr_"):
        match = THRESHOLD.fullmatch(key)
        if match is None:
            continue
        thresholds.append(float(match[1]))
        record.against(arrays, key, decode_salience(salience, thresholds[-1]), DECODED_F0)
    record.same("thresholds", sorted(thresholds), sorted(case["thresholds"]))
    record.against(arrays, "cents_mapping", FIRST_CENT + CENTS_PER_BIN * np.arange(BINS), CENTS)
    basis = mel_filters(SAMPLE_RATE, N_FFT, MELS, MEL_LOW, MEL_HIGH)
    record.against(arrays, "mel_basis", basis, MEL_FILTER)
    record.against(arrays, "window", measured_window(np.asarray(basis).sum(axis=1)), WINDOW)


def measured_window(band_sums: np.ndarray) -> np.ndarray:
    """The analysis window as the front end applies it, float64 [N_FFT], read off clicks.

    A click's spectrum is flat, so band b of a frame holds (window where the click lies) * (sum of filter b).
    """
    front_end = RMVPE(torch.nn.Identity())
    band = int(np.argmax(band_sums))
    window = np.zeros(N_FFT)
    for offset in range(HOP):
        samples = np.zeros(4 * N_FFT, dtype=np.float32)
        place = 2 * N_FFT + offset
        samples[place] = CLICK
        level = np.exp(as_array(front_end.mel(samples))[band]) / (CLICK * band_sums[band])
        for frame in range(len(level)):
            inside = place - frame * HOP + N_FFT // 2
            if 0 <= inside < N_FFT:
                window[inside] = level[frame]
    return window
