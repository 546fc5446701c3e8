"""Content features: what is said, without who says it, as a vector every 20 ms.

The encoder is HuBERT (ContentVec in the RVC world): convolutions over the waveform, then a transformer. v1 voices take
the output of layer 9 projected to 256 numbers, v2 voices the output of the last layer. Sizes are validated first
(`encoder_sizes`), the network is laid out without memory, and the file's tensors must match its names and shapes
exactly. The module refuses to know pitch, voices and segments.

    samples [N] at 16 kHz -> convolutions -> [1, F, C] -> layers 1..9..12 -> [1, F, H] (-> projection -> [1, F, 256])
                                                                              F = (N - 400) // 320 + 1
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from rvc_spark.errors import AudioError, ConfigError, EncoderFileError
from rvc_spark.infer.conv_features import ConvFeatures
from rvc_spark.infer.encoder_sizes import SAMPLE_RATE, WINDOW, EncoderSizes, read_config, sizes_of_weights
from rvc_spark.infer.encoder_weights import build_encoder, read_folder_weights
from rvc_spark.infer.fairseq import read_fairseq_checkpoint
from rvc_spark.infer.half_products import halve_products
from rvc_spark.infer.hubert import Hubert
from rvc_spark.rvc_config import has_bf16
from rvc_spark.safe_load import shown

MAX_SECONDS = 1800  # attention grows with the square of the length; the pipeline cuts long before this

Version = Literal["v1", "v2"]

# How the same encoder is called by different programs, so that a voice's note of its encoder can be compared.
_EMBEDDER_ALIASES = {
    "hubert": "contentvec",
    "hubert_base": "contentvec",
    "hubert-base": "contentvec",
    "content-vec-best": "contentvec",
    "contentvec_base": "contentvec",
    "checkpoint_best_legacy_500": "contentvec",
    "spin_v2": "spin-v2",
    "hubert-base-chinese": "chinese-hubert-base",
    "hubert-base-japanese": "japanese-hubert-base",
    "hubert-base-korean": "korean-hubert-base",
}
KNOWN_EMBEDDERS = frozenset(_EMBEDDER_ALIASES.values()) | {"spin"}
_NEXT = "Download the encoder again, or use RVC's ContentVec."


class ContentEncoder:
    """A loaded content encoder; made by `load_content_encoder`.

    Attributes:
        path: where it came from.
        embedder: what it calls itself ("contentvec", "spin", ...), see `conflict_with`.
        sizes: its validated sizes.
        dims: width of the features per version, {"v1": 256, "v2": 768} for ContentVec; None where it has none.
        device: where it runs; features come back there.
        warnings: what had to be assumed about the file.
    """

    def __init__(
        self, path: Path, model: Hubert, projection: nn.Linear | None, sizes: EncoderSizes, dtype: torch.dtype
    ) -> None:
        self.path = path
        self.sizes = sizes
        self.embedder = canonical_embedder(sizes.embedder or (path.stem if path.is_file() else path.name))
        v1_fits = projection is not None and sizes.v1_layer <= sizes.layers
        self.dims: dict[str, int | None] = {
            "v1": projection.out_features if projection is not None and v1_fits else None,
            "v2": sizes.hidden,
        }
        self.warnings = sizes.warnings
        self._model = model
        self._projection = projection
        weight = model.feature_extractor.conv_layers[0].conv.weight
        self.device, self._dtype = weight.device, weight.dtype
        self._convolve = ConvFeatures(model.feature_extractor, dtype)

    def features(self, samples: np.ndarray | torch.Tensor, version: Version) -> torch.Tensor:
        """Content features of a sound.

        Args:
            samples: [N] at 16 kHz, at least 400 finite numbers.
            version: "v1" (layer 9, or the one the encoder's config names, projected) or "v2" (last layer).

        Returns:
            float32 [1, F, D] on the encoder's device; F = (N - 400) // 320 + 1, D = dims[version].

        Raises:
            AudioError: too short, too long, not finite, not one-dimensional.
            EncoderFileError: the encoder has no features of this version.
        """
        return self.features_of_many([samples], version)

    def features_of_many(self, sounds: Sequence[np.ndarray | torch.Tensor], version: Version) -> torch.Tensor:
        """`features` of several sounds of one length at once: float32 [B, F, D]. Raises as it does."""
        if version not in self.dims:
            raise ConfigError(f"content version is {version!r}", "It must be 'v1' or 'v2'.")
        if version == "v2":
            with torch.no_grad():
                return self._run(sounds, self.sizes.layers).float()
        if self._projection is None or self.dims["v1"] is None:
            why = (
                "no final_proj tensors"
                if self._projection is None
                else f"{self.sizes.layers} layers, v1 needs layer {self.sizes.v1_layer}"
            )
            raise EncoderFileError(f"{shown(self.path.name)} cannot serve v1 voices: it has {why}", _NEXT)
        with torch.no_grad():
            return self._projection(self._run(sounds, self.sizes.v1_layer)).float()

    def hidden(self, samples: np.ndarray | torch.Tensor, layer: int) -> torch.Tensor:
        """Output of one transformer layer, counted from 1 (0 is the input of the first); only those up to it are run.

        Returns:
            float32 [1, F, H].

        Raises:
            AudioError: as `features`.
            ConfigError: the encoder has no such layer.
        """
        if not 0 <= layer <= self.sizes.layers:
            raise ConfigError(f"content layer is {layer}", f"This encoder has layers 0 to {self.sizes.layers}.")
        with torch.no_grad():
            return self._run([samples], layer).float()

    def convolutional(self, samples: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Output of the convolutions, before the transformer: float32 [1, F, C]."""
        with torch.no_grad():
            return self._convolve(self._waveform(samples)).float()

    def conflict_with(self, embedder: str) -> str | None:
        """Why a voice trained on the encoder named `embedder` should not use this one; None if it may.

        A voice that names none was trained before there was a choice, on ContentVec, and is not checked.
        """
        wanted = canonical_embedder(embedder)
        if not wanted or wanted == self.embedder:
            return None
        if self.embedder not in KNOWN_EMBEDDERS and wanted == "contentvec":
            return None  # a folder may have any name, and ContentVec is by far the likeliest thing in it
        return f"the voice was trained on the content encoder {wanted!r}, this one is {self.embedder!r}"

    def _waveform(self, samples: np.ndarray | torch.Tensor) -> torch.Tensor:
        if not isinstance(samples, torch.Tensor):
            samples = np.asarray(samples)
            if samples.dtype.kind != "f":
                raise AudioError(
                    f"content features need samples as floats, got {samples.dtype}", "Scale them to -1..1."
                )
            samples = torch.from_numpy(np.array(samples, dtype=np.float32))  # a copy, for reversed or read-only arrays
        wave = samples.detach().to(self.device, torch.float32)
        if wave.dim() != 1:
            raise AudioError(f"content features need samples [N], got shape {list(wave.shape)}", "Mix to mono first.")
        if wave.shape[0] < WINDOW:
            raise AudioError(
                f"the sound has {wave.shape[0]} samples at 16 kHz, content features need {WINDOW} (25 ms)",
                "Give a longer sound.",
            )
        if wave.shape[0] > MAX_SECONDS * SAMPLE_RATE:
            raise AudioError(
                f"the sound has {wave.shape[0] / SAMPLE_RATE:,.0f} s, content features take at most {MAX_SECONDS} s",
                "Cut it into segments first.",
            )
        if not torch.isfinite(wave).all():
            raise AudioError("the sound has samples that are not finite", "Decode it again.")
        if self.sizes.normalize:
            wave = nn.functional.layer_norm(wave, wave.shape)
        return wave.to(self._dtype)[None]

    def _run(self, sounds: Sequence[np.ndarray | torch.Tensor], layer: int) -> torch.Tensor:
        waves = [self._waveform(samples) for samples in sounds]
        lengths = sorted({wave.shape[1] for wave in waves})
        if len(lengths) > 1:
            raise AudioError(f"sounds of {lengths[0]} to {lengths[-1]} samples at once", "Give those of one length.")
        return self._model.transformed(self._convolve(torch.cat(waves)), layer)


def canonical_embedder(name: str) -> str:
    """One spelling for the several names of an encoder; "" stays ""."""
    plain = name.strip().casefold().removesuffix(".pt").removesuffix(".pth")
    return _EMBEDDER_ALIASES.get(plain, plain)


def load_content_encoder(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    heads: int | None = None,
) -> ContentEncoder:
    """Load a content encoder for inference.

    Args:
        path: a HuggingFace folder (config.json with model.safetensors or pytorch_model.bin) or a fairseq `.pt` file.
        device: torch device to run on.
        dtype: float32 or float64; on CUDA also float16 or bfloat16. On a CPU that multiplies bfloat16, that is the
            type of products only, see `half_products`.
        heads: attention heads of a fairseq file that does not state them (HuBERT-base's 12 are known).

    Raises:
        EncoderFileError: nothing there, damaged, hostile, or an encoder RVC voices cannot use; names what is wrong.
        ConfigError: half precision on a device without it.
    """
    path, device = Path(path), torch.device(device)
    allowed = {torch.float32, torch.float64}
    if device.type == "cuda":
        allowed |= {torch.float16, torch.bfloat16}
    elif device.type == "cpu" and has_bf16("cpu"):
        allowed.add(torch.bfloat16)
    if dtype not in allowed:
        raise ConfigError(f"the content encoder cannot run in {dtype} on {device}", "Use float32 there.")
    try:
        if path.name in ("config.json", "model.safetensors", "pytorch_model.bin"):
            path = path.parent
        is_folder = path.is_dir()
    except (OSError, ValueError) as problem:  # an over-long name or a NUL character
        raise EncoderFileError(f"cannot look at {str(path)[:200]!r}: {problem}", "Check the path.") from None
    if is_folder:
        sizes = read_config(path)
        weights = read_folder_weights(path)
    else:
        checkpoint = read_fairseq_checkpoint(path)
        weights = checkpoint.weights
        sizes = sizes_of_weights(weights, checkpoint.settings, heads)
    model, projection = build_encoder(sizes, weights, shown(path.name))
    products_only = device.type == "cpu" and dtype == torch.bfloat16
    for module in (model, projection):
        if module is not None:
            module.to(device, torch.float32 if products_only else dtype)
    encoder = ContentEncoder(path, model, projection, sizes, dtype)
    if products_only:
        halve_products(model.feature_projection, dtype)
        halve_products(model.encoder, dtype)
    return encoder
