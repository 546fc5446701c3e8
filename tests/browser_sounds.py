"""Streams for tests of the player: the same samples every time, in pieces of uneven length. Run in a test's kernel."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

import numpy as np

from rvc_spark.streaming.chunk import AudioChunk

RATE = 24_000
PIECE_SECONDS = (0.05, 0.31, 0.12, 0.2)


def samples(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """A gliding tone with a little noise, float32 [C, frames]; no two quanta are alike."""
    frames = round(seconds * rate)
    times = np.arange(frames) / rate
    phase = 2 * np.pi * (180 * times + 20 * np.sin(0.7 * times))
    noise = np.random.default_rng(7).standard_normal((channels, frames))
    tones = np.stack([np.sin(phase) + 0.5 * np.sin((2 + c) * phase) for c in range(channels)])
    return (0.15 * tones + 0.01 * noise).astype(np.float32)


def chunks(
    seconds: float, rate: int = RATE, channels: int = 1, *, pause: float = 0.0, endless: bool = False
) -> Iterator[AudioChunk]:
    """The sound in pieces. pause: seconds between two pieces, as a producer that works. endless: over and over."""
    whole = samples(seconds, rate, channels)
    seq = at = 0
    while True:
        end = min(whole.shape[1], at + round(PIECE_SECONDS[seq % len(PIECE_SECONDS)] * rate))
        last = end == whole.shape[1] and not endless
        piece = whole[:, at:end] if channels > 1 else whole[0, at:end]
        yield AudioChunk(np.ascontiguousarray(piece), rate, seq=seq, last=last)
        if last:
            return
        seq, at = seq + 1, end % whole.shape[1]
        time.sleep(pause)


def digest(sound: np.ndarray) -> str:
    """SHA-256 of samples [C, frames] as the page keeps them: interleaved float32."""
    return hashlib.sha256(np.ascontiguousarray(sound.T, "<f4").tobytes()).hexdigest()
