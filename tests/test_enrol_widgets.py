"""The recorder, the panel and the studio's list without a browser: what the kernel makes of what a page says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from profile_maker import buzz, empty_report, make_profile

from rvc_spark.audio import EncodeOptions, encode_audio
from rvc_spark.errors import ConfigError, QualityError, VoiceNotFoundError
from rvc_spark.infer.pitch_edit import VoiceRange
from rvc_spark.profiles.findings import Finding
from rvc_spark.profiles.profile_store import ProfileStore
from rvc_spark.profiles.sample_report import EnrolmentReport, Reference, SampleReport, Similarity
from rvc_spark.rvc_config import Choice
from rvc_spark.rvc_init import init_rvc
from rvc_spark.widgets.enrol import EnrolPanel, EnrolVerbs
from rvc_spark.widgets.enrol_report import show_profiles, show_report
from rvc_spark.widgets.recorder import MAX_TAKES, PROMPTS, Recorder, take_note
from rvc_spark.widgets.studio_profiles import Unconverted, profile_listings, profile_settings, rvc_voice, shown_name
from rvc_spark.widgets.studio_verbs import SpeakRequest, list_voices, speak_made

OGG = encode_audio(buzz(4.0), EncodeOptions(format="ogg"))


def say(recorder: Recorder, identity: object, data: bytes = OGG, **content: object) -> None:
    told = {"t": "take", "id": identity, "mime": "audio/ogg;codecs=opus", "peak": 0.5, "prompt": 0, **content}
    recorder._on_message(recorder, told, [memoryview(data)])


@pytest.fixture
def recorder():
    changes = []
    made = Recorder(("One.", "Two."), lambda: changes.append(1))
    made.changes = changes
    yield made
    made.close()


def test_takes_come_are_replaced_and_go_with_their_files(recorder: Recorder) -> None:
    say(recorder, "a")
    say(recorder, "b", prompt=1, peak=0.999)
    first, second = recorder.takes_done()
    assert (first.text, second.text, first.note) == ("One.", "Two.", "") and "clipped" in second.note
    assert first.seconds == pytest.approx(4, abs=0.1) and first.path.parent.stat().st_mode & 0o077 == 0
    say(recorder, "c", instead="a", prompt=0)
    assert [take.id for take in recorder.takes_done()] == ["c", "b"] and not first.path.exists()
    recorder._on_message(recorder, {"t": "delete", "id": "b"}, [])
    assert [take["id"] for take in recorder.takes] == ["c"] and not second.path.exists() and len(recorder.changes) == 4
    folder = recorder.takes_done()[0].path.parent
    recorder.close()
    assert not folder.exists() and recorder.takes_done() == []


def test_what_a_page_says_is_not_trusted(recorder: Recorder) -> None:
    for content, buffers in (
        ("take", []), (None, [memoryview(OGG)]), ({"t": "take"}, [memoryview(OGG)]),
        ({"t": "take", "id": "../../x"}, [memoryview(OGG)]), ({"t": "take", "id": 7}, [memoryview(OGG)]),
        ({"t": "take", "id": "x" * 100}, [memoryview(OGG)]), ({"t": "take", "id": "x"}, []),
        ({"t": "take", "id": "x"}, [memoryview(b"")]), ({"t": "take", "id": "x"}, [memoryview(bytes(5 << 20))]),
        ({"t": "delete", "id": "nobody"}, []), ({"t": "run", "id": "x"}, [memoryview(OGG)]),
    ):  # fmt: skip
        recorder._on_message(recorder, content, buffers)
    assert recorder.takes_done() == []
    say(recorder, "x", b"#!/bin/sh")
    assert recorder.takes_done() == [] and "cannot be used" in recorder.said
    say(recorder, "x", mime="../../etc", prompt=True, peak=float("nan"), instead={"no": "id"})
    say(recorder, "y", prompt=99, peak="loud")
    assert [take.text for take in recorder.takes_done()] == [None, None] and recorder.said == ""
    for number in range(MAX_TAKES):
        recorder._done[f"n{number}"] = recorder.takes_done()[0]
    say(recorder, "z")
    assert "z" not in recorder._done and str(MAX_TAKES) in recorder.said


def test_notes_say_what_to_do_and_the_sentences_are_worth_reading() -> None:
    assert take_note(5.0, -6.0) == "" and "short" in take_note(1.0, -6.0) and "quiet" in take_note(5.0, -40.0)
    assert 8 <= len(PROMPTS) == len(set(PROMPTS)) and all(70 <= len(text) <= 130 for text in PROMPTS)
    letters = set("".join(PROMPTS).lower())
    assert set("abcdefghijklmnopqrstuvwxyz") <= letters and any("?" in text for text in PROMPTS)


# -------------------------------------------------------------------------------------------------------------- panel


class Kept:
    """Stands for the verbs: notes what it is asked."""

    def __init__(self, store: ProfileStore, problem: Exception | None = None) -> None:
        self.store, self.problem, self.asked = store, problem, []

    def examine(self, samples, *, on_progress, **thresholds):
        self.asked.append(("examine", [Path(sample).name for sample in samples], thresholds))
        on_progress(SimpleNamespace(fraction=0.5, message="half"))
        return empty_report()

    def create(self, samples, name, consent, *, engine, transcripts, on_progress, **told):
        self.asked.append(("create", name, consent.who, engine, transcripts, told))
        assert all(Path(sample).is_file() for sample in samples)
        if self.problem:
            raise self.problem
        return make_profile(self.store, name)

    def verbs(self) -> EnrolVerbs:
        return EnrolVerbs(self.examine, self.create, lambda: {"espeak": Choice("ready", "always")})


def test_the_panel_asks_for_recordings_and_consent_and_forgets_what_it_enrolled(tmp_path: Path) -> None:
    kept = Kept(ProfileStore(tmp_path / "profiles"))
    panel = EnrolPanel(name="Anna", who="Anna Example", language="en", verbs=kept.verbs(), min_total_duration=4.0)
    panel.check_button.click()
    assert "no recording yet" in panel.note.words and panel.note.refused and not kept.asked
    say(panel.recorder, "a", prompt=2)
    take = panel.recorder.takes_done()[0].path
    assert "1 recording" in panel.source_note.words
    panel.check_button.click()
    assert kept.asked.pop()[2] == {"min_total_duration": 4.0} and panel.report is not None
    assert "All together" in panel.output.outputs[0]["data"]["text/plain"]
    panel.create_button.click()
    assert "consent is not given" in panel.note.words and not kept.asked and panel.profile is None
    panel.consent_box.value = True
    panel.create_button.click()
    (asked,) = kept.asked
    assert asked[1:5] == ("Anna", "Anna Example", "auto", [PROMPTS[2]])
    assert asked[5] == {"keep_originals": False, "cut": False, "language": "en", "min_total_duration": 4.0}
    assert panel.profile is not None and panel.profile.name == "Anna" and 'reference="Anna"' in panel.note.words
    assert not take.exists() and panel.sources() == [] and panel.consent_box.value is False
    assert "<audio" in panel.output.outputs[1]["data"]["text/html"]
    panel.close()


def test_the_panel_says_what_is_refused_and_keeps_the_recordings(tmp_path: Path) -> None:
    kept = Kept(ProfileStore(tmp_path / "profiles"), QualityError("the recordings are too noisy", "Record again."))
    panel = EnrolPanel(name="Anna", who="Anna Example", folder=tmp_path / "nowhere.wav", verbs=kept.verbs())
    assert [path.name for path, _ in panel.sources()] == ["nowhere.wav"]
    panel.folder_box.value = ""
    say(panel.recorder, "a")
    panel.consent_box.value = True
    panel.create_button.click()
    assert panel.note.refused and "too noisy" in panel.note.words and len(panel.sources()) == 1
    assert not panel.create_button.disabled and panel.progress.value == 0.0
    panel.statement_box.value = "yes"
    panel.create_button.click()
    assert "statement" in panel.note.words and len(kept.asked) == 1
    (tmp_path / "empty").mkdir()
    panel.folder_box.value = str(tmp_path / "empty")
    assert panel.source_note.refused and "no sound files" in panel.source_note.words
    panel.close()


def test_a_report_is_a_table_of_words(tmp_path: Path) -> None:
    finding = Finding("noisy", "reject", 3.0, 10.0, "dB", "Record <b>in a quiet room</b>.")
    samples = (
        SampleReport(index=0, name="<script>.wav", duration=4.0, speech_seconds=3.5, snr_db=40.0, bandwidth_hz=8e3),
        SampleReport(index=1, name="b.wav", findings=(finding,)),
    )
    report = EnrolmentReport(
        samples, Similarity(False, "no encoder is installed"), (), Reference(0, 0.0, 3.0, "best"), 3.5, 4.0, None
    )
    table = show_report(report)
    html = table._repr_html_()
    assert "<script>" not in html and "<b>" not in html and "quiet room" in html
    assert "40 dB" in html and "no encoder is installed" in html and table.marked == 0
    profile = make_profile(ProfileStore(tmp_path / "profiles"), "Anna", transcript="Hello.")
    shown = show_profiles([profile])._repr_html_()
    assert "Anna" in shown and "<audio" in shown and "Hello." in shown


# ------------------------------------------------------------------------------------------------------------- studio


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("profiles", "temp"):
        monkeypatch.setenv(f"RVC_SPARK_{name.upper()}", str(tmp_path / name))
    monkeypatch.setenv("TRITON_SERVER_PORT", "1")
    init_rvc()
    yield ProfileStore(tmp_path / "profiles")
    init_rvc()


def test_profiles_stand_beside_trained_voices_and_speak(store: ProfileStore) -> None:
    make_profile(store, "Anna", hertz=210.0)
    names = [listing.name for listing in list_voices()]
    assert names[-1] == "profile:Anna" and "demo_slt_32k" not in names[-1] and len(names) == 2
    (listed,) = profile_listings()
    assert shown_name(listed.name) == "Anna (profile)" and listed.card.median_f0_hz == 210.0
    assert "without conversion" in listed.card.description
    request = SpeakRequest("Hello there. And again.", "profile:Anna", "espeak", None, None, {"auto_key": "voice"})
    making = speak_made(request)
    pieces = list(making.pieces)
    assert sum(piece.seconds for piece in pieces) > 1 and making.engines()["rvc"].value == "none"
    assert np.abs(np.concatenate([piece.samples for piece in pieces])).max() > 0.05
    with pytest.raises(ConfigError, match="next text"):
        making.change(None, {"key": 3})
    stopped = Unconverted("Hello there.", "profile:Anna", "espeak")
    stopped.stop()
    assert list(stopped.pieces()) == []
    with pytest.raises(VoiceNotFoundError, match="no RVC voice"):
        rvc_voice("profile:Anna")
    store.link("Anna", voice="demo")
    assert rvc_voice("profile:Anna") == "demo" and rvc_voice("demo") == "demo"
    assert profile_settings("profile:Anna", {"auto_key": "voice"})["auto_key"] == VoiceRange(210.0, 205.0, 215.0)
    assert profile_settings("demo", {"auto_key": "voice"}) == {"auto_key": "voice"}


def test_the_studio_offers_a_profile_and_says_what_it_is(store: ProfileStore) -> None:
    from rvc_spark.widgets import Studio

    make_profile(store, "Anna")
    studio = Studio(text="Hello.", engine="espeak", voice="profile:Anna")
    assert ("Anna (profile)", "profile:Anna") in studio.voice.voice_choice.options
    assert "enrolled voice" in studio.voice.voice_note.words and studio.settings()["voice"] == "profile:Anna"


def test_a_damaged_store_hides_no_trained_voice(store: ProfileStore, tmp_path: Path) -> None:
    make_profile(store, "Anna")
    (store.get("Anna").folder / "profile.json").write_text("{")
    listed = list_voices()
    assert listed[0].error is None and listed[-1].error and len(listed) == 2
    store.root.rename(tmp_path / "moved")
    store.root.symlink_to(tmp_path / "moved")
    assert list_voices()[0].error is None and "link" in (list_voices()[-1].error or "")
