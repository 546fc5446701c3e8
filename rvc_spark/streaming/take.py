"""The take: everything that was made, readable anywhere while it grows.

The first megabytes stay in memory and the rest goes to an unnamed temporary file, so a night of sound needs no more
memory than a minute, and neither a closed notebook nor a killed kernel leaves anything behind.
"""

from __future__ import annotations

import tempfile
import threading
import weakref
from collections.abc import Iterator

import numpy as np

from rvc_spark.audio import MAX_VALUES_IN_MEMORY, Audio
from rvc_spark.errors import StreamError

MEMORY_LIMIT = 16 << 20  # bytes; 100 s of mono at 40 kHz
READ_FRAMES = 1 << 18
ITEM = np.dtype(np.float32).itemsize


class TakeStore:
    """Samples float32 [n, C] in the order they came. One thread appends, any number read. Freed with its last owner."""

    def __init__(self, rate: int, channels: int) -> None:
        self.rate = rate
        self.channels = channels
        self._file = tempfile.SpooledTemporaryFile(max_size=MEMORY_LIMIT)  # noqa: SIM115  closed with its owner
        self._lock = threading.Lock()
        self._frames = 0
        self._close = weakref.finalize(self, self._file.close)

    @property
    def frames(self) -> int:
        """Samples per channel so far."""
        return self._frames

    @property
    def seconds(self) -> float:
        """Length so far."""
        return self._frames / self.rate

    def append(self, samples: np.ndarray) -> None:
        """Add float32 [n, C]. Raises StreamError (closed, another shape)."""
        if samples.ndim != 2 or samples.shape[1] != self.channels:
            raise StreamError(
                f"samples of shape {samples.shape} came to a take of {self.channels} channels", "Append [n, C]."
            )
        with self._lock:
            self._assert_open()
            self._file.seek(self._frames * self.channels * ITEM)
            self._file.write(np.ascontiguousarray(samples, np.float32).tobytes())
            self._frames += len(samples)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples of the frames `start` to `stop`, float32 [stop - start, C]. Raises StreamError (closed, outside)."""
        with self._lock:
            self._assert_open()
            if not 0 <= start <= stop <= self._frames:
                raise StreamError(f"frames {start} to {stop} are outside 0 to {self._frames}", "Read what is there.")
            self._file.seek(start * self.channels * ITEM)
            data = self._file.read((stop - start) * self.channels * ITEM)
        return np.frombuffer(data, np.float32).reshape(-1, self.channels)

    def blocks(self, frames: int | None = None) -> Iterator[np.ndarray]:
        """float32 [n, C] from the start to frame `frames` (None: as far as it is now)."""
        end = self._frames if frames is None else min(frames, self._frames)
        for start in range(0, end, READ_FRAMES):
            yield self.read(start, min(start + READ_FRAMES, end))

    def audio(self, start: int = 0, stop: int | None = None) -> Audio:
        """A part of it, or all, as a sound in memory. Raises StreamError (empty, or more than memory should hold)."""
        stop = self._frames if stop is None else stop
        if stop <= start:
            raise StreamError("nothing was made", "Wait for the first sound, or see why the producer ended.")
        if (stop - start) * self.channels > MAX_VALUES_IN_MEMORY:
            raise StreamError(
                f"{(stop - start) / self.rate:.0f} s are too much for one array", "Save the take, or ask for a part."
            )
        samples = self.read(start, stop)
        return Audio(samples[:, 0] if self.channels == 1 else np.ascontiguousarray(samples.T), self.rate)

    def close(self) -> None:
        """Free memory and disk."""
        with self._lock:
            self._close()

    def _assert_open(self) -> None:
        if not self._close.alive:
            raise StreamError("this take is closed", "Save it, or take its audio, before it is closed.")
