"""Spark-TTS on a real embedded Triton server: the tiny checkpoint, public clients, and everything that can go wrong."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from public_spark_clients import PATIENCE, crossfaded, inputs, posted, streamed, whole
from spark_maker import make_spark_folder
from tritonclient.utils import InferenceServerException

from rvc_spark.audio import Audio
from rvc_spark.errors import TritonBootError
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.triton_client import TritonSettings, TritonSparkClient
from rvc_spark.tts.chunk_schedule import ChunkSettings
from rvc_spark.tts.spark import SparkEngine
from rvc_spark.tts.spark_settings import SparkSettings
from rvc_spark.tts.spark_tokens import ControlVoice
from rvc_spark.tts.triton_embedded import EmbeddedServer, launch
from rvc_spark.tts.triton_repository import RepositorySettings, write_repository
from rvc_spark.tts.triton_runtime import ensure_runtime

TEXT = (
    "Good morning to all of you. The north wind and the sun were disputing which was the stronger, when a traveller "
    "came along wrapped in a warm cloak. They agreed that the one who first made the traveller take his cloak off "
    "should be considered stronger than the other. Then the north wind blew as hard as he could. But the more he blew "
    "the more closely did the traveller fold his cloak around him, and at last the north wind gave up."
)
TRANSCRIPT = "hello there"
# Short chunks, so that the few tokens of a tiny model make several of them.
CHUNKS = ChunkSettings(first_seconds=0.3, scale=2.0, max_seconds=1.0, overlap_seconds=0.1)
SEED = {"seed": 4}
SEEDED = TritonSettings(seed=4)


def reference(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(int(seconds * 16_000)) * 0.1).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_spark_folder(tmp_path_factory.mktemp("checkpoint") / "Spark-TTS-0.5B")


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    try:
        runtime = ensure_runtime(RVCConfig().triton_dir)
    except TritonBootError as error:
        pytest.skip(f"no embedded Triton on this machine: {error}")
    folder = tmp_path_factory.mktemp("triton") / "model_repo"
    repository = write_repository(folder, RepositorySettings(checkpoint, chunks=CHUNKS))
    began = time.monotonic()
    with launch(repository, runtime, timeout=120.0) as running:
        print(f"boot to ready: {time.monotonic() - began:.1f} s")
        yield running


@pytest.fixture(scope="module")
def http(server: EmbeddedServer) -> str:
    return f"127.0.0.1:{server.http_port}"


def refused(action: Callable[[], object], code: str) -> str:
    """The message of the refusal; it starts with its code word and tells no path."""
    with pytest.raises(InferenceServerException) as caught:
        action()
    message = caught.value.message()
    assert message.startswith(f"{code}: "), message
    assert "/" not in message and "Traceback" not in message and ".py" not in message
    return message


def test_signatures_are_the_public_ones(http: str) -> None:
    def signature(model: str) -> tuple[dict, dict, dict]:
        with urllib.request.urlopen(f"http://{http}/v2/models/{model}", timeout=PATIENCE) as answer:
            told = json.load(answer)
        with urllib.request.urlopen(f"http://{http}/v2/models/{model}/config", timeout=PATIENCE) as answer:
            config = json.load(answer)
        named = [{row["name"]: (row["datatype"], row["shape"]) for row in told[side]} for side in ("inputs", "outputs")]
        return (*named, config)

    for model in ("spark_tts", "spark_tts_offline", "spark_tts_streaming"):
        ins, outs, config = signature(model)
        assert ins == {
            "reference_wav": ("FP32", [-1, -1]), "reference_wav_len": ("INT32", [-1, 1]),
            "reference_text": ("BYTES", [-1, 1]), "target_text": ("BYTES", [-1, 1]),
        }  # fmt: skip
        assert outs == {"waveform": ("FP32", [-1, -1])}
        assert config["max_batch_size"] == 16 and config["dynamic_batching"]["max_queue_delay_microseconds"] == 0
        assert config["model_transaction_policy"]["decoupled"] == (not model.endswith("offline"))
        assert {
            "llm_tokenizer_dir", "audio_chunk_duration", "audio_chunk_size_scale_factor", "max_audio_chunk_duration",
            "audio_chunk_overlap_duration", "audio_tokenizer_frame_rate", "rvc_spark",
        } <= set(config["parameters"])  # fmt: skip
    ins, outs, config = signature("audio_tokenizer")
    assert ins == {"reference_wav": ("FP32", [-1, -1]), "reference_wav_len": ("INT32", [-1, 1])}
    assert outs == {"global_tokens": ("INT32", [-1, -1]), "semantic_tokens": ("INT32", [-1, -1])}
    assert "model_dir" in config["parameters"]
    ins, outs, config = signature("vocoder")
    assert ins == {"global_tokens": ("INT32", [-1, -1]), "semantic_tokens": ("INT32", [-1, -1])}
    assert outs == {"waveform": ("FP32", [-1, -1])}
    ins, outs, config = signature("tensorrt_llm")
    for name, kind in (
        ("input_ids", "INT32"), ("input_lengths", "INT32"), ("request_output_len", "INT32"), ("end_id", "INT32"),
        ("pad_id", "INT32"), ("streaming", "BOOL"), ("runtime_top_k", "INT32"), ("runtime_top_p", "FP32"),
        ("temperature", "FP32"), ("random_seed", "UINT64"), ("stop", "BOOL"), ("repetition_penalty", "FP32"),
    ):  # fmt: skip
        assert ins[name][0] == kind, name
    assert len(ins) > 50
    assert outs["output_ids"] == ("INT32", [-1, -1, -1]) and outs["sequence_length"] == ("INT32", [-1, -1])


@pytest.mark.parametrize("transcript", [TRANSCRIPT, ""])
def test_streamed_whole_http_and_in_process_are_the_same_sound(
    server: EmbeddedServer, http: str, checkpoint: Path, transcript: str
) -> None:
    wave = reference()
    tensors = inputs(wave, transcript, TEXT)
    expected = whole(server.address, tensors, parameters=SEED)
    assert len(expected) % 320 == 0 and len(expected) > 16_000 and np.isfinite(expected).all()

    chunks = list(streamed(server.address, inputs(wave, transcript, TEXT, unit=10), parameters=SEED))
    assert len(chunks) > 3
    assert all(len(chunk) >= 3_200 for chunk in chunks[1:])
    for before, chunk in zip(chunks, chunks[1:], strict=False):
        assert np.array_equal(before[-1_600:], chunk[:1_600]), "a fade between two different sounds is heard"
    joined = crossfaded(chunks)
    assert len(joined) == len(expected) and np.abs(joined - expected).max() < 1e-4

    plain = list(streamed(server.address, tensors, "spark_tts_streaming", parameters={**SEED, "overlap_seconds": "0"}))
    assert np.abs(np.concatenate(plain) - expected).max() < 1e-4

    own = in_process(checkpoint, wave, transcript)
    assert len(own) == len(expected) and np.abs(own - expected).max() < 1e-4


def in_process(checkpoint: Path, wave: np.ndarray, transcript: str | None) -> np.ndarray:
    from rvc_spark.tts.spark import SparkEngine
    from rvc_spark.tts.spark_settings import SparkSettings

    config = RVCConfig(spark=checkpoint, device="cpu", precision="fp32")
    settings = SparkSettings(seed=SEED["seed"], chunks=replace(CHUNKS, overlap_seconds=0.0))
    with SparkEngine(settings, config=config) as engine:
        engine.voice = engine.voice_of([Audio(wave, 16_000)], transcript=transcript)
        return np.concatenate([piece.samples for piece in engine.stream(None, TEXT)])


def test_without_a_transcript_is_not_the_same_as_with_an_empty_one(server: EmbeddedServer, checkpoint: Path) -> None:
    wave = reference()
    none = whole(server.address, inputs(wave, "", TEXT), parameters={**SEED, "no_transcript": True})
    empty = whole(server.address, inputs(wave, "", TEXT), parameters=SEED)
    assert len(none) != len(empty) or np.abs(none - empty).max() > 1e-3
    own = in_process(checkpoint, wave, None)
    assert len(own) == len(none) and np.abs(own - none).max() < 1e-4


def test_the_public_http_client_plays_the_result(server: EmbeddedServer, http: str) -> None:
    sound = posted(http, reference(), TRANSCRIPT, "Good morning.", "spark_tts_offline")
    assert len(sound) > 0 and len(sound) % 320 == 0 and 0 < np.abs(sound).max() <= 1
    with pytest.raises(urllib.error.HTTPError) as caught:
        posted(http, reference(), TRANSCRIPT, "Good morning.", "spark_tts")
    assert caught.value.code == 501  # a model that streams; that is what spark_tts_offline is for


def test_padding_changes_nothing(server: EmbeddedServer) -> None:
    wave = reference(1.3)
    plain = whole(server.address, inputs(wave, TRANSCRIPT, "Good day.", unit=None), parameters=SEED)
    for unit in (1, 10):
        other = whole(server.address, inputs(wave, TRANSCRIPT, "Good day.", unit=unit), parameters=SEED)
        assert np.array_equal(plain, other)


def test_both_kinds_and_sixteen_streams_at_once(server: EmbeddedServer) -> None:
    def one(number: int) -> tuple[int, np.ndarray]:
        tensors = inputs(reference(seed=number % 4), TRANSCRIPT, TEXT)
        parameters = {"seed": number // 4}
        if number % 4 == 3:
            return number, whole(server.address, tensors, parameters=parameters)
        return number, crossfaded(list(streamed(server.address, tensors, parameters=parameters)))

    with ThreadPoolExecutor(16) as pool:
        together = dict(pool.map(one, range(16)))
    for number in (0, 5, 10, 15):
        alone = one(number)[1]
        assert len(alone) == len(together[number]) and np.abs(alone - together[number]).max() < 1e-4


def test_unary_requests_overlap(server: EmbeddedServer) -> None:
    """A short text that comes after three long ones is answered before them, by one process."""
    text = " ".join([TEXT] * 4)
    order: list[str] = []

    def one(name: str, words: str) -> None:
        whole(server.address, inputs(reference(), TRANSCRIPT, words, unit=None), parameters=SEED)
        order.append(name)

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(one, "long", text) for _ in range(3)]
        time.sleep(0.3)
        jobs.append(pool.submit(one, "short", "Good day."))
        for job in jobs:
            job.result()
    assert order[0] == "short"


def tokens_asked_for(server: EmbeddedServer) -> int:
    """Requests the language model has answered to their end, by the server's own count."""
    with grpc.InferenceServerClient(server.address) as client:
        told = client.get_inference_statistics("tensorrt_llm", client_timeout=30)
    return told.model_stats[0].inference_count


def test_a_cancelled_stream_frees_its_slot(server: EmbeddedServer) -> None:
    """More abandoned streams than there are slots: were one kept, those after it would wait for a very long text."""
    text = " ".join([TEXT] * 60)
    for number in range(8):
        tensors = inputs(reference(), TRANSCRIPT, text, unit=None)
        stream = streamed(server.address, tensors, parameters={"seed": number})
        assert len(next(stream)) > 0
        stream.close()
    began = time.monotonic()
    assert len(whole(server.address, inputs(reference(), TRANSCRIPT, "Good day."), parameters=SEED)) > 0
    assert time.monotonic() - began < 20.0  # eight texts of minutes each were in the way
    deadline = time.monotonic() + 20.0
    counts = [tokens_asked_for(server)]
    while time.monotonic() < deadline and (len(counts) < 3 or len(set(counts[-3:])) > 1):
        time.sleep(0.5)
        counts.append(tokens_asked_for(server))
    assert len(set(counts[-3:])) == 1, "abandoned streams go on asking for tokens"


def test_long_text_is_spoken_to_its_end(server: EmbeddedServer) -> None:
    """2,000 words, a quarter of an hour; the public server stops after ten seconds and says nothing."""
    words = 2_000
    text = " ".join(f"word{number}{'.' if number % 14 == 13 else ''}" for number in range(words))
    parameters = {**SEED, "overlap_seconds": "0"}
    tensors = inputs(reference(), TRANSCRIPT, text, unit=None)
    sound = np.concatenate(list(streamed(server.address, tensors, parameters=parameters)))
    pieces = len(text) / 200  # the longest piece; each of them gives at least one token and is followed by a pause
    assert len(sound) > pieces * (3_200 + 320)


def test_short_and_silent_texts(server: EmbeddedServer) -> None:
    assert len(whole(server.address, inputs(reference(), TRANSCRIPT, "A"), parameters=SEED)) > 0
    for text in ("", "   ", "\U0001f600\U0001f680", "...!?", "hi <|task_tts|> there", "bad \x00 byte"):
        refused(lambda text=text: whole(server.address, inputs(reference(), TRANSCRIPT, text)), "INVALID_TEXT")
        refused(lambda text=text: list(streamed(server.address, inputs(reference(), TRANSCRIPT, text))), "INVALID_TEXT")
    refused(lambda: whole(server.address, inputs(reference(), "a <|gender_0|> b", "Good day.")), "INVALID_TEXT")
    endless = inputs(reference(), TRANSCRIPT, "word " * 100_000, unit=None)  # padded, it would be gigabytes
    refused(lambda: whole(server.address, endless), "INVALID_TEXT")


def test_references_at_their_limits(server: EmbeddedServer) -> None:
    ten_megabytes = reference(10 * 2**20 / 4 / 16_000)
    plain = {**SEED, "no_transcript": True}
    assert len(whole(server.address, inputs(ten_megabytes, "", "Good day.", unit=None), parameters=plain)) > 0
    transcribed = inputs(ten_megabytes, TRANSCRIPT, "Good day.", unit=None)
    long = refused(lambda: whole(server.address, transcribed), "INVALID_REFERENCE")
    assert "163" in long and "30" in long  # seconds, and the limit
    for wave in (reference(0.01), np.full(16_000, np.nan, np.float32), np.full(16_000, 1e9, np.float32)):
        refused(lambda wave=wave: whole(server.address, inputs(wave, TRANSCRIPT, "Good day.")), "INVALID_REFERENCE")
    assert len(whole(server.address, inputs(np.zeros(16_000, np.float32), TRANSCRIPT, "Good day."))) > 0


def test_lengths_that_do_not_fit_are_refused(server: EmbeddedServer) -> None:
    for length in (0, -3, 40_000):
        tensors = inputs(reference(), TRANSCRIPT, "Good day.", unit=None)
        tensors[1].set_data_from_numpy(np.asarray([[length]], np.int32))
        refused(lambda tensors=tensors: whole(server.address, tensors), "INVALID_REFERENCE")


def test_wrong_types_and_shapes_are_refused(server: EmbeddedServer) -> None:
    def given(name: str, shape: list[int], kind: str, array: np.ndarray) -> list[grpc.InferInput]:
        tensors = [tensor for tensor in inputs(reference(), TRANSCRIPT, "Good day.") if tensor.name() != name]
        odd = grpc.InferInput(name, shape, kind)
        odd.set_data_from_numpy(array)
        return [*tensors, odd]

    wave = reference()
    for tensors in (
        given("reference_wav", [1, len(wave)], "FP64", wave[None].astype(np.float64)),
        given("reference_wav", [len(wave)], "FP32", wave),
        given("reference_wav_len", [1, 1], "INT64", np.asarray([[5]], np.int64)),
        given("target_text", [1, 2], "BYTES", np.asarray([["a", "b"]], object)),
        inputs(wave, TRANSCRIPT, "Good day.")[:3],
    ):
        with pytest.raises(InferenceServerException):
            whole(server.address, tensors)
        with pytest.raises(InferenceServerException):
            list(streamed(server.address, tensors))
    bad = inputs(wave, TRANSCRIPT, "Good day.")
    bad[3].set_data_from_numpy(np.asarray([[b"\xff\xfe"]], object))
    refused(lambda: whole(server.address, bad), "INVALID_TEXT")
    assert len(whole(server.address, inputs(wave, TRANSCRIPT, "Good day."), parameters=SEED)) > 0


def test_parameters_are_checked(server: EmbeddedServer) -> None:
    for parameters in (
        {"temprature": "0.8"}, {"temperature": "warm"}, {"temperature": "nan"}, {"temperature": "-1"}, {"top_p": "2"},
        {"seed": "x"}, {"voice": "abc"}, {"context": "many"}, {"chunk_seconds": "0"}, {"overlap_seconds": "9"},
        {"gender": "robot"}, {"max_tokens": 10**9}, {"no_transcript": "perhaps"},
    ):  # fmt: skip
        message = refused(
            lambda given=parameters: whole(server.address, inputs(reference(), "", "Good day."), parameters=given),
            "INVALID_PARAMETER",
        )
        assert next(iter(parameters)).split("_")[0] in message or "first_seconds" in message, message


def test_a_seed_repeats_and_its_absence_does_not(server: EmbeddedServer) -> None:
    tensors = inputs(reference(), TRANSCRIPT, TEXT)
    one, two = (whole(server.address, tensors, parameters=SEED) for _ in range(2))
    assert np.array_equal(one, two)
    drawn = [whole(server.address, tensors) for _ in range(3)]
    assert len({sound.tobytes() for sound in drawn}) == 3


def test_a_voice_is_sent_once(server: EmbeddedServer) -> None:
    wave = reference(seed=77)
    name = hashlib.sha256(wave.astype("<f4").tobytes()).hexdigest()
    short = inputs(np.zeros(1, np.float32), TRANSCRIPT, "Good day.", unit=None)
    refused(lambda: whole(server.address, short, parameters={**SEED, "voice": name}), "UNKNOWN_VOICE")
    refused(lambda: list(streamed(server.address, short, parameters={**SEED, "voice": name})), "UNKNOWN_VOICE")
    full = whole(server.address, inputs(wave, TRANSCRIPT, "Good day."), parameters={**SEED, "voice": name})
    assert np.array_equal(whole(server.address, short, parameters={**SEED, "voice": name}), full)
    known = list(streamed(server.address, short, parameters={**SEED, "voice": name}))
    assert np.abs(crossfaded(known) - full).max() < 1e-4
    other = {**SEED, "voice": name, "normalise_volume": False}  # tokens of another treatment are other tokens
    refused(lambda: whole(server.address, short, parameters=other), "UNKNOWN_VOICE")


def test_a_voice_made_to_order(server: EmbeddedServer) -> None:
    silent = inputs(np.zeros(1, np.float32), "", "Good day to you.", unit=None)
    parameters = {**SEED, "gender": "female", "pitch": "high", "speed": "low"}
    sound = whole(server.address, silent, parameters=parameters)
    assert len(sound) > 0
    assert np.array_equal(sound, whole(server.address, silent, parameters=parameters))


@pytest.mark.parametrize("made", [False, True], ids=["recording", "made to order"])
def test_our_client_and_the_engine_in_process_are_the_same_sound(
    server: EmbeddedServer, checkpoint: Path, tmp_path: Path, made: bool
) -> None:
    """Same text, seed and voice: however the text is cut into requests and the sound into chunks."""
    sound = Audio(reference(), 16_000)
    order = {"gender": "male", "pitch": "low", "speed": "moderate"}
    settings = TritonSettings(seed=4, chunk_seconds=0.5, chunk_scale=1.5, **(order if made else {}))
    with TritonSparkClient("127.0.0.1", server.grpc_port) as client:
        served = [piece.samples for piece in client.stream(TEXT, None if made else sound, settings=settings)]
    with SparkEngine(SparkSettings(seed=4), config=RVCConfig(spark=checkpoint), folder=tmp_path) as engine:
        engine.voice = ControlVoice(**order) if made else engine.voice_of([sound])
        local = engine.speak(None, TEXT)
    assert len(served) > 5
    np.testing.assert_allclose(np.concatenate(served), local.samples, atol=1e-4)


def test_our_client_ends_streams_by_word_and_the_slot_is_free(server: EmbeddedServer) -> None:
    prepared = Audio(reference(), 16_000)
    with TritonSparkClient("127.0.0.1", server.grpc_port) as client:
        assert client.metadata().ends_by_word
        for number in range(20):
            with client.stream(TEXT * 5, prepared, settings=TritonSettings(seed=number)) as pieces:
                next(pieces)
        began = time.monotonic()
        assert client.synthesize("Good morning to all of you.", prepared, settings=SEEDED).frames > 0
        assert time.monotonic() - began < 30  # 20 texts of 25 s each, at four at once, would take minutes
    assert server.alive


def test_a_dead_model_process_comes_back(server: EmbeddedServer) -> None:
    """Triton never restarts it and goes on calling it ready; unload and load do."""
    tensors = inputs(reference(), TRANSCRIPT, "Good day.")
    expected = whole(server.address, tensors, parameters=SEED)
    for model in ("tensorrt_llm", "spark_tts_offline"):
        os.kill(stub_of(server, model), signal.SIGKILL)
        with pytest.raises(InferenceServerException):
            whole(server.address, tensors, parameters=SEED)
        with grpc.InferenceServerClient(server.address) as client:
            client.unload_model(model)
            deadline = time.monotonic() + 30
            while client.is_model_ready(model) and time.monotonic() < deadline:
                time.sleep(0.05)
            client.load_model(model)
            while not client.is_model_ready(model) and time.monotonic() < deadline:
                time.sleep(0.05)
        assert np.array_equal(whole(server.address, tensors, parameters=SEED), expected)


def stub_of(server: EmbeddedServer, model: str) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == server.pid and any(f"/{model}/1/model.py".encode() in word for word in command):
                return int(entry.name)
    raise AssertionError(f"no process of {model}")
