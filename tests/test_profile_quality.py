"""Recordings are judged: every defect made here is named, clean speech passes, no two speakers are called one."""

from __future__ import annotations

import itertools
import json
import socket
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from rvc_spark.audio import Audio, EncodeOptions, encode_audio, read_audio, resample, write_audio
from rvc_spark.errors import ConfigError, MissingPackageError, ModelFileError, ProfileError, QualityError
from rvc_spark.installed_packages import is_installed
from rvc_spark.profiles import bundled_weights, quality
from rvc_spark.profiles.findings import CODES, GRADES, Finding
from rvc_spark.profiles.quality import Clip, check_report, examine_samples, examine_samples_steps
from rvc_spark.profiles.quality_settings import QualitySettings
from rvc_spark.profiles.sample_report import EnrolmentReport, SampleReport
from rvc_spark.profiles.speaker_embedding import cosine, load_speaker_encoder
from rvc_spark.profiles.speech_activity import load_speech_detector

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
OWN = ROOT / "assets" / "demo" / "examples"

pytestmark = pytest.mark.skipif(
    not (is_installed("silero_vad") and is_installed("resemblyzer")),
    reason="silero-vad and resemblyzer come with tools/setup_environment.py",
)
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the recordings of ../shared/data are not here")


@cache
def sound(name: str) -> Audio:
    return read_audio(DATA / name, mono=True)


def voice() -> Audio:
    """A clean recording that every checkout has: two sentences of a free corpus, and the same again, turned around."""
    one, other = (read_audio(OWN / f"source_{name}.wav", mono=True).resampled(16_000) for name in ("rms", "awb"))
    return one if one.seconds >= other.seconds else other


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def made(samples: np.ndarray, rate: int) -> Audio:
    return Audio(np.asarray(samples, np.float32), rate)


def found(audio: Audio, **settings: float) -> dict[str, Finding]:
    """code -> finding of one sample."""
    report = examine_samples([audio], QualitySettings(**settings)).samples[0]
    return {item.code: item for item in report.findings}


CLEAN = ("vctk/p225_008.flac", "ljspeech/LJ001-0005.flac")


@cache
def clean_clip(name: str) -> Audio:
    """Five seconds of clean speech."""
    whole = sound(f"speech/{name}")
    return made(whole.samples[: 5 * whole.rate], whole.rate)


def clipped(audio: Audio, percent: float) -> np.ndarray:
    limit = np.percentile(np.abs(audio.samples), 100 - percent)
    return np.clip(audio.samples, -limit, limit)


def with_noise(audio: Audio, snr: float) -> np.ndarray:
    noise = np.random.default_rng(5).standard_normal(audio.frames)
    return audio.samples + noise * rms(audio.samples) * 10 ** (-snr / 20)


def with_hum(audio: Audio, hertz: float, level: float) -> np.ndarray:
    time = np.arange(audio.frames) / audio.rate
    return audio.samples + np.sqrt(2) * rms(audio.samples) * 10 ** (level / 20) * np.sin(2 * np.pi * hertz * time)


def with_music(audio: Audio, level: float) -> np.ndarray:
    music = sound("music/Kevin_MacLeod_-_Vibe_Ace.hq.ogg").resampled(audio.rate).samples[10 * audio.rate :]
    music = music[: audio.frames]
    return (audio.samples + music * rms(audio.samples) / rms(music) * 10 ** (level / 20)) / 2


def doubled(audio: Audio, how: str) -> Audio:
    """8 kHz brought to another rate, well and badly."""
    narrow = resample(audio.samples, audio.rate, 8_000)
    if how == "well":
        return made(resample(narrow, 8_000, 44_100), 44_100)
    return made(np.interp(np.arange(2 * len(narrow)) / 2, np.arange(len(narrow)), narrow), 16_000)


# ------------------------------------------------------------------------------------------------- one sample


@needs_data
@pytest.mark.parametrize("name", CLEAN)
def test_every_defect_is_named(name: str) -> None:
    clean = clean_clip(name)
    rate = clean.rate
    assert all(item.severity == "ok" for item in found(clean).values())
    for code, grade, audio in (
        ("clipped", "warn", made(clipped(clean, 0.1), rate)),
        ("clipped", "reject", made(clipped(clean, 5), rate)),
        ("clipped", "reject", made(np.round(clipped(clean, 5) * 0.25 * 32_768) / 32_768, rate)),  # turned down later
        ("noisy", "reject", made(with_noise(clean, 5), rate)),
        ("noisy", "warn", made(with_noise(clean, 15), rate)),
        ("noisy", "ok", made(with_noise(clean, 30), rate)),
        ("upsampled", "warn", doubled(clean, "well")),
        ("upsampled", "warn", doubled(clean, "badly")),
        ("narrow_band", "warn", clean.resampled(8_000)),
        ("too_short", "reject", made(clean.samples[: int(2.9 * rate)], rate)),
        ("silence", "reject", made(np.zeros(5 * rate), rate)),
        ("no_speech", "reject", made(with_noise(made(np.full(5 * rate, 0.01), rate), 0) - 0.01, rate)),
        ("hum", "warn", made(with_hum(clean, 50, -15), rate)),
        ("hum", "reject", made(with_hum(clean, 60, 0), rate)),
        ("dc_offset", "warn", made(clean.samples * 0.5 + 0.05, rate)),
        ("quiet", "warn", made(clean.samples * 0.01 / np.abs(clean.samples).max(), rate)),
        ("music", "reject", made(with_music(clean, 0), rate)),
        ("music", None, made(with_music(clean, -8), rate)),
    ):  # fmt: skip
        findings = found(audio)
        assert code in findings, (code, grade, findings)
        assert findings[code].severity == grade or grade is None and findings[code].severity != "ok", findings[code]
        assert findings[code].advice.endswith(".")


@needs_data
@pytest.mark.parametrize("snr", [5, 15, 30])
def test_the_noise_is_measured(snr: float) -> None:
    for name in CLEAN:
        clean = clean_clip(name)
        report = examine_samples([made(with_noise(clean, snr), clean.rate)]).samples[0]
        assert report.snr_db == pytest.approx(snr, abs=2.5)
        assert "upsampled" not in report.codes and "music" not in report.codes  # noise is not taken for either


@needs_data
def test_a_second_over_the_limit_is_too_long() -> None:
    clean = clean_clip(CLEAN[0])
    assert found(made(np.resize(clean.samples, 31 * clean.rate), clean.rate))["too_long"].severity == "reject"


@needs_data
def test_music_and_singing() -> None:
    music = sound("music/Kevin_MacLeod_-_Vibe_Ace.hq.ogg")
    for name in ("accompaniment", "mixture"):
        assert found(sound(f"stems/{name}.flac"))["music"].severity == "reject"
    for start in (0, 25):
        part = made(music.samples[start * music.rate : (start + 8) * music.rate], music.rate)
        assert found(part)["music"].severity == "reject"
    for name in ("stems/vocals.flac", "singing/vocadito_10.flac"):  # a singer alone is a voice
        assert all(item.severity == "ok" for item in found(sound(name)).values())


@needs_data
@pytest.mark.parametrize(("one", "other"), [
    ("vctk/p225_023", "vctk/p226_008"), ("vctk/p226_023", "vctk/p228_008"), ("ljspeech/LJ001-0001", "vctk/p227_011"),
])  # fmt: skip
def test_a_second_speaker_is_heard(one: str, other: str) -> None:
    first, second = (sound(f"speech/{name}.flac").resampled(16_000).samples[:80_000] for name in (one, other))
    second = second * rms(first) / rms(second)
    after = made(np.concatenate([first, second]), 16_000)
    turns = made(np.concatenate([first[:40_000], second[:40_000], first[40_000:], second[40_000:]]), 16_000)
    assert "second_speaker" in found(after) and "second_speaker" in found(turns)


@needs_data
def test_all_clean_speech_passes_and_no_two_speakers_are_called_one() -> None:
    files = [path for path in sorted(DATA.glob("speech/*/*")) if path.suffix in (".flac", ".ogg")]
    report = examine_samples(files)
    for sample in report.samples:
        own = [item for item in sample.findings if item.code != "other_speaker"]
        short = sample.duration < 3  # three clips of the corpus are shorter than a sample may be
        assert all(item.severity == "ok" or (short and item.code == "too_short") for item in own), sample
    limit = QualitySettings().similarity_accept
    speakers = [sample.name[:4] if sample.name[0] == "p" else sample.name.split("-")[0] for sample in report.samples]
    for one, other in itertools.combinations(range(len(files)), 2):
        if min(report.samples[one].duration, report.samples[other].duration) < 3:
            continue
        same = speakers[one] == speakers[other]
        assert (report.similarity.matrix[one][other] >= limit) == same, (files[one].name, files[other].name)
    one_voice = [place for place in report.accepted if "other_speaker" not in report.samples[place].codes]
    assert {speakers[place] for place in one_voice} == {"LJ001"}


@needs_data
def test_another_speaker_among_the_samples_is_named() -> None:
    own = [DATA / f"speech/vctk/p226_{number}.flac" for number in ("003", "008", "011")]
    alike = examine_samples([*own, DATA / "speech/vctk/p227_003.flac"])  # the most alike pair of speakers there is
    assert [sample.codes.count("other_speaker") for sample in alike.samples] == [0, 0, 0, 1]
    assert alike.grade == "warn"
    apart = examine_samples([*own, DATA / "speech/vctk/p225_003.flac"])
    assert apart.samples[3].grade == "reject" and apart.accepted == (0, 1, 2)
    assert apart.grade == "warn"
    check_report(apart)
    assert apart.samples[3].name in " ".join(apart.sentences)


# ---------------------------------------------------------------------------------------------------- the set


@needs_data
def test_copies_are_named_whatever_was_done_to_them(tmp_path: Path) -> None:
    clean = sound("speech/vctk/p225_023.flac")
    mp3 = encode_audio(made(clean.samples * 0.3, clean.rate), EncodeOptions(format="mp3"))
    flac = encode_audio(clean, EncodeOptions(format="flac"))
    cut = made(clean.samples[clean.rate // 2 : -clean.rate], clean.rate)
    other = DATA / "speech/vctk/p225_003.flac"
    report = examine_samples([clean, flac, mp3, cut, other])
    assert [("duplicate" in sample.codes) for sample in report.samples] == [False, True, True, True, False]
    assert report.samples[0].pcm_sha256 == report.samples[1].pcm_sha256
    assert report.total_seconds == pytest.approx(report.samples[0].duration + report.samples[4].duration, abs=0.01)


@needs_data
def test_the_same_sentence_of_two_people_is_no_copy() -> None:
    report = examine_samples([DATA / f"speech/vctk/p{number}_003.flac" for number in (225, 226, 227, 228)])
    assert not any("duplicate" in sample.codes for sample in report.samples)


@needs_data
def test_a_long_file_is_offered_in_cuts_that_pass() -> None:
    clips = [sound(f"speech/vctk/p228_{number}.flac").samples for number in ("003", "008", "011", "016", "023")]
    pause = np.random.default_rng(0).standard_normal(6_400) * 1e-4
    long = made(np.concatenate([part for clip in clips for part in (clip, pause)]), 16_000)
    sample = examine_samples([long]).samples[0]
    assert "too_long" in sample.codes and len(sample.cuts) >= 2
    assert all(3 <= cut.end - cut.start <= 30 for cut in sample.cuts)
    assert sum(cut.speech_seconds for cut in sample.cuts) > 0.95 * sample.speech_seconds
    report = examine_samples([Clip(long, cut.start, cut.end) for cut in sample.cuts])
    assert report.grade == "ok", report.sentences
    best = report.reference
    assert best is not None and 6 <= best.end - best.start <= 15
    assert "begins and ends in pauses" in best.reason
    assert len(report.embedding) == 256 and np.linalg.norm(report.embedding) == pytest.approx(1, abs=1e-4)


@needs_data
def test_the_reference_is_the_best_of_the_samples() -> None:
    clean = sound("speech/vctk/p225_023.flac")
    others = [DATA / f"speech/vctk/p225_{number}.flac" for number in ("008", "016")]
    report = examine_samples([made(with_noise(clean, 15), clean.rate), *others])
    assert report.reference.sample == 1  # the third is shorter than 6 s


@needs_data
def test_the_report_goes_to_json_and_back() -> None:
    report = examine_samples([DATA / "speech/vctk/p225_003.flac", made(np.zeros(80_000), 16_000), b"no sound"])
    table = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert EnrolmentReport.from_dict(table) == report
    assert table["grade"] == report.grade and table["samples"][0]["bit_depth"] == 16


# ------------------------------------------------------------------------------------- without ../shared


def test_formats_rates_and_channels_of_every_kind(tmp_path: Path) -> None:
    clean = voice()
    eight = np.stack([clean.resampled(96_000).samples * gain for gain in np.linspace(0.3, 1, 8)])
    sources = {
        "eight.wav": write_audio(
            tmp_path / "eight.wav", made(eight, 96_000), options=EncodeOptions(sample_format="pcm24")
        ),
        "low.wav": write_audio(tmp_path / "low.wav", clean.resampled(8_000)),
        "m.mp3": write_audio(tmp_path / "m.mp3", clean),
    }
    paths = [tmp_path / name for name in sources]
    told = [sample for sample in examine_samples(paths, QualitySettings(min_sample_duration=0.5)).samples]
    assert [sample.rate for sample in told] == [96_000, 8_000, 16_000]
    assert [sample.channels for sample in told] == [8, 1, 1]
    assert [sample.bit_depth for sample in told] == [24, 16, None]
    assert [sample.kind for sample in told][:2] == ["wav", "wav"] and told[2].coding.startswith("mp3")
    for sample in told:
        assert sample.speech_seconds == pytest.approx(told[0].speech_seconds, abs=0.4)
        assert sample.bytes == (tmp_path / sample.name).stat().st_size
    assert "narrow_band" in told[1].codes


def test_sixteen_bits_in_a_file_of_twenty_four_are_noticed(tmp_path: Path) -> None:
    sixteen = made(np.round(voice().samples * 32_768) / 32_768, 16_000)
    write_audio(tmp_path / "wide.wav", sixteen, options=EncodeOptions(sample_format="pcm24"))
    sample = examine_samples([tmp_path / "wide.wav"]).samples[0]
    assert (sample.bit_depth, sample.used_bits) == (24, 16)


def test_bad_files_are_rejected_samples_and_spoil_no_other(tmp_path: Path) -> None:
    (tmp_path / "page.wav").write_text("<html>not found</html>")
    (tmp_path / "empty.wav").write_bytes(b"")
    write_audio(tmp_path / "good.wav", voice())
    cut_off = (tmp_path / "good.wav").read_bytes()[:20_000]
    huge = tmp_path / "huge.wav"
    with huge.open("wb") as file:
        file.truncate(2 << 30)  # 2 GiB of nothing on the disk
    sources = [tmp_path / "page.wav", tmp_path / "empty.wav", cut_off, tmp_path / "absent.wav", huge,
               Clip(tmp_path / "good.wav", 500, 510), tmp_path / "good.wav"]  # fmt: skip
    report = examine_samples(sources)
    codes = [sample.codes[0] if sample.codes else "" for sample in report.samples]
    assert codes[:6] == ["unreadable"] * 4 + ["too_large", "unreadable"]
    assert report.samples[6].speech_seconds > 1
    assert "2,147,483,648" in report.samples[4].advice[0]


def test_a_long_file_is_read_in_bounded_memory_or_not_at_all(tmp_path: Path) -> None:
    import tracemalloc

    minutes = made(np.tile(voice().resampled(8_000).samples, 200)[: 8_000 * 150], 8_000)
    path = write_audio(tmp_path / "minutes.wav", minutes)
    path = tmp_path / "minutes.wav"
    tracemalloc.start()
    steps = list(examine_samples_steps([path]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 << 20
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions) and fractions[-1] == 1 and len(steps) > 60
    refused = examine_samples([path], QualitySettings(max_file_seconds=60)).samples[0]
    assert refused.codes == ("too_large",) and "1 minutes" in refused.advice[0]


def test_closing_the_steps_ends_the_work(tmp_path: Path) -> None:
    write_audio(tmp_path / "good.wav", voice())
    steps = examine_samples_steps([tmp_path / "good.wav"] * 3)
    next(steps)
    steps.close()
    (tmp_path / "good.wav").unlink()


def test_nothing_touches_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    quality.bundled_speaker_encoder.cache_clear()
    assert examine_samples([voice()]).similarity.checked


def test_without_the_speaker_encoder_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = bundled_weights.package_folder
    monkeypatch.setattr(bundled_weights, "package_folder", lambda name: None if name == "resemblyzer" else real(name))
    quality.bundled_speaker_encoder.cache_clear()
    report = examine_samples([voice()])
    assert not report.similarity.checked and "pip install --no-deps resemblyzer" in report.similarity.reason
    assert "similarity_unchecked" in [item.code for item in report.findings]
    assert any("not checked" in sentence for sentence in report.sentences)
    monkeypatch.setattr(bundled_weights, "package_folder", lambda name: None)
    with pytest.raises(MissingPackageError, match="pip install silero-vad"):
        examine_samples([voice()])


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    import torch

    bad = tmp_path / "pretrained.pt"
    state = {name: torch.zeros(2) for name in ("lstm.weight_ih_l0", "linear.weight")}
    torch.save({"model_state": state}, bad)
    with pytest.raises(ModelFileError, match="another network"):
        load_speaker_encoder(bad)
    torch.save({"model_state": {"linear.weight": torch.full((2,), torch.nan)}}, bad)
    with pytest.raises(ModelFileError, match="not finite"):
        load_speaker_encoder(bad)
    bad.write_bytes(b"nothing")
    with pytest.raises(ModelFileError):
        load_speech_detector(bad)


def test_speech_in_blocks_is_speech_at_once() -> None:
    samples = voice().samples
    whole, parts = load_speech_detector(), load_speech_detector()
    whole.push(samples)
    for start in range(0, len(samples), 777):
        parts.push(samples[start : start + 777])
    np.testing.assert_allclose(parts.finish(), whole.finish(), atol=1e-4)


def test_an_embedding_does_not_depend_on_the_level() -> None:
    encoder = load_speaker_encoder()
    samples = voice().samples * 0.05
    assert cosine(encoder.embed(samples), encoder.embed(samples * 0.2)) > 0.9999


# ---------------------------------------------------------------------------------------------------- values


def test_settings_refuse_what_is_out_of_range_or_upside_down() -> None:
    for change in ({"min_sample_duration": 0}, {"snr_warn": float("nan")}, {"max_samples": 1.5}, {"dc_warn": True}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            QualitySettings(**change)
    with pytest.raises(ConfigError, match="snr_warn=5 is below snr_reject=10"):
        QualitySettings(snr_warn=5)
    with pytest.raises(ConfigError, match="there is no setting snr_warm"):
        QualitySettings().changed(snr_warm=3)


def test_settings_change_the_grade() -> None:
    loud = found(voice(), snr_note=100, snr_warn=99, snr_reject=98, min_sample_duration=0.5)
    assert loud["noisy"].severity == "reject"


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 samples"):
        examine_samples([])
    with pytest.raises(ConfigError, match="2 names were given for 1"):
        examine_samples([voice()], names=["a", "b"])


def test_a_rejected_report_is_an_error_that_names_the_worst() -> None:
    report = examine_samples([made(np.zeros(80_000), 16_000)], names=["mute.wav"])
    assert report.grade == "reject"
    with pytest.raises(QualityError, match="No sample is usable"):
        check_report(report)
    assert any("mute.wav: Nothing was recorded" in sentence for sentence in report.sentences)


@pytest.mark.parametrize("change", [
    {"samples": {}}, {"similarity": None}, {"total_seconds": "3"}, {"total_seconds": float("nan")},
    {"samples": [{"index": 0}]}, {"findings": [{"code": "x"}]}, {"embedding": [1, None]}, {"samples": [3]},
])  # fmt: skip
def test_a_damaged_report_is_refused_by_field(change: dict[str, object]) -> None:
    sample = SampleReport(0, "a", findings=(Finding("hum", "warn", -20.0, -24.0, "dB", "Hum."),)).as_dict()
    table = {"samples": [sample], "similarity": {"checked": False, "reason": "", "matrix": [[None]]}, "findings": [],
             "reference": None, "total_speech_seconds": 0.0, "total_seconds": 1, "embedding": None,
             "settings": {}}  # fmt: skip
    assert EnrolmentReport.from_dict(table).samples[0].grade == "warn"
    with pytest.raises(ProfileError, match=next(iter(change))):
        EnrolmentReport.from_dict({**table, **change})


def test_every_code_has_words() -> None:
    assert all(words and not words.endswith(".") for words in CODES.values()) and GRADES == ("ok", "warn", "reject")
