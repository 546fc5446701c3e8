"""The ways a sound leaves: into a file, into bytes, into a pipe; whole, or block by block.

All of them are `audio_writer` underneath. Reached through `rvc_spark.audio`.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rvc_spark.audio_encode import SCALED_PEAK, EncodeOptions
from rvc_spark.audio_samples import Audio
from rvc_spark.audio_watermark import WatermarkReport, marked_whole
from rvc_spark.audio_writer import AudioWriter, SampleWriter
from rvc_spark.errors import OutputError

BLOCK_FRAMES = 65_536
"""Frames of a whole sound written at a time."""


def open_writer(
    path: str | os.PathLike[str], rate: int, channels: int, options: EncodeOptions | None = None
) -> AudioWriter:
    """Open a sound file for writing block by block, in memory that does not grow.

    Args:
        path: its suffix decides the format unless the options name it. The folder must exist.
        rate: Hz.
        channels: 1..8 (mp3, m4a: 2).
        options: see `EncodeOptions`; `over_range="scale"` is refused, since the peak is known only at the end.

    Raises:
        AudioError: rate or channels out of range.
        OutputError: the place or the format cannot take it.
    """
    options = options or EncodeOptions()
    if options.over_range == "scale":
        raise OutputError(
            "over_range='scale' needs the whole sound, and a writer sees it in blocks",
            "Use write_audio, or scale the blocks yourself and choose 'clip'.",
        )
    return AudioWriter(path, rate, channels, options)


def open_pipe(stream: BinaryIO, rate: int, channels: int, options: EncodeOptions | None = None) -> SampleWriter:
    """Begin a 16-bit wav of unknown length on a stream that cannot seek; `write` blocks to it, then `finish`.

    Raises:
        AudioError: rate or channels out of range.
        OutputError: another format than wav of pcm16.
    """
    return SampleWriter(stream, rate, channels, (options or EncodeOptions()).resolved(), piped=True)


def write_audio(path: str | os.PathLike[str], audio: Audio, *, options: EncodeOptions | None = None) -> Path:
    """Write a whole sound; the file appears complete or not at all.

    Returns:
        The path.

    Raises:
        AudioError: beyond full scale with `over_range="refuse"`.
        OutputError: the place or the format cannot take it.
        WatermarkError: it should carry a watermark and the detector does not find it.
    """
    return write_whole(path, audio, options).path


def write_whole(path: str | os.PathLike[str], audio: Audio, options: EncodeOptions | None = None) -> AudioWriter:
    """`write_audio`, for those who also want to know `clipped` and `watermark`: the closed writer."""
    options = (options or EncodeOptions()).resolved(Path(path))
    samples, gain, marked = _prepared(audio, options)
    with AudioWriter(path, audio.rate, audio.channels, options, marked=marked) as writer:
        _write_blocks(writer, samples, gain)
    return writer


@dataclass(frozen=True)
class Encoded:
    """The bytes of a sound file, how many samples were limited, and what the detector found if it was marked."""

    data: bytes
    clipped: int
    watermark: WatermarkReport | None


def encode_audio(audio: Audio, options: EncodeOptions | None = None) -> bytes:
    """The bytes of the file `write_audio` would write; wav unless the options name a format.

    Raises:
        AudioError, OutputError, WatermarkError: as `write_audio`.
    """
    return encode_whole(audio, options).data


def encode_whole(audio: Audio, options: EncodeOptions | None = None) -> Encoded:
    """`encode_audio`, for those who also want to know `clipped` and `watermark`."""
    options = (options or EncodeOptions()).resolved()
    samples, gain, marked = _prepared(audio, options)
    stream = io.BytesIO()
    writer = SampleWriter(stream, audio.rate, audio.channels, options, marked=marked)
    _write_blocks(writer, samples, gain)
    writer.finish()
    return Encoded(stream.getvalue(), writer.clipped, writer.watermark)


def _prepared(audio: Audio, options: EncodeOptions) -> tuple[np.ndarray, np.float32, bool]:
    """Samples [C, T], the gain they need, and whether they have their mark already: it may reach beyond full scale."""
    samples = np.atleast_2d(audio.samples)
    if options.over_range != "scale":
        return samples, np.float32(1.0), False
    marked = options.watermark != "none"
    samples = marked_whole(samples, audio.rate) if marked else samples
    peak = max(float(samples.max()), -float(samples.min()))
    return samples, np.float32(SCALED_PEAK / peak if peak > 1.0 else 1.0), marked


def _write_blocks(writer: AudioWriter | SampleWriter, samples: np.ndarray, gain: np.float32) -> None:
    for start in range(0, samples.shape[1], BLOCK_FRAMES):
        writer.write(samples[:, start : start + BLOCK_FRAMES] * gain)
