"""When the next packet of a stream is due and how long it is: open loop, by the clock alone.

A notebook page cannot be asked how far it is, since no message from it arrives while a cell runs. So the pacer keeps
its own picture of the player, which is a buffer that starts to play once `prebuffer` seconds are in it:

        sent ─────────────┐ at most `lead` seconds before what is played
                          ▼
    ──────────────■■■■■■■■■──────────>  frames
                  ▲ played = (now - anchor) * rate

If the player has run dry because the producer was late, the clock is anchored anew. Otherwise a producer that makes up
for its delay would leave just as much latency behind for ever. Knows no sound, no thread and no time of its own.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from rvc_spark.errors import StreamError

MIN_PACKET, MAX_PACKET = 0.04, 0.1  # seconds; a notebook loses messages when thousands of short ones come at once
MAX_LEAD = 10.0  # seconds; in packets of MIN_PACKET that is 250, and above 1,000 a kernel's publisher drops them
LEAST_LEAD = 0.05
ROUNDING = 1e-6  # seconds; less than a sample, more than what sums of times lose
PREBUFFER_SHARE = 2 / 3  # of the lead: the player starts a little before everything that may be sent is there


@dataclass(frozen=True)
class Step:
    """What to do now: send `frames` at once (0: nothing), else look again after `wait` seconds (None: after news)."""

    frames: int
    wait: float | None = None


def check_lead(lead: float) -> None:
    """Raises StreamError (a lead outside LEAST_LEAD to MAX_LEAD seconds)."""
    if not LEAST_LEAD <= lead <= MAX_LEAD:
        raise StreamError(
            f"a lead of {lead!r} s is outside {LEAST_LEAD:g} to {MAX_LEAD:g} s", "Use 0.3 here, 1 far away."
        )


class Pacer:
    """Paces frames of one stream.

    Attributes: `frames` and `packets` sent; `reanchors`: how often the player must have run dry; `late`: the most
    seconds a packet went out after it was due.
    """

    def __init__(self, rate: int, lead: float = 0.3) -> None:
        """Raises StreamError (a lead outside LEAST_LEAD to MAX_LEAD seconds)."""
        check_lead(lead)
        self.rate = rate
        self.lead = lead
        self.prebuffer = PREBUFFER_SHARE * lead
        self.frames = self.packets = self.reanchors = 0
        self.late = 0.0
        self._least = math.ceil(MIN_PACKET * rate)
        self._most = math.floor(MAX_PACKET * rate)
        self._usual = min(self._most, max(self._least, round(lead / 4 * rate)))
        self._base = 0  # where the player stands while it fills
        self._anchor: float | None = None  # when frame 0 would have been played; None while the player fills
        self._paused_at: float | None = None
        self._level = False  # whether everything that was due went out since the clock was anchored
        self._ends: deque[int] = deque()  # of packets that are not played yet

    def step(self, now: float, available: int, finished: bool) -> Step:
        """Decide. What the step says is taken as sent.

        Args:
            now: seconds of a clock that never goes back.
            available: frames that are made and not sent.
            finished: nothing will follow them.
        """
        if self._paused_at is not None:
            return Step(0)
        if finished and not available:
            if self._anchor is None:
                self._start(now)  # the player was told of the end, so it plays what it has
            return Step(0)
        self._notice_dry(now)
        if available < self._least and not finished:
            return Step(0)
        if self._anchor is None:
            frames = self._fill(available)
        else:
            budget = math.floor((now + self.lead - self._anchor) * self.rate) - self.frames
            wanted = min(available, self._usual)
            if budget < wanted:
                self._level = True
                return Step(0, (wanted - budget) / self.rate)
            if self._level:  # before that the lead was never full, and nobody is late
                self.late = max(self.late, (budget - wanted) / self.rate)
            frames = self._piece(min(available, budget))
        self._send(now, frames)
        return Step(frames)

    def position(self, now: float) -> int:
        """Frames the player has played by its picture of it."""
        anchor, paused_at = self._anchor, self._paused_at  # read once: other threads ask as well
        if anchor is None:
            return self._base
        then = now if paused_at is None else paused_at
        return max(self._base, min(self.frames, math.floor((then - anchor) * self.rate)))

    def packets_ahead(self, now: float) -> int:
        """Packets that are sent and not played."""
        position = self.position(now)
        while self._ends and self._ends[0] <= position:
            self._ends.popleft()
        return len(self._ends)

    def pause(self, now: float) -> None:
        """Stand still."""
        if self._paused_at is None:
            self._paused_at = now

    def resume(self, now: float) -> None:
        """Go on as if the time between had not been."""
        if self._paused_at is not None:
            if self._anchor is not None:
                self._anchor += now - self._paused_at
            self._paused_at = None

    def _notice_dry(self, now: float) -> None:
        if self._anchor is not None and now > self._anchor + self.frames / self.rate + ROUNDING:
            self._base = self.frames
            self._anchor = None
            self._level = False
            self.reanchors += 1

    def _fill(self, available: int) -> int:
        """The player is told to wait for `prebuffer`; then, and not before, the clock runs."""
        missing = math.ceil(self.prebuffer * self.rate) - (self.frames - self._base)
        return self._piece(min(available, max(missing, self._least)))

    def _piece(self, frames: int) -> int:
        """Even packets instead of long ones and a rest."""
        return math.ceil(frames / math.ceil(frames / self._most))

    def _send(self, now: float, frames: int) -> None:
        self.frames += frames
        self.packets += 1
        self._ends.append(self.frames)
        self.packets_ahead(now)  # forgets those that are played
        if self._anchor is None and self.frames - self._base >= self.prebuffer * self.rate:
            self._start(now)

    def _start(self, now: float) -> None:
        self._anchor = now - self._base / self.rate
