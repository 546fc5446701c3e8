"""Profiles made without enrolling anything: small, quick, and whole in every way a store looks at."""

from __future__ import annotations

import numpy as np

from rvc_spark.audio import Audio, EncodeOptions, encode_audio
from rvc_spark.profiles.consent import STATEMENT, given_consent, now
from rvc_spark.profiles.profile_record import (
    F0Range,
    ProfileRecord,
    StoredReference,
    StoredSample,
)
from rvc_spark.profiles.profile_store import ProfileStore
from rvc_spark.profiles.sample_report import EnrolmentReport, Similarity
from rvc_spark.profiles.strict_json import dump_plain
from rvc_spark.profiles.voice_profile import VoiceProfile

RATE = 16_000
SECRET = "Anna Example of Elm Street"  # must be gone when the profile is


def buzz(seconds: float = 2.0, hertz: float = 150.0, rate: int = RATE, level: float = 0.2) -> Audio:
    """A voiced sound, as speech is to a pitch tracker."""
    time = np.arange(round(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * hertz * number * time) / number for number in range(1, 9))
    return Audio((level * tone).astype(np.float32), rate)


def empty_report() -> EnrolmentReport:
    """A report on nothing."""
    return EnrolmentReport(
        samples=(), similarity=Similarity(False, "nothing was compared", ()), findings=(), reference=None,
        total_speech_seconds=0.0, total_seconds=0.0, embedding=None, settings={},
    )  # fmt: skip


def make_profile(
    store: ProfileStore, name: str, *, transcript: str | None = None, hertz: float = 150.0
) -> VoiceProfile:
    """A profile of one synthetic recording, written the way enrolling writes one."""
    sound = buzz(hertz=hertz)
    digest = "a" * 64
    sample = StoredSample("samples/01.flac", RATE, sound.seconds, 0.0, digest, transcript, "originals/01.wav")
    with store.reserved(name) as kept, store.draft() as draft:
        draft.add("samples/01.flac", encode_audio(sound, EncodeOptions(format="flac")))
        draft.add("originals/01.wav", encode_audio(sound))
        draft.add("reference.wav", encode_audio(sound))
        draft.add("report.json", dump_plain(empty_report().as_dict()))
        return draft.commit(ProfileRecord(
            id=draft.id, name=kept, created=now(), consent=given_consent(STATEMENT, SECRET).bound_to([digest]),
            samples=(sample,), grade="ok", engine="espeak",
            reference=StoredReference(0, 0.0, sound.seconds, RATE, "the whole", transcript),
            f0=F0Range(hertz, hertz - 5, hertz + 5, 1.9, "pm"),
        ))  # fmt: skip
