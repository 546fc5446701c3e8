"""Two threads between a producer and its sinks: one pulls the producer into the take, one sends from the take in time.

    producer --pull--> take --paced packets--> player
                         └────at once────────> file

The puller stops `ahead` seconds beyond what is played, unless somebody waits for the end. Both threads are daemons and
hold nothing that outlives them. Stopping closes the producer; a producer that blocks inside its own code is left to
itself then: its thread ends when it comes out, and nothing waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rvc_spark.errors import StreamError
from rvc_spark.streaming.chunk import Gap
from rvc_spark.streaming.intake import Intake
from rvc_spark.streaming.outlet import Outlet
from rvc_spark.streaming.pacer import check_lead
from rvc_spark.streaming.sinks import Feedback, Sink, Words
from rvc_spark.streaming.stats import StreamStats
from rvc_spark.streaming.take import TakeStore

WORDS_SECONDS = 0.5  # between two lines about progress
COME_OUT_SECONDS = 0.3  # a producer has to end by itself before it is closed from outside
SHOWN_GAPS = 50


@dataclass(frozen=True)
class PumpOptions:
    """lead: seconds the player is kept ahead. ahead: seconds the producer may be beyond what is played."""

    lead: float = 0.3
    ahead: float = 60.0
    title: str = ""

    def __post_init__(self) -> None:
        check_lead(self.lead)
        if not self.ahead > 0:
            raise StreamError(f"ahead={self.ahead!r} s lets nothing be made", "Use a number of seconds above 0, or 60.")


class _Kept:
    """Keeps what its block raises, for whoever waits; a thread would only print it."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error or self.error
        return True


class Pump:
    """Plays one producer into sinks. Make it, `start` it, and `wait` or `stop`; every method may come from any thread.

    Attributes: `take` (None before the first sound), `gaps`.
    """

    def __init__(
        self, source: Any, sinks: Sequence[Sink], options: PumpOptions | None = None,
        *, on_end: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Args:
            source: see `Intake`.
            on_end: called once by the sending thread when all is played or stopped.

        Raises StreamError (nothing that can be played, impossible options).
        """
        self.options = options or PumpOptions()
        self.take: TakeStore | None = None
        self.gaps: list[Gap] = []
        self._intake = Intake(source)
        self._sinks = tuple(sinks)
        self._outlets: list[Outlet] = []
        self._on_end = on_end
        self._pulling, self._sending = _Kept(), _Kept()
        self._news = threading.Condition()
        self._count = 0  # of news, so that none is slept through
        self._why = ""  # it was stopped
        self._paused = self._halted = self._finished = self._unbound = self._over = False
        self._made, self._ended, self._closed_intake = threading.Event(), threading.Event(), threading.Event()
        self._began, self._worked = 0.0, 0.0
        self._first: float | None = None
        self._said, self._said_at = Words(""), 0.0
        self._threads = [
            threading.Thread(target=self._pull_all, name="rvc-spark-pull", daemon=True),
            threading.Thread(target=self._send_all, name="rvc-spark-send", daemon=True),
        ]

    # ---- for whoever holds it ----------------------------------------------------------------------------------------

    def add(self, sink: Sink) -> None:
        """One more sink; before `start`."""
        self._sinks = (*self._sinks, sink)

    def start(self) -> None:
        """Begin to pull and to send."""
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything is made (not played) and files are complete; the producer may run as fast as it can.

        Returns False if that took longer than `timeout` seconds.
        Raises what the producer or a sink raised. An interrupt stops everything before it is passed on.
        """
        end = None if timeout is None else time.monotonic() + timeout
        self._tell(unbound=True)
        try:
            while not self._made.wait(0.1):  # short waits let an interrupt in everywhere
                if end is not None and time.monotonic() >= end:
                    return False
        except KeyboardInterrupt:
            self.stop()
            raise
        if self.error is not None:
            raise self.error
        return True

    def wait_played(self, timeout: float | None = None) -> bool:
        """Wait until the player is done too, or stopped."""
        return self._ended.wait(timeout)

    def stop(self, why: str = "stopped", timeout: float = 1.0) -> bool:
        """Silence, an end to the producer and to both threads; at most `timeout` seconds are waited for that.

        Returns whether both threads are gone; False means that the producer blocks, and its thread ends with it.
        """
        with self._news:
            if not self._why and not self._ended.is_set():
                self._why = why
        self._tell()
        end = time.monotonic() + timeout
        for thread in reversed(self._threads):
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def pause(self) -> None:
        """Let the player stand still; the producer goes on until it is `ahead`."""
        self._tell(paused=True)

    def resume(self) -> None:
        """Go on playing."""
        self._tell(paused=False)

    def hold(self, held: bool) -> None:
        """Send nothing while the page is known not to play (a browser that wants a click first); not a pause to it."""
        self._tell(halted=held)

    def nudge(self) -> None:
        """There is news of the player."""
        self._tell()

    @property
    def error(self) -> BaseException | None:
        """What the producer or a sink raised; None after a stop, which makes producers raise what they like."""
        return None if self._why else self._sending.error or self._pulling.error

    @property
    def state(self) -> str:
        """See `StreamStats`."""
        if self._why:
            return self._why
        if self._ended.is_set():
            return "failed" if self.error else "ended"
        if self._paused:
            return "paused"
        return "playing" if self.take is not None else "starting"

    @property
    def alive(self) -> bool:
        """Whether it is neither played to the end nor stopped."""
        return not self._ended.is_set()

    @property
    def all_made(self) -> bool:
        """Whether everything is made and files are complete."""
        return self._made.is_set()

    @property
    def playing_now(self) -> bool:
        """Whether the player should be making sound at this moment."""
        now = time.monotonic()
        paced = [outlet for outlet in list(self._outlets) if outlet.pacer]
        return not (self._paused or self._halted) and any(outlet.position(now) < outlet.sent for outlet in paced)

    def stats(self) -> StreamStats:
        """Figures of this moment."""
        made = self.take.seconds if self.take else 0.0
        outlets = list(self._outlets)
        paced = [outlet for outlet in outlets if outlet.pacer] or outlets
        first = paced[0] if paced else None
        pacer = first.pacer if first else None
        return StreamStats(
            self.state, made, first.sent / self.take.rate if first else 0.0, first.packets if first else 0, self._first,
            self._worked / made if made else None, pacer.reanchors if pacer else 0, pacer.late if pacer else 0.0,
            len(self.gaps), first.sink.feedback() if first else Feedback(),
        )  # fmt: skip

    # ---- the puller --------------------------------------------------------------------------------------------------

    def _pull_all(self) -> None:
        with self._pulling:
            while not self._over_or_stopped() and self._pull_one():
                self._wait_for_room()
        with self._pulling:
            self._intake.close()
        self._closed_intake.set()
        self._tell(finished=True)

    def _pull_one(self) -> bool:
        began = time.monotonic()
        piece = self._intake.pull()
        now = time.monotonic()
        self._worked += now - began
        if piece is None or self._over_or_stopped():
            return False
        if piece.gap is not None:
            self.gaps.append(piece.gap)
        if self.take is None:
            self.take = TakeStore(self._intake.rate, self._intake.channels)
            self._first = now - self._began
        self.take.append(piece.samples)
        self._tell()
        return True

    def _wait_for_room(self) -> None:
        with self._news:
            while not (self._over_or_stopped() or self._unbound) and (excess := self._excess()) > 0:
                self._news.wait(min(0.25, max(0.01, excess)))

    def _excess(self) -> float:
        """Seconds made beyond what may be; without a player nothing bounds the producer."""
        paced = [sink for sink in self._sinks if sink.paced]
        if not paced:
            return 0.0
        now = time.monotonic()
        played = max((outlet.position(now) for outlet in list(self._outlets)), default=0)
        return self.take.seconds - played / self.take.rate - self.options.ahead

    # ---- the sender --------------------------------------------------------------------------------------------------

    def _send_all(self) -> None:
        with self._sending:
            for sink in self._sinks:
                sink.prepare()
            while not self._why:
                seen = self._count
                wait = self._send_due()
                if wait is None:
                    break
                with self._news:
                    if self._count == seen:
                        self._news.wait(wait)
        if self._why or self._sending.error is not None:
            self._wind_up()
        self._made.set()
        self._ended.set()
        if self._on_end is not None:
            self._on_end()

    def _send_due(self) -> float | None:
        """Everything due goes out. Returns seconds to wait, None when all is done."""
        now = time.monotonic()
        if not self._outlets:
            if self.take is None:
                self._say(now, "waiting for the first sound")
                return None if self._finished else 0.5
            options = self.options
            for sink in self._sinks:  # one by one: if one cannot begin, those before it are stopped
                self._outlets.append(Outlet(sink, self.take, options.lead, options.title))
        self._follow_pause(now)
        finished, complete = self._finished, self._pulling.error is None
        waits = [outlet.step(now, finished, complete) for outlet in self._outlets]
        if finished and all(outlet.closed for outlet in self._outlets if outlet.pacer is None):
            self._made.set()
        self._say(now, "")
        if finished and all(outlet.done for outlet in self._outlets):
            return None
        return min((wait for wait in waits if wait is not None), default=0.5)

    def _follow_pause(self, now: float) -> None:
        for outlet in self._outlets:
            if outlet.pacer is None:
                continue
            if self._paused != outlet.paused:
                outlet.paused = self._paused
                outlet.sink.pause() if self._paused else outlet.sink.resume()
            if self._paused or self._halted:
                outlet.pacer.pause(now)
            else:
                outlet.pacer.resume(now)

    def _say(self, now: float, status: str) -> None:
        total = self._intake.total
        made = self.take.seconds if self.take else 0.0
        if self._finished:
            total = made
        if not status:
            status = "making" if not self._finished else str(self._pulling.error or "") or "all is made"
        missing = self.gaps[-SHOWN_GAPS:]
        gaps = tuple(f"sentence {gap.sentence + 1} is missing: {gap.error.problem}" for gap in missing)
        words = Words(status, round(made, 2), None if total is None else round(total, 2), gaps)
        if words == self._said or (words.status == self._said.status and now - self._said_at < WORDS_SECONDS):
            return
        self._said, self._said_at = words, now
        for sink in self._sinks:
            sink.words(words)

    def _wind_up(self) -> None:
        """After a stop, or when a sink failed: silence first, and then an end to the producer."""
        self._tell(over=True)
        for outlet in self._outlets:
            if not outlet.done:
                with self._sending_kept():
                    outlet.sink.stop()
        if not self._closed_intake.wait(COME_OUT_SECONDS):
            with self._sending_kept():
                self._intake.close()

    def _sending_kept(self) -> _Kept:
        """For what may fail as well while a failure is wound up: the first error is the one to be told."""
        return _Kept() if self._sending.error is not None else self._sending

    def _over_or_stopped(self) -> bool:
        return bool(self._why) or self._over

    def _tell(self, **changes: bool) -> None:
        with self._news:
            for name, value in changes.items():
                setattr(self, f"_{name}", value)
            self._count += 1
            self._news.notify_all()
