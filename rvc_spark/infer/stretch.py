"""Stretching a stretch of frames along time, for the formant shift, with the margin the decoder needs on both sides.

Frame j of the stretched sequence lies at a + (j + 1/2) * (b - a) / n - 1/2 of the original, where [a, b) are the kept
frames and n what they become: linear interpolation by half-pixel convention, the reference's, but continued beyond the
kept frames, so that their ends hear real neighbours and not silence. Refuses to know what is stretched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rvc_spark.infer.decoder import Margin


@dataclass(frozen=True)
class StretchedSpan:
    """Which frames are needed and what they become.

    Attributes:
        first, last: original frames to compute, [first, last).
        lead: stretched frames before the kept ones.
        total: stretched frames in all.
        kept: first kept original frame.
        ratio: original frames per stretched frame; 1 means that nothing is stretched.
    """

    first: int
    last: int
    lead: int
    total: int
    kept: int
    ratio: float

    def stretch(self, x: Tensor, per_frame: int) -> Tensor:
        """Stretch [1, C, (last - first) * per_frame] to [1, C, total * per_frame]; positions outside hold the ends."""
        if self.ratio == 1:
            return x
        index = torch.arange(self.total * per_frame, dtype=torch.float64, device=x.device) - self.lead * per_frame
        place = (self.kept - self.first) * per_frame + (index + 0.5) * self.ratio - 0.5
        place = place.clamp(0, x.shape[2] - 1)
        left = place.floor().long()
        right = (left + 1).clamp(max=x.shape[2] - 1)
        share = (place - left).to(x.dtype)
        return x[:, :, left] * (1 - share) + x[:, :, right] * share


def stretched_span(frames: int, keep: tuple[int, int], count: int, margin: Margin) -> StretchedSpan:
    """The frames around `keep` of `frames` that are needed to make `count` frames of it and their `margin`."""
    start, stop = keep
    if count == stop - start:
        first, last = max(start - margin.before, 0), min(stop + margin.after, frames)
        return StretchedSpan(first, last, start - first, last - first, start, 1)
    ratio = (stop - start) / count
    # no more stretched frames than there are real ones: beyond the recording the decoder sees its usual zeros
    lead = min(margin.before, math.floor(start / ratio))
    trail = min(margin.after, math.floor((frames - stop) / ratio))
    # one frame more on each side: the half-pixel positions of its first and last samples interpolate beyond
    first = max(math.floor(start - lead * ratio) - 1, 0)
    last = min(math.ceil(stop + trail * ratio) + 1, frames)
    return StretchedSpan(first, last, lead, lead + count + trail, start, ratio)
