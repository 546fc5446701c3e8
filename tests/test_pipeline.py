"""The pipeline's promises: exact lengths, joins that cannot be heard, same seed same samples, nothing absurd out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import signal

from rvc_spark.audio import Audio, resample
from rvc_spark.conversion import read_source
from rvc_spark.errors import AudioError
from rvc_spark.infer import recursive_filter, segments
from rvc_spark.infer.noise_field import NoiseField
from rvc_spark.infer.pipeline import Rendering, drain
from rvc_spark.infer.segments import (
    Cutting,
    highpass,
    highpass_range,
    mirrored_range,
    plan_exact,
    quiet_points,
)
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.rvc_modules import VC
from tests.small_engines import small_engines

SHORT_PARTS = Cutting(pad=0.1, query=0.08, center=0.3, limit=0.35)  # so that a second of sound has cuts
RATES_IN = (8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000)
RATES_OUT = (0, 16_000, 22_050, 44_100, 48_000)


def noisy_tone(frames: int, rate: int, seed: int = 0) -> Audio:
    time = np.arange(frames) / rate
    noise = np.random.default_rng(seed).standard_normal(frames)
    return Audio((0.3 * np.sin(2 * np.pi * 150 * time) + 0.02 * noise).astype(np.float32), rate)


def render(sound: Audio, engines, cutting: Cutting | None = None, **settings) -> np.ndarray:
    steps = Rendering(read_source(sound), engines, ConversionSettings(**settings), cutting).steps()
    return drain(steps).store.array()


class MeanIndex:
    """Stands for a retrieval index: each frame's neighbour is the mean frame. Enough, as only places matter here."""

    def blended(self, features: torch.Tensor, rate: float, k: int = 8) -> torch.Tensor:
        return rate * features.mean(dim=0) + (1 - rate) * features


@pytest.fixture(scope="module")
def voices():
    return [
        small_engines(version="v2", rate=40_000, has_f0=True),
        small_engines(index=MeanIndex(), version="v1", rate=32_000, has_f0=True),
        small_engines(version="v2", rate=48_000, has_f0=False),
    ]


def test_output_length_is_exact_for_200_random_settings(voices):
    draw = np.random.default_rng(1)
    for _ in range(200):
        engines = voices[draw.integers(len(voices))]
        rate_in, rate_out = int(draw.choice(RATES_IN)), int(draw.choice(RATES_OUT))
        frames = int(draw.integers(0.011 * rate_in, 0.9 * rate_in))
        cutting = SHORT_PARTS if draw.random() < 0.6 else None
        mix = float(draw.choice([1.0, 0.25]))
        result = render(noisy_tone(frames, rate_in), engines, cutting, resample_rate=rate_out, rms_mix_rate=mix)
        rate = rate_out or engines.synthesizer.info.sample_rate
        assert len(result) == round(frames * rate / rate_in), (frames, rate_in, rate, cutting)
        assert np.isfinite(result).all()


def test_sound_stays_at_its_place_however_it_is_cut(voices):
    """A burst late in a recording must come out at the same moment with and without cuts before it."""
    sound = noisy_tone(16_000 * 4, 16_000)
    whole = render(sound, voices[0], rms_mix_rate=1.0)
    cut = render(sound, voices[0], SHORT_PARTS, rms_mix_rate=1.0)
    assert len(whole) == len(cut)
    middle = slice(30_000, 130_000)
    lags = range(-400, 401, 20)  # +-10 ms: one frame, what the reference loses at a cut
    scores = [float(np.dot(whole[middle], np.roll(cut, lag)[middle])) for lag in lags]
    assert lags[int(np.argmax(scores))] == 0


def demo_vc() -> VC:
    vc = VC()
    vc.load("demo")
    return vc


@pytest.fixture(scope="module")
def demo():
    return demo_vc()


@pytest.fixture(scope="module")
def speech(demo) -> Audio:
    """Twelve seconds of the shipped sources."""
    folder = Path(demo.config.demo_dir) / "examples"
    clips = [read_source(folder / f"source_{name}.wav").store.array() for name in ("espeak", "awb", "rms")]
    return Audio(np.concatenate(clips), 16_000)


def click_score(sound: np.ndarray, at: int, rate: int) -> float:
    """Energy of the second difference within 5 ms of a join over that of the surrounding 60 ms, in dB."""
    second = np.diff(sound, 2) ** 2
    near, far = round(0.005 * rate), round(0.06 * rate)
    around = np.concatenate([second[max(0, at - far) : at - near], second[at + near : at + far]])
    return 10 * np.log10((second[at - near : at + near].mean() + 1e-12) / (around.mean() + 1e-12))


def spectral_distance(a: np.ndarray, b: np.ndarray, rate: int) -> np.ndarray:
    """Mean distance of the log spectra in nats, one value per 10 ms."""
    from scipy.signal import stft

    hop = rate // 100
    spectra = [np.log(np.abs(stft(x, rate, nperseg=1024, noverlap=1024 - hop)[2]) + 1e-4) for x in (a, b)]
    return np.abs(spectra[0] - spectra[1]).mean(axis=0)


def test_no_cut_can_be_heard(demo, speech):
    cutting = Cutting(pad=1.0, query=0.6, center=2.0, limit=2.5)
    source = read_source(speech).store
    cuts = quiet_points(lambda a, b: highpass_range(source.read, len(source), a, b), len(source), cutting)
    assert len(cuts) >= 4
    settings = ConversionSettings(f0_method="pm", key=7, rms_mix_rate=1.0)
    whole = drain(demo.convert_steps(speech, settings))
    parted = drain(demo.convert_steps(speech, settings, cutting=cutting))
    rate = whole.rate
    a, b = whole.audio.samples, parted.audio.samples
    assert len(a) == len(b)
    for cut in cuts:
        at = cut // 320 * 320 * rate // 16_000
        assert click_score(b, at, rate) < 6.0
    # A part hears less context than the whole, and its features differ a little everywhere (the encoder normalises over
    # all it hears). A cut could be heard if it stood out from that.
    distance = spectral_distance(a, b, rate)
    near = np.zeros(len(distance), bool)
    for cut in cuts:
        near[cut // 160 - 5 : cut // 160 + 6] = True
    assert distance[near].mean() < 1.5 * distance[~near].mean()


def test_same_seed_same_samples(demo, speech):
    clip = Audio(speech.samples[:32_000], 16_000)
    first, again = (demo.convert(clip, f0_method="pm", key=7, seed=3).audio.samples for _ in range(2))
    other = demo.convert(clip, f0_method="pm", key=7, seed=4).audio.samples
    assert np.array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-4)


def test_silence_stays_near_silence(demo):
    result = demo.convert(Audio(np.zeros(32_000, np.float32), 16_000)).audio.samples
    assert np.isfinite(result).all()
    assert np.abs(result).max() < 1e-3


@pytest.mark.parametrize("key", [-24, 24, 0.37])
def test_extreme_keys_are_finite_guarded_and_without_dc(demo, speech, key):
    clip = Audio(speech.samples[:24_000], 16_000)
    result = demo.convert(clip, key=key, f0_method="pm").audio.samples
    assert np.isfinite(result).all()
    assert np.abs(result).max() <= 0.9901
    assert abs(result.mean()) < 0.01


def test_whisper_and_telephone_input(demo, speech):
    clip = speech.samples[:32_000]
    whisper = Audio((clip * np.random.default_rng(0).standard_normal(len(clip))).astype(np.float32), 16_000)
    telephone = Audio(resample(clip, 16_000, 8_000), 8_000)
    for sound in (whisper, telephone):
        result = demo.convert(sound, f0_method="pm").audio.samples
        assert np.isfinite(result).all()
        assert 0 < np.abs(result).max() <= 0.9901
        assert abs(result.mean()) < 0.01


def test_loudness_follows_the_source_at_mix_zero_and_not_at_one(demo, speech):
    clip = speech.samples[:48_000]
    quiet = Audio(clip * 0.1, 16_000)
    level = {
        mix: float(np.sqrt(np.mean(demo.convert(quiet, rms_mix_rate=mix, f0_method="pm", key=7).audio.samples ** 2)))
        for mix in (0.0, 1.0)
    }
    source = float(np.sqrt(np.mean(quiet.samples**2)))
    assert abs(20 * np.log10(level[0.0] / source)) < 2.0
    assert level[1.0] > 1.5 * level[0.0]


def test_key_moves_the_pitch_and_formant_does_not(demo, speech):
    from rvc_spark.infer.pitch import load_tracker

    tracker = load_tracker("pm")
    clip = Audio(speech.samples[:48_000], 16_000)

    def median(**settings) -> float:
        sound = demo.convert(clip, f0_method="pm", **settings).audio.resampled(16_000).samples
        f0 = tracker.track(sound)
        return float(np.median(f0[f0 > 0]))

    base = median(key=7)
    assert abs(12 * np.log2(median(key=9) / base) - 2) < 0.35
    assert abs(12 * np.log2(median(key=7, formant=3) / base)) < 0.5


def test_formant_shift_moves_the_spectrum_up(demo, speech):
    clip = Audio(speech.samples[:48_000], 16_000)

    def centroid(formant: float) -> float:
        sound = demo.convert(clip, f0_method="pm", key=7, formant=formant).audio.samples
        power = np.abs(np.fft.rfft(sound)) ** 2
        return float((np.fft.rfftfreq(len(sound), 1 / 32_000) * power).sum() / power.sum())

    assert centroid(4) > 1.08 * centroid(0)


def test_automatic_key_meets_the_voice(demo, speech):
    result = demo.convert(Audio(speech.samples[:48_000], 16_000), auto_key="voice", f0_method="pm")
    f0 = result.result_f0[result.result_f0 > 0]
    assert abs(12 * np.log2(np.median(f0) / 172)) < 1
    assert "172" in str(result.engines["key"])


def test_noise_depends_on_the_place_alone():
    field = NoiseField(7)
    whole = field.draw(4, -50, 300, 10)
    part = field.draw(4, 20, 90, 10)
    assert np.array_equal(whole.latent[0, :, 70:160], part.latent[0])
    assert np.array_equal(whole.source[0, 700:1600], part.source[0])
    samples = NoiseField(8).draw(64, 0, 2000, 100).source.numpy()
    assert abs(samples.mean()) < 0.01
    assert abs(samples.std() - 1) < 0.01


def test_ranges_equal_the_whole():
    sound = np.random.default_rng(0).standard_normal(80_000).astype(np.float32)
    whole = highpass(sound)
    part = highpass_range(lambda a, b: sound[a:b], len(sound), 30_000, 50_000)
    assert np.abs(part - whole[30_000:50_000]).max() < 1e-6
    for start, stop in ((-100, 200), (-3, 60), (20, 50)):
        expected = np.pad(sound[:37], 300, mode="reflect")[300 + start : 300 + stop]
        assert np.array_equal(mirrored_range(lambda a, b: sound[a:b], 37, start, stop), expected)


def test_parts_cover_every_frame_once_but_for_the_crossfade():
    for frames in (1, 2, 31, 1000, 12_345):
        cuts = [frames * 160 // 3, frames * 160 * 2 // 3] if frames > 500 else []
        parts = plan_exact(frames, cuts, Cutting())
        assert parts[0].keep_start == 0
        assert parts[-1].keep_stop == frames
        assert all(part.start % 2 == 0 for part in parts)
        for left, right in zip(parts, parts[1:], strict=False):
            assert left.keep_stop - right.keep_start == 2


@pytest.mark.parametrize("frames", [1, 3, 159])
def test_less_than_a_frame_is_refused_by_name(voices, frames):
    with pytest.raises(AudioError, match="10 ms"):
        render(Audio(np.full(frames, 0.1, np.float32), 16_000), voices[0])


def test_stopping_in_the_middle_frees_the_work(demo, speech):
    steps = demo.convert_steps(speech, ConversionSettings(f0_method="pm"))
    assert next(steps).fraction == 0.0
    steps.close()
    assert demo.convert(Audio(speech.samples[:8_000], 16_000), f0_method="pm").frames == 16_000


def test_the_high_pass_is_the_references_to_the_last_bit():
    """On every processor; scipy's own is off by 1e-8 on those without AVX-512."""
    with np.load(Path(__file__).parent / "golden" / "rvc" / "functions" / "highpass.npz") as recorded:
        np.testing.assert_array_equal(highpass(recorded["in.audio"]), recorded["out"])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_high_pass_is_scipys(kind, monkeypatch):
    b, a = signal.butter(5, 48, btype="high", fs=16_000)
    for mine, theirs in ((segments.HIGHPASS_B, b), (segments.HIGHPASS_A, a)):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)
    state = signal.lfilter_zi(segments.HIGHPASS_B, segments.HIGHPASS_A)
    np.testing.assert_allclose(segments.HIGHPASS_STATE, state, rtol=1e-6)  # of an ill-posed system
    monkeypatch.setattr(segments, "HIGHPASS_STATE", state)
    sounds = [np.random.default_rng(n).standard_normal(n).astype(kind) for n in (1, 2, 18, 19, 20, 5_000)]
    quick = [highpass(sound) for sound in sounds]
    monkeypatch.setattr(recursive_filter, "package_folder", lambda name: None)
    recursive_filter._filter.cache_clear()
    for sound, filtered in zip(sounds, quick, strict=True):
        theirs = signal.filtfilt(segments.HIGHPASS_B, segments.HIGHPASS_A, sound, padlen=min(18, len(sound) - 1))
        np.testing.assert_array_equal(filtered, theirs)
        np.testing.assert_array_equal(highpass(sound), filtered)  # by scipy's front door
    recursive_filter._filter.cache_clear()
