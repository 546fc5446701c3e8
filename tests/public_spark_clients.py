"""Clients of the public Spark-TTS repository, written after its description: plain tritonclient over gRPC, plain JSON.

They know nothing of this project. What they do with a server is what everybody's programs do.
"""

from __future__ import annotations

import json
import queue
import urllib.request
import uuid
from collections.abc import Iterator

import numpy as np
import tritonclient.grpc as grpc

RATE = 16_000
PATIENCE = 120.0  # seconds without any answer mean that something hangs


def padded(wave: np.ndarray, reference_text: str, target_text: str, unit: int = 1) -> np.ndarray:
    """The reference in a row of zeros whose length depends on how long the answer may be: equal shapes batch."""
    seconds = len(wave) / RATE
    guess = seconds / len(reference_text) * len(target_text) if reference_text else seconds
    row = np.zeros((1, unit * RATE * (int(guess + seconds) // unit + 1)), np.float32)
    row[0, : len(wave)] = wave
    return row


def inputs(wave: np.ndarray, reference_text: str, target_text: str, *, unit: int | None = 1) -> list[grpc.InferInput]:
    """The four inputs. unit: of the padding in seconds, None for no padding."""
    row = wave[None].astype(np.float32) if unit is None else padded(wave, reference_text, target_text, unit)
    arrays = {
        "reference_wav": row, "reference_wav_len": np.asarray([[len(wave)]], np.int32),
        "reference_text": np.asarray([[reference_text]], object), "target_text": np.asarray([[target_text]], object),
    }  # fmt: skip
    kinds = {"reference_wav": "FP32", "reference_wav_len": "INT32"}
    tensors = []
    for name, array in arrays.items():
        tensor = grpc.InferInput(name, list(array.shape), kinds.get(name, "BYTES"))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


def whole(
    address: str, tensors: list[grpc.InferInput], model: str = "spark_tts_offline", **given: object
) -> np.ndarray:
    """One unary call, float32 [n]."""
    with grpc.InferenceServerClient(address) as client:
        answer = client.infer(
            model, tensors, request_id="100000000", outputs=[grpc.InferRequestedOutput("waveform")],
            client_timeout=PATIENCE, **given,
        )  # fmt: skip
    wave = answer.as_numpy("waveform")
    assert wave.dtype == np.float32 and wave.ndim == 2 and len(wave) == 1
    return wave[0]


def streamed(
    address: str, tensors: list[grpc.InferInput], model: str = "spark_tts", **given: object
) -> Iterator[np.ndarray]:
    """Chunks float32 [n] until the empty final response; closing it cancels."""
    answers: queue.Queue[tuple[object, object]] = queue.Queue()
    with grpc.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        over = False
        try:
            client.async_stream_infer(
                model, tensors, request_id=str(uuid.uuid4()), enable_empty_final_response=True,
                outputs=[grpc.InferRequestedOutput("waveform")], **given,
            )  # fmt: skip
            while True:
                result, error = answers.get(timeout=PATIENCE)
                if error is not None:
                    over = True
                    raise error
                parameters = result.get_response().parameters
                if parameters["triton_final_response"].bool_param:
                    assert not result.get_response().outputs, "data on the final response is lost in public clients"
                    over = True
                    return
                chunk = result.as_numpy("waveform")
                assert chunk.dtype == np.float32 and chunk.ndim == 2 and len(chunk) == 1
                yield chunk[0]
        finally:
            client.stop_stream(cancel_requests=not over)


def crossfaded(chunks: list[np.ndarray], overlap: float = 0.1) -> np.ndarray:
    """The public client's join, float64: linear ramps with both ends included."""
    n = int(overlap * RATE)
    fade_in, fade_out = np.linspace(0, 1, n), np.linspace(1, 0, n)
    if len(chunks) == 1:
        return chunks[0].astype(np.float64)
    pieces = [chunks[0][:-n]]
    for before, chunk in zip(chunks, chunks[1:], strict=False):
        pieces += [chunk[:n] * fade_in + before[-n:] * fade_out, chunk[n:-n]]
    return np.concatenate([*pieces, chunks[-1][-n:]]).astype(np.float64)


def posted(http_address: str, wave: np.ndarray, reference_text: str, target_text: str, model: str) -> np.ndarray:
    """The public HTTP client: JSON both ways, no padding, float32 [n]."""
    rows = (
        ("reference_wav", "FP32", [1, len(wave)], wave.tolist()),
        ("reference_wav_len", "INT32", [1, 1], [len(wave)]),
        ("reference_text", "BYTES", [1, 1], [reference_text]),
        ("target_text", "BYTES", [1, 1], [target_text]),
    )
    names = ("name", "datatype", "shape", "data")
    body = json.dumps({"inputs": [dict(zip(names, row, strict=True)) for row in rows]}).encode()
    request = urllib.request.Request(
        f"http://{http_address}/v2/models/{model}/infer?request_id=0", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        told = json.load(answer)
    return np.asarray(told["outputs"][0]["data"], np.float32)
