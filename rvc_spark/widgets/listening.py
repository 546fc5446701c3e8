"""A stream of speech, listened to while it is being made: what came when, and whether a player would have had to wait.

    pieces, why = stream_speech("Good morning.")
    heard = show_stream(pieces)         # pulls; a line in the cell tells how far it is
    heard                               # player and picture

Sound that plays while it comes is another matter: here everything is kept, and can be listened to afterwards.
"""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from matplotlib.figure import Figure

from rvc_spark.audio import Audio
from rvc_spark.errors import AudioError, ConfigError
from rvc_spark.widgets.plots import THEMES, Picture, dress, one_line, show_figure
from rvc_spark.widgets.progress import ProgressLine
from rvc_spark.widgets.sound import show_audio

MAX_PIECES = 100_000  # of a stream that is kept; a day of speech in pieces of a second
MARKED_PIECES = 60  # more marks in the picture would cover one another


@dataclass(frozen=True)
class Heard:
    """A stream that was pulled to its end.

    audio: all pieces joined. times: when each was there, in seconds after the first was asked for. lengths: seconds of
    sound in each. title: said with the player.
    """

    audio: Audio
    times: tuple[float, ...]
    lengths: tuple[float, ...]
    title: str = ""

    @property
    def first_seconds(self) -> float:
        """How long it took until something could be heard."""
        return self.times[0]

    @property
    def elapsed(self) -> float:
        """How long it took until everything was there."""
        return self.times[-1]

    @property
    def real_time_factor(self) -> float:
        """Time taken per second of sound; below 1 is faster than speaking."""
        return self.elapsed / self.audio.seconds

    @property
    def starts(self) -> tuple[float, ...]:
        """When a player that begins at once plays each piece: when the one before ends, or when it comes."""
        played, free = [], 0.0
        for came, length in zip(self.times, self.lengths, strict=True):
            played.append(max(came, free))
            free = played[-1] + length
        return tuple(played)

    @property
    def waiting_seconds(self) -> float:
        """Silence that such a player would have had to insert."""
        return self.starts[-1] - self.times[0] - sum(self.lengths[:-1])

    def picture(self, theme: str = "light") -> Picture:
        """Sound that is there and sound that is played, over time."""
        return show_figure(stream_figure(self, theme=theme), f"Sound made and played over time; {self}.")

    def __repr__(self) -> str:
        count = f"{len(self.times)} piece{'s' if len(self.times) != 1 else ''}"
        waits = f", {self.waiting_seconds:.2f} s of waiting in between" if self.waiting_seconds > 0.005 else ""
        return (
            f"{count}, {self.audio.seconds:.2f} s of sound, the first after {self.first_seconds:.2f} s, all after "
            f"{self.elapsed:.2f} s{waits}; real-time factor {self.real_time_factor:.2g}"
        )

    def _repr_html_(self) -> str:
        picture = self.picture()
        address = base64.b64encode(picture.png).decode("ascii")
        words = html.escape(picture.description)
        return (
            f"{show_audio(self.audio, self.title)._repr_html_()}"
            f'<img alt="{words}" style="width:100%;max-width:50em" src="data:image/png;base64,{address}">'
        )


def listen(
    pieces: Iterable[Audio], *, title: str = "", on_piece: Callable[[float, float], None] | None = None
) -> Heard:
    """Pull a stream to its end and keep what came and when. It is closed in every case, so the work behind it ends.

    on_piece: told the seconds that went by and the seconds of sound that are there, after every piece.

    Raises what the stream raises; AudioError: it holds nothing, more than MAX_PIECES, or pieces of several rates.
    """
    kept: list[Audio] = []
    times: list[float] = []
    known = 0.0
    began = time.perf_counter()
    try:
        for piece in pieces:
            times.append(time.perf_counter() - began)
            kept.append(piece.mono())
            known += piece.seconds
            if piece.rate != kept[0].rate or len(kept) > MAX_PIECES:
                raise AudioError(
                    f"piece {len(kept)} has {piece.rate} Hz, the first has {kept[0].rate} Hz"
                    if piece.rate != kept[0].rate else f"the stream has more than {MAX_PIECES:,} pieces",
                    "Give the stream of one engine.",
                )  # fmt: skip
            if on_piece is not None:
                on_piece(times[-1], known)
    finally:
        if close := getattr(pieces, "close", None):
            close()
    if not kept:
        raise AudioError("the stream holds no sound", "A stream can be pulled once; ask for another.")
    joined = Audio(np.concatenate([piece.samples for piece in kept]), kept[0].rate)
    return Heard(joined, tuple(times), tuple(piece.seconds for piece in kept), title)


def show_stream(pieces: Iterable[Audio], title: str = "") -> Heard:
    """Listen to a stream; a line in the cell counts along. The result shows itself as a player with a picture.

    Raises what `listen` raises.
    """
    line = ProgressLine()
    line.say("waiting for the first sound …")
    heard = listen(
        pieces, title=title, on_piece=lambda passed, sound: line.say(f"{sound:.2f} s of sound after {passed:.2f} s")
    )
    line.say(str(heard))
    return heard


def stream_figure(heard: Heard, *, theme: str = "light") -> Figure:
    """Draw how much sound is there (steps) and how much of it is played (a line rising 1 s per second).

         sound |        ┌────────  made
               |     ┌──┘    ／
               |     │    ／───    flat where the player has to wait
               |  ┌──┘ ／
               └────────────────── time

    Raises ConfigError (unknown theme).
    """
    if theme not in THEMES:
        raise ConfigError(f"there is no theme {theme!r}", f"The themes are: {', '.join(THEMES)}.")
    look = THEMES[theme]
    figure = Figure(figsize=(8.0, 2.9), dpi=100, layout="constrained", facecolor=look.paper)
    axes = figure.subplots()
    made = [0.0, *accumulate(heard.lengths)]
    played = _played(heard)
    end = played[0][-1]
    grid = np.linspace(heard.times[0], end, 800)
    there = np.asarray(made)[np.searchsorted(heard.times, grid, side="right")]
    axes.fill_between(
        grid, np.interp(grid, *played), there, color=look.result, alpha=0.15, linewidth=0, label="waiting to be played"
    )
    axes.step(
        [0.0, *heard.times, end], [*made, made[-1]], where="post", color=look.result, linewidth=2.0,
        label=f"made: all after {heard.elapsed:.2f} s",
    )  # fmt: skip
    axes.plot(
        *played, color=look.source, linewidth=2.0, linestyle="--",
        label=f"played: from {heard.first_seconds:.2f} s on",
    )  # fmt: skip
    if len(heard.times) <= MARKED_PIECES:
        axes.plot(heard.times, made[1:], "o", color=look.result, markersize=5)
    axes.set_xlim(0.0, 1.02 * end)
    axes.set_ylim(0.0, 1.12 * made[-1])
    axes.set_xlabel("seconds since it was asked for", color=look.ink)
    axes.set_ylabel("seconds of sound", color=look.ink)
    dress(axes, look)
    axes.legend(loc="lower right", fontsize=8, framealpha=0.85, facecolor=look.paper, edgecolor=look.grid,
                labelcolor=look.ink)  # fmt: skip
    if heard.title:
        axes.set_title(one_line(heard.title), loc="left", fontsize=10, color=look.ink, parse_math=False)
    return figure


def _played(heard: Heard) -> tuple[list[float], list[float]]:
    """Corners of the line of what a player has played: times and seconds of sound."""
    times: list[float] = []
    levels: list[float] = []
    level = 0.0
    for start, length in zip(heard.starts, heard.lengths, strict=True):
        times += [start, start + length]
        levels += [level, level + length]
        level += length
    return times, levels
