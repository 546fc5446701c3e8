"""The gate closes where the source was silent, passes bit for bit where it sang, and needs no look at block borders."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rvc_spark.covers.gate import (
    NO_LEVEL_DB,
    Activity,
    GateSettings,
    SilenceGate,
    gate_silence,
    measure_activity,
    open_spans,
)
from rvc_spark.errors import AudioError, ConfigError

RATE = 16_000


def phrases(pattern: str, rate: int = RATE, amplitude: float = 0.2) -> np.ndarray:
    """Half a second of singing for every #, of nothing for every dot. float32 [n]."""
    on = np.repeat([mark == "#" for mark in pattern], rate // 2)
    return (amplitude * on * np.sin(2 * np.pi * 220 * np.arange(len(on)) / rate)).astype(np.float32)


def hum(frames: int, channels: int = 1) -> np.ndarray:
    return (0.01 * np.random.default_rng(0).standard_normal((channels, frames)) + 0.1).astype(np.float32)


def test_levels_are_rms_in_decibels_per_ten_milliseconds():
    levels = measure_activity([phrases("#.")], RATE).levels
    assert levels.shape == (100,) and levels.dtype == np.float32
    np.testing.assert_allclose(levels[:50], 20 * np.log10(0.2 / np.sqrt(2)), atol=0.5)
    assert (levels[51:] == NO_LEVEL_DB).all()


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 30_000), max_size=8), rate=st.sampled_from([8_000, 11_025, 22_050, 44_100]))
def test_levels_do_not_depend_on_blocks(cuts, rate):
    samples = hum(30_000, 2)
    blocks = np.split(samples, sorted(cuts), axis=1)
    got, whole = measure_activity(blocks, rate).levels, measure_activity([samples], rate).levels
    assert len(got) == len(whole) and abs(len(got) - 30_000 / rate * 100) <= 1
    np.testing.assert_allclose(got, whole, atol=1e-3)


def test_gaps_are_turned_down_and_singing_passes_bit_for_bit():
    source = phrases("..##....##..")
    converted = hum(len(source), 2)
    gate = SilenceGate(measure_activity([source], RATE), RATE)
    result = gate.push(converted)
    second = RATE
    sung = [slice(1 * second, 2 * second), slice(4 * second, 5 * second)]
    for place in sung:
        np.testing.assert_array_equal(result[:, place], converted[:, place])
    for place in (
        slice(0, int(0.9 * second)),
        slice(int(2.4 * second), int(3.9 * second)),
        slice(int(5.4 * second), None),
    ):
        np.testing.assert_allclose(result[:, place], converted[:, place] * 1e-3, rtol=1e-3)
    assert gate.muted_seconds == pytest.approx(6 - 2 - 2 * (0.03 + 0.15 + 0.01 + 0.12), abs=0.05)


def test_fades_are_smooth():
    source = phrases("..##..")
    gain = np.concatenate(
        list(gate_silence([np.ones((1, len(source)), np.float32)], measure_activity([source], RATE), RATE))
    )
    assert np.abs(np.diff(gain[0])).max() < 1.1 * np.pi / 2 / (0.01 * RATE)  # the steepest slope of the shortest fade
    assert gain.max() == 1 and gain.min() == pytest.approx(1e-3)


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 96_000), max_size=10))
def test_the_gate_does_not_depend_on_blocks(cuts):
    source = phrases("..##....##..")
    activity, converted = measure_activity([source], RATE), hum(len(source))
    whole = SilenceGate(activity, RATE).push(converted)
    pieces = list(gate_silence(np.split(converted, sorted(cuts), axis=1), activity, RATE))
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


def test_source_and_voice_may_differ_in_rate_and_level():
    for amplitude in (0.5, 0.005):  # the threshold follows the singer
        activity = measure_activity([phrases("..##..", 44_100, amplitude)], 44_100)
        spans = open_spans(activity, GateSettings())
        np.testing.assert_allclose(spans, [[1 - 0.03, 2 + 0.15]], atol=0.011)
        result = SilenceGate(activity, 8_000).push(np.ones((1, 24_000), np.float32))
        assert (result[0, 8_000:16_000] == 1).all() and result[0, :7_000].max() < 0.002


def test_short_gaps_and_hysteresis_keep_it_open():
    source = np.concatenate([phrases("##"), np.zeros(RATE // 10, np.float32), phrases("##")])
    assert len(open_spans(measure_activity([source], RATE), GateSettings())) == 1
    loud, low = np.full(50, -20.0), np.full(50, -64.0)
    between = np.full(100, -20.0 - 42 - 3)  # below what opens it, above what closes it
    held = Activity(np.concatenate([loud, between, np.full(50, -90.0)]).astype(np.float32))
    chosen = GateSettings(floor_db=-100)
    assert open_spans(held, chosen)[0, 1] == pytest.approx(1.5 + 0.15)
    never = Activity(np.concatenate([low, between]).astype(np.float32))
    assert len(open_spans(Activity(np.concatenate([between, loud]).astype(np.float32)), chosen)) == 1
    assert open_spans(never, GateSettings(floor_db=-60)).shape == (0, 2)


def test_silence_closes_and_a_depth_of_zero_is_off():
    voice = hum(RATE)
    silent = measure_activity([np.zeros(RATE, np.float32)], RATE)
    np.testing.assert_allclose(SilenceGate(silent, RATE).push(voice), voice * 1e-3, rtol=1e-3)
    assert SilenceGate(silent, RATE, GateSettings(depth_db=0)).push(voice) is voice
    empty = measure_activity([], RATE)
    assert empty.levels.shape == (0,) and SilenceGate(empty, RATE).push(voice).max() < 0.001


def test_a_voice_longer_than_its_source_is_silent_beyond_it():
    result = SilenceGate(measure_activity([phrases("##")], RATE), RATE).push(np.ones((1, 3 * RATE), np.float32))
    assert result[0, :RATE].min() == 1 and result[0, 2 * RATE :].max() < 0.002


def test_activity_is_kept_and_read_back():
    activity = measure_activity([phrases("#.#")], RATE)
    np.testing.assert_array_equal(Activity.from_array(activity.to_array()).levels, activity.levels)
    for bad in (np.zeros((2, 2)), np.array([np.nan]), np.array(["a"]), np.array([1], int)):
        with pytest.raises(AudioError, match="activity"):
            Activity.from_array(bad)


@pytest.mark.parametrize(("name", "value"), [("depth_db", -1), ("hold", 3), ("attack", 0), ("range_db", float("nan"))])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        GateSettings(**{name: value})
    with pytest.raises(ConfigError, match="no setting threshold"):
        GateSettings().changed(threshold=1)
