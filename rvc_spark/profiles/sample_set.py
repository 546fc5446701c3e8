"""Samples beside one another: copies, the main voice and who is another one, and what they are together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rvc_spark.profiles.cutting import best_stretch
from rvc_spark.profiles.findings import Finding
from rvc_spark.profiles.quality_settings import QualitySettings
from rvc_spark.profiles.sample_report import EnrolmentReport, SampleReport, Similarity
from rvc_spark.profiles.speaker_embedding import cosine, mean_voice
from rvc_spark.profiles.voices_in_sample import same_recording

NO_VOICE = frozenset({"too_short", "silence", "no_speech", "little_speech", "music", "duplicate", "second_speaker"})
"""Findings that say already why a sample is not like the others: its similarity proves nothing."""


_TRUST = {"ok": 1.0, "warn": 0.5}  # noise and music change an embedding: clean samples say who the main voice is


@dataclass
class Examined:
    """A sample and what comparing it takes: dB per 32 ms, and its embedding where it has enough speech."""

    report: SampleReport
    loudness: np.ndarray
    embedding: np.ndarray | None

    def found(self, code: str, severity: str, value: float | None, limit: float | None, advice: str) -> None:
        """Add a finding that only the other samples show."""
        finding = Finding(code, severity, value, limit, "", advice)
        self.report = replace(self.report, findings=(*self.report.findings, finding))


def find_duplicates(samples: Sequence[Examined], settings: QualitySettings) -> None:
    """Reject what is the same recording as an earlier sample: equal samples, or another copy of the same sound."""
    for place, sample in enumerate(samples):
        for earlier in samples[:place]:
            if not sample.report.pcm_sha256 or not earlier.report.pcm_sha256:
                continue
            if sample.report.pcm_sha256 == earlier.report.pcm_sha256:
                likeness, how = 1.0, "is the very same recording as"
            elif max(sample.report.duration, earlier.report.duration) > settings.max_sample_duration:
                continue  # rejected anyway, and its cuts are compared when they are given
            else:
                likeness, how = same_recording(sample.loudness, earlier.loudness), "is another copy of"
            if likeness >= settings.duplicate_similarity:
                sample.found(
                    "duplicate", "reject", round(min(likeness, 1.0), 3), settings.duplicate_similarity,
                    f"It {how} {earlier.report.name} (sample {earlier.report.index + 1}): give another one.",
                )  # fmt: skip
                break


def compare_voices(samples: Sequence[Examined], settings: QualitySettings) -> tuple[tuple[float | None, ...], ...]:
    """Name the samples of another voice than the main one; returns the pairwise similarity.

    The main voice is the largest group around one sample, by seconds of speech, in which all are accepted as that
    sample's voice. Each sample is then compared with the mean of that group without itself: a mean of several samples
    separates speakers far better than any pair does.
    """
    matrix = tuple(
        tuple(
            None if one.embedding is None or other.embedding is None
            else round(cosine(one.embedding, other.embedding), 4)
            for other in samples
        )
        for one in samples
    )  # fmt: skip
    main = main_voice(samples, matrix, settings)
    for place, sample in enumerate(samples):
        others = [samples[other].embedding for other in main if other != place]
        if sample.embedding is None or not others:
            continue
        likeness = round(cosine(sample.embedding, mean_voice(np.stack(others))), 4)
        sample.report = replace(sample.report, similarity=likeness)
        same = likeness >= settings.similarity_accept or (place in main and len(main) > 1)
        if same or NO_VOICE & set(sample.report.codes):
            continue
        bad = likeness < settings.similarity_reject
        sure = "It is another voice than" if bad else "It may be another voice than"
        sample.found(
            "other_speaker", "reject" if bad else "warn", likeness,
            settings.similarity_reject if bad else settings.similarity_accept,
            f"{sure} the other samples (similarity {likeness:.2f}, one speaker has {settings.similarity_accept:g} and "
            "more): give recordings of one person, made with one microphone.",
        )  # fmt: skip
    return matrix


def main_voice(
    samples: Sequence[Examined], matrix: Sequence[Sequence[float | None]], settings: QualitySettings
) -> tuple[int, ...]:
    """Places of the samples that share the main voice; rejected ones have no say in it."""
    able = [place for place, sample in enumerate(samples)
            if sample.embedding is not None and sample.report.grade != "reject"]  # fmt: skip
    groups = [
        tuple(other for other in able if other == place or (matrix[place][other] or 0) >= settings.similarity_accept)
        for place in able
    ]
    spoken = [sum(samples[place].report.speech_seconds * _TRUST[samples[place].report.grade] for place in group)
              for group in groups]  # fmt: skip
    return groups[int(np.argmax(spoken))] if groups else ()


def whole_report(samples: Sequence[Examined], similarity: Similarity, settings: QualitySettings) -> EnrolmentReport:
    """All samples together: how much is usable, the voice they share, the reference, and what is wrong with the set."""
    reports = tuple(sample.report for sample in samples)
    kept = [sample for sample in samples if sample.report.grade != "reject"]
    seconds = sum(sample.report.duration for sample in kept)
    findings = []
    if not kept:
        findings.append(Finding("no_samples", "reject", None, None, "", "No sample is usable: record anew."))
    elif seconds < settings.min_total_duration:
        findings.append(Finding(
            "too_little_speech", "reject", round(seconds, 3), settings.min_total_duration, "s",
            f"All usable samples together have {seconds:.1f} s; {settings.min_total_duration:g} s are needed: "
            "record more.",
        ))  # fmt: skip
    if not similarity.checked:
        findings.append(Finding(
            "similarity_unchecked", "warn", None, None, "",
            f"Whether all samples are of one speaker was not checked: {similarity.reason}.",
        ))  # fmt: skip
    voices = [sample.embedding for sample in kept if sample.embedding is not None]
    return EnrolmentReport(
        samples=reports,
        similarity=similarity,
        findings=tuple(findings),
        reference=best_stretch(reports),
        total_speech_seconds=round(sum(sample.report.speech_seconds for sample in kept), 3),
        total_seconds=round(seconds, 3),
        embedding=tuple(float(value) for value in mean_voice(np.stack(voices))) if voices else None,
        settings=settings.as_dict(),
    )
