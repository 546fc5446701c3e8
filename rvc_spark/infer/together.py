"""Several recordings into one voice at once: where their parts are equal, the networks take them as one batch.

A GPU that is given one short clip waits for the next call most of the time. Nothing is padded and nothing else is
shared, so each result is the one its recording gives alone, but for the rounding of sums in another order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from rvc_spark.infer.part_decode import decoded_blocks
from rvc_spark.infer.pipeline import Engines, Rendered, Rendering, drain
from rvc_spark.infer.pitch import PitchTracker
from rvc_spark.infer.segments import HOP, Part
from rvc_spark.infer.settings import ConversionSettings

BATCH_FRAMES = 40_000  # of 10 ms, of all parts of a batch together: 32 clips of 10 s with their context
Item = TypeVar("Item")


def render_together(
    renderings: Sequence[Rendering], engines: Engines, settings: ConversionSettings, most_frames: int = BATCH_FRAMES
) -> Iterator[Rendered]:
    """The results of `Rendering.steps`, in order; long recordings go alone, as they do there.

    Args:
        renderings: all with these engines and settings; the sound of short ones is held in memory.
        most_frames: of a batch; a part that has more is a batch of its own.
    """
    heard: dict[Rendering, np.ndarray] = {}
    for rendering in renderings:
        rendering.plan()
        sound = rendering.pitch_sound()
        if sound is not None:
            heard[rendering] = sound
    _track(heard, engines.tracker, most_frames)
    parts = ((_shape(part), (rendering, part)) for rendering in heard for part in rendering.parts)
    for batch in _batches(parts, most_frames):
        inputs = [rendering.part_inputs(part) for rendering, part in batch]
        sounds = np.concatenate(list(decoded_blocks(inputs, engines, settings)), axis=1)
        for (rendering, part), sound in zip(batch, sounds, strict=True):
            rendering.give(part, sound)
    for rendering in renderings:
        yield drain(rendering.voice_steps() if rendering in heard else rendering.steps())


def _track(heard: Mapping[Rendering, np.ndarray], tracker: PitchTracker | None, most_frames: int) -> None:
    """Pitch of recordings from their sound, with others of the same length."""
    sounds = (((len(sound) // HOP, len(sound)), (rendering, sound)) for rendering, sound in heard.items())
    for batch in _batches(sounds, most_frames) if tracker is not None else ():
        contours = tracker.track_many([sound for _, sound in batch])
        for (rendering, _), f0 in zip(batch, contours, strict=True):
            rendering.track(replace(tracker, raw=lambda _sound, f0=f0: f0))


def _shape(part: Part) -> tuple[int, Hashable]:
    """Frames of a part, and what else parts of one batch have in common: what of it is kept."""
    return part.stop - part.start, (part.keep_start - part.start, part.keep_stop - part.start)


def _batches(items: Iterable[tuple[tuple[int, Hashable], Item]], most_frames: int) -> Iterator[list[Item]]:
    """Items of one (frames, kind), in the order of the first of each, of `most_frames` together at most."""
    groups: dict[tuple[int, Hashable], list[Item]] = defaultdict(list)
    for shape, item in items:
        groups[shape].append(item)
    for (frames, _), group in groups.items():
        size = max(1, most_frames // frames)
        for start in range(0, len(group), size):
            yield group[start : start + size]
