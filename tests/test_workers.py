"""Workers: order, accounting, policies, turns, voices, deaths, memory; with engines of microseconds, then real ones."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
import torch
from quick_workers import (
    LONGEST,
    RATE_IN,
    RATE_OUT,
    QuickSpeakers,
    QuickVC,
    Trouble,
    converted,
    expected,
    failing,
    speech_of,
)

from rvc_spark import rvc_init
from rvc_spark.errors import (
    ConfigError,
    RvcSparkError,
    SpeechError,
    StreamError,
    TextError,
    VoiceFileError,
    WorkerError,
)
from rvc_spark.processing import crew, voice_shelf
from rvc_spark.processing.heap import give_back_free_pages
from rvc_spark.processing.interruption import interruptible
from rvc_spark.processing.sound_line import GAP_SECONDS
from rvc_spark.processing.speak_options import SpeakOptions, WorkerOptions
from rvc_spark.processing.spoken_parts import SENTENCE_PAUSE
from rvc_spark.processing.worker_manager import WorkerManager

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # they die on purpose
PATIENCE = 120  # seconds; reaching it means that something hangs


def story(count: int, name: str = "story") -> str:
    return " ".join(f"This is sentence {number} of the {name}." for number in range(count))


def manager_of(trouble: Trouble | None = None, vc: QuickVC | None = None, **options) -> WorkerManager:
    vc = vc or QuickVC(trouble)
    if vc.voice is None:
        vc.load("demo")
    speakers = QuickSpeakers(trouble, options.pop("engine", "espeak"))
    manager = WorkerManager(vc, speakers, WorkerOptions(**{"unload_after": None, **options}))
    manager.vc, manager.speakers = vc, speakers  # for the tests to look at
    return manager


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + PATIENCE
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


@pytest.fixture
def quick():
    with manager_of() as manager:
        yield manager


def heard(utterance) -> list:
    """All chunks; numbered without holes, and the last one says so."""
    chunks = []
    while (chunk := utterance.get(PATIENCE)) is not None:
        chunks.append(chunk)
    assert [chunk.seq for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert [chunk.sentence for chunk in chunks] == sorted(chunk.sentence for chunk in chunks)
    assert {chunk.stream for chunk in chunks} == {utterance.name} and utterance.status.state == "ended"
    return chunks


def sound_of(chunks: list) -> np.ndarray:
    return np.concatenate([chunk.samples for chunk in chunks])


def idle(manager: WorkerManager) -> bool:
    status = manager.status()
    return status.tts[1] == status.rvc[1] == 0


def take_one(utterance, chunks: list):
    """A chunk, if one comes soon; then the status."""
    chunk = utterance.get(0.01)
    chunks += [chunk] * (chunk is not None)
    return utterance.status


def until(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


def check_sound(chunks: list, sentences: tuple[str, ...], failed: set[int]) -> None:
    """Every sample is where it belongs. Of a sentence that failed in the middle, its beginning may have been heard."""
    whole, at, stop = sound_of(chunks), 0, 0
    heard_of: dict[int, int] = {}
    for chunk in chunks:
        if chunk.gap is None:
            heard_of[chunk.sentence] = heard_of.get(chunk.sentence, 0) + chunk.frames
    fade = 0.008 * RATE_OUT + 1
    for number, text in enumerate(sentences):
        sound = converted(speech_of(text))
        pause = round(SENTENCE_PAUSE * RATE_OUT) if number < len(sentences) - 1 else 0
        if number in failed:
            assert heard_of.get(number, 0) in (0, 500), number
            at += heard_of.get(number, 0)
            stop = at + round(GAP_SECONDS * RATE_OUT)
            assert not whole[at:stop].any()
        else:
            assert heard_of[number] == len(sound) + pause, number
            stop = at + len(sound) + pause
            part = whole[at : at + len(sound)]
            different = np.flatnonzero(part != sound)
            beside = number - 1 in failed
            assert not len(different) or (beside and different.max() < fade), (number, len(different))
            assert not whole[at + len(sound) : stop].any()
        at = stop
    assert at == len(whole)


# the sound


@pytest.mark.parametrize("tts,rvc", [(1, 1), (4, 3)])
def test_every_sample_of_a_text_in_order(tts, rvc):
    with manager_of(Trouble(delay=0.003), tts_workers=tts, rvc_workers=rvc) as manager:
        utterance = manager.submit(story(40))
        chunks = heard(utterance)
    assert len(utterance.sentences) == 40
    np.testing.assert_array_equal(sound_of(chunks), expected(utterance.sentences))
    assert (utterance.status.delivered, utterance.status.made, utterance.status.ready_seconds) == (40, 40, 0)
    assert utterance.gaps == () and [item.sentence for item in utterance.timings] == list(range(40))
    assert {item.voice for item in utterance.timings} == {"demo"} and utterance.engines["tts"].value == "espeak"
    assert utterance.engines["key"].value == "+7" and utterance.engines["pitch"].value == "quick"


def test_the_key_of_the_first_sentence_is_held_whatever_is_spoken_first():
    def late(kind, text):
        if kind == "speak" and " 0 of" in text:
            time.sleep(0.05)

    with manager_of(Trouble(hook=late), tts_workers=4, rvc_workers=3) as manager:
        heard(manager.submit(story(12)))
        heard(manager.submit(story(3), key=2.5))
        heard(manager.submit(story(2), auto_key="off"))
        asked = manager.vc.asked
    assert (asked[0].auto_key, asked[0].key) == ("voice", 0)
    assert {(item.auto_key, item.key) for item in asked[1:12]} == {("off", 7.0)}
    assert [(item.auto_key, item.key) for item in asked[12:]] == [("off", 2.5)] * 3 + [("off", 0)] * 2


def test_a_voice_made_to_order_speaks_in_one_stream():
    with manager_of(engine="spark") as manager:
        utterance = manager.submit(story(7))
        whole = sound_of(heard(utterance))
        engine = manager.speakers.engines[0]
        cloned = manager.submit(story(3), reference="me.wav")
        heard(cloned)
        assert manager.speakers.enrolled == 1 and manager.speakers.engines[1].streams == 3
    assert engine.streams == 1 and engine.settings.seed is not None
    spoken = sum(len(speech_of(text)) for text in utterance.sentences) + 6 * round(0.3 * RATE_IN)
    assert len(whole) == round(spoken * RATE_OUT / RATE_IN) and len(utterance.timings) == 7
    at = 0
    for text in utterance.sentences:
        sound = converted(speech_of(text))
        np.testing.assert_array_equal(whole[at : at + len(sound)], sound)
        at += len(sound) + round(0.3 * RATE_OUT)


def test_a_stream_that_fails_or_dies_in_the_middle():
    """What was cut is delivered once; a dead worker's stream goes on behind it; a failure is one gap."""
    state = {"left": 2}

    def trouble(kind, text):
        if kind == "piece" and text.endswith(" 6000") and state["left"]:
            state["left"] -= 1
            raise SystemExit if mode == "dies" else SpeechError("no more", "Try again.")

    for mode in ("dies", "fails"):
        state["left"] = 2
        with manager_of(Trouble(hook=trouble), engine="spark") as manager:
            utterance = manager.submit(story(5))
            chunks = heard(utterance)
            sounds = [converted(speech_of(text)) for text in utterance.sentences]
            if mode == "dies":
                assert manager.status().restarts == 2 and not utterance.gaps
                assert len(sound_of(chunks)) == sum(map(len, sounds)) + 4 * round(0.3 * RATE_OUT)
            else:
                assert len(utterance.gaps) == 1 and chunks[-1].gap and "no more" in str(chunks[-1].gap.error)
                whole = sound_of(chunks)
                np.testing.assert_array_equal(whole[: len(sounds[0])], sounds[0])


def test_a_stream_that_sounds_different_when_begun_again_becomes_a_gap():
    calls = {"speak": 0}

    def trouble(kind, text):
        calls["speak"] += kind == "speak"
        if kind == "piece" and text.endswith(" 6000") and calls["speak"] == 1:
            raise SystemExit

    with manager_of(Trouble(hook=trouble), engine="spark") as manager:
        utterance = manager.submit(story(5))
        engine = manager.speakers.engines[0]
        stream = engine.stream
        engine.stream = lambda speaker, text: stream(speaker, text if calls["speak"] == 0 else story(5, "other"))
        chunks = heard(utterance)
    assert isinstance(chunks[-1].gap.error, WorkerError) and "different" in str(chunks[-1].gap.error)


# what goes wrong


def test_a_failed_sentence_is_skipped_with_a_reason():
    trouble = Trouble(seed=3, speech_fails=0.2, voice_fails=0.2)
    with manager_of(trouble, tts_workers=2, rvc_workers=2) as manager:
        utterance = manager.submit(story(60))
        chunks = heard(utterance)
        failed = failing(trouble, utterance.sentences)
        status = manager.status()
    assert 5 < len(failed) < 40 and {gap.sentence for gap in utterance.gaps} == failed
    assert all(utterance.sentences[gap.sentence] == gap.text for gap in utterance.gaps)
    assert (status.failed, status.made) == (len(failed), 60 - len(failed))
    check_sound(chunks, utterance.sentences, failed)


def test_stop_raises_the_error_after_what_came_before(quick):
    bad = failing_once(quick, 3)
    utterance = quick.submit(story(6), on_failure="stop")
    chunks = []
    with pytest.raises(SpeechError, match="not today"):
        for chunk in utterance:
            chunks.append(chunk)
    bad.clear()
    assert sorted({chunk.sentence for chunk in chunks}) == [0, 1, 2] and utterance.status.state == "failed"
    assert list(utterance) == [] and "not today" in utterance.status.error and utterance.gaps[0].sentence == 3
    assert len(heard(quick.submit(story(6)))) >= 6


def failing_once(manager: WorkerManager, *numbers: int) -> set[int]:
    """Sentences that cannot be spoken as long as they are in the set."""
    bad = set(numbers)

    def trouble(kind, text):
        if kind == "speak" and any(f" {number} of" in text for number in bad):
            raise SpeechError("not today", "Tomorrow.")

    manager.speakers.trouble.hook = trouble
    return bad


@pytest.mark.parametrize("way", ["retry", "policy", "cancel"])
def test_wait_holds_the_stream_and_nothing_else(quick, way):
    bad = failing_once(quick, 2)
    utterance = quick.submit(story(5), on_failure="wait")
    chunks = []
    until(lambda: take_one(utterance, chunks).state == "held")
    until(lambda: utterance.status.made == 4)  # the others are made meanwhile
    assert {chunk.sentence for chunk in chunks} == {0, 1} and len(heard(quick.submit(story(2)))) >= 2
    with pytest.raises(StreamError):
        utterance.retry(1)
    with pytest.raises(StreamError):
        utterance.retry(99)
    if way == "cancel":
        utterance.cancel()
        assert utterance.get(PATIENCE) is None and utterance.status.state == "cancelled"
        return
    if way == "retry":
        utterance.retry(2)  # fails again
        until(lambda: utterance.status.state == "held" and not quick.status().tts[1])
        bad.clear()
        utterance.retry(2)
    else:
        utterance.change(on_failure="skip")
    while (chunk := utterance.get(PATIENCE)) is not None:
        chunks.append(chunk)
    assert chunks[-1].last and utterance.status.state == "ended"
    if way == "retry":
        np.testing.assert_array_equal(sound_of(chunks), expected(utterance.sentences))
    else:
        check_sound(chunks, utterance.sentences, {2})


def test_a_stream_that_broke_off_can_be_tried_again():
    broken = [True]

    def trouble(kind, text):
        if kind == "piece" and text.endswith(" 6000") and broken:
            raise SpeechError("no more", "Try again.")

    with manager_of(Trouble(hook=trouble), engine="spark") as manager:
        utterance = manager.submit(story(5), on_failure="wait")
        chunks = []
        until(lambda: take_one(utterance, chunks).state == "held")
        broken.clear()
        utterance.retry(utterance.status.sentences - 1)
        while (chunk := utterance.get(PATIENCE)) is not None:
            chunks.append(chunk)
    sounds = [converted(speech_of(text)) for text in utterance.sentences]
    assert len(sound_of(chunks)) == sum(map(len, sounds)) + 4 * round(0.3 * RATE_OUT) and chunks[-1].last


def test_a_dead_worker_is_replaced_and_its_sentence_done_again():
    trouble = Trouble(seed=5, dies=0.1)
    with manager_of(trouble, tts_workers=2, rvc_workers=2) as manager:
        utterance = manager.submit(story(50))
        chunks = heard(utterance)
        until(lambda: manager.status().restarts == len(trouble.died))  # one may die after the last sound was out
        status = manager.status()
    np.testing.assert_array_equal(sound_of(chunks), expected(utterance.sentences))
    assert status.restarts > 10 and "SystemExit" in status.last_death
    assert (status.tts[0], status.rvc[0]) == (2, 2) and not utterance.gaps


@pytest.mark.parametrize("kind", ["speak", "convert", "block"])
def test_a_sentence_at_which_every_worker_dies_becomes_a_gap(kind, quick):
    def dies(step, text):
        if step == kind:
            raise SystemExit

    quick.speakers.trouble.hook = quick.vc.trouble.hook = dies
    utterance = quick.submit("The only sentence.")
    chunk = heard(utterance)[-1]
    assert isinstance(chunk.gap.error, WorkerError) and "SystemExit" in str(chunk.gap.error)
    assert quick.status().restarts == quick.options.retries + 1
    quick.speakers.trouble.hook = quick.vc.trouble.hook = None
    assert not heard(quick.submit("Another sentence."))[-1].gap


def test_a_bug_is_named_and_ends_nothing_else(quick):
    def bug(kind, text):
        if kind == "speak" and " 1 of" in text:
            raise ZeroDivisionError("of the engine")

    quick.speakers.trouble.hook = bug
    utterance = quick.submit(story(3))
    chunks = heard(utterance)
    error = utterance.gaps[0].error
    assert isinstance(error, WorkerError) and "ZeroDivisionError: of the engine" in str(error)
    assert isinstance(error.__cause__, ZeroDivisionError)
    check_sound(chunks, utterance.sentences, {1})


def test_an_exception_set_from_outside_kills_a_worker_and_nothing_is_lost(quick):
    """What the interpreter can do to any thread at any moment; here in the middle of a conversion."""
    inside, go_on = threading.Event(), threading.Event()

    def hold(kind, text):
        if kind == "block" and not inside.is_set():
            inside.set()
            until(go_on.is_set)

    quick.vc.trouble.hook = hold
    utterance = quick.submit(story(4))
    assert inside.wait(PATIENCE)
    worker = next(thread for thread in threading.enumerate() if thread.name.startswith("rvc-spark rvc"))
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident), ctypes.py_object(SystemExit)) == 1
    worker.join(PATIENCE)
    assert not worker.is_alive()
    go_on.set()
    np.testing.assert_array_equal(sound_of(heard(utterance)), expected(utterance.sentences))
    assert quick.status().restarts == 1


def test_a_reference_that_cannot_be_learnt_ends_the_utterance(quick):
    quick.speakers.refuses = True
    utterance = quick.submit(story(3), reference="me.wav")
    with pytest.raises(SpeechError, match="cannot be enrolled"):
        list(utterance)
    assert utterance.status.state == "failed" and quick.speakers.enrolled == 1 and list(utterance) == []


def test_what_ended_before_anybody_listened_is_told(quick):
    quick.speakers.refuses = True
    utterance = quick.submit(story(3), reference="me.wav")
    deadline = time.monotonic() + PATIENCE
    while utterance.status.state != "failed" and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(SpeechError, match="cannot be enrolled"):
        utterance.get(0.1)
    assert utterance.get(0.1) is None and list(utterance) == []


def test_what_is_refused_at_once(quick):
    for text, changes, kind in [
        ("", {}, TextError), ("Hello.", {"volume": 3}, ConfigError), ("Hello.", {"key": 99}, ConfigError),
        ("Hello.", {"on_failure": "cry"}, ConfigError), ("Hello.", {"voice": "nobody"}, RvcSparkError),
    ]:  # fmt: skip
        with pytest.raises(kind):
            quick.submit(text, **changes)
    for changes in ({"key": 99}, {"voice": "nobody"}, {"speed": 1}):
        with pytest.raises(RvcSparkError):
            quick.change(**changes)
    wrong = {"tts_workers": 0, "ahead_seconds": 0, "retries": -1, "unload_after": 0, "rvc_workers": 1.5}
    for name, value in wrong.items():
        with pytest.raises(ConfigError, match=name):
            WorkerOptions(**{name: value})
    with pytest.raises(VoiceFileError, match="no voice"), WorkerManager(QuickVC(), QuickSpeakers()) as empty:
        empty.submit("Hello.")
    assert quick.status().utterances == ()


# several at once, and control


def test_a_new_utterance_does_not_wait_for_the_old_ones(quick):
    order: list[str] = []
    gate = threading.Event()

    def note(kind, text):
        if kind == "speak":
            until(gate.is_set)
            order.append(text)

    quick.speakers.trouble.hook = note
    first = quick.submit(story(8, "first"))
    until(lambda: quick.status().tts[1] == 1)
    others = [quick.submit(story(8, name)) for name in ("second", "third")]
    gate.set()
    for utterance in (first, *others):
        np.testing.assert_array_equal(sound_of(heard(utterance)), expected(utterance.sentences))
    names = [text.split()[-1] for text in order]
    assert names[:3] == ["first.", "second.", "third."]  # their first sentences, as soon as a worker is free
    assert all(sorted(names[at : at + 3]) == ["first.", "second.", "third."] for at in range(3, 24, 3))  # then in turns


def test_back_pressure_is_per_stream_and_in_seconds():
    with manager_of(ahead_seconds=1.0, spoken_ahead_seconds=0.5) as manager:
        silent = manager.submit(story(200, "silent"))
        until(lambda: silent.status.ready_seconds >= 1.0 and idle(manager))
        longest = LONGEST / RATE_IN + SENTENCE_PAUSE
        assert silent.status.ready_seconds < 1.0 + longest
        waits = silent.status.spoken - silent.status.made
        assert 0 < waits * longest < 0.5 + 12 * longest
        assert len(heard(manager.submit(story(30, "heard")))) >= 30  # who listens is served
        assert not manager.drain(0.05)
        np.testing.assert_array_equal(sound_of(heard(silent)), expected(silent.sentences))
        assert manager.drain(0)


def test_pause_holds_making_and_delivery(quick):
    utterance = quick.submit(story(30))
    utterance.get(PATIENCE)
    for who in (utterance, quick):
        who.pause()
        until(lambda: idle(quick))
        made = utterance.status.made
        assert utterance.get(0.02) is None and utterance.status.made == made
        assert utterance.status.state == "paused"
        who.resume()
        assert utterance.get(PATIENCE) is not None
    quick.pause()
    later = quick.submit(story(2))
    assert later.get(0.02) is None and quick.status().state == "paused"
    quick.resume()
    heard(later)


def test_settings_change_from_the_next_sentence_on(quick):
    gate = threading.Semaphore(0)
    quick.vc.trouble.hook = lambda kind, text: kind != "convert" or gate.acquire(timeout=PATIENCE)
    utterance = quick.submit(story(6), key=1)
    until(lambda: quick.status().rvc[1] == 1)
    utterance.change(key=2, index_rate=0.25)
    gate.release()
    until(lambda: utterance.status.made == 1 and quick.status().rvc[1] == 1)
    quick.change(key=3)
    for _ in range(20):
        gate.release()
    heard(utterance)
    heard(quick.submit(story(1)))
    asked = [(item.key, item.index_rate) for item in quick.vc.asked]
    assert asked == [(1, 0.75), (2, 0.25), (3, 0.25), (3, 0.25), (3, 0.25), (3, 0.25), (3, 0.75)]
    assert utterance.settings["key"] == 3


def voices(monkeypatch) -> None:
    monkeypatch.setattr(voice_shelf, "find_voice", lambda name, folders: folders[0] / f"{name}.pth")


def test_voices_do_not_take_each_others_networks(monkeypatch):
    voices(monkeypatch)
    vc = QuickVC()
    vc.load("folder/demo.pth")
    with manager_of(Trouble(delay=0.002), vc, rvc_workers=4) as manager:
        streams = [manager.submit(story(20, name), voice=name) for name in ("demo", "a", "b")]
        for utterance, level in zip(streams, (0.5, 0.1, 0.2), strict=True):
            whole = sound_of(heard(utterance))
            np.testing.assert_allclose(whole * 0.5 / level, expected(utterance.sentences), rtol=1e-5)
        assert [(item.voice.name, item.loads) for item in vc.family] == [("demo", 1), ("a", 1), ("b", 1)]
        heard(manager.submit(story(2), voice="c"))
        assert [item.voice.name for item in vc.family] == ["demo", "c", "b"]  # the one that was longest unused
        many = [manager.submit(story(5, name), voice=name) for name in "abcdefgh"]
        for utterance, name in zip(many, "abcdefgh", strict=True):
            heard(utterance)
            assert {item.voice for item in utterance.timings} == {name}
        assert len(vc.family) == 3 and vc.voice.name == "demo" and vc.loads == 1


def test_the_voice_of_a_stream_stays_when_its_owner_loads_another(monkeypatch):
    voices(monkeypatch)
    vc = QuickVC()
    vc.load("folder/demo.pth")
    with manager_of(None, vc) as manager:
        gate = threading.Semaphore(0)
        vc.trouble.hook = lambda kind, text: kind != "convert" or gate.acquire(timeout=PATIENCE)
        utterance = manager.submit(story(4))
        until(lambda: vc.running == 1)
        vc.load("folder/a.pth")
        for _ in range(10):
            gate.release()
        np.testing.assert_array_equal(sound_of(heard(utterance)), expected(utterance.sentences))
        assert vc.voice.name == "a" and vc.loads == 2


def test_another_voice_with_another_rate_joins_the_stream(monkeypatch):
    voices(monkeypatch)
    vc = QuickVC(rates={"a": 12_000})
    vc.load("folder/demo.pth")
    gate = threading.Semaphore(0)
    vc.trouble.hook = lambda kind, text: kind != "convert" or gate.acquire(timeout=PATIENCE)
    with manager_of(None, vc) as manager:
        utterance = manager.submit(story(6))
        until(lambda: vc.running == 1)
        utterance.change(voice="a")
        for _ in range(20):
            gate.release()
        chunks = heard(utterance)
    assert [item.voice for item in utterance.timings] == ["demo"] + ["a"] * 5
    assert {chunk.rate for chunk in chunks} == {RATE_OUT}
    assert len(sound_of(chunks)) == len(expected(utterance.sentences))
    keys = [(item.auto_key, item.key) for item in vc.asked + vc.family[1].asked]
    assert keys[0] == ("voice", 0) and keys[1] == ("voice", 0) and len(set(keys[2:])) == 1  # each voice has its own key


def test_names_are_unique_while_they_are_open(quick):
    assert [quick.submit("Hello.").name for _ in range(2)] == ["speech 1", "speech 2"]
    quick.cancel()
    first = quick.submit(story(3), name="mine")
    with pytest.raises(StreamError, match="open already"):
        quick.submit(story(3), name="mine")
    heard(first)
    second = quick.submit(story(3), SpeakOptions(name="mine"))
    quick.cancel("mine")
    assert list(second) == [] and second.status.state == "cancelled"
    with pytest.raises(StreamError, match="no stream"):
        quick.cancel("mine")


@pytest.mark.parametrize("how", ["cancel", "close", "stop", "drop", "manager"])
def test_the_end_comes_at_once_even_inside_a_conversion(how):
    manager = manager_of().start()
    inside = threading.Event()

    def slow(kind, text):
        if kind == "block":
            inside.set()
            time.sleep(0.005)

    manager.vc.trouble.hook = slow
    utterance = manager.submit(story(500))
    assert inside.wait(PATIENCE)
    session = utterance._session
    ended: list = []
    listener = threading.Thread(target=lambda stream: ended.append(list(stream)), args=(utterance,))
    if how != "drop":
        listener.start()
    if how == "stop":
        assert manager.stop(PATIENCE)
    elif how == "drop":
        del utterance, listener
        gc.collect()
    elif how == "manager":
        manager.cancel(utterance)
    else:
        getattr(utterance, how)()
    if how != "drop":
        listener.join(PATIENCE)
        assert not listener.is_alive() and not ended[0][-1].last if ended[0] else True
    until(lambda: session.cancelled and manager.vc.running == 0)
    if how == "stop":
        with pytest.raises(WorkerError, match="stopped"):
            manager.submit("Hello.")
        manager.start()
    np.testing.assert_array_equal(sound_of(heard(again := manager.submit(story(3)))), expected(again.sentences))
    assert manager.stop(PATIENCE)


def test_an_interrupt_ends_the_utterance_and_leaves_the_manager(quick):
    hold = threading.Event()
    quick.vc.trouble.hook = lambda kind, text: kind != "convert" or hold.wait(PATIENCE)
    utterance = quick.submit(story(5))
    timer = threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(utterance)
    hold.set()
    timer.join()
    assert utterance.status.state == "cancelled" and list(utterance) == []
    np.testing.assert_array_equal(sound_of(heard(again := quick.submit(story(3)))), expected(again.sentences))


def test_networks_are_freed_when_idle_and_come_back():
    with manager_of(unload_after=0.05, engine="spark") as manager:
        assert manager.status().models.value == "loaded"
        first = sound_of(heard(manager.submit(story(2))))
        until(lambda: manager.status().models.value == "freed")
        assert manager.vc.unloads == 1 and manager.speakers.closed == 1 and not manager.vc.loaded
        assert "0.05 s: demo" in manager.status().models.reason and manager.status().voices == ()
        np.testing.assert_array_equal(sound_of(heard(manager.submit(story(2)))), first)
        until(lambda: manager.vc.unloads == 2)
    assert "freed" in repr(manager.status())


def test_networks_are_left_between_layers_by_the_thread_whose_work_is_not_wanted():
    wanted, net = [True], torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh())
    other: list[torch.Tensor] = []
    with interruptible(lambda: bool(wanted)):
        net(torch.zeros(1, 2))
        wanted.clear()
        with pytest.raises(StreamError, match="closed"):
            net(torch.zeros(1, 2))
        thread = threading.Thread(target=lambda: other.append(net(torch.zeros(1, 2))))
        thread.start()
        thread.join(PATIENCE)
    assert len(other) == 1 and net(torch.zeros(1, 2)).shape == (1, 2)
    assert not torch.nn.modules.module._global_forward_pre_hooks


# the proof


def run_proof(seed: int, sentences: int, sessions: int, delay: float) -> None:
    """Random delays, failures, deaths and cancellations: order kept, nothing lost or doubled, every sample counted."""
    trouble = Trouble(seed=seed, delay=delay, speech_fails=0.01, voice_fails=0.01, dies=0.004)
    rng = np.random.default_rng(seed)
    with manager_of(trouble, tts_workers=3, rvc_workers=3, ahead_seconds=5, spoken_ahead_seconds=3) as manager:
        problems: list[BaseException] = []

        def listen(name: int) -> None:
            left = sentences // sessions
            rounds = 0
            while left > 0:
                count = min(left, int(rng.integers(20, 120)))
                utterance = manager.submit(story(count, f"tale {seed} {name} {rounds}"))
                rounds += 1
                if rng.random() < 0.2:  # a listener who goes away
                    for _ in range(int(rng.integers(0, 30))):
                        utterance.get(PATIENCE)
                    utterance.cancel()
                    assert list(utterance) == []
                    continue
                left -= count
                chunks = heard(utterance)
                failed = failing(trouble, utterance.sentences)
                assert {gap.sentence for gap in utterance.gaps} == failed, utterance.gaps[:3]
                check_sound(chunks, utterance.sentences, failed)

        def guarded(name: int) -> None:
            try:
                listen(name)
            except BaseException as error:
                problems.append(error)
                raise

        threads = [threading.Thread(target=guarded, args=(name,)) for name in range(sessions)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10 * PATIENCE)
        assert not problems and not any(thread.is_alive() for thread in threads)
        status = manager.status()
        assert status.made + status.failed >= sentences and len(trouble.died) > 0
        until(lambda: manager.status().restarts == len(trouble.died))
        assert status.utterances == ()
        until(lambda: manager.vc.running == 0)  # one may still be inside a cancelled sentence
        engines = manager.speakers.engines
        until(lambda: sum(engine.streams for engine in engines) == sum(engine.closed for engine in engines))


@pytest.mark.parametrize("sessions", [1, 4])
def test_two_thousand_sentences_with_delays_failures_deaths_and_cancellations(sessions):
    run_proof(seed=sessions, sentences=2_000, sessions=sessions, delay=0.002)


def test_memory_stays_flat():
    with manager_of(ahead_seconds=5) as manager:
        def rounds() -> None:
            for _ in range(3):
                heard(manager.submit(story(30)))
                manager.submit(story(30)).cancel()

        rounds()
        manager.speakers.engines.clear()
        manager.vc.asked.clear()
        gc.collect()
        tracemalloc.start()
        rounds()
        manager.speakers.engines.clear()
        manager.vc.asked.clear()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        rounds()
        manager.speakers.engines.clear()
        manager.vc.asked.clear()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    assert grown < 100_000, grown  # bytes; one sentence is 5 kB, 90 were heard


def test_memory_that_sentences_leave_behind_is_given_back_once_nobody_works(monkeypatch):
    given = []
    monkeypatch.setattr(crew, "give_back_free_pages", lambda: given.append(manager.status().made))
    with manager_of() as manager:
        heard(manager.submit(story(4)))
        until(lambda: given and given[-1] == 4)
        count = len(given)
        manager._crew.look()  # nothing new was made
        time.sleep(0.05)
        assert len(given) == count
        heard(manager.submit(story(3)))
        until(lambda: given[-1] == 7)


def test_memory_is_given_back_from_time_to_time_while_work_goes_on(monkeypatch):
    given = []
    monkeypatch.setattr(crew, "give_back_free_pages", lambda: given.append(manager.status().made))
    monkeypatch.setattr(crew, "TIDY_SECONDS", 0.0)
    monkeypatch.setattr(crew, "LOOK_SECONDS", 0.005)
    with manager_of(Trouble(delay=0.01)) as manager:
        heard(manager.submit(story(30)))
        until(lambda: given[-1] == 30)
    assert given[0] < 30, "before the work was over"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_free_pages_go_back_to_the_system():
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    holes = [bytearray(60_000) for _ in range(2_000)]  # too small for a mapping of their own
    kept = holes[::20]
    full = resident()
    del holes
    held = resident()
    assert give_back_free_pages()
    assert held - resident() > 80e6 or full - resident() > 80e6, "114 MB of 120 are free"
    assert len(kept) == 100


# the real thing

TEXT = "One sentence. Another one, a little longer than that. The third! And a fourth?"


@pytest.fixture(scope="module")
def real():
    vc = rvc_init.init_rvc()
    vc.load("demo")
    return vc, rvc_init.get_speakers()


def whole_of(vc, speakers) -> tuple[np.ndarray, float]:
    """The paragraph, converted sentence by sentence by hand, each at its place; what is between them is 0."""
    engine, _ = speakers.engine("espeak")
    key, seconds = None, 0.0
    parts: list[np.ndarray] = []
    for sentence in ("One sentence.", "Another one, a little longer than that.", "The third!", "And a fourth?"):
        spoken = engine.speak(None, sentence)
        how = {"auto_key": "voice"} if key is None else {"key": key}
        conversion = vc.convert(spoken, f0_method="pm", **how)
        key = float(conversion.engines["key"].value)
        place = round(seconds * conversion.rate) - sum(map(len, parts))
        parts += [np.zeros(place, np.float32), conversion.audio.samples]
        seconds += (spoken.frames + round(SENTENCE_PAUSE * spoken.rate)) / spoken.rate
    return np.concatenate(parts), key


def test_a_paragraph_is_what_its_sentences_are(real):
    vc, speakers = real
    with WorkerManager(vc, speakers, WorkerOptions(unload_after=0.2)) as manager:
        utterance = manager.submit(TEXT, engine="espeak", f0_method="pm")
        whole = sound_of(heard(utterance))
        until(lambda: manager.status().models.value == "freed")
        assert not vc.loaded

        by_hand, key = whole_of(vc, speakers)
        assert abs(len(by_hand) - len(whole)) <= 1 and utterance.engines["key"].value == f"{key:+g}"
        np.testing.assert_allclose(whole[:-1], by_hand[: len(whole) - 1], atol=2e-6)  # blocks round differently
        speech = rvc_init.speak(TEXT, engine="espeak", f0_method="pm")
        assert len(whole) == speech.audio.frames
        assert utterance.engines["pitch"].value == "pm"
        np.testing.assert_array_equal(sound_of(heard(manager.submit(TEXT, engine="espeak", f0_method="pm"))), whole)


def test_a_worker_killed_inside_the_networks_is_replaced_and_the_sound_is_the_same(real):
    vc, speakers = real
    with WorkerManager(vc, speakers, WorkerOptions(unload_after=None)) as manager:
        whole = sound_of(heard(manager.submit(TEXT, engine="espeak", f0_method="pm")))
        utterance = manager.submit(TEXT, engine="espeak", f0_method="pm")
        chunks = [utterance.get(PATIENCE)]  # the first block is out, the others are being made
        worker = next(thread for thread in threading.enumerate() if thread.name.startswith("rvc-spark rvc"))
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident), ctypes.py_object(SystemExit))
        worker.join(PATIENCE)
        while (chunk := utterance.get(PATIENCE)) is not None:
            chunks.append(chunk)
        np.testing.assert_array_equal(sound_of(chunks), whole)
        assert manager.status().restarts == 1 and not utterance.gaps


def test_a_cancelled_sentence_leaves_the_networks_and_the_next_one_sounds_as_before(real):
    vc, speakers = real
    with WorkerManager(vc, speakers, WorkerOptions(unload_after=None)) as manager:
        whole = sound_of(heard(manager.submit(TEXT, engine="espeak", f0_method="pm")))
        for made in (0, 1):
            utterance = manager.submit(TEXT.replace(".", ","), engine="espeak", f0_method="pm")
            until(lambda: manager.status().rvc[1])
            for _ in range(made):
                utterance.get(PATIENCE)
            utterance.cancel()
            until(lambda: idle(manager))
        np.testing.assert_array_equal(sound_of(heard(manager.submit(TEXT, engine="espeak", f0_method="pm"))), whole)
