"""Whether the page that plays is still there. Pure clock logic.

Its ticks come four times a second while it plays. That they stay away means nothing while the kernel is busy, because
then no message is handled at all; so the kernel's main loop stamps the time as well, and only the time between stamps
that keep coming counts.

    stamps  | | | | | | |           | | | | | |      the gap is a busy cell: nothing is concluded from it
    ticks   |  |  |  |              |
    silent            0.3 ........ 0.3 0 .1 .2 ...
"""

from __future__ import annotations

PATIENCE = 2.0  # seconds without a tick; a page on a busy machine is away for one of them, a closed one says good-bye
BUSY = 0.35  # seconds between two stamps that mean the loop was busy; they come ten times a second
FAREWELL = 0.45  # seconds after a page said good-bye in which another page that plays the same would be heard
ENOUGH = 2  # ticks that make it a page that reports


class PageWatch:
    """Tell it of `tick`s, `bye`s and `stamp`s; the last says whether the page is gone."""

    def __init__(self) -> None:
        self._ticks = 0
        self._stamp = float("-inf")
        self._silent = 0.0  # seconds in which a tick would have been heard, since the last one or since the good-bye
        self._bye: float | None = None

    def tick(self, now: float) -> None:
        """A page has reported."""
        self._ticks += 1
        self._silent = 0.0
        self._bye = None

    def bye(self, now: float) -> None:
        """A page has said that it goes away."""
        self._silent = 0.0
        self._bye = now

    def stamp(self, now: float, playing: bool) -> bool:
        """The main loop is alive. playing: a page that is there would report now.

        Returns True when the page is gone.
        """
        passed, self._stamp = now - self._stamp, now
        if not playing:
            self._silent = 0.0
            return self._bye is not None and now - self._bye > FAREWELL
        if passed <= BUSY:
            self._silent += passed
        if self._bye is not None:
            return self._silent > FAREWELL
        return self._ticks >= ENOUGH and self._silent > PATIENCE
