"""Resampling: exact lengths, blocks change nothing, no aliases; and samples in memory."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rvc_spark.audio import StreamResampler, check_audio, crossfade, fade_in_curve, resample, resampled_length
from rvc_spark.errors import AudioError


def sine(hertz: float, seconds: float, rate: int, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def decibels(signal: np.ndarray, error: np.ndarray) -> float:
    return 10 * math.log10(
        float(np.mean(np.square(signal, dtype=float)) / max(np.mean(np.square(error, dtype=float)), 1e-30))
    )


def test_lengths_are_exact_and_blocks_change_nothing():
    rng = np.random.default_rng(1)
    rates = [
        8_000,
        11_025,
        16_000,
        22_050,
        24_000,
        32_000,
        40_000,
        44_100,
        48_000,
        88_200,
        96_000,
        192_000,
        44_101,
        37_800,
    ]
    for _ in range(200):
        rate_in, rate_out = (int(rate) for rate in rng.choice(rates, 2))
        frames = int(rng.integers(1, 30_000))
        samples = rng.standard_normal((2, frames)).astype(np.float32)
        whole = resample(samples, rate_in, rate_out)
        assert whole.shape == (2, round(frames * rate_out / rate_in)), (frames, rate_in, rate_out)
        stream = StreamResampler(rate_in, rate_out, 2)
        cuts = np.sort(rng.integers(0, frames + 1, 3))
        pieces = [stream.push(block) for block in np.split(samples, cuts, axis=1)] + [stream.finish(frames)]
        np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-6)


def test_length_in_integers_is_round():
    rng = np.random.default_rng(2)
    for frames, rate_in, rate_out in rng.integers(1, 200_000, (2_000, 3)).tolist() + [[1_000, 40_000, 44_100]]:
        assert resampled_length(frames, rate_in, rate_out) == round(frames * rate_out / rate_in)
    assert resampled_length(10**15 + 1, 2, 1) == 5 * 10**14  # beyond what float64 can halve exactly: ties to even


@pytest.mark.parametrize(
    ("rate_in", "rate_out"), [(44_100, 16_000), (48_000, 44_100), (16_000, 40_000), (40_000, 48_000)]
)
def test_a_tone_keeps_level_and_place_and_aliases_vanish(rate_in, rate_out):
    inside = np.s_[rate_out // 10 : -rate_out // 10]
    kept = resample(sine(1_000, 1.0, rate_in), rate_in, rate_out)
    assert decibels(kept[inside], (kept - sine(1_000, 1.0, rate_out))[inside]) > 110
    if rate_out < rate_in:
        removed = resample(sine(0.53 * rate_out, 1.0, rate_in), rate_in, rate_out)
        assert decibels(sine(0.53 * rate_out, 1.0, rate_in), removed[inside]) > 110


def test_resample_takes_any_leading_shape():
    samples = np.random.default_rng(3).standard_normal((2, 3, 4_410))
    result = resample(samples, 44_100, 16_000)
    assert (result.shape, result.dtype) == ((2, 3, 1_600), np.float64)
    np.testing.assert_array_equal(result[1, 2], resample(samples[1, 2], 44_100, 16_000))
    assert resample(np.zeros((2, 0), np.float32), 44_100, 16_000).shape == (2, 0)


def test_a_miscounting_caller_is_told():
    stream = StreamResampler(48_000, 16_000)
    assert stream.push(np.zeros(480, np.float32)).ndim == 1
    with pytest.raises(AudioError, match="480 frames"):
        stream.finish(479)
    with pytest.raises(AudioError, match="shape"):
        stream.push(np.zeros((2, 480), np.float32))
    stream.finish()
    with pytest.raises(AudioError, match="finished"):
        stream.push(np.zeros(480, np.float32))


def test_crossfade_of_a_sound_with_itself_changes_nothing():
    tone = np.stack([sine(440, 0.1, 16_000), sine(660, 0.1, 16_000)])
    np.testing.assert_allclose(crossfade(tone, tone), tone, atol=1e-6)
    curve = fade_in_curve(480, "equal_power")
    np.testing.assert_allclose(curve**2 + curve[::-1] ** 2, 1, atol=1e-6)
    rising = fade_in_curve(480)
    assert (np.diff(rising) > 0).all() and rising[0] < 1e-4 and rising[-1] > 1 - 1e-4
    assert crossfade(np.zeros((1, 0)), np.zeros((1, 0))).shape == (1, 0)


def test_pcm_arrays_are_brought_to_full_scale_one():
    np.testing.assert_array_equal(check_audio(np.array([-32_768, 16_384], np.int16), 16_000), [-1, 0.5])
    np.testing.assert_array_equal(check_audio(np.array([0, 192], np.uint8), 16_000), [-1, 0.5])
    np.testing.assert_array_equal(check_audio(np.array([-(2**31), 2**30], np.int32), 16_000), [-1, 0.5])
    samples = np.zeros((2, 5), np.float32)
    assert check_audio(samples, 16_000) is samples or np.shares_memory(check_audio(samples, 16_000), samples)
