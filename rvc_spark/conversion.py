"""What a conversion takes and what it returns: any sound in; a finished result, or blocks of it while it is made.

The result is read from disk when asked for, however long it is. How it is made is told by `rvc_spark.rvc_modules`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rvc_spark.audio import (
    Audio,
    AudioReader,
    EncodeOptions,
    StreamResampler,
    WatermarkReport,
    open_audio,
    open_writer,
)
from rvc_spark.errors import AudioError, OutputError
from rvc_spark.infer.pipeline import Rendered, Rendering, Source
from rvc_spark.infer.sample_store import SampleStore
from rvc_spark.infer.segments import SAMPLE_RATE
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.rvc_config import Choice

SoundSource = str | Path | bytes | BinaryIO | Audio
MIN_SECONDS = 0.01  # one frame; shorter sounds have no pitch and no content
READ_SECONDS = 10  # of sound decoded at a time
FIRST_FRAMES = 60  # of 10 ms, in the first block decoded; the loudness of its beginning is settled by 50


@dataclass
class Conversion:
    """A converted recording and how it came about. The sound is read from disk when asked for, however long it is."""

    voice: str
    settings: ConversionSettings
    engines: dict[str, Choice]  # device, precision, encoder, pitch, index, key: value and reason of each
    source_f0: np.ndarray | None  # Hz per 10 ms, 0 = unvoiced; None for a voice without pitch
    result_f0: np.ndarray | None
    rate: int  # Hz
    frames: int  # samples
    source_seconds: float
    elapsed: float  # seconds of work
    path: Path | None
    _store: SampleStore
    watermark: WatermarkReport | None = None  # what the detector found in the file; None: not written, or not marked
    _default_watermark: str | None = None  # of the configuration it was made under

    @property
    def audio(self) -> Audio:
        """The result as float32 [T]."""
        return Audio(self._store.array(), self.rate)

    def part(self, start: int, stop: int) -> np.ndarray:
        """Samples `start..stop` of the result, float32 [stop - start]; the range must lie inside."""
        return self._store.read(start, stop)

    @property
    def seconds(self) -> float:
        """Length of the result."""
        return self.frames / self.rate

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of sound; below 1 is faster than real time."""
        return self.elapsed / self.source_seconds

    def save(self, path: str | Path, options: EncodeOptions | None = None) -> Path:
        """Write the result; the suffix chooses the format unless `options` does. Bounded memory, atomic."""
        with open_writer(path, self.rate, 1, watermarked(options, self._default_watermark)) as writer:
            for block in self._store.blocks():
                writer.write(block[None])
        self.path, self.watermark = Path(path), writer.watermark
        return self.path

    def report(self) -> dict[str, Any]:
        """Everything but the sound, ready for JSON."""
        return {
            "voice": self.voice,
            "path": None if self.path is None else str(self.path),
            "seconds": round(self.seconds, 6),
            "samples": self.frames,
            "rate": self.rate,
            "elapsed": round(self.elapsed, 3),
            "real_time_factor": round(self.real_time_factor, 4),
            "engines": {name: {"value": c.value, "reason": c.reason} for name, c in self.engines.items()},
            "settings": self.settings.as_dict(),
            **({} if self.watermark is None else {"watermark": self.watermark.report()}),
        }


@dataclass(frozen=True)
class ConversionJob:
    """What is told of every conversion of a run: the voice's name, how, which engines and why, the watermark."""

    voice: str
    settings: ConversionSettings
    engines: dict[str, Choice]
    watermark: str | None

    def finished(self, rendered: Rendered, recording: Source, elapsed: float) -> Conversion:
        """The result for its user, `elapsed` seconds of work after it was begun."""
        return Conversion(
            voice=self.voice,
            settings=self.settings,
            engines={**self.engines, "key": Choice(f"{rendered.key:+g}", rendered.key_reason)},
            source_f0=rendered.source_f0,
            result_f0=rendered.result_f0,
            rate=rendered.store.rate,
            frames=len(rendered.store),
            source_seconds=recording.seconds,
            elapsed=elapsed,
            path=None,
            _store=rendered.store,
            _default_watermark=self.watermark,
        )


class BlockConversion:
    """A conversion as an iterator over its sound, mono, block by block as it is decoded; see `VC.convert_blocks`.

    Attributes:
        voice: name of the voice.
        rate, frames: Hz and samples of the whole result, known from the start.
        engines: which engine did what and why; complete once the first block is out, as are
        source_f0, result_f0: Hz per 10 ms, 0 = unvoiced; None for a voice without pitch.
    """

    def __init__(self, voice: str, source: Source, rendering: Rendering, engines: dict[str, Choice], rate: int) -> None:
        self.voice = voice
        self.rate = rate
        self.frames = rendering.frames_out
        self.engines = engines
        self.source_f0: np.ndarray | None = None
        self.result_f0: np.ndarray | None = None
        self._source, self._rendering = source, rendering
        self._blocks = rendering.blocks(FIRST_FRAMES)

    def __iter__(self) -> Iterator[Audio]:
        return self

    def __next__(self) -> Audio:
        try:
            block = next(self._blocks)
        except BaseException:  # its end too: the source is on disk when it is long
            self._source.store.close()
            raise
        if "key" not in self.engines:
            self.source_f0, self.result_f0, key, reason = self._rendering.contours()
            self.engines["key"] = Choice(f"{key:+g}", reason)
        return Audio(block, self.rate)

    def close(self) -> None:
        """End the work and free what it held."""
        self._blocks.close()
        self._source.store.close()


def watermarked(options: EncodeOptions | None, name: str | None) -> EncodeOptions:
    """Options with this watermark, unless they name one themselves; None: that of the process."""
    options = options or EncodeOptions()
    return options if options.watermark is not None or name is None else replace(options, watermark=name)


def refuse_overwriting(source: SoundSource, output: str | Path | None) -> None:
    """Raises OutputError when the result would replace what it is made of."""
    if output is None or not isinstance(source, str | Path):
        return
    source_path, output_path = Path(source), Path(output)
    if output_path.exists() and source_path.exists() and output_path.samefile(source_path):
        raise OutputError(f"{output} is the source itself", "Choose another name for the result.")


def read_source(source: SoundSource) -> Source:
    """Decode anything to mono 16 kHz in bounded memory. Raises AudioError; at least 10 ms are needed."""
    if isinstance(source, Audio):
        return _collect(_whole(source), source.rate)
    with open_audio(source) as reader:
        return _collect(_mono_blocks(reader), reader.rate)


def _whole(sound: Audio) -> Generator[np.ndarray, None, None]:
    yield sound.mono().samples


def _mono_blocks(reader: AudioReader) -> Generator[np.ndarray, None, None]:
    for block in reader.blocks(READ_SECONDS * reader.rate):
        yield block.mean(axis=0, dtype=np.float32)


def _collect(blocks: Generator[np.ndarray, None, None], rate: int) -> Source:
    store = SampleStore(SAMPLE_RATE)
    total = 0
    try:
        resampler = StreamResampler(rate, SAMPLE_RATE, channels=1)
        for block in blocks:
            total += len(block)
            store.append(resampler.push(block[None])[0])
        if total < MIN_SECONDS * rate:
            raise AudioError(
                f"the sound has {total} samples at {rate} Hz, less than {MIN_SECONDS * 1000:g} ms",
                "Give a longer recording.",
            )
        store.append(resampler.finish(total)[0])
    except BaseException:
        store.close()
        raise
    return Source(store, total, rate)

