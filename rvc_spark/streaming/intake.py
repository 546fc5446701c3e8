"""Whatever can be played, as pieces of one rate and one number of channels.

    a sound, (samples, rate), or an iterable of AudioChunk | Audio | (samples, rate) | samples (if it has a `rate`)

The first piece decides rate and channels; a voice that is changed on the way may bring another rate, and is resampled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rvc_spark.audio import Audio, StreamResampler
from rvc_spark.errors import StreamError
from rvc_spark.streaming.chunk import AudioChunk, Gap

LONGEST = 1 << 16  # frames of a piece; a whole song is handed on in parts, so that bounds are bounds


@dataclass(frozen=True)
class Piece:
    """float32 [n, C], and what is missing there."""

    samples: np.ndarray
    gap: Gap | None = None


class Intake:
    """Pulls a producer. `rate` and `channels` are 0 until the first piece; `total`: seconds in all, if it says so."""

    def __init__(self, source: Any) -> None:
        """Raises StreamError (nothing that can be played)."""
        whole = _as_audio(source, 0) if isinstance(source, Audio | tuple) else None
        if whole is None and not isinstance(source, Iterable):
            raise StreamError(f"{type(source).__name__} cannot be played", "Give a sound, or an iterator of sounds.")
        if isinstance(source, str | bytes | np.ndarray):
            raise StreamError(f"{type(source).__name__} cannot be played", "Read it first, or give (samples, rate).")
        self.rate = self.channels = 0
        self.total = whole.seconds if whole else _length(source)
        self._source = source
        self._items: Iterator[Any] = iter([whole]) if whole else iter(source)
        self._pieces: Iterator[Piece] | None = None
        self._resampler: StreamResampler | None = None

    def pull(self) -> Piece | None:
        """The next piece; None after the last. Raises what the producer raises; StreamError for what is no sound."""
        if self._pieces is None:
            self._pieces = self._all()
        return next(self._pieces, None)

    def close(self) -> None:
        """End the producer. A generator that is just working is left to whoever is inside it: call again afterwards."""
        owners = [self._source] if self._items is self._source else [self._source, self._items]
        for owner in owners:
            close = getattr(owner, "close", None)
            if callable(close):
                try:
                    close()
                except ValueError:  # "generator already executing"
                    return

    def _all(self) -> Iterator[Piece]:
        for item in self._items:
            audio = _as_audio(item, getattr(self._source, "rate", 0))
            gap = audio.gap if isinstance(audio, AudioChunk) else None
            samples = self._fitted(audio)
            for start in range(0, max(1, len(samples)), LONGEST):
                yield Piece(samples[start : start + LONGEST], gap if start == 0 else None)
        if self._resampler is not None:
            yield Piece(self._resampler.finish().T)

    def _fitted(self, audio: Audio) -> np.ndarray:
        """float32 [n, C] at the stream's rate, maybe empty."""
        if not self.rate:
            self.rate, self.channels = audio.rate, min(2, audio.channels)
        rows = np.atleast_2d(audio.samples)  # [C, n]
        if len(rows) != self.channels:
            rows = np.repeat(np.atleast_2d(audio.mono().samples), self.channels, axis=0)
        before = np.zeros((self.channels, 0), np.float32)
        if self._resampler is not None and self._resampler.rate_in != audio.rate:
            before = self._resampler.finish()
            self._resampler = None
        if audio.rate != self.rate and self._resampler is None:
            self._resampler = StreamResampler(audio.rate, self.rate, self.channels)
        if self._resampler is not None:
            rows = self._resampler.push(rows)
        return np.concatenate([before, rows], axis=1).T if before.size else rows.T


def _as_audio(item: Any, rate: int) -> Audio:
    if isinstance(item, Audio):
        return item
    if isinstance(item, tuple) and len(item) == 2 and np.ndim(item[1]) == 0:
        return Audio(*item)
    if isinstance(item, np.ndarray) and rate:
        return Audio(item, rate)
    raise StreamError(
        f"the producer gave a piece of type {type(item).__name__}", "Give AudioChunk, Audio, or (samples, rate)."
    )


def _length(source: Any) -> float | None:
    frames, rate = getattr(source, "frames", None), getattr(source, "rate", None)
    return frames / rate if isinstance(frames, int) and isinstance(rate, int) and frames and rate else None
