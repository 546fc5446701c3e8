"""Every mix comes out at its loudness and under its ceiling, measured by others than those who made it."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly

from rvc_spark.audio import Audio, EncodeOptions, loudness_lufs, read_audio, read_tags, true_peak_dbtp
from rvc_spark.covers.dynamics import control_hop
from rvc_spark.covers.limiter import HopPeaks, LimiterCurve, apply_gains, border_gains
from rvc_spark.covers.loudness_plan import MixCurves
from rvc_spark.covers.mix import MixSettings, mix_song, mix_steps
from rvc_spark.covers.tracks import MIX_FRAMES, Track, lined_up, to_channels
from rvc_spark.errors import AudioError, ConfigError, OutputError

RATE = 44_100


def track(samples: np.ndarray, rate: int = RATE, gain_db: float = 0.0, size: int = 30_011) -> Track:
    samples = np.atleast_2d(samples).astype(np.float32)
    blocks = [samples[:, start : start + size] for start in range(0, samples.shape[1], size)]
    return Track("the band", iter(blocks), rate, len(samples), gain_db)


def song(seconds: float = 6.0, rate: int = RATE, channels: int = 2) -> np.ndarray:
    """Chords, a beat and a voice-like line: peaks 14 dB and more above the rest. float32 [C, n]."""
    random, time = np.random.default_rng(0), np.arange(round(seconds * rate)) / rate
    chord = sum(np.sin(2 * np.pi * hz * time) for hz in (110, 165, 220, 277)) * 0.05
    line = 0.15 * np.sin(2 * np.pi * 330 * time + 8 * np.sin(2 * np.pi * 0.7 * time)) * (np.sin(np.pi * time / 3) > 0)
    beat = random.standard_normal((channels, len(time))) * np.exp(-((time % 0.5) / 0.03)) * 0.4
    return (chord + line + beat).astype(np.float32)


def overs_dbtp(audio: Audio) -> float:
    """True peak by another way: 8 times oversampled, polyphase, with the sound's own edges left alone."""
    samples = np.atleast_2d(audio.samples).astype(float)
    return 20 * math.log10(max(np.abs(resample_poly(samples, 8, 1, axis=1)).max(), 1e-12))


def loudness_by_another(audio: Audio) -> float:
    pyloudnorm = pytest.importorskip("pyloudnorm")
    samples = np.atleast_2d(audio.samples).T.astype(float)
    return pyloudnorm.Meter(audio.rate, filter_class="DeMan").integrated_loudness(samples)


def varied() -> dict[str, tuple[np.ndarray, int]]:
    music, random = song(), np.random.default_rng(1)
    time = np.arange(6 * RATE) / RATE
    swell = np.repeat([0.003, 0.02, 0.15, 1.0, 0.02, 0.3], RATE)
    return {
        "music": (music, RATE),
        "very quiet": (music * 10 ** (-65 / 20), RATE),
        "clipped": (np.clip(music * 30, -1, 1), RATE),
        "far beyond full scale": (music * 300, RATE),
        "mono": (music[:1], RATE),
        "8 kHz": (song(rate=8_000, channels=1), 8_000),
        "96 kHz": (song(4.0, 96_000), 96_000),
        "very dynamic": (music * swell, RATE),
        "short bursts": (np.sin(2 * np.pi * 900 * time) * (time % 1 < 0.06), RATE),
        "square of noise": (np.sign(random.standard_normal((2, 4 * RATE))) * 0.9, RATE),
        "one side only": (np.stack([music[0], np.zeros_like(music[0])]), RATE),
        "mostly silence": (np.pad(music[:, :RATE], ((0, 0), (0, 8 * RATE))), RATE),
    }  # fmt: skip


@pytest.mark.parametrize("name", varied())
def test_loudness_and_true_peak_of_varied_sounds(tmp_path, name):
    samples, rate = varied()[name]
    report = mix_song([track(samples, rate)], tmp_path / "a.wav")
    result = read_audio(report.path)
    assert result.samples.shape[-1] == np.atleast_2d(samples).shape[1] == report.frames
    assert loudness_by_another(result) == pytest.approx(-14, abs=0.2), report.reason
    assert overs_dbtp(result) <= -1.0 and true_peak_dbtp(result) <= -1.0
    assert report.lufs == pytest.approx(loudness_lufs(result), abs=0.02)
    assert report.true_peak_dbtp == pytest.approx(true_peak_dbtp(result), abs=0.01)


def test_the_limiter_sees_peaks_where_the_meter_does(tmp_path):
    """In music; about noise next to half the rate no two meters agree."""
    time = np.arange(3 * RATE) / RATE
    chord = sum(np.sin(2 * np.pi * hz * time + hz) for hz in (110, 1_301, 5_003, 11_003)) * (1 + np.sin(9 * time))
    report = mix_song([track(0.02 * chord)], tmp_path / "a.wav", MixSettings(target_lufs=-6))
    assert report.limiter_db > 3
    assert report.true_peak_dbtp == pytest.approx(-1.3, abs=0.1)


@pytest.mark.parametrize("format", ["flac", "mp3", "ogg", "m4a"])
def test_what_is_decoded_of_every_format_holds_too(tmp_path, format):
    words = {"title": "A song (AI cover)", "artist": "demo", "comment": "AI-generated cover"}
    report = mix_song([track(song(3.0))], tmp_path / f"a.{format}", options=EncodeOptions(**words))
    result = read_audio(report.path)
    assert os.listdir(tmp_path) == [report.path.name]
    assert result.frames == report.frames == 3 * RATE
    assert loudness_by_another(result) == pytest.approx(-14, abs=0.3)
    assert true_peak_dbtp(result) <= -1.0 and report.true_peak_dbtp <= -1.0
    assert {name: read_tags(report.path)[name] for name in words} == words


def test_loud_targets_work_the_limiter_and_still_hold(tmp_path):
    report = mix_song([track(song())], tmp_path / "a.wav", MixSettings(target_lufs=-11, ceiling_dbtp=-2))
    result = read_audio(report.path)
    assert loudness_by_another(result) == pytest.approx(-11, abs=0.2)
    assert overs_dbtp(result) <= -2 and report.limiter_db > 3 and "peaks held" in report.reason


def test_peaks_are_not_crushed_beyond_what_is_allowed(tmp_path):
    clicks = np.zeros(5 * RATE)
    clicks[::22_050] = 0.5
    report = mix_song([track(clicks)], tmp_path / "a.wav", MixSettings(most_limiting_db=10))
    assert report.lufs < -20 and report.limiter_db == pytest.approx(10, abs=0.2) and "stand far above" in report.reason
    assert true_peak_dbtp(read_audio(report.path)) <= -1


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros((2, RATE)), "silence: left as it is"),
        (np.full((1, RATE), 1e-5), "silence: left as it is"),
        (song(0.3) * 0.2, "0.30 s, too short to have a loudness: left as it is"),
        (song(0.3) * 10, "too short to have a loudness: turned down to -1 dBTP"),
    ],
)
def test_what_has_no_loudness_is_left_alone_with_a_reason(tmp_path, samples, words):
    options = EncodeOptions(sample_format="float32")
    report = mix_song([track(samples)], tmp_path / "a.wav", options=options)
    result = read_audio(report.path)
    assert words in report.reason and report.limiter_db == 0
    assert true_peak_dbtp(result) <= -1
    if "left" in words:
        np.testing.assert_array_equal(np.atleast_2d(result.samples), np.atleast_2d(samples).astype(np.float32))


def test_a_gain_is_one_multiplication_where_nothing_is_limited(tmp_path):
    samples = 0.05 * np.random.default_rng(0).uniform(-1, 1, (2, 2 * RATE)).astype(np.float32)
    options = EncodeOptions(sample_format="float32")
    report = mix_song([track(samples)], tmp_path / "a.wav", options=options)
    result = read_audio(report.path).samples
    assert report.limiter_db == 0
    np.testing.assert_allclose(result, samples * 10 ** (report.gain_db / 20), rtol=1e-5)


# --- tracks ----------------------------------------------------------------------------------------------------------


def test_tracks_of_any_rate_channels_and_length_line_up():
    time = {rate: np.arange(rate) / rate for rate in (16_000, RATE)}
    voice = 0.1 * np.sin(2 * np.pi * 440 * time[16_000])
    band = np.stack([0.2 * np.sin(2 * np.pi * 440 * time[RATE])] * 2)
    total = np.concatenate(list(lined_up([track(voice, 16_000, -6), track(band)], RATE, 2)), axis=1)
    wanted = (0.2 + 0.1 * 10 ** (-6 / 20)) * np.sin(2 * np.pi * 440 * time[RATE])
    assert total.shape == (2, RATE)
    np.testing.assert_allclose(total[:, 2_000:-2_000], np.stack([wanted] * 2)[:, 2_000:-2_000], atol=1e-3)
    longer = np.concatenate(list(lined_up([track(np.ones(10)), track(np.ones(25))], RATE, 1)), axis=1)
    np.testing.assert_array_equal(longer[0], [2] * 10 + [1] * 15)


def test_surround_is_mixed_down_as_the_standard_says():
    block = np.eye(6, dtype=np.float32)
    np.testing.assert_allclose(
        to_channels(block, 2), [[1, 0, 0.7071, 0, 0.7071, 0], [0, 1, 0.7071, 0, 0, 0.7071]], atol=1e-4
    )
    np.testing.assert_array_equal(to_channels(np.ones((1, 3), np.float32), 2), np.ones((2, 3)))


@settings(max_examples=10, deadline=None)
@given(size=st.integers(1_000, 200_000), other=st.integers(1_000, 200_000))
def test_the_sum_does_not_depend_on_blocks(size, other):
    samples, voice = song(2.0), song(1.0, 16_000, 1)
    once = list(lined_up([track(samples, size=size), track(voice, 16_000, size=other)], RATE, 2))
    again = list(lined_up([track(samples), track(voice, 16_000)], RATE, 2))
    assert [block.shape[1] for block in once] == [MIX_FRAMES, 2 * RATE - MIX_FRAMES]
    np.testing.assert_array_equal(np.concatenate(once, axis=1), np.concatenate(again, axis=1))


def test_same_tracks_same_bytes(tmp_path):
    for name, size in (("a.wav", 1_000), ("b.wav", 100_000)):
        mix_song([track(song(1.0), size=size)], tmp_path / name)
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


# --- the limiter -----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    needed=st.lists(st.sampled_from([0.0, 0.0, 0.0, 1.0, 6.0, 20.0]), min_size=1, max_size=120),
    cut=st.integers(0, 120), ahead=st.sampled_from([0.0007, 0.003, 0.02]),
)  # fmt: skip
def test_the_limiter_never_gives_less_than_needed_and_does_not_depend_on_blocks(needed, cut, ahead):
    needed = np.array(needed)
    curve = LimiterCurve(ahead, 0.05, RATE)
    got = np.concatenate([curve.push(needed[:cut]), curve.push(needed[cut:]), curve.flush()])
    whole = LimiterCurve(ahead, 0.05, RATE)
    np.testing.assert_allclose(got, np.concatenate([whole.push(needed), whole.flush()]), atol=1e-9)
    assert len(got) == len(needed) + 1
    assert (got[:-1] >= needed - 1e-9).all() and (got[1:] >= needed - 1e-9).all()
    assert got.max() <= needed.max() + 1e-9


def test_gains_move_before_a_peak_and_recover_after_it():
    peaks = np.zeros(400)
    peaks[100] = 6.0
    gains = 20 * np.log10(np.concatenate(list(border_gains(iter([peaks]), 0.0, LimiterCurve(0.005, 0.1, RATE), 0.0))))
    ahead = round(0.005 / (control_hop(RATE) / RATE))
    assert not gains[: 100 - ahead].any() and gains[100] == pytest.approx(-6) and gains[101] == pytest.approx(-6)
    assert np.abs(np.diff(gains)).max() < 6 / ahead * 2.2
    assert -0.8 < gains[399] < 0 or gains[399] == 0


@settings(max_examples=15, deadline=None)
@given(frames=st.integers(1, 5_000), cut=st.integers(0, 5_000), rate=st.sampled_from([8_000, 44_100, 96_000, 192_000]))
def test_true_peaks_per_hop_do_not_depend_on_blocks(frames, cut, rate):
    samples = np.random.default_rng(frames).uniform(-1, 1, (2, frames)).astype(np.float32)
    finder, whole = HopPeaks(rate, 2), HopPeaks(rate, 2)
    got = np.concatenate([finder.push(samples[:, :cut]), finder.push(samples[:, cut:]), finder.flush()])
    np.testing.assert_allclose(got, np.concatenate([whole.push(samples), whole.flush()]), atol=1e-6)
    hop = control_hop(rate)
    assert len(got) == -(-frames // hop)
    sample_peaks = np.abs(np.pad(samples, ((0, 0), (0, -frames % hop)))).reshape(2, -1, hop).max(axis=(0, 2))
    assert (got >= sample_peaks).all()


def test_peaks_between_samples_are_found():
    frames = np.arange(RATE)
    between = (np.sin(2 * np.pi * 0.25 * frames + np.pi / 4) * np.hanning(RATE))[None].astype(np.float32)
    finder = HopPeaks(RATE, 1)
    peak = max(finder.push(between).max(), finder.flush().max())
    assert 20 * np.log10(peak) == pytest.approx(0.0, abs=0.03)  # the samples stop at -3 dB


def test_gains_are_lines_between_borders():
    block = np.ones((2, 8), np.float32)
    np.testing.assert_allclose(apply_gains(block, np.array([1, 0.5, 0.5]), 4, 2.0)[1], [2, 1.75, 1.5, 1.25, 1, 1, 1, 1])


def test_what_the_plan_expects_is_what_comes_out():
    samples = song(3.0)
    curves = MixCurves(RATE, 2)
    for start in range(0, samples.shape[1], MIX_FRAMES):
        curves.push(samples[:, start : start + MIX_FRAMES])
    curves.finish()
    expected, reduction = curves.behind_limiter(12.0, -1.0, LimiterCurve(0.005, 0.12, RATE))
    gains = np.concatenate(list(border_gains(curves.peaks_db(), 12.0, LimiterCurve(0.005, 0.12, RATE), -1.0)))
    padded = np.pad(samples, ((0, 0), (0, -samples.shape[1] % curves.hop)))
    result = apply_gains(padded, gains, curves.hop, 10 ** (12 / 20))[:, : samples.shape[1]]
    curves.close()
    assert loudness_lufs(Audio(result, RATE)) == pytest.approx(expected, abs=0.1)
    assert reduction == pytest.approx(-20 * np.log10(gains.min())) and reduction > 3


# --- doors -----------------------------------------------------------------------------------------------------------


def test_a_rate_the_format_lacks_is_changed_with_a_reason(tmp_path):
    report = mix_song([track(song(1.0, 40_000), 40_000)], tmp_path / "a.mp3")
    assert report.rate == 44_100 and "mp3 has no 40000 Hz" in report.reason
    assert mix_song([track(song(1.0, 40_000), 40_000)], tmp_path / "a.flac").rate == 40_000
    with pytest.raises(OutputError, match="40000 Hz"):
        mix_song([track(song(1.0))], tmp_path / "b.mp3", rate=40_000)


def test_progress_rises_and_a_closed_mix_leaves_nothing(tmp_path):
    seen = []
    report = mix_song([track(song(4.0))], tmp_path / "a.wav", on_progress=seen.append)
    fractions = [step.fraction for step in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1 and "LUFS" in seen[-1].message
    assert report.as_dict()["path"] == str(tmp_path / "a.wav")
    for stop in (1, 4):
        for name in ("b.flac", "b.mp3"):
            steps = mix_steps([track(song(4.0))], tmp_path / name)
            for _ in range(stop):
                next(steps)
            steps.close()
    assert os.listdir(tmp_path) == ["a.wav"]


def test_bad_tracks_and_places_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(AudioError, match="nothing to mix"):
        mix_song([], tmp_path / "a.wav")
    with pytest.raises(AudioError, match="no samples"):
        mix_song([Track("x", [], RATE, 1)], tmp_path / "a.wav")
    with pytest.raises(AudioError, match="the band holds nan"):
        mix_song([track(np.array([0.0, np.nan]))], tmp_path / "a.wav")
    with pytest.raises(AudioError, match="2 channels came in x"):
        mix_song([Track("x", [np.zeros((2, 5), np.float32)], RATE, 1)], tmp_path / "a.wav")
    with pytest.raises(ConfigError, match="gain of x"):
        Track("x", [], RATE, 1, gain_db=30)
    with pytest.raises(OutputError, match="does not exist"):
        mix_song([track(song(1.0))], tmp_path / "none" / "a.wav")
    with pytest.raises(ConfigError, match="target_lufs"):
        MixSettings(target_lufs=0)
    with pytest.raises(ConfigError, match="no setting volume"):
        MixSettings().changed(volume=1)
    assert os.listdir(tmp_path) == []
