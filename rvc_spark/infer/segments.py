"""Where a recording is filtered, cut and padded before it is converted.

Two ways of cutting live side by side. `plan_exact` keeps every sample at its place: the parts lie on the 20 ms grid of
the content encoder, overlap by a crossfade and cover the recording without a gap. `plan_reference` reproduces the
published program, which loses 10 to 20 ms per part, and exists for conformance only. Knows nothing of voices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rvc_spark.infer.recursive_filter import linear_filter

SAMPLE_RATE = 16_000  # Hz; everything before the decoder runs at this rate
HOP = 160  # samples, 10 ms: one frame of f0
FEATURE_HOP = 320  # samples, 20 ms: one frame of content features
FEATURE_WINDOW = 400  # samples seen by one content frame
QUIET_WINDOW = 160  # samples over which loudness is summed when a cut is looked for
FILTER_CONTEXT = 16_000  # samples; 1 s after its start the zero-phase filter has forgotten what came before
CROSSFADE_FRAMES = 2  # 20 ms across each cut
LENGTH_STEP = 200  # frames; parts of a cut recording are rounded up to it, since kernels are compiled per length

# 5th-order Butterworth high-pass, 48 Hz: scipy.signal.butter(5, 48, "high", fs=16000), and lfilter_zi of it, the state
# in which a constant signal has always been there. That is the solution of an ill-posed system, whose seventh digit
# depends on the processor and is heard by the filter at 1e-8; these are the digits of the reference's recordings.
HIGHPASS_B = 0.9699606451838447 * np.array([1.0, -5.0, 10.0, -10.0, 5.0, -1.0])
HIGHPASS_A = np.array(
    [1.0, -4.939001819168364, 9.757863526739543, -9.639544849413458, 4.761506797356209, -0.9408236532054606]
)
HIGHPASS_STATE = np.array(
    [-0.9699604796995847, 3.8798419288925783, -5.819762908173043, 3.879841948472456, -0.9699604894923387]
)
HIGHPASS_EDGE = 3 * len(HIGHPASS_A)  # samples by which the ends are extended


@dataclass(frozen=True)
class Cutting:
    """How a long recording is cut, in seconds. The defaults are those of the reference in single precision."""

    pad: float = 1.0  # context on either side of a part; also the mirrored run-in at both ends
    query: float = 6.0  # how far from its nominal place a cut may move to find a quiet point
    center: float = 38.0  # nominal length of a part; more than twice `query`, so cuts cannot cross
    limit: float = 41.0  # a recording up to this length is not cut at all

    def samples(self, seconds: float) -> int:
        return int(seconds * SAMPLE_RATE)


@dataclass(frozen=True)
class Part:
    """One piece of work, in frames of 10 ms counted from the first sample of the recording.

    `start..stop` is what the networks see (it may reach beyond the recording, where the sound is mirrored), and
    `keep_start..keep_stop` is what of it is decoded.
    """

    start: int
    stop: int
    keep_start: int
    keep_stop: int


@dataclass(frozen=True)
class ReferencePart:
    """A piece as the reference cuts it: samples and pitch frames of the padded signal."""

    start: int
    length: int
    pitch_start: int
    pitch_stop: int


def highpass(samples: np.ndarray) -> np.ndarray:
    """Remove what lies below 48 Hz without moving anything in time. float [N] at 16 kHz -> float64 [N].

    Zero-phase: the filter runs forwards and backwards, as `scipy.signal.filtfilt`. The ends are extended by odd
    reflection over 18 samples, or over what a shorter clip has. float32 stays float32 until inside the filter: this
    form of the filter is so ill-conditioned (all poles beside z = 1) that even the rounding of the mirrored ends shows
    at 1e-8.
    """
    edge = min(HIGHPASS_EDGE, len(samples) - 1)
    before, after = samples[edge:0:-1], samples[-2 : -edge - 2 : -1]
    whole = np.concatenate([2 * samples[:1] - before, samples, 2 * samples[-1:] - after]).astype(np.float64)
    for _ in range(2):
        whole = linear_filter(HIGHPASS_B, HIGHPASS_A, whole, HIGHPASS_STATE * whole[0])[::-1]
    return whole[edge : len(whole) - edge].copy()


def highpass_range(read: Callable[[int, int], np.ndarray], total: int, start: int, stop: int) -> np.ndarray:
    """`highpass(whole)[start:stop]` without holding the whole: only one second around the range is read."""
    left, right = max(0, start - FILTER_CONTEXT), min(total, stop + FILTER_CONTEXT)
    return highpass(read(left, right))[start - left : stop - left]


def mirrored_range(read: Callable[[int, int], np.ndarray], total: int, start: int, stop: int) -> np.ndarray:
    """Samples `start..stop` of a recording of `total` samples that is mirrored at both ends as often as needed.

    The edge sample is not repeated (numpy's "reflect"), so index -1 is sample 1.
    """
    inside_start, inside_stop = min(max(start, 0), total), min(max(stop, 0), total)
    if (inside_start, inside_stop) == (start, stop):
        return read(start, stop)
    period = max(1, 2 * (total - 1))
    folded = np.abs(np.arange(start, stop) % period)
    folded = np.where(folded >= total, period - folded, folded)
    low, high = int(folded.min()), int(folded.max()) + 1
    return read(low, high)[folded - low]


def quiet_points(read: Callable[[int, int], np.ndarray], total: int, cutting: Cutting) -> list[int]:
    """The quietest sample near each multiple of `cutting.center`; empty for a recording that need not be cut.

    Loudness is the sum of |x| over 10 ms around the sample; the first minimum wins. `read(a, b)` gives high-passed
    samples [b - a].
    """
    if total + QUIET_WINDOW <= cutting.samples(cutting.limit):
        return []
    half, query = QUIET_WINDOW // 2, cutting.samples(cutting.query)
    points = []
    for center in range(cutting.samples(cutting.center), total, cutting.samples(cutting.center)):
        start, stop = center - query, min(center + query, total)
        around = np.abs(mirrored_range(read, total, start - half, stop + half))
        loudness = np.zeros(stop - start)
        for shift in range(QUIET_WINDOW):  # one addition after the other, as the reference sums, so that ties agree
            loudness += around[shift : shift + stop - start]
        points.append(start + int(np.argmin(loudness)))
    return points


def plan_exact(frames: int, cuts: list[int], cutting: Cutting) -> list[Part]:
    """Cut `frames` frames at the sample positions `cuts` into parts whose kept ranges overlap by the crossfade.

    Every part starts on the 20 ms grid, so neighbouring parts see the same content frames around their cut.
    """
    pad = cutting.samples(cutting.pad) // HOP
    pad += pad % 2
    grid = FEATURE_HOP // HOP
    edges = [0, *(cut // FEATURE_HOP * grid for cut in cuts if cut // FEATURE_HOP > 0), frames]
    half = CROSSFADE_FRAMES // 2
    parts = []
    for number, (left, right) in enumerate(zip(edges, edges[1:], strict=False)):
        keep_start = left - (half if number else 0)
        keep_stop = right + (half if number < len(edges) - 2 else 0)
        start, stop = left - pad, right + pad + grid
        if len(edges) > 2:
            stop += (start - stop) % LENGTH_STEP
        parts.append(Part(start, stop, keep_start, keep_stop))
    return parts


def plan_reference(total: int, cuts: list[int], pad: float) -> list[ReferencePart]:
    """The parts of the reference: each runs 10 ms into its successor, the last one to the end. `pad` in seconds."""
    double_pad = 2 * int(pad * SAMPLE_RATE)
    padded = total + double_pad
    parts, start = [], 0
    for cut in cuts:
        cut = cut // HOP * HOP
        stop = min(cut + double_pad + HOP, padded)
        parts.append(ReferencePart(start, stop - start, start // HOP, (cut + double_pad) // HOP))
        start = cut
    parts.append(ReferencePart(start, padded - start, start // HOP, padded // HOP))
    return parts
