"""What comes back: one message of a stream, checked before a sample of it is believed.

A response that is damaged, of another type or shorter than it says is an error and never sound. Whether the numbers are
sound is asked when a piece is handed over, once: at many requests at a time each look at the samples costs milliseconds
of waiting for the interpreter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rvc_spark.audio import Audio
from rvc_spark.errors import AudioError, TritonModelError
from rvc_spark.triton_inputs import SAMPLE_RATE

OUTPUT = "waveform"
_FINAL = "triton_final_response"
_EMPTY = np.zeros(0, np.float32)


@dataclass(frozen=True, eq=False)
class Answer:
    """One response: float32 [T], maybe empty, and whether no more follow."""

    samples: np.ndarray
    final: bool


def read_answer(response: Any, request_id: str, place: str) -> Answer:
    """The samples of a ModelInferResponse; of a final one too, for servers that have nothing to send after them.

    Raises TritonModelError: another request's, no such output, not float32, not [T] or [1, T], or fewer or more bytes
    than the shape says.
    """
    if response.id != request_id:
        raise _refused(place, f"an answer to the request {response.id[:40]!r} where {request_id!r} was made")
    final = response.parameters[_FINAL].bool_param if _FINAL in response.parameters else False
    if not response.outputs:
        return Answer(_EMPTY, final)
    if len(response.outputs) != 1 or response.outputs[0].name != OUTPUT:
        names = ", ".join(output.name[:40] for output in response.outputs[:4])
        raise _refused(place, f"the outputs {names} and not {OUTPUT} alone")
    return Answer(_samples(response, place), final)


def _samples(response: Any, place: str) -> np.ndarray:
    output = response.outputs[0]
    shape = tuple(output.shape)
    if output.datatype != "FP32":
        raise _refused(place, f"{OUTPUT} of type {output.datatype[:20]} and not FP32")
    if len(shape) not in (1, 2) or min(shape) < 0 or (len(shape) == 2 and shape[0] != 1):
        raise _refused(place, f"{OUTPUT} of the shape {shape} and not [1, samples]")
    raw = response.raw_output_contents[0] if response.raw_output_contents else b""
    if len(raw) != 4 * shape[-1]:
        raise _refused(place, f"{len(raw):,} bytes for {OUTPUT} of the shape {shape}, which takes {4 * shape[-1]:,}")
    return np.frombuffer(bytearray(raw), "<f4").astype(np.float32, copy=False)  # a copy, which may be written to


def as_audio(samples: np.ndarray, place: str) -> Audio:
    """Float32 [T] as sound. Raises TritonModelError for numbers that are none: not finite, or far beyond full scale."""
    try:
        return Audio(samples, SAMPLE_RATE)
    except AudioError as error:
        raise _refused(place, f"numbers that are no sound: {error.problem}") from error


def _refused(place: str, what: str) -> TritonModelError:
    return TritonModelError(
        f"the Triton server at {place} sent {what}", "Serve the model repository of this package, or the public one."
    )
