"""Whatever is handed over as sound: it is read as finite samples, or refused by an AudioError that says what to do.

Every refusal is checked for its words, for memory that stays bounded and for leaving nothing behind.
"""

from __future__ import annotations

import io
import os
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rvc_spark import audio, audio_source
from rvc_spark.audio import Audio, EncodeOptions, check_audio, encode_audio, open_audio, read_audio
from rvc_spark.errors import AudioError

REFUSAL_BYTES = 256 * 2**20
"""Memory a refusal may take at most: what a bomb unpacks to before its proportion is noticed."""
RATE = 16_000


def tone(seconds: float = 1.0, channels: int = 1) -> np.ndarray:
    samples = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)
    return np.tile(samples.astype(np.float32), (channels, 1))


def noise() -> np.ndarray:
    return np.random.default_rng(1).uniform(-0.5, 0.5, 4 * RATE)


def bytes_of(format: str, subtype: str = "PCM_16", samples: np.ndarray | None = None) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, tone()[0] if samples is None else samples, RATE, subtype, format=format)
    return target.getvalue()


def wav(data: bytes = bytes(range(250)) * 40, claimed: int | None = None, **fields: int) -> bytes:
    """A WAV file with any header: `rate`, `channels`, `bits`, `tag`."""
    rate, channels, bits = fields.get("rate", RATE), fields.get("channels", 1), fields.get("bits", 16)
    width = channels * bits // 8
    fmt = struct.pack("<HHIIHH", fields.get("tag", 1), channels, rate, rate * width & 0xFFFFFFFF, width & 0xFFFF, bits)
    size = len(data) if claimed is None else claimed
    head = struct.pack("<4sI4s4sI", b"RIFF", (size + 36) & 0xFFFFFFFF, b"WAVE", b"fmt ", 16) + fmt
    return head + struct.pack("<4sI", b"data", size) + data


def flac_claiming(frames: int) -> bytes:
    data = bytearray(bytes_of("FLAC"))
    fields = int.from_bytes(data[18:26], "big") >> 36 << 36 | frames  # the low 36 bits count the frames
    data[18:26] = fields.to_bytes(8, "big")
    return bytes(data)


def flac_bomb(blocks: int) -> bytes:
    """Silence at 13 bytes per 65535 frames, total unknown: one megabyte unpacks to a week of sound."""

    def crc(data: bytes, polynomial: int, bits: int) -> int:
        value = 0
        for byte in data:
            value ^= byte << (bits - 8)
            for _ in range(8):
                value = (value << 1 ^ (polynomial if value >> (bits - 1) else 0)) & ((1 << bits) - 1)
        return value

    info = struct.pack(">HH", 16, 65_535) + bytes(6)
    info += ((8_000 << 44) | (0 << 41) | (15 << 36)).to_bytes(8, "big") + bytes(16)  # 8 kHz, mono, 16 bits
    result = [b"fLaC" + b"\x80\x00\x00\x22" + info]
    for number in range(blocks):
        head = b"\xff\xf8\x74\x08" + chr(number).encode("utf-8") + b"\xff\xfe"  # block size - 1 in 16 bits, 8 kHz
        head += bytes([crc(head, 0x07, 8)])
        frame = head + b"\x00\x00\x00"  # one constant subframe of value 0
        result.append(frame + crc(frame, 0x8005, 16).to_bytes(2, "big"))
    return b"".join(result)


def playlist() -> bytes:
    """An HLS playlist that is not clean text: a demuxer would fetch what it names."""
    return b"#EXTM3U\n#\xff\xfe\x00\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"


CASES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "one byte": (lambda: b"R", "text"),
    "text": (lambda: b"Dear reader,\nthis is not a sound.\n" * 50, "text.*Dear reader"),
    "text with escapes": (lambda: b"\x1b[2Jgone" * 20, "text"),
    "html": (lambda: b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "lfs pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS"),
    "zip": (lambda: b"PK\x03\x04" + bytes(500), "zip archive"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(500), "gzip"),
    "png": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(500), "PNG"),
    "jpeg": (lambda: b"\xff\xd8\xff\xe0" + bytes(500), "JPEG"),
    "webp": (lambda: b"RIFF\x24\x00\x00\x00WEBPVP8 " + bytes(50), "WebP"),
    "pdf": (lambda: b"%PDF-1.7\n" + bytes(500), "PDF"),
    "midi": (lambda: b"MThd\x00\x00\x00\x06" + bytes(50), "MIDI"),
    "pickle": (lambda: b"\x80\x02}q\x00." + bytes(50), "pickle"),
    "numpy": (lambda: b"\x93NUMPY\x01\x00" + bytes(500), "numpy"),
    "zero bytes": (lambda: bytes(100_000), "zero bytes"),
    "random": (lambda: np.random.default_rng(0).bytes(300_000), "no sound"),
    "playlist": (lambda: playlist(), "no sound"),
    "header only": (lambda: wav(b""), "no samples"),
    "half a frame": (lambda: wav(b"\x01"), "no samples"),
    "cut in the header": (lambda: wav()[:30], "wav"),
    "cut wav": (lambda: bytes_of("WAV")[:-9_000], "cut off"),
    "cut aiff": (lambda: bytes_of("AIFF")[:-9_000], "cut off"),
    "cut flac": (lambda: bytes_of("FLAC")[:-3_000], "cut off"),
    "cut caf": (lambda: bytes_of("CAF")[:-9_000], "cut off"),
    "cut mp3": (lambda: encode_audio(Audio(noise(), RATE), EncodeOptions(format="mp3"))[:12_000], "cut off"),
    "cut ogg": (lambda: bytes_of("OGG", "VORBIS")[:3_000], "(wav|ogg|no samples|no sound)"),
    "claims 2^32 frames": (lambda: wav(claimed=0xFFFFFF00), "cut off.*4294967"),
    "flac claims 2^36 frames": (lambda: flac_claiming(2**36 - 1), "1193 hours"),
    "flac claims ten times more": (lambda: flac_claiming(10 * RATE), "(cut off|damaged)"),
    "flac claims an hour per kilobyte": (lambda: flac_claiming(11 * 3_600 * RATE), "(frames per byte|cut off)"),
    "flac bomb": (lambda: flac_bomb(1_500), "frames per byte"),
    "nine channels": (lambda: wav(channels=9), "9 channels"),
    "1024 channels": (lambda: wav(channels=1_024), "1024 channels"),
    "no channel": (lambda: wav(channels=0), "damaged"),
    "1 Hz": (lambda: wav(rate=1), "1 Hz.*8000"),
    "7999 Hz": (lambda: wav(rate=7_999), "7999 Hz"),
    "4 MHz": (lambda: wav(rate=4_000_000), "4000000 Hz.*192000"),
    "0 Hz": (lambda: wav(rate=0), "damaged"),
    "no bits": (lambda: wav(bits=0), "damaged"),
    "unknown codec": (lambda: wav(tag=0x0099), "(damaged|codec)"),
    "nan": (lambda: bytes_of("WAV", "FLOAT", np.r_[tone()[0], np.float32(np.nan)]), "nan .*1.000 s"),
    "infinity": (lambda: bytes_of("WAV", "FLOAT", np.r_[np.float32(-np.inf), tone()[0]]), "-inf .*0.000 s"),
    "1e300": (lambda: bytes_of("WAV", "DOUBLE", np.array([0.0, 1e300])), "not a finite number"),
    "1e30": (lambda: bytes_of("WAV", "FLOAT", np.r_[tone()[0], np.float32(1e30)]), "1e\\+30.*65536"),
    "mp4 without its index": (
        lambda: b"\x00\x00\x00\x18ftypM4A " + bytes(12) + struct.pack(">I4s", 4_000, b"mdat"),
        "cut",
    ),
    "mp4 of nothing": (lambda: b"\x00\x00\x00\x18ftypM4A " + bytes(12), "no sound|no audio"),
    "matroska cut": (lambda: b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x48\x00" + bytes(50), "cut off"),
    "matroska of nothing": (lambda: b"\x1a\x45\xdf\xa3\x80" + bytes(50), "no sound|no audio"),
    "avi cut": (lambda: b"RIFF\x00\x00\x10\x00AVI LIST" + bytes(50), "cut off"),
    "id3 without sound": (lambda: b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + bytes(5_000), "no sound|no samples"),
}


def refused(source: object, message: str) -> AudioError:
    tracemalloc.start()
    try:
        with pytest.raises(AudioError, match=message) as caught:
            read_audio(source)
        assert tracemalloc.get_traced_memory()[1] < REFUSAL_BYTES
    finally:
        tracemalloc.stop()
    assert caught.value.next_step.endswith(".")
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()
    return caught.value


@pytest.mark.parametrize("case", CASES)
def test_hostile_bytes_are_refused_by_name(tmp_path, case, capfd):
    make, message = CASES[case]
    path = tmp_path / "voice.wav"
    path.write_bytes(make())
    assert "voice.wav" in str(refused(path, message))
    refused(make(), message)
    assert os.listdir(tmp_path) == ["voice.wav"]
    assert capfd.readouterr() == ("", "")  # neither library talks past the error


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing.wav", "does not exist"),
        (lambda folder: folder, "a folder"),
        (lambda folder: "", "path .* is empty"),
        (lambda folder: "https://example.org/a.wav", "an address"),
        (lambda folder: folder / "a.wav" / "b.wav", "cannot be opened"),
        (lambda folder: folder / "loop.wav", "cannot be opened"),
        (lambda folder: folder / ("x" * 400), "cannot be opened"),
        (lambda folder: f"{folder}/a\0.wav", "cannot be opened"),
        (lambda folder: folder / "bell\a\n\x1b[2J.wav", "does not exist"),
        (lambda folder: folder / "pipe.wav", "named pipe"),
        (lambda folder: "/dev/zero", "a device"),
    ],
)
def test_what_is_no_file_is_refused_without_waiting(tmp_path, make, message):
    (tmp_path / "a.wav").write_bytes(wav())
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    refused(make(tmp_path), message)


def test_a_file_one_may_not_read(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    path.write_bytes(wav())

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # root may read everything, so the system is played by hand
    refused(path, "may not be read")


class Pipe(io.RawIOBase):
    """A stream that cannot seek and says the same for ever."""

    def __init__(self, start: bytes, forever: bytes) -> None:
        self.given = 0
        self._start, self._forever = start, forever

    def readable(self) -> bool:
        return True

    def read(self, count: int = -1) -> bytes:
        block = self._start if self.given == 0 else (self._forever * (count // max(len(self._forever), 1)))
        self.given += len(block)
        return block


def test_endless_pipes_are_refused(monkeypatch):
    text = Pipe(b"y\n", b"y\n")
    refused(text, "text")
    assert text.given < 3 * 2**20
    monkeypatch.setattr(audio_source, "MAX_STREAM_BYTES", 5 * 2**20)
    refused(Pipe(wav(claimed=0xFFFFFFFF), b"\1\2"), "limit for a pipe")


class Failing(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def read(self, count: int = -1) -> bytes:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (io.StringIO("text"), "text"),
        (Failing(), "Input/output error"),
        (42, "int is no source"),
        (None, "NoneType is no source"),
        (np.zeros(5), "ndarray is no source"),
        (Pipe(b"", b""), "empty"),
    ],
)
def test_streams_and_objects_that_give_no_bytes(source, message):
    refused(source, message)


def test_a_closed_stream_is_refused():
    stream = io.BytesIO(wav())
    stream.close()
    refused(stream, "cannot be read")


@pytest.mark.parametrize("claimed", [0, 0xFFFFFFFF, 0x7FFFF000, 0x80000000])
def test_a_header_from_a_pipe_is_not_held_against_the_sound(claimed):
    data = wav(claimed=claimed)  # what ffmpeg, sox and arecord write when they cannot go back to the header
    assert read_audio(data).frames == 5_000
    assert read_audio(Pipe(data, b"")).frames == 5_000


def test_a_flac_of_unknown_length_is_read_to_its_end():
    np.testing.assert_array_equal(read_audio(flac_claiming(0)).samples, read_audio(bytes_of("FLAC")).samples)


def test_long_silence_is_no_bomb():
    data = bytes_of("FLAC", samples=np.zeros(20 * 60 * RATE, np.int16))
    assert len(data) < 2**17
    assert read_audio(data).seconds == 20 * 60


def test_a_sound_too_large_for_memory_can_still_be_read_in_blocks(monkeypatch):
    monkeypatch.setattr(audio, "MAX_VALUES_IN_MEMORY", 20_000)
    data = bytes_of("WAV", samples=tone(1.0, 2).T)
    refused(data, "limit is 10000 frames per channel")
    refused(encode_audio(Audio(tone(2.0), RATE), EncodeOptions(format="mp3")), "limit is 20000 frames")
    assert read_audio(data, mono=True).frames == RATE
    with open_audio(data) as reader:
        assert sum(block.shape[1] for block in reader.blocks(1_000)) == RATE


def test_a_sound_may_be_read_once_and_only_in_sensible_blocks():
    with open_audio(wav()) as reader:
        with pytest.raises(AudioError, match="0 frames"):
            reader.blocks(0)
        next(reader.blocks(10))
        with pytest.raises(AudioError, match="read already"):
            reader.blocks(10)
    for data in (wav(bytes(2**19)), encode_audio(Audio(noise(), RATE), EncodeOptions(format="mp3"))):
        with open_audio(data) as reader:
            blocks = reader.blocks(100)
            next(blocks)
        with pytest.raises(AudioError, match="was closed"):
            list(blocks)


@pytest.mark.parametrize("rate", [0, -1, 7_999, 192_001, 44_100.5, float("nan"), float("inf"), "44100", None, True])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(AudioError, match="sampling rate"):
        Audio(tone()[0], rate)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0), "empty"),
        (np.zeros((2, 0)), "empty"),
        (np.zeros((0, 5)), "0 channels"),
        (np.float32(1), "shape"),
        (np.zeros((1, 2, 3)), "shape"),
        (np.zeros((48_000, 2)), "48000 channels.*channels first"),
        (np.zeros(5, complex), "complex"),
        (np.zeros(5, bool), "bool"),
        (np.zeros(5, np.int64), "int64"),
        (["a", "b"], "type"),
        ([[1.0, 2.0], [3.0]], "array"),
        ([0.0, float("nan")], "nan"),
        (np.array([0.0, 1e300]), "1e\\+300"),
        (None, "shape"),
    ],
)
def test_arrays_that_are_no_sound_are_refused(samples, message):
    with pytest.raises(AudioError, match=message) as caught:
        check_audio(samples, RATE, "the microphone")
    assert "the microphone" in str(caught.value)


def test_damaged_files_never_do_worse_than_an_error(capfd):
    rng = random.Random(20)
    mp3, ogg = (encode_audio(Audio(tone(1.0, 2), RATE), EncodeOptions(format=name)) for name in ("mp3", "ogg"))
    wholes = [mp3, ogg, *(bytes_of(name) for name in ("WAV", "FLAC", "AIFF", "CAF", "W64"))]
    outcomes = {"read": 0, "refused": 0}
    for _ in range(400):
        data = bytearray(rng.choice(wholes))
        for _ in range(rng.choice([1, 2, 10])):
            data[rng.randrange(min(len(data), rng.choice([64, 4_096, 10**6])))] = rng.choice(
                [0, 127, 255, rng.randrange(256)]
            )
        if rng.random() < 0.3:
            del data[rng.randrange(1, len(data)) :]
        try:
            sound = read_audio(bytes(data))
            assert np.isfinite(sound.samples).all()
            outcomes["read"] += 1
        except AudioError as error:
            assert error.next_step
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50
    assert capfd.readouterr() == ("", "")
