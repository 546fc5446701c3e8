"""How long each stage of a conversion takes: engines that look at the clock.

    pitch | content | retrieval | prior and flow | decoder | the rest (reading, filters, loudness, joins)

The stages are those of `rvc_spark.infer.pipeline`, measured from outside: the engines are wrapped, the pipeline is the
one everybody uses. On a GPU the clock waits for the device, so stages do not overlap and their sum is a little more
than an undisturbed call.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from rvc_spark.infer.pipeline import Engines
from rvc_spark.infer.pitch import PitchTracker

PRIOR, SYNTHESIS = "prior and flow", "synthesis"
STAGES = ("pitch", "content", "retrieval", PRIOR, "decoder", "rest")


class StageClock:
    """Seconds per stage."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._cuda = device.startswith("cuda")

    def now(self) -> float:
        """The time at which everything asked so far is done."""
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Count what happens inside."""
        began = self.now()
        try:
            yield
        finally:
            self.seconds[stage] += self.now() - began

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted."""

        def counted(*arguments: Any, **options: Any) -> Any:
            with self.during(stage):
                return function(*arguments, **options)

        return counted

    def timed_steps(self, stage: str, function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """A generator function, counted while it works and not while it waits."""

        def counted(*arguments: Any, **options: Any) -> Iterator[Any]:
            steps = iter(function(*arguments, **options))
            while True:
                with self.during(stage):
                    item = next(steps, self)
                if item is self:
                    return
                yield item

        return counted

    def split(self, total: float) -> dict[str, float]:
        """Seconds of each of STAGES, together `total`."""
        found = {stage: self.seconds[stage] for stage in ("pitch", "content", "retrieval", PRIOR)}
        found["decoder"] = self.seconds[SYNTHESIS] - self.seconds[PRIOR]  # with its harmonic source
        return {**found, "rest": total - sum(found.values())}


class _Watched:
    """Another object, some of whose methods are replaced."""

    def __init__(self, target: Any, methods: dict[str, Callable[..., Any]]) -> None:
        self._target = target
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


def _watched_tracker(tracker: PitchTracker, clock: StageClock) -> PitchTracker:
    many = None if tracker.raw_many is None else clock.timed("pitch", tracker.raw_many)
    return replace(tracker, raw=clock.timed("pitch", tracker.raw), raw_many=many)


@contextmanager
def watched(engines: Engines, clock: StageClock) -> Iterator[Engines]:
    """The engines, each counted under its stage while this is entered."""
    encoder, tracker, index, synthesizer = engines.encoder, engines.tracker, engines.index, engines.synthesizer
    prior, flow = synthesizer.network.enc_p, synthesizer.network.flow
    places = ((prior, "hidden"), (prior, "project"), (flow, "forward"))
    for module, name in places:
        setattr(module, name, clock.timed(PRIOR, getattr(module, name)))
    try:
        yield replace(
            engines,
            encoder=_Watched(encoder, {"features_of_many": clock.timed("content", encoder.features_of_many)}),
            tracker=None if tracker is None else _watched_tracker(tracker, clock),
            index=None if index is None else _Watched(index, {"blended": clock.timed("retrieval", index.blended)}),
            synthesizer=_Watched(
                synthesizer, {"window_blocks": clock.timed_steps(SYNTHESIS, synthesizer.window_blocks)}
            ),
        )
    finally:
        for module, name in places:
            delattr(module, name)  # the class's own shows again
