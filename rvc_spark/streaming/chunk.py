"""One piece of a sound that is still being made: what the cell, a file and a websocket pull alike.

A chunk is an Audio, so whatever takes sound takes chunks. Sentences that failed are not lost silently: their chunk
holds silence and says what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

from rvc_spark.audio import Audio
from rvc_spark.errors import RvcSparkError


@dataclass(frozen=True)
class Gap:
    """A sentence that is missing from a stream: which one (from 0), its text, and why."""

    sentence: int
    text: str
    error: RvcSparkError


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class AudioChunk(Audio):
    """A piece of a stream: float32 samples [T] or [C, T] at `rate`, checked like every Audio.

    stream: which one. seq: its number there, from 0, without holes. last: nothing follows.
    sentence: which sentence of a text it belongs to. gap: set where that sentence failed; the samples are silence then.
    """

    stream: str = ""
    seq: int = 0
    last: bool = False
    sentence: int = 0
    gap: Gap | None = None

    def __repr__(self) -> str:
        marks = [f"{self.stream!r} {self.seq}", f"{self.seconds:.3f} s at {self.rate} Hz"]
        marks += [f"gap: {self.gap.error}"] if self.gap else []
        return f"AudioChunk({', '.join(marks + ['last'] * self.last)})"
