"""One connection to a Triton server: opening it, asking it, starting streams on it, closing it for certain.

The raw stub of gRPC, which every tritonclient since 2.41 has: the wrapped client keeps one stream per client, and its
asynchronous form has no end marker. Knows nothing of speech.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rvc_spark.errors import ConfigError, MissingPackageError, RvcSparkError, TritonUnreachableError
from rvc_spark.triton_errors import call_error, is_worth_repeating
from rvc_spark.triton_settings import TritonConnection

MAX_MESSAGE_BYTES = 64 << 20
"""Largest message taken: 17 minutes of speech in one piece."""
CONNECT_SECONDS = 5.0
"""How long a connection may take to come about; an address that swallows packets would take minutes."""
POLL_SECONDS = 0.25
"""How long waiting for a free place may keep a cancelled request."""

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    # A server that comes back is found within half a second; gRPC's own patience grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1000)),
    ("grpc.dns_min_time_between_resolutions_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own: another client's failures are not ours
    ("grpc.enable_http_proxy", 0),  # a proxy in the environment would swallow even localhost
    # No keep-alive pings: Triton takes those of a quiet stream for an attack and breaks it off; deadlines do the work.
]


class Channel:
    """A connection, usable from any number of threads; `close` it, or use it as a context.

    It is also closed when it is forgotten and when Python ends: collected at that moment, gRPC's own channel can hang.
    """

    def __init__(self, connection: TritonConnection) -> None:
        """Raises MissingPackageError, ConfigError; opens nothing yet."""
        grpc, stubs = _packages()
        self.connection = connection
        self.place = str(connection)
        self._grpc = grpc
        self._metadata = (("authorization", f"Bearer {connection.token}"),) if connection.token else ()
        if connection.tls:
            channel = grpc.secure_channel(connection.target, _credentials(grpc, connection), options=_OPTIONS)
        else:
            channel = grpc.insecure_channel(connection.target, options=_OPTIONS)
        self._stub = stubs.GRPCInferenceServiceStub(channel)
        self._slots = threading.BoundedSemaphore(connection.max_in_flight)
        self._process = os.getpid()
        self._close = weakref.finalize(self, channel.close)  # runs at exit too, before anything is taken apart

    @property
    def is_open(self) -> bool:
        """Whether calls can be made."""
        return self._close.alive

    def close(self) -> None:
        """End every call. Safe to call twice, from any thread."""
        self._close()

    def ask(self, method: str, request: Any, seconds: float | None = None, *, attempts: int | None = None) -> Any:
        """A call with one answer, repeated with growing pauses while no server answers.

        Raises the errors of `rvc_spark.triton_errors.call_error`.
        """
        seconds = self.connection.probe_seconds if seconds is None else seconds
        end = time.monotonic() + seconds
        for pause in self.pauses(attempts):
            try:
                with self.told_errors():
                    self._check_process()
                    timeout = max(0.001, end - time.monotonic())
                    return getattr(self._stub, method)(request, timeout=timeout, metadata=self._metadata)
            except CallFailed as failed:
                if pause is None or not failed.repeatable or time.monotonic() + pause >= end:
                    raise failed.error from failed.__cause__
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def stream(self, request: Any, seconds: float) -> Any:
        """Start a stream of one request; iterate over it for messages, `cancel()` it to end it on the server too.

        One stream for each request, all on one connection: a stream shared by several can only be cancelled as a whole.
        """
        self._check_process()
        return self._stub.ModelStreamInfer(iter((request,)), timeout=seconds, metadata=self._metadata)

    def pauses(self, attempts: int | None = None) -> Iterator[float | None]:
        """Seconds to wait after each attempt, doubling; None after the last."""
        count = self.connection.attempts if attempts is None else attempts
        for number in range(count):
            yield self.connection.backoff_seconds * 2**number if number < count - 1 else None

    @contextmanager
    def slot(self, given_up: Callable[[], bool]) -> Iterator[bool]:
        """A place among the requests in flight, waited for until `given_up` says not to; whether there is one."""
        held = self._slots.acquire(blocking=False)
        while not held and not given_up():
            held = self._slots.acquire(timeout=POLL_SECONDS)
        try:
            yield held
        finally:
            if held:
                self._slots.release()

    @contextmanager
    def told_errors(self, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Turns whatever gRPC raises inside into CallFailed; into nothing if `unless` says that it does not matter."""
        try:
            yield
        except self._grpc.RpcError as error:
            if unless():
                return
            status, details = error.code().name, error.details() or ""
            told = call_error(status, details, self.connection.model, self.place)
            raise CallFailed(told, status, is_worth_repeating(status, details)) from error
        except ValueError as error:  # gRPC's word for a closed channel
            if self.is_open:
                raise
            raise CallFailed(closed_error(self.place), "CANCELLED", False) from error


    def _check_process(self) -> None:
        if os.getpid() != self._process:  # gRPC's threads stayed behind: any call would wait for ever
            raise TritonUnreachableError(
                f"the client of {self.place} was made in another process", "Make one in each process, after the fork."
            )


class CallFailed(Exception):
    """What became of a call, before anybody decided whether to try again; never leaves the client's own files."""

    def __init__(self, error: RvcSparkError, status: str | None, repeatable: bool) -> None:
        super().__init__(str(error))
        self.error, self.status, self.repeatable = error, status, repeatable


def closed_error(place: str) -> TritonUnreachableError:
    """The error of a client that is used after, or was closed during, its work."""
    return TritonUnreachableError(f"the client of {place} was closed", "Make a new TritonSparkClient.")


def _packages() -> tuple[Any, Any]:
    try:
        import grpc
        from tritonclient.grpc import service_pb2_grpc
    except ImportError as error:
        raise MissingPackageError(
            f"talking to a Triton server needs tritonclient with gRPC ({error})",
            "Install it: pip install 'rvc-spark[triton]'.",
        ) from error
    return grpc, service_pb2_grpc


def _credentials(grpc: Any, connection: TritonConnection) -> Any:
    if connection.ca_file is None:
        return grpc.ssl_channel_credentials()
    try:
        certificates = connection.ca_file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{connection.ca_file} cannot be read ({error})", "Set ca_file to a PEM file.") from error
    if b"-----BEGIN CERTIFICATE-----" not in certificates:
        raise ConfigError(f"{connection.ca_file} holds no certificate", "Set ca_file to a PEM file.")
    return grpc.ssl_channel_credentials(root_certificates=certificates)
