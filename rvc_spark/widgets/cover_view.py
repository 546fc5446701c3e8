"""A cover in a cell: its stages as a table and as pictures, and two of its sounds side by side at one loudness.

It knows covers as what they tell of themselves; nothing here makes one.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from rvc_spark.audio import Audio
from rvc_spark.errors import ConfigError
from rvc_spark.widgets.plots import THEMES, TOP_HZ, Picture, draw_mel, draw_wave, dress, one_line, show_figure
from rvc_spark.widgets.sound import MAX_BYTES, SoundPlayer, show_audio
from rvc_spark.widgets.studio_match import match_loudness, with_gain
from rvc_spark.widgets.tables import Table

if TYPE_CHECKING:
    from rvc_spark.covers.cover_run import StageRow
    from rvc_spark.covers.song_cover import Cover

STAGES = {  # stem of a cover -> what it is called in the picture
    "vocals": "vocals", "lead": "lead", "converted": "converted", "voice": "gate, effects", "backing": "backing",
    "accompaniment": "band", "band": "band in key",
}  # fmt: skip
# A switch without a script of its own: whoever plays takes over where the other one is, and the other one stops.
_TAKE_OVER = (
    "for (const other of this.closest('figure').parentElement.querySelectorAll('audio'))"
    " if (other !== this) { if (!other.paused) this.currentTime = other.currentTime; other.pause(); }"
)


def show_stages(rows: Sequence[StageRow], caption: str = "") -> Table:
    """The stages of a cover (`cover.stages`) or of what would be made (`explain_cover`)."""
    marks = {"made": "✓ made", "kept": "= kept", "skipped": "– skipped", "to be made": "… to be made"}
    told = tuple(
        (row.name, marks.get(row.state, row.state), f"{row.seconds:.2f} s" if row.state == "made" else "", row.reason)
        for row in rows
    )
    return Table(("stage", "state", "work", "why"), told, caption)


def cover_figure(sounds: dict[str, Audio], *, title: str | None = None, theme: str = "light") -> Figure:
    """Waveform and mel spectrogram of every sound, one below the other on one time axis.

    Raises ConfigError: unknown theme, or nothing to draw.
    """
    if theme not in THEMES:
        raise ConfigError(f"there is no theme {theme!r}", f"The themes are: {', '.join(THEMES)}.")
    if not sounds:
        raise ConfigError("there is no sound to draw", "Give at least one.")
    look = THEMES[theme]
    heights = [0.6, 1.3] * len(sounds)
    figure = Figure(figsize=(10.0, 1.2 * sum(heights) + 0.6), dpi=80, layout="constrained", facecolor=look.paper)
    rows = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    for place, (name, sound) in enumerate(sounds.items()):
        samples = sound.mono().samples
        colour = look.result if place % 2 else look.source
        draw_wave(rows[2 * place], samples, sound.rate, one_line(name), colour)
        draw_mel(rows[2 * place + 1], samples, sound.rate, min(TOP_HZ, sound.rate / 2), look)
    rows[0].set_xlim(0.0, max(sound.seconds for sound in sounds.values()))
    rows[-1].set_xlabel("time in seconds", color=look.ink)
    for axes in rows:
        dress(axes, look)
    if title:
        figure.suptitle(one_line(title), color=look.ink, fontsize=11, parse_math=False)
    return figure


def show_cover(cover: Cover, *, title: str | None = None, theme: str = "light") -> Picture:
    """Every stage of a cover that is a sound of its own, and the mix, as a picture for a cell."""
    sounds: dict[str, Audio] = {}
    seen = set()
    for name, words in STAGES.items():
        path = cover.stems.get(name)
        if path is not None and path not in seen:  # where nothing was split, lead and vocals are one
            seen.add(path)
            sounds[words] = cover.stem(name)
    sounds["mix"] = cover.audio
    told = ", ".join(f"{name} ({sound.seconds:.1f} s)" for name, sound in sounds.items())
    return show_figure(
        cover_figure(sounds, title=title, theme=theme), f"Waveform and mel spectrogram of {told}, from top to bottom."
    )


@dataclass(frozen=True)
class ABPlayer:
    """Two or more sounds at one loudness; playing one goes on where the other was, and stops it."""

    players: tuple[SoundPlayer, ...]
    note: str

    def _repr_html_(self) -> str:
        shown = "".join(player._repr_html_() for player in self.players)
        shown = shown.replace("<audio ", f'<audio onplay="{html.escape(_TAKE_OVER)}" ')
        return f'<div>{shown}<div style="font:0.8em sans-serif;opacity:0.75">{html.escape(self.note)}</div></div>'

    def __repr__(self) -> str:
        return "; ".join([*map(repr, self.players), self.note])


def compare_sounds(**sounds: Audio) -> ABPlayer:
    """A player for two or more sounds at matched loudness: `compare_sounds(original=..., cover=...)`.

    Raises ConfigError for less than two or more than six.
    """
    if not 2 <= len(sounds) <= 6:
        raise ConfigError(f"{len(sounds)} sounds cannot be compared", "Give two to six, by name.")
    match = match_loudness(*sounds.values())
    room = MAX_BYTES // len(sounds)  # all of them stand in one output
    players = tuple(
        show_audio(with_gain(sound, gain), name.replace("_", " "), max_bytes=room)
        for (name, sound), gain in zip(sounds.items(), match.gains, strict=True)
    )
    return ABPlayer(players, match.words(tuple(sounds)))
