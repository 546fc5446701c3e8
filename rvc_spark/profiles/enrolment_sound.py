"""The sound of an enrolment: reading recordings, the clip that stands for the voice, whose voice speaks a consent.

Knows no folders and no records.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rvc_spark.audio import Audio, read_audio
from rvc_spark.errors import ConsentError, ProfileError, QualityError
from rvc_spark.profiles.findings import GRADES
from rvc_spark.profiles.private_files import plain_blocks
from rvc_spark.profiles.quality import Clip, SampleSource
from rvc_spark.profiles.sample_report import EnrolmentReport, SampleReport
from rvc_spark.profiles.speaker_embedding import bundled_speaker_encoder, cosine

SPEECH_RATE = 16_000  # Hz, of the speaker encoder
MAX_REFERENCE_SECONDS = 15.0
WHOLE_SECONDS = 20.0  # a recording up to this length is its own reference where its words are known
MARGIN_SECONDS = 0.2  # kept before and after speech
FADE_SECONDS = 0.01  # where a clip is cut out of a recording
MAX_CONSENT_SECONDS = 120.0
# What no accept=... makes a voice of.
HOPELESS = frozenset({"unreadable", "too_large", "silence", "no_speech", "duplicate"})


@dataclass(frozen=True)
class ReferenceChoice:
    """The clip: of which of the kept recordings, from where to where in seconds, why, and what it says if known."""

    sample: int
    start: float
    end: float
    reason: str
    sound: Audio
    transcript: str | None


def usable_samples(report: EnrolmentReport, accept: str) -> list[int]:
    """Which recordings are enrolled, by index: those not rejected, or all that hold speech where rejects are accepted.

    Raises QualityError when the grade is worse than what is accepted, or nothing is left.
    """
    if GRADES.index(report.grade) > GRADES.index(accept):
        raise QualityError(
            f"the recordings are graded {report.grade!r}, and {accept!r} is the worst that is accepted: "
            + " ".join(report.sentences[:6]),
            "Record again as said, or accept it: accept='reject' (--accept reject) takes whatever holds speech.",
        )
    chosen = list(report.accepted)
    if accept == "reject":
        chosen = [sample.index for sample in report.samples if not HOPELESS & set(sample.codes)]
    if not chosen:
        raise QualityError("no recording is left to enrol: " + " ".join(report.sentences[:6]), "Record again.")
    return chosen


def choose_reference(
    report: EnrolmentReport, chosen: Sequence[int], sounds: Sequence[Audio], transcripts: Sequence[str | None]
) -> ReferenceChoice:
    """The clip that stands for the voice: the best stretch, or the whole recording where its words are known.

    chosen: index in the report of each kept recording. sounds, transcripts: of the kept recordings.
    """
    best = report.reference
    if best is not None and best.sample in chosen:
        place, start, end, reason = chosen.index(best.sample), best.start, best.end, best.reason
    else:
        place = max(range(len(sounds)), key=lambda number: sounds[number].frames)
        start, end = 0.0, min(sounds[place].seconds, MAX_REFERENCE_SECONDS)
        reason = "the beginning of the longest recording, as none is without fault"
    sound, text = sounds[place], transcripts[place]
    if text is not None and sound.seconds <= WHOLE_SECONDS:
        start, end = _speech_span(report.samples[chosen[place]], sound.seconds)
        reason += "; all of that recording, because its words are known"
    elif text is not None:
        reason += f"; its words are not used, as the recording is longer than {WHOLE_SECONDS:g} s"
        text = None
    return ReferenceChoice(place, start, end, reason, _cut_out(sound, start, end), text)


def _speech_span(sample: SampleReport, seconds: float) -> tuple[float, float]:
    if not sample.speech:
        return 0.0, seconds
    return max(0.0, sample.speech[0][0] - MARGIN_SECONDS), min(seconds, sample.speech[-1][1] + MARGIN_SECONDS)


def _cut_out(sound: Audio, start: float, end: float) -> Audio:
    samples = sound.samples[round(start * sound.rate) : round(end * sound.rate)].copy()
    fade = min(round(FADE_SECONDS * sound.rate), len(samples) // 2)
    ramp = (np.arange(fade, dtype=np.float32) + 0.5) / max(fade, 1)
    samples[:fade] *= ramp
    samples[len(samples) - fade :] *= ramp[::-1]
    return Audio(samples, sound.rate)


def read_sample(source: SampleSource) -> Audio:
    """A recording as it came, mono. Raises AudioError."""
    if isinstance(source, Clip):
        return source.read().mono()
    return source.mono() if isinstance(source, Audio) else read_audio(source, mono=True)


def settled(source: Any, max_bytes: int) -> SampleSource:
    """A source that can be read more than once: a stream becomes its bytes. Raises ProfileError when it is too long."""
    if not hasattr(source, "read") or isinstance(source, Clip):
        return source
    content = source.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ProfileError(f"a recording has more than {max_bytes:,} bytes", "Cut it into shorter ones.")
    return content


def original_of(source: SampleSource, report: SampleReport, max_bytes: int) -> tuple[Iterator[bytes], str] | None:
    """The file as it came, in blocks, and a suffix for it; None for a sound that came as an array."""
    whole = source.source if isinstance(source, Clip) else source
    if isinstance(whole, Audio):
        return None
    if isinstance(whole, bytes):
        return iter([whole]), _suffix(report.kind)
    path = Path(os.fspath(whole)).resolve()  # a person may name a link of their own
    return plain_blocks(path, max_bytes), _suffix(path.suffix[1:])


def _suffix(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())[:5]
    return plain or "bin"


def check_same_voice(consent: Audio, report: EnrolmentReport, least: float) -> None:
    """Raises ConsentError where a spoken consent is in another voice than the recordings, or cannot be compared.

    least: cosine of the two embeddings. MissingPackageError without the speaker encoder.
    """
    if report.embedding is None:
        raise ConsentError(
            f"the spoken consent cannot be compared with the voice: {report.similarity.reason}",
            "Install what that names, or give the consent in writing: method='checkbox'.",
        )
    if consent.seconds > MAX_CONSENT_SECONDS:
        raise ConsentError(
            f"the spoken consent is {consent.seconds:.0f} s long, the limit is {MAX_CONSENT_SECONDS:g} s",
            "Say only the statement.",
        )
    samples = consent.mono().resampled(SPEECH_RATE).samples
    found = cosine(bundled_speaker_encoder().embed(samples, None), np.asarray(report.embedding, np.float32))
    if not found >= least:
        raise ConsentError(
            f"the consent is spoken in another voice than the recordings: similarity {found:.2f}, {least:g} is needed",
            "Let the person whose voice it is say it.",
        )
