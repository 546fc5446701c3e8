"""Sound in and out: what is written comes back, lengths are exact, resampling is clean, loudness is the standard's."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
import threading
import tracemalloc
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rvc_spark import audio_encode
from rvc_spark.audio import (
    Audio,
    EncodeOptions,
    LoudnessMeter,
    StreamResampler,
    check_audio,
    crossfade,
    encode_audio,
    fade_in_curve,
    loudness_lufs,
    open_audio,
    open_writer,
    peak_dbfs,
    read_audio,
    resample,
    resampled_length,
    rms_dbfs,
    true_peak_dbtp,
    write_audio,
)
from rvc_spark.errors import AudioError, OutputError
from rvc_spark.loudness import k_weighting

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


# --- quantising ----------------------------------------------------------------------------------------------------


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


# --- resampling ----------------------------------------------------------------------------------------------------


def test_lengths_are_exact_and_blocks_change_nothing():
    rng = np.random.default_rng(1)
    rates = [
        8_000,
        11_025,
        16_000,
        22_050,
        24_000,
        32_000,
        40_000,
        44_100,
        48_000,
        88_200,
        96_000,
        192_000,
        44_101,
        37_800,
    ]
    for _ in range(200):
        rate_in, rate_out = (int(rate) for rate in rng.choice(rates, 2))
        frames = int(rng.integers(1, 30_000))
        samples = rng.standard_normal((2, frames)).astype(np.float32)
        whole = resample(samples, rate_in, rate_out)
        assert whole.shape == (2, round(frames * rate_out / rate_in)), (frames, rate_in, rate_out)
        stream = StreamResampler(rate_in, rate_out, 2)
        cuts = np.sort(rng.integers(0, frames + 1, 3))
        pieces = [stream.push(block) for block in np.split(samples, cuts, axis=1)] + [stream.finish(frames)]
        np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-6)


def test_length_in_integers_is_round():
    rng = np.random.default_rng(2)
    for frames, rate_in, rate_out in rng.integers(1, 200_000, (2_000, 3)).tolist() + [[1_000, 40_000, 44_100]]:
        assert resampled_length(frames, rate_in, rate_out) == round(frames * rate_out / rate_in)
    assert resampled_length(10**15 + 1, 2, 1) == 5 * 10**14  # beyond what float64 can halve exactly: ties to even


@pytest.mark.parametrize(
    ("rate_in", "rate_out"), [(44_100, 16_000), (48_000, 44_100), (16_000, 40_000), (40_000, 48_000)]
)
def test_a_tone_keeps_level_and_place_and_aliases_vanish(rate_in, rate_out):
    inside = np.s_[rate_out // 10 : -rate_out // 10]
    kept = resample(sine(1_000, 1.0, rate_in), rate_in, rate_out)
    assert decibels(kept[inside], (kept - sine(1_000, 1.0, rate_out))[inside]) > 110
    if rate_out < rate_in:
        removed = resample(sine(0.53 * rate_out, 1.0, rate_in), rate_in, rate_out)
        assert decibels(sine(0.53 * rate_out, 1.0, rate_in), removed[inside]) > 110


def test_resample_takes_any_leading_shape():
    samples = np.random.default_rng(3).standard_normal((2, 3, 4_410))
    result = resample(samples, 44_100, 16_000)
    assert (result.shape, result.dtype) == ((2, 3, 1_600), np.float64)
    np.testing.assert_array_equal(result[1, 2], resample(samples[1, 2], 44_100, 16_000))
    assert resample(np.zeros((2, 0), np.float32), 44_100, 16_000).shape == (2, 0)


def test_a_miscounting_caller_is_told():
    stream = StreamResampler(48_000, 16_000)
    assert stream.push(np.zeros(480, np.float32)).ndim == 1
    with pytest.raises(AudioError, match="480 frames"):
        stream.finish(479)
    with pytest.raises(AudioError, match="shape"):
        stream.push(np.zeros((2, 480), np.float32))
    stream.finish()
    with pytest.raises(AudioError, match="finished"):
        stream.push(np.zeros(480, np.float32))


# --- loudness ------------------------------------------------------------------------------------------------------


def test_k_weighting_is_the_table_of_the_standard_at_48_khz():
    shelf, high_pass = k_weighting(48_000)
    np.testing.assert_allclose(shelf[:3], [1.53512485958697, -2.69169618940638, 1.19839281085285], atol=1e-8)
    np.testing.assert_allclose(shelf[4:], [-1.69065929318241, 0.73248077421585], atol=1e-8)
    np.testing.assert_allclose(high_pass[4:], [-1.99004745483398, 0.99007225036621], atol=1e-8)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000, 96_000])
def test_a_full_scale_sine_is_at_minus_three_lufs(rate):
    tone = sine(997, 3.0, rate, 1.0)
    assert loudness_lufs(Audio(tone, rate)) == pytest.approx(-3.01, abs=0.1)
    assert loudness_lufs(Audio(np.stack([tone, tone]), rate)) == pytest.approx(0.0, abs=0.1)
    assert loudness_lufs(Audio(tone * 0.1, rate)) == pytest.approx(-23.01, abs=0.1)


def test_quiet_passages_are_gated_out():
    parts = [sine(1_000, seconds, 48_000, 10 ** (level / 20)) for level, seconds in ((-36, 3), (-23, 15), (-36, 3))]
    tone = np.concatenate([*parts, np.zeros(48_000 * 5, np.float32)])
    assert loudness_lufs(Audio(np.stack([tone, tone]), 48_000)) == pytest.approx(-23.0, abs=0.1)


def test_loudness_agrees_with_pyloudnorm():
    pyloudnorm = pytest.importorskip("pyloudnorm")
    rng = np.random.default_rng(4)
    samples = (rng.standard_normal((2, 5 * 44_100)) * np.linspace(0.001, 0.3, 5 * 44_100)).astype(np.float32)
    reference = pyloudnorm.Meter(44_100, filter_class="DeMan").integrated_loudness(samples.T.astype(float))
    assert loudness_lufs(Audio(samples, 44_100)) == pytest.approx(reference, abs=0.05)


def test_loudness_does_not_depend_on_blocks():
    samples = np.random.default_rng(5).standard_normal((1, 30_011)).astype(np.float32) * 0.1
    meter = LoudnessMeter(11_025, 1)
    for block in np.array_split(samples, 17, axis=1):
        meter.push(block)
    assert meter.lufs() == pytest.approx(loudness_lufs(Audio(samples, 11_025)), abs=1e-9)


def test_short_and_silent_sounds_have_a_loudness():
    tone = sine(997, 2.0, 48_000, 0.5)
    short = loudness_lufs(Audio(tone[: 48_000 // 5], 48_000))
    assert short == pytest.approx(loudness_lufs(Audio(tone, 48_000)), abs=0.3)
    assert loudness_lufs(Audio(np.zeros(48_000), 48_000)) == -math.inf
    assert loudness_lufs(Audio(np.zeros(3), 48_000)) == -math.inf
    assert peak_dbfs(Audio(np.zeros(3), 48_000)) == rms_dbfs(Audio(np.zeros(3), 48_000)) == -math.inf


def test_true_peak_sees_between_samples():
    rate = 48_000
    between = np.sin(2 * np.pi * 0.25 * np.arange(rate) + np.pi / 4) * np.hanning(rate)  # samples at +-0.707 only
    audio = Audio(between, rate)
    assert peak_dbfs(audio) == pytest.approx(-3.01, abs=0.05)
    assert true_peak_dbtp(audio) == pytest.approx(0.0, abs=0.05)
    assert rms_dbfs(Audio(sine(440, 1.0, rate, 1.0), rate)) == pytest.approx(-3.01, abs=0.01)


# --- samples in memory ---------------------------------------------------------------------------------------------


def test_crossfade_of_a_sound_with_itself_changes_nothing():
    tone = np.stack([sine(440, 0.1, 16_000), sine(660, 0.1, 16_000)])
    np.testing.assert_allclose(crossfade(tone, tone), tone, atol=1e-6)
    curve = fade_in_curve(480, "equal_power")
    np.testing.assert_allclose(curve**2 + curve[::-1] ** 2, 1, atol=1e-6)
    rising = fade_in_curve(480)
    assert (np.diff(rising) > 0).all() and rising[0] < 1e-4 and rising[-1] > 1 - 1e-4
    assert crossfade(np.zeros((1, 0)), np.zeros((1, 0))).shape == (1, 0)


def test_pcm_arrays_are_brought_to_full_scale_one():
    np.testing.assert_array_equal(check_audio(np.array([-32_768, 16_384], np.int16), 16_000), [-1, 0.5])
    np.testing.assert_array_equal(check_audio(np.array([0, 192], np.uint8), 16_000), [-1, 0.5])
    np.testing.assert_array_equal(check_audio(np.array([-(2**31), 2**30], np.int32), 16_000), [-1, 0.5])
    samples = np.zeros((2, 5), np.float32)
    assert check_audio(samples, 16_000) is samples or np.shares_memory(check_audio(samples, 16_000), samples)
