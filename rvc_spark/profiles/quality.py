"""Are these recordings good enough for a voice? Every sample measured and graded, all compared, the best part chosen.

    report = examine_samples(["one.wav", "two.m4a"])
    report.grade, report.sentences, report.reference

Bounded memory whatever is given: a file is heard block by block, and what is beyond the limits is refused unread. A bad
file spoils no other; it is a rejected sample with the reason in it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rvc_spark.audio import Audio
from rvc_spark.errors import AudioError, ConfigError, MissingPackageError, QualityError
from rvc_spark.infer.pipeline import Progress, drain
from rvc_spark.profiles.findings import Finding
from rvc_spark.profiles.hearing import EXCERPT_SECONDS, Clip, Limits, TooLargeError, hear
from rvc_spark.profiles.judging import sample_report
from rvc_spark.profiles.quality_settings import QualitySettings
from rvc_spark.profiles.sample_report import EnrolmentReport, SampleReport, Similarity
from rvc_spark.profiles.sample_set import Examined, compare_voices, find_duplicates, whole_report
from rvc_spark.profiles.speaker_embedding import (
    WINDOW_SECONDS,
    SpeakerEncoder,
    bundled_speaker_encoder,
    join_speech,
    mean_voice,
)
from rvc_spark.profiles.speech_activity import SAMPLE_RATE, SpeechDetector, load_speech_detector
from rvc_spark.profiles.voices_in_sample import SPREAD_STEP, speaker_spread

__all__ = ["Clip", "SampleSource", "check_report", "examine_samples", "examine_samples_steps"]

SampleSource = str | Path | bytes | BinaryIO | Audio | Clip
HEARING_SHARE = 0.9
"""Of one sample's work; the rest is comparing."""


def examine_samples(
    sources: Sequence[SampleSource],
    settings: QualitySettings | None = None,
    *,
    names: Sequence[str] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> EnrolmentReport:
    """Measure, grade and compare recordings that shall become one voice.

    Args:
        sources: paths, bytes of files, binary streams, sounds, or clips of longer files; all of one speaker.
        settings: thresholds.
        names: how to call the samples; file names otherwise.
        on_progress: told every step.

    Returns:
        The report; a file that cannot be read is a rejected sample in it.

    Raises:
        ConfigError: no sources, too many, or another number of names.
        MissingPackageError: Silero VAD is not installed. Without Resemblyzer the report says that nothing was compared.
        ModelFileError: weights of an installed package are damaged.
    """
    return drain(examine_samples_steps(sources, settings, names=names), on_progress)


def examine_samples_steps(
    sources: Sequence[SampleSource], settings: QualitySettings | None = None, *, names: Sequence[str] | None = None
) -> Generator[Progress, None, EnrolmentReport]:
    """`examine_samples` as a generator of its steps; closing it ends the work."""
    settings = settings or QualitySettings()
    _check_count(sources, names, settings)
    detector = load_speech_detector()
    encoder, why = _encoder()
    samples: list[Examined] = []
    for index, source in enumerate(sources):
        name = names[index] if names else _name(source, index)
        for part in _examined(index, name, source, settings, (detector, encoder)):
            if isinstance(part, Examined):
                samples.append(part)
            else:
                yield Progress((index + HEARING_SHARE * part) / len(sources), f"listening to {name}")
        yield Progress((index + 1) / len(sources), f"{name}: {samples[-1].report.grade}")
    find_duplicates(samples, settings)
    similarity = Similarity(False, why, ())
    if encoder is not None:
        similarity = Similarity(True, "compared by the GE2E speaker encoder", compare_voices(samples, settings))
    return whole_report(samples, similarity, settings)


def check_report(report: EnrolmentReport) -> None:
    """Nothing where the recordings are good enough.

    Raises:
        QualityError: they are rejected; names the worst of what was found and what to record better.
    """
    if report.grade == "reject":
        told = report.sentences
        raise QualityError(f"the recordings cannot become a voice: {told[0]}", " ".join(told[1:4]) or "Record again.")


def _check_count(sources: Sequence[SampleSource], names: Sequence[str] | None, settings: QualitySettings) -> None:
    if not 1 <= len(sources) <= settings.max_samples:
        raise ConfigError(
            f"{len(sources)} samples were given; the limits are 1 to {settings.max_samples}",
            "Give recordings of one speaker, 10 s and more in all.",
        )
    if names is not None and len(names) != len(sources):
        raise ConfigError(f"{len(names)} names were given for {len(sources)} samples", "Give one name each.")


def _encoder() -> tuple[SpeakerEncoder | None, str]:
    """The speaker encoder, or why there is none. A damaged one is an error: nobody asked to go without."""
    try:
        return bundled_speaker_encoder(), ""
    except MissingPackageError as error:
        return None, str(error).rstrip(".")


def _name(source: SampleSource, index: int) -> str:
    if isinstance(source, Clip) and source.name:
        return f"{source.name} {source.start:.1f}-{source.end:.1f} s"
    whole = source.source if isinstance(source, Clip) else source
    plain = Path(whole).name if isinstance(whole, str | Path) else ""
    readable = "".join(letter if letter.isprintable() else "?" for letter in plain)[:100]
    return readable or f"sample {index + 1}"


def _examined(
    index: int, name: str, source: SampleSource, settings: QualitySettings,
    ears: tuple[SpeechDetector, SpeakerEncoder | None],
) -> Generator[float | Examined, None, None]:  # fmt: skip
    """Fractions while a sound is heard, then what came of it."""
    detector, encoder = ears
    limits = Limits(settings.max_file_seconds, int(settings.max_file_bytes))
    try:
        heard = yield from hear(source, detector, limits, max(EXCERPT_SECONDS, settings.max_sample_duration))
    except TooLargeError as error:
        yield _refused(index, name, "too_large", error)
        return
    except AudioError as error:
        yield _refused(index, name, "unreadable", error)
        return
    speech = join_speech(heard.excerpt, heard.excerpt_speech)
    spread = embedding = None
    if encoder is not None and len(speech) >= WINDOW_SECONDS * SAMPLE_RATE:
        windows = encoder.windows(speech, step=SPREAD_STEP)
        spread, embedding = speaker_spread(encoder, speech, windows), mean_voice(windows)
    examined = Examined(sample_report(index, name, heard, settings, spread), heard.loudness, embedding)
    if encoder is not None and embedding is None and examined.report.grade != "reject":
        examined.found(
            "not_compared", "warn", round(len(speech) / SAMPLE_RATE, 2), WINDOW_SECONDS,
            "It has too little speech to compare the voice with the others: read a few sentences.",
        )  # fmt: skip
    yield examined


def _refused(index: int, name: str, code: str, error: AudioError) -> Examined:
    finding = Finding(code, "reject", None, None, "", str(error))
    return Examined(SampleReport(index=index, name=name, findings=(finding,)), np.zeros(0), None)
