"""The report of a benchmark as a picture: where the time of each clip goes, per second of sound.

A bar per clip, device and precision, one colour per stage, and a line where conversion is as fast as the sound plays.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from rvc_spark.errors import BenchmarkError
from rvc_spark.widgets.plots import THEMES, dress

# Okabe and Ito's palette (2008): apart in every common form of colour blindness, and in lightness
COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#999999")
BAR_INCHES, MARGIN_INCHES, WIDTH_INCHES = 0.32, 1.6, 9.0


def speed_figure(report: dict[str, Any], theme: str = "light") -> Figure:
    """Bars of a report of `run_benchmark`. Raises BenchmarkError for a report without clips."""
    rows = report.get("rows", [])
    if not rows:
        raise BenchmarkError("the report has no clips to draw", "Measure at least one clip.")
    look = THEMES[theme]
    figure = Figure(figsize=(WIDTH_INCHES, MARGIN_INCHES + BAR_INCHES * len(rows)), layout="constrained")
    figure.set_facecolor(look.paper)
    axes = figure.add_subplot()
    dress(axes, look)
    for at, row in enumerate(rows):
        left = 0.0
        scale = row["warm_seconds"] / max(sum(row["stages"].values()), 1e-9) / row["seconds"]
        for (stage, seconds), colour in zip(row["stages"].items(), COLOURS, strict=False):
            label = stage if at == 0 else None
            axes.barh(at, seconds * scale, left=left, height=0.7, color=colour, edgecolor=look.paper, label=label)
            left += seconds * scale
        first = (row["load_seconds"] + row["first_seconds"]) / row["seconds"]
        words = f" {left:.2f} (first with loading: {first:.2f})"
        axes.text(left, at, words, va="center", fontsize=8, color=look.ink)
    axes.axvline(1.0, color=look.ink, linewidth=0.8, linestyle="--")
    names = [f"{row['device']} {row['precision']} {row['f0_method']}, {row['seconds']:g} s" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlabel("seconds of work per second of sound; left of the dashed line is faster than real time")
    axes.xaxis.label.set_color(look.ink)
    axes.xaxis.label.set_size(8)
    axes.margins(x=0.3)
    axes.set_xlim(left=0)
    about = report["machine"]
    title = f"{about['gpu'] or about['processor']}, {about['threads']} threads, load {about['load']}"
    axes.set_title(title[:110], color=look.ink, fontsize=9, loc="left")
    axes.legend(
        ncols=6, fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.25 / (0.3 + 0.1 * len(rows))),
        labelcolor=look.ink,
    )  # fmt: skip
    return figure
