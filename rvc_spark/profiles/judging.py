"""What is found in one recording: each measurement against its threshold, with a sentence on what to record better."""

from __future__ import annotations

import math
from dataclasses import replace

from rvc_spark.profiles.cutting import propose_cuts
from rvc_spark.profiles.findings import Finding
from rvc_spark.profiles.hearing import Heard
from rvc_spark.profiles.levels import decibels, find_hum
from rvc_spark.profiles.quality_settings import QualitySettings
from rvc_spark.profiles.sample_report import SampleReport
from rvc_spark.profiles.speech_activity import seconds_of
from rvc_spark.profiles.voices_in_sample import steady_tones

LEAST_SNR, MOST_SNR = -20.0, 80.0
"""dB; beyond them there is no voice, or no noise, to speak of."""
UPSAMPLED_SHARE = 0.75
"""Of half the rate; less bandwidth than that and the rate promises what is not there."""


def sample_report(index: int, name: str, heard: Heard, settings: QualitySettings, spread: float | None) -> SampleReport:
    """Everything about one recording that needs no other one.

    Args:
        spread: see `speaker_spread`; None where it could not be measured, and nothing is said of a second speaker.
    """
    levels = heard.levels
    voiced = heard.speech_power if heard.speech_power > 0 else _mean_power(heard)
    hum = find_hum(heard.excerpt, voiced)
    snr = None
    if heard.speech_power > 0 and heard.noise_power is not None:
        snr = decibels(heard.speech_power - heard.noise_power) - decibels(heard.noise_power)
        snr = min(max(snr, LEAST_SNR), MOST_SNR)
    report = SampleReport(
        index=index, name=name, kind=heard.kind, coding=heard.coding,
        bit_depth=heard.bit_depth, bytes=heard.bytes, rate=heard.rate, channels=heard.channels,
        duration=round(heard.duration, 4), pcm_sha256=heard.pcm_sha256,
        peak_dbfs=_rounded(20 * math.log10(levels.peak), 2) if levels.peak > 0 else None,
        loudness_lufs=_rounded(levels.loudness_lufs, 2), clipped_share=_rounded(levels.clipped_share, 6),
        clipped_runs=levels.clipped_runs, dc=_rounded(levels.dc, 6), used_bits=levels.used_bits,
        hum_hz=hum[0] if hum else None, hum_db=_rounded(hum[1], 1) if hum else None,
        speech_seconds=round(seconds_of(heard.speech), 3),
        speech=tuple((round(start, 3), round(end, 3)) for start, end in heard.speech),
        snr_db=_rounded(snr, 1), noise_dbfs=_rounded(decibels(heard.noise_power), 1) if heard.noise_power else None,
        bandwidth_hz=_rounded(heard.bandwidth_hz, 0), speaker_spread=_rounded(spread, 3),
        music=_rounded(steady_tones(heard.excerpt, hum[0] if hum else None), 3),
    )  # fmt: skip
    return judged(report, settings)


def judged(report: SampleReport, settings: QualitySettings) -> SampleReport:
    """The report with the findings its measurements give under these settings, and with cuts where it is too long."""
    judge = _Judge(report, settings)
    for look in (judge.length, judge.level, judge.speech, judge.noise, judge.band, judge.others):
        look()
    too_long = any(item.code == "too_long" for item in judge.findings)
    cuts = propose_cuts(report.speech, report.duration, settings) if too_long else ()
    return replace(report, findings=tuple(judge.findings), cuts=cuts)


class _Judge:
    """Collects findings; each method looks at one side of a recording."""

    def __init__(self, report: SampleReport, settings: QualitySettings) -> None:
        self.report, self.settings = report, settings
        self.findings: list[Finding] = []
        self.silent = report.peak_dbfs is None or report.peak_dbfs < settings.silence

    def _add(self, code: str, severity: str, value: float, limit: float, unit: str, advice: str) -> None:
        self.findings.append(Finding(code, severity, value, limit, unit, advice))

    def length(self) -> None:
        """Too short, too long."""
        seconds, settings = self.report.duration, self.settings
        if seconds < settings.min_sample_duration:
            self._add(
                "too_short",
                "reject",
                seconds,
                settings.min_sample_duration,
                "s",
                f"Record at least {settings.min_sample_duration:g} s; this has {seconds:.1f} s.",
            )
        if seconds > settings.max_sample_duration:
            self._add(
                "too_long",
                "reject",
                seconds,
                settings.max_sample_duration,
                "s",
                f"It has {seconds:.1f} s, and a sample has at most {settings.max_sample_duration:g} s: "
                "take the cuts that are offered, or cut it yourself at pauses.",
            )

    def level(self) -> None:
        """Silence, quietness, clipping, offset, hum."""
        report, settings = self.report, self.settings
        peak = report.peak_dbfs if report.peak_dbfs is not None else -120.0
        if self.silent:
            self._add(
                "silence",
                "reject",
                peak,
                settings.silence,
                "dBFS",
                "Nothing was recorded: choose the right microphone, and check that it is not muted.",
            )
            return
        if peak < settings.peak_warn:
            self._add(
                "quiet",
                "warn",
                peak,
                settings.peak_warn,
                "dBFS",
                f"The loudest moment is at {peak:.0f} dBFS: come nearer to the microphone or turn its gain up.",
            )
        share = report.clipped_share or 0.0
        if share >= settings.clipped_warn:
            bad = share >= settings.clipped_reject
            self._add(
                "clipped",
                "reject" if bad else "warn",
                share,
                settings.clipped_reject if bad else settings.clipped_warn,
                "",
                f"Peaks are cut off flat in {report.clipped_runs} places ({share:.2%} of it): "
                "turn the gain down so that the loudest word stays below -6 dBFS, and record again.",
            )
        dc = report.dc or 0.0
        if dc >= settings.dc_warn:
            bad = dc >= settings.dc_reject
            self._add(
                "dc_offset",
                "reject" if bad else "warn",
                dc,
                settings.dc_reject if bad else settings.dc_warn,
                "",
                f"The waveform is off centre by {dc:.3f}: use another input or sound card, or a high-pass filter.",
            )
        if report.hum_db is not None and report.hum_db >= settings.hum_note:
            grade, limit = self._level_of(report.hum_db, settings.hum_note, settings.hum_warn, settings.hum_reject)
            self._add(
                "hum",
                grade,
                report.hum_db,
                limit,
                "dB",
                f"Mains hum at {report.hum_hz:.0f} Hz, {report.hum_db:.0f} dB against the voice: keep power "
                "supplies away from the microphone, run the laptop on its battery, use a balanced cable.",
            )

    def speech(self) -> None:
        """Nobody, or hardly anybody, speaks."""
        report, settings = self.report, self.settings
        spoken = report.speech_seconds
        if self.silent:
            return
        if spoken < settings.min_speech_seconds:
            self._add(
                "no_speech",
                "reject",
                spoken,
                settings.min_speech_seconds,
                "s",
                f"Only {spoken:.1f} s of it are speech: read a few sentences aloud.",
            )
        elif spoken < settings.speech_share_warn * report.duration:
            self._add(
                "little_speech",
                "warn",
                spoken / report.duration,
                settings.speech_share_warn,
                "",
                f"Only {spoken / report.duration:.0%} of it is speech: read without long pauses.",
            )

    def noise(self) -> None:
        """Noise between the words."""
        snr, settings = self.report.snr_db, self.settings
        if snr is None or snr >= settings.snr_note or self.silent:
            return
        grade, limit = self._level_of(-snr, -settings.snr_note, -settings.snr_warn, -settings.snr_reject)
        self._add(
            "noisy",
            grade,
            snr,
            -limit,
            "dB",
            f"The voice is {snr:.0f} dB above what sounds between the words: close windows, switch fans off, "
            "come nearer to the microphone, record in a room with curtains.",
        )

    def band(self) -> None:
        """Less bandwidth than a voice has, and whether the rate pretends otherwise."""
        report, settings = self.report, self.settings
        width = report.bandwidth_hz
        if width is None or width >= settings.bandwidth_warn or self.silent:
            return
        bad = width < settings.bandwidth_reject
        limit = settings.bandwidth_reject if bad else settings.bandwidth_warn
        if width < UPSAMPLED_SHARE * report.rate / 2:
            self._add(
                "upsampled",
                "reject" if bad else "warn",
                width,
                limit,
                "Hz",
                f"It is a file of {report.rate} Hz that holds nothing above {width:.0f} Hz: it was once at a lower "
                "rate or came over a telephone. Give the first recording, at 16000 Hz or more.",
            )
        else:
            self._add(
                "narrow_band",
                "reject" if bad else "warn",
                width,
                limit,
                "Hz",
                f"At {report.rate} Hz it holds nothing above {width:.0f} Hz: record at 16000 Hz or more.",
            )

    def others(self) -> None:
        """A second speaker, music."""
        report, settings = self.report, self.settings
        spread = report.speaker_spread
        if spread is not None and spread < settings.voices_warn:
            bad = spread < settings.voices_reject
            self._add(
                "second_speaker",
                "reject" if bad else "warn",
                spread,
                settings.voices_reject if bad else settings.voices_warn,
                "",
                "It seems that two people speak, or one in two very different ways: give a recording of one "
                "person alone, in one manner.",
            )
        if report.music is None or report.music < settings.music_warn or self.silent:
            return
        if report.snr_db is not None and report.snr_db >= settings.singing_snr:
            self._add(
                "singing",
                "ok",
                report.music,
                settings.music_warn,
                "",
                "Notes are held as in singing: right for a singing voice; for speech, record speech.",
            )
            return
        bad = report.music >= settings.music_reject
        self._add(
            "music",
            "reject" if bad else "warn",
            report.music,
            settings.music_reject if bad else settings.music_warn,
            "",
            "Music or a steady tone sounds in it: record the voice alone, without radio, television or accompaniment.",
        )

    @staticmethod
    def _level_of(value: float, note: float, warn: float, reject: float) -> tuple[str, float]:
        """(grade, threshold passed) of a value that is worse the higher it is."""
        if value > reject:
            return "reject", reject
        return ("warn", warn) if value > warn else ("ok", note)


def _mean_power(heard: Heard) -> float:
    return float((heard.excerpt.astype(float) ** 2).mean()) if len(heard.excerpt) else 0.0


def _rounded(value: float | None, digits: int) -> float | None:
    """None for what JSON has no number for."""
    return None if value is None or not math.isfinite(value) else round(float(value), digits)
