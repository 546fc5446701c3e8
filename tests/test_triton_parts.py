"""The parts of the Triton client that need no server: addresses, settings, joining, errors, the wire of a request."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from triton_place import voice

from rvc_spark.errors import (
    AudioError,
    ConfigError,
    NothingSpokenError,
    TextError,
    TritonModelError,
    TritonRequestError,
    TritonTimeoutError,
    TritonUnreachableError,
)
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.triton_client import TritonConnection, TritonSettings, TritonSparkClient
from rvc_spark.triton_errors import call_error, is_worth_repeating, stream_error, wants_voice_again
from rvc_spark.triton_inputs import SentenceRequest, prepare_reference
from rvc_spark.triton_join import OverlapJoiner

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "spark_tts"


@pytest.mark.parametrize(
    ("host", "target", "tls"),
    [
        ("localhost", "localhost:8001", False), ("10.0.0.7", "10.0.0.7:8001", False), ("::1", "[::1]:8001", False),
        ("[::1]", "[::1]:8001", False), ("[fe80::1%eth0]:9", "[fe80::1%eth0]:9", False),
        ("gpu-box.lan:9001", "gpu-box.lan:9001", False), ("grpc://gpu", "gpu:8001", False),
        ("http://gpu:7", "gpu:7", False), ("https://gpu/", "gpu:8001", True), ("grpcs://[::1]:5", "[::1]:5", True),
        (" triton_1 ", "triton_1:8001", False),
    ],
)  # fmt: skip
def test_addresses(host: str, target: str, tls: bool) -> None:
    made = TritonConnection(host)
    assert (made.target, made.tls) == (target, tls)


@pytest.mark.parametrize(
    "host",
    ["", " ", "a b", "ftp://x", "http://x/path", "user@x", "x:99999", "x:y", "-", "..", "a" * 300, "x\ny", "unix:/a", 7,
     "http://", "[::1", "x/y", "x?y"],
)  # fmt: skip
def test_addresses_that_are_none(host: str) -> None:
    with pytest.raises(ConfigError):
        TritonConnection(host)


def test_the_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_SERVER_ADDR", "gpu.example")
    monkeypatch.setenv("TRITON_SERVER_PORT", "9001")
    with TritonSparkClient() as client:
        assert client.connection.target == "gpu.example:9001" and not client.connection.is_local
    with pytest.raises(ConfigError, match="offline"):
        TritonSparkClient(RVCConfig(offline=True))
    with pytest.raises(ConfigError, match="unencrypted"):
        TritonSparkClient(RVCConfig(triton_token="secret"))
    with TritonSparkClient(RVCConfig(triton_token="secret", triton_host="localhost")) as client:
        assert "secret" not in repr(client.connection)


@pytest.mark.parametrize(
    "bad",
    [{"temperature": -1}, {"top_p": 2.0}, {"top_k": 0}, {"seed": -1}, {"seed": 1.5}, {"seed": True},
     {"context": "some"}, {"pause_seconds": float("nan")}, {"look_ahead": 99},
     {"gender": "x", "pitch": "low", "speed": "low"}, {"gender": "male"}, {"max_chars": 3},
     {"sentence_seconds": 0}, {"normalise_volume": "yes"}],
)  # fmt: skip
def test_settings_out_of_range(bad: dict) -> None:
    with pytest.raises(ConfigError):
        TritonSettings(**bad)


@pytest.mark.parametrize(
    "bad", [{"port": 0}, {"attempts": 0}, {"model": "a/b"}, {"token": "a\nb"}, {"ca_file": Path("x")}]
)
def test_connections_out_of_range(bad: dict) -> None:
    with pytest.raises(ConfigError):
        TritonConnection(**bad)


def test_the_wire_of_a_request() -> None:
    reference = prepare_reference(voice(1.0), "what is said")
    settings = TritonSettings(seed=5, temperature=0.5, top_k=3, context="exact", normalise_volume=False)
    request = SentenceRequest("spark_tts", "grüße", reference, settings.parameters()).build("id-1", name_voice=False)
    told = [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in request.inputs]
    assert told == [("reference_wav", "FP32", [1, 16_000]), ("reference_wav_len", "INT32", [1, 1]),
                    ("reference_text", "BYTES", [1, 1]), ("target_text", "BYTES", [1, 1])]  # fmt: skip
    wave, length, transcript, text = request.raw_input_contents
    assert np.array_equal(np.frombuffer(wave, "<f4"), reference.samples) and np.frombuffer(length, "<i4") == 16_000
    assert (transcript[4:].decode(), text[4:].decode()) == ("what is said", "grüße")
    sent = {key: value.WhichOneof("parameter_choice") for key, value in request.parameters.items()}
    assert sent == {
        "triton_enable_empty_final_response": "bool_param", "overlap_seconds": "string_param", "seed": "int64_param",
        "temperature": "string_param", "top_k": "int64_param", "context": "string_param", "voice": "string_param",
        "normalise_volume": "bool_param",
    }  # fmt: skip
    named = SentenceRequest("spark_tts", "a", prepare_reference(voice(1.0)), {}).build("id-2", name_voice=True)
    assert len(named.raw_input_contents[0]) == 4 and named.parameters["no_transcript"].bool_param
    public = SentenceRequest("spark_tts", "a", reference, None).build("id-3", name_voice=False)
    assert list(public.parameters) == ["triton_enable_empty_final_response"]


def test_references_are_channel_0_at_16_khz_and_cut() -> None:
    from rvc_spark.audio import Audio, resample

    left, right = voice(2.0, 1, 48_000).samples, voice(2.0, 2, 48_000).samples
    prepared = prepare_reference(Audio(np.stack([left, right]), 48_000))
    assert np.array_equal(prepared.samples, resample(left, 48_000, 16_000))
    assert len(prepare_reference(voice(40.0)).samples) == 480_000
    with pytest.raises(AudioError):
        prepare_reference(voice(0.49))
    with pytest.raises(TextError):
        prepare_reference(voice(), "bad \0 transcript")
    assert prepare_reference(voice(), "  ").transcript is None


def test_joined_chunks_are_the_whole_whatever_their_lengths() -> None:
    chance = np.random.default_rng(0)
    for _ in range(200):
        overlap = int(chance.integers(0, 50))
        whole = chance.standard_normal(int(chance.integers(1, 600))).astype(np.float32)
        joiner, joined, at = OverlapJoiner(overlap), [], 0
        while at < len(whole):
            size = int(chance.integers(1, 120))
            start = max(0, at - overlap)
            at = min(len(whole), at + size)
            joined.append(joiner.push(whole[start:at]))
        if overlap:
            joined.append(joiner.push(whole[-int(chance.integers(1, overlap + 1)) :]))  # the tail once more
        joined.append(joiner.finish())
        result = np.concatenate(joined)
        assert len(result) == len(whole) and np.abs(result - whole).max() < 1e-6


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference vectors are not here")
def test_joining_equals_the_reference_where_the_reference_is_right() -> None:
    arrays = np.load(GOLDEN / "crossfade.npz")
    compared = 0
    for number, case in enumerate(json.loads((GOLDEN / "triton.json").read_text())["crossfade"]):
        overlap, lengths = int(case["overlap_s"] * 16_000), case["lengths"]
        joiner = OverlapJoiner(overlap)
        pieces = [joiner.push(arrays[f"chunk{number}_{index}"]) for index in range(len(lengths))]
        result = np.concatenate([*pieces, joiner.finish()])
        assert len(result) == sum(lengths) - sum(min(overlap, length) for length in lengths[1:])
        if all(length >= 2 * overlap for length in lengths[1:]) and overlap:
            assert np.abs(result - arrays[f"out{number}"]).max() < 1e-6
            compared += 1
    assert compared >= 2


@pytest.mark.parametrize(
    ("status", "text", "leaf"),
    [
        (None, "Request for unknown model: 'x' is not found", TritonModelError),
        (None, "[request id: 1] unexpected shape for input 'reference_wav'", TritonModelError),
        (None, "Failed to process the request(s) for model 'x_0_0', message: ValueError: boom", TritonModelError),
        (None, "message: TritonModelException: INVALID_TEXT: no words", TextError),
        (None, "INVALID_REFERENCE: too short", AudioError), (None, "NO_SPEECH: nothing", NothingSpokenError),
        (None, "INVALID_PARAMETER: top_k", TritonRequestError),
        (None, "Stub process 'x' is not healthy.", TritonModelError),
        (None, "Exceeds maximum queue size", TritonRequestError),
        ("NOT_FOUND", "Request for unknown model", TritonModelError),
        ("INVALID_ARGUMENT", "expected 4 inputs but got 3", TritonModelError),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", TritonTimeoutError),
        ("UNAVAILABLE", "failed to connect to all addresses", TritonUnreachableError),
        ("UNAVAILABLE", "Stream removed (Socket closed)", TritonUnreachableError),
        ("UNAVAILABLE", "Server exiting", TritonUnreachableError),
        ("UNAVAILABLE", "This protocol is restricted, expecting header", TritonRequestError),
        ("UNAUTHENTICATED", "who are you", TritonRequestError),
        ("UNIMPLEMENTED", "Method not found!", TritonUnreachableError),
        ("UNAVAILABLE", "Trying to connect an http1.x server", TritonUnreachableError),
        ("INTERNAL", "Received RST_STREAM with error code 2", TritonUnreachableError),
    ],
)  # fmt: skip
def test_what_servers_report_becomes_typed(status: str | None, text: str, leaf: type) -> None:
    found = stream_error(text, "x", "grpc://here") if status is None else call_error(status, text, "x", "grpc://here")
    assert type(found) is leaf and found.next_step and "grpc://here" in str(found)


def test_what_is_worth_repeating() -> None:
    assert is_worth_repeating("UNAVAILABLE", "x") and is_worth_repeating(None, "Exceeds maximum queue size")
    assert not is_worth_repeating("INTERNAL", "x") and not is_worth_repeating("UNAVAILABLE", "protocol is restricted")
    assert wants_voice_again("UNKNOWN_VOICE: send it") and not wants_voice_again("INVALID_TEXT: UNKNOWN_VOICE")
