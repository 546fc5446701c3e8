"""Sound in and out: every container and sample type, from every kind of source, comes back as it was."""

from __future__ import annotations

import io
import math
import os
import threading
import tracemalloc
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rvc_spark.audio import (
    Audio,
    EncodeOptions,
    StreamResampler,
    encode_audio,
    open_audio,
    open_writer,
    read_audio,
    write_audio,
)

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "rvc" / "functions"


def sine(hertz: float, seconds: float, rate: int, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def decibels(signal: np.ndarray, error: np.ndarray) -> float:
    return 10 * math.log10(
        float(np.mean(np.square(signal, dtype=float)) / max(np.mean(np.square(error, dtype=float)), 1e-30))
    )


def encoded(name: str, codec: str, samples: np.ndarray, rate: int, *, video: bool = False) -> bytes:
    """A file made by libav: `samples` float32 [C, T] through `codec` into the container `name`."""
    import av

    target = io.BytesIO()
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples.shape[0]]
    with av.open(target, "w", format=name) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = layout
        if video:
            pictures = container.add_stream("mpeg4", rate=10)
            pictures.width = pictures.height = 32
            pictures.pix_fmt = "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux([*pictures.encode(frame), *pictures.encode(None)])
        converter = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        for start in range(0, samples.shape[1], 1024):
            block = np.ascontiguousarray(samples[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            for ready in converter.resample(frame):
                container.mux(stream.encode(ready))
        for ready in converter.resample(None):
            container.mux(stream.encode(ready))
        container.mux(stream.encode(None))
    return target.getvalue()


# --- writing and reading -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "sample_format", "least_snr"),
    [
        ("wav", "pcm16", 85),
        ("wav", "pcm24", 130),
        ("wav", "float32", 250),
        ("flac", "pcm16", 85),
        ("flac", "pcm24", 130),
        ("ogg", None, 25),
        ("mp3", None, 25),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_sine_survives_every_format(tmp_path, format, sample_format, least_snr, channels):
    samples = np.stack([sine(440, 1.3, 44_100), sine(1_234, 1.3, 44_100, 0.25)])[:channels]
    audio = Audio(samples[0] if channels == 1 else samples, 44_100)
    options = EncodeOptions(sample_format=sample_format)
    back = read_audio(write_audio(tmp_path / f"a.{format}", audio, options=options))
    assert (back.rate, back.channels, back.frames) == (44_100, channels, audio.frames)
    assert back.samples.ndim == audio.samples.ndim
    inside = np.s_[..., 2_000:-2_000]  # lossy codecs smear an abrupt start
    assert decibels(audio.samples[inside], (back.samples - audio.samples)[inside]) > least_snr
    again = read_audio(encode_audio(audio, EncodeOptions(format=format, sample_format=sample_format)))
    np.testing.assert_array_equal(again.samples, back.samples)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 96_000, 192_000])
@pytest.mark.parametrize("format", ["wav", "flac", "ogg"])
def test_every_rate_is_written_and_read(tmp_path, rate, format):
    audio = Audio(sine(300, 0.3, rate), rate)
    back = read_audio(write_audio(tmp_path / f"a.{format}", audio))
    assert (back.rate, back.frames) == (rate, audio.frames)


@pytest.mark.parametrize("format", ["wav", "flac", "ogg"])
def test_eight_channels_keep_their_order(tmp_path, format):
    samples = np.stack([sine(200 * (k + 1), 0.5, 16_000) for k in range(8)])
    back = read_audio(write_audio(tmp_path / f"a.{format}", Audio(samples, 16_000)))
    for written, read in zip(samples, back.samples, strict=True):
        assert decibels(written, read - written) > 15


def test_channels_of_ogg_are_brought_into_the_order_of_wav():
    import av

    rate = 48_000
    samples = np.stack([sine(20 * (k + 1), 1.0, rate) for k in range(6)])
    pitches = [20, 40, 60, 80, 100, 120]  # low, because encoders cut the fourth channel off above

    def pitches_of(channels: np.ndarray) -> list[int]:
        return [round(float(np.argmax(np.abs(np.fft.rfft(channel[:24_000]))) * 2)) for channel in channels]

    assert pitches_of(read_audio(encoded("ogg", "libopus", samples, rate)).samples) == pytest.approx(pitches, abs=2)
    ours = encode_audio(Audio(samples, rate), EncodeOptions(format="ogg"))
    with av.open(io.BytesIO(ours)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    assert pitches_of(np.concatenate(frames, axis=1)) == pitches


@pytest.mark.parametrize(
    ("subtype", "suffix", "step"),
    [
        ("PCM_U8", "wav", 2**-7),
        ("PCM_S8", "flac", 2**-7),
        ("PCM_16", "aiff", 2**-15),
        ("PCM_24", "wav", 2**-23),
        ("PCM_32", "wav", 2**-23),
        ("FLOAT", "wav", 0),
        ("DOUBLE", "wav", 0),
        ("ULAW", "au", 0.04),
        ("ALAW", "wav", 0.04),
        ("PCM_16", "w64", 2**-15),
        ("PCM_16", "rf64", 2**-15),
        ("PCM_16", "caf", 2**-15),
        ("FLOAT", "caf", 0),
    ],
)
def test_every_sample_type_is_read_at_its_scale(tmp_path, subtype, suffix, step):
    samples = sine(440, 0.2, 16_000, 0.9)
    path = tmp_path / "wrongly_named.mp3"
    soundfile.write(path, samples, 16_000, subtype, format=suffix.upper())
    np.testing.assert_allclose(read_audio(path).samples, samples, atol=step, rtol=0)


@pytest.mark.parametrize(
    ("container", "codec", "rate", "video", "exact"),
    [
        ("ipod", "aac", 44_100, False, True),
        ("mp4", "aac", 44_100, True, True),
        ("mp4", "alac", 48_000, False, True),
        ("mov", "pcm_s16le", 44_100, False, True),
        ("matroska", "aac", 44_100, True, False),
        ("matroska", "flac", 44_100, False, True),
        ("webm", "libopus", 48_000, False, True),
        ("ogg", "libopus", 48_000, False, True),
        ("mp3", "libmp3lame", 44_100, False, True),
        ("mpegts", "aac", 44_100, False, False),
        ("adts", "aac", 44_100, False, False),
        ("avi", "libmp3lame", 44_100, True, False),
        ("wav", "libmp3lame", 44_100, False, False),
    ],
)
def test_compressed_sound_and_the_sound_of_videos(container, codec, rate, video, exact):
    samples = np.stack([sine(440, 1.5, rate), sine(880, 1.5, rate, 0.3)])
    back = read_audio(encoded(container, codec, samples, rate, video=video))
    assert (back.rate, back.channels) == (rate, 2)
    padding = back.frames - samples.shape[1]
    assert abs(padding) <= rate // 1_000 if exact else 0 <= padding < 4_096  # mp4 states its length in milliseconds
    if exact:  # no priming samples in front: the phase of the sine fits
        inside = np.s_[:, 4_000 : samples.shape[1] - 4_000]
        assert decibels(samples[inside], back.samples[inside] - samples[inside]) > 20


def test_a_stream_that_changes_its_rate_keeps_the_first_one():
    first = encoded("adts", "aac", sine(440, 1.0, 44_100)[np.newaxis], 44_100)
    second = encoded("adts", "aac", sine(440, 1.0, 22_050)[np.newaxis], 22_050)
    joined = read_audio(first + second)
    parts = read_audio(first).seconds + read_audio(second).seconds
    assert joined.rate == 44_100
    assert joined.seconds == pytest.approx(parts, abs=0.06)
    tail = joined.samples[-33_075:-11_025]  # still 440 Hz, so its rate was converted and not only relabelled
    assert np.argmax(np.abs(np.fft.rfft(tail))) * 44_100 / len(tail) == pytest.approx(440, abs=4)


def test_every_link_of_a_chained_ogg_is_read():
    link = encode_audio(Audio(sine(440, 0.5, 16_000), 16_000), EncodeOptions(format="ogg"))
    assert read_audio(link).frames == 8_000
    assert read_audio(link + link).frames == pytest.approx(16_000, abs=1_024)  # libav is not sample-exact on Vorbis


def test_sixteen_bits_pass_through_unchanged():
    steps = np.random.default_rng(0).integers(-32_768, 32_768, 5_000, np.int16)
    steps[:2] = -32_768, 32_767
    audio = Audio(steps, 16_000)
    with wave.open(io.BytesIO(encode_audio(audio))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)
        np.testing.assert_array_equal(np.frombuffer(file.readframes(5_000), "<i2"), steps)


@pytest.mark.parametrize("source", ["path", "str", "bytes", "file", "unwound", "pipe"])
def test_every_source_gives_the_same(tmp_path, source):
    audio = Audio(np.stack([sine(440, 0.4, 22_050), sine(550, 0.4, 22_050)]), 22_050)
    path = write_audio(tmp_path / "a.flac", audio)
    data = path.read_bytes()
    expected = read_audio(path).samples
    if source == "pipe":
        read_end, write_end = os.pipe()
        with open(read_end, "rb") as reader, open(write_end, "wb") as writer:
            feeder = threading.Thread(target=lambda: (writer.write(data), writer.close()))
            feeder.start()
            got = read_audio(reader)
            feeder.join()
    elif source in ("file", "unwound"):
        with path.open("rb") as stream:
            stream.seek(100 if source == "unwound" else 0)
            got = read_audio(stream)
            assert not stream.closed
    else:
        got = read_audio({"path": path, "str": str(path), "bytes": data}[source])
    np.testing.assert_array_equal(got.samples, expected)


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("size", [1, 777, 16_000, 10**6])
def test_blocks_are_even_and_join_to_the_whole(tmp_path, format, size):
    steps = np.random.default_rng(6).integers(-9_000, 9_000, 2_000 if size == 1 else 200_000, np.int16)
    path = write_audio(tmp_path / f"a.{format}", Audio(steps, 16_000))
    with open_audio(path) as reader:
        blocks = list(reader.blocks(size))
        assert reader.frames in (None, sum(block.shape[1] for block in blocks))
    assert {block.shape[1] for block in blocks[:-1]} <= {size}
    assert all(block.dtype == np.float32 for block in blocks)
    joined = np.concatenate(blocks, axis=1)[0]
    np.testing.assert_array_equal(joined, read_audio(path).samples)
    if format in ("wav", "flac"):
        np.testing.assert_array_equal(joined * 32_768, steps)


def test_reading_and_writing_need_no_more_memory_for_longer_sound(tmp_path):
    def peak_bytes(minutes: int) -> int:
        source, target = tmp_path / "long.wav", tmp_path / "long.flac"
        second = sine(200, 1.0, 16_000)[np.newaxis]
        tracemalloc.start()
        with open_writer(source, 16_000, 1) as writer:
            for _ in range(60 * minutes):
                writer.write(second)
        with open_audio(source) as reader, open_writer(target, 8_000, 1) as writer:
            resampler = StreamResampler(16_000, 8_000)
            for block in reader.blocks():
                writer.write(resampler.push(block))
            writer.write(resampler.finish(reader.frames))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert writer.frames == 60 * minutes * 8_000
        return peak

    assert peak_bytes(6) < 1.1 * peak_bytes(1) + 2**20


def test_mono_is_the_plain_mean(tmp_path):
    left, right = sine(440, 0.5, 44_100), sine(440, 0.5, 44_100, -0.1)
    path = write_audio(
        tmp_path / "a.wav", Audio(np.stack([left, right]), 44_100), options=EncodeOptions(sample_format="float32")
    )
    mono = read_audio(path, mono=True)
    assert mono.samples.ndim == 1
    np.testing.assert_allclose(mono.samples, (left + right) / 2, atol=1e-7)
    np.testing.assert_array_equal(mono.samples, read_audio(path).mono().samples)
    at_16k = read_audio(path, mono=True, rate=16_000)
    np.testing.assert_allclose(at_16k.samples, read_audio(path).mono().resampled(16_000).samples, atol=1e-6)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="golden vectors are not beside this checkout")
@pytest.mark.parametrize("name", ["stereo44k_s16", "stereo44k_same_s16", "mono16k_f32", "mono24k_s16"])
def test_golden_load_audio(name):
    expected = np.load(GOLDEN / "load_audio.npz")[name]
    got = read_audio(GOLDEN / f"{name}.wav", rate=16_000, mono=True).samples
    # The recording tool mixed stereo to 0.7071 * (L + R); the mean is sqrt(2) below. At the very ends it mirrors the
    # signal where soxr takes silence, so those 10 ms may differ as resamplers do.
    loudened = got * (math.sqrt(2) if name.startswith("stereo") else 1)
    assert got.shape == expected.shape
    edge = 0 if name == "mono16k_f32" else 160
    np.testing.assert_allclose(loudened[edge : len(got) - edge], expected[edge : len(got) - edge], atol=1e-3)
    assert np.std(loudened) == pytest.approx(np.std(expected), rel=1e-3)
