"""Writing a sound block by block: checked, marked, limited, quantised, encoded, in memory that does not grow.

Every sound leaves through `SampleWriter`: files, bytes and pipes, whole or while they are made. So this is where the
watermark is added, and where it is looked for in what was written. A file appears under its name only when it is
complete. Knows nothing of how samples come to be or become bytes.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self
from warnings import warn

import numpy as np

from rvc_spark.audio_encode import ENCODE_FRAMES, EncodeOptions, Quantiser, make_sink
from rvc_spark.audio_limits import check_channels, check_rate
from rvc_spark.audio_samples import check_block
from rvc_spark.audio_source import shown
from rvc_spark.audio_watermark import Examiner, Marker, WatermarkReport, WatermarkWarning, approve
from rvc_spark.errors import AudioError, OutputError


class SampleWriter:
    """Checks, marks, limits, quantises and encodes blocks into an open stream.

    Attributes: `rate`, `channels`; `frames` that came; `clipped`: samples limited; `watermark`: after `finish`, what
    the detector says of the sound as it was encoded, None where no watermark was asked for.
    """

    def __init__(
        self, stream: BinaryIO, rate: int, channels: int, options: EncodeOptions, *, marked: bool = False,
        piped: bool = False,
    ) -> None:  # fmt: skip
        """options: resolved. marked: the sound has its watermark already. piped: `stream` cannot seek."""
        self.rate = check_rate(rate)
        self.channels = check_channels(channels)
        self.frames = 0
        self.clipped = 0
        self.watermark: WatermarkReport | None = None
        self._options = options
        self._encoded = 0
        self._marker = self._examiner = None
        if options.watermark != "none":
            self._marker = None if marked else Marker(self.rate, self.channels)
            self._examiner = Examiner(self.rate)
        self._bits = {"pcm16": 16, "pcm24": 24}.get(options.sample_format)
        self._quantise = Quantiser(self._bits or 16, options.dither and self._bits == 16, options.seed)
        self._sink = make_sink(stream, self.rate, self.channels, options, piped)

    def write(self, block: np.ndarray) -> None:
        """Append float32 [C, n] or [n]. Raises AudioError for a bad block, OSError when the stream is full."""
        block = np.asarray(block, np.float32)
        block = block[np.newaxis] if block.ndim == 1 else block
        if block.ndim != 2 or block.shape[0] != self.channels:
            raise AudioError(
                f"A block of shape {block.shape} came to a writer of {self.channels} channels",
                "Write arrays of shape [C, n].",
            )
        check_block(block, self.rate, self.frames, "the sound to be written")
        self.frames += block.shape[1]
        self._encode(block if self._marker is None else self._marker.push(block.copy()))

    def _encode(self, block: np.ndarray) -> None:
        for start in range(0, block.shape[1], ENCODE_FRAMES):
            frames = self._limited(np.ascontiguousarray(block[:, start : start + ENCODE_FRAMES].T))
            if self._examiner is not None:
                self._examiner.push(frames.T)
            self._sink.write(frames if self._bits is None else self._quantise(frames))
            self._encoded += len(frames)

    def _limited(self, frames: np.ndarray) -> np.ndarray:
        over = int(np.count_nonzero(np.abs(frames) > 1.0))
        if over == 0:
            return frames
        if self._options.over_range == "refuse":
            raise AudioError(
                f"The sound reaches {np.abs(frames).max():.3f} near {self._encoded / self.rate:.3f} s, full scale is 1",
                "Turn it down, or choose over_range='scale' or 'clip'.",
            )
        if self._options.format == "wav" and self._options.sample_format == "float32":
            return frames
        self.clipped += over
        return np.clip(frames, -1.0, 1.0)

    def abandon(self) -> None:
        """Free the encoder; what it has written is worthless."""
        self._sink.abandon()

    def finish(self) -> None:
        """Complete the stream.

        Raises AudioError when it has no samples, WatermarkError when it should carry a mark that is not found.
        """
        if self.frames == 0:
            raise AudioError("Nothing was written: the sound has no samples", "Write at least one block.")
        if self._marker is not None:
            self._encode(self._marker.finish())
        if self._examiner is not None:
            self.watermark = self._examiner.finish()
            unmarked = approve(self.watermark)
            if unmarked:
                warn(f"The sound was written, but carries no watermark: {unmarked}", WatermarkWarning, stacklevel=2)
        self._sink.close()


class AudioWriter:
    """A sound file that is being written; use it with `with`.

    It grows under a temporary name beside its target and takes its name when the block ends well; after an error, or a
    KeyboardInterrupt, nothing is left. Attributes: `path`, and those of SampleWriter.
    """

    def __init__(
        self, path: str | os.PathLike[str], rate: int, channels: int, options: EncodeOptions, *, marked: bool = False
    ) -> None:
        self.path = Path(path)
        options = options.resolved(self.path)
        check_target(self.path)
        self._temporary = self.path.parent / f".{secrets.token_hex(8)}.part"
        self._writer: SampleWriter | None = None
        try:
            self._stream = open(self._temporary, "xb")  # noqa: SIM115 - closed by close() or abort()
        except (OSError, ValueError) as error:
            raise _unwritable(self.path, error) from error
        try:
            self._writer = SampleWriter(self._stream, rate, channels, options, marked=marked)
        except OSError as error:
            self.abort()
            raise _unwritable(self.path, error) from error
        except BaseException:
            self.abort()
            raise

    @property
    def rate(self) -> int:
        """Hz."""
        return self._writer.rate

    @property
    def channels(self) -> int:
        """What every block must have."""
        return self._writer.channels

    @property
    def frames(self) -> int:
        """Frames taken so far."""
        return self._writer.frames

    @property
    def clipped(self) -> int:
        """Samples beyond full scale that were limited so far."""
        return self._writer.clipped

    @property
    def watermark(self) -> WatermarkReport | None:
        """What the detector found in the finished file; None before, and where no watermark was asked for."""
        return self._writer.watermark

    def write(self, block: np.ndarray) -> None:
        """Append float32 [C, n] (or [n] for one channel); an empty block is fine.

        Raises:
            AudioError: not finite, another channel count, beyond full scale with `over_range="refuse"`, or closed.
            OutputError: the disk is full or the encoder failed.
        """
        if self._stream.closed:
            raise AudioError(f"{shown(self.path)} is closed already", "Write every block before closing.")
        try:
            self._writer.write(block)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def close(self) -> Path:
        """Complete the file and give it its name.

        Raises:
            AudioError: nothing was written.
            WatermarkError: it should carry a watermark and the detector does not find it.
            OutputError: the disk is full or the folder went away.
        """
        try:
            self._writer.finish()
            self._stream.close()
            os.replace(self._temporary, self.path)
        except OSError as error:
            self.abort()
            raise _unwritable(self.path, error) from error
        except BaseException:
            self.abort()
            raise
        return self.path

    def abort(self) -> None:
        """Throw away what was written. Safe to call twice, harmless after `close`."""
        if self._writer is not None:
            self._writer.abandon()
        try:
            self._stream.close()
        except OSError:
            pass  # flushing to a full disk fails; the file goes away either way
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def check_target(path: Path) -> None:
    """Refuse what a rename would destroy: a device such as /dev/null would be replaced by a plain file.

    Raises OutputError, also where the folder does not exist.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error
    if mode is not None and not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or pipe"
        raise OutputError(f"{shown(path)} is {kind}, not a file", "Give the name of a file, or use encode_audio.")
    if not path.parent.is_dir():
        raise OutputError(f"The folder {shown(path.parent)} does not exist", "Make it first, or choose another.")


def _unwritable(path: Path, error: OSError | ValueError) -> OutputError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return OutputError(f"{shown(path)} cannot be written ({reason})", "Free some space or choose another folder.")
