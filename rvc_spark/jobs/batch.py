"""A whole list of texts and recordings into a voice, resumable: what is finished and unchanged is never made twice.

    for row in run_batch("texts.csv", "results", BatchOptions(voice="demo")):
        ...                                    # an item is on the disk, or it failed and the next one begins

The consumer pulls; closing the iterator, Ctrl-C or a power failure ends the work, and the next run goes on from there.
Figures and pictures of it are made elsewhere. The shared VC keeps its own voice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rvc_spark.audio import Audio
from rvc_spark.conversion import Conversion
from rvc_spark.errors import ConfigError, RvcSparkError
from rvc_spark.jobs.batch_list import BatchEntry, read_batch
from rvc_spark.jobs.batch_measure import measures, read_beginning
from rvc_spark.jobs.batch_plan import FORMATS, BatchOptions, BatchPlan, BatchStep, Planner, item_settings, sound_file
from rvc_spark.jobs.batch_store import BatchStore, file_hash, read_records
from rvc_spark.rvc_config import Choice
from rvc_spark.rvc_init import get_speakers, get_vc, licensed, say
from rvc_spark.rvc_modules import VC

OnItem = Callable[[BatchEntry, Audio, Audio, Conversion], None]


@dataclass(frozen=True)
class BatchRow:
    """An item as it stands now.

    status: "made", "kept" (made before and unchanged) or "failed". fresh: worked on in this run. record: what
    `results.jsonl` holds of it. number, total: which of how many rows this is.
    """

    entry: BatchEntry
    folder: Path
    status: str
    fresh: bool
    number: int
    total: int
    record: Mapping[str, Any] = field(default_factory=dict)
    error: RvcSparkError | None = None

    @property
    def file(self) -> Path | None:
        """The sound; None where it failed."""
        return None if self.status == "failed" else self.folder / self.record["file"]

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Figures of the item, see `rvc_spark.jobs.batch_measure`; empty where it failed."""
        return self.record.get("metrics", {})

    @property
    def fraction(self) -> float:
        """How much of the list is settled, 0..1."""
        return self.number / self.total

    @property
    def message(self) -> str:
        """The same in words."""
        reason = f": {self.error}" if self.error else ""
        return f"{self.number} of {self.total}, {self.entry.id} {self.status}{reason}"


def plan_batch(source: str | Path, output: str | Path, options: BatchOptions | None = None) -> BatchPlan:
    """What `run_batch` would do, without doing any of it. Raises what `run_batch` raises before its first item."""
    output = Path(output)
    options = options or BatchOptions()
    _refuse_own_results(source, output)
    listing = read_batch(source, output=output, outside=options.outside)
    return Planner(options, output, read_records(output)).plan(listing)


def run_batch(
    source: str | Path, output: str | Path, options: BatchOptions | None = None, *, on_item: OnItem | None = None
) -> Iterator[BatchRow]:
    """Make everything on a list that is not there yet; yields every item once, as soon as it is settled.

    First come those that need no work, then the others, voice by voice. An item that fails spoils no other.

    Args:
        source: a CSV file or a folder, see `read_batch`.
        output: a folder: new, empty, or of an earlier run.
        on_item: told the source and the result (at most MEASURED_SECONDS of each) before an item counts as made.

    Raises ConfigError (list, options), OutputError (a folder that is not ours, a full disk); errors of single items
    are in their rows.
    """
    output = Path(output)
    options = options or BatchOptions()
    _refuse_own_results(source, output)
    listing = read_batch(source, output=output, outside=options.outside)
    with BatchStore(output) as store:
        planner = Planner(options, output, store.records)
        plan = planner.plan(listing)
        maker = _Maker(options, store, on_item)
        total = len(plan.steps)
        for number, step in enumerate(plan.in_order_of_work(), start=1):
            place = {"entry": step.entry, "folder": output, "number": number, "total": total}
            if step.action == "make":
                record, error = maker.make(step)
                yield BatchRow(
                    **place, status="failed" if error else "made", fresh=True, record=record, error=error
                )
            elif step.action == "keep":
                yield BatchRow(**place, status="kept", fresh=False, record=step.record)
            else:
                yield BatchRow(**place, status="failed", fresh=False, record=step.record, error=step.error)


def _refuse_own_results(source: str | Path, output: Path) -> None:
    """Sounds made by a batch must not become its sources, and never be overwritten by what is made of them."""
    inside = Path(source).resolve()
    if inside.is_dir() and inside.is_relative_to(output.resolve()):
        raise ConfigError(f"the sources lie in {output}, where the results go", "Name another folder for the results.")


class _Maker:
    """Makes items one at a time, with a VC of its own that holds the voice of the moment."""

    def __init__(self, options: BatchOptions, store: BatchStore, on_item: OnItem | None) -> None:
        self._options, self._store, self._on_item = options, store, on_item
        self._vc: VC | None = None
        self._asked: str | Path | None = None  # the voice it holds
        self._engines: dict[str | None, Choice] = {}

    def make(self, step: BatchStep) -> tuple[dict[str, Any], RvcSparkError | None]:
        """Do it and keep the outcome. Raises OutputError only where the outcome cannot be kept."""
        entry = step.entry
        known = {"id": entry.id, "place": entry.place, "title": entry.title, "fingerprint": step.fingerprint}
        old = self._store.records.get(entry.id)
        try:
            told = self._made(entry)
        except RvcSparkError as error:
            told = {"kind": type(error).__name__, "problem": error.problem, "next_step": error.next_step}
            record = {**known, "status": "failed", "error": told}
            self._store.add(record)
            return record, error
        record = {**known, "status": "made", **told}
        self._store.add(record)
        self._remove_other_format(entry, old, record)
        return record, None

    def _made(self, entry: BatchEntry) -> dict[str, Any]:
        vc = self._voice(entry.voice or self._options.voice)
        assert vc.voice is not None
        settings = item_settings(self._options, entry, vc.voice.card)
        file = sound_file(entry, self._options.format)
        target = self._store.folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        encode, source, seconds, why = self._options.encode, entry.audio, None, None
        if entry.text is not None:
            began = time.perf_counter()
            spoken, why = self._spoken(entry)
            seconds = time.perf_counter() - began
            source, encode = spoken.audio, licensed(encode, spoken.licence)
        conversion = vc.convert(source, settings, output=target, options=encode)
        engines = {**({"tts": why} if why else {}), **conversion.engines}
        heard = source if isinstance(source, Audio) else read_beginning(source)
        result = read_beginning(target)
        told = {
            "file": file,
            "bytes": target.stat().st_size,
            "sha256": file_hash(target),
            "voice": conversion.voice,
            "metrics": measures(heard, result, conversion, seconds),
            "engines": {name: {"value": item.value, "reason": item.reason} for name, item in engines.items()},
            "settings": settings.as_dict(),
            **({} if conversion.watermark is None else {"watermark": conversion.watermark.report()}),
        }
        if self._on_item is not None:
            self._on_item(entry, heard, result, conversion)
        return told

    def _voice(self, voice: str | Path) -> VC:
        """A VC of its own that holds this voice: the shared one is left with the voice that was chosen for it."""
        if self._vc is None:
            self._vc = get_vc().sibling()
        if self._asked != voice:
            self._asked = None
            self._vc.load(voice)
            self._asked = voice
        return self._vc

    def _spoken(self, entry: BatchEntry) -> tuple[Any, Choice]:
        """The text as an engine says it. Which one "auto" means is decided once for the whole run."""
        own = self._options
        asked = entry.engine or own.engine
        if asked not in self._engines:
            self._engines[asked] = get_speakers().choose(asked)
        chosen = self._engines[asked]
        spoken = say(
            entry.text or "", engine=chosen.value, reference=entry.reference or own.reference,
            transcript=entry.transcript or (None if entry.reference else own.transcript), tts=dict(own.tts),
        )  # fmt: skip
        return spoken, spoken.engine if chosen.reason == "as set" else chosen

    def _remove_other_format(self, entry: BatchEntry, old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> None:
        """After a change of format the sound of before is no longer on record: nobody would know it from a result."""
        before = (old or {}).get("file")
        if before != new["file"] and before in {sound_file(entry, name) for name in FORMATS}:
            (self._store.folder / before).unlink(missing_ok=True)
