"""Writes the model repository a Triton server serves Spark-TTS from.

The templates in `tts/triton/model_repo` have the holes of the public repository, `${name}`. One copy of each model.py
serves both forms: "embedded", where torch runs the language model, and "tensorrt", where TensorRT-LLM does. The front
model is written three times, so that one server answers whole and streamed:

    spark_tts             as `mode` says, "streaming" or "offline"; the name public clients use
    spark_tts_streaming   always streams
    spark_tts_offline     never does
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rvc_spark import __version__
from rvc_spark.errors import ConfigError, OutputError
from rvc_spark.rvc_config import PACKAGE
from rvc_spark.tts.chunk_schedule import ChunkSettings
from rvc_spark.tts.spark_checkpoint import SparkFolder
from rvc_spark.tts.triton_service_settings import codec_sizes

TEMPLATES = PACKAGE / "tts" / "triton" / "model_repo"
FRONT_MODELS = ("spark_tts", "spark_tts_streaming", "spark_tts_offline")
OTHER_MODELS = ("audio_tokenizer", "tensorrt_llm", "vocoder")
MAX_BATCH = 16
ROOM = 4_096
"""Tokens of a prompt and its answer together; a slot of the language model keeps that many."""
PUBLIC_CHUNKS = ChunkSettings(overlap_seconds=0.1)

_HOLE = re.compile(r"\$\{(\w+)\}")
_COUNTS = {"front_instances": 64, "vocoder_instances": 64, "slots": 256}


@dataclass(frozen=True)
class RepositorySettings:
    """How a repository is filled. Raises ConfigError naming value and limit.

    checkpoint: folder as published. form, mode: see above. device: cpu, cuda, cuda:N or auto, where the server runs.
    precision: fp32, bf16 or fp16 as in the settings of the package. chunks: schedule of streamed speech and the overlap
    public clients cross-fade over. front_instances, vocoder_instances: processes; requests overlap within one already.
    slots: utterances whose tokens are made at once; None is 4 on a CPU and 16 otherwise. engine: TensorRT-LLM's.
    paths_at: the checkpoint's and the engine's folders where the server sees them, as in a container.
    """

    checkpoint: Path
    form: Literal["embedded", "tensorrt"] = "embedded"
    mode: Literal["streaming", "offline"] = "streaming"
    device: str = "cpu"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    chunks: ChunkSettings = PUBLIC_CHUNKS
    front_instances: int = 1
    vocoder_instances: int = 1
    slots: int | None = None
    engine: Path | None = None
    paths_at: Mapping[Path, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        allowed = {
            "form": ("embedded", "tensorrt"), "mode": ("streaming", "offline"), "precision": ("fp32", "bf16", "fp16"),
        }  # fmt: skip
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name} of a model repository is {getattr(self, name)!r:.40}", f"Choose {' or '.join(choices)}."
                )
        for name, limit in _COUNTS.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 1 <= value <= limit):
                raise ConfigError(f"{name} of a model repository is {value!r:.40}", f"It must be 1 to {limit}.")
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,2})?", self.device):
            raise ConfigError(f"device of a model repository is {self.device!r:.40}", "Use cpu, cuda, cuda:N or auto.")
        if (self.form == "tensorrt") != (self.engine is not None):
            raise ConfigError("the tensorrt form, and only that, needs the folder of an engine", "Build one first.")


def write_repository(target: Path, settings: RepositorySettings) -> Path:
    """Write a repository; it appears whole or not at all, and replaces an earlier one of ours.

    Raises AssetError without a checkpoint, ModelFileError for a damaged one, OutputError when it cannot be written or
    when something else is in the way.
    """
    files = repository_files(settings)
    target = Path(target).absolute()
    if target.exists() and not _is_ours(target):
        raise OutputError(f"{target} exists and is no model repository of Spark-TTS", "Choose another folder.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            for name, content in files.items():
                path = fresh / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content, encoding="utf-8")
            fresh.chmod(0o755)
            _put_in_place(fresh, target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{target} cannot be written ({error})", "Check space and permissions.") from error
    return target


def repository_files(settings: RepositorySettings) -> dict[str, str]:
    """Relative path -> content of every file. Raises as `write_repository` does for the checkpoint."""
    folder = SparkFolder(Path(settings.checkpoint).absolute()).check()
    files = {}
    for model in OTHER_MODELS:
        values = _values_of(model, folder, settings)
        files[f"{model}/config.pbtxt"] = fill_template(_template(model, "config.pbtxt"), values)
        files[f"{model}/1/model.py"] = _template(model, "1/model.py")
    front = _front_values(folder, settings)
    for model in FRONT_MODELS:
        streams = settings.mode == "streaming" if model == FRONT_MODELS[0] else model.endswith("streaming")
        # A word that ends another request must reach the process that request runs in.
        by_word = "1" if streams and settings.front_instances == 1 else "0"
        values = {**front, "model_name": model, "decoupled_mode": _flag(streams), "ends_by_word": by_word}
        files[f"{model}/config.pbtxt"] = fill_template(_template("spark_tts", "config.pbtxt"), values)
        files[f"{model}/1/model.py"] = _template("spark_tts", "1/model.py")
    return files


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """The template with its `${name}` holes filled. Holes without a value stay as they are: Triton's backends read such
    values as not set. Raises ConfigError for a value without a hole, and for one that would break out of its place."""
    holes = set(_HOLE.findall(template))
    strange = sorted(set(values) - holes)
    if strange:
        raise ConfigError(f"the template has no hole ${{{strange[0]}}}", f"Its holes are {', '.join(sorted(holes))}.")
    for name, value in values.items():
        if any(ord(char) < 32 for char in value) or "${" in value:
            raise ConfigError(f"{name} is {value!r:.80}, which cannot stand in a model configuration", "Rename it.")
    escaped = {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in values.items()}
    return _HOLE.sub(lambda hole: escaped.get(hole[1], hole[0]), template)


def _template(model: str, name: str) -> str:
    return (TEMPLATES / model / name).read_text(encoding="utf-8")


def _is_ours(target: Path) -> bool:
    """Whether it is an earlier repository, or an empty folder."""
    if not target.is_dir():
        return False
    names = {path.name for path in target.iterdir()}
    known = names <= {*FRONT_MODELS, *OTHER_MODELS}
    return not names or (known and (target / FRONT_MODELS[0] / "config.pbtxt").is_file())


def _put_in_place(fresh: Path, target: Path) -> None:
    """Rename the new folder to its name; one that is there is first renamed away."""
    if not target.exists():
        os.replace(fresh, target)
        return
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
    os.replace(target, old / target.name)
    os.replace(fresh, target)
    shutil.rmtree(old, ignore_errors=True)


def _values_of(model: str, folder: SparkFolder, settings: RepositorySettings) -> dict[str, str]:
    common = {"triton_max_batch_size": str(MAX_BATCH), "max_queue_delay_microseconds": "0"}
    torch_runs = {"model_dir": _seen(folder.path, settings), "device": settings.device}
    if model == "audio_tokenizer":
        return {**common, **torch_runs}
    if model == "vocoder":
        return {
            **common, **torch_runs, "precision": settings.precision,
            "vocoder_instance_num": str(settings.vocoder_instances),
        }  # fmt: skip
    common |= {
        "max_queue_size": "0", "decoupled_mode": "True", "logits_datatype": "TYPE_FP32",
        "encoder_input_features_data_type": "TYPE_FP16",
    }  # fmt: skip
    if settings.form == "embedded":
        slots = settings.slots or (4 if settings.device == "cpu" else 16)
        return {
            **common, **torch_runs, "triton_backend": "python", "precision": settings.precision, "slots": str(slots),
            "room": str(_room(folder)),
        }  # fmt: skip
    return {
        **common, "triton_backend": "tensorrtllm", "engine_dir": _seen(settings.engine, settings),
        "max_beam_width": "1", "batching_strategy": "inflight_fused_batching", "exclude_input_in_output": "True",
        "enable_kv_cache_reuse": "False",
        # The public repository lets all requests share 2,560 tokens, so that a third one waits. Here the share of the
        # memory decides.
        "kv_cache_free_gpu_mem_fraction": "0.5", "max_attention_window_size": str(_room(folder)),
    }  # fmt: skip


def _front_values(folder: SparkFolder, settings: RepositorySettings) -> dict[str, str]:
    chunks, sizes = settings.chunks, codec_sizes(folder)
    return {
        "triton_max_batch_size": str(MAX_BATCH), "max_queue_delay_microseconds": "0",
        "bls_instance_num": str(settings.front_instances), "llm_tokenizer_dir": _seen(folder.llm, settings),
        "audio_chunk_duration": repr(float(chunks.first_seconds)),
        "audio_chunk_size_scale_factor": repr(float(chunks.scale)),
        "max_audio_chunk_duration": repr(float(chunks.max_seconds)),
        "audio_chunk_overlap_duration": repr(float(chunks.overlap_seconds)),
        "version": __version__, "codec_reach": str(sizes.reach), "semantic_size": str(sizes.semantic_size),
        "global_size": str(sizes.global_size), "room": str(_room(folder)),
        "language_model": "torch" if settings.form == "embedded" else "tensorrt",
    }  # fmt: skip


def _seen(path: Path | None, settings: RepositorySettings) -> str:
    """The path as the server sees it."""
    path = Path(path or "").absolute()
    for outside, inside in settings.paths_at.items():
        if path.is_relative_to(Path(outside).absolute()):
            below = path.relative_to(Path(outside).absolute()).as_posix()
            return inside if below == "." else f"{inside.rstrip('/')}/{below}"
    return str(path)


def _room(folder: SparkFolder) -> int:
    """ROOM, or what the language model was made for if that is less. The model itself checks its file thoroughly."""
    try:
        told = json.loads((folder.llm / "config.json").read_bytes()[: 1 << 20])
        positions = told.get("max_position_embeddings", ROOM)
    except (OSError, ValueError, AttributeError, RecursionError):
        return ROOM
    return min(ROOM, positions) if type(positions) is int and positions > 0 else ROOM


def _flag(value: bool) -> str:
    return "True" if value else "False"
