"""BiCodec, the speech codec of Spark-TTS: what is said as 50 ids a second, who says it as 32 ids (arXiv:2503.01710).

    features [B, T, 1024] -> encoder -> nearest code ------------------------------> semantic ids [B, T]
    clip [B, 96000] -> mel -> ECAPA-TDNN -> perceiver -> scalar quantiser ----------> global ids [B, 1, 32]
    semantic ids -> codes -> prenet (conditioned on the voice) -> + voice -> wave generator -> samples [B, 1, 320 T]

Both ways are plain functions of their input: no randomness, no state. A sample depends on the tokens within `reach` of
its own and on no other, which is what lets a stretch of speech be decoded before the rest is known. The module refuses
to know text, language models and sound files.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from rvc_spark.errors import ConfigError, ModelFileError, NothingSpokenError, SpeechError
from rvc_spark.tts.bicodec_config import BiCodecConfig
from rvc_spark.tts.bicodec_convnext import FeatureDecoder, FeatureEncoder
from rvc_spark.tts.bicodec_mel import MelFrontEnd
from rvc_spark.tts.bicodec_quantise import FactorizedQuantizer
from rvc_spark.tts.bicodec_wave import WaveGenerator
from rvc_spark.tts.bicodec_weights import FileRules, give_weights, read_weights, shapes_of
from rvc_spark.tts.spark_checkpoint import read_settings
from rvc_spark.tts.speaker import SpeakerEncoder

MAX_PARAMETERS = 1_000_000_000  # the published codec has 156 million
_NEXT = "Use the BiCodec folder of the published checkpoint."
FILE_RULES = FileRules(
    what="speech codec",
    max_bytes=3 * 1024**3,  # the published file has 626 MB
    # What training kept for itself, and two tables that files may hold or not and that are computed here.
    passed_over=re.compile(
        r"(.+\.)?num_batches_tracked|quantizer\.cluster_size|mel_transformer\.(spectrogram\.window|mel_scale\.fb)"
    ),
    next_step="Get the BiCodec folder of the published checkpoint again.",
)
_AGAIN = "Use a voice or tokens made by this model."

Parts = Literal["all", "decode", "encode", "speaker"]
_TRAINING_ONLY = ("postnet", *(f"speaker_encoder.speaker_encoder.{part}" for part in ("pool", "bn", "linear")))
_LISTENING = ("encoder", "speaker_encoder.speaker_encoder", "speaker_encoder.perceiver_sampler")
_SPEAKING = ("prenet", "decoder", "speaker_encoder.project")
_LEFT_OUT: dict[str, tuple[str, ...]] = {  # what each choice of parts does without
    "all": (),
    "decode": _LISTENING,
    "encode": _SPEAKING,
    "speaker": (*_SPEAKING, "encoder", "quantizer"),
}


class BiCodec(nn.Module):
    """A codec; made by `load_bicodec`.

    Attributes:
        config: its validated sizes.
        precision: the type its networks run in, and why.
        samples_per_token: samples a semantic token becomes (320).
        token_count: global tokens of a voice (32).
        semantic_size, global_size: ids are below these (8192, 4096).
        reach: tokens on either side that the samples of a token depend on (67).
        prenet_reach: the same for the frames `prenet_frames` makes (57).
        wave_reach: the same from those frames to samples (10).
    """

    def __init__(self, config: BiCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.precision = "float32"
        self.encoder = FeatureEncoder(config.encoder)
        self.quantizer = FactorizedQuantizer(config.quantizer)
        self.speaker_encoder = SpeakerEncoder(config.speaker_encoder)
        self.prenet = FeatureDecoder(config.prenet)
        self.postnet = FeatureDecoder(config.postnet)
        self.decoder = WaveGenerator(config.decoder)
        self.mel = MelFrontEnd(config.mel)
        self.samples_per_token = config.samples_per_token
        self.token_count = config.speaker_encoder.token_num
        self.semantic_size = config.quantizer.codebook_size
        self.global_size = self.speaker_encoder.quantizer.quantizer.size
        self.prenet_reach, self.wave_reach, self.reach = self._reaches()

    def _reaches(self) -> tuple[int, int, int]:
        """Prenet, wave generator and both, by following the samples of one token back through every layer."""
        frames = self.samples_per_token // self.decoder.samples_per_frame  # of one token
        heard = self.decoder.inputs_of(0, self.samples_per_token - 1)
        prenet = self.prenet.inputs_of(0, frames - 1)
        wave = (heard[0] // frames, heard[1] // frames)
        whole = self.prenet.inputs_of(*heard)
        return max(-prenet[0], prenet[1]), max(-wave[0], wave[1]), max(-whole[0], whole[1])

    @torch.inference_mode()
    def tokenise(self, features: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Both kinds of ids of a recording.

        Args:
            features: float [B, T, 1024], see `spark_features`.
            clip: float [B, 96000] at 16 kHz, see `spark_clip.reference_clip`.

        Returns:
            int64 [B, T], int32 [B, 1, 32].

        Raises:
            SpeechError: a shape does not fit, or a value is not finite.
        """
        return self.semantic_tokens(features), self.global_tokens(clip)

    @torch.inference_mode()
    def global_tokens(self, clip: Tensor) -> Tensor:
        """The ids of the voice in a clip float [B, N] -> int32 [B, 1, 32]. Raises SpeechError as `tokenise`."""
        self._need("speaker_encoder.perceiver_sampler")
        if clip.dim() != 2 or clip.shape[0] < 1 or clip.shape[1] < self.mel.shortest:
            raise SpeechError(
                f"a reference clip has shape {list(clip.shape)}, needs [voices, samples], "
                f"at least {self.mel.shortest} samples",
                "Give a longer recording.",
            )
        _check_finite(clip, "the reference clip")
        mel = self.mel(clip.to(self._device)).to(self._dtype)
        return self.speaker_encoder.tokenise(mel.transpose(1, 2))

    @torch.inference_mode()
    def semantic_tokens(self, features: Tensor) -> Tensor:
        """The ids of what is said: features float [B, T, 1024] -> int64 [B, T]. Raises SpeechError as `tokenise`."""
        self._need("encoder")
        wanted = self.config.encoder.input_channels
        if features.dim() != 3 or features.shape[2] != wanted or 0 in features.shape[:2]:
            raise SpeechError(
                f"features have shape {list(features.shape)}, need [voices, frames, {wanted}]",
                "Give a recording of half a second or more.",
            )
        _check_finite(features, "the features of the recording")
        z = self.encoder(features.to(self._device, self._dtype).transpose(1, 2))
        return self.quantizer.tokenise(z)

    @torch.inference_mode()
    def detokenise(self, semantic: Tensor, globals_: Tensor) -> Tensor:
        """Ids to speech.

        Args:
            semantic: int [B, T], T >= 1, each below `semantic_size`.
            globals_: int [B, 1, 32], each below `global_size`.

        Returns:
            float32 [B, 1, 320 * T] within -1..1 at 16 kHz, on the codec's device.

        Raises:
            NothingSpokenError: T is 0.
            SpeechError: a shape does not fit, or an id is out of range.
        """
        return self.wave(self.prenet_frames(semantic, globals_))

    @torch.inference_mode()
    def prenet_frames(self, semantic: Tensor, globals_: Tensor) -> Tensor:
        """The first half of `detokenise`: ids to the frames float [B, 1024, T] that `wave` takes. Raises as it does."""
        self._need("prenet")
        self._check_ids(semantic, globals_)
        voice = self.speaker_encoder.detokenise(globals_.to(self._device, torch.int64))
        codes = self.quantizer.detokenise(semantic.to(self._device, torch.int64))
        return self.prenet(codes, voice) + voice[:, :, None]

    @torch.inference_mode()
    def wave(self, frames: Tensor) -> Tensor:
        """The second half of `detokenise`: frames float [B, 1024, T] to samples float32 [B, 1, 320 * T]."""
        self._need("decoder")
        return self.decoder(frames).float()

    def _check_ids(self, semantic: Tensor, globals_: Tensor) -> None:
        if semantic.dim() != 2 or semantic.shape[0] < 1:
            raise SpeechError(f"semantic tokens have shape {list(semantic.shape)}, need [voices, tokens]", _AGAIN)
        if semantic.shape[1] == 0:
            raise NothingSpokenError("there is no semantic token to decode", "Use another text or seed.")
        wanted = (semantic.shape[0], self.config.speaker_encoder.fsq_num_quantizers, self.token_count)
        if tuple(globals_.shape) != wanted:
            raise SpeechError(f"global tokens have shape {list(globals_.shape)}, need {list(wanted)}", _AGAIN)
        for name, ids, size in (("semantic", semantic, self.semantic_size), ("global", globals_, self.global_size)):
            if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
                raise SpeechError(f"{name} tokens have type {ids.dtype}, need whole numbers", _AGAIN)
            low, high = (int(edge) for edge in torch.aminmax(ids))
            if low < 0 or high >= size:
                raise SpeechError(
                    f"a {name} token is {low if low < 0 else high}, must be 0 to {size - 1}", _AGAIN
                )

    def _need(self, part: str) -> None:
        try:
            self.get_submodule(part)
        except AttributeError:
            raise ConfigError(
                f"this codec was loaded without its {part}", "Load it with parts='all', or with the part needed."
            ) from None

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def _check_finite(values: Tensor, what: str) -> None:
    if not torch.isfinite(values).all():
        raise SpeechError(f"{what} holds numbers that are not finite", "Use another recording.")


def codec_precision(device: str | torch.device, dtype: torch.dtype) -> tuple[torch.dtype, str]:
    """The type the codec runs in where `dtype` is asked for, and why."""
    name = str(dtype).removeprefix("torch.")
    if torch.device(device).type == "cpu" and dtype in (torch.float16, torch.bfloat16):
        return torch.float32, f"float32 ({name} is slower and coarser on a CPU)"
    return dtype, name


def lay_out(config: BiCodecConfig) -> BiCodec:
    """A codec without storage, every part of it."""
    with torch.device("meta"):
        return BiCodec(config)


def load_bicodec(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    parts: Parts = "all",
) -> BiCodec:
    """Load a codec from a `BiCodec` folder: config.yaml and model.safetensors.

    Args:
        folder: as published.
        device: where its networks run.
        dtype: of the networks; on a CPU half precision becomes float32, `precision` says so.
        parts: what is kept: "decode" (ids to speech, 385 MB), "encode" (recording to ids), "speaker" (recording to
            global ids), or "all" of it.

    Raises:
        ModelFileError: a file is missing or refused; names the value or tensor and the limit.
    """
    folder = Path(folder)
    told = read_settings(folder / "config.yaml", folder)
    config = BiCodecConfig.from_mapping(told.get("audio_tokenizer", {}))
    dtype, why = codec_precision(device, dtype)
    codec = lay_out(config)
    expected = shapes_of(codec)
    parameters = sum(math.prod(shape) for shape in expected.values())
    if parameters > MAX_PARAMETERS:
        raise ModelFileError(f"the codec would have {parameters:,} parameters, limit {MAX_PARAMETERS:,}", _NEXT)
    for name in (*_TRAINING_ONLY, *_LEFT_OUT[parts]):
        owner, _, part = name.rpartition(".")
        delattr(codec.get_submodule(owner), part)
    weights = read_weights(folder / "model.safetensors", expected, set(shapes_of(codec)), FILE_RULES)
    give_weights(codec, weights, dtype, device)
    codec.precision = why
    return codec
