"""The notebook's verbs for enrolled voices, beside those of `rvc_init` and over the same shared engines.

    create_profile(["one.wav", "two.wav"], "Anna", given_consent(STATEMENT, "Anna Example"))
    speak("Good morning.", reference="Anna")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rvc_spark.errors import ConfigError
from rvc_spark.folder_conversion import SOUND_SUFFIXES
from rvc_spark.infer.pipeline import Progress
from rvc_spark.profiles.consent import Consent
from rvc_spark.profiles.enrolment import Enrolment
from rvc_spark.profiles.quality import SampleSource, examine_samples
from rvc_spark.profiles.quality_settings import QualitySettings
from rvc_spark.profiles.sample_report import EnrolmentReport
from rvc_spark.profiles.voice_enrollment import VoiceEnrollmentPipeline
from rvc_spark.profiles.voice_profile import VoiceProfile
from rvc_spark.rvc_init import get_profiles, get_speakers


def create_profile(
    samples: Sequence[SampleSource],
    name: str,
    consent: Consent,
    *,
    engine: str | None = None,
    tts: dict[str, Any] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **told: Any,
) -> VoiceProfile:
    """Enrol a voice under a name: from then on it is a `reference` of `speak`. See `VoiceEnrollmentPipeline.enroll`.

    engine, tts: who learns it at once (others do when they are asked for), as in `speak`. told: further fields of
    Enrolment, such as `transcripts` and `keep_originals`, and thresholds of QualitySettings.
    """
    said = {item.name for item in fields(Enrolment)}
    enrolment = Enrolment(name, consent, **{key: value for key, value in told.items() if key in said})
    settings = quality_settings({key: value for key, value in told.items() if key not in said})
    chosen, _ = get_speakers().engine(engine, tts)
    return VoiceEnrollmentPipeline.of(chosen, settings).enroll(samples, get_profiles(), enrolment, on_progress)


def examine_recordings(
    samples: Sequence[SampleSource], *, on_progress: Callable[[Progress], None] | None = None, **thresholds: Any
) -> EnrolmentReport:
    """What recordings are worth for enrolling, without enrolling anything. thresholds: fields of QualitySettings."""
    return examine_samples(samples, quality_settings(thresholds), on_progress=on_progress)


def quality_settings(thresholds: dict[str, Any]) -> QualitySettings:
    """Thresholds from names and values. Raises ConfigError."""
    return QualitySettings().changed(**thresholds)


def sounds_of(places: Sequence[str | Path]) -> list[Path]:
    """Files as they are, and for each folder the sounds directly in it, in the order of their names.

    Raises ConfigError when a folder holds none.
    """
    found: list[Path] = []
    for place in map(Path, places):
        if not place.is_dir():
            found.append(place)
            continue
        inside = sorted(path for path in place.iterdir() if path.suffix.lower() in SOUND_SUFFIXES and path.is_file())
        if not inside:
            raise ConfigError(f"{place} holds no sound files", "Name the folder with the recordings itself.")
        found += inside
    return found
