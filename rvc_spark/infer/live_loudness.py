"""Loudness of a live conversion: the source's envelope mixed in without knowing the future, and peaks held down.

A whole recording is matched by RMS over a second around each moment. Live, the second before it is all there is. Source
and voice are measured over the very same second, so the lag cancels in their ratio. Everything is tied to a grid of
20 ms, so the size of blocks does not matter, and gains move linearly in between: nothing can click.
"""

from __future__ import annotations

import numpy as np

from rvc_spark.infer.loudness_match import OUTPUT_FLOOR

STEPS = 50  # of 20 ms: the second over which loudness is measured
PEAK = 0.99
HOLD_SECONDS = 0.005  # a peak is seen so long before it comes out
RELEASE_SECONDS = 1.0  # from silence back to full gain


class LiveLoudness:
    """Mixes the loudness of the source into the voice, block by block."""

    def __init__(self, mix_rate: float) -> None:
        self._mix_rate = mix_rate
        self._source = np.zeros(0)  # mean squares of the last second, one per 20 ms
        self._voice = np.zeros(0)
        self._gain: float | None = None

    def match(self, source: np.ndarray, voice: np.ndarray, steps: int) -> np.ndarray:
        """The voice's block with its gain, float32 [n].

        Args:
            source: the same block of the source, of any rate.
            voice: float32 [n].
            steps: of 20 ms in this block.
        """
        if self._mix_rate == 1:
            return voice
        nodes = []
        for heard, said in zip(_mean_squares(source, steps), _mean_squares(voice, steps), strict=True):
            self._source = np.append(self._source, heard)[-STEPS:]
            self._voice = np.append(self._voice, said)[-STEPS:]
            wanted, present = np.sqrt(self._source.mean()), max(np.sqrt(self._voice.mean()), OUTPUT_FLOOR)
            nodes.append(float(wanted ** (1 - self._mix_rate) * present ** (self._mix_rate - 1)))
        before = nodes[0] if self._gain is None else self._gain
        self._gain = nodes[-1]
        return (voice * _ramps([before, *nodes], len(voice) // steps)).astype(np.float32)


def _mean_squares(samples: np.ndarray, steps: int) -> np.ndarray:
    """float64 [steps] of samples [n], n a multiple of `steps`."""
    parts = samples.astype(np.float64).reshape(steps, -1)
    return np.einsum("ij,ij->i", parts, parts) / parts.shape[1]


def _ramps(nodes: list[float], length: int) -> np.ndarray:
    """Straight lines of `length` samples from node to node, float64 [(len(nodes) - 1) * length]."""
    places = (np.arange((len(nodes) - 1) * length) + 1) / length
    return np.interp(places, np.arange(len(nodes)), nodes)


class PeakGuard:
    """Holds peaks under PEAK with gains that move linearly; a signal that stays under it passes bit for bit.

    Each stretch of 5 ms has the gain its own peak needs; at the border of two the lower of both holds, so the line
    between two borders is low enough everywhere.
    """

    def __init__(self, rate: int) -> None:
        self._length = max(1, round(HOLD_SECONDS * rate))
        self._release = self._length / rate / RELEASE_SECONDS
        self._waiting = np.zeros(0, np.float32)
        self._border = 1.0  # gain at the start of what is waiting

    @property
    def held(self) -> int:
        """At most so many samples come out later than they went in."""
        return 2 * self._length

    @property
    def waiting(self) -> int:
        """Samples that went in and did not come out yet."""
        return len(self._waiting)

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Feed float32 [n], get what is safe to let go, maybe nothing."""
        waiting = np.concatenate([self._waiting, samples])
        count = len(waiting) // self._length - 1  # the last whole stretch waits for its neighbour
        if count < 1:
            self._waiting = waiting
            return waiting[:0]
        cut = count * self._length
        ready, self._waiting = waiting[:cut], waiting[cut:].copy()
        return self._guarded(ready, self._waiting[: self._length])

    def finish(self) -> np.ndarray:
        """The rest."""
        rest, self._waiting = self._waiting, np.zeros(0, np.float32)
        padded = np.pad(rest, (0, -len(rest) % self._length))
        return self._guarded(padded, padded[:0])[: len(rest)]

    def _guarded(self, ready: np.ndarray, after: np.ndarray) -> np.ndarray:
        if not len(ready):
            return ready
        stretches = np.abs(ready).reshape(-1, self._length).max(axis=1)
        peaks = np.append(stretches, np.abs(after).max() if len(after) else 0.0)
        needed = np.minimum(1.0, PEAK / np.maximum(peaks, PEAK))
        if self._border == 1.0 and needed.min() == 1.0:
            return ready
        # the gain may have had to be lower already at the start; only the very first stretch can find itself so
        nodes = [min(self._border, float(needed[0]))]
        for left, right in zip(needed, needed[1:], strict=False):
            nodes.append(min(float(left), float(right), nodes[-1] + self._release))
        self._border = nodes[-1]
        return (ready * _ramps(nodes, self._length)).astype(np.float32)
