"""Silence where the singer of the source was silent: a gate for converted vocals, steered by the source's own level.

A network fed with silence still hums and hisses a little, and a separated vocal carries traces of the band between its
phrases. So the source vocal is listened to first (`measure_activity`, one level per 10 ms); where it sings, the
converted vocal passes bit for bit, and between phrases it is faded down.

    source    ......######....##............
    open      ....[=================]........    opened a little early, held a little late, short gaps bridged
    gain      ...:###################::......    raised-cosine fades outside of what is open

The levels of the whole source are known before the first converted block comes, so nothing is delayed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from rvc_spark.audio_limits import check_rate
from rvc_spark.errors import AudioError, ConfigError
from rvc_spark.infer.settings import check_ranges, setting

FRAME_SECONDS = 0.01
NO_LEVEL_DB = -200.0
"""dBFS of a frame of digital silence."""
LOUD_PERCENTILE = 95.0
LISTENING_DB = -70.0
"""dBFS. Frames below this say nothing about how loud the singer is."""
MAX_FRAMES = 12 * 3600 * 100
"""Of a stored activity: the longest sound at 10 ms."""


@dataclass(frozen=True)
class GateSettings:
    """How the gate moves. Out of range raises ConfigError naming value and range; a depth of 0 dB switches it off."""

    depth_db: float = setting(60.0, "how far gaps are turned down; 0 is off", 0, 120, "dB")
    range_db: float = setting(42.0, "level that opens it, so far below the singer's loud passages", 10, 90, "dB")
    hysteresis_db: float = setting(6.0, "it closes so much below the level that opens it", 0, 30, "dB")
    floor_db: float = setting(-62.0, "never opened by anything below this", -100, -20, "dBFS")
    look_ahead: float = setting(0.03, "opened so long before the sound: the onset of an h or f is soft", 0, 0.5, "s")
    hold: float = setting(0.15, "kept open so long after it; bridges the gaps inside words", 0, 2, "s")
    attack: float = setting(0.01, "of the fade in", 0.001, 0.5, "s")
    release: float = setting(0.12, "of the fade out; breath and room end naturally", 0.005, 2, "s")

    def __post_init__(self) -> None:
        check_ranges(self)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All field names, in order."""
        return tuple(item.name for item in fields(cls))

    def changed(self, **changes: Any) -> GateSettings:
        """A copy with some fields replaced; an unknown name raises ConfigError listing the known ones."""
        unknown = sorted(set(changes) - set(self.names()))
        if unknown:
            raise ConfigError(
                f"the gate has no setting {', '.join(unknown)}", f"The settings are: {', '.join(self.names())}."
            )
        return replace(self, **changes)


@dataclass(frozen=True, eq=False)
class Activity:
    """How loud a sound is over time: float32 [frames of 10 ms] in dBFS (RMS over all channels)."""

    levels: np.ndarray

    @property
    def loud_db(self) -> float:
        """The level of its loud passages, dBFS; NO_LEVEL_DB if it has none."""
        heard = self.levels[self.levels > LISTENING_DB]
        return float(np.percentile(heard, LOUD_PERCENTILE)) if len(heard) else NO_LEVEL_DB

    def to_array(self) -> np.ndarray:
        """For keeping: float32 [frames]."""
        return self.levels

    @classmethod
    def from_array(cls, levels: np.ndarray) -> Activity:
        """From what was kept. Raises AudioError for anything that is no row of finite levels."""
        levels = np.asarray(levels)
        fits = levels.ndim == 1 and levels.dtype.kind == "f" and len(levels) <= MAX_FRAMES
        if not fits or not np.isfinite(levels).all():
            raise AudioError(
                f"An activity of shape {levels.shape} and type {levels.dtype} is no row of levels in dB",
                "Measure it again.",
            )
        return cls(levels.astype(np.float32))


def measure_activity(blocks: Iterable[np.ndarray], rate: int) -> Activity:
    """The levels of a source vocal given in blocks float32 [C, n] (or [n]) of any size at any rate."""
    check_rate(rate)
    levels: list[np.ndarray] = []
    waiting: list[np.ndarray] = []
    first = held = 0  # frame of 10 ms that is next, samples that wait
    start = 0
    for block in blocks:
        block = np.atleast_2d(block)
        power = np.einsum("cn,cn->n", block, block) / len(block)
        waiting.append(power)
        held += len(power)
        if held < rate:
            continue
        joined = np.concatenate(waiting)
        count = int((start + held) / (rate * FRAME_SECONDS)) - first
        edges = _edges(first, count, rate) - start
        edges = edges[edges <= held]
        levels.append(_levels(joined, edges))
        first += len(edges) - 1
        start, held, waiting = start + int(edges[-1]), held - int(edges[-1]), [joined[edges[-1] :]]
    joined = np.concatenate([*waiting, np.zeros(0)])
    if held:
        edges = _edges(first, int(np.ceil(held / (rate * FRAME_SECONDS))) + 1, rate) - start
        edges = np.append(edges[edges < held], held)
        levels.append(_levels(joined, edges))
    return Activity(np.concatenate([*levels, np.zeros(0, np.float32)]))


def _edges(first: int, count: int, rate: int) -> np.ndarray:
    """Where frames `first .. first + count` begin, by absolute position: 10 ms are no whole frames at 22,050 Hz."""
    return np.rint((first + np.arange(count + 1)) * rate * FRAME_SECONDS).astype(np.int64)


def _levels(power: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Mean power between edges in dBFS, float32 [len(edges) - 1]."""
    if len(edges) < 2:
        return np.zeros(0, np.float32)
    sums = np.add.reduceat(power[: edges[-1]].astype(np.float64), edges[:-1])
    means = sums / np.diff(edges)
    return (10 * np.log10(np.maximum(means, 10 ** (NO_LEVEL_DB / 10)))).astype(np.float32)


class SilenceGate:
    """The gate over a converted vocal in blocks float32 [C, n]; what is pushed comes back at once, as long as it was.

    Attributes:
        frames: seen so far.
        muted_seconds: how much of that was fully turned down.
    """

    def __init__(self, activity: Activity, rate: int, settings: GateSettings | None = None) -> None:
        self.rate = check_rate(rate)
        self.frames = 0
        self._muted = 0
        self._settings = settings or GateSettings()
        self._least = 10 ** (-self._settings.depth_db / 20)
        self._places, self._heights = _corners(open_spans(activity, self._settings), self._settings, rate)

    @property
    def muted_seconds(self) -> float:
        """Seconds fully turned down so far."""
        return self._muted / self.rate

    def push(self, block: np.ndarray) -> np.ndarray:
        """float32 [C, n] (or [n]) -> the same shape; the very block where the gate stands open throughout."""
        count = block.shape[-1]
        start, self.frames = self.frames, self.frames + count
        if self._settings.depth_db == 0 or count == 0:
            return block
        inside = self._places[slice(*np.searchsorted(self._places, (start, self.frames)))]
        ends = np.interp((start, self.frames - 1), self._places, self._heights)
        if not len(inside) and ends[0] == ends[1]:  # a level stretch
            self._muted += count * int(ends[0] == 0)
            return block if ends[0] == 1 else block * np.float32(self._least)
        heights = np.interp(np.arange(start, self.frames), self._places, self._heights)
        self._muted += int(np.count_nonzero(heights == 0))
        shape = np.sin(0.5 * np.pi * heights) ** 2
        gain = (self._least + (1 - self._least) * shape).astype(np.float32)
        gain[heights == 1] = 1.0
        return block * gain


def open_spans(activity: Activity, settings: GateSettings) -> np.ndarray:
    """Where the gate stands open: float64 [spans, 2] seconds, in order, without overlap."""
    levels = activity.levels
    if not len(levels):
        return np.zeros((0, 2))
    opens = max(activity.loud_db - settings.range_db, settings.floor_db)
    # the last frame that was loud enough to open or soft enough to close decides
    decided = np.where(levels >= opens, 1, np.where(levels < opens - settings.hysteresis_db, 0, -1))
    last = np.maximum.accumulate(np.where(decided >= 0, np.arange(len(levels)), 0))
    active = np.concatenate([[0], (decided[last] == 1).astype(np.int8), [0]])
    starts, stops = np.flatnonzero(np.diff(active) == 1), np.flatnonzero(np.diff(active) == -1)
    starts = starts * FRAME_SECONDS - settings.look_ahead
    stops = stops * FRAME_SECONDS + settings.hold
    apart = starts[1:] - stops[:-1] > settings.attack + settings.release  # else there is no time to close in between
    return np.stack([starts[np.append(True, apart)], stops[np.append(apart, True)]], axis=1) if len(starts) else (
        np.zeros((0, 2))
    )  # fmt: skip


def _corners(spans: np.ndarray, settings: GateSettings, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample positions and gains 0..1 of the corners between which the gate moves on straight lines."""
    if not len(spans):
        return np.array([0.0]), np.array([0.0])
    starts, stops = spans.T
    places = np.stack([starts - settings.attack, starts, stops, stops + settings.release], axis=1).reshape(-1)
    return places * rate, np.tile([0.0, 1.0, 1.0, 0.0], len(spans))


def gate_silence(
    blocks: Iterable[np.ndarray], activity: Activity, rate: int, settings: GateSettings | None = None
) -> Iterator[np.ndarray]:
    """`SilenceGate` over an iterator of float32 [C, n]; yields blocks of the same lengths."""
    gate = SilenceGate(activity, rate, settings)
    for block in blocks:
        yield gate.push(block)
