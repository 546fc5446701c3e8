"""Another key: the pitch to a hundredth of a semitone, the length to the frame, drums in place; and keys that fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rvc_spark.audio import read_audio
from rvc_spark.covers.key_proposal import music_key_for, propose_keys
from rvc_spark.covers.key_shift import KeyShifter, shift_key, stretch_ratio
from rvc_spark.errors import AudioError, ConfigError
from rvc_spark.infer.pitch_edit import VoiceRange

RATE = 44_100
ACCOMPANIMENT = Path(__file__).resolve().parents[2] / "shared" / "data" / "stems" / "accompaniment.flac"


def moved(samples: np.ndarray, semitones: float, rate: int = RATE) -> np.ndarray:
    return np.concatenate(list(shift_key([samples], rate, len(samples), semitones)), axis=1)


def tones(hertz: list[float], frames: int, rate: int = RATE) -> np.ndarray:
    time = np.arange(frames) / rate
    return (0.1 * sum(np.sin(2 * np.pi * hz * time + hz) for hz in hertz))[None].astype(np.float32)


def explained(samples: np.ndarray, hertz: list[float], rate: int) -> tuple[float, np.ndarray]:
    """How many dB the best sum of these tones stands above what is left, and their amplitudes."""
    middle = samples[rate // 2 : -rate // 2]
    phase = 2 * np.pi * np.outer(hertz, np.arange(len(middle)) / rate)
    basis = np.concatenate([np.cos(phase), np.sin(phase)]).T
    weights, *_ = np.linalg.lstsq(basis, middle, rcond=None)
    rest = middle - basis @ weights
    return 10 * np.log10(np.var(middle) / np.var(rest)), np.hypot(*weights.reshape(2, -1))


@pytest.mark.parametrize("semitones", [-7, -3.5, -1, 2, 5, 12])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_tone_is_where_it_should_be_to_a_tenth_of_a_cent(semitones, rate):
    result = moved(tones([440], 3 * rate, rate), semitones, rate)[0]
    spectrum = np.log(np.abs(np.fft.rfft(result[rate // 2 : -rate // 2] * np.hanning(2 * rate))) + 1e-12)
    peak = int(np.argmax(spectrum))
    left, top, right = spectrum[peak - 1 : peak + 2]
    hertz = (peak + 0.5 * (left - right) / (left - 2 * top + right)) / 2
    assert 1200 * np.log2(hertz / 440) == pytest.approx(100 * semitones, abs=0.1)
    assert np.std(result[rate // 2 : -rate // 2]) == pytest.approx(0.1 / np.sqrt(2), rel=0.01)


@pytest.mark.parametrize("semitones", [-5, -2, 3, 6])
def test_a_chord_stays_clean_and_balanced(semitones):
    chord = [110, 220, 277.18, 329.63, 440, 554.4, 659.3]
    result = moved(tones(chord, 3 * RATE), semitones)[0]
    clean_db, amplitudes = explained(result, [hz * 2 ** (semitones / 12) for hz in chord], RATE)
    assert clean_db > 35
    np.testing.assert_allclose(amplitudes, 0.1, rtol=0.02)


@pytest.mark.parametrize("semitones", [-3, 2, 5])
def test_drums_stay_in_place(semitones):
    random, places = np.random.default_rng(0), np.arange(8_000, 80_000, 12_000)
    samples = np.zeros((1, 88_200), np.float32)
    for place in places:
        samples[0, place : place + 800] = random.standard_normal(800) * np.exp(-np.arange(800) / 150)
    result = moved(samples, semitones)[0]
    for place in places:
        energy = result[place - 4_000 : place + 6_000] ** 2
        assert energy[4_000 - 220 : 5_000].sum() > 0.85 * energy.sum()  # 5 ms before to 23 ms after
        onset = int(np.argmax(energy > 0.2 * energy.max())) - 4_000
        assert abs(onset) < 0.006 * RATE


def test_both_channels_keep_their_places_even_against_each_other():
    left = tones([220, 331, 450], RATE)
    same = moved(np.concatenate([left, 0.5 * left]), 3)
    np.testing.assert_allclose(same[1], 0.5 * same[0], atol=1e-5)
    against = moved(np.concatenate([left, -left]), 3)
    np.testing.assert_allclose(against[1], -against[0], atol=1e-5)
    assert np.std(against[0]) == pytest.approx(np.std(left), rel=0.05)


@settings(max_examples=12, deadline=None)
@given(
    frames=st.integers(1, 20_000), semitones=st.sampled_from([-24, -12, -5.3, 0.01, 4, 12, 24]),
    cuts=st.lists(st.integers(0, 20_000), max_size=5),
)  # fmt: skip
def test_length_is_exact_and_blocks_do_not_matter(frames, semitones, cuts):
    samples = (0.1 * np.random.default_rng(frames).standard_normal((2, frames))).astype(np.float32)
    whole = moved(samples, semitones)
    assert whole.shape == samples.shape and np.isfinite(whole).all()
    shifter = KeyShifter(RATE, 2, semitones)
    pieces = [shifter.push(block) for block in np.split(samples, sorted(cuts), axis=1)]
    np.testing.assert_array_equal(np.concatenate([*pieces, shifter.flush()], axis=1), whole)


def test_no_shift_passes_bit_for_bit():
    samples = np.random.default_rng(0).standard_normal((2, 5_000)).astype(np.float32)
    np.testing.assert_array_equal(moved(samples, 0), samples)


def test_ratios_are_right_to_a_hundredth_of_a_cent():
    for semitones in np.arange(-24, 24.01, 0.37):
        assert abs(1200 * np.log2(float(stretch_ratio(semitones))) - 100 * semitones) < 0.01 or abs(semitones) < 0.01


def test_what_cannot_be_shifted_is_refused():
    for semitones in (25, float("nan"), True):
        with pytest.raises(ConfigError, match="semitones"):
            KeyShifter(RATE, 1, semitones)
    with pytest.raises(AudioError, match="2 channels"):
        KeyShifter(RATE, 1, 3).push(np.zeros((2, 10), np.float32))


@pytest.mark.skipif(not ACCOMPANIMENT.is_file(), reason="the shared recordings are not here")
def test_music_keeps_its_rhythm_and_level():
    music = read_audio(ACCOMPANIMENT).samples[:, : 6 * RATE]

    def onsets(samples: np.ndarray) -> np.ndarray:
        frames = np.lib.stride_tricks.sliding_window_view(samples.mean(axis=0), 1_024)[::256] * np.hanning(1_024)
        spectra = np.log1p(100 * np.abs(np.fft.rfft(frames)))
        return np.maximum(np.diff(spectra, axis=0), 0).sum(axis=1)[20:-20]

    for semitones in (-2, 3):
        result = moved(music, semitones)
        assert np.corrcoef(onsets(music), onsets(result))[0, 1] > 0.9
        assert np.std(result) == pytest.approx(np.std(music), rel=0.06)


# --- keys ------------------------------------------------------------------------------------------------------------


def sung(hertz: float) -> np.ndarray:
    """Three seconds around a pitch, a third of them unvoiced."""
    f0 = hertz * 2 ** (np.random.default_rng(0).normal(0, 2, 300) / 12)
    f0[::3] = 0
    return f0


@pytest.mark.parametrize(
    ("voice", "band"),
    [(-12, 0), (-7, 5), (-5, -5), (0, 0), (3, 3), (6, 6), (-6, 6), (7, -5), (9, -3), (12, 0), (2.5, 2.5)],
)
def test_the_band_follows_by_the_shortest_way(voice, band):
    assert music_key_for(voice) == band
    assert propose_keys(np.zeros(0), None, voice_key=voice).in_tune


def test_an_octave_keeps_the_song_in_its_key():
    plan = propose_keys(sung(120), VoiceRange(250.0))
    assert (plan.voice_key, plan.music_key, plan.in_tune) == (12, 0, True)
    assert "octave" in plan.music_reason
    near = propose_keys(sung(220), VoiceRange(250.0))
    assert (near.voice_key, near.music_key) == (0, 0)


def test_other_distances_move_the_band_too():
    plan = propose_keys(sung(150), VoiceRange(150 * 2 ** (6 / 12)))
    assert plan.voice_key == pytest.approx(6, abs=1) and plan.in_tune and plan.music_key != 0
    assert "further" in plan.voice_reason and "follows" in plan.music_reason


def test_what_a_person_sets_is_kept():
    plan = propose_keys(sung(120), VoiceRange(250.0), music_key=-3)
    assert (plan.voice_key, plan.music_key, plan.in_tune) == (9, -3, True)
    both = propose_keys(sung(120), VoiceRange(250.0), voice_key=12, music_key=1)
    assert (both.voice_key, both.music_key, both.in_tune) == (12, 1, False)
    assert both.voice_reason == both.music_reason == "as set"


def test_without_a_range_or_a_pitch_nothing_moves():
    assert (
        propose_keys(sung(120), None).voice_key == 0 and "no pitch range" in propose_keys(sung(120), None).voice_reason
    )
    assert propose_keys(np.zeros(50), VoiceRange(250.0)).voice_key == 0


@pytest.mark.parametrize("key", [25, float("inf"), float("nan"), True])
def test_keys_out_of_range_are_refused(key):
    with pytest.raises(ConfigError, match="music_key"):
        propose_keys(sung(120), None, music_key=key)
