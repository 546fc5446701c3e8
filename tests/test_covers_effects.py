"""Effects do what their curves say, keep length and place, pass untouched when off, and do not depend on blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import freqz, sosfreqz

from rvc_spark.covers import biquads
from rvc_spark.covers.dynamics import Compressor, Release, control_hop
from rvc_spark.covers.effects import CHAIN_FRAMES, EffectChain, EffectSettings, apply_effects
from rvc_spark.covers.reverb import Convolver, impulse_response
from rvc_spark.errors import AudioError, ConfigError

RATE = 44_100
OFF = EffectSettings.off()


def noise(frames: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal((channels, frames))).astype(np.float32)


def tone(hertz: float, seconds: float, amplitude: float = 0.5, rate: int = RATE) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate))[None].astype(np.float32)


def through(samples: np.ndarray, chosen: EffectSettings, rate: int = RATE, out: int | None = None) -> np.ndarray:
    return np.concatenate(list(apply_effects([samples], chosen, rate, len(samples), out)), axis=1)


def level_db(samples: np.ndarray) -> float:
    return 10 * np.log10(np.mean(np.square(samples, dtype=float)))


def gain_at(row: np.ndarray, hertz: float, rate: int = RATE) -> float:
    _, response = freqz(row[:3], row[3:], [2 * np.pi * hertz / rate])
    return 20 * np.log10(abs(response[0]))


def test_filters_have_the_responses_of_their_names():
    high = biquads.high_pass(100, RATE)
    assert [gain_at(high, hz) for hz in (100, 50, 25, 5_000)] == pytest.approx([-3.01, -12.3, -24.1, 0], abs=0.1)
    assert gain_at(biquads.low_pass(1_000, RATE), 4_000) == pytest.approx(-24.5, abs=0.3)
    bell = biquads.peaking(1_000, 6, 1.0, RATE)
    assert [gain_at(bell, hz) for hz in (1_000, 30, 20_000)] == pytest.approx([6, 0, 0], abs=0.1)
    assert [gain_at(biquads.low_shelf(200, -9, RATE), hz) for hz in (10, 200, 5_000)] == pytest.approx(
        [-9, -4.5, 0], abs=0.1
    )
    assert [gain_at(biquads.high_shelf(5_000, 4, RATE), hz) for hz in (50, 5_000, 20_000)] == pytest.approx(
        [0, 2, 4], abs=0.1
    )


def test_the_equaliser_is_its_filters_and_nothing_else():
    chosen = OFF.changed(high_pass_hz=90, low_shelf_db=3, body_db=-4, presence_db=5, air_db=-6)
    impulse = np.zeros((1, 3 * CHAIN_FRAMES), np.float32)
    impulse[0, 0] = 1
    rows = [
        biquads.high_pass(90, RATE),
        biquads.low_shelf(180, 3, RATE),
        biquads.peaking(320, -4, 0.9, RATE),
        biquads.peaking(3_200, 5, 0.8, RATE),
        biquads.high_shelf(9_000, -6, RATE),
    ]
    _, wanted = sosfreqz(np.array(rows), np.arange(0, impulse.shape[1] // 2 + 1) * 2 * np.pi / impulse.shape[1])
    got = np.fft.rfft(through(impulse, chosen)[0])
    np.testing.assert_allclose(abs(got[5:]), abs(wanted[5:]), atol=2e-4)


def test_everything_off_passes_bit_for_bit():
    samples = noise(CHAIN_FRAMES + 777, 2)
    np.testing.assert_array_equal(through(samples, OFF), samples)
    np.testing.assert_array_equal(through(samples[:1], OFF, out=2), np.repeat(samples[:1], 2, axis=0))


@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(0, 2 * CHAIN_FRAMES), max_size=6), channels=st.sampled_from([1, 2]))
def test_results_do_not_depend_on_blocks(cuts, channels):
    samples = noise(2 * CHAIN_FRAMES + 333, channels)
    chain = EffectChain(EffectSettings(reverb_seconds=0.3), RATE, channels)
    blocks = [chain.push(block) for block in np.split(samples, sorted(cuts), axis=1)]
    joined = np.concatenate([*blocks, chain.flush()], axis=1)
    assert joined.shape == (2, samples.shape[1])
    np.testing.assert_array_equal(joined, through(samples, EffectSettings(reverb_seconds=0.3)))


@pytest.mark.parametrize("rate", [8_000, 11_025, 40_000, 48_000, 96_000, 192_000])
def test_every_rate_works_and_keeps_length(rate):
    samples = noise(rate // 2 + 1)
    result = through(samples, EffectSettings(), rate)
    assert result.shape == (2, samples.shape[1]) and np.isfinite(result).all()
    assert 2 * np.abs(result).max() > np.abs(samples).max() / 4


def test_nothing_is_delayed():
    samples = np.zeros((1, RATE), np.float32)
    samples[0, 20_000:20_600] = np.hanning(600) * noise(600)[0]
    result = through(samples, EffectSettings())
    lags = np.arange(-200, 201)
    match = [float(np.dot(np.roll(result[0], -lag), samples[0])) for lag in lags]
    assert abs(lags[int(np.argmax(match))]) <= 1
    assert np.abs(result[:, :20_000]).max() < 1e-8


# --- dynamics --------------------------------------------------------------------------------------------------------


def test_the_compressor_holds_its_ratio():
    chosen = OFF.changed(compressor_ratio=4.0, compressor_threshold_db=-20, compressor_knee_db=0)
    settled = slice(RATE, 2 * RATE)
    for amplitude_db, wanted in ((-30, -30), (-20, -20), (-8, -17), (0, -15)):
        result = through(tone(1_000, 2, 10 ** (amplitude_db / 20)), chosen)[:, settled]
        assert 20 * np.log10(np.abs(result).max()) == pytest.approx(wanted, abs=0.3)


def test_the_knee_is_smooth_and_meets_both_lines():
    compressor = Compressor(-20, 3, 10, (0.01, 0.1), 0, RATE)
    levels = np.linspace(-40, 0, 4_001)
    curve = compressor.wanted_db(levels)
    assert not curve[levels <= -25].any()
    np.testing.assert_allclose(curve[levels >= -15], (levels[levels >= -15] + 20) * 2 / 3, atol=1e-9)
    assert np.abs(np.diff(curve, 2)).max() < 1e-4 and (np.diff(curve) >= -1e-12).all()


def test_attack_and_release_take_their_time():
    chosen = OFF.changed(
        compressor_ratio=20,
        compressor_threshold_db=-40,
        compressor_knee_db=0,
        compressor_attack=0.05,
        compressor_release=0.2,
    )
    loud, soft = tone(1_000, 1, 0.5), tone(1_000, 1, 0.005)
    samples = np.concatenate([soft, loud, soft], axis=1)
    before, after = (np.linalg.norm(sound.reshape(-1, 441), axis=1) for sound in (samples, through(samples, chosen)))
    curve = 20 * np.log10(before / after)  # per 10 ms
    deepest = curve[150:199].mean()
    assert deepest == pytest.approx((40 - 6.02) * 0.95, abs=0.3)
    assert curve[104] == pytest.approx(deepest * (1 - np.exp(-1)), rel=0.15)
    assert curve[224] == pytest.approx(deepest * np.exp(-1), rel=0.4)  # release, then the attack's lag behind it


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 40), min_size=1, max_size=60), st.integers(0, 60))
def test_the_release_without_a_loop_is_the_loop(wanted, cut):
    release, reference, last = Release(0.05, 0.001), [], 0.0
    for value in wanted:
        last = max(value, last * np.exp(-0.001 / 0.05))
        reference.append(last)
    wanted = np.array(wanted)
    got = np.concatenate([release.push(wanted[:cut]), release.push(wanted[cut:])])
    np.testing.assert_allclose(got, reference, atol=1e-9)


def test_the_de_esser_takes_the_hiss_and_leaves_the_vowel():
    chosen = OFF.changed(de_ess_db=8)
    vowel = sum(tone(220 * k, 1, 0.2 / k**1.5) for k in range(1, 30))
    hiss = noise(RATE, seed=3)
    hiss = np.fft.irfft(np.fft.rfft(hiss) * (np.fft.rfftfreq(RATE, 1 / RATE) > 6_000), RATE).astype(np.float32)
    result = through(np.concatenate([vowel, hiss, vowel], axis=1), chosen)
    assert level_db(result[:, RATE + 4_410 : 2 * RATE - 4_410]) - level_db(hiss) == pytest.approx(-8, abs=1.5)
    np.testing.assert_allclose(result[:, 2_000 : RATE - 2_000], vowel[:, 2_000:-2_000], atol=0.003)
    soft = through(hiss * 0.05, chosen)  # it is the share that counts, not the level
    assert level_db(soft[:, 4_410:]) - level_db(hiss * 0.05) == pytest.approx(-8, abs=1.5)


def test_the_control_rate_suits_the_rate():
    assert [control_hop(rate) for rate in (8_000, 44_100, 48_000, 96_000, 192_000)] == [4, 32, 32, 64, 128]
    assert all(CHAIN_FRAMES % control_hop(rate) == 0 for rate in (8_000, 22_050, 44_100, 192_000))


# --- the room --------------------------------------------------------------------------------------------------------


def test_the_room_decays_as_long_as_asked_and_is_wide():
    response = impulse_response(1.0, 0.02, 20_000, RATE, 0)
    energy = np.cumsum(response[0, ::-1] ** 2)[::-1]  # Schroeder's backward integration
    curve = 10 * np.log10(energy / energy[0])
    t5, t35 = (np.argmax(curve < level) / RATE for level in (-5, -35))
    assert 2 * (t35 - t5) == pytest.approx(1.0, abs=0.15)  # T30, times two
    assert np.linalg.norm(response, axis=1) == pytest.approx([1, 1])
    assert abs(response[0] @ response[1]) < 0.2
    assert np.abs(response[:, : round(0.02 * RATE)]).max() < 1e-9
    np.testing.assert_array_equal(response, impulse_response(1.0, 0.02, 20_000, RATE, 0))
    assert not np.array_equal(response, impulse_response(1.0, 0.02, 20_000, RATE, 1))


def test_the_high_end_dies_sooner():
    response = impulse_response(2.0, 0.0, 3_000, RATE, 0)[0]
    late = np.abs(np.fft.rfft(response[RATE // 2 : RATE]))
    early = np.abs(np.fft.rfft(response[4_410 : 4_410 + RATE // 2]))
    hz = np.fft.rfftfreq(RATE // 2, 1 / RATE)
    falls = [np.sum(late[band] ** 2) / np.sum(early[band] ** 2) for band in ((hz > 500) & (hz < 1_500), hz > 8_000)]
    assert falls[1] < 0.2 * falls[0]


def test_convolution_in_blocks_is_convolution():
    sound, response = noise(10_000)[0], noise(3_001, 2, seed=1).astype(float)
    convolver = Convolver(response, 1_024)
    got = np.concatenate([convolver.push(sound[start : start + 1_024]) for start in range(0, 10_000, 1_024)], axis=1)
    wanted = np.stack([np.convolve(sound, side)[:10_000] for side in response])
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_a_room_makes_mono_wide_unless_it_may_not():
    samples = tone(440, 1)
    wide = through(samples, EffectSettings())
    assert len(wide) == 2 and not np.allclose(wide[0], wide[1], atol=1e-3)
    assert len(through(samples, EffectSettings(), out=1)) == 1
    assert EffectChain(OFF, RATE, 1).channels_out == 1 and EffectChain(EffectSettings(), RATE, 6).channels_out == 6


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("high_pass_hz", 600), ("high_pass_hz", 3), ("body_db", -30), ("compressor_ratio", 0.5), ("reverb", float("nan")),
     ("reverb", "wet"), ("seed", 1.5), ("de_ess_threshold_db", 0)],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        EffectSettings(**{name: value})


def test_unknown_effects_and_wrong_blocks_are_refused():
    with pytest.raises(ConfigError, match="chorus"):
        OFF.changed(chorus=1)
    with pytest.raises(AudioError, match="2 channels"):
        EffectChain(OFF, RATE, 1).push(noise(10, 2))
    with pytest.raises(AudioError, match="cannot give 3"):
        EffectChain(OFF, RATE, 1, 3)


def test_silence_stays_silent():
    silence = np.zeros((1, 3 * CHAIN_FRAMES), np.float32)
    assert not through(silence, EffectSettings()).any()
