"""Bad roads between a client and a Triton server, and servers that do what a real one never should.

`Road` is a TCP proxy whose behaviour can be changed while connections run. `odd_server` speaks the protocol in this
process and answers as a test tells it, so that half a message, a missing end or a lie about the shape can come.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

# Made for these tests and trusted by nothing else: CN=localhost, 127.0.0.1 and ::1, valid for a hundred years.
CERTIFICATE = Path(__file__).with_name("triton_tls_certificate.pem")
KEY = Path(__file__).with_name("triton_tls_key.pem")


class Road:
    """A proxy on a port of its own. `cut` breaks all connections, `silent` swallows what comes, `delay` slows it.

    bytes_back: once this many bytes came back over one connection, it is cut; None never.
    """

    def __init__(self, port: int) -> None:
        self.server_port = port
        self.silent = False
        self.delay = 0.0
        self.bytes_back: int | None = None
        self.connections = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._open = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._begin(self._accept)

    def cut(self) -> None:
        """Break every connection that runs; new ones are taken."""
        for pair in self._pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def close(self) -> None:
        """Break everything and be gone."""
        self._open = False
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)

    def __enter__(self) -> Road:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _begin(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while self._open:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.server_port), 2)
            except OSError:
                near.close()
                continue
            self.connections += 1
            self._pairs.append((near, far))
            self._begin(self._carry, near, far, False)
            self._begin(self._carry, far, near, True)

    def _carry(self, source: socket.socket, target: socket.socket, back: bool) -> None:
        count = 0
        with suppress(OSError):
            while data := source.recv(65_536):
                if self.silent:
                    continue
                if self.delay:
                    time.sleep(self.delay)
                count += len(data)
                if back and self.bytes_back is not None and count > self.bytes_back:
                    target.sendall(data[: len(data) - (count - self.bytes_back)])
                    break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            if end is source:
                end.close()


def response(request_id: str, samples: int | None = 100, *, size: int | None = None, final: bool = False):
    """A message of the stream: `samples` by its shape, `size` bytes in truth; None sends no output."""
    from tritonclient.grpc import service_pb2

    message = service_pb2.ModelStreamInferResponse()
    told = message.infer_response
    told.id, told.model_name = request_id, "spark_tts"
    if samples is not None:
        told.outputs.add(name="waveform", datatype="FP32", shape=(1, samples))
        told.raw_output_contents.append(np.ones(samples, "<f4").tobytes()[:size])
    told.parameters["triton_final_response"].bool_param = final
    return message


@contextmanager
def odd_server(answers: Callable[[object, object], Iterator[object]], *, tls: bool = False) -> Iterator[int]:
    """The port of a server whose streams are `answers(request, context)`; its metadata are right, its token is any."""
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ServerLive(self, request, context):  # noqa: N802 the protocol's name
            return service_pb2.ServerLiveResponse(live=True)

        def ServerReady(self, request, context):  # noqa: N802
            return service_pb2.ServerReadyResponse(ready=True)

        def ModelReady(self, request, context):  # noqa: N802
            return service_pb2.ModelReadyResponse(ready=True)

        def ServerMetadata(self, request, context):  # noqa: N802
            return service_pb2.ServerMetadataResponse(name="odd", version="1")

        def ModelMetadata(self, request, context):  # noqa: N802
            told = service_pb2.ModelMetadataResponse(name=request.name, versions=["1"], platform="python")
            kinds = {"reference_wav": "FP32", "reference_wav_len": "INT32", "reference_text": "BYTES"}
            for name, kind in {**kinds, "target_text": "BYTES"}.items():
                told.inputs.add(name=name, datatype=kind, shape=(-1, -1))
            told.outputs.add(name="waveform", datatype="FP32", shape=(-1, -1))
            return told

        def ModelConfig(self, request, context):  # noqa: N802
            told = service_pb2.ModelConfigResponse()
            told.config.model_transaction_policy.decoupled = True
            told.config.parameters["rvc_spark"].string_value = "0.1.0"
            return told

        def ModelStreamInfer(self, requests, context):  # noqa: N802
            yield from answers(next(requests), context)

    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
        if tls:
            keys = grpc.ssl_server_credentials([(KEY.read_bytes(), CERTIFICATE.read_bytes())])
            port = server.add_secure_port("127.0.0.1:0", keys)
        else:
            port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield port
        finally:
            server.stop(0).wait()
