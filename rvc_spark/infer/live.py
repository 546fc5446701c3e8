"""Sound that is still arriving, converted with bounded delay.

    pieces of any size -> LiveSource -> one window per block -> LiveBlocks -> loudness -> output rate -> peak guard

The consumer pulls; nothing runs ahead of it. The result has exactly the samples that converting the joined pieces would
give, whatever their sizes, and the same values for every way of cutting the input. Memory does not grow.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from types import TracebackType
from typing import Self

import numpy as np

from rvc_spark.audio import Audio
from rvc_spark.infer.live_blocks import ENCODER_REACH, LiveBlock, LiveBlocks
from rvc_spark.infer.live_loudness import LiveLoudness
from rvc_spark.infer.live_resample import SpanResampler
from rvc_spark.infer.live_settings import FEATURE_SECONDS, LiveSettings
from rvc_spark.infer.live_source import LiveSource
from rvc_spark.infer.live_warmup import choose_block
from rvc_spark.infer.peak_guard import PeakGuard
from rvc_spark.infer.pipeline import OUTPUT_PEAK, Engines
from rvc_spark.infer.segments import SAMPLE_RATE
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.rvc_config import Choice


class LiveConversion:
    """An iterator of converted blocks, each an Audio (mono), over pieces that are pulled from `pieces`.

    Attributes:
        rate: Hz of the result.
        frames_in: samples per channel heard so far.
        frames_out: samples given so far.
        source_f0, result_f0: Hz per 10 ms of the block computed last (0 = unvoiced); None for a voice without pitch.

    Raises while iterating: AudioError for a piece that does not fit, and whatever `pieces` raises. Close it, or use it
    with `with`, to end early; the pieces' own iterator is closed with it.
    """

    def __init__(
        self,
        pieces: Iterable[Audio],
        engines: Engines,
        settings: ConversionSettings,
        live: LiveSettings | None = None,
        choices: dict[str, Choice] | None = None,
    ) -> None:
        """Measures the block (about a second of work) before it returns; pulls nothing yet.

        Args:
            choices: what was chosen before and why; `engines` tells it together with block and key.
        """
        live = live or LiveSettings()
        chosen = choose_block(engines, settings, live)
        info = engines.synthesizer.info
        self._pieces: Iterator[Audio] = iter(pieces)
        self._grid = live.grid(chosen.seconds)
        self._blocks: LiveBlocks | None = LiveBlocks(engines, settings, self._grid)
        self._source = LiveSource()
        self._loudness = LiveLoudness(settings.rms_mix_rate)
        self.rate = settings.resample_rate or info.sample_rate
        self._voice_rate, self._per_frame = info.sample_rate, info.samples_per_frame
        self._resampler = SpanResampler(info.sample_rate, self.rate)
        self._guard = PeakGuard(OUTPUT_PEAK, self.rate)
        self._choices = {**(choices or {}), "block": chosen.choice}
        self._key = self._blocks.key
        self.frames_out = 0
        self.source_f0: np.ndarray | None = None
        self.result_f0: np.ndarray | None = None
        self._steps = self._run()

    @property
    def frames_in(self) -> int:
        return self._source.frames

    @property
    def engines(self) -> dict[str, Choice]:
        """Everything that was chosen and why; the key is provisional while it says so."""
        key, reason = self._key
        return {**self._choices, "key": Choice(f"{key:+g}", reason)}

    @property
    def delay(self) -> float:
        """Seconds of sound that are inside at most: after t seconds in, at least t - delay came out.

        The block itself, the future it hears, and the reach of the resamplers; that at the input is known once the
        first piece told its rate. Time to compute comes on top.
        """
        frames = (self._grid.block + self._grid.lookahead) / 100
        guard = self._guard.held / self.rate
        return frames + ENCODER_REACH / SAMPLE_RATE + self._source.delay + self._resampler.delay + guard

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Audio:
        return next(self._steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End here: close the pieces' iterator and free the networks. Safe to call twice."""
        self._steps.close()
        self._release()

    def _release(self) -> None:
        self._blocks = None
        self._source.clear()
        pieces, self._pieces = self._pieces, iter(())
        if hasattr(pieces, "close"):
            pieces.close()

    def _run(self) -> Generator[Audio, None, None]:
        try:
            for piece in self._pieces:
                for _ in self._source.push(piece):
                    yield from self._ready()
            self._source.finish()
            yield from self._rest()
        finally:
            self._release()

    def _ready(self) -> Iterator[Audio]:
        """Blocks whose future has come."""
        while self._source.ready(self._blocks.limit):
            yield from self._given(self._resampler.push(self._next_block()), last=False)

    def _rest(self) -> Iterator[Audio]:
        """What is left when the pieces have ended, to exactly the promised sample."""
        per_frame = self._per_frame
        length = self._source.length_at(self._voice_rate)
        while (missing := length - self._blocks.done * per_frame) > 0:
            yield from self._given(self._resampler.push(self._next_block()[:missing]), last=False)
        tail = self._resampler.finish()
        # Two roundings (to the voice's rate, then to this one) may miss the one that was promised by a sample.
        missing = self._source.length_at(self.rate) - self.frames_out - self._guard.waiting - len(tail)
        tail = np.pad(tail, (0, missing), mode="edge") if missing > 0 else tail[: len(tail) + missing]
        yield from self._given(tail, last=True)

    def _next_block(self) -> np.ndarray:
        """One block at the voice's rate with its loudness, float32 [n]."""
        block: LiveBlock = self._blocks.render(self._source.window)
        self._source.forget(self._blocks.oldest)
        self._key = self._blocks.key
        self.source_f0, self.result_f0 = block.source_f0, block.result_f0
        return self._loudness.match(block.source, block.sound, round(self._grid.block / 100 / FEATURE_SECONDS))

    def _given(self, samples: np.ndarray, last: bool) -> Iterator[Audio]:
        ready = self._guard.push(samples)
        if last:
            ready = np.concatenate([ready, self._guard.finish()])
        if len(ready):
            self.frames_out += len(ready)
            yield Audio(ready, self.rate)
