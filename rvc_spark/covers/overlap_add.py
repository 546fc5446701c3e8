r"""A network that takes pieces of one length, over a sound of any length, in bounded memory and without a seam.

Pieces overlap; each result is weighted by a triangle and the sum divided by the sum of the weights, so every sample is
a crossfade of the pieces that saw it:

    piece 0   ___/----\___
    piece 1         ___/----\___
    out       -----------x------...      what no later piece reaches leaves at once

The last piece reaches beyond the end; it is moved back over sound that is there and padded with silence. This is what
demucs does with a whole song in memory, sample for sample, here with as much of it as a piece needs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

Network = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Pieces:
    """How a sound is cut: `frames` per piece, of which the share `overlap` is seen by the next one too.

    silence: the value of what lies beyond the ends.
    """

    frames: int
    overlap: float = 0.25
    silence: float = 0.0

    @property
    def stride(self) -> int:
        """Frames from one piece to the next."""
        return int((1 - self.overlap) * self.frames)

    def weights(self) -> np.ndarray:
        """A triangle, float32 [frames], 1 in the middle."""
        half = self.frames // 2
        rising, falling = np.arange(1, half + 1), np.arange(self.frames - half, 0, -1)
        weights = np.concatenate([rising, falling]).astype(np.float32)
        return weights / weights.max()


class _Window:
    """Blocks that come one after the other, readable anywhere within reach of what was read last."""

    def __init__(self, blocks: Iterable[np.ndarray], total: int, pieces: Pieces) -> None:
        self._blocks, self._total, self._pieces = iter(blocks), total, pieces
        self._held: np.ndarray | None = None
        self._first = 0  # frame number of the first one held

    def read(self, start: int, stop: int) -> np.ndarray:
        """float32 [C, stop - start]."""
        inside = min(stop, self._total)
        while self._held is None or self._first + self._held.shape[1] < inside:
            self._pull()
        drop = max(0, min(start - self._pieces.frames, self._first + self._held.shape[1]) - self._first)
        if drop:
            self._held, self._first = self._held[:, drop:], self._first + drop
        low = max(start, 0)
        samples = self._held[:, low - self._first : inside - self._first]
        return np.pad(samples, ((0, 0), (low - start, stop - inside)), constant_values=self._pieces.silence)

    def _pull(self) -> None:
        block = next(self._blocks)
        self._held = block if self._held is None else np.concatenate([self._held, block], axis=1)


def overlap_add(
    blocks: Iterable[np.ndarray], total: int, pieces: Pieces, network: Callable[[np.ndarray], Iterator[np.ndarray]]
) -> Generator[tuple[np.ndarray, np.ndarray] | None, None, None]:
    """Run a network over a sound.

    Args:
        blocks: float32 [C, n] of any length, together `total` frames.
        network: float32 [C, frames] -> a generator that may yield None as often as it likes (to let its caller breathe)
            and then the result, float32 [C, frames].

    Yields:
        None where nothing is ready yet, else (sound, result), float32 [C, n] each: the next part of both, aligned.
    """
    window, weights = _Window(blocks, total, pieces), pieces.weights()
    summed: np.ndarray | None = None  # result times weight from `offset` on
    weight_sum = np.zeros(pieces.frames, np.float32)
    for offset in range(0, total, pieces.stride):
        length = min(pieces.frames, total - offset)
        lead = (pieces.frames - length) // 2  # the last piece also looks back
        sound = window.read(offset - lead, offset - lead + pieces.frames)
        result = None
        for result in network(sound):
            if result is None:
                yield None
        result = result[:, lead : lead + length]
        summed = np.zeros((result.shape[0], pieces.frames), np.float32) if summed is None else summed
        summed[:, :length] += result * weights[:length]
        weight_sum[:length] += weights[:length]
        ready = min(pieces.stride, total - offset)
        yield window.read(offset, offset + ready), summed[:, :ready] / weight_sum[:ready]
        summed = np.pad(summed[:, ready:], ((0, 0), (0, ready)))
        weight_sum = np.pad(weight_sum[ready:], (0, ready))
