"""What a BiCodec is built from: every size checked against a bound before anything of that size exists.

The sizes come from `BiCodec/config.yaml`, whose one root key `audio_tokenizer` holds a mapping per part. Only the
numbers named here are taken from it. The module refuses to know torch and files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rvc_spark.errors import ModelFileError

SAMPLE_RATE = 16_000  # Hz; the feature network and the wave generator know no other
MAX_SIZE = 8_192  # of any width; the published codec's widest layer has 4,608
MAX_LAYERS = 64  # published: 12
MAX_STAGES = 8  # of up-sampling; published: 4
MAX_RATE = 64  # of one stage; published: 8
MAX_CODES = 2**20  # entries of a codebook; published: 8,192
_NEXT = "Use the BiCodec folder of the published checkpoint."


@dataclass(frozen=True)
class MelSizes:
    """The mel front end; frequencies in Hz, lengths in samples. `mel_fmax` None is half the rate."""

    sample_rate: int
    n_fft: int
    win_length: int
    hop_length: int
    mel_fmin: float
    mel_fmax: float | None
    num_mels: int


@dataclass(frozen=True)
class EncoderSizes:
    """The feature encoder. A ratio is how many frames become one."""

    input_channels: int
    vocos_dim: int
    vocos_intermediate_dim: int
    vocos_num_layers: int
    out_channels: int
    sample_ratios: tuple[int, ...] = (1, 1)


@dataclass(frozen=True)
class PrenetSizes:
    """A feature decoder: prenet and postnet. A ratio is how many frames one becomes; condition 0 means none."""

    input_channels: int
    vocos_dim: int
    vocos_intermediate_dim: int
    vocos_num_layers: int
    out_channels: int
    condition_dim: int = 0
    sample_ratios: tuple[int, ...] = (1, 1)
    use_tanh_at_final: bool = False


@dataclass(frozen=True)
class WaveSizes:
    """The wave generator: `channels` halve at every stage, time grows by that stage's rate."""

    input_channel: int
    channels: int
    rates: tuple[int, ...]
    kernel_sizes: tuple[int, ...]


@dataclass(frozen=True)
class QuantizerSizes:
    """The semantic codebook."""

    input_dim: int
    codebook_size: int
    codebook_dim: int


@dataclass(frozen=True)
class SpeakerSizes:
    """The speaker encoder; `fsq_levels` is how many steps each quantised dimension has."""

    input_dim: int
    out_dim: int
    latent_dim: int
    token_num: int
    fsq_levels: tuple[int, ...]
    fsq_num_quantizers: int = 1


@dataclass(frozen=True)
class BiCodecConfig:
    """All sizes of a codec, checked one by one and against one another."""

    mel_params: MelSizes
    encoder: EncoderSizes
    decoder: WaveSizes
    quantizer: QuantizerSizes
    speaker_encoder: SpeakerSizes
    prenet: PrenetSizes
    postnet: PrenetSizes

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> BiCodecConfig:
        """Sizes from the `audio_tokenizer` child of config.yaml; keys that are not sizes are passed over.

        Raises:
            ModelFileError: a part or size is missing, of another type, out of bounds, or does not fit the others.
        """
        part = {name: _Fields(mapping, name) for name in cls.__dataclass_fields__}
        config = cls(
            mel_params=_mel(part["mel_params"]),
            encoder=EncoderSizes(**_vocos(part["encoder"])),
            decoder=_wave(part["decoder"]),
            quantizer=QuantizerSizes(
                part["quantizer"].whole("input_dim"),
                part["quantizer"].whole("codebook_size", high=MAX_CODES),
                part["quantizer"].whole("codebook_dim", high=1_024),
            ),
            speaker_encoder=_speaker(part["speaker_encoder"]),
            prenet=_prenet(part["prenet"]),
            postnet=_prenet(part["postnet"]),
        )
        config._check_together()
        return config

    def _check_together(self) -> None:
        width = self.decoder.input_channel
        joints = {
            "encoder.out_channels": (self.encoder.out_channels, "quantizer.input_dim", self.quantizer.input_dim),
            "prenet.input_channels": (self.prenet.input_channels, "quantizer.input_dim", self.quantizer.input_dim),
            "prenet.out_channels": (self.prenet.out_channels, "decoder.input_channel", width),
            "prenet.condition_dim": (self.prenet.condition_dim, "decoder.input_channel", width),
            "speaker_encoder.out_dim": (self.speaker_encoder.out_dim, "decoder.input_channel", width),
            "speaker_encoder.input_dim": (self.speaker_encoder.input_dim, "mel_params.num_mels", self.mel.num_mels),
        }
        for name, (value, other, wanted) in joints.items():
            if value != wanted:
                raise ModelFileError(f"the codec's {name} is {value}, its {other} is {wanted}", _NEXT)
        flat = self.speaker_encoder.latent_dim * self.speaker_encoder.token_num
        if flat > 64 * MAX_SIZE:
            raise ModelFileError(
                f"the codec's latent_dim times token_num is {flat:,}, must be at most {64 * MAX_SIZE:,}", _NEXT
            )

    @property
    def mel(self) -> MelSizes:
        """The mel front end."""
        return self.mel_params

    @property
    def samples_per_token(self) -> int:
        """Samples one semantic token becomes."""
        return math.prod(self.decoder.rates) * math.prod(self.prenet.sample_ratios)


class _Fields:
    """Takes checked values out of one part of the file; `part.name` leads every message."""

    def __init__(self, mapping: Mapping[str, Any], part: str) -> None:
        values = mapping.get(part) if isinstance(mapping, Mapping) else None
        if not isinstance(values, Mapping):
            raise ModelFileError(f"the codec's config.yaml has no mapping {part}", _NEXT)
        self._values, self._part = values, part

    def _wrong(self, name: str, value: Any, wanted: str) -> ModelFileError:
        if isinstance(value, int) and value.bit_length() > 100:
            told = f"an integer of {value.bit_length()} bits"
        elif isinstance(value, list | dict):
            told = f"a {type(value).__name__} of {len(value)} items"
        else:
            told = "missing" if name not in self._values else ascii(value)[:60]
        return ModelFileError(f"the codec's {self._part}.{name} is {told}, must be {wanted}", _NEXT)

    def whole(self, name: str, low: int = 1, high: int = MAX_SIZE, default: int | None = None) -> int:
        value = self._values.get(name, default)
        if type(value) is not int or not low <= value <= high:
            raise self._wrong(name, value, f"a whole number {low} to {high:,}")
        return value

    def wholes(
        self, name: str, low: int, high: int, most: int = MAX_STAGES, default: tuple[int, ...] | None = None
    ) -> tuple[int, ...]:
        value = self._values.get(name, None if default is None else list(default))
        fits = isinstance(value, list) and 1 <= len(value) <= most
        if not fits or not all(type(number) is int and low <= number <= high for number in value):
            raise self._wrong(name, value, f"1 to {most} whole numbers {low} to {high:,}")
        return tuple(value)

    def hertz(self, name: str, high: float, default: float | None = None) -> float:
        value = self._values.get(name, default)
        if type(value) not in (int, float) or not 0 <= value <= high:
            raise self._wrong(name, value, f"0 to {high:g} Hz")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self._values.get(name, False)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None


def _mel(part: _Fields) -> MelSizes:
    rate = part.whole("sample_rate", SAMPLE_RATE, SAMPLE_RATE)
    n_fft = part.whole("n_fft", 16, 16_384)
    low = part.hertz("mel_fmin", rate / 2 - 1)
    return MelSizes(
        sample_rate=rate,
        n_fft=n_fft,
        win_length=part.whole("win_length", 2, n_fft),
        hop_length=part.whole("hop_length", 1, n_fft),
        mel_fmin=low,
        mel_fmax=max(part.hertz("mel_fmax", rate / 2), low + 1) if part.has("mel_fmax") else None,
        num_mels=part.whole("num_mels", 1, 1_024),
    )


def _vocos(part: _Fields) -> dict[str, Any]:
    return {
        "input_channels": part.whole("input_channels"),
        "vocos_dim": part.whole("vocos_dim"),
        "vocos_intermediate_dim": part.whole("vocos_intermediate_dim"),
        "vocos_num_layers": part.whole("vocos_num_layers", 1, MAX_LAYERS),
        "out_channels": part.whole("out_channels"),
        "sample_ratios": part.wholes("sample_ratios", 1, MAX_RATE, default=(1, 1)),
    }


def _prenet(part: _Fields) -> PrenetSizes:
    condition = part.whole("condition_dim") if part.has("condition_dim") else 0
    return PrenetSizes(**_vocos(part), condition_dim=condition, use_tanh_at_final=part.flag("use_tanh_at_final"))


def _wave(part: _Fields) -> WaveSizes:
    rates = part.wholes("rates", 1, MAX_RATE)
    kernels = part.wholes("kernel_sizes", 1, 4 * MAX_RATE)
    channels = part.whole("channels")
    if len(kernels) != len(rates) or channels % 2 ** len(rates):
        raise ModelFileError(
            f"the codec's decoder has {len(rates)} rates, {len(kernels)} kernels and {channels} channels, "
            "which must halve once per rate",
            _NEXT,
        )
    for rate, kernel in zip(rates, kernels, strict=True):
        if kernel < rate or (kernel - rate) % 2:  # else a token would not become exactly its samples
            raise ModelFileError(
                f"the codec's decoder has a kernel of {kernel} for the rate {rate}; an even number more is needed",
                _NEXT,
            )
    return WaveSizes(part.whole("input_channel"), channels, rates, kernels)


def _speaker(part: _Fields) -> SpeakerSizes:
    levels = part.wholes("fsq_levels", 2, 256, most=16)
    if math.prod(levels) > MAX_CODES:
        raise ModelFileError(
            f"the codec's fsq_levels give {math.prod(levels):,} codes, must be at most {MAX_CODES:,}", _NEXT
        )
    return SpeakerSizes(
        input_dim=part.whole("input_dim"),
        out_dim=part.whole("out_dim"),
        latent_dim=part.whole("latent_dim"),
        token_num=part.whole("token_num", 1, 1_024),
        fsq_levels=levels,
        fsq_num_quantizers=part.whole("fsq_num_quantizers", 1, 8, default=1),
    )
