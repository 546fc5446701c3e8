"""Source and result side by side: two small mel spectrograms on one scale, with the f0 drawn into them.

Small and quick, because it appears after every sentence: no layout solver, few columns, a transparent ground that
suits light and dark pages. `show_conversion` draws the large one.
"""

from __future__ import annotations

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rvc_spark.audio import Audio
from rvc_spark.infer.mel import hz_to_mel
from rvc_spark.infer.pitch_trackers import pm_f0
from rvc_spark.widgets.plots import Picture, show_figure
from rvc_spark.widgets.spectrogram import FLOOR_DB, f0_line, mel_picture

TOP_HZ = 8_000.0
TICKS = (200, 1000, 2000, 4000, 8000)  # Hz
COLUMNS, BANDS = 360, 72
INK = "#808890"  # a grey that can be read on white and on black
F0 = "#7df9ff"
SEEN_SECONDS = 30.0  # a longer sound is drawn by its beginning: a sentence would be a few columns wide
PITCH_RATE = 16_000  # Hz; what the tracker expects


def pair_picture(source: Audio, result: Audio) -> Picture:
    """Both sounds as one PNG with a description in words; about 0.2 s of work, in any thread."""
    span = min(SEEN_SECONDS, max(source.seconds, result.seconds))
    figure = Figure(figsize=(4.95, 1.31), dpi=200, facecolor="none")
    figure.subplots_adjust(left=0.075, right=0.995, bottom=0.17, top=0.86, wspace=0.06)
    axes = figure.subplots(1, 2, sharey=True)
    words = []
    for place, (name, sound) in zip(axes, (("source", source), ("result", result)), strict=True):
        median = _draw(place, sound, span)
        pitch = f", median f0 {median:.0f} Hz" if median else ""
        place.set_title(f"{name}{pitch}", fontsize=7.5, color=INK, loc="left", pad=3)
        words.append(f"{name}: {sound.seconds:.2f} s{pitch}")
    names = [f"{hz / 1000:g}k" if hz >= 1000 else f"{hz}" for hz in TICKS]
    axes[0].set_yticks([float(hz_to_mel(hz)) for hz in TICKS], names)
    return show_figure(figure, f"Mel spectrograms with f0; {'; '.join(words)}.")


def _draw(axes: Axes, sound: Audio, span: float) -> float | None:
    """One spectrogram with its f0; the median f0 in Hz, None where nothing is voiced."""
    samples = sound.mono().samples[: round(span * sound.rate)]
    picture = mel_picture(samples, sound.rate, top_hz=TOP_HZ, columns=COLUMNS, bands=BANDS)
    width = picture.levels.shape[1] * picture.step
    axes.set_facecolor("#000004")  # the lowest level of the colour map, so that the shorter sound ends in silence
    axes.imshow(
        picture.levels, origin="lower", aspect="auto", cmap="inferno", vmin=FLOOR_DB, vmax=0.0,
        extent=(0.0, width, 0.0, picture.top_mel), interpolation="nearest",
    )  # fmt: skip
    f0 = _contour(samples, sound.rate)
    edge = [patheffects.Stroke(linewidth=2.6, foreground="#000004"), patheffects.Normal()]
    times, hz = f0_line(f0)
    axes.plot(times, hz_to_mel(hz), color=F0, linewidth=1.3, path_effects=edge)
    axes.set_xlim(0.0, span)
    axes.set_ylim(0.0, picture.top_mel)
    axes.tick_params(colors=INK, labelsize=6.5, length=2, pad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
    voiced = f0[f0 > 0]
    return float(np.median(voiced)) if len(voiced) else None


def _contour(samples: np.ndarray, rate: int) -> np.ndarray:
    """f0 in Hz per 10 ms by Praat's method, the quickest of all."""
    return pm_f0(Audio(samples, rate).resampled(PITCH_RATE).samples.astype(np.float64))
