"""A batch in a notebook: a line that counts along, then what came of it; and the whole report as a page beside it.

    report = show_batch("texts.csv", "results", BatchOptions(voice="demo"))
    report                                # totals, what failed, a few pictures
    report.path                           # results/report.html: everything, to be opened in a browser
"""

from __future__ import annotations

import contextlib
import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rvc_spark.audio import Audio
from rvc_spark.conversion import Conversion
from rvc_spark.errors import AudioError, RvcSparkError
from rvc_spark.jobs.batch import BatchEntry, BatchOptions, BatchRow, run_batch
from rvc_spark.jobs.batch_list import read_batch
from rvc_spark.jobs.batch_measure import read_beginning
from rvc_spark.jobs.batch_report import BatchSummary, flat, summarise, write_tables
from rvc_spark.jobs.batch_store import PICTURES, write_whole
from rvc_spark.widgets.batch_page import item_figures, picture_tag, plain, report_page
from rvc_spark.widgets.batch_pictures import thumbnail
from rvc_spark.widgets.progress import ProgressLine
from rvc_spark.widgets.tables import Table

SHOWN_ITEMS, SHOWN_FAILED = 8, 10  # in a cell; the page has them all
SHOWN_BYTES = 120_000  # of pictures in a cell
TABLE_ROWS = 50
MAX_PICTURE_BYTES = 1 << 20  # a file of that name that is larger is not one of ours
FIGURES = {  # of the table: heading -> column and digits
    "seconds": ("seconds", 2), "real-time factor": ("real_time_factor", 2), "LUFS": ("lufs", 1),
    "true peak, dB": ("true_peak_dbtp", 1), "f0 of the source, Hz": ("source_f0_hz", 0),
    "f0 of the result, Hz": ("result_f0_hz", 0), "key": ("key", 1), "cents off": ("pitch_error_cents", 1),
}  # fmt: skip


@dataclass(frozen=True)
class BatchReport:
    """What became of a batch. Shows itself in a cell, in less than 200 kB however long the list is."""

    summary: BatchSummary
    folder: Path
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[BatchRow, ...]:
        """Every item, in the order of the list."""
        return self.summary.rows

    @property
    def path(self) -> Path:
        """The page with everything."""
        return self.folder / "report.html"

    def table(self) -> Table:
        """The figures of the first TABLE_ROWS sounds, and what they add up to."""
        lines = [flat(row) for row in self.summary.done[:TABLE_ROWS]]
        rows = tuple(
            (plain_text(line["id"]), *(_told(line[name], digits) for name, digits in FIGURES.values()))
            for line in lines
        )
        return Table(("item", *FIGURES), rows, repr(self.summary))

    def __repr__(self) -> str:
        lines = [repr(self.summary), *self.notes]
        lines += [f"{row.entry.id}: {row.error}" for row in self.summary.failed[:SHOWN_FAILED]]
        return "\n".join([*lines, f"everything: {self.path}"])

    def _repr_html_(self) -> str:
        bad = "color:#c0392b"
        parts = [f"<p><b>{html.escape(repr(self.summary))}</b></p>", *(f"<p>{plain(note)}</p>" for note in self.notes)]
        for row in self.summary.failed[:SHOWN_FAILED]:
            parts.append(f'<p><b style="{bad}">{plain(row.entry.id, 60)}</b> {plain(str(row.error))}</p>')
        more = len(self.summary.failed) - SHOWN_FAILED
        parts += [f"<p>and {more:,} more that failed</p>"] if more > 0 else []
        budget = SHOWN_BYTES
        for row in self.summary.done[:SHOWN_ITEMS]:
            png = read_picture(self.folder, row) or b""
            budget -= len(png)
            parts.append(_line(row, png if budget >= 0 else b""))
        more = len(self.summary.done) - SHOWN_ITEMS
        parts += [f"<p>and {more:,} more</p>"] if more > 0 else []
        parts.append(f"<p>Everything, with players: <code>{plain(str(self.path))}</code></p>")
        return f'<div style="font:0.9em sans-serif;max-width:60em">{"".join(parts)}</div>'


def show_batch(source: str | Path, output: str | Path, options: BatchOptions | None = None) -> BatchReport:
    """Run a batch in a cell and write its report: `report.html`, `report.csv`, `report.json`, `pictures/`.

    A line in the cell counts along. Interrupted, it keeps what is finished, and the next call goes on from there.

    Args: as `run_batch`. Raises what `run_batch` raises; what is wrong with single items is in the report.
    """
    output = Path(output)
    line = ProgressLine()
    line.say("reading the list …")
    notes = read_batch(source, output=output, outside=(options or BatchOptions()).outside).notes
    rows = []

    def draw(entry: BatchEntry, heard: Audio, result: Audio, conversion: Conversion) -> None:
        png = thumbnail(heard, result, conversion.source_f0, conversion.result_f0)
        write_whole(_picture_path(output, entry), png)

    with contextlib.closing(run_batch(source, output, options, on_item=draw)) as work:
        for row in work:
            rows.append(row)
            line(row)
    summary = summarise(rows)
    line.say(repr(summary))
    return write_report(output, summary, title=f"Batch of {Path(source).name}", notes=notes)


def write_report(
    output: str | Path, summary: BatchSummary, *, title: str = "Batch", notes: tuple[str, ...] = ()
) -> BatchReport:
    """Write the report of rows there are; pictures that are missing are drawn from the sounds.

    Raises OutputError.
    """
    output = Path(output)
    pictures = {row.entry.id: png for row in summary.done if (png := _picture(output, row)) is not None}
    write_tables(output, summary)
    report = BatchReport(summary, output, notes)
    page = report_page(title, summary, pictures, notes)
    write_whole(report.path, page.encode("utf-8", "backslashreplace"))
    return report


def _picture_path(output: Path, entry: BatchEntry) -> Path:
    return output / PICTURES / f"{entry.name}.png"


def read_picture(output: Path, row: BatchRow) -> bytes | None:
    """The picture of an item, None if it has none."""
    path = _picture_path(output, row.entry)
    try:
        return path.read_bytes() if path.is_file() and path.stat().st_size <= MAX_PICTURE_BYTES else None
    except OSError:
        return None


def _picture(output: Path, row: BatchRow) -> bytes | None:
    """The picture of an item; drawn now where the process was killed between two files, or it was thrown away."""
    known = read_picture(output, row)
    if known is not None or row.file is None:
        return known
    source: Audio | None = None
    with contextlib.suppress(AudioError):
        source = read_beginning(row.entry.audio) if row.entry.audio else None
    try:
        png = thumbnail(source, read_beginning(row.file))
        write_whole(_picture_path(output, row.entry), png)
    except RvcSparkError:
        return None  # a report without one picture is better than no report
    return png


def _line(row: BatchRow, png: bytes) -> str:
    """One sound in a cell: picture left, words right."""
    cell = "padding:0.4em 0.8em 0.4em 0;vertical-align:top;text-align:left;background:none"
    picture = picture_tag(png, f"Spectrograms of {plain(row.entry.id, 60)}", "width:20em;max-width:none") if png else ""
    words = f"<b>{plain(row.entry.id, 60)}</b><br>{plain(row.entry.title, 160)}<br>{' · '.join(item_figures(row))}"
    return (
        '<table style="border-collapse:collapse;margin:0"><tr style="background:none">'
        f'<td style="{cell}">{picture}</td><td style="{cell}">{words}</td></tr></table>'
    )


def plain_text(text: str) -> str:
    """Printable and short, for places that escape it themselves."""
    return html.unescape(plain(text, 60))


def _told(value: float | None, digits: int) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"
