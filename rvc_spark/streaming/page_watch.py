"""Whether the page that plays is still there. Pure clock logic.

Its ticks come four times a second while it plays. That they stay away means nothing while the kernel is busy, because
then no message is handled at all; so the kernel's main loop stamps the time as well, and only what stays away while the
stamps keep coming is really away.

    stamps  | | | | | | |           | | | | | |      the gap is a busy cell: nothing is concluded from it,
    ticks   |  |  |  |              |                and patience starts anew behind it
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
        self._tick = self._stamp = self._since = float("-inf")
        self._bye: float | None = None

    def tick(self, now: float) -> None:
        """A page has reported."""
        self._ticks += 1
        self._tick = now
        self._bye = None

    def bye(self, now: float) -> None:
        """A page has said that it goes away."""
        self._bye = now

    def stamp(self, now: float, playing: bool) -> bool:
        """The main loop is alive. playing: a page that is there would report now.

        Returns True when the page is gone.
        """
        if now - self._stamp > BUSY or not playing:
            self._since = now
        self._stamp = now
        if self._bye is not None:
            return now - max(self._bye, self._since if playing else self._bye) > FAREWELL
        return playing and self._ticks >= ENOUGH and now - max(self._tick, self._since) > PATIENCE
