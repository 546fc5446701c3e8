"""The one door for sound: decode, encode, resample, loudness, cross-fade.

    audio = read_audio("song.m4a", rate=16_000, mono=True)      whole, in memory
    with open_audio("hour.mp3") as reader:                      block by block, in bounded memory
        for block in reader.blocks(48_000): ...
    write_audio("out.flac", audio)                              appears complete or not at all

Inside the package nobody else touches a sound library; the neighbours `audio_*` and `loudness` are reached through
here. Refuses to know what the sound is for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from rvc_spark.audio_codec import Decoder, open_decoder
from rvc_spark.audio_container import identify
from rvc_spark.audio_encode import EncodeOptions
from rvc_spark.audio_limits import (
    EXPANSION_GRACE_SECONDS,
    MAX_AMPLITUDE,
    MAX_CHANNELS,
    MAX_FRAMES_PER_BYTE,
    MAX_RATE,
    MAX_SECONDS,
    MAX_STREAM_BYTES,
    MAX_VALUES_IN_MEMORY,
    MIN_RATE,
    check_channels,
    check_rate,
    check_seconds,
)
from rvc_spark.audio_output import (
    Encoded,
    encode_audio,
    encode_whole,
    open_pipe,
    open_writer,
    write_audio,
    write_whole,
)
from rvc_spark.audio_resample import StreamResampler, resample, resampled_length
from rvc_spark.audio_samples import Audio, check_audio, check_block, crossfade, fade_in_curve, mix_down
from rvc_spark.audio_source import Source, open_source
from rvc_spark.audio_tags import read_tags
from rvc_spark.audio_watermark import (
    WatermarkReport,
    WatermarkWarning,
    load_watermark,
    use_watermark,
    watermark_in_use,
)
from rvc_spark.audio_writer import AudioWriter
from rvc_spark.errors import AudioError
from rvc_spark.loudness import LoudnessMeter, TruePeakMeter, loudness_lufs, peak_dbfs, rms_dbfs, true_peak_dbtp

__all__ = [
    "MAX_AMPLITUDE",
    "MAX_CHANNELS",
    "MAX_FRAMES_PER_BYTE",
    "MAX_RATE",
    "MAX_SECONDS",
    "MAX_STREAM_BYTES",
    "MAX_VALUES_IN_MEMORY",
    "MIN_RATE",
    "Audio",
    "AudioReader",
    "AudioWriter",
    "EncodeOptions",
    "Encoded",
    "LoudnessMeter",
    "StreamResampler",
    "TruePeakMeter",
    "WatermarkReport",
    "WatermarkWarning",
    "check_audio",
    "crossfade",
    "encode_audio",
    "encode_whole",
    "fade_in_curve",
    "load_watermark",
    "loudness_lufs",
    "open_audio",
    "open_pipe",
    "open_writer",
    "peak_dbfs",
    "read_audio",
    "read_tags",
    "resample",
    "resampled_length",
    "rms_dbfs",
    "true_peak_dbtp",
    "use_watermark",
    "watermark_in_use",
    "write_audio",
    "write_whole",
]

AudioSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

BLOCK_FRAMES = 65_536
"""Frames worked on at a time where the caller does not say."""
TRUSTED_FRAMES = 2**26
"""Frames room is made for on a header's word; it costs address space only until samples arrive."""


class AudioReader:
    """An open sound, read block by block in bounded memory; use it with `with`.

    Attributes:
        name: how messages call it.
        kind: "wav", "flac", "mp4" ...; coding: the codec, as its library calls it ("PCM_16", "VORBIS", "mp3float").
        bit_depth: bits of a stored sample; None for codecs that store none. bytes: size of the file.
        rate: Hz.
        channels: 1..8.
        frames: exact count where the format has one, else None.
        expected_frames: what the file claims, for a progress bar, or None.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.name = source.name
        self.bytes = source.size
        self._decoder: Decoder | None = None
        try:
            container = identify(source.stream, source.size, source.name)
            self.kind = container.kind
            self._decoder = open_decoder(source, container)
            self._admit(self._decoder)
        except OSError as error:
            self.close()
            raise AudioError(f"{self.name} cannot be read ({error.strerror or error})", "Check the disk.") from error
        except BaseException:
            self.close()
            raise
        self._begun = False

    def _admit(self, decoder: Decoder) -> None:
        self.rate = check_rate(decoder.rate, self.name)
        self.channels = check_channels(decoder.channels, self.name)
        self.coding, self.bit_depth = decoder.coding, decoder.bit_depth
        self.frames = decoder.frames
        self.expected_frames = decoder.expected_frames
        if self.frames == 0:
            raise AudioError(f"{self.name} holds no samples", "Record or export it again.")
        if self.frames is not None:
            self._check_size(self.frames, self._source.size)

    def _check_size(self, frames: int, bytes_used: int) -> None:
        check_seconds(frames, self.rate, self.name)
        if frames > EXPANSION_GRACE_SECONDS * self.rate + MAX_FRAMES_PER_BYTE * bytes_used:
            raise AudioError(
                f"{self.name} unpacks to {frames} frames from {bytes_used} bytes; "
                f"the limit is {MAX_FRAMES_PER_BYTE} frames per byte",
                "It is damaged or made to fill the memory: get it from another source.",
            )

    def blocks(self, frames_per_block: int = BLOCK_FRAMES) -> Iterator[np.ndarray]:
        """The sound from start to end, once.

        Yields:
            float32 [C, n], n = `frames_per_block` but for the last, which is shorter. The array is the caller's.

        Raises:
            AudioError: damaged, cut off, not finite, too long, unpacking out of proportion, or read a second time.
        """
        if frames_per_block < 1:
            raise AudioError(f"A block of {frames_per_block} frames is impossible", "Ask for one frame or more.")
        if self._begun:
            raise AudioError(f"{self.name} was read already", "Open it again to read it a second time.")
        self._begun = True
        return self._blocks(frames_per_block)

    def _blocks(self, size: int) -> Iterator[np.ndarray]:
        waiting: list[np.ndarray] = []
        ready = 0
        for chunk in self._checked_chunks():
            waiting.append(chunk)
            ready += chunk.shape[1]
            if ready < size:
                continue
            joined = np.concatenate(waiting, axis=1) if len(waiting) > 1 else chunk
            whole = ready - ready % size
            for start in range(0, whole, size):
                yield joined[:, start : start + size].copy()
            waiting = [joined[:, whole:]]
            ready -= whole
        if ready:
            yield np.concatenate(waiting, axis=1)

    def _checked_chunks(self) -> Iterator[np.ndarray]:
        done = 0
        self._assert_open()
        try:
            for chunk in self._decoder.chunks():
                check_block(chunk, self.rate, done, self.name)
                done += chunk.shape[1]
                self._check_size(done, self._source.stream.tell())
                yield chunk
                self._assert_open()
        except OSError as error:
            raise AudioError(f"{self.name} cannot be read ({error.strerror or error})", "Check the disk.") from error
        if done == 0:
            raise AudioError(f"{self.name} holds no samples", "Record or export it again.")

    def _assert_open(self) -> None:
        if self._decoder is None:
            raise AudioError(
                f"{self.name} was closed before it was read to its end", "Read it inside the `with` block."
            )

    def close(self) -> None:
        """Release the file. Safe to call twice; a stream the caller opened stays open."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_audio(source: AudioSource) -> AudioReader:
    """Open a sound for reading in blocks.

    Args:
        source: a path, the bytes of a file, or a binary stream. A stream that can seek is read from its start and stays
            open; one that cannot (standard input) is copied to a temporary file first.

    Raises:
        AudioError: anything that keeps it from being read, before any of it is decoded.
    """
    return AudioReader(open_source(source))


def read_audio(source: AudioSource, *, rate: int | None = None, mono: bool = False) -> Audio:
    """Decode a whole sound.

    Mixing down and resampling happen block by block, so only the result is ever in memory.

    Args:
        source: see `open_audio`.
        rate: wanted rate in Hz; None keeps the file's.
        mono: take the plain mean of the channels.

    Returns:
        Audio, [T] for one channel, else [C, T]; T is `round(frames * rate / file's rate)`.

    Raises:
        AudioError: unreadable, hostile, or more than `MAX_VALUES_IN_MEMORY` samples.
    """
    wanted = None if rate is None else check_rate(rate, "the wanted audio")
    with open_audio(source) as reader:
        channels = 1 if mono else reader.channels
        resampler = StreamResampler(reader.rate, wanted or reader.rate, channels)
        frames = None if reader.frames is None else resampled_length(reader.frames, reader.rate, resampler.rate_out)
        collected = _Collector(channels, frames, reader.name)
        for block in reader.blocks():
            collected.add(resampler.push(mix_down(block)[np.newaxis] if mono else block))
        collected.add(resampler.finish())
        samples = collected.result()
    if samples.size == 0:
        raise AudioError(
            f"{reader.name} is {resampler.frames_in} frames at {reader.rate} Hz, less than one frame at {wanted} Hz",
            "Use a longer sound.",
        )
    return Audio(samples[0] if channels == 1 else samples, resampler.rate_out)


class _Collector:
    """Joins blocks of unknown total length, holding little more than the samples themselves."""

    def __init__(self, channels: int, frames: int | None, name: str) -> None:
        self._name = name
        self._limit = MAX_VALUES_IN_MEMORY // channels
        self._used = 0
        if frames is not None:
            self._check(frames)
        self._room = np.empty((channels, min(frames or BLOCK_FRAMES, TRUSTED_FRAMES)), np.float32)

    def _check(self, frames: int) -> None:
        if frames > self._limit:
            raise AudioError(
                f"{self._name} is {frames} frames; as a whole in memory the limit is {self._limit} frames per channel",
                "Read it in blocks with open_audio, or take it as mono at a lower rate.",
            )

    def add(self, block: np.ndarray) -> None:
        used = self._used + block.shape[1]
        self._check(used)
        if used > self._room.shape[1]:
            room = min(max(used, self._room.shape[1] * 3 // 2), self._limit)
            larger = np.empty((self._room.shape[0], room), np.float32)
            larger[:, : self._used] = self._room[:, : self._used]
            self._room = larger
        self._room[:, self._used : used] = block
        self._used = used

    def result(self) -> np.ndarray:
        exact = self._room[:, : self._used]
        return exact if self._used == self._room.shape[1] else exact.copy()
