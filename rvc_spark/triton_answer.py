"""What comes back: one message of a stream, checked before a sample of it is believed.

A response that is damaged, of another type or shorter than it says is an error and never sound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rvc_spark.audio import MAX_AMPLITUDE
from rvc_spark.errors import TritonModelError

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

    Raises TritonModelError: another request's, no such output, not float32, not [T] or [1, T], fewer or more bytes than
    the shape says, or numbers that are no sound.
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
    samples = np.frombuffer(raw, "<f4").astype(np.float32)  # a copy, which the caller may write to
    if len(samples) and not -MAX_AMPLITUDE <= float(samples.min()) <= float(samples.max()) <= MAX_AMPLITUDE:
        raise _refused(place, f"{OUTPUT} with values that are no sound (not finite, or far beyond full scale)")
    return samples


def _refused(place: str, what: str) -> TritonModelError:
    return TritonModelError(
        f"the Triton server at {place} sent {what}", "Serve the model repository of this package, or the public one."
    )
