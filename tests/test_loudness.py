"""Loudness reads what the standard says, in blocks or whole."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rvc_spark.audio import Audio, LoudnessMeter, loudness_lufs, peak_dbfs, rms_dbfs, true_peak_dbtp
from rvc_spark.loudness import k_weighting


def sine(hertz: float, seconds: float, rate: int, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def test_k_weighting_is_the_table_of_the_standard_at_48_khz():
    shelf, high_pass = k_weighting(48_000)
    np.testing.assert_allclose(shelf[:3], [1.53512485958697, -2.69169618940638, 1.19839281085285], atol=1e-8)
    np.testing.assert_allclose(shelf[4:], [-1.69065929318241, 0.73248077421585], atol=1e-8)
    np.testing.assert_allclose(high_pass[4:], [-1.99004745483398, 0.99007225036621], atol=1e-8)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000, 96_000])
def test_a_full_scale_sine_is_at_minus_three_lufs(rate):
    tone = sine(997, 3.0, rate, 1.0)
    assert loudness_lufs(Audio(tone, rate)) == pytest.approx(-3.01, abs=0.1)
    assert loudness_lufs(Audio(np.stack([tone, tone]), rate)) == pytest.approx(0.0, abs=0.1)
    assert loudness_lufs(Audio(tone * 0.1, rate)) == pytest.approx(-23.01, abs=0.1)


def test_quiet_passages_are_gated_out():
    parts = [sine(1_000, seconds, 48_000, 10 ** (level / 20)) for level, seconds in ((-36, 3), (-23, 15), (-36, 3))]
    tone = np.concatenate([*parts, np.zeros(48_000 * 5, np.float32)])
    assert loudness_lufs(Audio(np.stack([tone, tone]), 48_000)) == pytest.approx(-23.0, abs=0.1)


def test_loudness_agrees_with_pyloudnorm():
    pyloudnorm = pytest.importorskip("pyloudnorm")
    rng = np.random.default_rng(4)
    samples = (rng.standard_normal((2, 5 * 44_100)) * np.linspace(0.001, 0.3, 5 * 44_100)).astype(np.float32)
    reference = pyloudnorm.Meter(44_100, filter_class="DeMan").integrated_loudness(samples.T.astype(float))
    assert loudness_lufs(Audio(samples, 44_100)) == pytest.approx(reference, abs=0.05)


def test_loudness_does_not_depend_on_blocks():
    samples = np.random.default_rng(5).standard_normal((1, 30_011)).astype(np.float32) * 0.1
    meter = LoudnessMeter(11_025, 1)
    for block in np.array_split(samples, 17, axis=1):
        meter.push(block)
    assert meter.lufs() == pytest.approx(loudness_lufs(Audio(samples, 11_025)), abs=1e-9)


def test_short_and_silent_sounds_have_a_loudness():
    tone = sine(997, 2.0, 48_000, 0.5)
    short = loudness_lufs(Audio(tone[: 48_000 // 5], 48_000))
    assert short == pytest.approx(loudness_lufs(Audio(tone, 48_000)), abs=0.3)
    assert loudness_lufs(Audio(np.zeros(48_000), 48_000)) == -math.inf
    assert loudness_lufs(Audio(np.zeros(3), 48_000)) == -math.inf
    assert peak_dbfs(Audio(np.zeros(3), 48_000)) == rms_dbfs(Audio(np.zeros(3), 48_000)) == -math.inf


def test_true_peak_sees_between_samples():
    rate = 48_000
    between = np.sin(2 * np.pi * 0.25 * np.arange(rate) + np.pi / 4) * np.hanning(rate)  # samples at +-0.707 only
    audio = Audio(between, rate)
    assert peak_dbfs(audio) == pytest.approx(-3.01, abs=0.05)
    assert true_peak_dbtp(audio) == pytest.approx(0.0, abs=0.05)
    assert rms_dbfs(Audio(sine(440, 1.0, rate, 1.0), rate)) == pytest.approx(-3.01, abs=0.01)
