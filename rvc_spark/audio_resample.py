"""Sample-rate conversion of soxr's highest quality, whole or block by block, of exactly known length.

Both ways give the same samples: soxr keeps its filter state across blocks, so cutting a signal anywhere changes
nothing. Knows arrays and rates only; what a file or an `Audio` is, it refuses to know.
"""

from __future__ import annotations

import numpy as np
import soxr

from rvc_spark.audio_limits import MAX_RATE
from rvc_spark.errors import AudioError

QUALITY = "VHQ"
QUALITIES = ("VHQ", "HQ")
"""soxr's best, and the one that most audio programs use: 28 and 20 bits."""
MAX_RESAMPLER_RATE = 4 * MAX_RATE
"""Hz. Room for the oversampling a true-peak meter does."""


def resampled_length(frames: int, rate_in: int, rate_out: int) -> int:
    """`round(frames * rate_out / rate_in)` with ties to even, in integers, so it is exact for any length."""
    whole, rest = divmod(frames * rate_out, rate_in)
    return whole + (2 * rest > rate_in or (2 * rest == rate_in and whole % 2 == 1))


def resample(samples: np.ndarray, rate_in: int, rate_out: int, quality: str = QUALITY) -> np.ndarray:
    """Convert the sampling rate along the last axis.

    Args:
        samples: float32 or float64 [..., T]; other types become float32.
        rate_in, rate_out: Hz, 1..`MAX_RESAMPLER_RATE`.
        quality: one of `QUALITIES`; HQ only to reproduce another program's numbers.

    Returns:
        The same type, [..., resampled_length(T, rate_in, rate_out)]. Equal rates return the input itself.

    Raises:
        AudioError: a rate is no whole number in range.
    """
    _check_rates(rate_in, rate_out)
    samples = np.asarray(samples)
    if samples.dtype not in (np.float32, np.float64):
        samples = samples.astype(np.float32)
    if rate_in == rate_out:
        return samples
    length = resampled_length(samples.shape[-1], rate_in, rate_out)
    if samples.size == 0:
        return np.zeros((*samples.shape[:-1], length), samples.dtype)
    rows = samples.reshape(-1, samples.shape[-1])
    result = np.zeros((rows.shape[0], length), samples.dtype)
    for row, target in zip(rows, result, strict=True):  # soxr gives the same per row as for all at once, in less memory
        converted = soxr.resample(np.ascontiguousarray(row), rate_in, rate_out, quality)
        target[:] = _fitted(converted, length)
    return result.reshape(*samples.shape[:-1], length)


class StreamResampler:
    """Sample-rate conversion of a signal that arrives in blocks, in memory that does not grow with it.

    What `push` and `finish` return, joined, is what `resample` gives for the joined input.
    """

    def __init__(self, rate_in: int, rate_out: int, channels: int = 1) -> None:
        """Raises AudioError for rates out of range."""
        _check_rates(rate_in, rate_out)
        self.rate_in = rate_in
        self.rate_out = rate_out
        self.channels = channels
        self.frames_in = 0
        self.frames_out = 0
        self._finished = False
        same = rate_in == rate_out
        self._soxr = None if same else soxr.ResampleStream(rate_in, rate_out, channels, "float32", QUALITY)

    def push(self, block: np.ndarray) -> np.ndarray:
        """Feed float32 [C, n] (or [n] when there is one channel); get what is ready, in the same layout, maybe empty.

        Raises:
            AudioError: another channel count, or `finish` was called before.
        """
        if self._finished:
            raise AudioError("A block came after the resampler was finished", "Make a new StreamResampler.")
        frames = self._frames_first(block)
        self.frames_in += len(frames)
        ready = frames if self._soxr is None else self._soxr.resample_chunk(frames)
        self.frames_out += len(ready)
        return self._as_given(ready, block.ndim)

    def finish(self, total_in: int | None = None) -> np.ndarray:
        """The rest, float32 [C, n], cut by absolute position so that the joined output has its exact length.

        Args:
            total_in: frames the caller believes to have pushed, as a check.

        Raises:
            AudioError: `total_in` is not what was pushed, or `finish` was called before.
        """
        if self._finished:
            raise AudioError("The resampler is finished already", "Make a new StreamResampler.")
        if total_in is not None and total_in != self.frames_in:
            raise AudioError(
                f"The resampler got {self.frames_in} frames, its caller counted {total_in}", "Push every block once."
            )
        self._finished = True
        rest = np.zeros((0, self.channels), np.float32)
        if self._soxr is not None:
            rest = self._soxr.resample_chunk(rest, last=True)
        missing = resampled_length(self.frames_in, self.rate_in, self.rate_out) - self.frames_out
        rest = _fitted(rest, missing)
        self.frames_out += len(rest)
        return np.ascontiguousarray(rest.T)

    def _frames_first(self, block: np.ndarray) -> np.ndarray:
        rows = np.asarray(block, np.float32)
        rows = rows[np.newaxis] if rows.ndim == 1 else rows
        if rows.ndim != 2 or rows.shape[0] != self.channels:
            raise AudioError(
                f"A block of shape {np.shape(block)} came to a resampler of {self.channels} channels",
                "Push arrays of shape [C, n].",
            )
        return np.ascontiguousarray(rows.T)

    def _as_given(self, frames: np.ndarray, ndim: int) -> np.ndarray:
        return frames[:, 0] if ndim == 1 else np.ascontiguousarray(frames.T)


def _fitted(frames: np.ndarray, length: int) -> np.ndarray:
    """Cut to `length` frames: soxr rounds half a frame up where `round` goes to even, so at most one is in excess.

    Should a soxr version come out short, the last frame is held.
    """
    if len(frames) >= length:
        return frames[:length]
    last = frames[-1:] if len(frames) else np.zeros((1, *frames.shape[1:]), frames.dtype)
    return np.concatenate([frames, np.repeat(last, length - len(frames), axis=0)])


def _check_rates(*rates: int) -> None:
    for rate in rates:
        if rate != int(rate) or not 1 <= rate <= MAX_RESAMPLER_RATE:
            raise AudioError(
                f"A rate of {rate!r} Hz cannot be resampled; it must be a whole number up to {MAX_RESAMPLER_RATE}",
                "Give the rate the samples were recorded at.",
            )
