"""The live player of a cell: packets go to the page as binary messages, and nothing of them is kept in the notebook.

    player = LivePlayer()            on the main thread, like every widget
    Pump(chunks, [player]).start()   packets may come from any thread

What the page answers is news and nothing more: it comes late or never while a cell runs. `play` puts both together.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Callable
from typing import Any

import anywidget
import numpy as np
import traitlets

from rvc_spark.audio_encode import Quantiser
from rvc_spark.errors import StreamError
from rvc_spark.streaming.page_source import packed_module, player_style
from rvc_spark.streaming.sinks import Feedback, Packet, RunInfo, Words
from rvc_spark.widgets.live_columns import BANDS, HOP_SECONDS, LiveColumns, warm_up

FORMATS = ("auto", "f32", "i16")
REPEAT_AFTER = (0.25, 0.8, 2.0)  # seconds after the first packet, while no page has answered
KEPT_PACKETS = 300  # of the beginning; more at once than a kernel's publisher is sure to deliver
NO_COLUMNS = (np.zeros((0, BANDS), np.uint8), np.zeros(0, np.float32))
COMMANDS = ("stop", "pause", "resume", "save", "bye")


def in_colab() -> bool:
    """Whether this kernel is one of Colab's, where the page is far away and widgets need a manager of their own."""
    return "google.colab" in sys.modules


class LivePlayer(anywidget.AnyWidget):
    """A widget that plays what is sent to it; a sink for `Pump`. One player takes any number of runs, one at a time.

    Attributes:
        spectrogram: whether mel columns and f0 are computed and sent; True costs 1.5 % of a core while playing.
        format: "f32" (every bit as it is), "i16" (half the bytes, with triangular dither), or "auto": i16 on Colab,
            where the page is far away, else f32.
        capture: the page keeps what it played, for tests.
        listener: called with "stop", "pause", "resume", "save" or "bye" when a person, or the end of a page, says so;
            "news" for any other answer. On whatever thread the kernel handles messages.
    """

    _esm = packed_module()
    _css = player_style()
    key = traitlets.Unicode().tag(sync=True)  # the page's name for it
    paced = True

    def __init__(
        self, *, spectrogram: bool = True, format: str = "auto", capture: bool = False,
        listener: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        """Raises StreamError (an unknown format)."""
        if format not in FORMATS:
            raise StreamError(f"packets cannot be sent as {format!r}", f"Choose one of: {', '.join(FORMATS)}.")
        self.spectrogram = spectrogram
        self.format = ("i16" if in_colab() else "f32") if format == "auto" else format
        self.capture = capture
        self.listener = listener
        self.run = 0
        self._news = Feedback()
        self._answered = False
        self._opening: dict | None = None
        self._last: dict[str, dict] = {}  # what a page that comes late has to be told besides the sound, by kind
        self._rate = 1
        super().__init__(key=secrets.token_hex(8))  # on Colab this also enables the custom widget manager, once
        self.on_msg(self._heard)

    # ---- a sink ------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Praat loads in a tenth of a second, which the first packet need not wait for."""
        if self.spectrogram:
            warm_up()

    def begin(self, info: RunInfo) -> None:
        """A new run; the page forgets the one before."""
        self.run += 1
        self._news = Feedback()
        self._columns = LiveColumns(info.rate) if self.spectrogram else None
        self._quantise = Quantiser(16, dither=True, seed=self.run) if self.format == "i16" else None
        self._opening = {
            "t": "open", "run": self.run, "key": self.key, "rate": info.rate, "channels": info.channels,
            "lead": info.lead, "prebuffer": info.prebuffer, "title": info.title, "capture": self.capture,
            "bands": BANDS if self._columns else 0, "hop": HOP_SECONDS * info.rate,
            "top_hz": self._columns.top_hz if self._columns else 0.0,
        }  # fmt: skip
        self._rate = info.rate
        self._sent = (0, 0)
        self._kept: list[tuple[dict, list[bytes]]] = []
        self._repeat_at = [time.monotonic() + seconds for seconds in REPEAT_AFTER]
        self._answered = False
        self._last = {}
        self.send(self._opening)

    def packet(self, packet: Packet) -> None:
        """Send it, with the columns of the picture that are ready."""
        mel, f0 = self._columns.push(packet.samples, packet.last) if self._columns else NO_COLUMNS
        if self._quantise is None:
            pcm = np.ascontiguousarray(packet.samples, "<f4")
        else:
            pcm = self._quantise(packet.samples).astype("<i2")
        message = {
            "t": "pcm", "run": self.run, "seq": packet.seq, "start": packet.start, "n": len(packet.samples),
            "fmt": self.format, "at": round(time.time() * 1000), "cols": len(f0),
        }  # fmt: skip
        buffers = [pcm.tobytes()] + ([mel.tobytes(), f0.astype("<f4").tobytes()] if len(f0) else [])
        self._sent = (packet.seq + 1, packet.start + len(packet.samples))
        self.send(message, buffers)
        self._keep(message, buffers)

    def words(self, words: Words) -> None:
        """Show them beside the sound; before the first run there is nobody to show them."""
        if self._opening is None:
            return
        progress = {"made": words.made, "total": words.total}
        self._say("words", status=words.status, progress=progress, gaps=list(words.gaps))

    def pause(self) -> None:
        """Let the page stand still."""
        self._say("pause")

    def resume(self) -> None:
        """Let it go on."""
        self._say("resume")

    def end(self, complete: bool) -> None:
        """Let it play to its end."""
        packets, frames = self._sent
        self._say("end", count=packets, frames=frames)

    def stop(self) -> None:
        """Let it fade out."""
        self._say("stop")

    def feedback(self) -> Feedback:
        """The last news of this run."""
        return self._news

    async def ready(self, timeout: float = 10.0) -> bool:
        """Wait, in a cell that says `await player.ready()`, until a page shows this player. False: none did so."""
        end = time.monotonic() + timeout
        while not self._news.mode and time.monotonic() < end:
            await asyncio.sleep(0.05)
        return bool(self._news.mode)

    # ---- between Python and the page ---------------------------------------------------------------------------------

    def _say(self, kind: str, **content: Any) -> None:
        message = {"t": kind, "run": self.run, **content}
        if kind == "resume":
            self._last.pop("pause", None)
        else:
            self._last[kind] = message
        self.send(message)

    def _keep(self, message: dict, buffers: list[bytes]) -> None:
        """A page that is not there yet loses what is sent, so the beginning is sent again until one answers; a page
        that had it knows the numbers and drops it."""
        if self._answered:
            self._kept = []
            return
        if len(self._kept) < KEPT_PACKETS:
            self._kept.append((message, buffers))
        if self._repeat_at and time.monotonic() >= self._repeat_at[0]:
            self._repeat_at.pop(0)
            self._send_again()

    def _send_again(self) -> None:
        self.send(self._opening)
        for message, buffers in list(self._kept):
            self.send(message, buffers)
        for message in list(self._last.values()):
            self.send(message)

    def _heard(self, _: Any, content: Any, buffers: Any) -> None:
        """A message of the page. It comes from outside, so nothing in it is taken for granted."""
        if not isinstance(content, dict):
            return
        kind = content.get("t")
        if kind == "ready" and content.get("state") == "unopened" and self._opening is not None:
            self._send_again()  # it was shown after the run began
            return
        if content.get("run") not in (None, self.run):
            return  # of a run that is over
        if kind in ("ready", "tick", "ended"):
            self._note(kind, content)
        if self.listener is not None and kind in (*COMMANDS, "ready", "tick", "ended"):
            self.listener(kind if kind in COMMANDS else "news")

    def _note(self, kind: str, content: dict) -> None:
        before = self._news
        mode = content.get("mode") if kind == "ready" else before.mode
        self._answered = self._answered or self._opening is not None
        self._news = Feedback(
            mode=str(mode or "")[:20],
            state=str(content.get("state", before.state))[:20],
            played=_number(content, "played", before.played * self._rate) / self._rate,
            buffered=_number(content, "buffered", before.buffered * self._rate) / self._rate,
            underruns=int(_number(content, "underruns", before.underruns)),
            lost=int(_number(content, "lost", before.lost)),
            ticks=before.ticks + (kind == "tick"),
            ended=before.ended or kind == "ended",
        )


def _number(content: dict, name: str, default: float) -> float:
    value = content.get(name)
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15
    return float(value if good else default)
