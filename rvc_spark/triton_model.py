"""What a server tells of itself: whether it is up, what its model takes and gives, how often it was asked.

The signature is checked before a first request, so that a wrong model is named and not guessed from its failures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rvc_spark.errors import RvcSparkError, TritonModelError
from rvc_spark.triton_channel import Channel
from rvc_spark.triton_inputs import SAMPLE_RATE

OURS = "rvc_spark"
"""Parameter of the model's configuration by which servers of this package are known; its value is the version."""
DEFAULT_OVERLAP_SECONDS = 0.1
"""What public servers repeat of a chunk in the next, where their configuration does not say."""
MAX_OVERLAP_SECONDS = 5.0
ENDS_BY_WORD = "rvc_spark_cancel"
"""Parameter of the configuration: "1" where the model ends a request that another names in its parameter `cancel`."""

_INPUTS = {"reference_wav": "FP32", "reference_wav_len": "INT32", "reference_text": "BYTES", "target_text": "BYTES"}
_OUTPUTS = {"waveform": "FP32"}


@dataclass(frozen=True)
class TritonModel:
    """The speaking model of a server.

    decoupled: it streams; otherwise a sentence comes in one piece. rvc_spark: version of this package it was built
    with, None for other servers, which take no settings. overlap_samples: what chunks of those share. ends_by_word: it
    ends requests that another request names, which spares the connection.
    """

    name: str
    versions: tuple[str, ...]
    backend: str
    decoupled: bool
    rvc_spark: str | None
    overlap_samples: int
    server: str
    ends_by_word: bool = False

    def __str__(self) -> str:
        kind = f"rvc_spark {self.rvc_spark}" if self.rvc_spark else "public Spark-TTS"
        return f"{self.name} of {kind}, {'streaming' if self.decoupled else 'offline'}, on {self.server}"


@dataclass(frozen=True)
class TritonHealth:
    """live: the server runs. ready: it takes requests. model_ready: the speaking model does. problem: why not."""

    live: bool
    ready: bool
    model_ready: bool
    problem: str | None = None


@dataclass(frozen=True)
class TritonStatistics:
    """Of the speaking model since the server began: counts, and seconds summed over all requests."""

    requests: int
    succeeded: int
    failed: int
    executions: int
    queue_seconds: float
    compute_seconds: float


def read_health(channel: Channel) -> TritonHealth:
    """Never raises for a server that is down: that is the answer."""
    from tritonclient.grpc import service_pb2

    live = ready = False
    try:
        live = channel.ask("ServerLive", service_pb2.ServerLiveRequest(), attempts=1).live
        ready = channel.ask("ServerReady", service_pb2.ServerReadyRequest(), attempts=1).ready
        question = service_pb2.ModelReadyRequest(name=channel.connection.model)
        model_ready = channel.ask("ModelReady", question, attempts=1).ready
    except RvcSparkError as error:
        return TritonHealth(live, ready, False, str(error))
    if model_ready:
        return TritonHealth(live, ready, True)
    return TritonHealth(live, ready, False, f"the model {channel.connection.model} is missing or not loaded")


def read_model(channel: Channel) -> TritonModel:
    """Ask for metadata and configuration, and check the signature.

    Raises TritonModelError: not there, or other inputs and outputs than Spark-TTS. Also what asking raises.
    """
    from tritonclient.grpc import service_pb2

    name = channel.connection.model
    told = channel.ask("ModelMetadata", service_pb2.ModelMetadataRequest(name=name))
    config = channel.ask("ModelConfig", service_pb2.ModelConfigRequest(name=name)).config
    server = channel.ask("ServerMetadata", service_pb2.ServerMetadataRequest())
    _check_signature(told, channel.place)
    decoupled = config.model_transaction_policy.decoupled
    ours = config.parameters[OURS].string_value or None if OURS in config.parameters else None
    return TritonModel(
        name, tuple(told.versions), config.backend or told.platform, decoupled, ours,
        0 if ours or not decoupled else _overlap_samples(config), f"{server.name} {server.version}",
        bool(ours) and ENDS_BY_WORD in config.parameters and config.parameters[ENDS_BY_WORD].string_value == "1",
    )  # fmt: skip


def read_statistics(channel: Channel) -> TritonStatistics:
    """The model's counters, summed over its versions. Raises what asking raises."""
    from tritonclient.grpc import service_pb2

    told = channel.ask("ModelStatistics", service_pb2.ModelStatisticsRequest(name=channel.connection.model))
    rows = [(row.execution_count, row.inference_stats) for row in told.model_stats]
    succeeded, failed_count = (sum(getattr(row, key).count for _, row in rows) for key in ("success", "fail"))
    computing = ("compute_input", "compute_infer", "compute_output")
    return TritonStatistics(
        succeeded + failed_count, succeeded, failed_count, sum(count for count, _ in rows),
        sum(row.queue.ns for _, row in rows) / 1e9,
        sum(getattr(row, key).ns for _, row in rows for key in computing) / 1e9,
    )  # fmt: skip


def _check_signature(told: Any, place: str) -> None:
    """Names and types, and two axes each: the batch and the values."""
    wrong = []
    for what, tensors, wanted in (("input", told.inputs, _INPUTS), ("output", told.outputs, _OUTPUTS)):
        found = {tensor.name: tensor for tensor in tensors}
        for name, kind in wanted.items():
            if name not in found:
                wrong.append(f"no {what} {name}")
            elif found[name].datatype != kind:
                wrong.append(f"{what} {name} is {found[name].datatype} and not {kind}")
            elif len(found[name].shape) != 2:
                wrong.append(f"{what} {name} has the shape {list(found[name].shape)} and not [batch, values]")
    if wrong:
        raise TritonModelError(
            f"the model {told.name} at {place} has another signature than Spark-TTS: {'; '.join(wrong)}",
            "Serve the model repository of this package, or the public one; or name another with `model`.",
        )


def _overlap_samples(config: Any) -> int:
    """From the configuration; holes of the public templates that nobody filled stay as they are: `${name}`."""
    text = config.parameters["audio_chunk_overlap_duration"].string_value if config.parameters else ""
    try:
        seconds = float(text)
    except ValueError:
        seconds = DEFAULT_OVERLAP_SECONDS
    return round(SAMPLE_RATE * seconds) if 0.0 <= seconds <= MAX_OVERLAP_SECONDS else round(SAMPLE_RATE * 0.1)
