"""Many sounds into one voice: each by itself on a CPU, as many together as are alike on a GPU.

What cannot be read stands in the results as its error, and costs the others nothing. How networks are shared is told by
`rvc_spark.infer.together`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import torch

from rvc_spark.conversion import Conversion, ConversionJob, SoundSource, read_source
from rvc_spark.errors import RvcSparkError
from rvc_spark.infer.pipeline import Engines, Rendered, Rendering, Source, drain
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.infer.together import render_together

MOST_SOUNDS, MOST_SECONDS = 64, 600.0  # that are in memory together


def converted_many(
    sources: Iterable[SoundSource], engines: Engines, job: ConversionJob, *, together: bool
) -> Iterator[Conversion | RvcSparkError]:
    """The result of each source, or why there is none, in their order.

    Args:
        together: False takes one after the other.
    """
    group: list[Source | RvcSparkError] = []
    for source in sources:
        try:
            group.append(read_source(source))
        except RvcSparkError as error:
            group.append(error)
        if not together or len(group) == MOST_SOUNDS or _seconds(group) >= MOST_SECONDS:
            yield from _converted(group, engines, job)
            group = []
    yield from _converted(group, engines, job)


def _converted(
    group: Sequence[Source | RvcSparkError], engines: Engines, job: ConversionJob
) -> Iterator[Conversion | RvcSparkError]:
    recordings = [item for item in group if isinstance(item, Source)]
    began, total = time.perf_counter(), _seconds(group)
    try:
        rendered = iter(_rendered(recordings, engines, job.settings))
    finally:
        for recording in recordings:
            recording.store.close()
    took = time.perf_counter() - began
    for item in group:
        result = item if isinstance(item, RvcSparkError) else next(rendered)
        yield result if isinstance(result, RvcSparkError) else job.finished(result, item, took * item.seconds / total)


def _rendered(
    recordings: Sequence[Source], engines: Engines, settings: ConversionSettings
) -> list[Rendered | RvcSparkError]:
    """At once; or each alone, when there is one, when one of them cannot be converted, or when memory is short."""
    if len(recordings) > 1:
        try:
            renderings = [Rendering(recording, engines, settings) for recording in recordings]
            return list(render_together(renderings, engines, settings))
        except (RvcSparkError, torch.OutOfMemoryError):
            pass  # which of them it was, or that one alone is too much, shows when each is done by itself
    return [_alone(recording, engines, settings) for recording in recordings]


def _alone(recording: Source, engines: Engines, settings: ConversionSettings) -> Rendered | RvcSparkError:
    try:
        return drain(Rendering(recording, engines, settings).steps())
    except RvcSparkError as error:
        return error


def _seconds(group: Sequence[Source | RvcSparkError]) -> float:
    return sum(item.seconds for item in group if isinstance(item, Source))
