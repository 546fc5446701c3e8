"""The quality report as a value: of each sample, of all together, to JSON and back.

Loads no torch: a report is shown and stored where nothing is measured. Reading one trusts nothing: a wrong type, a
missing field or a number that is not finite is a ProfileError naming the field.
"""

from __future__ import annotations

import math
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Self

from rvc_spark.errors import ProfileError
from rvc_spark.profiles.findings import Finding, worst

Span = tuple[float, float]
MAX_ITEMS = 20_000
"""Entries a list in a stored report may have; an hour of speech has some 2,000 stretches."""


@dataclass(frozen=True)
class Stretch:
    """A part of a sample: start and end in seconds, and how much of it is speech."""

    start: float
    end: float
    speech_seconds: float


@dataclass(frozen=True)
class SampleReport:
    """What one recording is and what was found. A measurement is None where it could not be made.

    Attributes:
        index: its place in what was given; name: as told or as the file is called.
        kind, coding, bit_depth: container ("wav", "array"), codec ("PCM_16", "VORBIS"), bits of a stored sample.
        bytes: of the file. rate: Hz. duration: seconds.
        pcm_sha256: of the decoded samples, so that a copy under another name or in another lossless format is known.
        used_bits: 8, 16 or 24 where the samples fit that many, whatever the file stores; None for more.
        clipped_share, clipped_runs: samples in, and number of, runs of 3 and more at the very top.
        hum_hz, hum_db: 50 or 60 and its level against the speech; None where there is none.
        speech: where somebody speaks. snr_db: speech over what is between it. noise_dbfs: what is between it.
        bandwidth_hz: up to where there is sound at all.
        speaker_spread: similarity of the two halves it falls into best. music: share of moments with a steady tone.
        similarity: to the main voice of all samples.
        cuts: proposals, where it is too long.
    """

    index: int
    name: str
    kind: str = ""
    coding: str = ""
    bit_depth: int | None = None
    bytes: int | None = None
    rate: int = 0
    channels: int = 0
    duration: float = 0.0
    pcm_sha256: str = ""
    peak_dbfs: float | None = None
    loudness_lufs: float | None = None
    clipped_share: float | None = None
    clipped_runs: int | None = None
    dc: float | None = None
    used_bits: int | None = None
    hum_hz: float | None = None
    hum_db: float | None = None
    speech_seconds: float = 0.0
    speech: tuple[Span, ...] = ()
    snr_db: float | None = None
    noise_dbfs: float | None = None
    bandwidth_hz: float | None = None
    speaker_spread: float | None = None
    music: float | None = None
    similarity: float | None = None
    findings: tuple[Finding, ...] = ()
    cuts: tuple[Stretch, ...] = ()

    @property
    def grade(self) -> str:
        """ "ok", "warn" or "reject": the worst of what was found."""
        return worst(item.severity for item in self.findings)

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of what was found, the worst first."""
        return tuple(dict.fromkeys(item.code for item in _by_weight(self.findings)))

    @property
    def advice(self) -> tuple[str, ...]:
        """What to record better, the worst first; nothing for findings that do no harm."""
        return tuple(item.advice for item in _by_weight(self.findings) if item.severity != "ok")

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; the grade is in it for whoever reads the file."""
        return {**_plain(self), "grade": self.grade}

    @classmethod
    def from_dict(cls, table: Any) -> Self:
        """The report of `as_dict`. Raises ProfileError naming the field."""
        return _made(cls, table, "sample")


@dataclass(frozen=True)
class Reference:
    """The best stretch to speak from: number of the sample, seconds in it, and why this one."""

    sample: int
    start: float
    end: float
    reason: str


@dataclass(frozen=True)
class Similarity:
    """Pairwise similarity 0..1 by sample index, None where a sample has no embedding; and why nothing was compared."""

    checked: bool
    reason: str
    matrix: tuple[tuple[float | None, ...], ...] = ()


@dataclass(frozen=True)
class EnrolmentReport:
    """All samples together.

    total_seconds, total_speech_seconds: of the samples that are not rejected. embedding: the voice they share, 256
    numbers of unit length. settings: the thresholds it was made with.
    """

    samples: tuple[SampleReport, ...]
    similarity: Similarity
    findings: tuple[Finding, ...]
    reference: Reference | None
    total_speech_seconds: float
    total_seconds: float
    embedding: tuple[float, ...] | None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def accepted(self) -> tuple[int, ...]:
        """Indexes of the samples that are not rejected."""
        return tuple(item.index for item in self.samples if item.grade != "reject")

    @property
    def grade(self) -> str:
        """The worst of the set and of the samples left in it; one rejected sample does not spoil the others."""
        kept = [item.grade for item in self.samples if item.grade != "reject"]
        spoiled = ["warn"] if len(kept) < len(self.samples) else []
        return worst([*(item.severity for item in self.findings), *kept, *spoiled])

    @property
    def sentences(self) -> list[str]:
        """What to record better, of the set first, then sample by sample."""
        told = [item.advice for item in _by_weight(self.findings) if item.severity != "ok"]
        return told + [f"{item.name}: {advice}" for item in self.samples for advice in item.advice]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        told = {**_plain(self), "samples": [item.as_dict() for item in self.samples]}
        return {**told, "grade": self.grade, "accepted": list(self.accepted)}

    @classmethod
    def from_dict(cls, table: Any) -> Self:
        """The report of `as_dict`. Raises ProfileError naming the field."""
        return _made(cls, table, "report")


def _by_weight(findings: tuple[Finding, ...]) -> list[Finding]:
    return sorted(findings, key=lambda item: ("reject", "warn", "ok").index(item.severity))


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _made(kind: type, table: Any, place: str) -> Any:
    """A dataclass from a table of its fields; derived entries (`grade`) are left out."""
    if not isinstance(table, dict):
        raise _wrong(place, "is not a table of fields")
    hints = typing.get_type_hints(kind)
    given = {}
    for item in fields(kind):
        if item.name not in table:
            raise _wrong(f"{place}.{item.name}", "is missing")
        given[item.name] = _value(hints[item.name], table[item.name], f"{place}.{item.name}")
    return kind(**given)


def _value(hint: Any, value: Any, place: str) -> Any:
    if isinstance(hint, types.UnionType):
        chosen = next(part for part in typing.get_args(hint) if part is not types.NoneType)
        return None if value is None else _value(chosen, value, place)
    if is_dataclass(hint):
        return _made(hint, value, place)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise _wrong(place, f"is no list of at most {MAX_ITEMS} entries")
        parts = typing.get_args(hint)
        if parts[-1] is not Ellipsis and len(parts) != len(value):
            raise _wrong(place, f"has {len(value)} entries, not {len(parts)}")
        return tuple(_value(parts[0], item, f"{place}[{number}]") for number, item in enumerate(value))
    if typing.get_origin(hint) is dict:
        if not isinstance(value, dict) or len(value) > MAX_ITEMS:
            raise _wrong(place, "is not a table")
        return dict(value)
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _wrong(place, "is not a finite number")
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise _wrong(place, f"is not of type {hint.__name__}")
    return value


def _wrong(place: str, problem: str) -> ProfileError:
    return ProfileError(f"the stored quality report is damaged: {place[:100]} {problem}", "Examine the samples again.")
