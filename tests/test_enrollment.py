"""Enrolling a voice: what comes of recordings and a consent, what is refused, and that a refusal leaves nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from rvc_spark.audio import Audio, encode_audio, loudness_lufs, read_audio, true_peak_dbtp, write_audio
from rvc_spark.cli import main
from rvc_spark.errors import ConsentError, ProfileError, ProfileExistsError, QualityError, SpeechError
from rvc_spark.infer.pitch import load_tracker
from rvc_spark.profiles.consent import STATEMENT, given_consent, joint_hash
from rvc_spark.profiles.enrolment import Enrolment
from rvc_spark.profiles.normalising import normalised
from rvc_spark.profiles.profile_store import ProfileStore
from rvc_spark.profiles.voice_enrollment import VoiceEnrollmentPipeline
from rvc_spark.profiles.voice_profile import VoiceProfile, open_profile
from rvc_spark.rvc_config import Choice, RVCConfig
from rvc_spark.rvc_init import convert_audio, get_profiles, init_rvc, load_model
from rvc_spark.tts.engine import BaseTTSEngine, EmbeddingResult
from rvc_spark.tts.espeak import EspeakEngine, EspeakSettings

EXAMPLES = RVCConfig().demo_dir / "examples"
CLIPS = sorted(EXAMPLES.glob("*slt*.flac"))  # four recordings of one voice, 3.3 to 4.2 s
CONSENT = given_consent(STATEMENT, "Anna Example")
PM = load_tracker("pm")


class Parrot(BaseTTSEngine):
    """An engine that keeps what it is given: how long the clip is and what it says."""

    name: ClassVar[str] = "parrot"

    def __init__(self, folder: Path, problem: str | None = None) -> None:
        super().__init__(folder)
        self.problem = problem

    @property
    def choice(self) -> Choice:
        return Choice(self.name, "for tests")

    def enroll(self, samples: Sequence[Path | Audio], *, transcript: str | None = None) -> EmbeddingResult:
        if self.problem:
            return EmbeddingResult(None, 0, False, self.problem)
        path = self.own_folder() / "parrot.json"
        (sample,) = samples
        path.write_text(json.dumps({"seconds": sample.seconds, "transcript": transcript}))
        return EmbeddingResult(path, 1, True)

    def stream(self, embedding_path: str | Path | None, text: str) -> Iterator[Audio]:
        yield Audio(np.zeros(100, np.float32), 16_000)


@pytest.fixture
def store(tmp_path: Path) -> ProfileStore:
    return ProfileStore(tmp_path / "profiles")


def parrot(tmp_path: Path, problem: str | None = None, **durations: float) -> VoiceEnrollmentPipeline:
    return VoiceEnrollmentPipeline(Parrot(tmp_path / "speech", problem), tracker=PM, **durations)


def nothing_left(store: ProfileStore) -> bool:
    return not store.root.exists() or {path.name for path in store.root.iterdir()} <= {".locks", ".tombstones"}


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> VoiceProfile:
    """A profile of the four clips, in a store of its own. Not to be changed."""
    folder = tmp_path_factory.mktemp("enrolled")
    pipeline = VoiceEnrollmentPipeline(EspeakEngine(EspeakSettings(), folder=folder / "speech"), tracker=PM)
    told = Enrolment("Anna", CONSENT, language="en", keep_originals=True)
    steps: list[float] = []
    profile = pipeline.enroll(CLIPS, ProfileStore(folder / "profiles"), told, lambda step: steps.append(step.fraction))
    assert steps == sorted(steps) and steps[-1] == 1.0 and len(steps) > 8
    return profile


def copied(profile: VoiceProfile, store: ProfileStore) -> VoiceProfile:
    store.draft().__exit__(None, None, None)  # makes the root
    shutil.copytree(profile.folder, store.root / profile.id)
    return store.get(profile.id)


# ------------------------------------------------------------------------------------------------ what comes of it


def test_a_profile_holds_what_was_recorded(enrolled: VoiceProfile) -> None:
    enrolled.check()
    assert len(enrolled.samples) == len(CLIPS) and enrolled.record.language == "en" and enrolled.record.grade == "ok"
    for number, (sample, clip) in enumerate(zip(enrolled.samples, CLIPS, strict=True)):
        sound, came = enrolled.sample(number), read_audio(clip, mono=True)
        assert sound.rate == came.rate == sample.rate and sound.frames == came.frames
        gain = 10 ** (sample.gain_db / 20)
        np.testing.assert_allclose(sound.samples, came.samples * gain, atol=2 / 32_768)
        assert loudness_lufs(sound) == pytest.approx(-23, abs=0.1)
        assert sample.original is not None and (enrolled.folder / sample.original).read_bytes() == clip.read_bytes()
    report = enrolled.report()
    assert report.grade == "ok" and [sample.name for sample in report.samples] == [clip.name for clip in CLIPS]
    embedding = enrolled.embedding
    assert embedding is not None and embedding.shape == (256,)
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-4)


def test_its_pitch_is_that_of_the_recordings(enrolled: VoiceProfile) -> None:
    f0 = np.concatenate([PM.track(read_audio(clip, rate=16_000, mono=True).samples) for clip in CLIPS])
    low, median, high = np.percentile(f0[f0 > 0], [5, 50, 95])
    pitch = enrolled.pitch
    assert pitch is not None and enrolled.record.f0.method == "pm"
    assert (pitch.low, pitch.median, pitch.high) == pytest.approx((low, median, high), rel=0.02)
    assert 160 < pitch.median < 190


def test_its_reference_is_the_stretch_the_report_chose(enrolled: VoiceProfile) -> None:
    chosen, own = enrolled.report().reference, enrolled.record.reference
    assert chosen is not None and (own.sample, own.start, own.end) == (chosen.sample, chosen.start, chosen.end)
    clip, sample = enrolled.reference(), enrolled.sample(own.sample)
    start = round(own.start * sample.rate)
    middle = slice(clip.frames // 4, clip.frames // 2)
    expected = sample.samples[start : start + clip.frames]
    np.testing.assert_allclose(clip.samples[middle], expected[middle], atol=2 / 32_768)
    assert abs(clip.samples[0]) < 1e-3 and abs(clip.samples[-1]) < 1e-3, "a clip begins and ends in silence"


def test_the_consent_is_for_these_recordings(enrolled: VoiceProfile) -> None:
    consent = enrolled.record.consent
    assert (consent.statement, consent.who, consent.method) == (STATEMENT, "Anna Example", "checkbox")
    assert consent.sample_sha256 == joint_hash(sample.pcm_sha256 for sample in enrolled.report().samples)
    assert [sample.pcm_sha256 for sample in enrolled.samples] == [
        sample.pcm_sha256 for sample in enrolled.report().samples
    ]


def test_loudness_yields_to_the_peak_and_rates_to_what_speech_needs() -> None:
    click = np.zeros(96_000 * 4, np.float32)
    click[:: 96_000] = 0.5
    sound, gain = normalised(Audio(np.stack([click, click]), 96_000))
    assert sound.rate == 48_000 and sound.channels == 1 and true_peak_dbtp(sound) == pytest.approx(-1, abs=0.2)
    silent, gain = normalised(Audio(np.zeros(16_000, np.float32), 16_000))
    assert gain == 0.0 and not silent.samples.any()


# ------------------------------------------------------------------------------------------- engines and transcripts


def test_any_engine_learns_the_clip_and_leaves_nothing_outside(store: ProfileStore, tmp_path: Path) -> None:
    texts = [f"Sentence {number}." for number in range(len(CLIPS))]
    told = Enrolment("Anna", CONSENT, transcripts=texts)
    given = [str(CLIPS[0]), CLIPS[1].read_bytes(), read_audio(CLIPS[2]), CLIPS[3]]
    profile = parrot(tmp_path).enroll(given, store, told)
    (learnt,) = profile.derived_folder.iterdir()
    heard = json.loads(learnt.read_text())
    own = profile.record.reference
    assert heard["transcript"] == texts[own.sample] == profile.transcript
    assert heard["seconds"] == pytest.approx(own.end - own.start, abs=0.01)
    assert "because its words are known" in own.reason
    assert [sample.transcript for sample in profile.samples] == texts
    assert not (tmp_path / "speech").exists() and stat_is_private(learnt)


def stat_is_private(path: Path) -> bool:
    return path.stat().st_mode & 0o077 == 0


def test_an_engine_that_learns_nothing_leaves_nothing(store: ProfileStore, tmp_path: Path) -> None:
    pipeline = parrot(tmp_path, "it heard only noise", min_total_duration=3.0)
    with pytest.raises(SpeechError, match="it heard only noise"):
        pipeline.enroll(CLIPS[:1], store, Enrolment("Anna", CONSENT))
    assert nothing_left(store)


def test_a_folder_of_its_own_and_stopping_half_way(tmp_path: Path) -> None:
    pipeline = parrot(tmp_path, min_total_duration=3.0)
    place = tmp_path / "anna"
    steps = pipeline.enroll_steps(CLIPS[:1], place, Enrolment("Anna", CONSENT))
    while next(steps).fraction < 0.9:
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".creating-")]
    steps.close()
    assert list(tmp_path.iterdir()) == []
    profile = pipeline.enroll(CLIPS[:1], place, Enrolment("Anna", CONSENT))
    assert open_profile(place).id == profile.id
    with pytest.raises(ProfileExistsError):
        pipeline.enroll(CLIPS[:1], place, Enrolment("Anna", CONSENT))


# ---------------------------------------------------------------------------------------------------------- refusals


def test_nothing_is_enrolled_without_consent(store: ProfileStore, tmp_path: Path) -> None:
    for told in (None, Enrolment("Anna")):
        with pytest.raises(ConsentError, match="consent"):
            parrot(tmp_path).enroll(CLIPS, store, told)
    spoken = given_consent(STATEMENT, "Anna Example", method="recording")
    with pytest.raises(ConsentError, match="recording"):
        parrot(tmp_path).enroll(CLIPS, store, Enrolment("Anna", spoken))
    with pytest.raises(ProfileError, match="transcripts"):
        parrot(tmp_path).enroll(CLIPS, store, Enrolment("Anna", CONSENT, transcripts=["one"]))
    with pytest.raises(ProfileError, match="0 recordings"):
        parrot(tmp_path).enroll([], store, Enrolment("Anna", CONSENT))
    assert nothing_left(store)


def test_a_spoken_consent_is_in_the_same_voice_and_kept(store: ProfileStore, tmp_path: Path) -> None:
    spoken = given_consent(STATEMENT, "Anna Example", method="recording")
    pipeline = parrot(tmp_path, min_total_duration=3.0)
    with pytest.raises(ConsentError, match="another voice"):
        pipeline.enroll(CLIPS[:1], store, Enrolment("Anna", spoken, EXAMPLES / "source_rms.wav"))
    assert nothing_left(store)
    profile = pipeline.enroll(CLIPS[:1], store, Enrolment("Anna", spoken, CLIPS[1]))
    profile.check()
    assert read_audio(profile.folder / "consent.flac").seconds == pytest.approx(read_audio(CLIPS[1]).seconds)


def test_too_little_is_refused_with_advice_unless_it_is_accepted(store: ProfileStore, tmp_path: Path) -> None:
    with pytest.raises(QualityError) as refused:
        parrot(tmp_path).enroll(CLIPS[:1], store, Enrolment("Anna", CONSENT))
    assert "10" in str(refused.value) and "accept" in refused.value.next_step and nothing_left(store)
    profile = parrot(tmp_path).enroll(CLIPS[:1], store, Enrolment("Anna", CONSENT, accept="reject"))
    assert profile.record.grade == "reject" and len(profile.samples) == 1


def test_what_is_no_recording_is_left_out_and_spoils_no_other(store: ProfileStore, tmp_path: Path) -> None:
    script, huge, empty = tmp_path / "x.wav", tmp_path / "huge.wav", tmp_path / "empty.wav"
    script.write_bytes(b"#!/bin/sh\nrm -rf /\n")
    empty.write_bytes(b"")
    with huge.open("wb") as file:  # two gigabytes that nobody should read
        file.write(encode_audio(Audio(np.zeros(100, np.float32), 16_000)))
        file.truncate(2 << 30)
    pipeline = parrot(tmp_path, min_total_duration=3.0)
    given = [script, huge, CLIPS[0], empty, tmp_path / "gone.wav", tmp_path, CLIPS[0]]
    profile = pipeline.enroll(given, store, Enrolment("Anna", CONSENT, keep_originals=True))
    assert len(profile.samples) == 1 and profile.record.grade == "warn"
    codes = [sample.codes for sample in profile.report().samples]
    assert "too_large" in codes[1] and "unreadable" in codes[0] and "duplicate" in codes[6]
    assert sum(path.stat().st_size for path in profile.folder.rglob("*") if path.is_file()) < 2_000_000
    with pytest.raises(QualityError):
        pipeline.enroll([script, empty], store, Enrolment("Berta", CONSENT, accept="reject"))


def test_a_long_recording_is_enrolled_in_the_pieces_that_were_offered(store: ProfileStore, tmp_path: Path) -> None:
    pause = np.zeros(16_000, np.float32)
    sounds = [read_audio(clip, rate=16_000, mono=True).samples for clip in CLIPS[:3]]
    long = write_audio(tmp_path / "long.wav", Audio(np.concatenate([x for s in sounds for x in (s, pause)]), 16_000))
    pipeline = parrot(tmp_path, max_sample_duration=6.0, min_total_duration=6.0)
    with pytest.raises(QualityError):
        pipeline.enroll([long], store, Enrolment("Anna", CONSENT))
    profile = pipeline.enroll([long], store, Enrolment("Anna", CONSENT, cut=True))
    assert len(profile.samples) >= 2 and all(3 <= sample.seconds <= 6 for sample in profile.samples)


# ------------------------------------------------------------------------------------------------------------ serving


@pytest.fixture
def served(enrolled: VoiceProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VoiceProfile]:
    """The enrolled voice in the store of the shared VC."""
    for name in ("profiles", "temp"):
        monkeypatch.setenv(f"RVC_SPARK_{name.upper()}", str(tmp_path / name))
    monkeypatch.setenv("TRITON_SERVER_PORT", "1")
    monkeypatch.chdir(tmp_path)
    yield copied(enrolled, ProfileStore(tmp_path / "profiles"))
    init_rvc()


def test_a_conversion_goes_to_the_profiles_pitch_and_through_its_index(served: VoiceProfile) -> None:
    init_rvc()
    loaded = load_model("demo", index="profile:anna")
    assert loaded.index is not None and loaded.index.path.parent == served.derived_folder
    assert loaded.index.dim == loaded.info.content_dim
    conversion = convert_audio(EXAMPLES / "source_rms.wav", auto_key="profile:Anna", f0_method="pm")
    assert f"to {served.pitch.median:.0f} Hz" in conversion.engines["key"].reason
    assert served.pitch.low < np.median(conversion.result_f0[conversion.result_f0 > 0]) < served.pitch.high
    get_profiles().link("Anna", voice="demo")
    assert load_model("profile:Anna").name == load_model("demo").name


def run(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    code = main([*arguments, "--json"])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def test_the_command_line_shows_carries_and_deletes(served: VoiceProfile, capsys, tmp_path: Path) -> None:
    code, (told,), _ = run(capsys, "profiles", "list")
    assert code == 0 and told["name"] == "Anna" and told["samples"] == 4 and "consent" in told
    code, voices, _ = run(capsys, "voices")
    assert code == 0 and [voice["kind"] for voice in voices] == ["voice", "profile"] and voices[1]["name"] == "Anna"
    assert main(["voices"]) == 0 and "profile" in capsys.readouterr().out
    code, (told,), _ = run(capsys, "profiles", "show", "anna")
    assert code == 0 and told["consent"]["statement"] == STATEMENT and len(told["recordings"]) == 4
    assert main(["profiles", "show", "anna"]) == 0 and "reference:" in capsys.readouterr().out
    code, (told,), _ = run(capsys, "speak", "Hello.", "--engine", "espeak", "--reference", "anna", "--voice", "none",
                           "-o", "x.wav")  # fmt: skip
    assert code == 0 and Path("x.wav").is_file()
    code, (told,), _ = run(capsys, "profiles", "export", "Anna", "-o", "anna.zip")
    assert code == 0 and told["bytes"] > 100_000
    assert run(capsys, "profiles", "import", "anna.zip")[0] == 15
    assert run(capsys, "profiles", "delete", "Anna")[0] == 2, "nobody confirmed it"
    assert run(capsys, "profiles", "delete", "Anna", "--yes")[0] == 0
    assert run(capsys, "profiles", "show", "Anna")[0] == 15
    assert run(capsys, "profiles", "import", "anna.zip")[0] == 15, "it was deleted here"
    assert run(capsys, "profiles", "import", "anna.zip", "--restore", "--name", "Anna again")[0] == 0
    assert run(capsys, "profiles", "check")[0] == 0
    (path,) = (tmp_path / "profiles").glob("*/samples/01.flac")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    code, (told,), _ = run(capsys, "profiles", "check")
    assert code == 15 and "01.flac" in told["error"]


def test_the_command_line_enrols_with_consent_only(served: VoiceProfile, capsys, tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    for clip in CLIPS[:3]:
        shutil.copy(clip, folder)
    command = ["enroll", str(folder), "--name", "Berta", "--engine", "espeak"]
    said = ["--consent", STATEMENT, "--who", "Berta Example"]
    for without in (command, [*command, *said[:2]], [*command, *said], [*command, *said[2:], "--yes"]):
        assert run(capsys, *without)[0] == 16
    assert run(capsys, "enroll", str(CLIPS[0]), *said)[0] == 2, "consent without a name"
    assert run(capsys, "enroll", str(CLIPS[0]), "--name", "../x", *said, "--yes")[0] == 15
    assert run(capsys, "enroll", str(CLIPS[0]), "--name", "Short", "--engine", "espeak", *said, "--yes")[0] == 14
    code, (told,), _ = run(capsys, *command, *said, "--yes")
    assert code == 0 and told["name"] == "Berta" and told["samples"] == 3 and told["grade"] == "ok"
    assert run(capsys, *command, *said, "--yes")[0] == 15, "the name is taken"
    assert [profile.name for profile in get_profiles().profiles()] == ["Anna", "Berta"]
