"""Encoders: what each format can hold, quantising with dither, WAV (RF64 beyond 4 GiB), FLAC, Ogg Vorbis, MP3 and M4A.

Writes into an open binary stream; names, folders and temporary files are for `audio_writer`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from rvc_spark.audio_container import VORBIS_TO_WAV
from rvc_spark.audio_m4a import M4aSink
from rvc_spark.audio_source import RecordingFile, shown
from rvc_spark.audio_tags import Tags, id3_tags, riff_tags
from rvc_spark.audio_watermark import WATERMARKS, require_watermark, watermark_in_use
from rvc_spark.errors import OutputError

SAMPLE_FORMATS = {
    "wav": ("pcm16", "pcm24", "float32"),
    "flac": ("pcm16", "pcm24"),
    "ogg": ("float32",),
    "mp3": ("float32",),
    "m4a": ("float32",),
}
"""What each format can hold, its default first. The lossy ones take float and have no bit depth of their own."""
SUFFIXES = {
    ".wav": "wav",
    ".wave": "wav",
    ".flac": "flac",
    ".ogg": "ogg",
    ".oga": "ogg",
    ".mp3": "mp3",
    ".m4a": "m4a",
}
OVER_RANGE = ("clip", "scale", "refuse")
MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
M4A_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000)
RATES = {"mp3": MP3_RATES, "m4a": M4A_RATES}
"""Hz a format can hold, where it cannot hold every rate."""
LOSSY_CHANNELS = 2
"""Of mp3 and m4a: layouts of more are a matter between players."""
LOSSY = ("ogg", "mp3", "m4a")
"""Formats whose samples come back changed; peaks may come back higher than they went in."""
MAX_RIFF_BYTES = 2**32 - 1
"""Largest size a plain WAV header can state; beyond it the same file becomes RF64 (EBU Tech 3306)."""
ENCODE_FRAMES = 4_096
"""Frames handed to an encoder at a time; libvorbis keeps what it gets on the stack."""
SCALED_PEAK = 0.99
"""Peak after `over_range="scale"`: leaves room for dither and for what a lossy codec overshoots."""

_BYTES = {"pcm16": 2, "pcm24": 3, "float32": 4}
_WAVE_PCM, _WAVE_FLOAT, _WAVE_EXTENSIBLE = 1, 3, 0xFFFE
_SUBTYPE_GUID = bytes.fromhex("000000001000800000aa00389b71")  # follows the format tag in WAVE_FORMAT_EXTENSIBLE


@dataclass(frozen=True)
class EncodeOptions:
    """How sound is written.

    Attributes:
        format: "wav", "flac", "ogg", "mp3" or "m4a"; None takes it from the file's suffix (bytes: wav).
        sample_format: "pcm16", "pcm24" or "float32" as `SAMPLE_FORMATS` allows; None is the format's default.
        dither: add triangular noise of one step (TPDF) before rounding to 16 bits. It turns the rounding error, a
            distortion that follows the music, into steady noise at -96 dBFS. 24 bits and float need none. Samples that
            already lie on a 16-bit step, digital silence above all, are not rounded and get no noise.
        seed: of that noise; same seed, same file.
        quality: 0..1 for ogg and mp3 (variable bit rate) and m4a (constant).
        over_range: what happens to samples beyond full scale (they never wrap): "clip" limits them and counts them
            (float WAV keeps them as they are), "scale" turns the whole sound down to a peak of 0.99, "refuse" raises.
        comment: a line kept in the file's tags, such as the licence of the model that made it; up to MAX_TAG
            characters.
        title, artist: the same for what players show above everything else.
        watermark: "perth" adds an inaudible mark that says a program made the sound, see `rvc_spark.watermark`; "none"
            does not; None takes the `watermark` of the configuration, whose default is "none".
    """

    format: str | None = None
    sample_format: str | None = None
    dither: bool = True
    seed: int = 0
    quality: float = 0.8
    over_range: str = "clip"
    comment: str = ""
    title: str = ""
    artist: str = ""
    watermark: str | None = field(default=None, repr=False)  # no part of the text that tells finished work from changed

    def __post_init__(self) -> None:
        if self.format is not None:
            _choice("The audio format", self.format, tuple(SAMPLE_FORMATS))
            if self.sample_format is not None:
                _choice(f"The sample format of {self.format}", self.sample_format, SAMPLE_FORMATS[self.format])
        elif self.sample_format is not None:
            _choice("The sample format", self.sample_format, tuple(_BYTES))
        _choice("over_range", self.over_range, OVER_RANGE)
        if self.watermark is not None:
            _choice("The watermark", self.watermark, WATERMARKS)
        _ = self.tags
        if not 0 <= self.quality <= 1:
            raise OutputError(f"The quality {self.quality} is outside 0..1", "Use 0.8 for speech.")

    @property
    def tags(self) -> Tags:
        """The words that go into the file. Raises OutputError for what cannot be kept."""
        return Tags(self.title, self.artist, self.comment)

    def resolved(self, path: Path | None = None) -> EncodeOptions:
        """The same options with format, sample format and watermark decided.

        Raises:
            OutputError: the suffix tells no format, another format than asked for, or one that lacks the sample format.
            MissingPackageError, WatermarkModelError: the watermark cannot be written here.
        """
        by_suffix = SUFFIXES.get(path.suffix.lower()) if path is not None else "wav"
        name = self.format or by_suffix
        if name is None or (path is not None and by_suffix not in (None, name)):
            raise OutputError(
                f"{shown(path)} does not end in a suffix of {name or 'a format that can be written'}",
                f"Name it with one of {', '.join(SUFFIXES)}.",
            )
        watermark = self.watermark or watermark_in_use()
        require_watermark(watermark)
        sample_format = self.sample_format or SAMPLE_FORMATS[name][0]
        return replace(self, format=name, sample_format=sample_format, watermark=watermark)


def nearest_rate(format: str, rate: int) -> int:
    """The rate itself where the format can hold it, else the nearest above, else its highest; in Hz."""
    rates = RATES.get(format, (rate,))
    return min((known for known in rates if known >= rate), default=rates[-1])


def _choice(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise OutputError(f"{what} cannot be {value!r}", f"Choose one of {', '.join(allowed)}.")


class Quantiser:
    """Float samples to integers: round to nearest, limited to the range, with dither that does not depend on blocks."""

    def __init__(self, bits: int, dither: bool, seed: int) -> None:
        self._scale = np.float32(2.0 ** (bits - 1))
        self._noise = np.random.default_rng(seed) if dither else None

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """float32 [n, C] -> int32 [n, C] in -2^(bits-1) .. 2^(bits-1)-1."""
        scaled = frames * self._scale  # a power of two: exact in float32, whose 24 bits are enough for both widths
        if self._noise is not None:
            uniform = self._noise.random((*frames.shape, 2), np.float32)
            noise = uniform[..., 0] + uniform[..., 1] - np.float32(1.0)
            noise[scaled == np.rint(scaled)] = 0.0
            scaled += noise
        return np.clip(np.rint(scaled), -self._scale, self._scale - 1).astype(np.int32)


class _WavSink:
    """WAV written by hand: same samples, same bytes (libsndfile puts the time into float files); RF64 when needed.

    RIFF size WAVE | JUNK 28 bytes, becomes ds64 beyond 4 GiB | fmt | (fact) | (LIST with the comment) | data size ...
    """

    def __init__(self, stream: BinaryIO, rate: int, channels: int, options: EncodeOptions) -> None:
        self._stream = stream
        self._sample_format = sample_format = options.sample_format
        self._tags = riff_tags(options.tags)
        self._frame_bytes = channels * _BYTES[sample_format]
        self._frames = 0
        self._fmt = _fmt_chunk(rate, channels, sample_format)
        self._stream.write(self._header())

    def write(self, frames: np.ndarray) -> None:
        """int32 or float32 [n, C], as `sample_format` asks."""
        if self._sample_format == "pcm24":
            data = np.ascontiguousarray(frames, "<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
        else:
            data = frames.astype("<i2" if self._sample_format == "pcm16" else "<f4").tobytes()
        self._stream.write(data)
        self._frames += len(frames)

    def abandon(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        if self._frames * self._frame_bytes % 2:
            self._stream.write(b"\0")
        self._stream.seek(0)
        self._stream.write(self._header())
        self._stream.seek(0, 2)

    def _header(self) -> bytes:
        data_bytes = self._frames * self._frame_bytes
        fact = b""
        if self._sample_format == "float32":
            fact = struct.pack("<4sII", b"fact", 4, min(self._frames, 0xFFFFFFFF))
        between = self._fmt + fact + self._tags
        riff_bytes = 4 + 36 + len(between) + 8 + data_bytes + data_bytes % 2
        if riff_bytes <= MAX_RIFF_BYTES:
            start = struct.pack("<4sI4s4sI28x", b"RIFF", riff_bytes, b"WAVE", b"JUNK", 28)
            return start + between + struct.pack("<4sI", b"data", data_bytes)
        start = struct.pack("<4sI4s4sI", b"RF64", 0xFFFFFFFF, b"WAVE", b"ds64", 28)
        sizes = struct.pack("<QQQI", riff_bytes, data_bytes, self._frames, 0)
        return start + sizes + between + struct.pack("<4sI", b"data", 0xFFFFFFFF)


class _PipeSink:
    """A 16-bit WAV of unknown length, for a stream that cannot seek."""

    def __init__(self, stream: BinaryIO, rate: int, channels: int, options: EncodeOptions) -> None:
        self._stream = stream
        self._stream.write(streamed_wav_header(rate, channels, options.comment))

    def write(self, frames: np.ndarray) -> None:
        """int32 [n, C]."""
        self._stream.write(frames.astype("<i2").tobytes())

    def abandon(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """The end of the stream is the end of the sound."""


def streamed_wav_header(rate: int, channels: int, comment: str = "") -> bytes:
    """The beginning of a 16-bit wav of unknown length, for a pipe: its sizes say "until the end"."""
    tags = riff_tags(Tags(comment=comment))
    unknown = struct.pack("<I", MAX_RIFF_BYTES)
    return b"RIFF" + unknown + b"WAVE" + _fmt_chunk(rate, channels, "pcm16") + tags + b"data" + unknown


def _fmt_chunk(rate: int, channels: int, sample_format: str) -> bytes:
    width = _BYTES[sample_format]
    tag = _WAVE_FLOAT if sample_format == "float32" else _WAVE_PCM
    basic = struct.pack("<HIIHH", channels, rate, rate * channels * width, channels * width, 8 * width)
    if channels <= 2:
        body = struct.pack("<H", tag) + basic
    else:  # more than stereo must be "extensible"; mask 0 says that positions are not named
        body = struct.pack("<H", _WAVE_EXTENSIBLE) + basic + struct.pack("<HHIH", 22, 8 * width, 0, tag) + _SUBTYPE_GUID
    return struct.pack("<4sI", b"fmt ", len(body)) + body


class _SoundFileSink:
    """FLAC, Ogg Vorbis and MP3 through libsndfile."""

    def __init__(self, stream: BinaryIO, rate: int, channels: int, options: EncodeOptions) -> None:
        tag = id3_tags(options.tags) if options.format == "mp3" else b""
        stream.write(tag)
        self._target = RecordingFile(stream, len(tag))
        self._shift = 8 if options.sample_format == "pcm24" else 0  # libsndfile takes 24 bits at the top of 32
        self._format = options.format
        wav_order = VORBIS_TO_WAV.get(channels) if options.format == "ogg" else None
        self._order = None if wav_order is None else np.argsort(wav_order)
        subtype = {"flac": options.sample_format.upper().replace("PCM", "PCM_"), "ogg": "VORBIS", "mp3": None}
        settings = {}
        if options.format == "mp3":
            subtype["mp3"] = "MPEG_LAYER_III"
            settings = {"bitrate_mode": "VARIABLE"}
        if options.format != "flac":
            settings["compression_level"] = 1.0 - options.quality
        try:
            self._file = soundfile.SoundFile(
                self._target, "w", rate, channels, subtype[options.format], format=options.format.upper(), **settings
            )
            if options.format != "mp3":  # libsndfile hands the bytes of UTF-8 to LAME as Latin-1
                for name, text in options.tags.present().items():
                    setattr(self._file, name, text)
        except soundfile.LibsndfileError as error:
            self._raise_disk_error()
            raise OutputError(
                f"{options.format} cannot hold {channels} channels at {rate} Hz ({error.error_string})",
                "Write wav, or resample first.",
            ) from error

    def write(self, frames: np.ndarray) -> None:
        """int32 (flac) or float32 [n, C]."""
        if self._order is not None:
            frames = np.ascontiguousarray(frames[:, self._order])
        if self._format == "flac":
            frames = frames << self._shift if self._shift else frames.astype(np.int16)
        try:
            self._file.write(frames)
        except (soundfile.LibsndfileError, AssertionError) as error:  # a short write is an assertion in soundfile
            self._raise_disk_error()
            raise OutputError(f"The {self._format} encoder failed ({error})", "Write wav instead.") from error
        self._raise_disk_error()

    def close(self) -> None:
        self._file.close()
        self._raise_disk_error()

    def abandon(self) -> None:
        """Free the encoder without caring what becomes of the stream."""
        self._target.abandoned = True
        self._file.close()

    def _raise_disk_error(self) -> None:
        if self._target.error is not None:
            raise self._target.error


def make_sink(
    stream: BinaryIO, rate: int, channels: int, options: EncodeOptions, piped: bool = False
) -> _WavSink | _PipeSink | _SoundFileSink | M4aSink:
    """The encoder for resolved options; writes to `stream`, which must seek unless `piped`.

    Raises:
        OutputError: the format cannot hold this rate or channel count.
    """
    if piped:
        if (options.format, options.sample_format) != ("wav", "pcm16"):
            raise OutputError(
                f"{options.format} of {options.sample_format} cannot be streamed to a pipe",
                "Use wav of pcm16, or name a file.",
            )
        return _PipeSink(stream, rate, channels, options)
    rates = RATES.get(options.format)
    if rates is not None and (rate not in rates or channels > LOSSY_CHANNELS):
        raise OutputError(
            f"{options.format} cannot hold {channels} channels at {rate} Hz; "
            f"it takes 1 or 2 at {', '.join(map(str, rates))} Hz",
            "Resample or mix down first, or write flac.",
        )
    if options.format == "wav":
        return _WavSink(stream, rate, channels, options)
    if options.format == "m4a":
        return M4aSink(stream, rate, channels, options.quality, options.tags)
    return _SoundFileSink(stream, rate, channels, options)
