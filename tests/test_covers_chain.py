"""A cover from end to end: what is made, what is kept, what a change redoes, duets, previews, hostile input."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from quick_cover import RATE, QuickVoice, band, made, maker_in, summed, sung

from rvc_spark.audio import (
    Audio,
    EncodeOptions,
    loudness_lufs,
    read_audio,
    read_tags,
    true_peak_dbtp,
    write_audio,
)
from rvc_spark.covers import cover_work
from rvc_spark.covers.cover_run import rows_as_words
from rvc_spark.covers.cover_settings import CoverSettings
from rvc_spark.covers.cover_sing import spread
from rvc_spark.covers.cover_work import FADE_FRAMES, span_gain
from rvc_spark.covers.mdx_net import MdxModel
from rvc_spark.covers.song_cover import Cover, CoverInput, CoverMaker
from rvc_spark.errors import AssetError, AudioError, ConfigError, OutputError
from rvc_spark.infer.pitch_edit import VoiceRange
from rvc_spark.rvc_config import Choice, RVCConfig
from rvc_spark.rvc_modules import VC

STEMS = CoverInput(vocals=sung(), accompaniment=band())


def states(cover: Cover) -> dict[str, str]:
    return {row.name: row.state for row in cover.stages}


def level_db(sound: np.ndarray) -> float:
    return 20 * float(np.log10(np.sqrt(np.mean(np.square(sound))) + 1e-12))


@pytest.fixture
def voice() -> QuickVoice:
    return QuickVoice()


@pytest.fixture
def maker(tmp_path: Path):
    return maker_in(tmp_path)


# ------------------------------------------------------------------------------------------------- made, kept, redone


def test_a_cover_from_stems_is_mixed_tagged_and_as_long_as_they_are(maker, voice, tmp_path: Path) -> None:
    cover = made(maker, STEMS, voice, tmp_path / "cover.flac", key=0.0)
    sound = read_audio(tmp_path / "cover.flac")
    assert (sound.rate, sound.channels, sound.frames) == (RATE, 2, sung().frames)
    assert loudness_lufs(sound) == pytest.approx(-14, abs=0.2) and true_peak_dbtp(sound) <= -1.0
    assert cover.mix["lufs"] == pytest.approx(-14, abs=0.2) and cover.seconds == pytest.approx(1.5)
    tags = read_tags(tmp_path / "cover.flac")
    assert "AI cover" in tags["comment"] and "AI voice" in tags["artist"] and "AI cover" in tags["title"]
    width = cover.report()["notes"]["lead voice: width"]
    assert width["value"] == "centred mono" and "RVC is mono" in width["reason"]
    assert list(tmp_path.glob(".*.part")) == [] and list((tmp_path / "covers").glob("*.draft")) == []


def test_a_gain_redoes_the_mix_and_nothing_else(maker, voice, monkeypatch) -> None:
    first = made(maker, STEMS, voice, key=0.0)
    assert len(voice.sung) == 1
    for name in ("separate", "polish", "move_key", "find_melody"):
        monkeypatch.setattr(cover_work, name, None)
    second = made(maker, STEMS, voice, key=0.0, voice_gain=-6.0)
    assert len(voice.sung) == 1
    assert {name: state for name, state in states(second).items() if state == "made"} == {"mix": "made"}
    assert not np.array_equal(first.audio.samples, second.audio.samples)
    third = made(maker, STEMS, voice, key=0.0)
    assert "made" not in states(third).values() and np.array_equal(third.audio.samples, first.audio.samples)


def test_what_a_change_redoes_is_told_before(maker, voice) -> None:
    def told(**settings) -> dict[str, tuple[str, str]]:
        rows = maker.explain(STEMS, CoverSettings().changed(**settings), None, voice)
        assert len(rows_as_words(rows)) == len(rows)
        return {row.name: (row.state, row.reason) for row in rows}

    assert {state for state, _ in told(key=0.0).values()} == {"to be made", "skipped"} and voice.sung == []
    assert told(key=0.0)["vocals"][1] == "never made"
    made(maker, STEMS, voice, key=0.0)
    assert {state for state, _ in told(key=0.0).values()} == {"kept", "skipped"}
    again = told(key=0.0, voice_gain=-3.0)
    assert [name for name, (state, _) in again.items() if state == "to be made"] == ["mix"]
    assert again["mix"][1] == "gain of voice is -3.0, was 0.0"
    again = told(key=2.0, accompaniment_key=0.0)
    assert [name for name, (state, _) in again.items() if state == "to be made"] == ["lead voice", "voice", "mix"]
    assert again["lead voice"][1] == "key is 2.0, was 0.0" and "depends on the voice" in again["voice"][1]
    assert [n for n, (s, _) in told(key=0.0, reverb=0.5).items() if s == "to be made"] == ["voice", "mix"]
    rows = maker.explain(STEMS, CoverSettings().changed(key=0.0), None, QuickVoice("another"))
    assert next(row for row in rows if row.name == "lead voice").reason == "voice is another"


def test_the_sound_counts_and_not_its_name_or_container(maker, voice, tmp_path: Path) -> None:
    flac, wav = tmp_path / "a.flac", tmp_path / "b b.wav"
    write_audio(flac, sung(), options=EncodeOptions(dither=False, sample_format="pcm16"))
    write_audio(wav, read_audio(flac), options=EncodeOptions(dither=False, sample_format="pcm16"))
    made(maker, CoverInput(vocals=flac), voice, key=0.0)
    other = made(maker, CoverInput(vocals=wav), voice, key=0.0)
    assert len(voice.sung) == 1 and states(other)["lead voice"] == "kept"


def test_progress_only_rises_and_closing_keeps_what_was_finished(maker, voice) -> None:
    steps = maker.steps(STEMS, CoverSettings().changed(key=0.0), voice=voice)
    fractions = []
    for step in steps:
        fractions.append(step.fraction)
        if step.message == "voice" and step.fraction > 0.5:
            break
    steps.close()
    assert fractions == sorted(fractions)
    assert not list(maker.store.root.glob("*.draft")) and maker.store.prune().kept == 2, "the decoded stems"
    assert states(made(maker, STEMS, voice, key=0.0))["vocals"] == "kept"


def test_other_formats_are_mixed_anew_and_saved_copies_are_the_same(maker, voice, tmp_path: Path) -> None:
    cover = made(maker, STEMS, voice, tmp_path / "cover.mp3", key=0.0)
    assert cover.mix["true_peak_dbtp"] <= -1.0 and read_audio(tmp_path / "cover.mp3").channels == 2
    cover.save(tmp_path / "copy.mp3")
    assert (tmp_path / "copy.mp3").read_bytes() == (tmp_path / "cover.mp3").read_bytes()
    with pytest.raises(OutputError, match="flac"):
        cover.save(tmp_path / "copy.flac")
    assert len(voice.sung) == 1


# ----------------------------------------------------------------------------------------------- where stems come from


def test_vocals_alone_make_a_cover_without_a_band(maker, voice) -> None:
    cover = made(maker, CoverInput(vocals=sung()), voice, key=0.0)
    assert "accompaniment" not in cover.stems and cover.audio.frames == sung().frames


def test_a_song_and_its_vocals_give_the_band(maker, voice) -> None:
    song = summed(sung(), band())
    cover = made(maker, CoverInput(song=song, vocals=sung()), voice, key=0.0)
    total = cover.stem("vocals").samples + cover.stem("accompaniment").samples
    assert level_db(total - song.samples) < -120
    assert level_db(cover.stem("accompaniment").samples - band().samples) < -120
    with pytest.raises(AudioError, match="1.50 s long and its vocals 1.00 s"):
        made(maker, CoverInput(song=song, vocals=sung(1.0)), voice, key=0.0)


def test_separation_with_a_model_of_the_real_class(tmp_path: Path, voice) -> None:
    pytest.importorskip("demucs", reason="pip install 'rvc-spark[covers]'")
    model = importlib.import_module("tiny_separator").make_model(tmp_path / "model")
    maker = maker_in(tmp_path, demucs=model)
    song = summed(sung(), band())
    cover = made(maker, CoverInput(song=song), voice, key=0.0)
    assert states(cover)["stems"] == "made"
    total = cover.stem("vocals").samples + cover.stem("accompaniment").samples
    assert level_db(total - song.samples) < -120, "the bar is -90 dB"
    warm = maker.engines.separator("good")
    instead = made(maker, CoverInput(song=song, accompaniment=band(seed=5)), voice, key=0.0)
    assert states(instead)["stems"] == "kept" and len(voice.sung) == 1
    assert np.array_equal(instead.stem("accompaniment").samples, band(seed=5).samples)
    made(maker, CoverInput(song=song), voice, key=0.0, preview=0.4, preview_seconds=1.0)
    assert maker.engines.separator("good") is warm


def test_without_the_weights_the_message_says_how_to_go_on(maker, voice) -> None:
    with pytest.raises(AssetError, match="assets get demucs; or give the stems"):
        made(maker, CoverInput(song=sung()), voice)
    with pytest.raises(AssetError, match="assets get demucs-ft"):
        made(maker, CoverInput(song=sung()), voice, quality="best")


def test_too_much_or_nothing_given_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither a song nor vocals"):
        CoverInput(accompaniment=band())
    with pytest.raises(ConfigError, match="both its stems"):
        CoverInput(sung(), sung(), band())


# --------------------------------------------------------------------------------------------- backing voices and rooms


class FakeNets:
    """Two "networks" that say a fixed share of the sound is the part."""

    def __init__(self, share: float, path: Path) -> None:
        self.share, self.path, self.model = share, path, MdxModel("id", "a part", 2048, 1.0)

    def steps(self, blocks, total):
        for block in blocks:
            yield 1.0, block * (1 - self.share), block * self.share


def with_nets(maker, share: float, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"net")
    monkeypatch.setattr(maker.engines, "mdx_file", lambda use: (path, Choice("net.onnx", "for tests")))
    monkeypatch.setattr(maker.engines, "mdx", lambda use: FakeNets(share, path))


def test_missing_networks_are_told_and_stop_nothing(maker, voice) -> None:
    cover = made(maker, STEMS, voice, key=0.0, backing="original", dereverb=True)
    rows = {row.name: row for row in cover.stages}
    assert rows["backing"].state == rows["room"].state == "skipped"
    assert "uvr-kara-2 is not at" in rows["backing"].reason and "assets get uvr-reverb-hq" in rows["room"].reason


def test_where_there_is_no_backing_the_lead_stays_as_it_was(maker, voice, tmp_path: Path, monkeypatch) -> None:
    with_nets(maker, 0.02, tmp_path, monkeypatch)
    cover = made(maker, STEMS, voice, key=0.0, backing="convert")
    told = [row.reason for row in cover.stages if row.name == "backing"]
    assert "there is none: what was found is -33.8 dB against the rest, less than -30" in told
    assert np.array_equal(cover.stem("lead").samples, sung().samples) and len(voice.sung) == 1


def test_backing_is_kept_or_converted_with_its_own_key_and_voice(maker, voice, tmp_path: Path, monkeypatch) -> None:
    with_nets(maker, 0.3, tmp_path, monkeypatch)
    cover = made(maker, STEMS, voice, key=0.0, backing="original")
    assert np.allclose(cover.stem("backing").samples, 0.3 * sung().samples, atol=1e-7) and len(voice.sung) == 1
    second = QuickVoice("second")
    monkeypatch.setattr(maker, "voice", lambda name, index="auto": second)
    cover = made(maker, STEMS, voice, key=0.0, backing="convert", backing_key=-5.0, backing_voice="second")
    assert [settings.key for settings in second.sung] == [-5.0] and len(voice.sung) == 1
    assert states(cover)["lead voice"] == "kept" and states(cover)["backing voice"] == "made"


def test_the_room_is_taken_out_before_the_conversion(maker, voice, tmp_path: Path, monkeypatch) -> None:
    with_nets(maker, 0.3, tmp_path, monkeypatch)
    cover = made(maker, STEMS, voice, key=0.0, dereverb=True)
    assert np.allclose(cover.stem("lead").samples, 0.7 * sung().samples, atol=1e-7)


# -------------------------------------------------------------------------------------------------- duets and previews


def test_in_a_duet_only_the_ranges_are_converted(maker, voice) -> None:
    cover = made(maker, STEMS, voice, key=0.0, ranges=[(0.5, 1.0)])
    start, stop = round(0.5 * RATE), RATE
    converted = cover.stem("converted").samples
    assert not converted[:start].any() and not converted[stop:].any() and level_db(converted[start:stop]) > -60
    other = made(maker, STEMS, voice, key=0.0, ranges=[(0.5, 1.0), (1.2, 9.0)])
    assert len(voice.sung) == 2
    tail = other.stem("converted").samples[round(1.3 * RATE) :]
    assert level_db(tail) > -60, "a range that reaches beyond the end ends with the song, unfaded"
    kept = other_singer(maker, other)
    assert np.array_equal(kept[:, :start], sung().samples[:, :start])
    assert not kept[:, start + FADE_FRAMES : stop - FADE_FRAMES].any() and not kept[:, round(1.3 * RATE) :].any()


def other_singer(maker, cover: Cover) -> np.ndarray:
    """The artefact of the stage that keeps the original voice."""
    keys = [key for key in maker.store._keys() if maker.store._read(key).recipe["stage"] == "other singer"]
    found = [maker.store._read(key) for key in keys]
    newest = max(found, key=lambda artefact: artefact.files["sound.wav"].stat().st_mtime_ns)
    return read_audio(newest.files["sound.wav"]).samples


def test_both_sides_of_a_range_cross_fade_to_one() -> None:
    spans = [(1000, 20_000), (30_000, 31_000)]
    gain = span_gain(spans, 0, 40_000)
    assert gain.min() == 0 and gain.max() == 1 and np.abs(np.diff(gain)).max() < 0.01
    assert not gain[:1000].any() and not gain[20_000:30_000].any() and (gain[2000:19_000] == 1).all()
    pieces = [span_gain(spans, at, at + 777) for at in range(0, 777 * 50, 777)]
    assert np.array_equal(np.concatenate(pieces), span_gain(spans, 0, 777 * 50)), "cut anywhere, the same"
    assert spread(spans, 40_000) == [(0, 40_000)] and spread([], 5) == [(0, 5)]
    assert spread([(100_000, 110_000)], 500_000) == [(77_950, 132_050)]


def test_a_preview_makes_its_window_and_no_more(maker, voice, tmp_path: Path) -> None:
    song = CoverInput(vocals=sung(4.0), accompaniment=band(4.0))
    cover = made(maker, song, voice, tmp_path / "preview.wav", key=0.0, preview=2.0, preview_seconds=1.0)
    assert cover.seconds == 1.0
    assert np.array_equal(cover.stem("vocals").samples, sung(4.0).samples[:, 2 * RATE : 3 * RATE])
    end = made(maker, song, voice, key=0.0, preview=3.5, preview_seconds=1.0)
    assert end.seconds == 0.5
    with pytest.raises(AudioError, match="begins at 9 s"):
        made(maker, song, voice, key=0.0, preview=9.0)
    with pytest.raises(ConfigError, match="between 2 and 3 s"):
        made(maker, song, voice, key=0.0, preview=2.0, preview_seconds=1.0, ranges=[(0, 1)])


def test_a_preview_of_a_separated_song_sees_what_surrounds_it(tmp_path: Path, voice) -> None:
    pytest.importorskip("demucs", reason="pip install 'rvc-spark[covers]'")
    maker = maker_in(tmp_path, demucs=importlib.import_module("tiny_separator").make_model(tmp_path / "model"))
    song = summed(sung(3.0), band(3.0))
    cover = made(maker, CoverInput(song=song), voice, key=0.0, preview=1.0, preview_seconds=1.0)
    total = cover.stem("vocals").samples + cover.stem("accompaniment").samples
    assert level_db(total - song.samples[:, RATE : 2 * RATE]) < -120 and total.shape[1] == RATE


# --------------------------------------------------------------------------------------------------------------- keys


def test_a_key_is_proposed_from_both_ranges_and_the_band_follows(maker, voice) -> None:
    voice.range = VoiceRange(300.0, 200.0, 450.0)
    cover = made(maker, STEMS, voice)
    assert voice.sung[0].key == 12.0 and cover.notes["band's key"].value == "+0"
    assert states(cover)["melody"] == "made" and states(cover)["band's key"] == "skipped"
    voice.range = VoiceRange(225.0, 200.0, 250.0)
    cover = made(maker, STEMS, voice)
    assert voice.sung[1].key == 7.0 and cover.notes["band's key"].value == "-5"
    assert states(cover)["band's key"] == "made"
    assert cover.stem("band").frames == band().frames
    cover = made(maker, STEMS, voice, accompaniment_key=1.0, key=0.0)
    assert cover.notes["in tune"].value == "no" and voice.sung[2].key == 0.0


# -------------------------------------------------------------------------------------------------- hostile and strange


@pytest.mark.parametrize("name", ["a\nb.wav", "-rf.wav", "ünï 🎤.wav", "x" * 200 + ".wav", "$(reboot).wav", "%s%n.wav"])
def test_strange_names_are_only_names(maker, voice, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_audio(path, sung())
    target = tmp_path / f"out {name[:50].replace('.wav', '')}.flac"
    cover = made(maker, CoverInput(vocals=path), voice, target, key=0.0)
    assert cover.path.is_file() and {item.parent for item in cover.stems.values()} == {maker.store.root}


@pytest.mark.parametrize("content", [b"", b"RIFF", b"PK\x03\x04" + bytes(500), b"\x80\x04." * 50, b"<html>" * 50])
def test_what_is_no_sound_is_refused_and_leaves_nothing(maker, voice, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "song.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"song\.wav"):
        made(maker, CoverInput(vocals=path), voice, tmp_path / "out.wav", key=0.0)
    assert not (tmp_path / "out.wav").exists() and maker.store.prune().kept == 0


def test_places_that_cannot_be_written_are_said_before_the_work(maker, voice, tmp_path: Path) -> None:
    song = write_audio(tmp_path / "song.wav", sung())
    for target, words in (
        (tmp_path / "none" / "x.wav", "does not exist"), (tmp_path / "x.doc", "suffix"), (tmp_path, "suffix|folder"),
        (song, "source itself"), (Path("/dev/null"), "suffix|device"),
    ):  # fmt: skip
        with pytest.raises(OutputError, match=words):
            made(maker, CoverInput(vocals=song), voice, target, key=0.0)
    assert voice.sung == [] and read_audio(song).frames == sung().frames


def test_a_store_that_was_made_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "covers").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="link"):
        maker_in(tmp_path)


def test_silence_becomes_silence(maker, voice, tmp_path: Path) -> None:
    silent = Audio(np.zeros((2, RATE), np.float32), RATE)
    cover = made(maker, CoverInput(vocals=silent, accompaniment=silent), voice, tmp_path / "out.wav", key=0.0)
    assert np.abs(cover.audio.samples).max() < 0.01 and (cover.mix["lufs"] is None or cover.mix["lufs"] < -40)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quality": "great"}, "quality='great'"), ({"backing": "loud"}, "backing"), ({"key": 25.0}, "key=25"),
        ({"key": float("nan")}, "key=nan"), ({"preview": -1.0}, "preview"), ({"preview_seconds": 0.0}, "preview_s"),
        ({"ranges": [(2, 1)]}, "range"), ({"ranges": "1-2"}, "ranges"), ({"ranges": [(0, float("inf"))]}, "range"),
        ({"voice_gain": 99.0}, "voice_gain"), ({"reverbs": 1}, "reverbs is unknown"), ({"release": 0.2}, "ambiguous"),
        ({"gate.hold": 99.0}, "hold"), ({"conversion": 3}, "conversion"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CoverSettings().changed(**settings)


def test_settings_reach_their_stages() -> None:
    settings = CoverSettings().changed(reverb=0.5, index_rate=0.1, seed=3, **{"gate.release": 0.3})
    assert (settings.effects.reverb, settings.conversion.index_rate, settings.gate.release) == (0.5, 0.1, 0.3)
    assert settings.conversion.seed == settings.effects.seed == 3
    assert CoverSettings().changed(ranges=[(3, 4), (1, 2), (2.05, 2.5)]).ranges == ((1.0, 2.5), (3.0, 4.0))


# ------------------------------------------------------------------------------------------------------ the real voice


def test_the_demo_voice_sings_the_shipped_song(tmp_path: Path) -> None:
    """Everything real: voice, index, encoder, two recordings; a preview of two seconds is enough."""
    folder = RVCConfig().demo_dir / "song"
    config = RVCConfig(device="cpu", covers=tmp_path / "covers", temp=tmp_path)
    given = CoverInput(vocals=folder / "vocals.ogg", accompaniment=folder / "accompaniment.ogg")
    maker = CoverMaker(VC(config))
    cover = made(maker, given, None, tmp_path / "cover.m4a", preview=1.0, preview_seconds=2.0, f0_method="pm")
    assert cover.notes["key"].reason.startswith("key +0") and cover.seconds == 2.0
    assert loudness_lufs(read_audio(tmp_path / "cover.m4a")) == pytest.approx(-14, abs=0.5)
    assert level_db(cover.stem("converted").samples) == pytest.approx(level_db(cover.stem("lead").samples), abs=6)
