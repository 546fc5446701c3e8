"""A batch in figures: totals and a flat row per item, `report.csv` for spreadsheets, `report.json` for programs.

    summary = summarise(rows)                 rows of run_batch, in any order
    write_tables("results", summary)          report.csv, report.json
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rvc_spark.jobs.batch import BatchRow
from rvc_spark.jobs.batch_store import write_whole

COLUMNS = {  # of the table: name -> whether it is a figure
    "id": False, "status": False, "place": False, "title": False, "file": False, "voice": False, "engine": False,
    "seconds": True, "elapsed": True, "real_time_factor": True, "lufs": True, "source_lufs": True,
    "true_peak_dbtp": True, "clipped_samples": True, "key": True, "source_f0_hz": True, "asked_f0_hz": True,
    "result_f0_hz": True, "pitch_error_cents": True, "voiced_share": True, "rate": True, "samples": True,
    "remarks": False, "error": False,
}  # fmt: skip
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class BatchSummary:
    """The rows in the order of the list, and what they add up to. Shows itself as a sentence."""

    rows: tuple[BatchRow, ...]

    def count(self, status: str) -> int:
        """How many items were "made", "kept" or "failed"."""
        return sum(row.status == status for row in self.rows)

    @property
    def failed(self) -> tuple[BatchRow, ...]:
        """Those without a sound."""
        return tuple(row for row in self.rows if row.status == "failed")

    @property
    def done(self) -> tuple[BatchRow, ...]:
        """Those with a sound."""
        return tuple(row for row in self.rows if row.status != "failed")

    def total(self, name: str) -> float:
        """Sum of a figure over all items that have it."""
        return float(sum(self.values(name)))

    def middle(self, name: str) -> float | None:
        """Median of a figure over all items that have it; None where none has."""
        values = self.values(name)
        return median(values) if values else None

    def values(self, name: str) -> list[float]:
        """A figure of all items that have it."""
        return [value for row in self.done if (value := figure(row.metrics, name)) is not None]

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of work per second of sound, over everything."""
        seconds = self.total("seconds")
        return self.total("elapsed") / seconds if seconds else None

    def engines(self) -> dict[str, int]:
        """Who spoke how many texts."""
        return dict(Counter(name for row in self.done if (name := engine_of(row))))

    def totals(self) -> dict[str, Any]:
        """Ready for JSON."""
        factor = self.real_time_factor
        return {
            "items": len(self.rows),
            **{status: self.count(status) for status in ("made", "kept", "failed")},
            "seconds": round(self.total("seconds"), 3),
            "elapsed": round(self.total("elapsed"), 3),
            "real_time_factor": None if factor is None else round(factor, 4),
            "median_lufs": self.middle("lufs"),
            "median_pitch_error_cents": self.middle("pitch_error_cents"),
            "clipped_samples": int(self.total("clipped_samples")),
            "engines": self.engines(),
        }

    def __repr__(self) -> str:
        words = f"{len(self.rows)} items: {self.count('made')} made, {self.count('kept')} kept as they were"
        words += f", {self.count('failed')} failed"
        if factor := self.real_time_factor:
            words += f"; {self.total('seconds'):.1f} s of sound, real-time factor {factor:.2f}"
        return words


def summarise(rows: Iterable[BatchRow]) -> BatchSummary:
    """The rows of a run, sorted as on the list."""
    return BatchSummary(tuple(sorted(rows, key=lambda row: row.entry.number)))


def figure(metrics: Mapping[str, Any], name: str) -> float | None:
    """A figure of a record, which may have been written by anybody; None unless it is a number."""
    value = metrics.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def engine_of(row: BatchRow) -> str:
    """Who spoke; nothing for a recording."""
    engines = row.record.get("engines")
    spoke = engines.get("tts") if isinstance(engines, dict) else None
    return str(spoke.get("value", "")) if isinstance(spoke, dict) else ""


def remarks_of(row: BatchRow) -> list[str]:
    """What to listen to before using the result."""
    told = row.metrics.get("remarks")
    return [str(remark) for remark in told] if isinstance(told, list) else []


def flat(row: BatchRow) -> dict[str, Any]:
    """One line of the table: COLUMNS with their values, None where there is none."""
    figures = {name: figure(row.metrics, name) for name, is_figure in COLUMNS.items() if is_figure}
    words = {
        "id": row.entry.id,
        "status": row.status,
        "place": row.entry.place,
        "title": row.entry.title,
        "file": None if row.file is None else row.file.relative_to(row.folder).as_posix(),
        "voice": str(row.record.get("voice", "")) or None,
        "engine": engine_of(row) or None,
        "remarks": "; ".join(remarks_of(row)) or None,
        "error": str(row.error) if row.error else None,
    }
    return {name: figures[name] if is_figure else words[name] for name, is_figure in COLUMNS.items()}


def write_tables(folder: str | Path, summary: BatchSummary) -> tuple[Path, Path]:
    """Write report.csv and report.json; each appears complete or not at all. Raises OutputError.

    In the CSV a text that a spreadsheet would take for a formula begins with an apostrophe; the JSON has it as it is.
    """
    folder = Path(folder)
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, tuple(COLUMNS), lineterminator="\r\n")
    writer.writeheader()
    for row in summary.rows:
        writer.writerow({name: _harmless(value) for name, value in flat(row).items()})
    told = {
        "totals": summary.totals(),
        "items": [
            {
                **flat(row),
                "settings": row.record.get("settings"),
                "engines": row.record.get("engines"),
                "sha256": row.record.get("sha256"),
            }
            for row in summary.rows
        ],
    }
    # The mark at the start tells spreadsheets that it is UTF-8.
    table = write_whole(folder / "report.csv", lines.getvalue().encode("utf-8-sig", "backslashreplace"))
    return table, write_whole(folder / "report.json", json.dumps(told, indent=1).encode())


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value
