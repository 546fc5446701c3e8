"""Where spoken sound is cut into sentences: at the digital silence that speech engines put between them.

A part ends at a pause, so nothing is cut inside a word. Knows nothing of voices and conversion.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rvc_spark.audio import Audio

SENTENCE_PAUSE = 0.25  # seconds of silence between sentences that are spoken one by one
PAUSE_SECONDS = 0.1  # engines put at least this much digital silence between sentences
LONGEST_SECONDS = 30.0  # of a part without a pause; then it is cut where it is


def parts_between_pauses(spoken: Iterator[Audio]) -> Iterator[tuple[Audio, int]]:
    """(speech, samples of silence after it), in order; together they are all samples that came."""
    held = np.zeros(0, np.float32)
    rate = 0
    for piece in spoken:
        rate = piece.rate
        held = np.concatenate([held, piece.samples.reshape(-1)])
        while (found := _first_pause(held, rate)) is not None:
            start, stop = found
            if stop == len(held):  # it may go on in the next piece
                break
            yield Audio(held[:start], rate), stop - start
            held = held[stop:]
        if len(held) > LONGEST_SECONDS * rate:
            yield Audio(held, rate), 0
            held = held[:0]
    if len(held):
        found = _first_pause(held, rate)
        start = len(held) if found is None else found[0]
        yield Audio(held[:start], rate), len(held) - start


def _first_pause(samples: np.ndarray, rate: int) -> tuple[int, int] | None:
    """The first run of digital silence that has speech before it and is long enough: its start and end."""
    loud = np.flatnonzero(samples)
    if not len(loud):
        return None
    edges = np.append(loud, len(samples))
    gaps = np.flatnonzero(np.diff(edges) > PAUSE_SECONDS * rate)
    if not len(gaps):
        return None
    return int(edges[gaps[0]]) + 1, int(edges[gaps[0] + 1])
