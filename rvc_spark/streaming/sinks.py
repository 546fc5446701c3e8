"""Where a paced stream goes: a player in a page, a file, memory, or a player of a test that has no sound card.

A sink is only ever called by the one thread that sends, except for its feedback.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from rvc_spark.audio import Audio, AudioWriter, EncodeOptions, WatermarkReport, load_watermark, open_writer
from rvc_spark.errors import StreamError
from rvc_spark.streaming.pacer import ROUNDING


@dataclass(frozen=True)
class RunInfo:
    """What is known when the first sound is there. lead, prebuffer: seconds; see `Pacer`."""

    rate: int
    channels: int
    lead: float
    prebuffer: float
    title: str = ""


@dataclass(frozen=True)
class Packet:
    """Consecutive samples float32 [n, C]; `seq` from 0 without holes, `start` in frames. last: nothing follows."""

    seq: int
    start: int
    samples: np.ndarray
    last: bool = False


@dataclass(frozen=True)
class Words:
    """What a player shows beside the sound. made, total: seconds; total is None where nobody knows."""

    status: str
    made: float = 0.0
    total: float | None = None
    gaps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Feedback:
    """What the player in the page last said of this run; it may be seconds old, and absent where no page is.

    mode: "worklet", "source" or "" (nobody answered). buffered: seconds. lost: packets that never arrived.
    """

    mode: str = ""
    state: str = ""
    played: float = 0.0
    buffered: float = 0.0
    underruns: int = 0
    lost: int = 0
    ticks: int = 0
    ended: bool = False


class Sink(Protocol):
    """What the pump needs. paced: it plays, so it gets packets in time; else it gets everything at once."""

    paced: bool

    def prepare(self) -> None:
        """Called at the start, while the producer is at its first sound: the time to load what will be needed."""

    def begin(self, info: RunInfo) -> None:
        """Called once, before the first packet."""

    def packet(self, packet: Packet) -> None:
        """Take what follows."""

    def words(self, words: Words) -> None:
        """Show it, or not."""

    def pause(self) -> None:
        """Stand still; what was sent stays."""

    def resume(self) -> None:
        """Go on."""

    def end(self, complete: bool) -> None:
        """No packet follows; play to the end. complete: False if the producer failed before it was done."""

    def stop(self) -> None:
        """Fade out at once and forget the rest."""

    def feedback(self) -> Feedback:
        """The last news of the player."""


class QuietSink:
    """A sink that shows nothing and has nothing to say; the base of those that only take samples."""

    paced = False

    def prepare(self) -> None:
        """Nothing to load."""

    def begin(self, info: RunInfo) -> None:
        """Keep what is known."""
        self.info = info

    def words(self, words: Words) -> None:
        """Nobody reads them."""

    def pause(self) -> None:
        """Nothing plays."""

    def resume(self) -> None:
        """Nothing plays."""

    def end(self, complete: bool) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        """Nothing to do."""

    def feedback(self) -> Feedback:
        """None."""
        return Feedback()


class FileSink(QuietSink):
    """Writes a sound file while it is being made. It has its name once the stream came to its end; a stream that was
    stopped or failed leaves no file.

    Raises OutputError, AudioError: as `rvc_spark.audio.open_writer`, when the first sound comes.
    """

    def __init__(self, path: str | Path, options: EncodeOptions | None = None) -> None:
        self.path = Path(path)
        self._options = (options or EncodeOptions()).resolved(self.path)  # a wrong suffix is told before the work
        self._writer: AudioWriter | None = None

    @property
    def watermark(self) -> WatermarkReport | None:
        """What the detector found in the finished file; None before, and where no watermark was asked for."""
        return None if self._writer is None else self._writer.watermark

    def prepare(self) -> None:
        """Load what the watermark needs, if the file gets one."""
        load_watermark(self._options.watermark)

    def begin(self, info: RunInfo) -> None:
        """Open the file under a temporary name."""
        super().begin(info)
        self._writer = open_writer(self.path, info.rate, info.channels, self._options)

    def packet(self, packet: Packet) -> None:
        """Append."""
        self._writer.write(packet.samples.T)

    def end(self, complete: bool) -> None:
        """Give the file its name, or remove it."""
        if self._writer is not None:
            self._writer.close() if complete else self._writer.abort()

    def stop(self) -> None:
        """Remove the file."""
        if self._writer is not None:
            self._writer.abort()


class MemorySink(QuietSink):
    """Keeps the packets. `audio` joins them."""

    def __init__(self) -> None:
        self.packets: list[Packet] = []
        self.ended = self.stopped = False

    def packet(self, packet: Packet) -> None:
        """Keep it."""
        self.packets.append(packet)

    def end(self, complete: bool) -> None:
        """Remember it."""
        self.ended = True

    def stop(self) -> None:
        """Remember it."""
        self.stopped = True

    def audio(self) -> Audio:
        """All of it. Raises StreamError (nothing came)."""
        if not self.packets:
            raise StreamError("no packet came", "Wait for the first one.")
        samples = np.concatenate([packet.samples for packet in self.packets])
        return Audio(samples[:, 0] if samples.shape[1] == 1 else np.ascontiguousarray(samples.T), self.info.rate)


class ClockSink(MemorySink):
    """A player without a sound card: a buffer that starts at `prebuffer` and runs dry by the clock.

    Attributes: `underruns`; `deepest`: the most seconds that ever lay in the buffer; `silence`: seconds of silence
    after the first sound.
    """

    paced = True

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.underruns = 0
        self.deepest = self.silence = 0.0
        self._clock = clock
        self._then = clock()
        self._depth = 0.0  # seconds in the buffer at `_then`
        self._playing = self._halted = self._begun = False

    def buffered(self) -> float:
        """Seconds in the buffer now."""
        now = self._clock()
        passed, self._then = now - self._then, now
        if self._halted:
            return self._depth
        if self._playing:
            if passed > self._depth + ROUNDING:
                self._playing = self.ended
                self.underruns += not self.ended
                self.silence += 0.0 if self.ended else passed - self._depth
            self._depth = max(0.0, self._depth - passed)
        elif self._begun:
            self.silence += passed
        return self._depth

    def packet(self, packet: Packet) -> None:
        """Put it into the buffer."""
        super().packet(packet)
        self._depth = self.buffered() + len(packet.samples) / self.info.rate
        self.deepest = max(self.deepest, self._depth)
        if self._depth >= self.info.prebuffer - ROUNDING:
            self._playing = self._begun = True

    def pause(self) -> None:
        """Stand still."""
        self.buffered()
        self._halted = True

    def resume(self) -> None:
        """Go on."""
        self.buffered()
        self._halted = False

    def end(self, complete: bool) -> None:
        """Play what is there."""
        super().end(complete)
        self._playing = True

    def stop(self) -> None:
        """Silence."""
        super().stop()
        self._depth = 0.0
        self._playing = False

    def feedback(self) -> Feedback:
        """What it would report."""
        depth = self.buffered()
        return Feedback(mode="clock", buffered=depth, underruns=self.underruns, ended=self.ended and depth <= 0.0)
