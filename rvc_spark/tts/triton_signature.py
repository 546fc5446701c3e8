"""What a model promises: its inputs and outputs by name, type and shape; and what `spark_tts` must promise.

The names are the public repository's, so that its clients and ours are interchangeable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rvc_spark.errors import TritonModelError
from rvc_spark.tts.triton_http import ServerApi

FRONT_MODEL = "spark_tts"
INPUTS = {
    "reference_wav": ("FP32", (-1, -1)), "reference_wav_len": ("INT32", (-1, 1)), "reference_text": ("BYTES", (-1, 1)),
    "target_text": ("BYTES", (-1, 1)),
}  # fmt: skip
OUTPUTS = {"waveform": ("FP32", (-1, -1))}
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class ModelSignature:
    """One model's inputs and outputs {name: (type, shape with the batch)}, whether it answers in pieces, and which
    version of this project it comes from (None: the public repository)."""

    model: str
    inputs: Tensors
    outputs: Tensors
    decoupled: bool
    rvc_spark: str | None

    def __str__(self) -> str:
        maker = f"rvc-spark {self.rvc_spark}" if self.rvc_spark else "the public repository"
        return f"{self.model}, {'streaming' if self.decoupled else 'whole'}, {maker}"


def read_signature(api: ServerApi, model: str = FRONT_MODEL) -> ModelSignature:
    """Ask a server. Raises the errors of `ServerApi`, TritonModelError when it has no such model."""
    told, config = api.metadata(model), api.config(model)
    parameters = config.get("parameters") or {}
    return ModelSignature(
        model, _tensors(told.get("inputs", [])), _tensors(told.get("outputs", [])),
        bool((config.get("model_transaction_policy") or {}).get("decoupled")),
        (parameters.get("rvc_spark") or {}).get("string_value"),
    )  # fmt: skip


def check_signature(signature: ModelSignature, address: str) -> None:
    """Raises TritonModelError naming every difference from what `spark_tts` promises; more inputs are allowed."""
    wrong = [*_differences("input", INPUTS, signature.inputs), *_differences("output", OUTPUTS, signature.outputs)]
    wrong += [f"one more output, {name}" for name in signature.outputs if name not in OUTPUTS]
    if wrong:
        raise TritonModelError(
            f"the model {signature.model} at {address} is another one: {'; '.join(wrong)}",
            "End that server, or name another with TRITON_SERVER_ADDR and TRITON_SERVER_PORT.",
        )


def _tensors(rows: list[dict[str, Any]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {row["name"]: (row["datatype"], tuple(int(size) for size in row["shape"])) for row in rows}


def _differences(kind: str, expected: Tensors, found: Tensors) -> list[str]:
    wrong = [f"no {kind} {name}" for name in expected if name not in found]
    for name, promise in expected.items():
        if name in found and found[name] != promise:
            wrong.append(f"{kind} {name} is {_shown(found[name])}, expected {_shown(promise)}")
    return wrong


def _shown(tensor: tuple[str, tuple[int, ...]]) -> str:
    return f"{tensor[0]} {list(tensor[1])}"
