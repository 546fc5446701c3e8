"""Joins the chunks of a streamed sentence into gapless sound, with nothing doubled and nothing dropped.

    chunk 0   ###########ooo                o: the last `overlap` samples, held back until it is known what follows
    chunk 1              ooo########ooo     o: the same moment once more, decoded with more context
    chunk 2                         ooo     may be nothing but the overlap

Public Spark-TTS servers repeat the end of each chunk at the start of the next; where the two meet they are faded into
one another in straight lines. Knows arrays only.
"""

from __future__ import annotations

import numpy as np


class OverlapJoiner:
    """Overlap-add of chunks that share `overlap` samples; 0 passes them through.

    Equal to joining them all at the end with linear ramps, for every chunk length: a chunk shorter than the overlap
    belongs to the very end of what came before it, so only that many samples are faded.
    """

    def __init__(self, overlap: int) -> None:
        """Raises ValueError for a negative overlap."""
        if overlap < 0:
            raise ValueError(f"an overlap of {overlap} samples is impossible")
        self.overlap = overlap
        self._held = np.zeros(0, np.float32)

    def push(self, chunk: np.ndarray) -> np.ndarray:
        """Take float32 [T]; return what no later chunk can change, float32 [T'], maybe empty."""
        if self.overlap == 0:
            return chunk
        joined = _faded(self._held, chunk, self.overlap)
        ready = max(0, len(joined) - self.overlap)
        self._held = joined[ready:].copy()  # not a view, which would keep the whole chunk alive
        return joined[:ready]

    def finish(self) -> np.ndarray:
        """The samples that were held back: the end of the sentence, float32 [T <= overlap]."""
        held, self._held = self._held, np.zeros(0, np.float32)
        return held


def _faded(before: np.ndarray, after: np.ndarray, overlap: int) -> np.ndarray:
    """`before` and `after` with their common samples faded: ramps of n points, both ends included."""
    common = min(overlap, len(before), len(after))
    if common == 0:
        return np.concatenate([before, after])
    rising = np.linspace(0.0, 1.0, common) if common > 1 else np.full(1, 0.5)  # one point cannot be both ends
    meeting = after[:common] * rising + before[-common:] * rising[::-1]
    return np.concatenate([before[:-common], meeting.astype(np.float32), after[common:]])
