"""Automatic key, autotune and the user's own curve: what they promise, and files that are not curves."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rvc_spark.errors import PitchError
from rvc_spark.infer.pitch_edit import (
    SCALES,
    F0Curve,
    Scale,
    VoiceRange,
    apply_f0_curve,
    automatic_key,
    autotune,
    parse_f0_curve,
    read_f0_curve,
    voice_range,
)

NOTES = 440 * 2 ** ((np.arange(128) - 69) / 12)
contours = st.lists(st.one_of(st.just(0.0), st.floats(40, 1500)), min_size=1, max_size=40).map(np.array)


def semitones(f0: np.ndarray) -> np.ndarray:
    return 69 + 12 * np.log2(f0 / 440)


# ---- automatic key ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("median", "target", "key"),
    [(110, 220, 12), (220, 110, -12), (200, 255, 4), (100, 155, 8), (220, 220, 0), (100, 1000, 12), (800, 100, -12)],
)
def test_key_to_a_target(median, target, key):
    f0 = np.array([0, 0, median * 0.9, median, median * 1.1, 0])
    proposal = automatic_key(f0, target)
    assert proposal.key == key
    assert f"{key:+d}" in proposal.reason


def test_the_limit_and_the_step_can_be_chosen():
    f0 = np.full(5, 100.0)
    far = automatic_key(f0, 1000.0)
    assert far.key == 12 and "limited to 12" in far.reason
    assert automatic_key(f0, 1000.0, limit=24).key == 24
    assert automatic_key(f0, 180.0, step=12).key == 12
    assert automatic_key(f0, 130.0, step=12).key == 0
    assert automatic_key(f0, 130.0, step=0).key == pytest.approx(12 * np.log2(1.3), abs=0.006)
    assert automatic_key(f0, 130.0, limit=0).key == 0


def test_nothing_voiced_gives_key_0_and_says_so():
    proposal = automatic_key(np.zeros(10), 220.0)
    assert proposal.key == 0 and "voiced" in proposal.reason
    assert automatic_key(np.zeros(0), 220.0).key == 0


def test_a_voice_range_holds_the_contour_inside():
    f0 = np.geomspace(100, 300, 200)
    free = automatic_key(f0, VoiceRange(260.0))
    held = automatic_key(f0, VoiceRange(260.0, low=100.0, high=330.0))
    assert free.key == 7
    assert held.key == 2 and "range" in held.reason
    assert automatic_key(f0, VoiceRange(250.0, 240.0, 260.0)).key == 6  # both ends break; the middle fits best


@given(contours, st.floats(50, 1000))
def test_no_other_whole_key_comes_closer(f0, target):
    key = automatic_key(f0, target).key
    assert abs(key) <= 12 and key == round(key)
    if f0.any():
        ideal = 12 * np.log2(target / np.median(f0[f0 > 0]))
        assert abs(key - np.clip(ideal, -12, 12)) <= 0.5 + 1e-6


def test_range_of_a_contour():
    found = voice_range(np.concatenate([np.zeros(50), np.linspace(100, 200, 101)]))
    assert (found.low, found.median, found.high) == pytest.approx((105, 150, 195))
    with pytest.raises(PitchError, match="no frame is voiced"):
        voice_range(np.zeros(3))


@pytest.mark.parametrize("values", [(0.0,), (-5.0,), (np.nan,), (np.inf,), (200, 300, 400), (200, 100, 150)])
def test_impossible_targets_are_refused(values):
    with pytest.raises(PitchError, match="0 < low"):
        automatic_key(np.array([100.0]), VoiceRange(*values) if len(values) > 1 else values[0])


@pytest.mark.parametrize("options", [{"limit": -1}, {"limit": np.nan}, {"step": 13}, {"step": -1}, {"limit": 1e9}])
def test_impossible_limits_are_refused(options):
    with pytest.raises(PitchError, match="limit="):
        automatic_key(np.array([100.0]), 200.0, **options)


# ---- autotune --------------------------------------------------------------------------------------------------------


def test_scales_are_read():
    assert Scale.parse("A minor").classes == Scale.parse("c MAJOR").classes == (0, 2, 4, 5, 7, 9, 11)
    for text in ("Am", "a min", "A:minor", "A_minor", "A-minor", "a natural minor", "A Aeolian"):
        assert Scale.parse(text).classes == Scale.parse("A minor").classes, text
    assert Scale.parse("D").classes == Scale.parse("D major").classes
    assert Scale.parse("Bb blues").classes == Scale.parse("A# blues").classes == (1, 3, 4, 5, 8, 10)
    assert Scale.parse("B").classes == Scale.parse("Cb major").classes
    assert Scale.parse("blues").classes == SCALES["blues"]
    assert Scale.parse("dorian").classes == SCALES["dorian"]
    assert Scale.parse("E minor pentatonic").classes == Scale.parse("G pentatonic").classes
    assert Scale.parse("chromatic").classes == tuple(range(12))


@pytest.mark.parametrize("text", ["", " ", "H minor", "A sad", "A##", "7", "minor A", "x" * 10**6, "A\x00minor", None])
def test_unknown_scales_are_refused(text):
    with pytest.raises(PitchError, match="there is no scale") as caught:
        autotune(np.array([100.0]), text)
    assert len(str(caught.value)) < 500 and "pentatonic" in str(caught.value)


@given(contours, st.sampled_from(sorted(SCALES)), st.integers(0, 11))
def test_full_strength_lands_on_the_nearest_note_of_the_scale(f0, kind, root):
    scale = Scale.parse(f"{'C C# D Eb E F F# G Ab A Bb B'.split()[root]} {kind}")
    tuned = autotune(f0, scale)
    assert np.array_equal(tuned == 0, f0 == 0)
    voiced = f0 > 0
    notes = semitones(tuned[voiced])
    assert np.allclose(notes, np.round(notes), atol=1e-6)
    assert set(np.round(notes).astype(int) % 12) <= set(scale.classes)
    allowed = NOTES[np.isin(np.arange(128) % 12, scale.classes)]
    closest = np.abs(semitones(f0[voiced])[:, None] - semitones(allowed)).min(axis=1, initial=np.inf)
    assert np.allclose(np.abs(notes - semitones(f0[voiced])), closest, atol=1e-6)


@given(contours, st.floats(0, 1))
def test_strength_is_the_share_of_the_way(f0, strength):
    tuned, target = autotune(f0, "A minor", strength), autotune(f0, "A minor")
    voiced = f0 > 0
    way, went = (semitones(x[voiced]) - semitones(f0[voiced]) for x in (target, tuned))
    assert np.allclose(went, strength * way, atol=1e-6)
    assert not tuned[~voiced].any()


def test_strength_0_changes_nothing_and_types_stay():
    f0 = np.array([0, 123.4, 987.6], dtype=np.float32)
    assert np.allclose(autotune(f0, strength=0.0), f0, rtol=1e-6)
    assert autotune(f0).dtype == np.float32


def test_another_concert_pitch():
    assert autotune(np.array([440.0]), a4_hz=432.0)[0] == pytest.approx(432)
    assert autotune(np.array([0.0, 1e-3, 1e6]), "C major")[0] == 0


@pytest.mark.parametrize("options", [{"strength": 1.1}, {"strength": -0.1}, {"strength": np.nan}, {"a4_hz": 0.0}])
def test_autotune_out_of_range_is_refused(options):
    with pytest.raises(PitchError, match="outside"):
        autotune(np.array([100.0]), **options)


# ---- a user's curve --------------------------------------------------------------------------------------------------


def write(tmp_path, content: str | bytes):
    path = tmp_path / "curve.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "0,100\n1,200\n",
        "seconds,Hz\n0,100\n1,200",
        "time,frequency,confidence\n0.0,100,0.9\n1.0,200,0.1\n",
        "0;100\n1;200\n",
        "0,0;100,0\n1,0;200,0\n",
        "0\t100\n1\t200\n",
        "  0   100\n  1   200  \n\n",
        "# made by hand\n\n0, 100 # start\n1, 200 % end\n",
        "\ufeff0,100\r\n1,200\r\n",
        "0,100\r1,200\r",
        "+0.0e0,1e2\n1.,2.0E+2",
    ],
)
def test_curves_are_read_in_every_common_form(tmp_path, text):
    curve = read_f0_curve(write(tmp_path, text))
    assert curve.seconds.tolist() == [0, 1] and curve.hz.tolist() == [100, 200]


def test_a_curve_replaces_the_pitch_where_it_has_values():
    curve = F0Curve(np.array([0.02, 0.06, 0.07, 0.1]), np.array([100.0, 140.0, 0.0, 200.0]))
    f0 = np.full(13, 55.0)
    f0[12] = 0
    want = [55, 55, 100, 110, 120, 130, 140, 0, 0, 200, 200, 55, 0]
    assert apply_f0_curve(f0, curve).tolist() == pytest.approx(want)
    assert apply_f0_curve(np.full(6, 55.0), curve, start_frame=-3).tolist() == pytest.approx([55, 55, 55, 55, 55, 100])
    assert apply_f0_curve(np.full(2, 55.0), curve, start_frame=3).tolist() == pytest.approx([110, 120])
    assert apply_f0_curve(f0.astype(np.float32), curve).dtype == np.float32


@given(st.lists(st.tuples(st.integers(1, 30), st.sampled_from([0.0, 100.0, 200.0, 400.0])), min_size=2, max_size=20))
def test_no_value_lies_between_voiced_and_unvoiced(steps):
    seconds = np.cumsum([step for step, _ in steps]) / 100
    hz = np.array([value for _, value in steps])
    f0 = apply_f0_curve(np.full(int(seconds[-1] * 100) + 5, 7.0), F0Curve(seconds, hz))
    assert ((f0 == 0) | (f0 == 7) | ((f0 >= 99.9) & (f0 <= 400.1))).all()
    frames = np.round(seconds * 100).astype(int)
    assert np.allclose(f0[frames], hz)
    assert (f0[: frames[0]] == 7).all() and (f0[frames[-1] + 1 :] == 7).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("0,100\n1,nan\n", "line 2.*not finite"),
        ("0,100\n\ninf,100\n", "line 3.*not finite"),
        ("0,100\n1,1e999\n", "line 2.*not finite"),
        ("0,100\n1,-5\n", "line 2.*-5 Hz"),
        ("0,100\n1,9\n", "line 2.*10..5000"),
        ("0,100\n1,50000\n", "line 2.*10..5000"),
        ("-1,100\n1,100\n", "line 1.*before the start"),
        ("0,100\n2,100\n1,100\n", "line 3.*not later"),
        ("0,100\n0,100\n", "line 2.*not later"),
        ("0,100\n", "has 1 point, .*at least 2"),
        ("", "has 0 points"),
        ("# only words\n", "has 0 points"),
        ("seconds,Hz\nseconds,Hz\n0,1\n", "line 2.*not two numbers"),
        ("0,100\n1,abc\n", "line 2.*not two numbers"),
        ("0,100\n1\n", "line 2.*not two numbers"),
        ("0,100\n1_0,100\n", "line 2.*not two numbers"),
        ("0,100\n1,0x40\n", "line 2.*not two numbers"),
        ("0,100\n1,100\x1b[2J\n", "line 2.*control character 0x1b"),
        ("0,100\n1,100\x00\n", "line 2.*control character 0x00"),
        (b"PK\x03\x04" + bytes(200), "line 1.*control character"),
        (b"\x89PNG\r\n\x1a\n", "line 2.*control character"),
        (b"0,100\n1,\xff\xfe\n", "line 2.*not UTF-8"),
        ("0,100\n1,200\n".encode("utf-16"), "UTF-16"),
        ("<html><body>Not found</body></html>\n<p>", "line 2.*not two numbers"),
        ("1" * 5_000_000, "has 0 points"),
        ("1," * 5_000_000 + "\n0,1", "line 2"),
        ("0,100\n" + "\n" * 1_000_001, "1,000,000 lines"),
    ],
)
def test_files_that_are_no_curve_are_refused_naming_the_line(tmp_path, content, words):
    with pytest.raises(PitchError, match=words) as caught:
        read_f0_curve(write(tmp_path, content))
    assert len(str(caught.value)) < 1000
    assert "\x1b" not in str(caught.value)


def test_paths_that_are_no_file_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "missing.csv", tmp_path / "pipe", "/dev/zero", "a\x00b"):
        with pytest.raises(PitchError, match="no f0 curve file"):
            read_f0_curve(path)


def test_a_large_file_is_refused_unread(tmp_path):
    path = tmp_path / "large.csv"
    with path.open("wb") as file:
        file.truncate(10 << 30)  # sparse: takes no space
    with pytest.raises(PitchError, match="larger than 32 MiB"):
        read_f0_curve(path)


@settings(max_examples=300)
@given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=80))
def test_any_text_is_a_curve_or_a_refusal(text):
    try:
        curve = parse_f0_curve(text)
    except PitchError:
        return
    assert np.isfinite(curve.hz).all() and (np.diff(curve.seconds) > 0).all()


@settings(max_examples=200)
@given(st.text("0123456789.,;-+eE#\n \tnaif_", max_size=60))
def test_almost_curves_are_a_curve_or_a_refusal(text):
    test_any_text_is_a_curve_or_a_refusal.hypothesis.inner_test(text)


@pytest.mark.parametrize(
    ("seconds", "hz"),
    [([0.0], [1.0]), ([0.0, 1.0], [100.0]), ([1.0, 0.0], [100.0, 100.0]), ([0.0, 1.0], [100.0, np.nan])],
)
def test_curves_made_in_code_are_checked_too(seconds, hz):
    with pytest.raises(PitchError, match="f0 curve"):
        F0Curve(np.array(seconds), np.array(hz))
