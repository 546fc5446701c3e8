"""The parts of a mix: sounds in blocks with their rates, channels and gains, brought into line with one another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rvc_spark.audio_limits import check_channels, check_rate, check_seconds
from rvc_spark.audio_resample import StreamResampler
from rvc_spark.audio_samples import check_block
from rvc_spark.errors import AudioError, ConfigError

MIX_FRAMES = 65_536
"""Frames of the sum at a time; a power of two, so whole hops of the limiter."""
GAIN_DB = (-80.0, 24.0)
"""Gains a track may have. Softer than this is nothing: leave the track out."""

# How more than two channels become two (ITU-R BS.775-4, table 2), in WAV order; the low-frequency channel is dropped.
_SIDE = math.sqrt(0.5)
_LEFT_OF = {
    3: (1, 0, _SIDE),
    4: (1, 0, _SIDE, 0),
    5: (1, 0, _SIDE, _SIDE, 0),
    6: (1, 0, _SIDE, 0, _SIDE, 0),
    7: (1, 0, _SIDE, 0, _SIDE * _SIDE, _SIDE, 0),
    8: (1, 0, _SIDE, 0, _SIDE, 0, _SIDE, 0),
}
_RIGHT_OF = {
    3: (0, 1, _SIDE),
    4: (0, 1, 0, _SIDE),
    5: (0, 1, _SIDE, 0, _SIDE),
    6: (0, 1, _SIDE, 0, 0, _SIDE),
    7: (0, 1, _SIDE, 0, _SIDE * _SIDE, 0, _SIDE),
    8: (0, 1, _SIDE, 0, 0, _SIDE, 0, _SIDE),
}


@dataclass(frozen=True, eq=False)
class Track:
    """One part of a mix.

    Attributes:
        name: how messages call it.
        blocks: float32 [C, n] of any n, read once.
        rate: Hz.
        channels: C; one channel goes to both sides as it is, more than two are mixed down to two.
        gain_db: -80..24 dB.
        frames: how many will come, if known, for progress only.
    """

    name: str
    blocks: Iterable[np.ndarray]
    rate: int
    channels: int
    gain_db: float = 0.0
    frames: int | None = None

    def __post_init__(self) -> None:
        check_rate(self.rate, self.name)
        check_channels(self.channels, self.name)
        low, high = GAIN_DB
        if isinstance(self.gain_db, bool) or not low <= self.gain_db <= high:
            raise ConfigError(
                f"The gain of {self.name} is {self.gain_db!r}, outside {low:g} to {high:g} dB",
                "Choose a value in that range, or leave the track out.",
            )

    def rendered(self, rate: int, channels: int) -> Iterator[np.ndarray]:
        """The track with its gain at another rate and in 1 or 2 channels, float32 [channels, n].

        Raises AudioError for a block of another channel count or that is not finite, or more than 12 hours of sound.
        """
        gain = np.float32(10 ** (self.gain_db / 20))
        resampler = StreamResampler(self.rate, rate, channels)
        done = 0
        for block in self.blocks:
            block = np.atleast_2d(np.asarray(block, np.float32))
            if len(block) != self.channels:
                raise AudioError(
                    f"A block of {len(block)} channels came in {self.name}, which has {self.channels}",
                    "Give arrays of shape [C, n].",
                )
            check_block(block, self.rate, done, self.name)
            done += block.shape[1]
            check_seconds(done, self.rate, self.name)
            yield resampler.push(to_channels(block, channels) * gain)
        yield resampler.finish()


def to_channels(block: np.ndarray, channels: int) -> np.ndarray:
    """float32 [C, n] in 1 or 2 channels: one is doubled, more than two are mixed down as ITU-R BS.775-4 says."""
    if len(block) == channels:
        return block
    if len(block) > 2:
        block = np.array([_LEFT_OF[len(block)], _RIGHT_OF[len(block)]], np.float32) @ block
    return np.repeat(block, 2, axis=0) if channels == 2 and len(block) == 1 else block[:channels]


def lined_up(tracks: Sequence[Track], rate: int, channels: int) -> Iterator[np.ndarray]:
    """The sum of tracks that all begin at frame 0, float32 [channels, MIX_FRAMES]; the last is shorter.

    It is as long as the longest track; those that end earlier are silent from there on.
    """
    feeds = [_Feed(track.rendered(rate, channels), channels) for track in tracks]
    while True:
        pieces = [feed.take(MIX_FRAMES) for feed in feeds]
        longest = max(piece.shape[1] for piece in pieces)
        if not longest:
            return
        total = np.zeros((channels, longest), np.float32)
        for piece in pieces:
            total[:, : piece.shape[1]] += piece
        yield total


class _Feed:
    """Exact numbers of frames out of blocks of any size."""

    def __init__(self, blocks: Iterator[np.ndarray], channels: int) -> None:
        self._blocks = blocks
        self._waiting = np.zeros((channels, 0), np.float32)

    def take(self, frames: int) -> np.ndarray:
        """The next `frames` frames; fewer at the end."""
        pieces, held = [self._waiting], self._waiting.shape[1]
        while held < frames and (block := next(self._blocks, None)) is not None:
            pieces.append(block)
            held += block.shape[1]
        joined = np.concatenate(pieces, axis=1) if len(pieces) > 1 else self._waiting
        self._waiting = joined[:, frames:]
        return joined[:, :frames]
