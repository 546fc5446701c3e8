"""A conversion as a picture: waveform and mel spectrogram of source and result, with the f0 drawn into both.

Figures are plain matplotlib `Figure` objects: no pyplot, no global state, no window, so they work in any thread and on
any machine. It knows sounds and pitch contours, not how they were made.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rvc_spark.audio import Audio
from rvc_spark.errors import ConfigError, OutputError, PitchError
from rvc_spark.infer.mel import hz_to_mel
from rvc_spark.widgets.spectrogram import FLOOR_DB, f0_line, mel_picture, outline

if TYPE_CHECKING:  # a figure of two sounds needs no networks
    from rvc_spark.conversion import Conversion

TOP_HZ = 12_000.0  # hardly anything of a voice lies above, and the voice band keeps most of the height
FREQUENCY_TICKS = (0, 200, 500, 1000, 2000, 4000, 8000, 12000)  # Hz
PITCH_TICKS = (50, 70, 100, 150, 200, 300, 400, 600, 800, 1100)  # Hz
TITLE_LETTERS = 110
FORMATS = ("png", "svg", "pdf", "jpg", "webp")


@dataclass(frozen=True)
class Theme:
    """Colours of a figure. Source and result are told apart by lightness and dash too, not by hue alone."""

    paper: str
    ink: str
    grid: str
    levels: str  # colour map of the spectrogram; grey, so that the coloured f0 lines stand out
    source: str
    result: str


# Orange and blue of Okabe and Ito's palette (2008), which stay apart in every common form of colour blindness.
THEMES = {
    "light": Theme("#ffffff", "#1b1b1b", "#d5d5d5", "Greys", "#d55e00", "#0072b2"),
    "dark": Theme("#15171a", "#e8e8e8", "#3a3d42", "gray", "#e69f00", "#56b4e9"),
}


@dataclass(frozen=True)
class Picture:
    """A PNG that shows itself in a notebook; its text form says what is to be seen, for those who cannot see it."""

    png: bytes
    description: str

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:
        return self.description


def conversion_figure(
    source: Audio,
    result: Audio,
    *,
    source_f0: np.ndarray | None = None,
    result_f0: np.ndarray | None = None,
    title: str | None = None,
    theme: str = "light",
) -> Figure:
    """Draw source and result on one time axis: waveforms, mel spectrograms with their f0, and both f0 lines together.

    Args:
        source, result: any length and rate; stereo is mixed down, long sounds are thinned to what a screen can show.
        source_f0, result_f0: float [F], Hz per 10 ms, 0 where unvoiced; left out of the picture when None.
        title: plain text; dollar signs are dollar signs.
        theme: "light" or "dark".

    Raises ConfigError (unknown theme), PitchError (an f0 that is not one row of numbers).
    """
    if theme not in THEMES:
        raise ConfigError(f"there is no theme {theme!r}", f"The themes are: {', '.join(THEMES)}.")
    look = THEMES[theme]
    contours = [_checked_f0(f0, name) for f0, name in ((source_f0, "source_f0"), (result_f0, "result_f0"))]
    pitched = any(contour is not None and np.isfinite(contour[1]).any() for contour in contours)
    heights = [0.8, 2.0, 0.8, 2.0] + ([1.1] if pitched else [])
    figure = Figure(figsize=(10.0, 1.35 * sum(heights) + 0.6), dpi=100, layout="constrained", facecolor=look.paper)
    rows = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    top_hz = min(TOP_HZ, max(source.rate, result.rate) / 2)
    parts = (("source", source, look.source, "--"), ("result", result, look.result, "-"))
    for index, (name, sound, colour, _) in enumerate(parts):
        samples = sound.mono().samples
        wave, mel = rows[2 * index], rows[2 * index + 1]
        draw_wave(wave, samples, sound.rate, name, colour)
        image = draw_mel(mel, samples, sound.rate, top_hz, look)
        if contours[index] is not None:
            _draw_f0(mel, *contours[index], colour, look)
    if pitched:
        _draw_pitches(rows[-1], contours, parts, look)
    rows[0].set_xlim(0.0, max(source.seconds, result.seconds))
    rows[-1].set_xlabel("time in seconds", color=look.ink)
    for axes in rows:
        dress(axes, look)
    bar = figure.colorbar(image, ax=[rows[1], rows[3]], pad=0.01, aspect=40)
    bar.set_label("level in dB", color=look.ink, fontsize=8)
    bar.ax.tick_params(colors=look.ink, labelsize=8)
    if title:
        figure.suptitle(one_line(title), color=look.ink, fontsize=11, parse_math=False)
    return figure


def _checked_f0(f0: np.ndarray | None, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    if f0 is None:
        return None
    try:
        values = np.asarray(f0, np.float64)
    except (TypeError, ValueError) as error:
        raise PitchError(f"{name} is not a row of numbers ({error})", "Give Hz per 10 ms, 0 where unvoiced.") from error
    if values.ndim != 1:
        raise PitchError(f"{name} has the shape {values.shape}", "Give one value in Hz per 10 ms: [F].")
    return f0_line(values)


def one_line(text: str) -> str:
    """Printable and short enough for the width of a figure."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * TITLE_LETTERS])
    plain = " ".join(plain.split())
    return plain if len(plain) <= TITLE_LETTERS else plain[: TITLE_LETTERS - 1] + "…"


def draw_wave(axes: Axes, samples: np.ndarray, rate: int, name: str, colour: str) -> None:
    """The outline of a waveform float32 [T] into axes of its own, with its length and rate."""
    times, low, high = outline(samples, rate)
    axes.fill_between(times, low, high, color=colour, linewidth=0.4, step="mid")
    peak = max(1e-3, float(np.abs(samples).max()))
    axes.set_ylim(-1.05 * peak, 1.05 * peak)
    axes.set_yticks([-peak, 0.0, peak], [f"{-peak:.2g}", "0", f"{peak:.2g}"])
    axes.set_ylabel(name, color=colour, fontweight="bold")
    axes.set_title(f"{len(samples) / rate:.2f} s, {rate} Hz", loc="right", fontsize=8, color=colour, pad=2)


def draw_mel(axes: Axes, samples: np.ndarray, rate: int, top_hz: float, look: Theme) -> Any:
    """A mel spectrogram of float32 [T] into axes of its own; returns the image, for a colour bar."""
    picture = mel_picture(samples, rate, top_hz=top_hz)
    width = picture.levels.shape[1] * picture.step
    image = axes.imshow(
        picture.levels, origin="lower", aspect="auto", cmap=look.levels, vmin=FLOOR_DB, vmax=0.0,
        extent=(0.0, width, 0.0, picture.top_mel), interpolation="nearest",
    )  # fmt: skip
    ticks = [hz for hz in FREQUENCY_TICKS if hz <= top_hz]
    axes.set_yticks([float(hz_to_mel(hz)) for hz in ticks], [f"{hz}" for hz in ticks])
    axes.set_ylim(0.0, picture.top_mel)
    axes.set_ylabel("Hz (mel scale)", color=look.ink)
    return image


def _draw_f0(axes: Axes, times: np.ndarray, hz: np.ndarray, colour: str, look: Theme) -> None:
    edge = [patheffects.Stroke(linewidth=4.0, foreground=look.paper), patheffects.Normal()]
    axes.plot(times, hz_to_mel(hz), color=colour, linewidth=2.0, path_effects=edge, label="f0")
    axes.legend(
        loc="upper right", fontsize=8, framealpha=0.85, facecolor=look.paper, edgecolor=look.grid, labelcolor=look.ink
    )


def _draw_pitches(axes: Axes, contours: list, parts: tuple, look: Theme) -> None:
    """Both f0 lines on a logarithmic axis, where the same number of semitones is the same distance everywhere."""
    heard = []
    for contour, (name, _, colour, dash) in zip(contours, parts, strict=True):
        if contour is not None and np.isfinite(contour[1]).any():
            label = f"{name}, median {np.nanmedian(contour[1]):.0f} Hz"
            axes.plot(*contour, color=colour, linewidth=1.6, linestyle=dash, label=label)
            heard.append(contour[1])
    low, high = (float(limit(np.concatenate(heard))) for limit in (np.nanmin, np.nanmax))
    axes.set_yscale("log")
    axes.set_ylim(low / 1.15, high * 1.15)
    ticks = [hz for hz in PITCH_TICKS if low / 1.15 <= hz <= high * 1.15]
    axes.set_yticks(ticks, [f"{hz}" for hz in ticks])
    axes.minorticks_off()
    axes.set_ylabel("f0 in Hz", color=look.ink)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=2, fontsize=8, frameon=False, labelcolor=look.ink)


def dress(axes: Axes, look: Theme) -> None:
    """Give axes the colours of a theme."""
    axes.set_facecolor(look.paper)
    axes.tick_params(colors=look.ink, labelsize=8)
    axes.grid(axis="x", color=look.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color(look.grid)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure; the suffix chooses png, svg, pdf, jpg or webp. It appears under its name only when it is whole.

    Raises OutputError (unknown suffix, a place that cannot be written).
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in FORMATS:
        raise OutputError(f"figure {path.name!r} has no known suffix", f"Use one of: {', '.join(FORMATS)}.")
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(beside, format=kind, facecolor=figure.get_facecolor())
        os.replace(beside, path)
    except (OSError, ValueError) as error:
        beside.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error}", "Name a place that exists and is yours.") from error
    return path


def show_figure(figure: Figure, description: str = "a figure") -> Picture:
    """The figure as a PNG that displays itself as the last line of a cell.

    Args:
        description: what is to be seen, read out by screen readers and shown where pictures are not.
    """
    memory = io.BytesIO()
    figure.savefig(memory, format="png", facecolor=figure.get_facecolor())
    return Picture(memory.getvalue(), description)


def show_conversion(
    source: Audio, conversion: Conversion, *, title: str | None = None, theme: str = "light"
) -> Picture:
    """Source and result of a conversion as a picture for a cell, with a description in words."""
    result = conversion.audio
    figure = conversion_figure(
        source, result, source_f0=conversion.source_f0, result_f0=conversion.result_f0, title=title, theme=theme
    )
    words = [
        f"Waveform and mel spectrogram of the source ({source.seconds:.2f} s) and the result ({result.seconds:.2f} s)"
    ]
    for name, f0 in (("source", conversion.source_f0), ("result", conversion.result_f0)):
        if f0 is not None and np.any(f0 > 0):
            words.append(f"median f0 of the {name} {np.median(f0[f0 > 0]):.0f} Hz")
    return show_figure(figure, "; ".join(words) + ".")
