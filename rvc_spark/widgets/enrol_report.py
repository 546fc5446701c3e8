"""What recordings were found to be, as a table: a row per recording, what to do better, and the grade of all."""

from __future__ import annotations

from collections.abc import Sequence

from rvc_spark.audio import Audio
from rvc_spark.profiles.sample_report import EnrolmentReport, SampleReport
from rvc_spark.profiles.voice_profile import VoiceProfile
from rvc_spark.widgets.sound import show_audio
from rvc_spark.widgets.tables import Table

HEAD = ("recording", "grade", "length", "speech", "SNR", "band", "advice")
MARKS = {"ok": "\u2713 ok", "warn": "\u26a0 warn", "reject": "\u2717 reject"}
UNKNOWN = "\u2013"


def show_report(report: EnrolmentReport) -> Table:
    """The report on recordings. The last line of a cell shows it."""
    rows = [_row(sample) for sample in report.samples]
    told = [
        f"All together: {MARKS[report.grade]}. {report.total_speech_seconds:.1f} s of usable speech in "
        f"{len(report.accepted)} of {len(report.samples)} recordings."
    ]
    if not report.similarity.checked:
        told.append(f"Whether it is one speaker was not checked: {report.similarity.reason}.")
    told += [finding.advice for finding in report.findings]
    best = report.reference.sample if report.reference is not None else None
    if report.reference is not None:
        reference = report.reference
        told.append(
            f"The voice is heard best from {reference.start:.1f} to {reference.end:.1f} s of the marked recording."
        )
    return Table(HEAD, tuple(rows), " ".join(told), best)


def _row(sample: SampleReport) -> tuple[str, ...]:
    band = UNKNOWN if sample.bandwidth_hz is None else f"{sample.bandwidth_hz / 1000:.1f} kHz"
    return (
        sample.name, MARKS[sample.grade], f"{sample.duration:.1f} s", f"{sample.speech_seconds:.1f} s",
        UNKNOWN if sample.snr_db is None else f"{sample.snr_db:.0f} dB", band, " ".join(sample.advice) or UNKNOWN,
    )  # fmt: skip


def show_profiles(profiles: Sequence[VoiceProfile]) -> Table:
    """Profiles side by side, each with its reference clip as a player."""
    rows = []
    for profile in profiles:
        clip: Audio = profile.reference()
        pitch = profile.pitch
        rows.append((
            profile.name, show_audio(clip, profile.name), f"{len(profile.samples)}, {profile.seconds:.1f} s",
            UNKNOWN if pitch is None else f"{pitch.low:.0f} to {pitch.high:.0f} Hz, median {pitch.median:.0f}",
            profile.record.consent.who, profile.transcript or UNKNOWN,
        ))  # fmt: skip
    return Table(("profile", "reference", "recordings", "pitch", "voice of", "it says"), tuple(rows))
