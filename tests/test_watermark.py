"""The watermark: our networks against the published package, the delta method at every rate, and every loud failure."""

from __future__ import annotations

import importlib
import io
import json
import sys
import types
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from rvc_spark import audio_watermark, perth_weights
from rvc_spark.audio import (
    Audio,
    EncodeOptions,
    WatermarkWarning,
    encode_audio,
    encode_whole,
    open_pipe,
    open_writer,
    read_audio,
    use_watermark,
    watermark_in_use,
    write_audio,
    write_whole,
)
from rvc_spark.audio_watermark import Examiner, Marker, WatermarkReport, approve, marked_whole
from rvc_spark.cli import main
from rvc_spark.errors import (
    ConfigError,
    MissingPackageError,
    OutputError,
    WatermarkError,
    WatermarkModelError,
)
from rvc_spark.installed_packages import is_installed, package_folder
from rvc_spark.perth_network import BANDS, HOP, SAMPLE_RATE, Perth, PerthNetwork
from rvc_spark.perth_weights import load_perth, weights_path
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.watermark import verify_watermark

if not is_installed("perth"):
    pytest.skip("resemble-perth is not installed: pip install resemble-perth", allow_module_level=True)

PERTH = EncodeOptions(watermark="perth")
EXAMPLES = RVCConfig().demo_dir / "examples"


@pytest.fixture(scope="module")
def speech() -> Audio:
    """3.8 s of a person, 16 kHz."""
    return read_audio(EXAMPLES / "source_awb.wav")


@pytest.fixture(scope="module")
def at_32k(speech: Audio) -> np.ndarray:
    return speech.resampled(SAMPLE_RATE).samples


@pytest.fixture(autouse=True)
def nothing_is_left_chosen():
    yield
    use_watermark(None)


def power_db(samples: np.ndarray, rate: int, above: float) -> float:
    """Energy above a frequency, dB of the sum of squares."""
    spectrum = np.abs(np.fft.rfft(samples.astype(np.float64))) ** 2
    return 10 * np.log10(spectrum[np.fft.rfftfreq(samples.shape[-1], 1 / rate) > above].sum() / len(samples))


def mp3_of_64_kilobits(sound: Audio) -> bytes:
    """Constant bit rate, as it is sent around."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp3") as container:
        track = container.add_stream("mp3", rate=sound.rate)
        track.bit_rate, track.layout, track.format = 64_000, "mono", "fltp"
        frame = av.AudioFrame.from_ndarray(sound.mono().samples[None], "fltp", "mono")
        frame.sample_rate = sound.rate
        for packet in [*track.encode(frame), *track.encode(None)]:
            container.mux(packet)
    return stream.getvalue()


# ---- against the published package -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published():
    """The package's own watermarker. It needs two modules nobody installs for it: stand-ins for what it calls of them.

    At 32 kHz it resamples nothing, so the stand-in for librosa is never asked.
    """
    pytest.importorskip("torchaudio", reason="the published package computes its spectrogram with torchaudio")
    resources, librosa = types.ModuleType("pkg_resources"), types.ModuleType("librosa")
    resources.resource_filename = lambda name, path: str(package_folder("perth") / "perth_net" / path)
    librosa.resample = None
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.split(".")[0] in ("perth", "librosa", "pkg_resources")]:
            patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, "pkg_resources", resources)
        patch.setitem(sys.modules, "librosa", librosa)
        package = importlib.import_module("perth")
        assert package.PerthImplicitWatermarker is not None
        yield package.PerthImplicitWatermarker()
        for name in [name for name in sys.modules if name.split(".")[0] == "perth"]:
            del sys.modules[name]


def test_mark_and_score_are_those_of_the_published_package(published, at_32k):
    perth = load_perth()
    silence = np.zeros(20_000, np.float32)
    noise = 0.1 * np.random.default_rng(1).standard_normal(40_000).astype(np.float32)
    for sound in (at_32k, np.concatenate([silence, at_32k, silence[:9_001]]), at_32k[:5_000], noise):
        theirs = published.apply_watermark(sound, SAMPLE_RATE)
        change = theirs - sound[: len(theirs)]  # theirs ends up to a hop early
        ours = perth.delta(sound)
        assert len(ours) == len(sound)
        np.testing.assert_allclose(ours[: len(theirs)], change, atol=2e-5 * np.abs(change).max())
        for judged in (sound, sound + ours):
            expected = published.get_watermark(judged, SAMPLE_RATE, round=False)
            assert perth.judge(judged).score == pytest.approx(float(expected), abs=1e-4)


def test_the_published_package_says_nothing_when_it_cannot_work(monkeypatch):
    """Why there is a loader here: without pkg_resources, which new setuptools lack, the class is None."""
    for name in [name for name in sys.modules if name.split(".")[0] == "perth"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pkg_resources", None)
    package = importlib.import_module("perth")
    assert package.PerthImplicitWatermarker is None
    assert load_perth().judge(np.zeros(4_000, np.float32)).frames == 0  # ours does not care
    for name in [name for name in sys.modules if name.split(".")[0] == "perth"]:
        monkeypatch.delitem(sys.modules, name)


# ---- the delta method ------------------------------------------------------------------------------------------------


def test_how_a_sound_is_cut_changes_not_one_bit(at_32k):
    random = np.random.default_rng(0)
    perth = load_perth()
    whole = perth.delta(at_32k)
    for longest in (700, 9_000, 70_000):
        stream, pieces, start = perth.stream(), [], 0
        while start < len(at_32k):
            count = int(random.integers(1, longest))
            pieces.append(stream.push(at_32k[start : start + count]))
            start += count
        assert np.array_equal(np.concatenate([*pieces, stream.finish()]), whole)
    twice = np.stack([at_32k, 0.5 * at_32k])
    marker = Marker(SAMPLE_RATE, 2)
    joined = [marker.push(twice[:, start : start + 1_234]) for start in range(0, len(at_32k), 1_234)]
    assert np.array_equal(np.concatenate([*joined, marker.finish()], axis=1), marked_whole(twice, SAMPLE_RATE))


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000, 192_000])
def test_any_rate_and_channels_keep_length_and_are_found(speech, rate):
    left = speech.resampled(rate).samples
    sound = np.stack([left, 0.3 * left[::-1]])
    marked = marked_whole(sound, rate)
    assert marked.shape == sound.shape and marked.dtype == np.float32
    change = marked - sound
    np.testing.assert_allclose(change[0], change[1], atol=1e-6)  # every channel gets the same
    report = verify_watermark(Audio(marked, rate))
    assert report.present and report.score > 0.99 and report.marked_seconds == report.seconds > 3
    assert power_db(change[0], rate, 2_300) < power_db(change[0], rate, 0) - 60  # nothing of it above 2 kHz


def test_what_is_above_17_khz_stays_as_it_is(speech):
    rate = 44_100
    base = speech.resampled(rate).samples
    hiss = np.random.default_rng(0).standard_normal(len(base))
    spectrum = np.fft.rfft(hiss)
    spectrum[np.fft.rfftfreq(len(hiss), 1 / rate) < 17_500] = 0
    sound = (base + 0.003 * np.fft.irfft(spectrum, len(hiss))).astype(np.float32)[None]
    marked = marked_whole(sound, rate)
    before, after = power_db(sound[0], rate, 17_500), power_db(marked[0], rate, 17_500)
    assert abs(after - before) < 0.01 and before > -60
    assert verify_watermark(Audio(marked, rate)).score > 0.99
    share = 10 * np.log10(((marked - sound) ** 2).sum() / (sound**2).sum())
    assert -20 < share < -12  # dB: the mark is no small thing


def test_silence_stays_silence_and_carries_nothing(tmp_path):
    silence = Audio(np.zeros((2, 48_000), np.float32), 48_000)
    with pytest.warns(WatermarkWarning, match="digital silence"):
        written = write_whole(tmp_path / "a.flac", silence, PERTH)
    assert not read_audio(written.path).samples.any()
    assert not written.watermark.present and written.watermark.score is None


@pytest.mark.parametrize("milliseconds", [1, 20, 63])
def test_less_than_a_frame_is_left_alone_and_that_is_said(speech, milliseconds):
    clip = Audio(speech.samples[20_000 : 20_000 + 16 * milliseconds], 16_000)
    options = EncodeOptions(watermark="perth", sample_format="float32")
    with pytest.warns(WatermarkWarning, match="less than one frame of 0.064 s"):
        done = encode_whole(clip, options)
    assert np.array_equal(read_audio(done.data).samples, clip.samples)
    assert not done.watermark.present


def test_silence_around_speech_does_not_hide_the_mark(speech):
    still = np.zeros(5 * 16_000, np.float32)
    report = encode_whole(Audio(np.concatenate([still, speech.samples, still]), 16_000), PERTH).watermark
    assert report.present and report.score > 0.99 and report.seconds < speech.seconds + 0.3


def test_a_long_sound_is_judged_in_windows_and_a_part_without_mark_is_told(speech):
    long = np.tile(speech.samples, 8)  # 30 s
    marked = marked_whole(long[None], 16_000)[0]
    assert verify_watermark(Audio(marked, 16_000)).reason.startswith("found in all of 30")
    half = Audio(np.concatenate([marked[: 20 * 16_000], long]), 16_000)
    report = verify_watermark(half)
    assert not report.present and 19 < report.marked_seconds < 21 and "another part is not marked" in report.reason


def test_the_mark_survives_what_happens_to_sound(speech):
    rate = 44_100
    marked = Audio(marked_whole(speech.resampled(rate).samples[None], rate)[0], rate)
    mp3 = mp3_of_64_kilobits(marked)
    assert len(mp3) * 8 / marked.seconds < 67_000
    ogg = encode_audio(marked, EncodeOptions(format="ogg", quality=0.0, watermark="none"))
    quiet = Audio(marked.samples * 10 ** (-10 / 20), rate)
    crop = Audio(marked.samples[20_000 : 20_000 + 3 * rate], rate)
    noisy = Audio(
        marked.samples + 0.001 * np.random.default_rng(0).standard_normal(marked.frames).astype(np.float32), rate
    )
    for changed in (mp3, ogg, quiet, crop, noisy, marked.resampled(16_000), marked.resampled(8_000)):
        assert verify_watermark(changed).score > 0.95
    assert verify_watermark(speech).score < 0.1


# ---- which one is written --------------------------------------------------------------------------------------------


def test_none_is_the_default_and_writes_the_same_bytes_as_ever(speech, monkeypatch):
    assert RVCConfig().watermark == "none" and watermark_in_use() == "none"
    assert encode_audio(speech) == encode_audio(speech, EncodeOptions(watermark="none"))
    assert encode_whole(speech).watermark is None
    assert repr(EncodeOptions(watermark="perth")) == repr(EncodeOptions())  # finished batches stay finished


def test_the_settings_decide_where_nobody_else_does(speech, monkeypatch):
    monkeypatch.setenv("RVC_SPARK_WATERMARK", "perth")
    assert verify_watermark(encode_audio(speech)).present
    assert not verify_watermark(encode_audio(speech, EncodeOptions(watermark="none"))).present
    use_watermark("none")
    assert not verify_watermark(encode_audio(speech)).present
    monkeypatch.setenv("RVC_SPARK_WATERMARK", "invisible ink")
    use_watermark(None)
    with pytest.raises(ConfigError, match="invisible ink"):
        encode_audio(speech)


def test_unknown_names_are_refused():
    with pytest.raises(OutputError, match="cannot be 'audioseal'. Choose one of none, perth"):
        EncodeOptions(watermark="audioseal")
    with pytest.raises(ConfigError, match="no watermark"):
        use_watermark("ink")


def test_block_by_block_is_the_same_file_as_whole(speech, tmp_path):
    whole = encode_audio(speech, PERTH)
    with open_writer(tmp_path / "a.wav", 16_000, 1, PERTH) as writer:
        assert writer.watermark is None
        for start in range(0, speech.frames, 999):
            writer.write(speech.samples[start : start + 999])
    assert (tmp_path / "a.wav").read_bytes() == whole
    assert writer.watermark.present and writer.frames == speech.frames == read_audio(whole).frames
    stream = io.BytesIO()
    pipe = open_pipe(stream, 16_000, 1, PERTH)
    for start in range(0, speech.frames, 999):
        pipe.write(speech.samples[start : start + 999])
    early = len(stream.getvalue())
    pipe.finish()
    assert 44 < early < len(stream.getvalue())
    piped = np.frombuffer(stream.getvalue()[-2 * speech.frames :], "<i2")
    assert np.array_equal(piped / 32_768, read_audio(whole).samples) and pipe.watermark.present


def test_full_scale_and_the_mark(speech):
    loud = Audio(speech.samples / np.abs(speech.samples).max() * 1.2, 16_000)
    scaled = encode_whole(loud, EncodeOptions(watermark="perth", over_range="scale"))
    assert scaled.clipped == 0 and scaled.watermark.present
    assert 0.97 < np.abs(read_audio(scaled.data).samples).max() <= 0.995
    clipped = encode_whole(loud, PERTH)
    assert clipped.clipped > 0 and clipped.watermark.score > 0.99
    assert verify_watermark(clipped.data).present


# ---- failing loudly --------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh():
    """Weights are read once per process; here every time."""
    perth_weights._loaded.cache_clear()
    yield
    perth_weights._loaded.cache_clear()


def test_without_the_package_nothing_is_written_and_the_command_is_told(monkeypatch, fresh, speech, tmp_path, capsys):
    monkeypatch.setattr(perth_weights, "package_folder", lambda package: None)
    for write in (
        lambda: write_audio(tmp_path / "a.wav", speech, options=PERTH),
        lambda: open_writer(tmp_path / "a.wav", 16_000, 1, PERTH),
        lambda: open_pipe(io.BytesIO(), 16_000, 1, PERTH),
        lambda: encode_audio(speech, PERTH),
        lambda: verify_watermark(speech),
    ):
        with pytest.raises(MissingPackageError, match="resemble-perth.*Run: pip install resemble-perth"):
            write()
    assert main(["watermark", "verify", str(EXAMPLES / "source_awb.wav")]) == MissingPackageError.exit_code
    assert "pip install resemble-perth" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_package_without_its_file_is_refused(monkeypatch, fresh, tmp_path, speech):
    monkeypatch.setattr(perth_weights, "package_folder", lambda package: tmp_path)
    with pytest.raises(WatermarkModelError, match="has no file perth_net"):
        encode_audio(speech, PERTH)


def altered(**changes) -> dict:
    """The published tensors, some of them replaced."""
    return {"model": {**torch.load(weights_path(), map_location="cpu", weights_only=True)["model"], **changes}}


def test_weights_that_are_not_perths_or_do_not_mark_are_refused(tmp_path, fresh):
    last = "encoder.layers.6.conv.weight"
    bias = "encoder.layers.6.conv.bias"
    cases = {
        "it lacks the section model": {"state": {}},
        "not finite": altered(**{last: torch.full((BANDS, 256, 1), torch.nan)}),
        "names or shapes differ": altered(**{last: torch.zeros(7, 256, 1), bias: torch.zeros(7)}),
        "do not work: noise scores 0.00 without and 0.00": altered(
            **{last: torch.zeros(BANDS, 256, 1), bias: torch.zeros(BANDS)}
        ),
    }
    for number, (words, document) in enumerate(cases.items()):
        path = tmp_path / f"{number}.pth.tar"
        torch.save(document, path)
        with pytest.raises(WatermarkModelError, match=words):
            load_perth(path)
        path.unlink()


def test_a_file_that_would_run_code_is_refused(tmp_path):
    import pickle

    class Harmful:
        def __reduce__(self):
            return print, ("it ran",)

    path = tmp_path / "perth.pth.tar"
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(WatermarkModelError, match="refused as a watermark model"):
        load_perth(path)


def test_a_mark_that_is_not_found_is_an_error_and_leaves_no_file(tmp_path):
    time = np.arange(3 * 32_000) / 32_000
    chord = sum(0.1 * np.sin(2 * np.pi * hertz * time) for hertz in (220, 277, 330, 440, 554))
    with pytest.raises(WatermarkError, match=r"score 0\.\d\d over 3.0 s, 0.8 is needed.*watermark='none'"):
        write_audio(tmp_path / "chord.wav", Audio(chord.astype(np.float32), 32_000), options=PERTH)
    assert list(tmp_path.iterdir()) == []


def test_only_what_cannot_carry_a_mark_may_be_written_without(monkeypatch):
    def report(**values) -> WatermarkReport:
        return WatermarkReport(**{
            "kind": "perth", "present": False, "score": 0.6, "seconds": 0.4, "marked_seconds": 0.0, "reason": "short",
            **values,
        })  # fmt: skip

    assert approve(report(present=True)) == ""
    assert approve(report()) == "short" and approve(report(score=None, seconds=0.0)) == "short"
    with pytest.raises(WatermarkError):
        approve(report(seconds=1.0))


def test_the_network_is_given_what_it_was_trained_on():
    perth = load_perth()
    assert isinstance(perth, Perth) and isinstance(perth.network, PerthNetwork)
    assert perth.network.encoder.reach == 15 and HOP * 100 == SAMPLE_RATE
    with pytest.raises(KeyError):
        PerthNetwork({})


# ---- verify ----------------------------------------------------------------------------------------------------------


def test_verify_on_the_command_line(tmp_path, speech, capsys):
    marked = write_audio(tmp_path / "marked.mp3", speech, options=PERTH)
    plain = write_audio(tmp_path / "plain.wav", speech)
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF and nothing")
    assert main(["watermark", "verify", str(marked)]) == 0
    assert "perth present, score 1.00: found in all of 3." in capsys.readouterr().out
    assert main(["watermark", "verify", "--json", str(marked), str(plain)]) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["present"] and first["score"] > 0.99 and first["kind"] == "perth"
    assert not second["present"] and second["score"] < 0.1
    assert main(["watermark", "verify", str(broken), str(marked), "--json"]) == 3
    assert [json.loads(line).get("present") for line in capsys.readouterr().out.splitlines()] == [None, True]


def test_verify_takes_files_bytes_streams_and_sound(tmp_path, speech):
    marked = encode_audio(speech, PERTH)
    path = tmp_path / "a.wav"
    path.write_bytes(marked)
    reports = [verify_watermark(sound) for sound in (path, str(path), marked, io.BytesIO(marked), read_audio(marked))]
    assert len(set(reports)) == 1 and reports[0].present
    assert reports[0].report()["seconds"] == reports[0].seconds


def test_blocks_of_any_size_give_one_verdict(speech):
    verdicts = set()
    for size in (160, 5_000, speech.frames):
        examiner = Examiner(16_000)
        for start in range(0, speech.frames, size):
            examiner.push(speech.samples[None, start : start + size])
        verdicts.add(examiner.finish())
    assert len(verdicts) == 1


def test_no_warning_for_what_is_marked(speech):
    with warnings.catch_warnings():
        warnings.simplefilter("error", WatermarkWarning)
        encode_audio(speech, PERTH)
    assert audio_watermark.PRESENT_SCORE == 0.8


def test_the_weights_lie_where_the_package_lies():
    assert weights_path() == Path(package_folder("perth")) / perth_weights.WEIGHTS_FILE
