"""Sound that is still arriving: exact length, bounded delay, the same samples however it is cut, no click at a join."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from live_measures import join_places, join_scores

from rvc_spark.audio import Audio, read_audio, resample
from rvc_spark.errors import AudioError, ConfigError
from rvc_spark.infer import live_warmup
from rvc_spark.infer.live import LiveConversion
from rvc_spark.infer.live_loudness import LiveLoudness
from rvc_spark.infer.live_recent import Recent
from rvc_spark.infer.live_resample import needed_input, resampled_span
from rvc_spark.infer.live_settings import LiveSettings
from rvc_spark.infer.live_source import LiveSource
from rvc_spark.infer.mel_distance import log_mel_distance
from rvc_spark.infer.peak_guard import PeakGuard
from rvc_spark.infer.pipeline import OUTPUT_PEAK, Engines, Rendering, drain
from rvc_spark.infer.segments import highpass
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.rvc_modules import VC, read_source
from tests.small_engines import small_engines

QUICK = LiveSettings(block=0.1, context=0.2, lookahead=0.04)
RATES_IN = (8_000, 11_025, 16_000, 22_050, 44_100, 48_000)
RATES_OUT = (0, 16_000, 44_100, 48_000)
RECORDING = Path(__file__).resolve().parents[2] / "shared/data/speech/vctk/p226_003.flac"


def tone(frames: int, rate: int, level: float = 0.3) -> np.ndarray:
    time = np.arange(frames) / rate
    noise = np.random.default_rng(0).standard_normal(frames)
    return (level * np.sin(2 * np.pi * 150 * time) + 0.02 * noise).astype(np.float32)


def cut(samples: np.ndarray, rate: int, sizes: Iterator[int]) -> Iterator[Audio]:
    at = 0
    while at < samples.shape[-1]:
        size = next(sizes)
        yield Audio(samples[..., at : at + size], rate)
        at += size


def same_size(size: int) -> Iterator[int]:
    while True:
        yield size


def random_sizes(seed: int, most: int) -> Iterator[int]:
    draw = np.random.default_rng(seed)
    while True:
        yield int(draw.choice([1, 7, draw.integers(1, most), most]))


def joined(live: LiveConversion) -> np.ndarray:
    return np.concatenate([block.samples for block in live])


def stream(engines: Engines, pieces: Iterator[Audio], live: LiveSettings = QUICK, **settings) -> LiveConversion:
    return LiveConversion(pieces, engines, ConversionSettings(**settings), live)


@pytest.fixture(scope="module")
def voices() -> list[Engines]:
    return [
        small_engines(version="v2", rate=40_000, has_f0=True),
        small_engines(version="v1", rate=32_000, has_f0=True),
        small_engines(version="v2", rate=44_100, has_f0=True),
        small_engines(version="v2", rate=48_000, has_f0=False),
    ]


# --- length, place, cuts ---------------------------------------------------------------------------------------------


def test_length_is_that_of_a_whole_conversion_for_random_pieces(voices: list[Engines]) -> None:
    draw = np.random.default_rng(1)
    for number in range(30):
        engines = voices[draw.integers(len(voices))]
        rate_in, rate_out = int(draw.choice(RATES_IN)), int(draw.choice(RATES_OUT))
        frames = int(draw.integers(round(0.01 * rate_in), 0.6 * rate_in))
        sound, mix = tone(frames, rate_in), float(draw.choice([1.0, 0.25]))
        pieces = cut(sound, rate_in, random_sizes(number, rate_in // 5))
        live = stream(engines, pieces, resample_rate=rate_out, rms_mix_rate=mix)
        result = joined(live)
        rate = rate_out or engines.synthesizer.info.sample_rate
        assert len(result) == live.frames_out == round(frames * rate / rate_in), (frames, rate_in, rate)
        assert np.isfinite(result).all() and live.rate == rate and live.frames_in == frames


@pytest.mark.parametrize("frames", [441, 442, 4_410, 8_819, 44_101])
def test_whole_and_live_have_one_length(voices: list[Engines], frames: int) -> None:
    """From 10 ms on; 0.1 s is one block, 0.2 s less a sample ends just before a frame does."""
    sound = tone(frames, 44_100)
    settings = ConversionSettings(resample_rate=22_050)
    whole = drain(Rendering(read_source(Audio(sound, 44_100)), voices[0], settings).steps()).store.array()
    assert len(joined(stream(voices[0], iter([Audio(sound, 44_100)]), resample_rate=22_050))) == len(whole)


@pytest.mark.parametrize("rate", [16_000, 44_100, 8_000])
def test_the_way_it_is_cut_changes_no_sample(voices: list[Engines], rate: int) -> None:
    sound = np.stack([tone(rate, rate), 3 * tone(rate, rate)])  # beyond full scale, so that the peak guards work
    results = [
        joined(stream(voices[0], cut(sound, rate, sizes), resample_rate=48_000))
        for sizes in (same_size(rate), same_size(rate // 50), random_sizes(3, rate // 4))
    ]
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])
    mono = joined(stream(voices[0], iter([Audio(sound, rate).mono()]), resample_rate=48_000))
    assert np.array_equal(results[0], mono)


def test_sound_stays_at_its_place(voices: list[Engines]) -> None:
    sound = Audio(tone(32_000, 16_000), 16_000)
    settings = ConversionSettings(rms_mix_rate=1.0)
    whole = drain(Rendering(read_source(sound), voices[0], settings).steps()).store.array()
    live = joined(stream(voices[0], cut(sound.samples, 16_000, same_size(160)), rms_mix_rate=1.0))
    middle = slice(10_000, 70_000)
    lags = range(-400, 401, 20)  # +-10 ms
    scores = [float(np.dot(whole[middle], np.roll(live, lag)[middle])) for lag in lags]
    assert lags[int(np.argmax(scores))] == 0


# --- delay and memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate_in", "rate_out"), [(16_000, 0), (48_000, 48_000), (44_100, 16_000), (8_000, 8_000)])
def test_what_went_in_comes_out_within_the_delay(voices: list[Engines], rate_in: int, rate_out: int) -> None:
    sound = tone(rate_in, rate_in)
    late: list[float] = []

    def arriving() -> Iterator[Audio]:
        for piece in cut(sound, rate_in, random_sizes(5, rate_in // 30)):
            late.append(live.frames_in / rate_in - live.frames_out / live.rate - live.delay)
            yield piece

    live = stream(voices[0], arriving(), resample_rate=rate_out)
    for _ in live:
        pass
    assert max(late) <= 0 and max(late) > -0.15  # it holds, and is not much too large
    assert live.delay < 0.1 + 0.04 + 0.06


def test_an_endless_stream_is_held_in_little_memory(voices: list[Engines]) -> None:
    source = LiveSource()
    held = []
    for second in range(600):
        for _ in source.push(Audio(tone(8_000, 8_000), 8_000)):
            stop = (second + 1) * 16_000 - 320
            assert source.ready(stop)
            source.window(stop - 48_000, stop)
            source.forget(stop - 48_000)
            held.append(source.held)
    assert len(held) == 600 and max(held[10:]) == held[10] < 100_000
    live = stream(voices[0], (Audio(tone(16_000, 16_000), 16_000) for _ in range(12)), LiveSettings(block=1))
    sizes = []
    for _ in live:
        sizes.append(live._source.held)  # noqa: SLF001  the bound is what this test is about
    assert max(sizes) < 100_000


def test_recent_reads_by_position_until_forgotten() -> None:
    recent = Recent()
    for at in range(0, 100, 7):
        recent.append(np.arange(at, min(at + 7, 100), dtype=np.float32))
    recent.forget(30)
    recent.forget(10)
    assert (len(recent), recent.held) == (100, 70)
    assert recent.read(30, 100).tolist() == list(range(30, 100))
    for start, stop in ((29, 40), (90, 101)):
        with pytest.raises(IndexError, match="outside 30..100"):
            recent.read(start, stop)


# --- what is refused, and how it ends --------------------------------------------------------------------------------


@pytest.mark.parametrize(("pieces", "words"), [
    ([Audio(tone(800, 8_000), 8_000), Audio(tone(800, 16_000), 16_000)], "began with 1 x 8000 Hz and goes on with"),
    ([Audio(tone(800, 8_000), 8_000), Audio(np.zeros((2, 800)), 8_000)], "goes on with 2 x 8000 Hz"),
    ([Audio(tone(79, 8_000), 8_000)], "79 samples at 8000 Hz, less than 10 ms"),
    ([], "ended without sound"),
    ([tone(800, 8_000)], "piece of the stream is a ndarray"),
])  # fmt: skip
def test_pieces_that_do_not_fit_are_refused_by_name(voices: list[Engines], pieces: list, words: str) -> None:
    with pytest.raises(AudioError, match=words):
        joined(stream(voices[0], iter(pieces)))


@pytest.mark.parametrize(("changes", "words"), [
    ({"block": 0.01}, "block=0.01 is outside 0.02 to 2 s"), ({"block": True}, "block=True"),
    ({"context": 11}, "context=11 is outside 0.2 to 10 s"), ({"lookahead": float("nan")}, "lookahead=nan"),
    ({"crossfade": 0.1, "lookahead": 0.04}, "crossfade=0.1 is longer than lookahead=0.04"),
])  # fmt: skip
def test_live_settings_out_of_range_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LiveSettings(**changes)


def test_closing_closes_the_source_and_frees_the_networks() -> None:
    closed: list[bool] = []

    def source() -> Iterator[Audio]:
        try:
            while True:
                yield Audio(tone(1_600, 16_000), 16_000)
        finally:
            closed.append(True)

    engines = small_engines(version="v2", rate=40_000)
    network = weakref.ref(engines.synthesizer)
    with stream(engines, source()) as live:
        next(live)
        assert not closed
    assert closed == [True]
    del engines
    gc.collect()
    assert network() is None
    live.close()
    with pytest.raises(StopIteration):
        next(live)


def test_an_error_of_the_source_passes_through(voices: list[Engines]) -> None:
    def broken() -> Iterator[Audio]:
        yield Audio(tone(16_000, 16_000), 16_000)
        raise OSError("the microphone is gone")

    live = stream(voices[0], broken())
    assert next(live).frames > 0
    with pytest.raises(OSError, match="microphone"):
        joined(live)
    assert list(live) == []


# --- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rates", [(44_100, 16_000), (11_025, 16_000), (32_000, 44_100), (16_000, 8_000)])
def test_a_stretch_is_resampled_as_in_the_whole(rates: tuple[int, int]) -> None:
    sound = np.random.default_rng(0).standard_normal(rates[0]).astype(np.float32)
    whole = resample(sound, *rates)
    for start in (0, 1, 4_000):
        stop = start + 1_234
        there = needed_input(*rates, stop)
        part = resampled_span(lambda a, b, there=there: sound[:there][a:b], there, rates, start, stop)
        assert np.abs(part - whole[start:stop]).max() < 1e-6
    end = resampled_span(lambda a, b: sound[a:b], len(sound), rates, len(whole) - 100, len(whole))
    assert np.abs(end - whole[-100:]).max() < 1e-6


def test_the_window_is_the_recording_but_for_the_missing_future() -> None:
    sound = tone(32_000, 16_000)
    source = LiveSource()
    list(source.push(Audio(sound, 16_000)))
    whole = highpass(sound)
    window = source.window(8_000, 24_000)
    error = np.abs(window - whole[8_000:24_000])
    assert error[:-1_600].max() < 1e-4 and error[:-640].max() < 0.01 and error.max() < 0.5
    source.finish()
    assert np.abs(source.window(8_000, 32_000) - whole[8_000:]).max() < 1e-5


def test_peaks_are_held_without_a_step_and_what_is_quiet_passes_bit_for_bit() -> None:
    rate = 32_000
    quiet = tone(2 * rate, rate)
    loud = quiet.copy()
    loud[rate // 2 : rate // 2 + 800] *= 6
    for sound in (quiet, loud):
        guard, out = PeakGuard(OUTPUT_PEAK, rate), []
        for piece in np.array_split(sound, 37):
            out.append(guard.push(piece))
            assert guard.waiting <= guard.held
        result = np.concatenate([*out, guard.finish()])
        assert len(result) == len(sound) and np.abs(result).max() <= 0.9901
        if sound is quiet:
            assert np.array_equal(result, sound)
        heard = np.flatnonzero(np.abs(sound) > 0.1)
        gain = result[heard] / sound[heard]
        assert np.abs(np.diff(gain) / np.diff(heard)).max() < 1 / 160  # no step: lines over 5 ms or longer
        assert gain[-1] > 0.95  # it recovers


def test_loudness_follows_the_source_and_does_not_depend_on_blocks() -> None:
    rate = 32_000
    source, voice = tone(32_000, 16_000, 0.03), tone(64_000, rate, 0.4)
    results = []
    for steps in (5, 25):
        loudness, out = LiveLoudness(0.0), []
        for at in range(0, 100, steps):
            heard, said = source[at * 320 : (at + steps) * 320], voice[at * 640 : (at + steps) * 640]
            out.append(loudness.match(heard, said, steps))
        results.append(np.concatenate(out))
    assert np.allclose(results[0], results[1], atol=1e-7)
    levels = [np.sqrt(np.mean(sound**2)) for sound in (results[0], source)]
    assert abs(20 * np.log10(levels[0] / levels[1])) < 0.5
    assert LiveLoudness(1.0).match(source, voice, 100) is voice


def test_the_block_is_the_smallest_that_keeps_up(voices: list[Engines], monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {10: 0.096, 26: 0.09, 24: 0.09, 50: 0.1, 100: 0.1}
    monkeypatch.setattr(live_warmup, "_measured", lambda engines, settings, grid, runs=3: taken[grid.block])
    chosen = live_warmup.choose_block(voices[0], ConversionSettings(), LiveSettings())
    assert chosen.seconds == 0.25
    assert str(chosen.choice) == "250 ms (takes 90 of 250 ms; 100 ms would take 96 of 100)"
    taken = dict.fromkeys(taken, 1.3)
    chosen = live_warmup.choose_block(voices[0], ConversionSettings(), LiveSettings())
    assert str(chosen.choice) == "1000 ms (takes 1300 of 1000 ms: too slow for this machine, expect gaps)"
    assert "as set" in live_warmup.choose_block(voices[0], ConversionSettings(), QUICK).choice.reason


def test_the_measurement_runs_real_blocks(voices: list[Engines]) -> None:
    live = stream(voices[0], iter([Audio(tone(16_000, 16_000), 16_000)]), LiveSettings())
    assert live.engines["block"].value in {"100 ms", "250 ms", "500 ms", "1000 ms"}
    assert len(joined(live)) == 40_000


# --- the demo voice --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo() -> VC:
    vc = VC()
    vc.load("demo")
    return vc


@pytest.fixture(scope="module")
def speech(demo: VC) -> Audio:
    """Four seconds: a real recording where there is one, else a shipped, synthesised sentence."""
    path = RECORDING if RECORDING.is_file() else Path(demo.config.demo_dir) / "examples/source_awb.wav"
    sound = read_audio(path, mono=True)
    return Audio(sound.samples[: 4 * sound.rate], sound.rate)


def beginning(speech: Audio) -> Audio:
    return Audio(speech.samples[: 3 * speech.rate // 2], speech.rate)


@pytest.fixture(scope="module")
def plain(demo: VC, speech: Audio) -> np.ndarray:
    """The beginning, streamed with nothing but a key."""
    return joined(demo.stream(iter([beginning(speech)]), None, LiveSettings(block=0.24), f0_method="pm", key=7))


def test_streamed_speech_is_near_the_whole_and_has_no_click(demo: VC, speech: Audio) -> None:
    settings = ConversionSettings(f0_method="pm", key=7)
    whole = demo.convert(speech, settings)
    live = demo.stream(cut(speech.samples, speech.rate, same_size(500)), settings, LiveSettings(block=0.24))
    blocks, f0 = [], []
    for block in live:
        blocks.append(block.samples)
        f0.append(live.result_f0)
    sound, a = np.concatenate(blocks), whole.audio.samples
    assert len(sound) == len(a) and live.rate == whole.rate
    near, late = (log_mel_distance(a, other, live.rate) for other in (sound, np.roll(a, 640)))
    assert near < 3.5 and near < 0.8 * late, (near, late)  # far from what one content frame too late would be
    places = join_places(len(a), 7_680, 640)
    worst, _ = join_scores(sound, a, places, live.rate)
    assert worst <= 6.0
    quiet = min(places, key=lambda at: np.abs(sound[at - 1_000 : at + 1_000]).max())
    broken = sound + 0.05 * (np.arange(len(sound)) >= quiet)  # the score does see a click of -26 dB
    assert join_scores(broken, a, [quiet], live.rate)[0] > 6.0
    result = np.concatenate(f0)[: len(whole.result_f0)]
    both = (result > 0) & (whole.result_f0[: len(result)] > 0)
    assert ((result > 0) == (whole.result_f0[: len(result)] > 0)).mean() > 0.93
    cents = np.abs(1200 * np.log2(result[both] / whole.result_f0[: len(result)][both]))
    assert np.median(cents) < 5 and (cents < 50).mean() > 0.95
    assert live.engines["pitch"].value == "pm" and live.engines["key"].reason == "+7 semitones as set"


@pytest.mark.parametrize("changes", [
    {"formant": 3.0, "resample_rate": 44_100}, {"autotune": 1.0, "scale": "A minor", "profile": "r26"},
    {"index_rate": 0.0, "rms_mix_rate": 0.0, "speaker": 1, "protect": 0.5},
    {"auto_key": "voice"}, {"f0_curve": "curve"},
], ids=str)  # fmt: skip
def test_every_setting_reaches_the_stream(
    demo: VC, speech: Audio, plain: np.ndarray, tmp_path: Path, changes: dict
) -> None:
    if "f0_curve" in changes:
        changes = {"f0_curve": tmp_path / "curve.csv"}
        changes["f0_curve"].write_text("0.0, 180\n1.5, 220\n")
    clip = beginning(speech)
    settings = ConversionSettings(f0_method="pm", key=0 if "auto_key" in changes else 7).changed(**changes)
    whole = demo.convert(clip, settings)
    live = demo.stream(cut(clip.samples, clip.rate, same_size(2_000)), settings, LiveSettings(block=0.24))
    sound = joined(live)
    assert len(sound) == whole.frames
    assert log_mel_distance(whole.audio.samples, sound, live.rate) < 5.0
    if "auto_key" in changes:
        assert abs(float(live.engines["key"].value) - float(whole.engines["key"].value)) <= 2
        assert "found in the first 0." in live.engines["key"].reason
    if "f0_curve" in changes:
        assert live.result_f0[:7] == pytest.approx(np.linspace(218.4, 220, 7), abs=0.01)
    assert len(plain) != len(sound) or not np.allclose(plain, sound, atol=1e-3)


def test_silence_stays_silent_and_the_same_seed_gives_the_same_samples(demo: VC, speech: Audio) -> None:
    silence = demo.stream(iter([Audio(np.zeros(16_000), 16_000)]), None, LiveSettings(block=0.24), f0_method="pm")
    assert np.abs(joined(silence)).max() < 1e-3
    clip = Audio(speech.samples[: speech.rate // 2], speech.rate)
    first, again, other = (
        joined(demo.stream(iter([clip]), None, LiveSettings(block=0.24), f0_method="pm", seed=seed))
        for seed in (3, 3, 4)
    )
    assert np.array_equal(first, again) and not np.allclose(first, other, atol=1e-4)
