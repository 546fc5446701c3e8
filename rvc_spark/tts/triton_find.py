"""Is a Triton server there already? Looks at an address; starts nothing."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from rvc_spark.errors import TritonBootError, TritonModelError
from rvc_spark.tts.triton_http import ServerApi
from rvc_spark.tts.triton_ports import holder_of
from rvc_spark.tts.triton_signature import FRONT_MODEL, ModelSignature, check_signature, read_signature

CONNECT_SECONDS = 3.0  # a remote host that drops packets must not cost more
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # RFC 9113, 3.4 and 6.5
SETTINGS_FRAME = 4  # the type of the frame every HTTP/2 server must greet with
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "::", "")


@dataclass(frozen=True)
class FoundServer:
    """A server that runs. signature: None where its HTTP port does not answer or the front model was not asked for."""

    host: str
    grpc_port: int
    http_port: int | None
    signature: ModelSignature | None
    reason: str


def is_local(host: str) -> bool:
    """Whether an address means this machine."""
    return host.strip("[]").lower() in LOCAL_NAMES or host.lower() == socket.gethostname().lower()


def find_running(host: str, port: int, models: Sequence[str], *, tls: bool = False) -> FoundServer | str:
    """The server at an address (`port` is of gRPC; HTTP is expected one below), or why there is none.

    Raises TritonModelError when it lacks one of `models` or its `spark_tts` is another model; TritonBootError when
    something that is no Triton server holds the port.
    """
    shown = f"{host}:{port}"
    greeting = _greeting(host, port, tls)
    api = ServerApi(host, max(port - 1, 1), timeout=CONNECT_SECONDS)
    if greeting is None:
        return f"no server at {shown}"
    if api.live():
        return FoundServer(host, port, api.port, _checked(api, models, shown), f"a server answers at {shown}")
    if greeting:
        reason = f"a gRPC server answers at {shown}; port {port - 1} does not tell what it serves"
        return FoundServer(host, port, None, None, reason)
    holder = holder_of(port) if is_local(host) else None
    raise TritonBootError(
        f"port {port} of {host} is in use, but not by a Triton server" + (f": {holder} has it" if holder else ""),
        "End that program, or choose another port with TRITON_SERVER_PORT.",
    )


def _checked(api: ServerApi, models: Sequence[str], shown: str) -> ModelSignature | None:
    for model in models:
        if not api.model_ready(model):
            raise TritonModelError(
                f"the server at {shown} has no model {model} that is ready",
                "Wait until it has loaded, end that server, or name another with TRITON_SERVER_PORT.",
            )
    if FRONT_MODEL not in models:
        return None
    signature = read_signature(api)
    check_signature(signature, shown)
    return signature


def _greeting(host: str, port: int, tls: bool) -> bool | None:
    """None: nothing listens. True: what listens speaks HTTP/2 as gRPC does, or is behind TLS and cannot be asked here.
    False: it is something else."""
    try:
        line = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
    except OSError:  # refused, unknown, unreachable, or nobody there to refuse
        return None
    with line:
        if tls:
            return True
        try:
            line.sendall(HTTP2_GREETING)
            head = b""
            while len(head) < 9 and (gained := line.recv(9 - len(head))):
                head += gained
        except OSError:  # it hung up, or says nothing
            return False
        return len(head) == 9 and head[3] == SETTINGS_FRAME
