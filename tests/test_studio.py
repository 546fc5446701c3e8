"""The studio without a browser: what is pressed reaches the verbs, what comes back is shown, and nothing is lost."""

from __future__ import annotations

import asyncio
import datetime
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rvc_spark.audio import Audio, loudness_lufs, read_audio, read_tags, true_peak_dbtp, write_audio
from rvc_spark.errors import (
    AudioError,
    ConfigError,
    OutputError,
    RvcSparkError,
    SpeechError,
    StreamError,
    TextError,
    VoiceFileError,
)
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.infer.voice_files import VoiceCard, VoiceListing
from rvc_spark.rvc_config import Choice
from rvc_spark.streaming.chunk import AudioChunk, Gap
from rvc_spark.widgets import studio_takes
from rvc_spark.widgets.microphone import Microphone
from rvc_spark.widgets.plots import Picture
from rvc_spark.widgets.studio import Studio
from rvc_spark.widgets.studio_files import FileChoice, store_upload
from rvc_spark.widgets.studio_match import CEILING_DBTP, TARGET_LUFS, match_loudness, with_gain
from rvc_spark.widgets.studio_parts import Note
from rvc_spark.widgets.studio_picture import pair_picture
from rvc_spark.widgets.studio_source import estimated_seconds
from rvc_spark.widgets.studio_takes import StudioTake, TakeList, file_stem
from rvc_spark.widgets.studio_verbs import ConvertRequest, Making, SpeakRequest, StudioVerbs

RATE = 16_000
PATIENCE = 30.0  # seconds; only means "does not hang"
MODIFIED = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
SURVEY = {
    "triton": Choice("missing", "no Triton server at <localhost>:8001"),
    "spark": Choice("ready", "a checkpoint is here"),
    "espeak": Choice("ready", "embedded"),
}
ENGINES = {"tts": Choice("espeak", "embedded"), "device": Choice("cpu", "no <CUDA> device")}


def tone(hz: float, seconds: float = 0.5, level: float = 0.3) -> Audio:
    times = np.arange(round(seconds * RATE)) / RATE
    return Audio((level * np.sin(2 * np.pi * hz * times)).astype(np.float32), RATE)


class Sounding:
    """Stands in for the player: a thread that pulls everything, as `play` does."""

    def __init__(self, pieces: Any) -> None:
        self.pieces, self.heard, self.stopped, self.hurried = pieces, [], threading.Event(), False
        self.thread = threading.Thread(target=self._pull, daemon=True)
        self.thread.start()

    def _pull(self) -> None:
        try:
            for piece in [self.pieces] if isinstance(self.pieces, Audio) else self.pieces:
                self.heard.append(piece)
                if self.stopped.is_set():
                    break
        except RvcSparkError:
            pass  # a player shows it; the studio has it from the take

    def stop(self) -> None:
        self.stopped.set()

    def wait(self, timeout: float | None = None) -> None:
        self.hurried = True


class House:
    """Stands in for the workers, the voices and the player. gate: pieces after the first wait for it."""

    def __init__(self, folder: Path, *, gate: threading.Event | None = None, error: Exception | None = None) -> None:
        self.folder, self.gate, self.error = folder, gate, error
        self.requests: list[SpeakRequest | ConvertRequest] = []
        self.changes: list[tuple[str | None, dict]] = []
        self.soundings: list[Sounding] = []
        self.stopped = threading.Event()
        self.makers: list[threading.Thread] = []
        self.survey = dict(SURVEY)
        self.sentences = 3

    def making(self, request: SpeakRequest | ConvertRequest) -> Making:
        self.requests.append(request)
        self.makers.append(threading.current_thread())
        if isinstance(self.error, VoiceFileError):
            raise self.error
        return Making(
            self.pieces(), self.stopped.set, lambda: ENGINES, lambda: [tone(110)] * self.sentences,
            lambda: {"tts": 0.25, "rvc": 0.5}, lambda voice, settings: self.changes.append((voice, settings)),
            lambda: "CC BY-NC-SA 4.0",
        )  # fmt: skip

    def pieces(self) -> Iterator[Audio]:
        for number in range(self.sentences):
            if number and self.gate is not None:
                while not self.gate.wait(0.01):
                    if self.stopped.is_set():
                        return
            if number and self.error is not None:
                raise self.error
            yield AudioChunk(tone(220).samples, RATE, sentence=number, seq=number, last=number == self.sentences - 1)

    def play(self, pieces: Any, title: str, player: Any) -> Sounding:
        self.soundings.append(Sounding(pieces))
        return self.soundings[-1]

    def voices(self) -> list[VoiceListing]:
        def listing(name: str, card: VoiceCard, error: str | None = None) -> VoiceListing:
            return VoiceListing(name, Path(name), 1, card, None, error)

        return [
            listing("a", VoiceCard(description="A <b>bold</b> voice.", median_f0_hz=172.0, licence="mine")),
            listing("b", VoiceCard()),
            listing("broken", VoiceCard(), "it is no checkpoint"),
        ]

    def verbs(self) -> StudioVerbs:
        return StudioVerbs(
            self.making, self.making, self.voices, lambda: dict(self.survey), lambda: self.folder,
            lambda voice: None, lambda: None, self.play,
        )  # fmt: skip


def studio_in(house: House, **chosen: Any) -> Studio:
    return Studio(verbs=house.verbs(), **{"voice": "a", "text": "One. Two. Three.", **chosen})


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def quick_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is tested by itself; elsewhere a picture is a picture."""
    monkeypatch.setattr(studio_takes, "pair_picture", lambda source, result: Picture(b"\x89PNG", "a picture"))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_audio(tmp_path / "clip.wav", tone(150))


# ------------------------------------------------------------------------------------------------------- settings


def test_everything_is_read_back_and_restored(tmp_path: Path, clip: Path) -> None:
    given = {
        "text": "Hello.", "voice": "b", "engine": "spark", "reference": str(clip), "transcript": "Ah.",
        "recording": str(clip), "key": 3.5, "auto_key": 180.0, "index_rate": 0.4, "protect": 0.2, "f0_method": "pm",
        "rms_mix_rate": 1.0, "formant": -1.25, "autotune": 0.5, "scale": "A minor", "seed": 2**40, "neighbours": 4,
    }  # fmt: skip
    studio = studio_in(House(tmp_path), **given)
    assert given.items() <= studio.settings().items()
    assert set(ConversionSettings.names()) <= set(studio.settings())
    assert studio_in(House(tmp_path), **studio.settings()).settings() == studio.settings()
    assert "neighbours 4" in studio.voice.other_note.words and "scale A minor" in studio.voice.other_note.words
    assert json.loads(json.dumps(studio.settings())) == studio.settings()


def test_a_first_time_person_finds_a_sentence_and_defaults(tmp_path: Path) -> None:
    studio = Studio(verbs=House(tmp_path).verbs(), voice="a")
    settings = studio.settings()
    assert len(settings["text"]) > 20 and settings["engine"] == "auto" and settings["auto_key"] == "voice"
    assert "about" in studio.source.count.words and "Press Speak" in studio.listen.picture.value
    assert "consent" in studio.listen.engines.value
    assert studio.source.speak_button.button_style == "primary"


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"voice": "c"}, "no usable voice 'c'"),
        ({"voice": "broken"}, "no checkpoint"),
        ({"engine": "triton"}, "not ready: no Triton server"),
        ({"engine": "abacus"}, "abacus"),
        ({"key": 99}, "key"),
        ({"volume": 11}, "volume"),
    ],
)
def test_what_cannot_be_chosen_is_refused_with_words(tmp_path: Path, chosen: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        studio_in(House(tmp_path), **chosen)


def test_setting_is_all_or_nothing(tmp_path: Path) -> None:
    studio = studio_in(House(tmp_path))
    before = studio.settings()
    for chosen in ({"text": "new", "key": 99}, {"text": "new", "voice": "c"}, {"text": "new", "pace": 1}):
        with pytest.raises(ConfigError):
            studio.set(**chosen)
        assert studio.settings() == before
    with pytest.raises(TextError):
        studio.set(text=None)
    studio.set(text="new", key=-2, recording=None)
    assert studio.settings() == {**before, "text": "new", "key": -2.0}


def test_back_to_defaults_keeps_text_and_voice(tmp_path: Path) -> None:
    studio = studio_in(House(tmp_path), voice="b", key=5, index_rate=0.1, neighbours=2, auto_key="off", seed=9)
    studio.voice.reset_button.click()
    fresh = studio_in(House(tmp_path), voice="b").settings()
    assert studio.settings() == fresh and studio.voice.other_note.words == ""


def test_every_control_explains_itself(tmp_path: Path) -> None:
    studio = studio_in(House(tmp_path))
    source, voice, shelf = studio.source, studio.voice, studio.shelf
    controls = [
        source.text_box, source.engine_choice, source.transcript_box, source.reference.upload,
        source.reference.path_box, source.recording.upload, source.recording.path_box, *voice.sliders.values(),
        voice.voice_choice, voice.auto_key, voice.f0_method, voice.seed, shelf.take_list, shelf.name_box,
        shelf.format_choice, shelf.place_box, source.speak_button, source.convert_button, source.again_button,
        source.reference.clear_button, voice.reset_button, voice.more_button, shelf.play_button, shelf.keep_button,
        shelf.delete_button, studio.listen.stop_button, studio.listen.source_button, studio.listen.result_button,
    ]  # fmt: skip
    for control in controls:
        words = getattr(control, "tooltip", None) or getattr(control, "description_tooltip", None)
        assert words and len(words) > 10, control
    assert len(source.microphone.hint) > 10


def test_what_files_and_engines_say_is_text_and_never_markup(tmp_path: Path) -> None:
    house = House(tmp_path)
    studio = studio_in(house)
    take = studio.speak().wait(PATIENCE)
    studio.rename("<img src=x>", take)
    shown = [studio.voice.voice_note.widget, studio.source.engine_list, studio.listen.engines, studio.listen.status]
    for widget in shown:
        assert "<b>bold" not in widget.value and "<localhost>" not in widget.value and "<CUDA>" not in widget.value
    assert "&lt;CUDA&gt;" in studio.listen.engines.value and "&lt;localhost&gt;" in studio.source.engine_list.value


# --------------------------------------------------------------------------------------------------------- making


def test_speak_hands_over_what_was_chosen_and_keeps_what_came(tmp_path: Path) -> None:
    house = House(tmp_path)
    studio = studio_in(house, key=2.0, engine="spark", seed=5)
    take = studio.speak().wait(PATIENCE)
    (request,) = house.requests
    assert request.text == "One. Two. Three." and request.voice == "a" and request.engine == "spark"
    assert request.settings == {name: take.settings[name] for name in ConversionSettings.names()}
    assert request.settings["key"] == 2.0 and request.settings["seed"] == 5
    assert take is studio.takes[-1] and take.state == "done" and take.settings == studio.settings()
    assert take.seconds == take.audio.seconds == 1.5 and take.source.seconds == 1.5
    assert take.engines == ENGINES and take.licence == "CC BY-NC-SA 4.0"
    assert {"first", "made", "tts", "rvc", "real_time_factor"} == set(take.timings)
    assert take.timings["first"] <= take.timings["made"]
    assert take.picture == b"\x89PNG" and take.picture_words == "a picture"
    assert "rvc-done" in studio.listen.status.value and "data:image/png" in studio.listen.picture.value
    assert "0.25 s" in studio.listen.stages.value and "take 1" in studio.shelf.take_list.options[0][0]
    assert [chunk.sentence for chunk in house.soundings[0].heard] == [0, 1, 2]
    assert house.soundings[0].hurried and "<audio" in take._repr_html_()


def test_a_click_returns_at_once_and_the_work_is_done_elsewhere(tmp_path: Path) -> None:
    house = House(tmp_path, gate=threading.Event())
    studio = studio_in(house)
    studio.source.speak_button.click()
    take = studio.takes[-1]
    until(lambda: take.seconds)
    studio._refresh()
    assert take.state == "working" and "rvc-working" in studio.listen.status.value
    assert house.makers[0] is not threading.main_thread() and not studio.source.speak_button.disabled
    house.gate.set()
    assert take.wait(PATIENCE).state == "done"


def test_a_kernel_that_is_idle_shows_what_comes_without_being_asked(tmp_path: Path) -> None:
    house = House(tmp_path)

    async def idle() -> Studio:
        studio = studio_in(house)
        studio.source.speak_button.click()
        end = time.monotonic() + PATIENCE
        while "rvc-done" not in studio.listen.status.value and time.monotonic() < end:
            await asyncio.sleep(0.01)
        assert not studio._ticking or studio._run is None
        return studio

    studio = asyncio.run(idle())
    assert "rvc-done" in studio.listen.status.value and "data:image/png" in studio.listen.picture.value


def test_a_click_that_comes_on_another_thread_is_answered_on_the_main_one(tmp_path: Path) -> None:
    house = House(tmp_path)

    async def idle() -> Studio:
        studio = studio_in(house, text="")
        threading.Thread(target=studio.source.speak_button.click).start()
        end = time.monotonic() + PATIENCE
        while not studio.source.text_note.refused and time.monotonic() < end:
            await asyncio.sleep(0.01)
        return studio

    assert asyncio.run(idle()).source.text_note.refused and not house.requests


def test_stop_ends_work_and_sound_and_the_next_run_works(tmp_path: Path) -> None:
    house = House(tmp_path, gate=threading.Event())
    studio = studio_in(house)
    take = studio.speak()
    until(lambda: take.seconds)
    studio.listen.stop_button.click()
    assert take.wait(PATIENCE).state == "stopped" and take.seconds == 0.5
    assert house.stopped.is_set() and house.soundings[0].stopped.is_set()
    house.soundings[0].thread.join(PATIENCE)
    until(lambda: not any(thread.name == "studio take" for thread in threading.enumerate()))
    assert take in studio.takes and "stopped" in studio.listen.status.value
    house.gate.set()
    assert studio.speak().wait(PATIENCE).state == "done" and len(studio.takes) == 2


def test_speaking_again_replaces_what_is_being_made(tmp_path: Path) -> None:
    house = House(tmp_path, gate=threading.Event())
    studio = studio_in(house)
    first = studio.speak()
    until(lambda: first.seconds)
    second = studio.speak("Another text.")
    house.gate.set()
    assert first.wait(PATIENCE).state == "stopped" and second.wait(PATIENCE).state == "done"
    assert studio.takes[-1] is second and second.settings["text"] == "Another text."


def test_a_take_that_was_stopped_before_any_sound_leaves_nothing(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.sentences = 0
    studio = studio_in(house)
    assert studio.speak().wait(PATIENCE).seconds == 0
    assert len(studio.takes) == 0 and "Press Speak" in studio.listen.picture.value
    with pytest.raises(StreamError, match="no takes"):
        studio.takes[-1]


def test_changes_while_it_runs_hold_from_the_next_sentence_on(tmp_path: Path) -> None:
    house = House(tmp_path, gate=threading.Event())
    studio = studio_in(house)
    take = studio.speak()
    until(lambda: take.seconds)
    studio.voice.sliders["index_rate"].value = 0.3
    studio.voice.sliders["key"].value = 4.0
    studio.voice.voice_choice.value = "b"
    assert house.changes[:2] == [(None, {"index_rate": 0.3}), (None, {"key": 4.0, "auto_key": "voice"})]
    assert house.changes[2][0] == "b"
    assert take.changes == [(0.5, {"index_rate": 0.3}), (0.5, {"key": 4.0}), (0.5, {"voice": "b"})]
    assert "next sentence" in studio.voice.note.words
    house.gate.set()
    take.wait(PATIENCE)
    studio.voice.sliders["key"].value = 1.0
    assert len(house.changes) == 3 and take.settings["key"] == 0.0


def test_a_voice_that_does_not_say_its_pitch_is_not_asked_to_be_met(tmp_path: Path) -> None:
    house = House(tmp_path)
    studio = studio_in(house, voice="b", key=4.0)
    studio.speak().wait(PATIENCE)
    assert house.requests[0].settings["auto_key"] == "off" and house.requests[0].settings["key"] == 4.0
    assert "does not say its own pitch" in studio.voice.note.words and not studio.voice.note.refused


def test_an_interrupt_stops_the_work_and_is_passed_on(tmp_path: Path) -> None:
    house = House(tmp_path, gate=threading.Event())
    studio = studio_in(house)
    take = studio.speak()

    def interrupted() -> None:
        raise KeyboardInterrupt

    take.while_waiting = interrupted
    with pytest.raises(KeyboardInterrupt):
        take.wait(PATIENCE)
    assert take.over.wait(PATIENCE) and take.state == "stopped"


def test_waiting_has_a_limit_and_the_work_goes_on(tmp_path: Path) -> None:
    house = House(tmp_path, gate=threading.Event())
    take = studio_in(house).speak()
    with pytest.raises(StreamError, match="not made after"):
        take.wait(0.1)
    house.gate.set()
    assert take.wait(PATIENCE).state == "done"


# ------------------------------------------------------------------------------------------------------- refusals


def test_a_text_that_cannot_be_said_is_refused_beside_it(tmp_path: Path) -> None:
    house = House(tmp_path)
    studio = studio_in(house)
    kept = studio.speak().wait(PATIENCE)
    for text in ("", "...", "\x00"):
        studio.source.text_box.value = text
        studio.source.speak_button.click()
        assert studio.source.text_note.refused and "rvc-bad" in studio.listen.status.value
        with pytest.raises(TextError):
            studio.speak()
    assert list(studio.takes) == [kept] and len(house.requests) == 1
    studio.source.text_box.value = "Better."
    assert not studio.source.text_note.refused
    studio.source.speak_button.click()
    assert studio.takes[-1].wait(PATIENCE).state == "done"


@pytest.mark.parametrize(
    ("error", "kind", "place"),
    [
        (VoiceFileError("the voice is damaged", "Get another."), "speech", "voice.note"),
        (SpeechError("the engine is hoarse", "Try another."), "speech", "source.engine_note"),
        (AudioError("no sound", "Try another."), "conversion", "source.recording.note"),
    ],
)
def test_what_fails_on_the_way_is_said_where_it_belongs(
    tmp_path: Path, clip: Path, error: Exception, kind: str, place: str
) -> None:
    house = House(tmp_path, error=error)
    studio = studio_in(house, recording=str(clip))
    button = studio.source.speak_button if kind == "speech" else studio.source.convert_button
    button.click()
    until(lambda: studio._refresh() or studio._run is None)
    note: Any = studio
    for name in place.split("."):
        note = getattr(note, name)
    assert isinstance(note, Note) and note.refused and str(error) in note.words
    assert "rvc-bad" in studio.listen.status.value and not button.disabled
    # What was made before it broke off stays.
    assert [item.state for item in studio.takes] == ([] if isinstance(error, VoiceFileError) else ["failed"])
    with pytest.raises(type(error)):
        (studio.speak() if kind == "speech" else studio.convert()).wait(PATIENCE)
    house.error = None
    assert studio.speak().wait(PATIENCE).state == "done" and not note.refused


def test_missing_sentences_are_said(tmp_path: Path) -> None:
    house = House(tmp_path)

    def pieces() -> Iterator[Audio]:
        gap = Gap(1, "Two.", SpeechError("it <choked>", "Say it otherwise."))
        yield AudioChunk(tone(200).samples, RATE)
        yield AudioChunk(np.zeros(1600, np.float32), RATE, seq=1, sentence=1, gap=gap, last=True)

    house.pieces = pieces
    studio = studio_in(house)
    take = studio.speak().wait(PATIENCE)
    assert take.gaps == ["sentence 2 is missing: it <choked>. Say it otherwise."]
    assert "it &lt;choked&gt;" in studio.listen.stages.value and take.state == "done"


def test_convert_needs_a_recording_that_is_one(tmp_path: Path, clip: Path) -> None:
    house = House(tmp_path)
    studio = studio_in(house)
    studio.source.convert_button.click()
    assert "no recording was chosen" in studio.source.recording.note.words
    (tmp_path / "page.wav").write_bytes(b"<html>" * 100)
    for path in (tmp_path / "nothing.wav", tmp_path / "page.wav", tmp_path):
        with pytest.raises(AudioError):
            studio.convert(path)
        assert studio.source.recording.note.refused
    assert house.requests == []
    take = studio.convert(clip).wait(PATIENCE)
    assert isinstance(house.requests[0], ConvertRequest) and house.requests[0].recording == str(clip)
    assert take.kind == "conversion" and take.settings["recording"] == str(clip)
    assert not studio.source.recording.note.refused


def test_engines_can_be_looked_for_again(tmp_path: Path) -> None:
    house = House(tmp_path)
    studio = studio_in(house, engine="spark")
    assert [name for name, _ in studio.source.engine_choice.options] == ["auto", "spark", "espeak"]
    house.survey["triton"], house.survey["spark"] = Choice("ready", "it came"), Choice("missing", "it went")
    studio.source.again_button.click()
    assert [name for name, _ in studio.source.engine_choice.options] == ["auto", "triton", "espeak"]
    assert studio.settings()["engine"] == "auto" and "it went" in studio.source.engine_list.value


def test_each_engine_says_what_it_makes_of_a_reference(tmp_path: Path, clip: Path) -> None:
    house = House(tmp_path)
    studio = studio_in(house)
    assert studio.source.reference_note.words == "" and studio.source.transcript_box.layout.display == "none"
    studio.source.reference.path_box.value = str(clip)
    assert "espeak takes over the pitch" in studio.source.reference_note.words
    assert "triton" not in studio.source.reference_note.words and "0.5 s" in studio.source.reference.note.words
    studio.source.transcript_box.value = "Ah."
    studio.speak().wait(PATIENCE)
    assert (house.requests[0].reference, house.requests[0].transcript) == (str(clip), "Ah.")
    studio.source.reference.clear_button.click()
    studio.speak().wait(PATIENCE)
    assert (house.requests[1].reference, house.requests[1].transcript) == (None, None)


def test_the_length_of_a_text_is_estimated() -> None:
    assert 4 < estimated_seconds("The quick brown fox jumps over the lazy dog, and nobody was surprised.", 1) < 6
    assert 1.5 < estimated_seconds("今日はいい天気です。", 1) < 3
    assert estimated_seconds("One. Two.", 2) > estimated_seconds("One. Two.", 1)


# ---------------------------------------------------------------------------------------------------------- files


def wav_bytes(folder: Path) -> bytes:
    return write_audio(folder / "bytes.wav", tone(150)).read_bytes()


def as_uploaded(control: Any, name: str, data: bytes) -> None:
    """Put a file into the control the way the front end of its own version does."""
    if isinstance(control.value, dict):
        control.metadata, control.data = [{"name": name, "size": len(data)}], [data]
        control._counter = 1
    else:
        row = {"name": name, "type": "audio/wav", "size": len(data), "last_modified": MODIFIED}
        control.value = ({**row, "content": memoryview(data)},)


def test_an_upload_becomes_a_path_and_clearing_deletes_the_copy(tmp_path: Path) -> None:
    studio = studio_in(House(tmp_path))
    data = wav_bytes(tmp_path)
    for _ in range(2):  # the same file again
        as_uploaded(studio.source.recording.upload, "my cat.wav", data)
        path = Path(studio.settings()["recording"])
        assert path.parent == tmp_path / "uploads" and path.name.startswith("my_cat_") and path.read_bytes() == data
        assert not studio.source.recording.upload.value and "0.5 s" in studio.source.recording.note.words
        studio.source.recording.clear_button.click()
        assert studio.settings()["recording"] is None and not path.exists()
    mine = tmp_path / "bytes.wav"
    studio.source.recording.path_box.value = str(mine)
    studio.source.recording.clear_button.click()
    assert mine.exists()  # only copies are deleted


@pytest.mark.parametrize(
    "name", ["../../evil.wav", "..\\..\\evil.wav", "/etc/passwd", "..", "", "a" * 400 + ".wav", "x/.wav"]
)
def test_no_name_reaches_out_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "uploads"
    path = store_upload(folder, name, b"data")
    assert path.parent == folder and path.read_bytes() == b"data" and len(path.name) < 160
    assert [item.name for item in tmp_path.iterdir()] == ["uploads"] and len(list(folder.iterdir())) == 1


def test_an_upload_that_is_no_sound_is_refused_and_not_kept(tmp_path: Path) -> None:
    studio = studio_in(House(tmp_path))
    for data in (b"<html>not a sound</html>" * 10, b""):
        as_uploaded(studio.source.recording.upload, "cat.wav", data)
        assert studio.source.recording.note.refused and studio.settings()["recording"] is None
    assert not list((tmp_path / "uploads").glob("*")) and not studio.source.recording.upload.value


def test_enrolled_speakers_are_taken_as_reference_only(tmp_path: Path) -> None:
    speaker = tmp_path / "speaker.json"
    speaker.write_text("{}")
    choice = FileChoice("x", "words that explain", path=str(speaker), folder=lambda: tmp_path, speaker_files=True)
    assert not choice.note.refused and "enrolled before" in choice.note.words
    assert FileChoice("x", "words that explain", path=str(speaker), folder=lambda: tmp_path).note.refused


def test_the_microphone_hands_over_recordings_and_nothing_else(tmp_path: Path) -> None:
    got: list[tuple[str, bytes]] = []
    microphone = Microphone(lambda name, data: got.append((name, data)), max_bytes=10)
    for content, buffers in (
        ("sound", [b"x"]), ({"t": "level"}, [b"x"]), ({"t": "sound"}, []), ({"t": "sound"}, [b""]),
        ({"t": "sound", "mime": "audio/webm"}, [b"x" * 11]),
    ):  # fmt: skip
        microphone._on_message(microphone, content, buffers)
    assert got == []
    for mime, buffer in (("audio/webm;codecs=opus", memoryview(b"1")), ("audio/mp4", b"2"), ("audio/ogg", b"3")):
        microphone._on_message(microphone, {"t": "sound", "mime": mime, "seconds": 1.0}, [buffer])
    assert got == [("recording.webm", b"1"), ("recording.m4a", b"2"), ("recording.ogg", b"3")]


def test_a_recording_of_the_microphone_is_what_convert_takes(tmp_path: Path) -> None:
    house = House(tmp_path)
    studio = studio_in(house)
    message = {"t": "sound", "mime": "audio/ogg", "seconds": 0.5}
    ogg = write_audio(tmp_path / "spoken.ogg", tone(150)).read_bytes()
    studio.source.microphone._on_message(studio.source.microphone, message, [ogg])
    studio.source.convert_button.click()
    assert studio.takes[-1].wait(PATIENCE).state == "done"
    assert Path(house.requests[0].recording).read_bytes() == ogg


# ---------------------------------------------------------------------------------------------------------- takes


def made_take(name: str = "take", seconds: float = 0.5, **about: Any) -> StudioTake:
    take = StudioTake(name, "speech", {"voice": "a"}, state="done", **about)
    take.spools[0].append(tone(110, seconds))
    take.spools[1].append(tone(220, seconds))
    take.over.set()
    return take


def test_the_list_is_bounded_and_what_is_on_disk_goes_first(tmp_path: Path) -> None:
    takes = TakeList(max_takes=3)
    made = [made_take(takes.next_name()) for _ in range(5)]
    made[1].export(tmp_path / "kept.wav")
    told = [takes.add(take) for take in made]
    assert told[:3] == ["", "", ""] and "take 2 (it is in" in told[3] and "take 1 made room" in told[4]
    assert [take.name for take in takes] == ["take 1", "take 3", "take 4", "take 5"][1:]
    with pytest.raises(StreamError):
        _ = made[0].audio
    assert read_audio(tmp_path / "kept.wav").seconds == 0.5


def test_the_list_is_bounded_in_seconds_but_holds_the_newest() -> None:
    takes = TakeList(max_seconds=2.0)
    for seconds in (0.9, 0.9, 0.9, 5.0):
        takes.add(made_take(takes.next_name(), seconds))
    assert [take.name for take in takes] == ["take 4"]


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "m4a"])
def test_a_take_is_written_with_everything_that_made_it(tmp_path: Path, suffix: str) -> None:
    take = made_take(engines=dict(ENGINES), licence="CC BY-NC-SA 4.0", changes=[(0.25, {"key": 3.0})])
    path = take.export(tmp_path / "new" / f"mine.{suffix}")
    assert read_audio(path).seconds == pytest.approx(0.5, abs=0.06)
    told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert told["settings"] == {"voice": "a"} and told["changes"] == [{"at": 0.25, "key": 3.0}]
    assert told["engines"]["tts"] == {"value": "espeak", "reason": "embedded"} and told["licence"] == "CC BY-NC-SA 4.0"
    assert read_tags(path)["comment"] == "CC BY-NC-SA 4.0"
    assert {item.name for item in path.parent.iterdir()} == {"mine.json", path.name}


def test_export_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    take = made_take()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "a.txt", tmp_path / "a", tmp_path / "file" / "a.wav"):
        with pytest.raises(OutputError):
            take.export(path)
    with pytest.raises(StreamError):
        StudioTake("empty", "speech", {}).export(tmp_path / "a.wav")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_keep_rename_play_and_delete_by_their_buttons(tmp_path: Path) -> None:
    house = House(tmp_path)
    studio = studio_in(house)
    for button in (studio.shelf.keep_button, studio.shelf.play_button, studio.shelf.delete_button):
        button.click()
        assert studio.shelf.note.refused and "no takes" in studio.shelf.note.words
    studio.speak().wait(PATIENCE)
    studio.speak().wait(PATIENCE)
    studio.shelf.take_list.value = 0
    assert studio.chosen_take() is studio.takes[0]
    studio.shelf.name_box.value = "my / best"
    assert studio.takes[0].name == "my / best" and "my / best" in studio.shelf.take_list.options[1][0]
    studio.shelf.name_box.value = " "
    assert studio.shelf.note.refused and studio.takes[0].name == "my / best"
    studio.shelf.format_choice.value = "wav"
    studio.shelf.keep_button.click()
    studio.shelf.keep_button.click()
    kept = sorted(item.name for item in (tmp_path / "takes").iterdir())
    assert kept == ["my_best.json", "my_best.wav", "my_best_2.json", "my_best_2.wav"]
    assert "kept" in studio.shelf.note.words and "✓ kept" in studio.shelf.take_list.options[1][0]
    studio.shelf.play_button.click()
    until(lambda: house.soundings[-1].heard)
    assert (house.soundings[-1].heard[0].samples == studio.takes[0].audio.samples).all()
    studio.shelf.delete_button.click()
    assert len(studio.takes) == 1 and studio.chosen_take() is studio.takes[0] and len(kept) == 4


def test_file_names_of_takes_are_plain() -> None:
    named = {"a/b\\c:d*e": "a_b_c_d_e", "...": "take", "Überraschung 1": "Überraschung_1"}
    assert {name: file_stem(name) for name in named} == named


# ----------------------------------------------------------------------------------------------------- comparison


def test_a_and_b_are_equally_loud_and_no_peak_is_too_high(tmp_path: Path) -> None:
    spiky = tone(300, 2.0, 0.02)
    spiky.samples[8000] = 0.9
    for source, result in ((tone(200, 2.0, 0.02), tone(400, 2.0, 0.8)), (tone(200, 2.0, 0.5), spiky)):
        match = match_loudness(source, result)
        heard = [with_gain(sound, gain) for sound, gain in zip((source, result), match.gains, strict=True)]
        assert loudness_lufs(heard[0]) == pytest.approx(loudness_lufs(heard[1]), abs=0.05)
        assert loudness_lufs(heard[0]) == pytest.approx(match.lufs, abs=0.05) and match.lufs <= TARGET_LUFS
        assert max(map(true_peak_dbtp, heard)) <= CEILING_DBTP + 0.05
        assert "LUFS" in match.words(("source", "result"))
    silent = match_loudness(Audio(np.zeros(RATE, np.float32), RATE), tone(200))
    assert silent.gains == (0.0, 0.0) and "as they are" in silent.words(("a", "b"))


def test_compare_plays_what_it_says(tmp_path: Path) -> None:
    house = House(tmp_path)
    studio = studio_in(house)
    take = studio.speak().wait(PATIENCE)
    match = studio.compare("source")
    until(lambda: house.soundings[-1].heard)
    heard = house.soundings[-1].heard[0]
    assert heard.samples == pytest.approx(take.source.samples * 10 ** (match.gains[0] / 20), abs=1e-6)
    assert f"source {match.gains[0]:+.1f} dB" in studio.listen.match_note.words
    with pytest.raises(ConfigError, match="source"):
        studio.compare("both")
    take.spools[0].close()
    studio.listen.source_button.click()
    assert studio.shelf.note.refused and "no source" in studio.shelf.note.words


def test_the_picture_of_two_sounds_is_small_and_says_what_is_seen() -> None:
    picture = pair_picture(tone(110, 1.0), tone(220, 0.5))
    assert "source: 1.00 s, median f0 110 Hz; result: 0.50 s, median f0 220 Hz" in picture.description
    assert len(picture.png) < 200_000 * 3 // 4
    for odd in (tone(110, 3 / RATE), Audio(np.zeros(RATE, np.float32), RATE)):
        assert "median" not in pair_picture(odd, odd).description


# --------------------------------------------------------------------------------------------------------- for real


def test_the_studio_works_in_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A click is answered while the kernel is idle: the take comes into the widgets, and no cell waits for it."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("RVC_SPARK_TEMP", str(tmp_path / "temp"))
    sources = [
        "import asyncio, time\nfrom rvc_spark.widgets import Studio\n"
        "studio = Studio(text='Good morning.', seed=3)\nstudio",
        "studio.source.speak_button.click()\nprint(studio.takes[-1].state)",
        f"end = time.monotonic() + {4 * PATIENCE}\n"
        "while 'rvc-done' not in studio.listen.status.value and time.monotonic() < end:\n"
        "    await asyncio.sleep(0.05)\n"
        "print(studio.takes[-1].state, studio.takes[-1].has_source, 'data:image/png' in studio.listen.picture.value)",
        "studio.speak().wait()\nprint((studio.takes[0].audio.samples == studio.takes[1].audio.samples).all())\n"
        "print(studio.keep().name, sorted(studio.takes[-1].engines))",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    client = nbclient.NotebookClient(
        notebook, timeout=4 * PATIENCE, resources={"metadata": {"path": str(tmp_path)}}, store_widget_state=False
    )
    client.execute()
    texts = ["".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells]
    assert texts[1] == "working\n" and texts[2] == "done True True\n"
    assert texts[3].startswith("True\ntake_2.flac ['device', 'encoder', 'index', 'key', 'pitch', 'precision', 'tts']")
    assert "application/vnd.jupyter.widget-view+json" in notebook.cells[0].outputs[0]["data"]
