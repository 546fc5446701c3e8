"""AAC in MP4 keeps its length and place to the frame, and every format says in words what it is."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
import soundfile

from rvc_spark.audio import (
    Audio,
    EncodeOptions,
    encode_audio,
    open_audio,
    open_writer,
    read_audio,
    read_tags,
    write_audio,
)
from rvc_spark.audio_encode import RATES, SAMPLE_FORMATS, nearest_rate
from rvc_spark.errors import AudioError, OutputError

TAGS = {"title": "Für Elise – 日本", "artist": "demo sings", "comment": "AI-generated cover: the voice is a model"}


def chord(frames: int, rate: int, channels: int = 2) -> np.ndarray:
    time = np.arange(frames) / rate
    tones = [np.sin(2 * np.pi * hz * time + hz) for hz in (220, 330, 517, 901)]
    fade = np.minimum(1, np.minimum(np.arange(frames) + 1, np.arange(frames, 0, -1)) / (0.02 * rate))
    sound = 0.1 * sum(tones) * fade
    return np.stack([sound, 0.5 * sound])[:channels].astype(np.float32)


@pytest.mark.parametrize(
    ("frames", "rate", "channels"),
    [
        (44_100, 44_100, 2),
        (48_011, 48_000, 1),
        (9_001, 8_000, 1),
        (30_303, 96_000, 2),
        (1_024, 22_050, 2),
        (1, 44_100, 1),
    ],
)
def test_m4a_comes_back_as_long_as_it_went_in_and_in_place(frames, rate, channels):
    samples = chord(frames, rate, channels)
    again = read_audio(encode_audio(Audio(samples, rate), EncodeOptions(format="m4a")))
    assert (again.frames, again.rate, again.channels) == (frames, rate, channels)
    if frames > 5_000:
        back = np.atleast_2d(again.samples)
        lags = [float(np.sum(np.roll(back, lag, axis=1) * samples)) for lag in range(-5, 6)]
        assert np.argmax(lags) == 5
        assert np.sqrt(np.mean((back - samples) ** 2)) < 0.1 * np.std(samples)


def test_m4a_quality_is_a_size_and_the_suffix_a_format(tmp_path):
    audio = Audio(np.random.default_rng(0).uniform(-0.3, 0.3, (2, 88_200)), 44_100)
    sizes = [len(encode_audio(audio, EncodeOptions(format="m4a", quality=quality))) for quality in (0.2, 0.8)]
    assert sizes[0] < 0.6 * sizes[1]
    path = write_audio(tmp_path / "a.m4a", audio)
    with open_audio(path) as reader:
        assert reader.kind == "mp4"
    assert os.listdir(tmp_path) == ["a.m4a"]


@pytest.mark.parametrize(("rate", "channels"), [(40_000, 2), (192_000, 2), (44_100, 6)])
def test_m4a_refuses_what_it_cannot_hold(tmp_path, rate, channels):
    with pytest.raises(OutputError, match=f"m4a cannot hold {channels} channels at {rate} Hz"):
        open_writer(tmp_path / "a.m4a", rate, channels)
    assert os.listdir(tmp_path) == []


def test_a_broken_off_m4a_never_appears(tmp_path):
    target = tmp_path / "a.m4a"
    target.write_bytes(b"before")
    with pytest.raises(AudioError), open_writer(target, 44_100, 1) as writer:
        writer.write(chord(44_100, 44_100, 1))
        writer.write(np.array([np.nan], np.float32))
    assert target.read_bytes() == b"before" and os.listdir(tmp_path) == ["a.m4a"]


class FullDisk(io.BytesIO):
    def write(self, data: bytes) -> int:
        if self.tell() > 4_000:
            raise OSError(28, "No space left on device")
        return super().write(data)


def test_a_full_disk_stops_m4a():
    from rvc_spark.audio_writer import SampleWriter

    writer = SampleWriter(FullDisk(), 44_100, 2, EncodeOptions(format="m4a").resolved())
    with pytest.raises(OSError, match="No space"):
        for _ in range(40):
            writer.write(chord(44_100, 44_100))
        writer.finish()
    writer.abandon()


def test_a_rate_a_format_lacks_becomes_the_next_it_has():
    assert nearest_rate("mp3", 40_000) == 44_100 and nearest_rate("mp3", 96_000) == 48_000
    assert nearest_rate("m4a", 96_000) == 96_000 and nearest_rate("flac", 40_000) == 40_000
    assert all(nearest_rate(name, rate) == rate for name, rates in RATES.items() for rate in rates)


@pytest.mark.parametrize("format", SAMPLE_FORMATS)
def test_every_format_says_what_it_is_and_keeps_its_samples(format):
    audio = Audio(chord(20_000, 44_100), 44_100)
    told = encode_audio(audio, EncodeOptions(format=format, **TAGS))
    found = read_tags(told)
    assert {name: found[name] for name in TAGS} == TAGS
    plain = encode_audio(audio, EncodeOptions(format=format))
    assert not set(TAGS) & set(read_tags(plain))
    np.testing.assert_array_equal(read_audio(told).samples, read_audio(plain).samples)
    if format != "m4a":
        with soundfile.SoundFile(io.BytesIO(told)) as file:  # another reader sees them too
            assert (file.title, file.artist, file.comment) == tuple(TAGS.values())


@pytest.mark.parametrize("name", TAGS)
@pytest.mark.parametrize("text", ["two\nlines", "x" * 1_001, "\0"])
def test_words_that_cannot_be_kept_are_refused(name, text):
    with pytest.raises(OutputError, match=f"{name} has"):
        EncodeOptions(**{name: text})


def test_tags_of_no_sound_are_an_error():
    with pytest.raises(AudioError):
        read_tags(b"this is a letter and no sound at all" * 10)
