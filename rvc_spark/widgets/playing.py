"""Hear a sound while it is being made: one call for speech, music and a voice that is converted live.

    playing = play(stream_speak("A long text."), title="A long text")     returns at once; the cell plays
    take = playing.wait()                                                 when everything is made
    playing.stop()                                                        or the button in the cell

Without a page, as in papermill, a script, or a server, nobody hears it and everything else is the same. At the end the
player is replaced by a small one that stays with the notebook. Colab's and VS Code's ways are coded as they are
documented; this was not run there.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import html
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from IPython import get_ipython
from IPython.display import DisplayHandle, display

from rvc_spark.audio import EncodeOptions
from rvc_spark.errors import StreamError
from rvc_spark.streaming.page_watch import PageWatch
from rvc_spark.streaming.pump import Pump, PumpOptions
from rvc_spark.streaming.sinks import FileSink
from rvc_spark.streaming.stats import StreamStats
from rvc_spark.widgets.player import LivePlayer, in_colab
from rvc_spark.widgets.take_view import Take

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
STAMP_SECONDS = 0.1
LEAD_HERE, LEAD_FAR = 0.3, 1.0  # seconds; on Colab messages travel through a proxy
STARTS_WITHIN = 0.6  # seconds; a page whose sound is not on by then waits for a click
EXIT_SECONDS = 0.3  # for threads to end when Python ends; they are daemons, and whatever is left is cut off


@dataclass(frozen=True)
class PlayOptions:
    """How something is played.

    Attributes:
        lead: seconds the page is kept ahead of what is heard; None: 0.3, and 1.0 on Colab.
        ahead: seconds that may be made beyond what is heard, so that nobody makes an hour that is never listened to.
        spectrogram: whether the picture moves along.
        format: of the packets, see `LivePlayer`.
        alone: stop what another call plays, so that one thing is heard at a time.
        player: a player that is shown elsewhere already, such as in a panel; None shows a new one in this cell.
        encode: how the file of `save` is written.
        on_save: called with the take when a person presses Save; the page keeps a file of its own either way.
        on_end: called on the main thread, once it is free, when all was heard or it was stopped.
    """

    lead: float | None = None
    ahead: float = 60.0
    spectrogram: bool = True
    format: str = "auto"
    alone: bool = True
    player: LivePlayer | None = None
    encode: EncodeOptions | None = None
    on_save: Callable[[Take], Any] | None = None
    on_end: Callable[[Playing], Any] | None = None


_playing: weakref.WeakSet[Playing] = weakref.WeakSet()  # what is heard in this kernel now


def play(
    chunks: Any, title: str = "", *, save: str | Path | None = None, wait: bool = False,
    options: PlayOptions | None = None, **changes: Any,
) -> Playing:  # fmt: skip
    """Play what is being made, in this cell. Call it on the main thread.

    Args:
        chunks: an iterator of AudioChunk or Audio, one Audio, or (samples, rate); see `rvc_spark.streaming.intake`.
            It is closed at the end, and when it is stopped.
        title: shown with the player; plain text.
        save: also write this file while it is made; it has its name when the stream came to its end.
        wait: return when everything is made.
        options, **changes: a `PlayOptions`, and its fields by name: lead, ahead, spectrogram, format, alone, player,
            encode, on_save, on_end.

    Raises StreamError (nothing that can be played, an option out of range), OutputError (save); with `wait` also what
    the producer raises.
    """
    options = replace(options or PlayOptions(), **changes)
    playing = Playing(chunks, title, save, options)
    for other in list(_playing):
        if options.alone or (options.player is not None and other.player is options.player):
            other._pump.stop()
    _playing.add(playing)
    playing._start()
    if wait:
        playing.wait()
    return playing


class Playing:
    """Something that is being played. Attributes: `title`, `player` (None where there is no page to show one in)."""

    def __init__(self, chunks: Any, title: str, save: str | Path | None, options: PlayOptions) -> None:
        self.title = title
        self.options = options
        files = [FileSink(save, options.encode)] if save is not None else []
        lead = options.lead if options.lead is not None else LEAD_FAR if in_colab() else LEAD_HERE
        self._pump = Pump(chunks, files, PumpOptions(lead, options.ahead, title), on_end=self._ended)
        self.player = options.player
        if self.player is None and _in_kernel():
            self.player = LivePlayer(spectrogram=options.spectrogram, format=options.format)
        if self.player is not None:
            self._pump.add(self.player)
            self.player.listener = self._heard
        self._handle: DisplayHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = contextvars.copy_context()
        self._watch = PageWatch()
        self._ticks = 0
        self._began = time.monotonic()
        self._shown = threading.Lock()  # taken once, by whoever replaces the player
        self._left_behind = False
        self._take: Take | None = None

    # ---- what one does with it ---------------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> Take:
        """Wait until everything is made (it may still be playing then) and the file of `save` is complete.

        Returns what was made, after `timeout` seconds as far as it is.
        Raises what the producer raised, and StreamError if nothing was made. An interrupt stops everything.
        """
        try:
            self._pump.wait(timeout)
        finally:
            self._leave_behind()
        return self.take

    def stop(self) -> bool:
        """End it: silence, the work behind it, its threads. Returns False if the producer does not come out of its own
        code within a second; it is then left to itself and its thread ends with it."""
        gone = self._pump.stop()
        self._leave_behind()
        return gone

    def pause(self) -> None:
        """Stand still; the work goes on until it is `ahead`."""
        self._pump.pause()

    def resume(self) -> None:
        """Go on."""
        self._pump.resume()

    async def played(self) -> Take:
        """For a cell that says `await playing.played()`: until it was heard to its end, or stopped."""
        while self._pump.alive:
            await asyncio.sleep(0.1)
        return self.wait()

    def save(self, path: str | Path, options: EncodeOptions | None = None) -> Path:
        """Write what was made so far; see `Take.save`."""
        return self.take.save(path, options)

    @property
    def take(self) -> Take:
        """What was made so far. Raises StreamError before the first sound."""
        if self._pump.take is None:
            raise StreamError(f"nothing is made ({self.state})", "Wait for the first sound: playing.wait().")
        if self._take is None:
            self._take = Take(self._pump.take, self.title, self._pump.gaps, self._pump.stats)
        return self._take

    @property
    def state(self) -> str:
        """See `StreamStats.state`."""
        return self._pump.state

    @property
    def error(self) -> BaseException | None:
        """What the producer raised."""
        return self._pump.error

    def stats(self) -> StreamStats:
        """Figures of this moment."""
        return self._pump.stats()

    def __repr__(self) -> str:
        return f"{self.title}: {self.stats()}" if self.title else str(self.stats())

    # ---- while it plays ----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        try:
            self._loop = asyncio.get_running_loop() if _in_kernel() else None
        except RuntimeError:
            self._loop = None
        if self.player is not None and self.player is not self.options.player:
            data, metadata = _view(self.player)
            self._handle = display(data, metadata=metadata, raw=True, display_id=True)
        self._began = time.monotonic()
        self._pump.start()
        if self._loop is not None and self.player is not None:
            self._beat()

    def _beat(self) -> None:
        """Runs on the kernel's main loop, so its own coming is the proof that messages could have come too."""
        if not self._pump.alive:
            return
        expected = self._pump.playing_now and self.player.feedback().state == "playing"
        if self._watch.stamp(time.monotonic(), expected):
            self._pump.stop("page closed", timeout=0.0)
        else:
            self._loop.call_later(STAMP_SECONDS, self._beat)

    def _heard(self, command: str) -> None:
        """The page said something; on whatever thread the kernel handles messages."""
        if command == "stop":
            self._pump.stop(timeout=0.0)
        elif command == "pause":
            self._pump.pause()
        elif command == "resume":
            self._pump.resume()
        elif command == "bye":
            self._farewell()
        elif command == "save" and self.options.on_save is not None and self._pump.take is not None:
            self.options.on_save(self.take)
        elif command == "news":
            self._follow_page()

    def _farewell(self) -> None:
        if self._loop is None:
            self._pump.stop("page closed", timeout=0.0)
        else:  # another page may show the same player
            self._watch.bye(time.monotonic())

    def _follow_page(self) -> None:
        news = self.player.feedback()
        if news.ticks != self._ticks:
            self._ticks = news.ticks
            if news.state != "stopped":  # what a page says while it goes away is no sign of life
                self._watch.tick(time.monotonic())
        waited = time.monotonic() - self._began > STARTS_WITHIN
        self._pump.hold(news.state == "suspended" and waited)
        self._pump.nudge()

    # ---- what stays --------------------------------------------------------------------------------------------------

    def _ended(self) -> None:
        """Called by the sending thread at the very end. Outputs are for the main thread, as soon as it is free."""
        _playing.discard(self)
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._settle, context=self._context)
        except RuntimeError:
            return  # the loop is closed: the kernel is going down

    def _settle(self) -> None:
        self._leave_behind()
        if self.options.on_end is not None:
            self.options.on_end(self)

    def _leave_behind(self) -> None:
        """Put the take where the player is; beside the player, for those who cannot show widgets, while it plays on."""
        if self._handle is None or threading.current_thread() is not threading.main_thread():
            return
        if self._pump.alive:
            if self._pump.all_made and not self._left_behind and not in_colab():
                self._left_behind = True
                data, metadata = _view(self.player)
                self._handle.update({**data, **self._remains()}, metadata=metadata, raw=True)
            return
        if self._shown.acquire(blocking=False):
            self._handle.update(self._remains(), raw=True)
            self.player.close()

    def _remains(self) -> dict[str, str]:
        """The take as outputs know it."""
        error = self._pump.error
        words = f"{type(error).__name__}: {error}" if error is not None else ""
        alert = f'<div role="alert" style="color:#b00020">{html.escape(words)}</div>' if words else ""
        if self._pump.take is None:
            what = f"{self.title or 'Playing'}: {self.state} before the first sound"
            return {"text/html": f"<div>{html.escape(what)}</div>{alert}", "text/plain": f"{what} {words}".strip()}
        take = self.take
        return {"text/html": take._repr_html_() + alert, "text/plain": f"{take!r} {words}".strip()}


def _view(player: LivePlayer) -> tuple[dict, dict]:
    """The player as data and metadata of an output; on Colab the metadata names the widget manager to load."""
    bundle = player._repr_mimebundle_()
    data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
    return {"text/plain": "a live player, which needs a running kernel", **_only_view(data)}, metadata


def _only_view(data: dict) -> dict:
    return {WIDGET_VIEW: data[WIDGET_VIEW]}


def _in_kernel() -> bool:
    return getattr(get_ipython(), "kernel", None) is not None


@atexit.register
def _stop_all() -> None:
    """Half-written files go; threads are daemons, and what they are in the middle of is cut off."""
    for playing in list(_playing):
        playing._pump.stop(timeout=EXIT_SECONDS)
