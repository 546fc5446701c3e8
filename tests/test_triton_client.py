"""The Triton client against a real server: what is sent, what is delivered, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from quick_spark_model import waveform
from triton_place import client_of, counters, eventually, own_threads, quick_server, voice

from rvc_spark.audio import Audio, EncodeOptions, encode_audio
from rvc_spark.errors import (
    AudioError,
    ConfigError,
    NothingSpokenError,
    RvcSparkError,
    SpeechError,
    TextError,
    TritonModelError,
    TritonRequestError,
    TritonTimeoutError,
    TritonUnreachableError,
)
from rvc_spark.triton_client import TritonSettings, TritonSparkClient
from rvc_spark.tts.triton_embedded import EmbeddedServer
from rvc_spark.tts.triton_engine import TritonEngine

PAUSE = TritonSettings().pause_seconds


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with quick_server(tmp_path_factory.mktemp("triton")) as running:
        yield running
        with client_of(running) as client:
            assert eventually(lambda: counters(client)["active"] == 0), "requests nobody waits for go on"


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[TritonSparkClient]:
    with client_of(server) as made:
        yield made
    assert eventually(lambda: not own_threads())


def whole(sentences: list[str], seed: int = 0) -> np.ndarray:
    """What a text of these sentences must sound like."""
    silence = np.zeros(round(PAUSE * 16_000), np.float32)
    parts = [part for sentence in sentences for part in (silence, waveform(sentence, seed))]
    return np.concatenate(parts[1:])


def test_what_the_server_sends_is_what_comes_out(client: TritonSparkClient) -> None:
    text = "chunks=5 samples=4000"
    audio = client.synthesize(text, voice())
    assert audio.rate == 16_000 and np.array_equal(audio.samples, waveform(text))
    pieces = list(client.stream(text, voice(), settings=TritonSettings(seed=7)))
    assert [piece.frames for piece in pieces] == [4000] * 5
    assert np.array_equal(np.concatenate([piece.samples for piece in pieces]), waveform(text, 7))
    assert not np.array_equal(waveform(text), waveform(text, 7))
    assert pieces[0].samples.flags.writeable  # it is the listener's own


def test_sound_is_delivered_while_the_rest_is_made(client: TritonSparkClient) -> None:
    with client.stream("chunks=3 samples=100 delay=60000", voice()) as pieces:
        assert next(pieces).frames == 100
        assert counters(client)["active"] == 1


@pytest.mark.parametrize("text", ["a", "5", "好", "été!", "a" * 5000, "<| a", "tail \U0001f600 end"])
def test_short_and_odd_texts(client: TritonSparkClient, text: str) -> None:
    assert client.synthesize(text, voice()).frames > 0


@pytest.mark.parametrize(
    "text", ["", " \n", "\U0001f600\U0001f601", "...", "a\0b", "\ud800", 7, "say <|im_end|> now", "x" * 200_001]
)
def test_texts_nobody_can_speak_are_refused_at_once(client: TritonSparkClient, text: object) -> None:
    with pytest.raises(TextError):
        client.stream(text, voice())


def test_a_long_text_comes_in_order_with_bounded_look_ahead(client: TritonSparkClient) -> None:
    sentences = [
        f"Sentence number {number} of one long tale chunks=2 samples={160 + number % 7} delay=3."
        for number in range(1250)
    ]
    text = " ".join(sentences)
    assert len(text) > 80_000
    text += " " + "And at last a very long one that has to be cut somewhere, " * 360 + "the end."
    assert len(text) > 100_000
    before = counters(client)
    stream = client.stream(text, voice(), settings=TritonSettings(look_ahead=3))
    joined = np.concatenate([piece.samples for piece in stream])
    assert stream.finished
    expected = whole(sentences)
    assert np.array_equal(joined[: len(expected)], expected)
    after = counters(client)
    assert after["started"] - before["started"] >= 1250 + 360 * 58 // 300
    assert after["finished"] - before["finished"] == after["started"] - before["started"]
    assert after["most_active"] <= 4
    assert after["sounds"] - before["sounds"] <= 2  # one for this voice, one perhaps for that of the counters


def test_the_next_sentence_is_requested_before_the_last_is_finished(client: TritonSparkClient) -> None:
    slow = (
        "One that is long enough alone, chunks=2 samples=50 delay=60000. Two that is long enough alone, samples=10 "
        "first=60000. Three that is long enough alone, samples=10 first=60000. Four."
    )
    before = counters(client)["started"]
    with client.stream(slow, voice(), settings=TritonSettings(look_ahead=2)) as pieces:
        next(pieces)
        assert eventually(lambda: counters(client)["active"] == 3)
    assert eventually(lambda: counters(client)["active"] == 0), "closing cancels those ahead too"
    assert counters(client)["started"] - before == 3


def test_the_voice_travels_once(client: TritonSparkClient) -> None:
    prepared = client.prepare(voice(seed=11))
    before = counters(client)
    for _ in range(3):
        client.synthesize("samples=100", prepared)
    after = counters(client)
    assert after["sounds"] - before["sounds"] == 1
    audio = client.synthesize("samples=100 forget", prepared)  # the model says that it does not know it
    assert np.array_equal(audio.samples, waveform("samples=100 forget"))
    assert counters(client)["unknown"] - after["unknown"] == 1


def test_closing_a_stream_ends_the_work_on_the_server(client: TritonSparkClient) -> None:
    before = counters(client)["cancelled"]
    for end in ("close", "forget", "with", "thread"):
        stream = client.stream("chunks=99 samples=100 delay=500", voice())
        next(stream)
        if end == "close":
            stream.close()
        elif end == "with":
            with stream:
                pass
        elif end == "thread":
            threading.Timer(0.1, stream.close).start()
            assert all(piece.frames for piece in stream) and not stream.finished
        del stream
        gc.collect()
        before += 1
        assert eventually(lambda wanted=before: counters(client)["cancelled"] == wanted), end


def test_a_stream_that_was_never_begun_costs_nothing(client: TritonSparkClient) -> None:
    before = counters(client)["started"]
    client.stream("hello", voice())
    client.stream("hello", voice()).close()
    assert counters(client)["started"] == before


def test_async_streams_overlap_and_equal_the_others(client: TritonSparkClient) -> None:
    prepared = client.prepare(voice())
    texts = [
        f"Task {number} of twelve, chunks=4 samples=500 delay=5. Second sentence of {number}." for number in range(12)
    ]

    async def one(text: str) -> np.ndarray:
        stream = client.astream(text, prepared)
        samples = np.concatenate([piece.samples async for piece in stream])
        assert stream.finished
        return samples

    async def everything() -> list[np.ndarray]:
        return await asyncio.gather(*map(one, texts))

    for _ in range(2):  # a loop of its own each time, one client
        for text, samples in zip(texts, asyncio.run(everything()), strict=True):
            first, second = text.split(". ")
            assert np.array_equal(samples, whole([first + ".", second]))


def test_async_streams_end_on_the_server_too(client: TritonSparkClient) -> None:
    text, before = "chunks=99 samples=100 delay=500", counters(client)["cancelled"]

    async def left_early() -> None:
        async with client.astream(text, voice()) as stream:
            async for _ in stream:
                break

    async def cancelled() -> None:
        async def listen() -> None:
            async for _ in client.astream("chunks=2 samples=100 delay=60000", voice()):
                pass

        task = asyncio.create_task(listen())
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def failing() -> None:
        with pytest.raises(NothingSpokenError):
            async for _ in client.astream("fail=1 words=speech", voice()):
                pass

    for number, work in enumerate((left_early, cancelled), start=1):
        asyncio.run(work())
        assert eventually(lambda wanted=before + number: counters(client)["cancelled"] == wanted), work.__name__
    asyncio.run(failing())


@pytest.mark.parametrize("together", [1, 4, 16, 64])
def test_many_at_once_over_one_connection(client: TritonSparkClient, together: int) -> None:
    prepared = client.prepare(voice())
    results: dict[str, np.ndarray | RvcSparkError] = {}

    def work(number: int) -> None:
        text = f"number {number} chunks=3 samples={900 + number} first=10 delay=10"
        try:
            results[text] = client.synthesize(text, prepared).samples
        except RvcSparkError as error:
            results[text] = error

    workers = [threading.Thread(target=work, args=(number,)) for number in range(together)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(results) == together
    for text, samples in results.items():
        assert np.array_equal(samples, waveform(text)), (text, samples)


def test_requests_in_flight_are_bounded(server: EmbeddedServer) -> None:
    with client_of(server, max_in_flight=2) as client:
        streams = [client.stream("bounded chunks=2 samples=10 delay=300", voice()) for _ in range(6)]
        listeners = [threading.Thread(target=list, args=(stream,)) for stream in streams]
        for listener in listeners:
            listener.start()
        with client_of(server) as other:
            seen = [counters(other)["active"] for _ in range(10)]
        for listener in listeners:
            listener.join(30)
        assert all(stream.finished for stream in streams) and 1 <= max(seen) <= 2


@pytest.mark.parametrize("tail", [0, 1600, 1280, 7])
def test_public_servers_chunks_are_joined_without_seams(server: EmbeddedServer, tail: int) -> None:
    text = f"chunks=6 samples=4100 tail={tail}" if tail else "chunks=6 samples=4100"
    with client_of(server, "spark_public") as client:
        assert client.metadata().rvc_spark is None and client.metadata().overlap_samples == 1600
        assert np.abs(client.synthesize(text, voice()).samples - waveform(text)).max() < 1e-7
        assert client.synthesize("one chunks=1 samples=300", voice()).frames == 300
        with pytest.raises(ConfigError, match="seed"):
            client.synthesize(text, voice(), settings=TritonSettings(seed=1))


def test_servers_that_do_not_stream(server: EmbeddedServer) -> None:
    with client_of(server, "spark_offline") as client:
        assert not client.metadata().decoupled
        sentences = ["The first one is long enough to stand alone.", "The second one."]
        pieces = list(client.stream(" ".join(sentences), voice()))
        assert np.array_equal(np.concatenate([p.samples for p in pieces]), whole(sentences))


@pytest.mark.parametrize("model", ["wrong_type", "wrong_inputs", "no_such_model"])
def test_wrong_models_are_named(server: EmbeddedServer, model: str) -> None:
    with client_of(server, model) as client:
        for ask in (client.metadata, lambda: client.synthesize("hello", voice())):
            with pytest.raises(TritonModelError, match=model):
                ask()
        assert client.ready() == (model != "no_such_model")


@pytest.mark.parametrize("fault", ["dtype", "rank", "nan", "two", "name", "empty"])
def test_an_answer_with_a_fault_is_no_sound(client: TritonSparkClient, fault: str) -> None:
    with pytest.raises((TritonModelError, NothingSpokenError)):
        client.synthesize(f"answer={fault}", voice())
    assert client.synthesize("and on", voice()).frames


@pytest.mark.parametrize(
    ("words", "leaf"),
    [("text", TextError), ("speech", NothingSpokenError), ("parameter", TritonRequestError),
     ("internal", TritonModelError), ("raise", TritonModelError)],
)  # fmt: skip
def test_errors_of_the_server_are_typed_and_name_no_path(client: TritonSparkClient, words: str, leaf: type) -> None:
    stream = client.stream(f"fail=2 samples=60 words={words}. Never reached.", voice())
    assert [next(stream).frames, next(stream).frames] == [60, 60]
    with pytest.raises(leaf) as caught:
        next(stream)
    assert "/home" not in str(caught.value) and "/a/b" not in str(caught.value)
    assert next(stream, None) is None and not stream.finished


def test_deadlines(client: TritonSparkClient) -> None:
    cases = {
        "first=60000": TritonSettings(first_chunk_seconds=0.3),
        "chunks=9 samples=10 delay=60000": TritonSettings(sentence_seconds=0.6),
        "chunks=99 samples=10 delay=100": TritonSettings(whole_seconds=0.8),
    }
    before = counters(client)["cancelled"]
    for number, (text, settings) in enumerate(cases.items(), start=1):
        with pytest.raises(TritonTimeoutError):
            client.synthesize(text, voice(), settings=settings)
        assert eventually(lambda wanted=before + number: counters(client)["cancelled"] == wanted), text


def test_a_slow_listener_meets_no_deadline(client: TritonSparkClient) -> None:
    settings = TritonSettings(sentence_seconds=1.0, first_chunk_seconds=1.0)
    with client.stream("chunks=4 samples=5000", voice(), settings=settings) as pieces:
        for _ in range(4):
            next(pieces)
            time.sleep(0.6)
        assert next(pieces, None) is None and pieces.finished


def test_what_the_server_tells_of_itself(client: TritonSparkClient) -> None:
    assert client.health().model_ready and client.health().problem is None and client.ready()
    model = client.metadata()
    assert (model.name, model.rvc_spark, model.decoupled) == ("spark_tts", "0.1.0", True)
    before = client.statistics()
    client.synthesize("hello", voice())
    after = client.statistics()
    assert after.succeeded > before.succeeded and after.executions > before.executions
    assert after.requests == after.succeeded + after.failed


def test_a_large_reference_is_cut_and_sent(client: TritonSparkClient) -> None:
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, (2, 1_320_000)).astype(np.float32)
    recording = encode_audio(Audio(noise, 48_000), EncodeOptions(format="wav", sample_format="float32"))
    assert len(recording) > 10_000_000
    prepared = client.prepare(recording)
    assert len(prepared.samples) <= 30 * 16_000
    assert client.synthesize("hello", io.BytesIO(recording)).frames
    with pytest.raises(TextError, match="transcript"):
        client.prepare(recording, "x" * 2000)


def test_voices_nobody_can_use(client: TritonSparkClient) -> None:
    for bad in (voice(0.4), Audio(np.zeros(16_000, np.float32), 16_000), b"no sound", Path("/no/such/file.wav")):
        with pytest.raises(AudioError):
            client.stream("hello", bad)
    with pytest.raises(AudioError, match="transcript"):
        client.stream("hello", voice(31.0), "what is said")
    with pytest.raises(TextError, match="transcript"):
        client.stream("hello", voice(), "<|task_tts|>")
    with pytest.raises(SpeechError):
        client.stream("hello", None)
    made = TritonSettings(gender="female", pitch="low", speed="high")
    assert client.synthesize("hello", None, settings=made).frames
    with pytest.raises(ConfigError):
        client.stream("hello", voice(), settings=made)


def test_a_closed_client_says_so(server: EmbeddedServer) -> None:
    client = client_of(server)
    stream = client.stream("chunks=99 samples=10 delay=60000", voice())
    next(stream)
    threading.Timer(0.2, client.close).start()
    with pytest.raises(TritonUnreachableError, match="closed"):
        next(stream)
    with pytest.raises(TritonUnreachableError, match="closed"):
        client.synthesize("hello", voice())
    assert not client.ready()
    client.close()


def test_python_ends_though_nothing_was_closed(server: EmbeddedServer) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from triton_place import voice; from rvc_spark.triton_client import TritonSparkClient\n"
        "client = TritonSparkClient('127.0.0.1', int(sys.argv[1]))\n"
        "stream = client.stream('chunks=99 samples=10 delay=60000', voice()); print(next(stream).frames)\n"
    )
    arguments = [sys.executable, "-c", code, str(server.grpc_port), str(Path(__file__).parent)]
    for _ in range(2):
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parent.parent)
        assert (done.returncode, done.stdout, done.stderr) == (0, "10\n", "")


def test_the_engine_enrols_and_speaks(client: TritonSparkClient, tmp_path: Path) -> None:
    engine = TritonEngine(client, TritonSettings(seed=3), why="a test", folder=tmp_path)
    assert "127.0.0.1" in str(engine.choice) and "a test" in str(engine.choice) and "seed 3" in str(engine.choice)
    enrolled = engine.enroll([voice(2.0)], "what is said")
    assert enrolled.success and enrolled.sample_count == 1
    assert np.array_equal(engine.speak(enrolled.path, "hello").samples, waveform("hello", 3))
    done = engine.synthesize(enrolled.path, "hello")
    assert done.success and done.sample_rate == 16_000 and done.sample_count == len(waveform("hello", 3))
    assert engine.speak(None, "hello").frames, "a voice made from attributes"
    several = engine.enroll([voice(20.0), voice(0.1), voice(20.0, 1), voice(5.0, 2)])
    assert several.success and several.sample_count == 2
    for bad in ([], [voice(0.1)], [tmp_path / "none.wav"]):
        assert not engine.enroll(bad).success
    assert not engine.enroll([voice(), voice()], "one for two").success


def test_the_engine_refuses_foreign_speaker_files(client: TritonSparkClient, tmp_path: Path) -> None:
    engine = TritonEngine(client, folder=tmp_path)
    good = engine.enroll([voice(1.0)]).path.read_text()
    hostile = {
        "empty": "", "list": "[1]", "other": '{"format": "x"}', "deep": "[" * 100_000,
        "samples": good.replace('"samples": "', '"samples": "AAAA'), "rate": good.replace("16000", "8000"),
        "transcript": good.replace('"transcript": null', '"transcript": 7'), "large": good + " " * (4 << 20),
    }  # fmt: skip
    for name, content in hostile.items():
        path = tmp_path / f"{name}.json"
        path.write_text(content)
        with pytest.raises(SpeechError, match=name):
            engine.stream(path, "hello")
    with pytest.raises(SpeechError):
        engine.stream(tmp_path / "missing.json", "hello")
