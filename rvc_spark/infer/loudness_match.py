"""Give a result the loudness envelope of its source, in blocks, in bounded memory.

The envelope is the RMS over one second, twice per second, centred, with silence beyond both ends. Since neighbouring
windows share a half second, it is enough to keep the energy of every half second:

    half seconds   |  e0  |  e1  |  e2  |        envelope[i] = sqrt((e[i-1] + e[i]) / one second)
    envelope       0      1      2      3
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

OUTPUT_FLOOR = 1e-6  # the result's envelope is not taken below this; the source's has no floor


class Envelope:
    """Collects the RMS envelope of a sound that is given in blocks of any size."""

    def __init__(self, rate: int) -> None:
        self._half = rate // 2
        self._energies: list[float] = []
        self._open = np.zeros(0, dtype=np.float64)
        self._total = 0

    def push(self, block: np.ndarray) -> None:
        """Add samples [n]."""
        self._total += len(block)
        samples = np.concatenate([self._open, np.asarray(block, dtype=np.float64)])
        whole = len(samples) // self._half
        halves = samples[: whole * self._half].reshape(whole, self._half)
        self._energies.extend(np.einsum("ij,ij->i", halves, halves))
        self._open = samples[whole * self._half :]

    @property
    def settled(self) -> int:
        """How many points of the curve no later sample can change."""
        return len(self._energies)

    def curve(self) -> np.ndarray:
        """The envelope so far, float64 [1 + N // half a second]."""
        energies = np.array([0.0, *self._energies, float(self._open @ self._open)])
        count = 1 + self._total // self._half
        return np.sqrt((energies[:-1] + energies[1:]) / (2 * self._half))[:count]


def envelope_of(blocks: Iterable[np.ndarray], rate: int) -> np.ndarray:
    """The whole envelope of a sound given in blocks."""
    envelope = Envelope(rate)
    for block in blocks:
        envelope.push(block)
    return envelope.curve()


def stretch(curve: np.ndarray, total: int, start: int, stop: int) -> np.ndarray:
    """Values `start..stop` of a curve stretched linearly to `total` points (half-pixel centres, ends held)."""
    position = (np.arange(start, stop) + 0.5) * (len(curve) / total) - 0.5
    return np.interp(position, np.arange(len(curve)), curve)


def envelope_gain(
    source: np.ndarray, target: np.ndarray, mix_rate: float, total: int, span: tuple[int, int]
) -> np.ndarray:
    """The factor for samples `span` of a result of `total` samples. float64 [stop - start].

    Args:
        source, target: envelopes of the source and of the result.
        mix_rate: 1 keeps the result's own loudness, 0 imposes the source's.
    """
    wanted = stretch(source, total, *span)
    present = np.maximum(stretch(target, total, *span), OUTPUT_FLOOR)
    return wanted ** (1 - mix_rate) * present ** (mix_rate - 1)


def match_loudness(source: np.ndarray, target: np.ndarray, rate_target: int, mix_rate: float) -> np.ndarray:
    """`target` [M] with the loudness of `source` [N at 16 kHz] mixed in; the in-memory form of the above."""
    gain = envelope_gain(
        envelope_of([source], 16_000), envelope_of([target], rate_target), mix_rate, len(target), (0, len(target))
    )
    return (target * gain).astype(np.float32)


class StreamedMatch:
    """`match_loudness` for a result of known length that comes in blocks: a sample leaves once its gain is settled.

    A point of the envelope looks half a second ahead, and the gain runs on a line to the next point, so 0.25 to 0.75 s
    are held back until the end.
    """

    def __init__(self, source: np.ndarray, mix_rate: float, rate: int, total: int) -> None:
        """source: envelope of the whole source. total: samples of the result at `rate`."""
        self._source, self._mix_rate, self._total = source, mix_rate, total
        self._points = 1 + total // (rate // 2)
        self._envelope = Envelope(rate)
        self._held = np.zeros(0, np.float32)
        self._done = 0

    def push(self, block: np.ndarray) -> np.ndarray:
        """Add samples [n]; returns those that are ready, float32, perhaps none."""
        self._envelope.push(block)
        self._held = np.concatenate([self._held, block])
        stop = self._stop()
        ready, self._held = np.split(self._held, [stop - self._done])
        if not len(ready):
            return ready
        curve = self._envelope.curve()
        curve = np.pad(curve, (0, self._points - len(curve)), mode="edge")
        gain = envelope_gain(self._source, curve, self._mix_rate, self._total, (self._done, stop))
        self._done = stop
        return (ready * gain).astype(np.float32)

    def _stop(self) -> int:
        """The first sample that has to wait: the inverse of the position in `stretch`."""
        known = self._done + len(self._held)
        if known == self._total:
            return known
        if self._envelope.settled == 0:
            return self._done
        last = math.floor((self._envelope.settled - 0.5) * self._total / self._points - 0.5)
        return min(max(self._done, last + 1), known)
