"""What the front model knows from its config.pbtxt: written there once, so that it needs no torch and no checkpoint.

`spark_tts` has the public model's parameters and, behind the name `rvc_spark`, ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvc_spark.errors import ConfigError
from rvc_spark.tts.bicodec_config import BiCodecConfig
from rvc_spark.tts.chunk_schedule import TOKENS_PER_SECOND, ChunkSettings
from rvc_spark.tts.spark_checkpoint import SparkFolder, read_settings

_WAVE_DILATIONS = (1, 3, 9)
_SIDE = 3  # of every kernel of 7: this many frames on either side


@dataclass(frozen=True)
class CodecSizes:
    """reach: tokens on either side a decoded token depends on; the other two: ids are below them."""

    reach: int
    semantic_size: int
    global_size: int


@dataclass(frozen=True)
class FrontSettings:
    """Settings of `spark_tts`.

    tokenizer_folder: of the language model. room: tokens of a prompt and its answer together. chunks: the schedule,
    with the overlap that clients get who do not say otherwise. restricts: whether the language model takes `allowed`.
    """

    tokenizer_folder: Path
    chunks: ChunkSettings
    codec: CodecSizes
    room: int
    restricts: bool


def read_front_settings(config: Mapping[str, Any]) -> FrontSettings:
    """From a model configuration as the server hands it over. Raises ConfigError naming the parameter."""
    told = {name: entry.get("string_value", "") for name, entry in config.get("parameters", {}).items()}

    def number(name: str) -> float:
        try:
            return float(told[name])
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"the parameter {name} of spark_tts is {told.get(name)!r:.60}, no number", "Write the repository anew."
            ) from error

    if number("audio_tokenizer_frame_rate") != TOKENS_PER_SECOND:
        raise ConfigError(
            f"audio_tokenizer_frame_rate is {told['audio_tokenizer_frame_rate']}", f"It is {TOKENS_PER_SECOND}."
        )
    chunks = ChunkSettings(
        first_seconds=number("audio_chunk_duration"), scale=number("audio_chunk_size_scale_factor"),
        max_seconds=number("max_audio_chunk_duration"), overlap_seconds=number("audio_chunk_overlap_duration"),
    )  # fmt: skip
    codec = CodecSizes(int(number("codec_reach")), int(number("semantic_size")), int(number("global_size")))
    folder, restricts = Path(told.get("llm_tokenizer_dir", "")), told.get("language_model") == "torch"
    return FrontSettings(folder, chunks, codec, int(number("room")), restricts)


def codec_sizes(folder: SparkFolder) -> CodecSizes:
    """Sizes of a checkpoint's codec, from its config.yaml alone. Raises ModelFileError."""
    told = read_settings(folder.bicodec / "config.yaml", folder.path)
    config = BiCodecConfig.from_mapping(told.get("audio_tokenizer", {}))
    return CodecSizes(
        codec_reach(config), config.quantizer.codebook_size, math.prod(config.speaker_encoder.fsq_levels)
    )


def codec_reach(config: BiCodecConfig) -> int:
    """What `BiCodec.reach` counts on the network itself: one token's samples followed back through every layer."""
    first, last = -_SIDE, config.samples_per_token - 1 + _SIDE  # samples, through the last convolution
    dilated = _SIDE * sum(_WAVE_DILATIONS)
    for rate, kernel in reversed(list(zip(config.decoder.rates, config.decoder.kernel_sizes, strict=True))):
        padding = (kernel - rate) // 2
        first, last = first - dilated, last + dilated
        first, last = -(-(first + padding - kernel + 1) // rate), (last + padding) // rate
    side = _SIDE + _SIDE * (config.prenet.vocos_num_layers + 1)  # the first convolution, then the backbone
    first, last = first - side, last + side
    for up in reversed(config.prenet.sample_ratios):
        first, last = first - 3 * _SIDE, last + 3 * _SIDE  # a backbone of two blocks
        if up > 1:
            before = up // 2 + up % 2
            first, last = -(-(first + before - 2 * up + 1) // up), (last + before) // up
    return max(-first, last)

