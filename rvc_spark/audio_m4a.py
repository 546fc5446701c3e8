"""AAC in an MP4 file (.m4a) through libav: what phones and Apple's players take.

An AAC encoder adds 1024 frames before the sound and fills its last packet up. The edit list of the file says which
frames are the sound; its clock is set to the sampling rate, so that the length is exact to the frame.
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from rvc_spark.audio_source import RecordingFile
from rvc_spark.audio_tags import Tags
from rvc_spark.errors import OutputError

BITS_PER_SECOND = (40_000, 150_000)
"""Per channel at quality 0 and 1, at 44.1 kHz and above; 128,000 at 0.8."""
REFERENCE_RATE = 44_100


class M4aSink:
    """One or two channels; `write` float32 [n, C]."""

    def __init__(self, stream: BinaryIO, rate: int, channels: int, quality: float, tags: Tags) -> None:
        import av  # a large library that wav and flac do not need

        self._av, self._rate, self._frames = av, rate, 0
        self._target = RecordingFile(stream)
        self._layout = "stereo" if channels == 2 else "mono"
        try:
            self._container = av.open(self._target, "w", format="ipod", options={"movie_timescale": str(rate)})
            self._container.metadata.update(tags.present())
            self._stream = self._container.add_stream("aac", rate=rate, layout=self._layout)
        except (av.FFmpegError, ValueError) as error:
            self._raise_disk_error()
            raise OutputError(f"m4a cannot be encoded here ({error})", "Write flac or mp3 instead.") from error
        low, high = BITS_PER_SECOND
        share = min(1.0, rate / REFERENCE_RATE)
        self._stream.bit_rate = round((low + quality**2 * (high - low)) * share * channels)

    def write(self, frames: np.ndarray) -> None:
        """float32 [n, C]."""
        frame = self._av.AudioFrame.from_ndarray(np.ascontiguousarray(frames.T), format="fltp", layout=self._layout)
        frame.sample_rate, frame.pts = self._rate, self._frames
        self._frames += len(frames)
        self._encode(frame)

    def close(self) -> None:
        """Complete the file."""
        self._encode(None)
        try:
            self._container.close()
        except self._av.FFmpegError as error:
            self._raise_disk_error()
            raise OutputError(f"The m4a encoder failed ({error})", "Write flac instead.") from error
        self._raise_disk_error()

    def abandon(self) -> None:
        """Free the encoder without caring what becomes of the stream."""
        self._target.abandoned = True
        try:
            self._container.close()
        except self._av.FFmpegError:
            pass  # it is thrown away

    def _encode(self, frame: object) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except (self._av.FFmpegError, ValueError) as error:
            self._raise_disk_error()
            raise OutputError(f"The m4a encoder failed ({error})", "Write flac instead.") from error
        self._raise_disk_error()

    def _raise_disk_error(self) -> None:
        if self._target.error is not None:
            raise self._target.error
