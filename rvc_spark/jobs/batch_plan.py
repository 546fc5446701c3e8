"""What is left to do of a list: items and finished sounds have a fingerprint of all that shapes the sound.

    fingerprint = hash of (text or sound, voice and index, settings, engine asked for and its settings, format)

The engine counts as it was asked for: a server that is down today does not make "auto" throw away what it has spoken.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rvc_spark import errors
from rvc_spark.audio import EncodeOptions
from rvc_spark.errors import AudioError, ConfigError, RvcSparkError
from rvc_spark.infer.checkpoint import inspect_checkpoint
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.infer.voice_files import VoiceCard, find_voice, read_card
from rvc_spark.jobs.batch_list import BatchEntry, BatchList
from rvc_spark.jobs.batch_store import SOUNDS, file_hash
from rvc_spark.rvc_init import get_vc

FORMATS = ("flac", "wav", "ogg", "mp3", "m4a")
REDO = ("changed", "failed", "all")
FINGERPRINT_VERSION = 1


@dataclass(frozen=True)
class BatchOptions:
    """What holds for every item that does not say otherwise itself. Out of range raises ConfigError.

    voice: name or path. engine, reference, transcript, tts: as in `speak`. settings: fields of ConversionSettings; a
    text without key and auto_key is brought to the voice's own pitch, as `speak` does. format, sample_format: of the
    sound files, as in EncodeOptions.
    watermark: "none" or "perth", as in EncodeOptions; None takes the configuration's.
    redo: "changed" makes what is new or changed, "failed" also tries again what failed, "all" makes everything anew.
    outside: let a list name files outside its own folder.
    """

    voice: str | Path = "demo"
    engine: str | None = None
    reference: str | Path | None = None
    transcript: str | None = None
    tts: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    format: str = "flac"
    sample_format: str | None = None
    watermark: str | None = None
    redo: str = "changed"
    outside: bool = False

    def __post_init__(self) -> None:
        ConversionSettings().changed(**self.settings)
        if self.format not in FORMATS:
            raise ConfigError(f"format={self.format!r:.40} is unknown", f"Choose one of {', '.join(FORMATS)}.")
        _ = self.encode  # checks the sample format
        if self.redo not in REDO:
            raise ConfigError(f"redo={self.redo!r:.40} is unknown", f"Choose one of {', '.join(REDO)}.")

    @property
    def encode(self) -> EncodeOptions:
        """How the sound files are written."""
        return EncodeOptions(format=self.format, sample_format=self.sample_format, watermark=self.watermark)


@dataclass(frozen=True)
class BatchStep:
    """What happens to one item: "make", "keep" or "refuse" it, and why. record: what is known from before."""

    entry: BatchEntry
    action: str
    reason: str
    fingerprint: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    error: RvcSparkError | None = None


@dataclass(frozen=True)
class BatchPlan:
    """One step per item, in the order of the list. Shows itself as a sentence."""

    steps: tuple[BatchStep, ...]
    notes: tuple[str, ...] = ()

    def count(self, action: str) -> int:
        """How many items are to be made, kept or refused."""
        return sum(step.action == action for step in self.steps)

    def in_order_of_work(self) -> list[BatchStep]:
        """Those without work first, then voice by voice: loading one takes longer than a sentence."""
        voices = {voice: number for number, voice in enumerate(dict.fromkeys(str(s.entry.voice) for s in self.steps))}
        return sorted(self.steps, key=lambda step: voices[str(step.entry.voice)] if step.action == "make" else -1)

    def __repr__(self) -> str:
        reasons = Counter(step.reason for step in self.steps if step.action == "make")
        told = f" ({', '.join(f'{count} {reason}' for reason, count in reasons.items())})" if reasons else ""
        words = f"{len(self.steps)} items: {self.count('make')} to make{told}, {self.count('keep')} kept as they are"
        if self.count("refuse"):
            words += f", {self.count('refuse')} that cannot be made or failed before"
        return "; ".join([words, *self.notes])


def sound_file(entry: BatchEntry, format: str) -> str:
    """Where the sound of an item goes, relative to the folder of the batch."""
    return f"{SOUNDS}/{entry.name}.{format}"


def item_settings(options: BatchOptions, entry: BatchEntry, card: VoiceCard) -> ConversionSettings:
    """The settings of an item: its own over the batch's. Raises ConfigError."""
    merged = {**options.settings, **entry.settings}
    if entry.text is not None and card.median_f0_hz and "key" not in merged and "auto_key" not in merged:
        merged["auto_key"] = "voice"
    return ConversionSettings().changed(**merged)


class Planner:
    """Decides about items. Files are hashed once each."""

    def __init__(self, options: BatchOptions, folder: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
        self._options, self._folder, self._records = options, folder, records
        self._voices: dict[str, tuple[VoiceCard, list[str]] | RvcSparkError] = {}
        self._hashes: dict[Path, str] = {}

    def plan(self, listing: BatchList) -> BatchPlan:
        """One step per entry."""
        return BatchPlan(tuple(self._step(entry) for entry in listing.entries), listing.notes)

    def _step(self, entry: BatchEntry) -> BatchStep:
        if entry.error is not None:
            return BatchStep(entry, "refuse", "the list", error=entry.error)
        try:
            fingerprint = self._fingerprint(entry)
        except RvcSparkError as error:
            told = type(error)(f"{entry.place}: {error.problem}", error.next_step)
            return BatchStep(entry, "refuse", "its files or settings", error=told)
        record = self._records.get(entry.id)
        step = BatchStep(entry, "make", "new", fingerprint, record or {})
        if record is None:
            return step
        if self._options.redo == "all":
            return replace(step, reason="asked for")
        if record.get("fingerprint") != fingerprint:
            return replace(step, reason="changed")
        if record.get("status") == "failed":
            if self._options.redo == "failed":
                return replace(step, reason="failed before")
            return replace(step, action="refuse", reason="failed before", error=recorded_error(record))
        if not self._is_whole(entry, record):
            return replace(step, reason="with a sound missing or altered")
        return replace(step, action="keep", reason="unchanged")

    def _is_whole(self, entry: BatchEntry, record: Mapping[str, Any]) -> bool:
        """Whether the sound is there as it was written. The name is ours, never the record's."""
        file = sound_file(entry, self._options.format)
        path = self._folder / file
        try:
            return (
                record.get("status") == "made"
                and isinstance(record.get("metrics"), dict)
                and record.get("file") == file
                and path.stat().st_size == record.get("bytes")
                and file_hash(path) == record.get("sha256")
            )
        except OSError:
            return False

    def _fingerprint(self, entry: BatchEntry) -> str:
        own = self._options
        card, voice = self._voice(entry.voice or own.voice)
        settings = item_settings(own, entry, card)
        told: dict[str, Any] = {
            "version": FINGERPRINT_VERSION,
            "voice": voice,
            "settings": settings.as_dict(),
            "target": card.median_f0_hz,
            "encode": repr(own.encode),
        }
        watermark = own.watermark or get_vc().config.watermark
        if watermark != "none":  # told only then: what was made before there were watermarks stays as it is
            told["watermark"] = watermark
        if settings.f0_curve:
            told["settings"]["f0_curve"] = self._hash(Path(settings.f0_curve))
        if entry.text is None:
            assert entry.audio is not None
            told["audio"] = self._hash(entry.audio)
        else:
            reference = entry.reference or own.reference
            told |= {
                "text": entry.text,
                "engine": entry.engine or own.engine or get_vc().config.tts,
                "reference": None if reference is None else self._hash(Path(reference)),
                "transcript": entry.transcript or (None if entry.reference else own.transcript),
                "tts": sorted((name, repr(value)) for name, value in own.tts.items()),
            }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def _voice(self, voice: str | Path) -> tuple[VoiceCard, list[str]]:
        """Card of a voice and hashes of its files. Raises what `VC.load` would raise for them, each time."""
        key = str(voice)
        if key not in self._voices:
            try:
                path = voice if isinstance(voice, Path) else find_voice(voice, get_vc().folders)
                index = get_vc().index_choice(path, inspect_checkpoint(path)).value
                files = [self._hash(path), *([self._hash(Path(index))] if index else [])]
                self._voices[key] = (read_card(path), files)
            except RvcSparkError as error:
                self._voices[key] = error
        known = self._voices[key]
        if isinstance(known, RvcSparkError):
            raise type(known)(known.problem, known.next_step)
        return known

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            try:
                self._hashes[path] = file_hash(path)
            except OSError as error:
                raise AudioError(f"{path} cannot be read ({error.strerror or error})", "Check the file.") from error
        return self._hashes[path]


def recorded_error(record: Mapping[str, Any]) -> RvcSparkError:
    """The error a record tells of, as the type it was."""
    told = record.get("error")
    told = told if isinstance(told, dict) else {}
    kind = getattr(errors, str(told.get("kind")), RvcSparkError)
    known = isinstance(kind, type) and issubclass(kind, RvcSparkError)
    return (kind if known else RvcSparkError)(
        str(told.get("problem") or "it failed"), str(told.get("next_step") or "Try it again with redo='failed'.")
    )
