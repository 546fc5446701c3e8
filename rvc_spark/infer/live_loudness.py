"""Loudness of a live conversion: the source's envelope mixed in without knowing the future.

A whole recording is matched by RMS over a second around each moment. Live, the second before it is all there is. Source
and voice are measured over the very same second, so the lag cancels in their ratio. Everything is tied to a grid of
20 ms, so the size of blocks does not matter, and gains move linearly in between: nothing can click.
"""

from __future__ import annotations

import numpy as np

from rvc_spark.infer.loudness_match import OUTPUT_FLOOR
from rvc_spark.infer.peak_guard import straight_lines

STEPS = 50  # of 20 ms: the second over which loudness is measured


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
        return (voice * straight_lines([before, *nodes], len(voice) // steps)).astype(np.float32)


def _mean_squares(samples: np.ndarray, steps: int) -> np.ndarray:
    """float64 [steps] of samples [n], n a multiple of `steps`."""
    parts = samples.astype(np.float64).reshape(steps, -1)
    return np.einsum("ij,ij->i", parts, parts) / parts.shape[1]
