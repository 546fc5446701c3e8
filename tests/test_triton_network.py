"""The Triton client when things go wrong between it and the server: killed, slow, silent, cut off, lying servers.

The soak at the end is 1,000 requests, 16 at a time, with random cancels and a server that is killed and comes back.
The long form is `python tests/soak_triton.py --requests 20000`.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from quick_spark_model import waveform
from soak_triton import soak
from triton_faults import CERTIFICATE, Road, odd_server, response
from triton_place import client_of, counters, eventually, own_threads, quick_server, voice

from rvc_spark.errors import (
    RvcSparkError,
    TritonModelError,
    TritonRequestError,
    TritonTimeoutError,
    TritonUnreachableError,
)
from rvc_spark.triton_client import TritonConnection, TritonSettings, TritonSparkClient
from rvc_spark.tts.triton_embedded import EmbeddedServer

ONE = ("spark_tts",)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with quick_server(tmp_path_factory.mktemp("triton"), models=ONE) as running:
        yield running
        with client_of(running) as client:
            assert eventually(lambda: counters(client)["active"] == 0), "requests nobody waits for go on"


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert eventually(lambda: not own_threads())


def through(road: Road, **changes: object) -> TritonSparkClient:
    return TritonSparkClient(TritonConnection("127.0.0.1", road.port, **changes))


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with TritonSparkClient("localhost", taken.getsockname()[1]) as client:
            start = time.monotonic()
            with pytest.raises(TritonUnreachableError, match="rvc-spark triton up"):
                client.synthesize("hello", voice())
            assert time.monotonic() - start < 10, "a refused connection is known at once"
            health = client.health()
            assert not (health.live or client.ready()) and "localhost" in health.problem


def test_the_port_of_http_is_named_as_such(server: EmbeddedServer) -> None:
    with TritonSparkClient("127.0.0.1", server.http_port) as client:
        with pytest.raises(TritonUnreachableError) as caught:
            client.synthesize("hello", voice())
        assert "8001" in str(caught.value) or "rvc-spark triton up" in str(caught.value)


def test_a_server_killed_in_mid_stream_and_back_again(tmp_path: Path) -> None:
    with quick_server(tmp_path, models=ONE) as first:
        ports = first.ports
        client = client_of(first)
        prepared = client.prepare(voice())
        streams = [client.stream("chunks=99 samples=200 delay=100. Next.", prepared) for _ in range(8)]
        for stream in streams:
            assert next(stream).frames == 200
        os.kill(first.pid, signal.SIGKILL)
        for stream in streams:
            killed = time.monotonic()
            with pytest.raises(TritonUnreachableError):
                for _ in stream:
                    pass
            assert time.monotonic() - killed < 2 and not stream.finished
        with pytest.raises(TritonUnreachableError):
            client.synthesize("hello", prepared)
    with quick_server(tmp_path, models=ONE, ports=ports):
        assert np.array_equal(client.synthesize("hello", prepared).samples, waveform("hello"))
        assert counters(client)["sounds"] >= 1, "the new server was sent the voice anew"
    client.close()


def test_one_connection_carries_everything(server: EmbeddedServer) -> None:
    with Road(server.grpc_port) as road, through(road) as client:
        prepared = client.prepare(voice())
        streams = [client.stream(f"number {number} chunks=2 samples=99 delay=50", prepared) for number in range(16)]
        for stream in streams:
            next(stream)
        assert all(sum(piece.frames for piece in stream) == 99 for stream in streams)
        assert road.connections == 1


def test_cut_before_the_first_sample_is_repeated_and_heard_once(server: EmbeddedServer) -> None:
    with Road(server.grpc_port) as road, through(road) as client:
        client.synthesize("warm", voice())
        threading.Timer(0.3, road.cut).start()
        text = "chunks=4 samples=300 first=800"
        assert np.array_equal(client.synthesize(text, voice()).samples, waveform(text))
        assert road.connections == 2


def test_cut_after_the_first_sample_is_an_error_and_never_repeated(server: EmbeddedServer) -> None:
    with Road(server.grpc_port) as road, through(road) as client:
        stream = client.stream("chunks=4 samples=300 delay=700", voice())
        next(stream)
        started = counters(client)["started"]
        road.cut()
        with pytest.raises(TritonUnreachableError):
            next(stream)
        assert counters(client)["started"] == started
        assert client.synthesize("and on", voice()).frames


def test_cancels_while_the_server_writes_leave_it_alive(server: EmbeddedServer) -> None:
    """Broken off by gRPC's own means, 500 of these have taken Triton 2.51 down in every run."""
    with client_of(server) as client:
        prepared = client.prepare(voice())

        def work() -> None:
            for _ in range(100):
                with client.stream("chunks=50 samples=2000", prepared) as stream:
                    next(stream)

        workers = [threading.Thread(target=work) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert server.alive and client.synthesize("and on", prepared).frames


def test_cut_anywhere_gives_all_or_an_error() -> None:
    """Not with a real Triton: version 2.51 dies of a connection that breaks while it writes, one time in fifty."""

    def answers(request, _):
        yield from [response(request.id, 3000)] * 5
        yield response(request.id, None, final=True)

    outcomes = {"whole": 0, "error": 0}
    with odd_server(answers) as port:
        for bytes_back in range(500, 100_000, 2_437):
            with Road(port) as road, through(road, attempts=1) as client:
                road.bytes_back = bytes_back
                try:
                    frames = client.synthesize("hello", voice()).frames
                except RvcSparkError as error:
                    assert isinstance(error, TritonUnreachableError), error
                    outcomes["error"] += 1
                else:
                    assert frames == 15_000
                    outcomes["whole"] += 1
    assert min(outcomes.values()) >= 5, outcomes


def test_a_silent_road_ends_by_the_deadline(server: EmbeddedServer) -> None:
    with Road(server.grpc_port) as road, through(road, probe_seconds=0.5) as client:
        stream = client.stream("chunks=4 samples=300 delay=300", voice(), settings=TritonSettings(sentence_seconds=1.5))
        next(stream)
        road.silent = True
        with pytest.raises(TritonTimeoutError):
            for _ in stream:
                pass
        assert not client.ready()
        with pytest.raises((TritonTimeoutError, TritonUnreachableError)):
            client.synthesize("hello", voice(), settings=TritonSettings(first_chunk_seconds=0.5))
        road.silent = False
        road.cut()
        assert client.synthesize("hello", voice()).frames


def test_a_slow_road_is_only_slow(server: EmbeddedServer) -> None:
    with Road(server.grpc_port) as road, through(road) as client:
        road.delay = 0.02
        text = "chunks=5 samples=20000"
        assert np.array_equal(client.synthesize(text, voice(10.0)).samples, waveform(text))


def test_a_model_whose_process_died(tmp_path: Path) -> None:
    with quick_server(tmp_path, models=ONE) as server, client_of(server) as client:
        settings = TritonSettings(stall_seconds=1.5)
        stream = client.stream("chunks=3 samples=50 delay=100 die=2", voice(), settings=settings)
        with pytest.raises(TritonTimeoutError, match="died"):  # Triton itself would let the stream wait for ever
            for _ in stream:
                pass
        assert client.ready(), "Triton says so although the process is gone"
        with pytest.raises(TritonModelError):
            client.synthesize("hello", voice())
        server.api.unload("spark_tts")
        server.api.load("spark_tts")
        assert eventually(client.ready)
        assert client.synthesize("hello", voice()).frames


def test_half_a_message_is_no_sound() -> None:
    faults = {
        "short": lambda key: [response(key, size=396), response(key, None, final=True)],
        "ragged": lambda key: [response(key, size=399), response(key, None, final=True)],
        "unended": lambda key: [response(key), response(key)],
        "foreign": lambda key: [response("another"), response(key, None, final=True)],
        "late": lambda key: [response(key), response(key, size=4), response(key, None, final=True)],
    }
    for name, messages in faults.items():
        with odd_server(lambda request, _, make=messages: iter(make(request.id))) as port:
            with TritonSparkClient("127.0.0.1", port) as client:
                with pytest.raises((TritonModelError, TritonUnreachableError)):
                    client.synthesize("hello", voice())
                    raise AssertionError(name)


def test_data_on_the_last_message_is_not_lost() -> None:
    with odd_server(lambda request, _: iter([response(request.id), response(request.id, 50, final=True)])) as port:
        with TritonSparkClient("127.0.0.1", port) as client:
            assert client.synthesize("hello", voice()).frames == 150


def test_repeated_only_while_nobody_answers() -> None:
    import grpc

    calls: list[str] = []
    cases = [  # status, messages before it, what comes, how often it was asked
        (grpc.StatusCode.UNAVAILABLE, 0, TritonUnreachableError, 3),
        (grpc.StatusCode.UNAVAILABLE, 1, TritonUnreachableError, 1),
        (grpc.StatusCode.INTERNAL, 0, TritonModelError, 1),
        (grpc.StatusCode.UNAUTHENTICATED, 0, TritonRequestError, 1),
        (grpc.StatusCode.CANCELLED, 0, TritonUnreachableError, 1),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 0, TritonModelError, 1),
    ]
    for status, messages, leaf, asked in cases:

        def answers(request, context, status=status, messages=messages):
            calls.append(request.id)
            yield from [response(request.id)] * messages
            context.abort(status, "told so")

        calls.clear()
        with odd_server(answers) as port:
            with TritonSparkClient(TritonConnection("127.0.0.1", port, attempts=3, backoff_seconds=0.01)) as client:
                with pytest.raises(leaf):
                    client.synthesize("hello", voice())
        assert len(calls) == len(set(calls)) == asked, status


def test_a_server_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rvc_spark.triton_stream.MAX_SENTENCE_SAMPLES", 1_000_000)
    left = threading.Event()

    def endless(request, context):
        context.add_callback(left.set)
        while context.is_active():
            yield response(request.id, 16_000)

    with odd_server(endless) as port, TritonSparkClient("127.0.0.1", port) as client:
        with pytest.raises(TritonModelError, match="max_tokens"):
            client.synthesize("hello", voice())
        assert left.wait(5)


def test_encrypted_and_with_a_token() -> None:
    seen: list[dict[str, str]] = []

    def answers(request, context):
        seen.append(dict(context.invocation_metadata()))
        yield response(request.id, final=True)

    with odd_server(answers, tls=True) as port:
        for host in ("grpcs://localhost", "127.0.0.1"):
            where = TritonConnection(host, port, tls=True, ca_file=CERTIFICATE, token="a secret")
            assert "secret" not in repr(where)
            with TritonSparkClient(where) as client:
                assert client.synthesize("hello", voice()).frames == 100
            assert seen[-1]["authorization"] == "Bearer a secret"
        for wrong in (TritonConnection("127.0.0.1", port), TritonConnection("127.0.0.1", port, tls=True)):
            with TritonSparkClient(wrong) as client, pytest.raises(TritonUnreachableError):
                client.synthesize("hello", voice())


def test_a_thousand_requests_with_cancels_and_a_restart(tmp_path: Path) -> None:
    told = soak(tmp_path, requests=1000, together=16, seed=1)
    assert told.ended == 1000 and told.untyped == [] and told.wrong == []
    assert min(told.whole, told.cancelled, told.failed) > 10, told
    assert told.errors["TritonUnreachableError"] > 0, "the server was killed while requests ran"
    assert (told.threads_left, told.files_left, told.active_left) == (0, 0, 0), told
    assert told.growth < 0.05, told
