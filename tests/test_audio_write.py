"""Writing sound: dither and rounding, nothing wraps, and a file appears whole or not at all."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rvc_spark import audio_encode
from rvc_spark.audio import Audio, EncodeOptions, encode_audio, open_writer, read_audio, write_audio
from rvc_spark.errors import AudioError, OutputError


def sine(hertz: float, seconds: float, rate: int, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def steps_of(audio: Audio, **options) -> np.ndarray:
    return np.rint(read_audio(encode_audio(audio, EncodeOptions(**options))).samples * 32_768)


def test_dither_has_the_level_of_triangular_noise_and_keeps_what_rounding_loses():
    faint = Audio(sine(1_000, 2.0, 16_000, 0.4 / 32_768), 16_000)  # less than half a step: plain rounding hears nothing
    assert not steps_of(faint, dither=False).any()
    error = steps_of(faint) - faint.samples * 32_768
    assert np.std(error) == pytest.approx(0.5, rel=0.03)  # variance: 1/12 of rounding + 2/12 of the noise = 1/4 step^2
    spectrum = np.abs(np.fft.rfft(steps_of(faint)))
    assert np.argmax(spectrum) == 2_000  # 1000 Hz over 2 s
    assert abs(np.mean(error)) < 0.02


def test_dither_is_seeded_and_does_not_depend_on_blocks(tmp_path):
    audio = Audio(np.stack([sine(440, 0.5, 16_000), sine(443, 0.5, 16_000)]), 16_000)
    whole = encode_audio(audio)
    with open_writer(tmp_path / "a.wav", 16_000, 2) as writer:
        for start in range(0, audio.frames, 333):
            writer.write(audio.samples[:, start : start + 333])
    assert (tmp_path / "a.wav").read_bytes() == whole == encode_audio(audio)
    assert encode_audio(audio, EncodeOptions(seed=1)) != whole


def test_digital_silence_stays_silent():
    assert not steps_of(Audio(np.zeros(1_000), 16_000)).any()


def test_beyond_full_scale_nothing_wraps(tmp_path):
    loud = Audio(sine(440, 0.5, 16_000, 3.0), 16_000)
    for sample_format in ("pcm16", "pcm24"):
        clipped = read_audio(encode_audio(loud, EncodeOptions(sample_format=sample_format))).samples
        np.testing.assert_allclose(clipped, np.clip(loud.samples, -1, 1), atol=1e-4)
    scaled = read_audio(encode_audio(loud, EncodeOptions(over_range="scale"))).samples
    np.testing.assert_allclose(scaled, loud.samples * 0.99 / 3, atol=2e-3)
    np.testing.assert_array_equal(
        read_audio(encode_audio(loud, EncodeOptions(sample_format="float32"))).samples, loud.samples
    )
    with pytest.raises(AudioError, match="full scale is 1"):
        encode_audio(loud, EncodeOptions(over_range="refuse"))
    with open_writer(tmp_path / "a.wav", 16_000, 1) as writer:
        writer.write(loud.samples)
    assert writer.clipped == np.count_nonzero(np.abs(loud.samples) > 1)


# --- the writer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, AudioError])
def test_a_broken_off_file_never_appears(tmp_path, format, failure):
    target = tmp_path / f"a.{format}"
    target.write_bytes(b"what was there before")
    with pytest.raises(failure), open_writer(target, 16_000, 1) as writer:
        writer.write(sine(440, 0.5, 16_000))
        if failure is KeyboardInterrupt:
            raise KeyboardInterrupt
        writer.write(np.array([0.0, np.nan], np.float32))
    assert target.read_bytes() == b"what was there before"
    assert os.listdir(tmp_path) == [target.name]


def test_an_empty_file_never_appears(tmp_path):
    with pytest.raises(AudioError, match="no samples"), open_writer(tmp_path / "a.wav", 16_000, 1):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "options", "rate", "channels", "message"),
    [
        ("a.xyz", {}, 16_000, 1, "suffix"),
        ("a", {}, 16_000, 1, "suffix"),
        ("a.mp3", {"format": "wav"}, 16_000, 1, "suffix"),
        ("a.flac", {"sample_format": "float32"}, 16_000, 1, "float32"),
        ("a.mp3", {"format": "mp3", "sample_format": "pcm16"}, 16_000, 1, "pcm16"),
        ("a.mp3", {}, 40_000, 1, "40000 Hz"),
        ("a.mp3", {}, 16_000, 3, "3 channels"),
        ("a.wav", {"format": "wma"}, 16_000, 1, "wma"),
        ("a.ogg", {"quality": 2.0}, 16_000, 1, "2.0"),
        ("a.wav", {"over_range": "wrap"}, 16_000, 1, "wrap"),
        ("a.wav", {"over_range": "scale"}, 16_000, 1, "write_audio"),
        ("missing/a.wav", {}, 16_000, 1, "does not exist"),
        ("folder.wav", {}, 16_000, 1, "a folder"),
        ("null.wav", {}, 16_000, 1, "a device"),
        ("x" * 300 + ".wav", {}, 16_000, 1, "cannot be written"),
        ("a\0.wav", {}, 16_000, 1, "cannot be written"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(tmp_path, name, options, rate, channels, message):
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "null.wav").symlink_to(os.devnull)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OutputError, match=message) as caught:
        open_writer(tmp_path / name, rate, channels, EncodeOptions(**options))
    assert caught.value.next_step
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX thing")
@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path, format):
    script = (
        "import resource, sys, numpy as np\n"
        "from rvc_spark.audio import Audio, write_audio\nfrom rvc_spark.errors import OutputError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "noise = np.random.default_rng(0).uniform(-0.9, 0.9, 400_000).astype(np.float32)\n"
        "try:\n    write_audio(sys.argv[1], Audio(noise, 16_000))\n"
        "except OutputError as error:\n    print('refused:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / f"a.{format}"],
        cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.startswith("refused:"), done.stderr
    assert done.stderr == ""
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("sample_format", ["pcm16", "pcm24", "float32"])
def test_wav_beyond_four_gigabytes_becomes_rf64(tmp_path, monkeypatch, sample_format):
    monkeypatch.setattr(audio_encode, "MAX_RIFF_BYTES", 1_000)  # the same code path without writing 4 GiB
    audio = Audio(sine(440, 0.5, 16_000), 16_000)
    path = write_audio(tmp_path / "a.wav", audio, options=EncodeOptions(sample_format=sample_format))
    assert path.read_bytes()[:4] == b"RF64"
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == 16_000
    np.testing.assert_allclose(samples, audio.samples, atol=1e-4)
    np.testing.assert_array_equal(read_audio(path).samples, samples)
    path.write_bytes(path.read_bytes()[:-3_000])
    with pytest.raises(AudioError, match="cut off"):
        read_audio(path)


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_a_comment_is_in_the_tags_and_changes_no_sample(format):
    audio = Audio(sine(440, 0.5, 16_000), 16_000)
    plain = encode_audio(audio, EncodeOptions(format=format))
    told = encode_audio(audio, EncodeOptions(format=format, comment="weights: CC BY-NC-SA 4.0 – ne pas vendre"))
    with soundfile.SoundFile(io.BytesIO(told)) as file:
        assert file.comment == "weights: CC BY-NC-SA 4.0 – ne pas vendre"
    np.testing.assert_array_equal(read_audio(told).samples, read_audio(plain).samples)


@pytest.mark.parametrize("comment", ["two\nlines", "x" * 1_001, "\0"])
def test_a_comment_that_cannot_be_kept_is_refused(comment):
    with pytest.raises(OutputError, match="comment has"):
        EncodeOptions(comment=comment)
