"""The joins of a stream of sound: chunks that follow one another, or that share a stretch for clients that cross-fade.

A public client fades from the last n samples of a chunk into the first n of the next. Both stretches hold the very same
samples here, so the fade changes nothing and its result is the sound itself:

    sound     aaaaaaaaaabbbbbbbbbbbbbbccccccccc
    chunk 1   aaaaaaaaaa
    chunk 2         aaaabbbbbbbbbbbbbb              (n = 4)
    chunk 3                       bbbbccccccccc
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


def overlapped(pieces: Iterable[np.ndarray], overlap: int) -> Iterator[np.ndarray]:
    """Chunks of float32 [n] from pieces that follow one another, no sample changed.

    overlap: samples each later chunk begins with again. No later chunk is shorter than twice that, because the public
    client plays the end of a shorter one twice; so the last `overlap` samples wait until it is known what follows.
    """
    if overlap < 1:
        yield from (piece for piece in pieces if len(piece))
        return
    waiting = np.zeros(0, np.float32)
    tail: np.ndarray | None = None  # of the chunk before
    for piece in pieces:
        waiting = np.concatenate([waiting, piece])
        if len(waiting) >= 2 * overlap:
            fresh, waiting = waiting[:-overlap], waiting[-overlap:]
            yield fresh if tail is None else np.concatenate([tail, fresh])
            tail = fresh[-overlap:]
    if tail is not None:
        yield np.concatenate([tail, waiting])
    elif len(waiting):
        yield waiting
