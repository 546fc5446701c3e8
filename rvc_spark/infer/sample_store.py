"""Mono samples of any length that can be read back anywhere, held in memory while few and on disk when many.

An hour of sound at 48 kHz is 690 MB; a conversion needs it twice. The store keeps the first megabytes in memory and
moves to an unnamed temporary file beyond that, so memory stays bounded and nothing is left behind by a killed process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MEMORY_LIMIT = 32 << 20  # bytes; about 8 minutes at 16 kHz
READ_BLOCK = 1 << 20  # samples
ITEM = np.dtype(np.float32).itemsize


class SampleStore:
    """Append float32 blocks [n], read ranges back. `gain` scales what is read, for guards known late."""

    def __init__(self, rate: int, folder: Path | None = None) -> None:
        self.rate = rate
        self.gain = 1.0
        self.peak = 0.0
        self._length = 0
        self._file = tempfile.SpooledTemporaryFile(max_size=MEMORY_LIMIT, dir=folder)  # noqa: SIM115  closed by close()

    def __len__(self) -> int:
        return self._length

    def append(self, block: np.ndarray) -> None:
        """Add samples at the end."""
        if not len(block):
            return
        block = np.ascontiguousarray(block, dtype=np.float32)
        self.peak = max(self.peak, float(np.max(np.abs(block))))
        self._file.seek(self._length * ITEM)
        self._file.write(block.tobytes())
        self._length += len(block)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples `start..stop`, float32 [stop - start], times the gain. The range must lie inside."""
        if not 0 <= start <= stop <= self._length:
            raise IndexError(f"range {start}..{stop} outside 0..{self._length}")
        self._file.seek(start * ITEM)
        samples = np.frombuffer(self._file.read((stop - start) * ITEM), dtype=np.float32)
        return samples if self.gain == 1.0 else samples * np.float32(self.gain)

    def blocks(self, size: int = READ_BLOCK) -> Iterator[np.ndarray]:
        """All samples in blocks of `size`."""
        for start in range(0, self._length, size):
            yield self.read(start, min(start + size, self._length))

    def array(self) -> np.ndarray:
        """Everything at once, float32 [N]."""
        return np.array(self.read(0, self._length))

    def guard_peak(self, limit: float) -> float:
        """Set the gain so that no sample read is beyond `limit`; returns that gain (1 if none was)."""
        self.gain = min(1.0, limit / self.peak) if self.peak > 0 else 1.0
        return self.gain

    def close(self) -> None:
        """Free memory and disk."""
        self._file.close()
