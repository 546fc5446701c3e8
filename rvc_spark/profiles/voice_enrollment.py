"""Enrolling a voice: recordings and a consent go in, a profile comes out, or a sentence on what to record better.

    recordings -> examined one by one and together -> graded; refused here, with advice, or
               -> mono, one loudness -> samples/           the training set
               -> best stretch       -> reference.wav      for engines that clone, with its transcript if that is known
               -> pitch tracker      -> f0 range           for the automatic key
               -> the engine         -> its speaker file
               -> all of it renamed into its place at once

Works with any engine that follows `BaseTTSEngine`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rvc_spark.audio import Audio, EncodeOptions, encode_audio, read_audio
from rvc_spark.infer.pipeline import Progress, drain
from rvc_spark.infer.pitch import PitchTracker, load_tracker
from rvc_spark.infer.pitch_edit import voice_range
from rvc_spark.profiles.consent import Consent, now
from rvc_spark.profiles.enrolment import Enrolment
from rvc_spark.profiles.enrolment_sound import (
    check_same_voice,
    choose_reference,
    original_of,
    read_sample,
    settled,
    usable_samples,
)
from rvc_spark.profiles.normalising import normalised
from rvc_spark.profiles.private_files import write_private
from rvc_spark.profiles.profile_draft import ProfileDraft
from rvc_spark.profiles.profile_record import (
    CONSENT_SOUND,
    REFERENCE,
    REPORT,
    F0Range,
    ProfileRecord,
    StoredReference,
    StoredSample,
)
from rvc_spark.profiles.profile_store import ProfileStore
from rvc_spark.profiles.quality import Clip, SampleSource, examine_samples_steps
from rvc_spark.profiles.quality_settings import QualitySettings
from rvc_spark.profiles.sample_report import EnrolmentReport
from rvc_spark.profiles.serving import learn_speaker, speaker_name
from rvc_spark.profiles.strict_json import dump_plain
from rvc_spark.profiles.voice_profile import VoiceProfile
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.tts.engine import BaseTTSEngine

TRACK_RATE = 16_000  # Hz, of every pitch tracker
FRAMES_PER_SECOND = 100
LEAST_VOICED_SECONDS = 0.5  # less tells nothing of where a voice speaks
EXAMINED, KEPT = 0.6, 0.9  # of the progress bar
FLAC = EncodeOptions(format="flac", sample_format="pcm16", watermark="none")  # a person made it, no program


@dataclass(frozen=True)
class _Taken:
    """What was examined: recordings, what each says, and what was found."""

    sources: list[SampleSource]
    transcripts: list[str | None]
    report: EnrolmentReport


class VoiceEnrollmentPipeline:
    """Enrols voices for one engine.

    Args:
        engine: learns the speaker from the reference clip.
        min_sample_duration, max_sample_duration: seconds of one recording.
        min_total_duration: seconds of speech in all.
        settings: every other threshold.
        tracker: of the f0 range; None takes the best that is present.

    Raises ConfigError for a duration out of range.
    """

    def __init__(
        self,
        engine: BaseTTSEngine,
        min_sample_duration: float = 3.0,
        max_sample_duration: float = 30.0,
        min_total_duration: float = 10.0,
        *,
        settings: QualitySettings | None = None,
        tracker: PitchTracker | None = None,
    ) -> None:
        self.engine = engine
        self.settings = (settings or QualitySettings()).changed(
            min_sample_duration=min_sample_duration, max_sample_duration=max_sample_duration,
            min_total_duration=min_total_duration,
        )  # fmt: skip
        self._tracker = tracker

    @classmethod
    def of(cls, engine: BaseTTSEngine, settings: QualitySettings) -> VoiceEnrollmentPipeline:
        """A pipeline whose durations come from settings too."""
        return cls(
            engine, settings.min_sample_duration, settings.max_sample_duration, settings.min_total_duration,
            settings=settings,
        )  # fmt: skip

    def examine(
        self, samples: Sequence[SampleSource], on_progress: Callable[[Progress], None] | None = None
    ) -> EnrolmentReport:
        """What recordings are worth, without enrolling anything. A bad file is in the report, not raised."""
        return drain(examine_samples_steps(samples, self.settings), on_progress)

    def enroll(
        self,
        samples: Sequence[SampleSource],
        output_path: str | Path | ProfileStore,
        enrolment: Enrolment | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> VoiceProfile:
        """Make a profile of recordings.

        Args:
            samples: paths, bytes, Audio, or Clips of longer files, all of one speaker.
            output_path: the folder that becomes the profile, which must not exist; or a store, which finds a place.
            enrolment: name, consent and the rest. None has no consent and is refused.

        Raises ConsentError (none, or spoken by somebody else), QualityError (says which recordings are refused and what
        to record better), ProfileError, ProfileExistsError, SpeechError (the engine learns nothing), OutputError.
        Whatever fails, nothing is left behind.
        """
        return drain(self.enroll_steps(samples, output_path, enrolment), on_progress)

    def enroll_steps(
        self, samples: Sequence[SampleSource], output_path: str | Path | ProfileStore,
        enrolment: Enrolment | None = None,
    ) -> Generator[Progress, None, VoiceProfile]:  # fmt: skip
        """`enroll` as a generator of progress; closing it ends the work and erases what was begun."""
        told = enrolment or Enrolment("unnamed")
        told.checked_consent()
        told.texts(len(samples))
        sources = [settled(source, self.settings.max_file_bytes) for source in samples]
        if isinstance(output_path, ProfileStore):
            with output_path.reserved(told.name) as name, output_path.draft() as draft:
                return (yield from self._fill(draft, sources, replace(told, name=name)))
        with ProfileDraft(Path(output_path).absolute()) as draft:
            return (yield from self._fill(draft, sources, told))

    def _fill(
        self, draft: ProfileDraft, sources: list[SampleSource], told: Enrolment
    ) -> Generator[Progress, None, VoiceProfile]:
        taken = yield from self._examined(sources, told)
        chosen = usable_samples(taken.report, told.accept)
        kept: list[StoredSample] = []
        sounds: list[Audio] = []
        for place, number in enumerate(chosen):
            yield Progress(EXAMINED + (KEPT - EXAMINED) * place / len(chosen), f"keeping recording {number + 1}")
            sample, sound = self._keep(draft, taken, number, place, told.keep_originals)
            kept.append(sample)
            sounds.append(sound)
        yield Progress(KEPT, "choosing the reference and measuring the pitch")
        reference = choose_reference(taken.report, chosen, sounds, [sample.transcript for sample in kept])
        clip = encode_audio(reference.sound, EncodeOptions(format="wav", watermark="none"))
        mark = draft.add(REFERENCE, clip).sha256
        consent = self._bound(draft, told, taken.report, kept)
        draft.add(REPORT, dump_plain(taken.report.as_dict()))
        pitch = self._f0(sounds)
        yield Progress(0.95, f"{self.engine.name} learns the voice")
        content, suffix = learn_speaker(self.engine, read_audio(clip), reference.transcript, draft.folder)
        name = speaker_name(self.engine, reference.transcript, mark)
        write_private(draft.derived_folder / f"{name}{suffix}", content)
        stored = StoredReference(
            reference.sample, round(reference.start, 3), round(reference.end, 3), reference.sound.rate,
            reference.reason[:400], reference.transcript,
        )  # fmt: skip
        profile = draft.commit(ProfileRecord(
            id=draft.id, name=told.name, created=now(), consent=consent, samples=tuple(kept), reference=stored,
            grade=taken.report.grade, engine=self.engine.name, f0=pitch, language=told.language,
        ))  # fmt: skip
        yield Progress(1.0, f"{profile.name} is enrolled")
        return profile

    def _examined(self, sources: list[SampleSource], told: Enrolment) -> Generator[Progress, None, _Taken]:
        """The report; where long recordings are to be cut, that of their pieces."""
        texts = told.texts(len(sources))
        report = yield from _scaled(examine_samples_steps(sources, self.settings), 0.0, EXAMINED)
        if not told.cut or not any(sample.cuts for sample in report.samples):
            return _Taken(sources, texts, report)
        pieces: list[tuple[SampleSource, str | None]] = []
        for sample, source, text in zip(report.samples, sources, texts, strict=True):
            cuts = [Clip(source, cut.start, cut.end, sample.name) for cut in sample.cuts]
            pieces += [(cut, None) for cut in cuts] or [(source, text)]
        pieces = pieces[: self.settings.max_samples]
        again = [source for source, _ in pieces]
        report = yield from _scaled(examine_samples_steps(again, self.settings), EXAMINED / 2, EXAMINED)
        return _Taken(again, [text for _, text in pieces], report)

    def _keep(
        self, draft: ProfileDraft, taken: _Taken, number: int, place: int, keep_original: bool
    ) -> tuple[StoredSample, Audio]:
        """Write one recording, normalised and where wanted as it came. number: in the report; place: in the profile."""
        source, report = taken.sources[number], taken.report.samples[number]
        sound, gain = normalised(read_sample(source))
        file = f"samples/{place + 1:02d}.flac"
        draft.add(file, encode_audio(sound, FLAC))
        original = None
        came = original_of(source, report, self.settings.max_file_bytes) if keep_original else None
        if came is not None:
            blocks, suffix = came
            original = f"originals/{place + 1:02d}.{suffix}"
            draft.add(original, blocks)
        return StoredSample(
            file, sound.rate, round(sound.seconds, 4), gain, report.pcm_sha256, taken.transcripts[number], original
        ), sound  # fmt: skip

    def _bound(
        self, draft: ProfileDraft, told: Enrolment, report: EnrolmentReport, kept: Sequence[StoredSample]
    ) -> Consent:
        """The consent for exactly the recordings that are kept; a spoken one must be in the same voice, and is kept."""
        consent = told.checked_consent()
        if told.consent_recording is not None:
            spoken = read_sample(settled(told.consent_recording, self.settings.max_file_bytes))
            check_same_voice(spoken, report, self.settings.similarity_reject)
            draft.add(CONSENT_SOUND, encode_audio(normalised(spoken)[0], FLAC))
        return consent.bound_to(sample.pcm_sha256 for sample in kept)

    def _f0(self, sounds: Sequence[Audio]) -> F0Range | None:
        """Where the voice speaks over all recordings; None where hardly anything is voiced."""
        tracker = self._tracker or load_tracker("auto", rmvpe_path=RVCConfig().rmvpe_path)
        contours = [tracker.track(sound.resampled(TRACK_RATE).samples) for sound in sounds]
        f0 = np.concatenate(contours)
        voiced = float(np.count_nonzero(f0)) / FRAMES_PER_SECOND
        if voiced < LEAST_VOICED_SECONDS:
            return None
        found = voice_range(f0)
        low, high = found.low or found.median, found.high or found.median
        return F0Range(round(found.median, 2), round(low, 2), round(high, 2), round(voiced, 2), tracker.method)


def _scaled(
    steps: Generator[Progress, None, EnrolmentReport], low: float, high: float
) -> Generator[Progress, None, EnrolmentReport]:
    """The same work as a part of a longer one."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            return end.value
        yield Progress(low + (high - low) * step.fraction, step.message)
