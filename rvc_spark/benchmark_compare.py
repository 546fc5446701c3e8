"""Two reports of the benchmark side by side: what became slower or larger, and by more than chance.

    changes = compare_reports(read_report("old.json"), read_report("new.json"), Thresholds())
    worse = [change for change in changes if change.worse]

Of times the least warm call is compared, which other programs on the machine disturb the least. A difference counts
when it is beyond a share of the old value and beyond what a clock can tell.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rvc_spark.benchmark import FORMAT
from rvc_spark.errors import BenchmarkError, ConfigError

MAX_REPORT_BYTES = 16 << 20
LEAST_SECONDS, LEAST_BYTES = 0.02, 16e6  # differences below these are chance
PLACE = ("device", "precision_asked", "f0_method", "seconds")
# where, metric, whether it is memory; a metric that a report lacks is passed over
METRICS = (
    ("rows", "warm_least", False),
    ("rows", "peak_bytes", True),
    ("rows", "device_peak_bytes", True),
    ("streaming", "p50_seconds", False),
    ("many", "together_seconds", False),
    ("loading", "load_seconds", False),
    ("loading", "switch_warm_seconds", False),
)


@dataclass(frozen=True)
class Thresholds:
    """How much worse is worse, as shares of the old value. Raises ConfigError outside 0 to 10."""

    time: float = 0.10
    memory: float = 0.10

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value <= 10:
                raise ConfigError(f"threshold {name}={value:g} is outside 0 to 10", "0.1 stands for ten percent.")


@dataclass(frozen=True)
class Change:
    """One figure before and after. `verdict` is worse, better or same."""

    place: str
    metric: str
    old: float
    new: float
    verdict: str

    @property
    def worse(self) -> bool:
        """Whether it is a regression."""
        return self.verdict == "worse"

    @property
    def ratio(self) -> float:
        """New over old; 1 where there was nothing."""
        return self.new / self.old if self.old else 1.0

    def line(self) -> str:
        """For people."""
        scale, unit = (1e-6, "MB") if self.metric.endswith("bytes") else (1.0, "s")
        return (
            f"{self.verdict:<6} {self.place}: {self.metric} {self.old * scale:.3f} {unit} -> {self.new * scale:.3f} "
            f"{unit} ({(self.ratio - 1) * 100:+.1f} %)"
        )


def read_report(path: str | Path) -> dict[str, Any]:
    """A report that `rvc-spark benchmark --output` wrote. Raises BenchmarkError for anything else."""
    path = Path(path)
    cure = "Give a file that `rvc-spark benchmark --output FILE.json` wrote."
    try:
        if path.stat().st_size > MAX_REPORT_BYTES:
            raise BenchmarkError(f"{path.name} has {path.stat().st_size:,} bytes, over {MAX_REPORT_BYTES:,}", cure)
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BenchmarkError(f"{path} cannot be read as a report: {error}", cure) from error
    if not isinstance(report, dict) or not isinstance(report.get("machine"), dict):
        raise BenchmarkError(f"{path.name} is no report of this benchmark", cure)
    if report.get("format") != FORMAT:
        raise BenchmarkError(f"{path.name} is of format {report.get('format')!r}, not {FORMAT}", "Measure it anew.")
    for where in {where for where, _, _ in METRICS}:
        rows = report.get(where, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise BenchmarkError(f"{path.name}: {where} is not a list of figures", cure)
    return report


def compare_reports(old: dict[str, Any], new: dict[str, Any], thresholds: Thresholds) -> list[Change]:
    """Every figure that both have. Raises BenchmarkError when there is none, or when sizes of networks differ."""
    if old.get("sizes") != new.get("sizes"):
        raise BenchmarkError(
            f"the reports are of networks of {old.get('sizes')} and {new.get('sizes')} size", "Measure with the same."
        )
    known = {(place, metric): value for place, metric, value, _ in _figures(old)}
    changes = []
    for place, metric, value, memory in _figures(new):
        if (place, metric) in known:
            before = known[place, metric]
            share, least = (thresholds.memory, LEAST_BYTES) if memory else (thresholds.time, LEAST_SECONDS)
            margin = max(share * before, least)
            verdict = "worse" if value > before + margin else "better" if value < before - margin else "same"
            changes.append(Change(place, metric, before, value, verdict))
    if not changes:
        raise BenchmarkError("the two reports have no figure in common", "Measure the same clips and devices.")
    return changes


def different_machines(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What makes the two hard to compare: another processor, other threads, other versions."""
    found = []
    for name in ("processor", "threads", "gpu", "python", "packages"):
        before, after = old["machine"].get(name), new["machine"].get(name)
        if before != after:
            found.append(f"{name}: {before} -> {after}")
    return found


def _figures(report: dict[str, Any]) -> Iterator[tuple[str, str, float, bool]]:
    for where, metric, memory in METRICS:
        for row in report.get(where, []):
            value = row.get(metric)
            if isinstance(value, int | float) and not isinstance(value, bool):
                place = " ".join(str(row[name]) for name in PLACE if name in row)
                yield f"{where} {place}", metric, float(value), memory
