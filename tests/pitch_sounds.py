"""Sounds whose pitch is known, and where the reference's numbers lie, for the tests of pitch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "shared"
FULL_SET = SHARED / "golden" / "rvc" / "functions"
GOLDEN = FULL_SET if FULL_SET.is_dir() else HERE / "golden" / "rvc" / "functions"
RATE = 16_000
LIGHT = ("pm", "harvest", "dio", "fcpe", "crepe-tiny")  # crepe has the same code and 50 times the arithmetic


def signals(table) -> list[str]:
    return sorted({name.split("/")[0] for name in table.files})


def glide(seconds: float = 1.5, harmonics: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """A harmonic glide of two octaves from 110 Hz, and its true pitch at each frame's time."""
    t = np.arange(int(seconds * RATE)) / RATE
    hz = 110 * 4 ** (t / seconds)
    phase = 2 * np.pi * np.cumsum(hz) / RATE
    return sum(np.sin(k * phase) / k for k in range(1, harmonics + 1)) * 0.2, hz[::160]


def cents(f0: np.ndarray, true: np.ndarray) -> np.ndarray:
    return np.abs(1200 * np.log2(np.where(f0 > 0, f0, 1e-3) / true))
