"""How far a result may be from the recorded one: the table of the Spark-TTS vectors' README, as limits."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np

from conformance_checks.limits import Limit

WAVE = Limit(5e-4)  # samples, full scale 1
MARGIN = 1e-4  # where the two nearest codes are closer than this, either may be chosen
TABLE = Limit(1e-6)  # window and filterbank
FLOAT64 = Limit(1e-9)  # loudness
FLOAT32 = Limit(1e-6)
RECORDED_SOXR = 1  # major version
RESAMPLED = FLOAT64 if version("soxr").startswith(f"{RECORDED_SOXR}.") else Limit(1e-4)


def activation(want: np.ndarray) -> Limit:
    """For results of networks: 2e-4 of the largest of them, or of 1."""
    return Limit(2e-4 * max(1.0, float(np.abs(want).max(initial=0.0))))
