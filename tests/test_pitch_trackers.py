"""Every tracker on sounds whose pitch is known, and the package-backed ones without their packages."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from rvc_spark.errors import MissingPackageError, PitchError, PitchModelError
from rvc_spark.infer import pitch, pitch_trackers
from rvc_spark.infer.pitch import PITCH_METHODS, fill_unvoiced, load_tracker
from rvc_spark.infer.pitch_trackers import (
    dio_f0,
    dio_training_f0,
    harvest_f0,
    median_filter,
    median_width,
    pm_f0,
    pm_realtime_f0,
)
from tests.pitch_sounds import GOLDEN, LIGHT, RATE, SHARED, cents, glide, signals


@pytest.fixture(scope="module")
def f0_golden():
    return np.load(GOLDEN / "f0.npz")


@pytest.fixture(scope="module")
def trackers():
    return {method: load_tracker(method) for method in LIGHT}


@pytest.mark.parametrize(
    ("case", "track", "tolerance"),
    [
        ("pm.f0_nofill", pm_f0, 1e-6),
        ("pm.f0", lambda x: fill_unvoiced(pm_f0(x)), 1e-6),
        ("pm_realtime.f0", lambda x: fill_unvoiced(pm_realtime_f0(x)), 5e-5),  # stored as float32
        ("harvest_r0.f0", lambda x: harvest_f0(x, 0), 1e-6),
        ("harvest_r3.f0", harvest_f0, 1e-6),
        ("dio_raw.f0", dio_f0, 1e-6),
        ("dio.f0", dio_training_f0, 1e-6),
    ],
)
def test_praat_and_world_match(f0_golden, case, track, tolerance):
    for name in signals(f0_golden):
        want = f0_golden[f"{name}/{case}"]
        got = track(f0_golden[f"{name}/in.audio"].astype(np.float64))
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= tolerance, name


@pytest.mark.parametrize("method", LIGHT)
@pytest.mark.parametrize(("gain", "offset"), [(1, 0), (0.01, 0), (4, 0), (1, 0.3)])
def test_a_glide_is_followed_at_any_level_and_offset(trackers, method, gain, offset):
    samples, true = glide()
    error = cents(trackers[method].track(samples * gain + offset), true)[5:-5]
    assert np.median(error) < 12
    assert (error < 50).mean() > 0.97


@pytest.mark.parametrize("method", LIGHT)
@pytest.mark.parametrize("level", [0.0, 0.5, 1e-3])
def test_silence_and_a_constant_are_unvoiced(trackers, method, level):
    assert not trackers[method].track(np.full(RATE, level)).any()


@pytest.mark.parametrize("method", ["pm", "harvest", "dio"])
def test_noise_is_unvoiced(trackers, method):
    noise = np.random.default_rng(0).standard_normal(2 * RATE) * 0.1
    assert (trackers[method].track(noise) > 0).mean() < 0.05


def test_a_gap_in_a_tone_is_unvoiced(trackers):
    tone = np.sin(2 * np.pi * 220 * np.arange(2 * RATE) / RATE) * 0.3
    tone[RATE // 2 : RATE] = 0
    for method in ("pm", "fcpe", "crepe-tiny"):
        f0 = trackers[method].track(tone)
        assert not f0[60:90].any(), method
        assert (cents(f0[110:190], np.array(220.0)) < 30).all(), method


@pytest.mark.parametrize("method", LIGHT)
@pytest.mark.parametrize("samples", [160, 161, 319, 320, 433, 999, 1600, 4321])
def test_every_length_gives_its_frames(trackers, method, samples):
    sound = np.random.default_rng(samples).standard_normal(samples) * 0.1
    f0 = trackers[method].track(sound)
    assert f0.shape == (samples // 160,)
    assert f0.dtype == np.float64
    assert np.isfinite(f0).all() and (f0 >= 0).all()


def test_accuracy_on_annotated_singing(trackers):
    clip = SHARED / "data" / "singing" / "vocadito_1.flac"
    if not clip.is_file():
        pytest.skip("the annotated recording is not here")
    soundfile, soxr = pytest.importorskip("soundfile"), pytest.importorskip("soxr")
    sound, rate = soundfile.read(clip, stop=10 * 44_100)
    samples = soxr.resample(sound, rate, RATE, quality="VHQ")
    annotation = np.loadtxt(clip.with_name("vocadito_1_f0.csv"), delimiter=",")
    true = annotation[np.round(np.arange(len(samples) // 160) / 100 / annotation[1, 0]).astype(int), 1]
    voiced = true > 0
    for method, floor in (("pm", 0.96), ("fcpe", 0.97), ("dio", 0.93), ("crepe-tiny", 0.97)):
        f0 = trackers[method].track(samples)
        assert (cents(f0[voiced], true[voiced]) < 50).mean() > floor, method


def test_filter_radius():
    assert [median_width(radius) for radius in range(8)] == [1, 1, 1, 3, 5, 5, 7, 7]
    for bad in (-1, 8, 2.5, True, "3"):
        with pytest.raises(PitchError, match="filter_radius"):
            load_tracker("harvest", filter_radius=bad)
    f0 = np.array([5.0, 1, 9, 2, 8])
    assert median_filter(f0, 3).tolist() == [1, 5, 2, 8, 2]
    samples, _ = glide(0.6)
    noisy = samples + np.random.default_rng(1).standard_normal(len(samples)) * 0.1
    raw = load_tracker("harvest", filter_radius=0).track(noisy)
    assert np.array_equal(load_tracker("harvest", filter_radius=6).track(noisy)[5:-5], median_filter(raw, 7)[5:-5])


@pytest.mark.parametrize("method", [name for name in PITCH_METHODS if name in pitch.PACKAGES and name != "pm"])
def test_a_missing_package_is_named_with_its_install_line(monkeypatch, method):
    monkeypatch.setattr(pitch_trackers, "package_folder", lambda package: None)
    monkeypatch.delitem(sys.modules, "pyworld.pyworld", raising=False)
    with pytest.raises(MissingPackageError, match=f"pip install .*{pitch.PACKAGES[method]}"):
        load_tracker(method).track(np.zeros(1600))


def test_missing_praat_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "parselmouth", None)
    with pytest.raises(MissingPackageError, match="pip install praat-parselmouth"):
        load_tracker("pm").track(np.zeros(1600))


def test_no_tracker_needs_torchaudio_or_pkg_resources(monkeypatch):
    for package in ("torchaudio", "pkg_resources", "torchcrepe", "torchfcpe", "librosa"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(pitch_trackers, "package_folder", _installed_folder)
    monkeypatch.delitem(sys.modules, "pyworld.pyworld", raising=False)
    samples, _ = glide(0.2)
    for method in LIGHT:
        assert load_tracker(method).track(samples).shape == (20,)


def _installed_folder(package: str) -> Path | None:
    """`package_folder` for packages whose entry in sys.modules is blocked."""
    for folder in map(Path, sys.path):
        if (folder / package / "__init__.py").is_file():
            return folder / package
    return None


def test_a_package_without_its_weights_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(pitch_trackers, "package_folder", lambda package: tmp_path)
    with pytest.raises(PitchModelError, match="fcpe_c_v001.pt.*--force-reinstall"):
        load_tracker("fcpe")
    monkeypatch.delitem(sys.modules, "pyworld.pyworld", raising=False)
    with pytest.raises(MissingPackageError, match="no compiled part"):
        load_tracker("dio").track(np.zeros(1600))
