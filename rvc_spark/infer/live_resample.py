"""Sample-rate conversion of a stretch alone, by absolute position: the same samples, without the wait.

A streaming resampler of this quality works in large blocks and gives its samples 20 to 110 ms late. Its filter reaches
only REACH samples of the lower rate, though (beyond, nothing is left in float32), so any stretch of the result can be
made as soon as that much of the future is there: 10 ms for 16 kHz.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from rvc_spark.audio import resample, resampled_length
from rvc_spark.infer.live_recent import Recent

REACH = 160  # samples of the lower rate


def needed_input(rate_in: int, rate_out: int, stop: int) -> int:
    """How many input samples must be there before sample `stop` - 1 of the result can be made."""
    if rate_in == rate_out:
        return stop
    return math.ceil(stop * rate_in / rate_out) + _reach(rate_in, rate_out, rate_in)


def first_input(rate_in: int, rate_out: int, start: int) -> int:
    """The first input sample that `resampled_span` reads for a stretch from sample `start` on."""
    if rate_in == rate_out:
        return start
    step_in, step_out = _steps(rate_in, rate_out)
    return max(0, start - _reach(rate_in, rate_out, rate_out)) // step_out * step_in


def resampled_span(
    read: Callable[[int, int], np.ndarray], length: int, rates: tuple[int, int], start: int, stop: int
) -> np.ndarray:
    """`resample(whole)[start:stop]` from a part of the whole.

    Args:
        read: gives input samples [b - a] of positions a..b.
        length: input samples there are; the whole, or at least `needed_input(..., stop)`.
        rates: Hz of the input and of the result.

    Returns:
        float32 [stop - start].
    """
    rate_in, rate_out = rates
    if rate_in == rate_out:
        return read(start, stop)
    first = first_input(rate_in, rate_out, start)
    step_in, step_out = _steps(rate_in, rate_out)
    last = min(length, needed_input(rate_in, rate_out, stop))
    offset = first // step_in * step_out
    return resample(read(first, last), rate_in, rate_out)[start - offset : stop - offset]


def _reach(rate_in: int, rate_out: int, rate: int) -> int:
    """REACH in samples of `rate`."""
    return math.ceil(REACH * rate / min(rate_in, rate_out))


def _steps(rate_in: int, rate_out: int) -> tuple[int, int]:
    """The shortest stretch that has a whole number of samples at both rates."""
    common = math.gcd(rate_in, rate_out)
    return rate_in // common, rate_out // common


class SpanResampler:
    """Resamples what is pushed; joined, it is what `resample` gives for the whole."""

    def __init__(self, rate_in: int, rate_out: int) -> None:
        self._rates = rate_in, rate_out
        self._input = Recent()
        self._done = 0

    @property
    def delay(self) -> float:
        """Seconds that come out later than they went in."""
        rate_in, rate_out = self._rates
        return 0.0 if rate_in == rate_out else (_reach(rate_in, rate_out, rate_in) + 1) / rate_in + 1 / rate_out

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Feed float32 [n], get what can be made of it, maybe nothing."""
        rate_in, rate_out = self._rates
        if rate_in == rate_out:
            return samples
        self._input.append(samples)
        settled = len(self._input) - _reach(rate_in, rate_out, rate_in)
        return self._upto(settled * rate_out // rate_in)

    def finish(self) -> np.ndarray:
        """The rest."""
        rate_in, rate_out = self._rates
        return np.zeros(0, np.float32) if rate_in == rate_out else self._upto(
            resampled_length(len(self._input), rate_in, rate_out)
        )  # fmt: skip

    def _upto(self, stop: int) -> np.ndarray:
        if stop <= self._done:
            return np.zeros(0, np.float32)
        ready = resampled_span(self._input.read, len(self._input), self._rates, self._done, stop)
        self._done = stop
        self._input.forget(first_input(*self._rates, stop))
        return ready
