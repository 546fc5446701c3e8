"""The embedded speech engine: determinism, isolation, voices, enrolment, hostile texts and files."""

from __future__ import annotations

import builtins
import json
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rvc_spark.audio import Audio, read_audio, write_audio
from rvc_spark.errors import ConfigError, MissingPackageError, OutputError, SpeechError, TextError
from rvc_spark.tts import espeak_library
from rvc_spark.tts.engine import MAX_SPOKEN_CHARS, AudioResult, BaseTTSEngine, EmbeddingResult
from rvc_spark.tts.espeak import BLOCK_CHARS, EspeakEngine, EspeakSettings, blocks
from rvc_spark.tts.espeak_library import MAX_DATA_PATH, EspeakLibrary, Utterance, installed_library
from rvc_spark.tts.espeak_text import tamed
from rvc_spark.tts.median_pitch import median_pitch

TEXT = "Hello world, this is a small test."
FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@pytest.fixture
def engine(tmp_path: Path) -> EspeakEngine:
    return EspeakEngine(folder=tmp_path / "speech")


def said(settings: EspeakSettings, text: str = TEXT) -> np.ndarray:
    return EspeakEngine(settings).speak(None, text).samples


def test_speaks_sound_of_sensible_length_and_level(engine: EspeakEngine) -> None:
    audio = engine.speak(None, TEXT)
    assert audio.rate == 22_050 and audio.samples.dtype == np.float32 and audio.samples.ndim == 1
    assert 1.0 < audio.seconds < 4.0
    assert 0.1 < np.abs(audio.samples).max() <= 1.0 and abs(audio.samples.mean()) < 0.01
    assert str(engine.choice).startswith("espeak (embedded, voice en-us")


def test_same_text_same_samples_whatever_came_before(engine: EspeakEngine) -> None:
    first = engine.speak(None, TEXT).samples
    said(EspeakSettings("de", speed=300, pitch=90), "Etwas ganz anderes, mit rauschenden Zischlauten.")
    said(EspeakSettings("en-us+whisper"), "And a whisper.")
    np.testing.assert_array_equal(engine.speak(None, TEXT).samples, first)
    np.testing.assert_array_equal(EspeakEngine().speak(None, TEXT).samples, first)


def test_settings_do_what_they_say() -> None:
    plain = EspeakSettings()
    assert len(said(replace(plain, speed=330))) < 0.7 * len(said(plain))
    low, high = (median_pitch(said(replace(plain, pitch=pitch)), 22_050) for pitch in (20, 80))
    assert low is not None and high is not None and high > 1.4 * low
    level = [np.sqrt(np.square(said(replace(plain, volume=volume))).mean()) for volume in (25, 100)]
    assert level[0] < 0.5 * level[1]
    flat, lively = (said(replace(plain, pitch_range=value)) for value in (0, 100))
    assert not np.array_equal(flat, lively)
    np.testing.assert_array_equal(said(replace(plain, variant="f3")), said(replace(plain, voice="en-us+f3")))
    assert not np.array_equal(said(replace(plain, variant="f3")), said(plain))


@pytest.mark.parametrize(
    "voice, text",
    [("de", "Guten Tag."), ("fr", "Bonjour."), ("cmn", "你好。"), ("ar", "مرحبا"), ("hi", "नमस्ते"), ("ru", "Привет"),
     ("ja", "こんにちは"), ("es-419", "Hola"), ("de-AT", "Servus"), ("EN_us", "Hi"), ("English (America)", "Hi")],
)  # fmt: skip
def test_languages_by_every_usual_name(voice: str, text: str) -> None:
    samples = said(EspeakSettings(voice), text)
    assert len(samples) > 4_000 and np.abs(samples).max() > 0.05


def test_catalogue_of_voices(engine: EspeakEngine) -> None:
    codes = {voice.code for voice in engine.voices()}
    assert {"en-us", "en-gb", "de", "fr-fr", "es", "it", "cmn"} <= codes and len(codes) > 100
    assert {"f3", "m3", "whisper"} <= {variant.code for variant in engine.variants()}
    assert any(variant.gender == "female" for variant in engine.variants())


@pytest.mark.parametrize(
    "voice", ["xx", "../../etc/passwd", "en-us+../../../etc/passwd", "en-us+nobody", "mb/mb-en1", "a\0b", "é" * 500]
)
def test_unknown_voices_are_refused_with_neighbours(voice: str) -> None:
    with pytest.raises(SpeechError, match="unknown to espeak-ng.*Near to it are") as caught:
        EspeakEngine(EspeakSettings(voice))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "name, value",
    [("speed", 79), ("speed", 451), ("speed", 100.5), ("pitch", -1), ("pitch", 101), ("pitch", True), ("volume", 0),
     ("volume", 10**9), ("pitch_range", 101), ("voice", ""), ("voice", None), ("variant", "  "), ("speed", "fast")],
)  # fmt: skip
def test_settings_out_of_range_name_value_and_range(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value!r}"):
        EspeakSettings(**{name: value})


@pytest.mark.parametrize(
    "text, match",
    [("", "empty"), (" \n ", "empty"), ("a\0b", r"U\+0000.*character 2"), ("\x0150R fast", r"U\+0001"),
     ("a\ud800", r"U\+D800"), ("x" * (MAX_SPOKEN_CHARS + 1), "200,001 characters"), (b"bytes", "type bytes")],
)  # fmt: skip
def test_texts_refused_before_anything_is_spoken(engine: EspeakEngine, text: str, match: str) -> None:
    with pytest.raises(TextError, match=match):
        engine.stream(None, text)
    result = engine.synthesize(None, text)
    assert not result.success and result.path is None and not engine.folder.exists()


def test_markup_is_read_as_text_never_obeyed(engine: EspeakEngine) -> None:
    pause = engine.speak(None, '<speak>one <break time="30s"/> two</speak>')
    assert 2 < pause.seconds < 20
    phonemes = engine.speak(None, "[[h@loU]]").samples
    assert not np.array_equal(phonemes, engine.speak(None, "hello").samples)
    assert len(engine.speak(None, "&lt;&gt; %s %n \\0 {{x}}").samples) > 0


@pytest.mark.parametrize("voice", ["en-us", "si", "cmn", "ta"])
@pytest.mark.parametrize(
    "text",
    ["5.00" + "9" * 300, "9" * 2000, "a" * 3000, "1," * 400, "A." * 500, "e" + "\u0301" * 500, "\ue000\U000f0000 x",
     "🎉" * 50, "!" * 500, "-" * 999 + "x", "१" * 200, "\u200d" * 99 + "a", "word" + "'" * 300],
)  # fmt: skip
def test_texts_that_overflow_the_library_are_tamed(voice: str, text: str) -> None:
    try:
        assert np.isfinite(said(EspeakSettings(voice, speed=450), text[:400])).all()
    except SpeechError as error:
        assert "has nothing to say" in str(error)


def test_taming_leaves_the_writing_of_the_language_alone() -> None:
    for voice, text in (
        ("gmw/en", TEXT),
        ("gmw/de+f3", "Ünïcödé, naïve; 1,234,567.89 €! π (α), 3½ µm"),
        ("inc/hi", "नमस्ते दुनिया।"),
        ("tai/th", "สวัสดี ก็ ที่"),
        ("aav/vi", "Tiếng Việt ở đây"),
        ("sit/cmn", "你好。“好”！"),
        ("jpx/ja", "こんにちは、カタカナ、漢字"),
        ("sem/ar", "مَرْحَبًا؟"),
        ("zle/ru", "Привет, мир"),
    ):
        assert tamed(text, voice) == text


def test_taming_takes_out_what_cannot_be_said() -> None:
    assert tamed("Great! 🎉 ½ ﬁne Ⅷ ｗ ⓜ ⣯☦ `{x}` a" + "\u0302" * 9, "gmw/en") == (
        "Great!   ½ fine VIII w m      x   â\u0302\u0302\u0302\u0302"
    )
    assert tamed("abcпривет \ue000\U00010450x १२ ٣ ５", "zle/ru") == "abc привет   x 12 3 5"
    assert tamed("say привет now", "gmw/en") == "say        now"
    assert tamed("1" * 30, "gmw/en") == "1" * 12 + ", " + "1" * 12 + ", " + "1" * 6
    assert max(map(len, tamed("x" * 500, "gmw/en").split())) == 40
    with pytest.raises(SpeechError, match="the voice en-us of espeak-ng has nothing to say.*text's language"):
        EspeakEngine().speak(None, "🎉 привет")


def test_blocks_are_the_text_cut_where_it_pauses() -> None:
    text = "This is a sentence of some length. " * 60
    parts = list(blocks(text))
    assert "".join(parts) == text and all(len(part) <= BLOCK_CHARS and part.endswith(". ") for part in parts)
    assert list(blocks("short")) == ["short"]
    assert "".join(blocks("y" * 2000)) == "y" * 2000 and len(list(blocks(" " * 2000 + "z"))) == 1


def test_stream_yields_early_and_joins_to_the_whole(engine: EspeakEngine) -> None:
    text = "This is one sentence of a long text. " * 40
    pieces = list(engine.stream(None, text))
    assert len(pieces) == 4 and {piece.rate for piece in pieces} == {22_050}
    whole = engine.speak(None, text)
    np.testing.assert_array_equal(np.concatenate([piece.samples for piece in pieces]), whole.samples)


def test_an_open_stream_blocks_nobody(engine: EspeakEngine) -> None:
    text = "This is one sentence of a long text. " * 40
    one, two = engine.stream(None, text), engine.stream(None, text)
    firsts = [next(one), next(two)]
    np.testing.assert_array_equal(firsts[0].samples, firsts[1].samples)
    one.close()
    assert len(engine.speak(None, TEXT).samples) and len(list(two)) == 3


def test_synthesize_writes_what_it_reports(engine: EspeakEngine, tmp_path: Path) -> None:
    result = engine.synthesize(None, TEXT)
    assert result.success and result.error is None and result.path is not None and result.path.parent == engine.folder
    audio = read_audio(result.path)
    assert (audio.rate, audio.frames) == (result.sample_rate, result.sample_count)
    assert result.duration_seconds == pytest.approx(audio.seconds)
    np.testing.assert_allclose(audio.samples.reshape(-1), engine.speak(None, TEXT).samples, atol=1e-4)
    again = engine.synthesize(None, TEXT)
    assert again == result and len(list(engine.folder.iterdir())) == 1
    other = EspeakEngine(EspeakSettings(pitch=70), folder=engine.folder).synthesize(None, TEXT)
    assert other.path != result.path
    chosen = engine.synthesize(None, TEXT, output=tmp_path / "mine.flac")
    assert chosen.path == tmp_path / "mine.flac" and read_audio(chosen.path).frames == result.sample_count


def test_failures_to_write_are_results(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    engine = EspeakEngine(folder=tmp_path / "file" / "below")
    result = engine.synthesize(None, TEXT)
    assert not result.success and "cannot be made" in (result.error or "")
    assert not engine.synthesize(None, TEXT, output=tmp_path / "no" / "x.wav").success
    with pytest.raises(OutputError):
        engine.own_folder()


@pytest.mark.parametrize("settings", [EspeakSettings(pitch=30), EspeakSettings("en-us+f3", pitch=60)])
def test_enrolling_meets_the_recording(engine: EspeakEngine, tmp_path: Path, settings: EspeakSettings) -> None:
    voice = EspeakEngine(settings).speak(None, "We know a man who will go away on a rainy morning in May.")
    path = write_audio(tmp_path / "speaker.wav", voice)
    result = engine.enroll([path, voice])
    assert result.success and result.sample_count == 2 and result.path is not None
    assert result.reached_hz == pytest.approx(result.source_hz, rel=0.06)
    spoken = engine.speak(result.path, "We know a man who will go away on a rainy morning in May.")
    assert median_pitch(spoken.samples, spoken.rate) == pytest.approx(result.source_hz, rel=0.15)
    assert engine.synthesize(result.path, TEXT).path != engine.synthesize(None, TEXT).path
    assert engine.enroll([path, voice]) == result


def test_enrolling_a_short_high_voice_takes_the_high_variant(engine: EspeakEngine) -> None:
    time = np.arange(22_050) / 22_050
    tone = sum(np.sin(2 * np.pi * 240 * k * time) / k for k in range(1, 9)).astype(np.float32) * 0.2
    result = engine.enroll([Audio(np.stack([tone, tone]), 22_050)])
    assert result.source_hz == pytest.approx(240, rel=0.02)
    assert json.loads(result.path.read_text(encoding="utf-8"))["variant"] == "f3"


def test_enrolling_refuses_what_has_no_voice(engine: EspeakEngine, tmp_path: Path) -> None:
    noise = Audio(np.random.default_rng(0).normal(size=32_000).astype(np.float32) * 0.1, 16_000)
    (tmp_path / "no.wav").write_bytes(b"<html>")
    silence = Audio(np.zeros(32_000, np.float32), 16_000)
    for samples in ([], [silence], [noise], [tmp_path / "no.wav"], [tmp_path / "gone"]):
        result = engine.enroll(samples)
        assert isinstance(result, EmbeddingResult) and not result.success and result.path is None and result.error
    assert not engine.folder.exists()
    whispering = EspeakEngine(EspeakSettings("en-us+whisper"), folder=engine.folder)
    tone = np.sign(np.sin(np.arange(32_000) * 0.05)).astype(np.float32) * 0.1
    assert "no pitch of its own" in (whispering.enroll([Audio(tone, 16_000)]).error or "")


GOOD = {"format": "rvc_spark espeak voice", "voice": "de", "variant": None, "pitch": 40}


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[]", b"{}", b"[" * 60_000, b" " * 70_000, json.dumps(GOOD | {"format": "x"}).encode(),
     json.dumps(GOOD | {"pitch": 1e9}).encode(), json.dumps(GOOD | {"pitch": "1"}).encode(),
     json.dumps(GOOD | {"voice": "../x"}).encode(), json.dumps(GOOD | {"voice": ["de"]}).encode(),
     json.dumps(GOOD | {"variant": 3}).encode(), json.dumps({"format": GOOD["format"]}).encode(), b'{"pitch": 1e999}'],
)  # fmt: skip
def test_hostile_speaker_files(engine: EspeakEngine, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "speaker.json"
    path.write_bytes(json.dumps(GOOD).encode())
    assert engine.speak(path, "Hallo").samples.size
    path.write_bytes(content)
    with pytest.raises(SpeechError):
        engine.stream(path, TEXT)
    for other in (tmp_path, tmp_path / "gone.json", "a\0b"):
        with pytest.raises(SpeechError):
            engine.stream(other, TEXT)


def test_many_threads_get_their_own_words() -> None:
    texts = [f"This is text number {number}." for number in range(12)]
    expected = [EspeakEngine(EspeakSettings(pitch=30 + n)).speak(None, text).samples for n, text in enumerate(texts)]

    def work(n: int) -> np.ndarray:
        return EspeakEngine(EspeakSettings(pitch=30 + n % 12)).speak(None, texts[n % 12]).samples

    with ThreadPoolExecutor(8) as pool:
        for n, samples in enumerate(pool.map(work, range(48))):
            np.testing.assert_array_equal(samples, expected[n % 12])


def _child(queue: multiprocessing.Queue) -> None:
    queue.put(EspeakEngine().speak(None, TEXT).samples)


@FORK
def test_a_child_forked_in_the_middle_of_a_word_can_speak() -> None:
    expected = EspeakEngine().speak(None, TEXT).samples
    stop = threading.Event()

    def babble() -> None:
        while not stop.is_set():
            EspeakEngine().speak(None, "Babble, babble, on and on and on. " * 10)

    thread = threading.Thread(target=babble)
    thread.start()
    try:
        context = multiprocessing.get_context("fork")
        for _ in range(5):
            queue = context.Queue()
            child = context.Process(target=_child, args=(queue,))
            child.start()
            np.testing.assert_array_equal(queue.get(timeout=60), expected)
            child.join(60)
            assert child.exitcode == 0
    finally:
        stop.set()
        thread.join()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a timer signal")
def test_an_interrupt_ends_the_work_and_leaves_the_engine_usable(engine: EspeakEngine) -> None:
    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for delay in (0.002, 0.01, 0.05, 0.2):
            signal.setitimer(signal.ITIMER_REAL, delay)
            with pytest.raises(KeyboardInterrupt):
                while True:
                    engine.speak(None, "A long text that goes on and on. " * 100)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    np.testing.assert_array_equal(engine.speak(None, TEXT).samples, EspeakEngine().speak(None, TEXT).samples)


def test_a_long_data_path_is_reached_through_a_short_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = installed_library()
    far = tmp_path.joinpath(*["a_rather_long_folder_name"] * 6)
    far.mkdir(parents=True)
    (far / "espeak-ng-data").symlink_to(own.data)
    library = EspeakLibrary(own.library, far / "espeak-ng-data")
    assert len(os.fsencode(library.data)) > MAX_DATA_PATH
    np.testing.assert_array_equal(
        EspeakEngine(library=library).speak(None, TEXT).samples, EspeakEngine().speak(None, TEXT).samples
    )
    monkeypatch.setattr(espeak_library.tempfile, "mkdtemp", lambda prefix: str(far))
    (far / "espeak-ng-data").unlink()
    with pytest.raises(SpeechError, match=r"path of espeak-ng's data has \d+ bytes"):
        EspeakLibrary(own.library, far / "data").render(Utterance("hi", "gmw/en", 160, 50, 50, 100))


def test_broken_installations_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = installed_library()
    (tmp_path / "lib.so").write_bytes(b"not a library")
    utterance = Utterance("hi", "gmw/en", 160, 50, 50, 100)
    with pytest.raises(SpeechError, match="cannot be loaded"):
        EspeakLibrary(tmp_path / "lib.so", own.data).render(utterance)
    with pytest.raises(SpeechError, match="does not start"):
        EspeakLibrary(own.library, tmp_path).render(utterance)
    with pytest.raises(SpeechError, match="holds no languages"):
        EspeakEngine(library=EspeakLibrary(own.library, tmp_path))
    with pytest.raises(SpeechError, match="does not take the voice"):
        own.render(replace(utterance, voice="gmw/nonsense"))
    real_import = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "espeakng_loader":
            raise ImportError(name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match="pip install espeakng-loader"):
        EspeakEngine()


class _Silent(BaseTTSEngine):
    """The smallest engine: what the interface asks for and nothing else."""

    name = "silent"
    choice = EspeakEngine.choice

    def enroll(self, samples: list) -> EmbeddingResult:
        return EmbeddingResult(None, 0, False, "cannot")

    def stream(self, embedding_path: Path | None, text: str):  # noqa: ANN201
        return iter(())


def test_an_engine_that_says_nothing_is_an_error_not_a_crash(tmp_path: Path) -> None:
    engine = _Silent(tmp_path)
    with pytest.raises(SpeechError, match="silent says nothing"):
        engine.speak(None, "x")
    engine.settings = EspeakSettings()
    result = engine.synthesize(None, "x")
    assert isinstance(result, AudioResult) and not result.success


def test_median_pitch_of_known_tones() -> None:
    time = np.arange(16_000) / 16_000
    for hz in (70, 110, 220, 400):
        tone = sum(np.sin(2 * np.pi * hz * k * time) / k for k in range(1, 6)).astype(np.float32)
        assert median_pitch(tone, 16_000) == pytest.approx(hz, rel=0.02)
    assert median_pitch(np.zeros(16_000, np.float32), 16_000) is None
    assert median_pitch(np.zeros(10, np.float32), 16_000) is None
