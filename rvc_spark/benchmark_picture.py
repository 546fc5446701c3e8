"""Draws a report of the benchmark into a file, for the command line, which does not know figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rvc_spark.widgets.plots import save_figure
from rvc_spark.widgets.speed_picture import speed_figure


def draw_report(report: dict[str, Any], path: str | Path) -> Path:
    """Write the picture of a report; the suffix chooses the format. Raises BenchmarkError, OutputError."""
    return save_figure(speed_figure(report), path)
