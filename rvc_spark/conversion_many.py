"""Many sounds into one voice: each by itself on a CPU, as many together as are alike on a GPU.

What cannot be read stands in the results as its error, and costs the others nothing. How networks are shared is told by
`rvc_spark.infer.together`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from rvc_spark.conversion import Conversion, ConversionJob, SoundSource, read_source
from rvc_spark.errors import RvcSparkError
from rvc_spark.infer.pipeline import Engines, Rendering, Source, drain
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
        renderings = [Rendering(recording, engines, job.settings) for recording in recordings]
        if len(renderings) == 1:
            rendered = [drain(renderings[0].steps())]
        else:
            rendered = list(render_together(renderings, engines, job.settings))
    finally:
        for recording in recordings:
            recording.store.close()
    took = time.perf_counter() - began
    results = zip(rendered, recordings, strict=True)
    for item in group:
        yield item if isinstance(item, RvcSparkError) else job.finished(*next(results), took * item.seconds / total)


def _seconds(group: Sequence[Source | RvcSparkError]) -> float:
    return sum(item.seconds for item in group if isinstance(item, Source))
