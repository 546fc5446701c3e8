"""Windows of streamed speech: every token delivered once, in order, with the context it needs, however tokens come."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rvc_spark.errors import ConfigError
from rvc_spark.tts.chunk_schedule import ChunkSchedule, ChunkSettings, Window

REACH = 67
settings_of = st.builds(
    ChunkSettings,
    first_seconds=st.sampled_from([0.04, 0.2, 1.0, 2.5]),
    scale=st.sampled_from([1.0, 1.5, 8.0]),
    max_seconds=st.sampled_from([0.5, 3.0, 30.0]),
    context=st.sampled_from(["exact", 0, 5, 20, 200]),
    overlap_seconds=st.sampled_from([0.0, 0.02]),
)


def run(settings: ChunkSettings, pushes: list[int], reach: int = REACH) -> list[Window]:
    schedule = ChunkSchedule(settings, reach)
    windows = [window for count in pushes for window in schedule.push(count)]
    return windows + schedule.finish()


def test_the_defaults_give_the_chunks_of_the_reference():
    """1 s, then 8 times as long, at most 30 s; each is cut as soon as the 67 tokens behind it are known."""
    schedule = ChunkSchedule(ChunkSettings(), REACH)
    found = {known: schedule.push(1) for known in range(1, 2_100)}
    assert {known: windows for known, windows in found.items() if windows} == {
        117: [Window(0, 117, 0, 50)],
        517: [Window(0, 517, 50, 450)],
        2017: [Window(383, 2017, 450, 1950)],
    }
    assert schedule.finish() == [Window(1883, 2099, 1950, 2099)]


@given(settings_of, st.lists(st.integers(0, 400), max_size=12))
def test_every_token_once_and_in_order(settings, pushes):
    windows = run(settings, pushes)
    total = sum(pushes)
    kept = [number for window in windows for number in range(window.keep_start, window.keep_stop)]
    if not settings.overlap:
        assert kept == list(range(total))
    assert sorted(set(kept)) == list(range(total))
    for before, after in itertools.pairwise(windows):
        assert after.keep_start == before.keep_stop - settings.overlap
        assert after.keep_stop - after.keep_start >= 2 * settings.overlap  # a cross-fade at both ends
        assert after.keep_stop - after.keep_start <= settings.longest + 2 * settings.overlap


@given(settings_of, st.lists(st.integers(0, 400), max_size=12))
def test_a_window_sees_what_its_tokens_depend_on(settings, pushes):
    total = sum(pushes)
    for window in run(settings, pushes):
        assert 0 <= window.start <= window.keep_start < window.keep_stop <= window.stop <= total
        assert window.start == max(0, window.keep_start - REACH)
        if settings.context == "exact":
            assert window.stop == min(total, window.keep_stop + REACH)


@given(settings_of, st.integers(0, 900))
def test_the_result_does_not_depend_on_how_tokens_come(settings, total):
    assert run(settings, [1] * total) == run(settings, [total])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"first_seconds": 0}, "first_seconds"),
        ({"scale": 0.5}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"max_seconds": 1e9}, "max_seconds"),
        ({"context": -1}, "context"),
        ({"context": "some"}, "context"),
        ({"context": True}, "context"),
        ({"overlap_seconds": 2.0}, "overlap_seconds"),
    ],
)
def test_settings_out_of_range_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        ChunkSettings(**changes)
