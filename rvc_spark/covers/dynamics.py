"""Gains that follow the sound: a compressor and a de-esser, feed-forward, at a control rate.

Levels are taken and gains decided once per hop of about 0.7 ms, and a straight line is drawn between the gains. A gain
already knows the hop it ends in, so an attack begins up to a hop before its cause and nothing is delayed. Smoothing is
the decoupled peak detector of Giannoulis, Massberg and Reiss ("Digital dynamic range compressor design", JAES 60, 2012)
on the reduction in dB: an instant rise with exponential release, then a one-pole for the attack. Its first half,
r[n] = max(c[n], a r[n-1]), is a running maximum of log c[n] - n log a, so that no loop over time is needed.

What is pushed here is whole hops; `effects` sees to that.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.signal import lfilter

from rvc_spark.covers.biquads import FilterChain, high_pass, high_shelf
from rvc_spark.loudness import DEAD_STATE

CONTROL_SECONDS = 0.0007
NOTHING = 1e-12
"""Powers and reductions below this count as none."""
SIBILANCE_SECONDS = 0.003
"""Over which the share of the upper band is taken: longer than a period of a low voice's buzz, shorter than an s."""
DE_ESS_ATTACK_SECONDS, DE_ESS_RELEASE_SECONDS = 0.001, 0.03
SHELF_SHARE = 0.8
"""Of the frequency above which hiss is looked for: there the shelf is nearly at its depth."""
DE_ESS_FLOOR_DB = -60.0
"""dBFS. A hiss below this is nobody's disturbance."""


def control_hop(rate: int) -> int:
    """Frames per gain: the power of two nearest to 0.7 ms, 32 at 44.1 kHz."""
    return 2 ** max(2, round(math.log2(rate * CONTROL_SECONDS)))


def decibels(values: np.ndarray) -> np.ndarray:
    """20 log10, with a floor far below hearing instead of -inf."""
    return 20 * np.log10(np.maximum(values, NOTHING))


class Release:
    """An instant rise and an exponential fall: r[n] = max(c[n], a r[n-1]) without a loop."""

    def __init__(self, seconds: float, step_seconds: float) -> None:
        self._fall = step_seconds / seconds  # of the logarithm, per step
        self._last = 0.0

    def push(self, wanted: np.ndarray) -> np.ndarray:
        """float64 [k] >= 0 -> the same."""
        if not wanted.size or (self._last == 0.0 and not wanted.any()):
            return wanted
        steps = self._fall * np.arange(1, len(wanted) + 1)
        line = np.log(np.maximum(wanted, NOTHING)) + steps
        line[0] = max(line[0], math.log(max(self._last, NOTHING)))
        released = np.exp(np.maximum.accumulate(line) - steps)
        released[released <= 2 * NOTHING] = 0.0
        self._last = float(released[-1])
        return np.maximum(released, wanted)  # the logarithm and back may lose the last bit


class ReductionSmoother:
    """Attack and release of a gain reduction in dB that is given once per hop."""

    def __init__(self, attack_seconds: float, release_seconds: float, step_seconds: float) -> None:
        self._attack = math.exp(-step_seconds / attack_seconds) if attack_seconds > 0 else 0.0
        self._release = Release(release_seconds, step_seconds)
        self._state = np.zeros(1)

    def push(self, wanted: np.ndarray) -> np.ndarray:
        """float64 [k] dB >= 0 -> what is applied."""
        released = self._release.push(wanted)
        smooth, self._state = lfilter([1 - self._attack], [1, -self._attack], released, zi=self._state)
        self._state[np.abs(self._state) < DEAD_STATE] = 0.0
        return smooth


class GainLine:
    """Straight lines from gain to gain, one per hop."""

    def __init__(self, hop: int) -> None:
        self._ramp = ((np.arange(hop) + 1) / hop).astype(np.float32)
        self._last = np.float32(1.0)

    def push(self, gains: np.ndarray) -> np.ndarray:
        """[k] gains at the ends of hops -> float32 [k * hop]."""
        ends = gains.astype(np.float32)
        starts = np.concatenate([[self._last], ends[:-1]])
        self._last = ends[-1]
        return (starts[:, None] + (ends - starts)[:, None] * self._ramp).reshape(-1)


class Compressor:
    """Turns loud passages down: above `threshold` the level rises `ratio` times slower, with a soft knee.

    The level is the highest sample of a hop over all channels, which share one gain, so the stereo image stands still.
    """

    def __init__(
        self,
        threshold_db: float,
        ratio: float,
        knee_db: float,
        timing: tuple[float, float],
        makeup_db: float,
        rate: int,
    ) -> None:
        """timing: attack and release in seconds."""
        self._threshold, self._knee, self._slope = threshold_db, knee_db, 1 - 1 / ratio
        self._hop = control_hop(rate)
        self._smoother = ReductionSmoother(*timing, self._hop / rate)
        self._line = GainLine(self._hop)
        self._makeup = makeup_db

    def wanted_db(self, level_db: np.ndarray) -> np.ndarray:
        """The static curve: reduction in dB at a level in dBFS.

                /  reduction = slope * over
        ____.-''   inside the knee a parabola: no corner, no audible switch
        """
        over = level_db - self._threshold
        if self._knee > 0:
            inside = np.clip(over + self._knee / 2, 0, self._knee)
            return self._slope * np.where(over > self._knee / 2, over, inside * inside / (2 * self._knee))
        return self._slope * np.maximum(over, 0)

    def push(self, block: np.ndarray) -> np.ndarray:
        """float32 [C, whole hops] -> the same shape."""
        peaks = np.abs(block).reshape(len(block), -1, self._hop).max(axis=(0, 2))
        reduction = self._smoother.push(self.wanted_db(decibels(peaks)))
        if self._makeup == 0.0 and not reduction.any():
            self._line.push(np.ones(len(reduction)))
            return block
        return block * self._line.push(10 ** ((self._makeup - reduction) / 20))


class DeEsser:
    """Turns the hiss of an s down and leaves the rest alone: a high shelf that is there only while it is needed.

    The result lies between the sound and the sound under a shelf of -`most_db`, as near to the second as the gain asks
    for. (Subtracting a high-passed copy would cancel little: just above its corner a filter turns phases too.) What
    counts is the share of the upper band in the whole, so soft and loud passages are treated alike: a vowel holds
    little above 6 kHz, an s hardly anything else.
    """

    def __init__(self, hz: float, threshold_db: float, most_db: float, channels: int, rate: int) -> None:
        self._upper = FilterChain([high_pass(hz, rate)], channels)
        self._shelf = FilterChain([high_shelf(SHELF_SHARE * hz, -most_db, rate)], channels)
        self._threshold, self._most = threshold_db, most_db
        self._hop = control_hop(rate)
        step = self._hop / rate
        self._pole = math.exp(-step / SIBILANCE_SECONDS)
        self._powers = np.zeros((2, 1))
        self._smoother = ReductionSmoother(DE_ESS_ATTACK_SECONDS, DE_ESS_RELEASE_SECONDS, step)
        self._line = GainLine(self._hop)

    def push(self, block: np.ndarray) -> np.ndarray:
        """float32 [C, whole hops] -> the same shape."""
        shelved = self._shelf.push(block)
        power = np.stack([self._power(self._upper.push(block)), self._power(block)])
        power, self._powers = lfilter([1 - self._pole], [1, -self._pole], power, axis=-1, zi=self._powers)
        self._powers[np.abs(self._powers) < DEAD_STATE] = 0.0
        hiss, whole = 10 * np.log10(np.maximum(power, NOTHING))
        wanted = np.clip((hiss - whole - self._threshold) * self._most / -self._threshold, 0, self._most)
        reduction = self._smoother.push(np.where(hiss > DE_ESS_FLOOR_DB, wanted, 0.0))
        taken = (1 - self._line.push(10 ** (-reduction / 20))) / np.float32(1 - 10 ** (-self._most / 20))
        return block + taken * (shelved - block) if taken.any() else block

    def _power(self, block: np.ndarray) -> np.ndarray:
        """Mean square per hop over all channels, float64 [k]."""
        hops = block.reshape(len(block), -1, self._hop)
        return np.einsum("ckh,ckh->k", hops, hops).astype(np.float64) / (len(block) * self._hop)
