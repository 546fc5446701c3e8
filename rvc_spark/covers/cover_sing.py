"""A lead or backing voice into the chosen voice: whole, or only the stretches that are to be converted.

For a duet only those stretches, each with some of what surrounds it, are joined into one sound and converted at once,
so that they share one key and cost no more than their length; each then returns to its place, faded at its edges.

    lead      ....aaaa.......bb....        a, b: to be converted
    joined    .aaaa..bb.                   with CONTEXT on either side
    voice     ____AAAA_______BB____
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from rvc_spark.audio import open_writer
from rvc_spark.conversion import Conversion
from rvc_spark.covers.artefacts import Draft
from rvc_spark.covers.cover_sources import FLOAT_WAV, RATE, frames_of, read_blocks
from rvc_spark.covers.cover_work import Work, facts_of, span_gain
from rvc_spark.infer.pipeline import Progress
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.rvc_modules import VC

CONTEXT_FRAMES = round(0.5 * RATE)
READ_FRAMES = 1 << 18


def sing(lead: Path, spans: list[tuple[int, int]], vc: VC, settings: ConversionSettings, draft: Draft) -> Work:
    """`sound.wav`: a lead in another voice, mono at 44.1 kHz, as long as it was; silent outside the spans, if any.

    Channels are averaged. Facts: voice, engines, real_time_factor, side_db (of the lead's stereo that is lost).
    """
    total = frames_of(lead)
    plan = spread(spans, total)
    source = lead
    joined = draft.path("joined.wav")
    try:
        if spans:
            with open_writer(joined, RATE, 2, FLOAT_WAV) as writer:
                for start, stop in plan:
                    for block in read_blocks(lead, start, stop):
                        writer.write(block)
            source = joined
        draft.facts |= {"side_db": side_db(read_blocks(lead))}
        conversion = yield from vc.convert_steps(source, settings)
    finally:
        with suppress(OSError):
            os.unlink(joined)
    draft.facts |= {
        "voice": conversion.voice, "engines": facts_of(conversion.engines),
        "real_time_factor": round(conversion.real_time_factor, 4), "converted_seconds": round(conversion.seconds, 3),
    }  # fmt: skip
    with open_writer(draft.path("sound.wav"), RATE, 1, FLOAT_WAV) as writer:
        for block in placed(conversion, plan, spans, total):
            writer.write(block[None])
            yield Progress(1.0, "voice")


def spread(spans: list[tuple[int, int]], total: int) -> list[tuple[int, int]]:
    """Spans with their surroundings, those that meet joined, within 0..total; everything where there are none."""
    if not spans:
        return [(0, total)]
    wide: list[tuple[int, int]] = []
    for first, last in spans:
        start, stop = max(0, first - CONTEXT_FRAMES), min(total, last + CONTEXT_FRAMES)
        if wide and start <= wide[-1][1]:
            wide[-1] = (wide[-1][0], stop)
        else:
            wide.append((start, stop))
    return wide


def placed(
    conversion: Conversion, plan: list[tuple[int, int]], spans: list[tuple[int, int]], total: int
) -> Iterator[np.ndarray]:
    """The converted sound back at its places, float32 [n], `total` frames in all, silent elsewhere."""
    taken = 0
    position = 0
    for start, stop in plan:
        yield from _silence(start - position)
        for at in range(start, stop, READ_FRAMES):
            end = min(at + READ_FRAMES, stop)
            block = conversion.part(taken, taken + end - at)
            taken += end - at
            yield block * span_gain(spans, at, end) if spans else block
        position = stop
    yield from _silence(total - position)


def _silence(frames: int) -> Iterator[np.ndarray]:
    for at in range(0, frames, READ_FRAMES):
        yield np.zeros(min(READ_FRAMES, frames - at), np.float32)


def side_db(blocks: Iterator[np.ndarray]) -> float:
    """Level of the difference of both channels over that of their mean, in dB: what a mono voice does not carry on."""
    energies = np.zeros(2)
    for left, right in blocks:
        both = 0.5 * (left + right), 0.5 * (left - right)
        energies += [float(np.sum(np.square(part, dtype=np.float64))) for part in both]
    if energies[1] <= 0:
        return -200.0
    return round(10 * float(np.log10(energies[1] / max(energies[0], 1e-12))), 1)
