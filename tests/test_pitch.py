"""The door to pitch: choosing a tracker, what it refuses, and what is done to every contour."""

from __future__ import annotations

import numpy as np
import pytest

from rvc_spark.errors import AssetError, PitchError
from rvc_spark.infer import pitch
from rvc_spark.infer.pitch import (
    PitchTracker,
    choose_method,
    coarse_pitch,
    fill_unvoiced,
    load_tracker,
    shift_key,
    why_missing,
)
from tests.pitch_sounds import GOLDEN, LIGHT


@pytest.fixture(scope="module")
def coarse_golden():
    return np.load(GOLDEN / "coarse.npz")


@pytest.mark.parametrize("case", ["dense", "dense_f32", "realtime", "all_zero"])
def test_coarse_codes_are_the_reference_codes(coarse_golden, case):
    source = {"realtime": "dense_f32"}.get(case, case)
    f0 = coarse_golden[f"in.f0_{source}"]
    assert np.array_equal(coarse_pitch(f0), coarse_golden[f"{case}.coarse"])


@pytest.mark.parametrize("key", [-12, 0, 5, 12])
@pytest.mark.parametrize("fill", [True, False])
def test_filling_then_shifting_matches(coarse_golden, key, fill):
    f0 = coarse_golden["in.f0_gaps"]
    f0 = shift_key(fill_unvoiced(f0) if fill else f0, key)
    case = f"gaps{'' if fill else '_nofill'}.key{key}"
    assert np.array_equal(f0, coarse_golden[f"{case}.f0"])
    assert np.array_equal(coarse_pitch(f0), coarse_golden[f"{case}.coarse"])


def test_known_coarse_codes():
    hertz = [0, 50, 55, 60, 100, 110, 220, 440, 880, 1100, 3000]
    assert coarse_pitch(np.array(hertz)).tolist() == [1, 1, 3, 5, 20, 23, 60, 122, 217, 255, 255]
    assert coarse_pitch(np.zeros(0)).shape == (0,)


def test_filling():
    f0 = np.array([0, 0, 100, 0, 0, 130, 0], dtype=np.float32)
    filled = fill_unvoiced(f0)
    assert np.allclose(filled, [100, 100, 100, 110, 120, 130, 130]) and filled.dtype == np.float32
    assert f0[0] == 0
    assert not fill_unvoiced(np.zeros(4)).any()


def test_keys_may_be_fractions_and_unvoiced_stays():
    f0 = np.array([0, 220.0])
    assert np.allclose(shift_key(f0, 0.5), [0, 220 * 2 ** (1 / 24)])
    assert np.allclose(shift_key(shift_key(f0, -7.3), 7.3), f0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_values_that_are_no_frequency_are_refused(value):
    f0 = np.array([100.0, value])
    for change in (coarse_pitch, fill_unvoiced, lambda x: shift_key(x, 1)):
        with pytest.raises(PitchError, match="frame 1"):
            change(f0)


@pytest.mark.parametrize("key", [np.nan, np.inf, 1e9])
def test_impossible_keys_are_refused(key):
    with pytest.raises(PitchError, match="key="):
        shift_key(np.array([100.0]), key)


def test_auto_takes_the_best_present_and_says_why(monkeypatch, tmp_path):
    weights = tmp_path / "rmvpe.pt"
    choice = choose_method("auto", rmvpe_path=weights)
    assert choice.value == "fcpe" and str(weights) in choice.reason
    weights.write_bytes(b"x")
    assert choose_method("auto", rmvpe_path=weights).value == "rmvpe"
    monkeypatch.setattr(pitch, "is_installed", lambda package: package != "torchfcpe")
    choice = choose_method("auto")
    assert choice.value == "pm" and "torchfcpe" in choice.reason and "GPU" in choice.reason
    assert choose_method("auto", device="cuda:0").value == "crepe"
    monkeypatch.setattr(pitch, "is_installed", lambda package: False)
    assert choose_method("auto", device="cuda:0").value == "pm"
    assert choose_method("harvest").value == "harvest"  # never replaced


def test_every_method_says_what_it_lacks(monkeypatch, tmp_path):
    assert [why_missing(method) for method in LIGHT] == [None] * len(LIGHT)
    assert str(tmp_path) in why_missing("rmvpe", tmp_path / "rmvpe.pt")
    monkeypatch.setattr(pitch, "is_installed", lambda package: False)
    assert all("not installed" in why_missing(method) for method in LIGHT)


def test_rmvpe_without_weights_names_the_path_and_the_command(tmp_path):
    with pytest.raises(AssetError, match="rmvpe.pt.*rvc-spark assets get rmvpe"):
        load_tracker("rmvpe", rmvpe_path=tmp_path / "rmvpe.pt")
    with pytest.raises(AssetError, match="assets get rmvpe"):
        load_tracker("rmvpe")


@pytest.mark.parametrize("method", ["", "RMVPE", "hybrid[pm+crepe]", None, "crepe-full", "../fcpe"])
def test_unknown_methods_are_refused(method):
    with pytest.raises(PitchError, match="methods are: auto, rmvpe"):
        load_tracker(method)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros(0), "0 samples"),
        (np.zeros(159), "159 samples"),
        (np.zeros((2, 1600)), r"\(2, 1600\)"),
        (np.array([0.1] * 500 + [np.nan] * 500), "not finite"),
        (np.array([0.1] * 500 + [np.inf] * 500), "not finite"),
    ],
)
def test_sounds_without_a_pitch_are_refused(samples, words):
    called = []
    with pytest.raises(PitchError, match=words):
        PitchTracker("x", "test", called.append).track(samples)
    assert not called


def test_a_contour_is_cut_or_padded_to_its_frames():
    for given in (8, 10, 11):
        f0 = PitchTracker("x", "test", lambda samples, n=given: np.full(n, 100.0)).track(np.zeros(1600))
        assert f0.tolist() == [100.0] * min(given, 10) + [0.0] * (10 - min(given, 10))
