"""The services behind the Triton models, without a server: a stand-in for the module Triton gives its Python models."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rvc_spark.errors import AudioError, ConfigError, ModelFileError, NothingSpokenError, TextError
from rvc_spark.tts.chunk_schedule import ChunkSettings, Window
from rvc_spark.tts.spark_settings import SparkSettings
from rvc_spark.tts.spark_speech import TokenCall
from rvc_spark.tts.triton_service_bls import Call, ServerCodec, ServerLanguageModel, ServerModels
from rvc_spark.tts.triton_service_cancel import Cancellation, Cancelled, CancelWatch, Retired
from rvc_spark.tts.triton_service_codec import Recording, TokenizerService, VocoderService, VoiceTokens, token_rows
from rvc_spark.tts.triton_service_desk import Desk
from rvc_spark.tts.triton_service_frames import overlapped
from rvc_spark.tts.triton_service_lm import (
    allowed_ids,
    answers,
    check_supported,
    output_arrays,
    read_generation,
    told_allowed,
)
from rvc_spark.tts.triton_service_settings import CodecSizes, FrontSettings
from rvc_spark.tts.triton_service_wire import (
    Refusal,
    forwarded_refusal,
    internal_refusal,
    read_parameters,
    read_speech_request,
    refusal_of,
    voice_of,
)

FINAL = 1
WAVE = np.linspace(-0.5, 0.5, 16_000, dtype=np.float32)


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class Response:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: object = None) -> None:
        self._tensors, self._error = output_tensors or [], error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> object:
        return self._error


class TritonError:
    INTERNAL, INVALID_ARG = "internal", "invalid"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        self.code, self._message = code, message

    def message(self) -> str:
        return self._message


class Backend:
    """`models`: name -> function(request) -> iterator of Response."""

    Tensor, InferenceResponse, TritonError = Tensor, Response, TritonError
    TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL

    def __init__(self, **models: object) -> None:
        self.models = models
        self.asked: list[SimpleNamespace] = []

    def InferenceRequest(self, **given: object) -> SimpleNamespace:  # noqa: N802
        request = SimpleNamespace(**given)
        request.arrays = {tensor.name(): tensor.as_numpy() for tensor in given["inputs"]}

        def execute(decoupled: bool = False) -> object:
            self.asked.append(request)
            found = self.models[request.model_name](request)
            return found if decoupled else next(iter(found))

        request.exec = execute
        return request

    @staticmethod
    def get_input_tensor_by_name(request: SimpleNamespace, name: str) -> Tensor | None:
        return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


class Sender:
    def __init__(self) -> None:
        self.sent: queue.Queue[tuple[Response | None, int]] = queue.Queue()
        self.cancelled = False

    def send(self, response: Response | None = None, flags: int = 0) -> None:
        self.sent.put((response, flags))

    def is_cancelled(self) -> bool:
        return self.cancelled


def request_with(sender: Sender, arrays: dict[str, np.ndarray], wanted: tuple[str, ...] = ("y",)) -> SimpleNamespace:
    return SimpleNamespace(
        inputs=lambda: [Tensor(name, array) for name, array in arrays.items()], parameters=lambda: "",
        get_response_sender=lambda: sender, requested_output_names=lambda: list(wanted), request_id=lambda: "",
    )  # fmt: skip


def speech_inputs(text: object = "Good day.", transcript: object = "hi", wave: np.ndarray = WAVE) -> dict:
    return {
        "reference_wav": wave[None], "reference_wav_len": np.asarray([[len(wave)]], np.int32),
        "reference_text": np.asarray([[transcript]], object), "target_text": np.asarray([[text]], object),
    }  # fmt: skip


# --- what imports what


def test_the_front_model_imports_no_torch() -> None:
    code = (
        "import sys; import rvc_spark.tts.triton_service, rvc_spark.tts.triton_service_bls, "
        "rvc_spark.tts.triton_service_desk, rvc_spark.tts.triton_repository; "
        "print([name for name in ('torch', 'transformers', 'scipy', 'soundfile') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_services_do_not_know_the_server_module() -> None:
    import rvc_spark.tts as package

    for path in Path(package.__file__).parent.glob("triton_service*.py"):
        assert "import triton_python_backend_utils" not in path.read_text()


# --- the wire


def test_a_request_without_parameters_has_the_servers_settings() -> None:
    chunks = ChunkSettings(first_seconds=0.5, overlap_seconds=0.1)
    request = read_speech_request(speech_inputs(b"Gr\xc3\xbc\xc3\x9fe", b""), {}, chunks)
    assert request.text == "Grüße" and request.transcript == "" and request.overlap_seconds == 0.1
    assert request.chunks.first_seconds == 0.5 and request.chunks.overlap_seconds == 0.0
    assert np.array_equal(request.reference, WAVE) and request.seed is None and request.normalise_volume is None


def test_parameters_may_be_numbers_or_text() -> None:
    told = read_parameters(json.dumps({
        "seed": 7, "temperature": "0.5", "top_k": "20", "top_p": 0.9, "max_tokens": 100, "no_transcript": True,
        "normalise_volume": "false", "chunk_seconds": "0.25", "chunk_scale": "2", "max_chunk_seconds": "5",
        "context": "12", "overlap_seconds": "0", "triton_anything": 1,
    }))  # fmt: skip
    request = read_speech_request(speech_inputs(), told, ChunkSettings(overlap_seconds=0.1))
    assert (request.seed, request.temperature, request.top_k, request.top_p) == (7, 0.5, 20, 0.9)
    assert request.max_tokens == 100
    assert request.transcript is None and request.normalise_volume is False and request.overlap_seconds == 0.0
    assert request.chunks == ChunkSettings(0.25, 2.0, 5.0, 12)
    assert read_parameters("") == {}


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"sed": 1}, "INVALID_PARAMETER"), ({"seed": 1.5}, "INVALID_PARAMETER"), ({"seed": True}, "INVALID_PARAMETER"),
        ({"temperature": "inf"}, "INVALID_PARAMETER"), ({"no_transcript": "maybe"}, "INVALID_PARAMETER"),
        ({"voice": 5}, "INVALID_PARAMETER"), ({"voice": "AB"}, "INVALID_PARAMETER"),
        ({"context": "-1"}, "INVALID_PARAMETER"), ({"chunk_seconds": "1e9"}, "INVALID_PARAMETER"),
        ({"gender": "female", "pitch": "shrill"}, "INVALID_PARAMETER"), ({"seed": "9" * 5000}, "INVALID_PARAMETER"),
    ],
)  # fmt: skip
def test_bad_parameters(parameters: dict, code: str) -> None:
    with pytest.raises(Refusal) as caught:
        read_speech_request(speech_inputs(), parameters, ChunkSettings())
    assert caught.value.code == code and len(str(caught.value)) < 500


def test_bad_references() -> None:
    short, loud, odd = WAVE[:399], WAVE * np.float32(1e9), WAVE.copy()
    odd[5] = np.nan
    for wave in (short, loud, odd):
        with pytest.raises(Refusal, match="INVALID_REFERENCE"):
            read_speech_request(speech_inputs(wave=wave), {}, ChunkSettings())
    with pytest.raises(Refusal, match="INVALID_REFERENCE"):
        read_speech_request({**speech_inputs(), "reference_wav": np.stack([WAVE, WAVE])}, {}, ChunkSettings())
    with pytest.raises(Refusal, match="INVALID_TEXT.*byte 0"):
        read_speech_request(speech_inputs(b"\xff"), {}, ChunkSettings())


def test_a_known_voice_and_one_made_to_order_need_no_recording() -> None:
    one = np.zeros(1, np.float32)
    request = read_speech_request(speech_inputs(wave=one), {"voice": "ab" * 32}, ChunkSettings())
    assert len(request.reference) == 0 and request.voice == "ab" * 32 and request.transcript == "hi"
    request = read_speech_request(speech_inputs(wave=one), {"gender": "male"}, ChunkSettings())
    assert request.control is not None and request.control.gender == "male" and request.transcript is None
    with pytest.raises(Refusal, match="INVALID_REFERENCE"):
        read_speech_request(speech_inputs(wave=one), {}, ChunkSettings())


def test_errors_become_words_without_paths() -> None:
    for error, code in (
        (TextError("a", "b"), "INVALID_TEXT"), (AudioError("a", "b"), "INVALID_REFERENCE"),
        (NothingSpokenError("a", "b"), "NO_SPEECH"), (ConfigError("a", "b"), "INVALID_PARAMETER"),
    ):  # fmt: skip
        assert str(refusal_of(error)) == f"{code}: a. b"
    secret = refusal_of(ModelFileError("/home/someone/model.safetensors is damaged", "Get it again."))
    assert secret.code == "INTERNAL" and "/" not in str(secret)
    assert "/" not in str(internal_refusal(OSError("/etc/passwd")))
    assert str(forwarded_refusal("UNKNOWN_VOICE: send it.")) == "UNKNOWN_VOICE: send it."
    assert forwarded_refusal("in ensemble 'x', /opt/y failed").code == "INTERNAL"


# --- chunks


@pytest.mark.parametrize("overlap", [0, 1, 7, 1_600])
def test_public_cross_fades_change_nothing(overlap: int) -> None:
    rng = np.random.default_rng(overlap)
    for count in (0, 1, 2, 5, 40):
        pieces = [rng.standard_normal(int(rng.integers(0, 3 * overlap + 9))).astype(np.float32) for _ in range(count)]
        whole = np.concatenate([*pieces, np.zeros(0, np.float32)])
        chunks = list(overlapped(iter(pieces), overlap))
        assert all(len(chunk) for chunk in chunks)
        if overlap:
            assert all(len(chunk) >= 2 * overlap for chunk in chunks[1:])
            for before, chunk in zip(chunks, chunks[1:], strict=False):
                assert np.array_equal(before[-overlap:], chunk[:overlap])
        joined = [chunk[overlap if number else 0 :] for number, chunk in enumerate(chunks)]
        assert np.array_equal(np.concatenate([*joined, np.zeros(0, np.float32)]), whole)


# --- cancelling


def test_the_watch_notices_and_calls_once() -> None:
    sender, called = Sender(), threading.Event()
    count = []
    watch = CancelWatch(seconds=0.01)
    with watch.watching(sender.is_cancelled) as cancellation, cancellation.calling(
        lambda: (count.append(1), called.set())
    ):
        cancellation.check()
        sender.cancelled = True
        assert called.wait(10)
        with pytest.raises(Cancelled):
            while True:
                cancellation.check()
        late = []
        with cancellation.calling(lambda: late.append(1)):
            assert late == [1]
    watch.close()
    assert count == [1]


def test_nobody_is_asked_after_the_end() -> None:
    asked = []
    watch = CancelWatch(seconds=0.001)
    with watch.watching(lambda: bool(asked.append(1))) as cancellation:
        while len(asked) < 3:
            pass
    before = len(asked)
    assert cancellation.poll() is False and len(asked) == before
    watch.close()


def test_retired_iterators_are_let_go_only_by_an_answered_question() -> None:
    retired = Retired()
    retired.keep(object())
    watch = CancelWatch(retired, seconds=0.001)
    over = Cancellation(lambda: False)
    over.end()
    watch._ask(over)
    assert len(retired) == 1
    watch._ask(Cancellation(lambda: False))
    assert len(retired) == 0


# --- the desk


def test_answers_overlap_and_errors_end_a_request() -> None:
    desk = Desk(Backend())
    gate = threading.Event()
    senders = [Sender() for _ in range(4)]

    def slow(reply: object, cancellation: Cancellation) -> dict:
        assert gate.wait(10)
        return {"y": np.ones((1, 1), np.float32), "z": np.zeros((1, 1), np.float32)}

    def bad(reply: object, cancellation: Cancellation) -> dict:
        raise Refusal("INVALID_TEXT", "no.")

    def streaming(reply: object, cancellation: Cancellation) -> None:
        reply.send({"y": np.full((1, 1), 3, np.float32)})

    desk.begin(request_with(senders[0], {}), slow)
    desk.begin(request_with(senders[1], {}), bad)
    response, flags = senders[1].sent.get(timeout=10)
    assert flags == FINAL and response.error().message() == "INVALID_TEXT: no." and response.error().code == "invalid"
    desk.begin(request_with(senders[2], {}), streaming)
    assert senders[2].sent.get(timeout=10)[1] == 0 and senders[2].sent.get(timeout=10) == (None, FINAL)
    gate.set()
    response, flags = senders[0].sent.get(timeout=10)
    assert flags == FINAL and [tensor.name() for tensor in response.output_tensors()] == ["y"]
    desk.close()


def test_what_nobody_expected_is_answered_and_told_to_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda told: seen.append(told.exc_type))
    sender = Sender()

    def broken(reply: object, cancellation: Cancellation) -> dict:
        raise ZeroDivisionError("/secret/path")

    desk = Desk(Backend())
    desk.begin(request_with(sender, {}), broken)
    response, flags = sender.sent.get(timeout=10)
    message = response.error().message()
    assert flags == FINAL and message.startswith("INTERNAL: ") and "/" not in message
    desk.close()


# --- calls to the other models


FRONT = FrontSettings(Path("x"), ChunkSettings(), CodecSizes(4, 100, 4096), 512, True)
CALL = TokenCall((1, 2, 3), 42, 5, frozenset({9, 7}), (range(10, 20), 9))


def tokens_from(*rows: list[int]) -> Iterator[Response]:
    for row in rows:
        yield Response([Tensor(name, array) for name, array in output_arrays(row).items()])
    yield Response()


def language_model(backend: Backend, sender: Sender | None = None) -> tuple[ServerLanguageModel, Cancellation]:
    cancellation = Cancellation((sender or Sender()).is_cancelled)
    return ServerLanguageModel(ServerModels(backend), FRONT, cancellation), cancellation


def test_what_is_asked_of_the_language_model() -> None:
    backend = Backend(tensorrt_llm=lambda request: tokens_from([10], [11, 12]))
    model, _ = language_model(backend)
    tokens = model.generate(CALL, SparkSettings(temperature=0.5, top_k=3, top_p=0.25))
    assert len(backend.asked) == 1, "the work begins before anybody waits for it"
    assert list(tokens) == [10, 11, 12] and tokens.finish == "stop"
    (request,) = backend.asked
    arrays = request.arrays
    assert arrays["input_ids"].tolist() == [[1, 2, 3]] and arrays["input_ids"].dtype == np.int32
    assert arrays["input_lengths"].tolist() == [[3]] and arrays["request_output_len"].tolist() == [[5]]
    assert arrays["random_seed"].tolist() == [[42]] and arrays["random_seed"].dtype == np.uint64
    assert arrays["end_id"].tolist() == [[7]] and arrays["stop_words_list"].tolist() == [[[9], [1]]]
    assert arrays["streaming"].tolist() == [[True]] and arrays["temperature"].tolist() == [[0.5]]
    assert request.parameters == {"allowed": "10-19,9"} and request.request_id


def test_how_generations_end() -> None:
    for rows, ids, finish in (
        (([10, 11, 12, 13, 14],), [10, 11, 12, 13, 14], "length"), (([10], [9]), [10], "stop"), (([],), [], "stop"),
    ):  # fmt: skip
        model, _ = language_model(Backend(tensorrt_llm=lambda request, rows=rows: tokens_from(*rows)))
        tokens = model.generate(CALL, SparkSettings())
        assert list(tokens) == ids and tokens.finish == finish


def test_an_error_of_the_language_model_is_forwarded() -> None:
    model, _ = language_model(Backend(tensorrt_llm=lambda request: iter([Response(error=TritonError("Stub died"))])))
    with pytest.raises(Refusal, match="INTERNAL"):
        next(model.generate(CALL, SparkSettings()))


def endless(stopped: threading.Event) -> object:
    def run(request: SimpleNamespace) -> Iterator[Response]:
        if "stop" in request.arrays:
            stopped.set()
            return iter([Response()])

        def ids() -> Iterator[Response]:
            while not stopped.wait(0.005):
                yield Response([Tensor(name, array) for name, array in output_arrays([10]).items()])

        return ids()

    return run


def test_closing_ends_the_generation_by_its_id() -> None:
    stopped = threading.Event()
    backend = Backend(tensorrt_llm=endless(stopped))
    tokens = language_model(backend)[0].generate(CALL, SparkSettings())
    assert next(tokens) == 10
    tokens.close()
    tokens.close()
    assert stopped.is_set() and tokens.finish == "cancelled" and len(backend.asked) == 2
    assert backend.asked[0].request_id == backend.asked[1].request_id


def test_a_client_that_goes_away_ends_the_generation() -> None:
    stopped, sender = threading.Event(), Sender()
    backend = Backend(tensorrt_llm=endless(stopped))
    model, cancellation = language_model(backend, sender)
    tokens = model.generate(CALL, SparkSettings())
    assert next(tokens) == 10
    sender.cancelled = True
    assert cancellation.poll() and stopped.is_set()
    with pytest.raises(Cancelled):
        list(tokens)
    with pytest.raises(Cancelled):
        model.generate(CALL, SparkSettings())


def test_iterators_are_retired_when_they_are_read_to_their_end() -> None:
    models = ServerModels(Backend(tensorrt_llm=lambda request: tokens_from([10])))
    call = Call("tensorrt_llm", {}, ["output_ids"])
    assert len(list(models.ask_many(call))) == 1 and len(models.retired) == 1


def test_the_codec_is_asked_for_a_window_and_trimmed() -> None:
    def vocoder(request: SimpleNamespace) -> Iterator[Response]:
        ids = request.arrays["semantic_tokens"]
        yield Response([Tensor("waveform", np.repeat(ids, 320, axis=1).astype(np.float32))])

    backend = Backend(vocoder=vocoder)
    codec = ServerCodec(ServerModels(backend), FRONT.codec, Cancellation(lambda: False))
    decode = codec.utterance(range(32))
    sound = decode(list(range(100)), Window(10, 30, 14, 20))
    assert sound.shape == (6 * 320,) and sound[0] == 14 and sound[-1] == 19
    assert backend.asked[0].arrays["semantic_tokens"].tolist() == [list(range(10, 30))]
    assert backend.asked[0].arrays["global_tokens"].shape == (1, 32)


# --- the language model's own service


def generation_inputs(**more: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "input_ids": np.asarray([[5, 6, 7, 0]], np.int32), "input_lengths": np.asarray([[3]], np.int32),
        "request_output_len": np.asarray([[20]], np.int32), **more,
    }  # fmt: skip


def test_a_generation_is_read() -> None:
    generation = read_generation(
        generation_inputs(
            temperature=np.asarray([[0.8]], np.float32), runtime_top_k=np.asarray([[50]], np.int32),
            runtime_top_p=np.asarray([[0.95]], np.float32), random_seed=np.asarray([[2**62]], np.uint64),
            end_id=np.asarray([[3]], np.int32), stop_words_list=np.asarray([[[8, 9, 0], [1, 2, -1]]], np.int32),
            streaming=np.asarray([[True]]), beam_width=np.asarray([[1]], np.int32),
        ),
        {"allowed": "10-12,4"}, 100,
    )  # fmt: skip
    request = generation.request
    assert request.prompt == (5, 6, 7) and request.max_new_tokens == 20 and generation.streaming
    assert request.stop_ids == {3, 8, 9} and request.allowed == (range(10, 13), 4)
    assert request.sampling.temperature == 0.8 and request.sampling.top_p == 0.95  # not the float32 nearest to them
    assert request.sampling.seed == 2**62


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"input_ids": np.asarray([[5, 200, 7]], np.int32)}, "input_ids"),
        ({"input_lengths": np.asarray([[0]], np.int32)}, "input_ids"),
        ({"request_output_len": np.asarray([[0]], np.int32)}, "max_new_tokens"),
        ({"beam_width": np.asarray([[4]], np.int32)}, "beam_width"),
        ({"repetition_penalty": np.asarray([[1.2]], np.float32)}, "repetition_penalty"),
        ({"temperature": np.asarray([[-1.0]], np.float32)}, "temperature"),
        ({"stop_words_list": np.asarray([[[8, 9], [2, -1]]], np.int32)}, "stop_words_list"),
    ],
)
def test_generations_that_are_refused(more: dict, told: str) -> None:
    with pytest.raises(Refusal, match=told):
        read_generation({**generation_inputs(), **more}, {}, 100)


def test_a_generation_without_a_prompt_is_refused() -> None:
    """All inputs are optional on the wire, so the probe of a supervisor may send none."""
    with pytest.raises(Refusal, match="^INVALID_PARAMETER: input_ids is missing"):
        read_generation({}, {}, 100)


def test_unsupported_inputs_are_refused_by_name() -> None:
    check_supported("input_ids")
    for name in ("lora_task_id", "draft_input_ids", "embedding_bias"):
        with pytest.raises(Refusal, match=name):
            check_supported(name)


def test_allowed_ids_travel_as_text() -> None:
    ids = (range(5, 9), 3, range(20, 21))
    assert allowed_ids(told_allowed(ids)) == ids and allowed_ids(None) is None
    for bad in ("", "a", "1-", "-2", "1,,2", "1-2-3"):
        with pytest.raises(Refusal):
            allowed_ids(bad)


def test_ids_are_answered_as_they_come_or_at_the_end() -> None:
    class Stream:
        def __init__(self) -> None:
            self.batches = [[1], [2, 3], []]

        def next_batch(self) -> list[int]:
            return self.batches.pop(0)

        def __iter__(self) -> Iterator[int]:
            return iter([1, 2, 3])

    assert list(answers(Stream(), True)) == [[1], [2, 3]] and list(answers(Stream(), False)) == [[1, 2, 3]]
    arrays = output_arrays([4, 5])
    assert arrays["output_ids"].shape == (1, 1, 2) and arrays["sequence_length"].tolist() == [[2]]
    assert all(array.dtype == np.int32 for array in arrays.values())


# --- recordings and tokens


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    from spark_maker import make_spark_folder

    from rvc_spark.tts.bicodec import load_bicodec
    from rvc_spark.tts.spark_checkpoint import SparkFolder
    from rvc_spark.tts.spark_features import load_features

    folder = SparkFolder(make_spark_folder(tmp_path_factory.mktemp("made")))
    features = load_features(folder.wav2vec2, device="cpu", dtype=__import__("torch").float32)
    return SimpleNamespace(codec=load_bicodec(folder.bicodec), features=features)


def noise(seconds: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(int(16_000 * seconds)) * 0.1).astype(np.float32)


def test_no_padding_leaks_from_one_recording_into_another(networks: SimpleNamespace) -> None:
    waves = [noise(1.0, 1), noise(3.3, 2), noise(0.4, 3)]
    together = TokenizerService(networks.codec, lambda: networks.features).tokenise([Recording(wave) for wave in waves])
    for wave, tokens in zip(waves, together, strict=True):
        (alone,) = TokenizerService(networks.codec, lambda: networks.features).tokenise([Recording(wave)])
        assert np.array_equal(alone.semantic_tokens, tokens.semantic_tokens)
        assert np.array_equal(alone.global_tokens, tokens.global_tokens)
        assert tokens.semantic_tokens.dtype == tokens.global_tokens.dtype == np.int32
    rows = token_rows(together)
    assert rows["semantic_tokens"].shape[0] == 3 and (rows["semantic_tokens"][0] == -1).any()
    assert rows["global_tokens"].shape == (3, 32)
    assert set(token_rows([VoiceTokens(together[0].global_tokens, None)])) == {"global_tokens"}


def test_voices_are_remembered_by_recording_and_treatment(networks: SimpleNamespace) -> None:
    service = TokenizerService(networks.codec, lambda: networks.features)
    wave = noise(1.0, 5)
    name = voice_of(wave)
    known = Recording(np.zeros(0, np.float32), name, semantic=False)
    with pytest.raises(Refusal, match="UNKNOWN_VOICE"):
        service.remembered(known)
    assert service.remembered(Recording(wave, semantic=False)) is None
    (tokens,) = service.tokenise([Recording(wave, semantic=False)])
    assert service.remembered(known) is tokens and service.remembered(Recording(wave, semantic=False)) is tokens
    for other in (
        Recording(np.zeros(0, np.float32), name, semantic=True),
        Recording(np.zeros(0, np.float32), name, normalise=False, semantic=False),
    ):
        with pytest.raises(Refusal, match="UNKNOWN_VOICE"):
            service.remembered(other)
    for seed in range(300):
        service.memory.keep(f"{seed}", known, tokens)
    with pytest.raises(Refusal, match="UNKNOWN_VOICE"):
        service.remembered(known)


def test_a_bad_recording_spoils_only_itself(networks: SimpleNamespace) -> None:
    service = TokenizerService(networks.codec, lambda: None)
    good, bad = service.tokenise([Recording(noise(1, 1), semantic=False), Recording(noise(1, 1))])
    assert isinstance(good, VoiceTokens) and isinstance(bad, Refusal) and "no_transcript" in str(bad)
    (long,) = TokenizerService(networks.codec, lambda: networks.features).tokenise([Recording(noise(31, 1))])
    assert isinstance(long, Refusal) and "31.0 s" in str(long)


def test_the_vocoder_decodes_batches_and_refuses_by_row(networks: SimpleNamespace) -> None:
    service = VocoderService(networks.codec)
    rng = np.random.default_rng(0)
    voices = rng.integers(0, 4096, (2, 32)).astype(np.int32)
    tokens = rng.integers(0, networks.codec.semantic_size, (2, 12)).astype(np.int32)
    both = service.decode(voices, tokens)
    assert both.shape == (2, 12 * 320) and both.dtype == np.float32
    for row in range(2):
        assert np.abs(service.decode(voices[row : row + 1], tokens[row : row + 1]) - both[row]).max() < 1e-5
    for wrong in (
        (voices, tokens[:, :0]), (voices, tokens + 10**6), (voices, -1 - tokens), (voices[:, :31], tokens),
        (voices[:1], tokens), (voices[0], tokens[0]),
    ):  # fmt: skip
        with pytest.raises(Refusal, match="INVALID_PARAMETER"):
            service.decode(*wrong)


def test_windows_through_the_vocoder_join_to_the_whole(networks: SimpleNamespace) -> None:
    """Exact streaming, without any state kept between two requests."""
    from rvc_spark.tts.chunk_schedule import ChunkSchedule

    service = VocoderService(networks.codec)
    rng = np.random.default_rng(1)
    voice = rng.integers(0, 4096, (1, 32)).astype(np.int32)
    tokens = rng.integers(0, networks.codec.semantic_size, (1, 200)).astype(np.int32)
    whole = service.decode(voice, tokens)[0]

    def vocoder(request: SimpleNamespace) -> Iterator[Response]:
        arrays = request.arrays
        yield Response([Tensor("waveform", service.decode(arrays["global_tokens"], arrays["semantic_tokens"]))])

    sizes = CodecSizes(networks.codec.reach, networks.codec.semantic_size, 4096)
    codec = ServerCodec(ServerModels(Backend(vocoder=vocoder)), sizes, Cancellation(lambda: False))
    decode = codec.utterance(voice[0].tolist())
    schedule = ChunkSchedule(ChunkSettings(0.4, 2.0, 1.0), networks.codec.reach)
    windows = [window for _ in range(200) for window in schedule.push(1)] + schedule.finish()
    assert len(windows) > 3
    joined = np.concatenate([decode(tokens[0].tolist(), window) for window in windows])
    assert joined.shape == whole.shape and np.abs(joined - whole).max() < 1e-4
