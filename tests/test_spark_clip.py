"""A reference recording on its way to the codec; the recorded numbers stand in test_conformance_spark."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from rvc_spark.audio import Audio, resample
from rvc_spark.errors import AudioError
from rvc_spark.tts.spark_clip import (
    MAX_SECONDS,
    checked_reference,
    load_reference,
    normalise_volume,
    reference_clip,
)


def speech(seconds: float = 2.0, rate: int = 16_000, peak: float = 0.5) -> np.ndarray:
    """A tone that swells and pauses, float64 [T]."""
    time = np.arange(int(seconds * rate)) / rate
    sound = np.sin(2 * np.pi * 180 * time) * np.clip(np.sin(2 * np.pi * 1.5 * time), 0, None)
    return sound / np.abs(sound).max() * peak


def wav(samples: np.ndarray, rate: int, subtype: str = "PCM_16") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, subtype, format="WAV")
    return stream.getvalue()


def loudness(samples: np.ndarray) -> float:
    spoken = np.sort(np.abs(samples))
    spoken = spoken[spoken > 0.01]
    return spoken[int(0.9 * spoken.size) : int(0.99 * spoken.size)].mean()


def test_the_first_channel_is_taken_and_not_the_mean():
    left, right = speech(), -speech()
    samples = load_reference(wav(np.stack([left, right], 1), 16_000), normalise=False)
    assert samples.dtype == np.float64
    assert np.abs(samples - left).max() < 1e-4


def test_a_file_and_the_same_sound_already_read_give_the_same():
    sound = speech(rate=44_100)
    pcm = np.round(sound * 32_767).astype(np.int16)
    told = Audio((pcm / np.float32(32_768)).astype(np.float32), 44_100)
    from_file, from_memory = (load_reference(source, normalise=True) for source in (wav(pcm, 44_100), told))
    assert np.array_equal(from_file, from_memory)
    assert len(from_file) == 32_000
    exact = resample(pcm / 32_768, 44_100, 16_000)
    assert np.abs(load_reference(told, normalise=False) - exact).max() < 1e-12


@pytest.mark.parametrize("peak", [0.012, 0.03, 0.09, 0.11, 0.5, 1.0, 1.9])
def test_every_recording_comes_to_one_loudness(peak):
    """Also a quiet one, which the reference raises twice: to twice the loudness, or into clipping."""
    loud = normalise_volume(speech(peak=peak))
    assert loudness(loud) == pytest.approx(0.2, rel=0.02)
    assert np.abs(loud).max() <= 1


def test_a_quiet_recording_is_raised_twice_by_the_reference():
    quiet = speech(peak=0.05)
    theirs = normalise_volume(quiet, exact_reference=True)
    assert loudness(theirs) > 0.35
    same = speech(peak=0.3)
    assert np.array_equal(normalise_volume(same), normalise_volume(same, exact_reference=True))


def test_silence_and_clicks_are_left_as_they_are():
    assert not normalise_volume(np.zeros(1_000)).any()
    clicks = np.zeros(1_000)
    clicks[::200] = 0.5
    assert np.array_equal(normalise_volume(clicks), clicks)
    assert normalise_volume(np.zeros(0)).size == 0
    hiss = 1e-5 * np.random.default_rng(0).standard_normal(1_000)
    assert np.abs(normalise_volume(hiss)).max() <= 0.01  # hiss does not become a voice


def test_types_are_kept_and_the_input_is_not_written_to():
    for dtype in (np.float32, np.float64):
        sound = speech(peak=0.05).astype(dtype)
        before = sound.copy()
        assert normalise_volume(sound).dtype == dtype
        assert np.array_equal(sound, before)


@pytest.mark.parametrize("length", [1, 7, 47_999, 48_000, 95_999, 96_000, 200_000])
def test_the_clip_is_six_seconds_of_it_over_and_over(length):
    clip = reference_clip(np.arange(length, dtype=np.float64) % 1_000)
    assert (clip.shape, clip.dtype) == ((96_000,), np.float32)
    assert np.array_equal(clip, (np.arange(96_000) % length) % 1_000)


def test_what_is_no_recording_is_refused():
    for source, told in (
        (wav(speech(0.02), 16_000), "at least 400"),
        (b"RIFF nothing", "not a sound"),
        (Audio(np.zeros(int(8_000 * (MAX_SECONDS + 1)), np.float32), 8_000), "longer than 600 seconds"),
        (wav(np.zeros(int(8_000 * (MAX_SECONDS + 1))), 8_000), "longer than 600 seconds"),
    ):
        with pytest.raises(AudioError, match=told):
            load_reference(source, normalise=True)
    for samples in (
        np.full(1_000, np.nan),
        np.full(1_000, np.inf),
        np.full(1_000, 1e6),
        np.zeros((2, 1_000)),
        np.zeros(1_000, np.int16),
        np.zeros(399, np.float32),
        np.zeros(0),
    ):
        with pytest.raises(AudioError):
            checked_reference(samples)
    with pytest.raises(AudioError, match="recording of 0"):
        reference_clip(np.zeros(0))
    with pytest.raises(AudioError, match="clip of 0"):
        reference_clip(np.zeros(10), seconds=0.001)
