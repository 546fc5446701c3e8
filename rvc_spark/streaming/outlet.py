"""One sink and how far it is in the take: sends what is due and says when to look again."""

from __future__ import annotations

from rvc_spark.streaming.pacer import Pacer
from rvc_spark.streaming.sinks import Packet, RunInfo, Sink
from rvc_spark.streaming.take import TakeStore

GRACE_SECONDS = 0.5  # a player may be this far behind the clock's picture of it
HEARD_GRACE_SECONDS = 3.0  # and one that reports is waited for, since its own word is better
UNPACED_SECONDS = 1.0  # of a packet for a sink that takes everything at once


class Outlet:
    """Attributes: `pacer` (None for a sink that is not paced), `sent` frames, `packets`, `closed` (the end was told),
    `done` (and everything is played), `paused` (as the sink was told).
    """

    def __init__(self, sink: Sink, take: TakeStore, lead: float, title: str) -> None:
        self.sink = sink
        self.pacer = Pacer(take.rate, lead) if sink.paced else None
        self.sent = self.packets = 0
        self.closed = self.done = self.paused = False
        self._take = take
        self._ended_at: float | None = None
        prebuffer = self.pacer.prebuffer if self.pacer else 0.0
        sink.begin(RunInfo(take.rate, take.channels, lead, prebuffer, title))

    def step(self, now: float, finished: bool, complete: bool) -> float | None:
        """Send everything that is due.

        Args:
            finished: the take does not grow any more.
            complete: and that is because the producer came to its end.

        Returns:
            Seconds until there may be more to do without news; None: only after news.
        """
        while True:
            available = self._take.frames - self.sent
            if self.pacer is None:
                frames, wait = min(available, round(UNPACED_SECONDS * self._take.rate)), None
            else:
                step = self.pacer.step(now, available, finished)
                frames, wait = step.frames, step.wait
            if not frames:
                break
            samples = self._take.read(self.sent, self.sent + frames)
            self.sink.packet(Packet(self.packets, self.sent, samples, last=finished and frames == available))
            self.sent += frames
            self.packets += 1
        if finished and self.sent == self._take.frames:
            return self._finish(now, complete)
        return wait

    def position(self, now: float) -> int:
        """Frames that are played, as far as one can tell; for a file, frames written."""
        return self.sent if self.pacer is None else self.pacer.position(now)

    def _finish(self, now: float, complete: bool) -> float | None:
        if not self.closed:
            self.closed = True
            self.sink.end(complete)
        if self.pacer is None:
            self.done = True
            return None
        if self.sink.feedback().ended:
            self.done = True
            return None
        left = (self.sent - self.pacer.position(now)) / self.pacer.rate
        if left > 0:
            self._ended_at = None
            return max(0.01, left)
        if self._ended_at is None:
            self._ended_at = now
        grace = HEARD_GRACE_SECONDS if self.sink.feedback().ticks else GRACE_SECONDS
        self.done = now - self._ended_at >= grace
        return 0.1
