"""Which block keeps up on this machine: measured with real blocks, not guessed.

Longer blocks cost less per second of sound, because context is heard once per block. The measurement also makes the
kernels of that block size, so the first real block is as quick as the others.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import numpy as np

from rvc_spark.infer.live_blocks import LiveBlocks
from rvc_spark.infer.live_settings import Grid, LiveSettings
from rvc_spark.infer.pipeline import Engines
from rvc_spark.infer.pitch_track import FRAMES_PER_SECOND
from rvc_spark.infer.segments import SAMPLE_RATE
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.rvc_config import Choice

BLOCKS = (0.1, 0.25, 0.5, 1.0)  # seconds
SHARE = 0.7  # of a block's own length that it may take; the rest is for the others who share the machine
RUNS = 3
HOPELESS = 1.5  # of a block's length; such a size is measured only once
BUZZ_HZ = 120.0


@dataclass(frozen=True)
class BlockChoice:
    """The block in seconds, and what is said about it."""

    seconds: float
    choice: Choice


def choose_block(engines: Engines, settings: ConversionSettings, live: LiveSettings) -> BlockChoice:
    """The smallest block that takes less than SHARE of its length, or the one that is set, with its measured time."""
    if live.block is not None:
        taken = _measured(engines, settings, live.grid(live.block), runs=1)
        reason = f"as set; takes {taken * 1000:.0f} of {_ms(live.block)}"
        return BlockChoice(live.block, Choice(_ms(live.block), reason))
    slower = []
    for block in BLOCKS:
        taken = _measured(engines, settings, live.grid(block))
        words = f"{taken * 1000:.0f} of"
        if taken < SHARE * block:
            others = "".join(f"; {ms} would take {time}" for ms, time in reversed(slower))
            return BlockChoice(block, Choice(_ms(block), f"takes {words} {_ms(block)}{others}"))
        slower.append((_ms(block), f"{words} {block * 1000:.0f}"))
    reason = f"takes {words} {_ms(block)}"
    reason += ", which leaves little room" if taken < block else ": too slow for this machine, expect gaps"
    return BlockChoice(block, Choice(_ms(block), reason))


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _measured(engines: Engines, settings: ConversionSettings, grid: Grid, runs: int = RUNS) -> float:
    """Median seconds that a block takes once its kernels are made; hopeless ones are measured once."""
    blocks = LiveBlocks(engines, settings, grid)
    blocks.render(_buzz)
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        blocks.render(_buzz)
        taken.append(time.perf_counter() - began)
        if taken[0] > HOPELESS * grid.block / FRAMES_PER_SECOND:
            break
    return median(taken)


def _buzz(start: int, stop: int) -> np.ndarray:
    """A voice-like buzz by position, float32 [stop - start] at 16 kHz: voiced, so that pitch trackers work for it."""
    cycles = np.arange(start, stop) * (BUZZ_HZ / SAMPLE_RATE)
    return (0.2 * (cycles % 1.0) ** 4).astype(np.float32)
