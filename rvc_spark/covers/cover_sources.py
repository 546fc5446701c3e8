"""The sounds a cover is made from: what each is (by content, never by name), and decoding a stretch of one.

Everything becomes float32 WAV with two channels at 44.1 kHz, the rate the separation networks know, in bounded memory.
The bytes of such a file follow from its samples alone, so its sha256 names the sound whatever it was decoded from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rvc_spark.audio import Audio, AudioReader, EncodeOptions, StreamResampler, open_audio, open_writer
from rvc_spark.audio_source import Source, open_source
from rvc_spark.conversion import SoundSource
from rvc_spark.covers.artefacts import Draft
from rvc_spark.covers.tracks import to_channels
from rvc_spark.errors import AudioError
from rvc_spark.infer.pipeline import Progress

RATE = 44_100
CHANNELS = 2
BLOCK_FRAMES = 1 << 18
FLOAT_WAV = EncodeOptions(format="wav", sample_format="float32", watermark="none")  # of stages, which nobody publishes
HASH_BLOCK = 1 << 20


@dataclass
class SongSource:
    """An open sound. name: for messages and tags. identity: sha256 of its bytes, or of samples in memory."""

    name: str
    identity: str
    sound: Source | Audio

    def blocks(self) -> Generator[tuple[np.ndarray, int, int | None], None, None]:
        """(float32 [C, n], rate, frames in all if known), from the start, as often as asked. Raises AudioError."""
        if isinstance(self.sound, Audio):
            samples = np.atleast_2d(self.sound.samples)
            for start in range(0, self.sound.frames, BLOCK_FRAMES):
                yield samples[:, start : start + BLOCK_FRAMES], self.sound.rate, self.sound.frames
            return
        self.sound.stream.seek(0)
        with AudioReader(replace(self.sound, owned=False)) as reader:  # the very bytes that were identified
            for block in reader.blocks(BLOCK_FRAMES):
                yield block, reader.rate, reader.frames or reader.expected_frames

    def close(self) -> None:
        """Release the file; a stream that was given stays open."""
        if isinstance(self.sound, Source):
            self.sound.close()


def open_song(source: SoundSource) -> SongSource:
    """Open and identify a sound. Raises AudioError: missing, no file, empty, unreadable."""
    digest = hashlib.sha256()
    if isinstance(source, Audio):
        digest.update(f"{source.rate} {source.samples.shape}".encode())
        digest.update(source.samples.tobytes())
        return SongSource("sound", digest.hexdigest(), source)
    opened = open_source(source)
    try:
        opened.stream.seek(0)
        while block := opened.stream.read(HASH_BLOCK):
            digest.update(block)
    except OSError as error:
        opened.close()
        raise AudioError(f"{opened.name} cannot be read ({error.strerror or error})", "Check the disk.") from error
    name = Path(source).stem if isinstance(source, str | Path) else "song"
    return SongSource(name, digest.hexdigest(), opened)


@dataclass(frozen=True)
class Window:
    """A stretch of a song in seconds, with what is read before and after it for the networks' sake."""

    start: float
    seconds: float
    context: float = 0.0

    @property
    def lead(self) -> float:
        """Seconds of context in front; less where the song begins."""
        return min(self.context, self.start)

    def plain(self) -> list[float]:
        """For a recipe."""
        return [self.start, self.seconds, self.context]


def decode(source: SongSource, window: Window | None, draft: Draft) -> Generator[Progress, None, None]:
    """Write `sound.wav` of a sound or a stretch of it. Facts: seconds, rate and channels as they were, window.

    Raises AudioError: damaged, or the window begins behind its end.
    """
    writer = resampler = None
    position = 0
    try:
        for block, rate, total in source.blocks():
            if writer is None:
                draft.facts |= {"rate": rate, "channels": len(block)}
                first = 0 if window is None else round((window.start - window.lead) * rate)
                last = None if window is None else round((window.start + window.seconds + window.context) * rate)
                writer = open_writer(draft.path("sound.wav"), RATE, CHANNELS, FLOAT_WAV)
                resampler = StreamResampler(rate, RATE, CHANNELS)
            ends = None if last is None else last - position
            wanted = to_channels(block, CHANNELS)[:, max(0, first - position) : ends]
            position += block.shape[1]
            writer.write(resampler.push(wanted))
            yield Progress(min(1.0, position / (last or total or position)), f"reading {source.name}")
            if last is not None and position >= last:
                break
        if position <= (0 if window is None else round(window.start * rate)):
            raise AudioError(
                f"The preview begins at {window.start:g} s, {source.name} ends at {position / rate:.2f} s",
                "Choose a moment inside the song.",
            )
        writer.write(resampler.finish())
        draft.facts |= {"frames": writer.frames}
        writer.close()
    except BaseException:
        if writer is not None:
            writer.abort()
        raise


def read_blocks(path: Path, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
    """Frames start..stop of a file of ours, float32 [C, n]."""
    with open_audio(path) as reader:
        position = 0
        for block in reader.blocks(BLOCK_FRAMES):
            ends = None if stop is None else max(0, stop - position)
            piece = block[:, max(0, start - position) : ends]
            position += block.shape[1]
            if piece.shape[1]:
                yield piece
            if stop is not None and position >= stop:
                return


def frames_of(path: Path) -> int:
    """Frames of a file of ours."""
    with open_audio(path) as reader:
        return int(reader.frames or 0)
