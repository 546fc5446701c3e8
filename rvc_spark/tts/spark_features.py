"""What is said in a reference recording, as a vector every 20 ms: three layers of wav2vec 2.0, averaged.

    samples [N] at 16 kHz -> mean 0, variance 1 -> network -> (h[11] + h[14] + h[16]) / 3 -> [T, 1024]

h[k] is the residual stream behind block k; the blocks above the last one used are not even loaded. Recordings of a list
are done one by one: the reference pads them to one length without a mask, and so makes up ids for the padding. Refuses
to know tokens and the codec.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rvc_spark.errors import AudioError, ModelFileError
from rvc_spark.tts.bicodec import codec_precision
from rvc_spark.tts.bicodec_weights import FileRules, give_weights, read_weights, shapes_of
from rvc_spark.tts.spark_clip import SAMPLE_RATE, checked_reference
from rvc_spark.tts.wav2vec2 import Wav2Vec2, read_sizes

LAYERS = (11, 14, 16)
MAX_SECONDS = 120.0  # attention grows with the square of it, and no prompt of the language model takes as much
VARIANCE_FLOOR = 1e-7
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_NEXT = "Get the wav2vec2-large-xlsr-53 folder of the published checkpoint again."
FILE_RULES = FileRules(
    what="feature network",
    max_bytes=6 * 1024**3,  # the published file has 1.27 GB
    # What training kept for itself, and the norm that no feature passes through.
    passed_over=re.compile(
        r"masked_spec_embed|encoder\.layer_norm\.(weight|bias)"
        r"|quantizer\.(codevectors|weight_proj\.(weight|bias))|project_(hid|q)\.(weight|bias)"
    ),
    next_step=_NEXT,
    prefix="wav2vec2.",
    gain_axis=2,  # the positional convolution has one gain per position
)


class FeatureExtractor:
    """A loaded feature network; made by `load_features`.

    Attributes:
        width: numbers per frame (1024).
        network: what computes them.
        precision: the type it runs in, and why.
    """

    def __init__(self, network: Wav2Vec2, width: int, precision: str) -> None:
        self.width = width
        self.precision = precision
        self.network = network
        weight = next(network.parameters())
        self.device, self._dtype = weight.device, weight.dtype

    def __call__(self, waves: Sequence[np.ndarray]) -> list[Tensor]:
        """Features of recordings.

        Args:
            waves: float [N] at 16 kHz each, of any lengths.

        Returns:
            float32 [(N - 400) // 320 + 1, 1024] for each, on the network's device, whatever the others are.

        Raises:
            AudioError: as `checked_reference`; or longer than `MAX_SECONDS`.
        """
        return [self._features(wave) for wave in waves]

    @torch.inference_mode()
    def _features(self, wave: np.ndarray) -> Tensor:
        wave = checked_reference(wave).astype(np.float64)
        if len(wave) > MAX_SECONDS * SAMPLE_RATE:
            raise AudioError(
                f"the reference recording is {len(wave) / SAMPLE_RATE:.0f} s long, with a transcript "
                f"{MAX_SECONDS:g} s is the limit",
                "Cut out 6 to 30 seconds of speech, or give no transcript.",
            )
        wave = (wave - wave.mean()) / np.sqrt(wave.var() + VARIANCE_FLOOR)
        samples = torch.from_numpy(wave.astype(np.float32)).to(self.device, self._dtype)
        total: Tensor | float = 0.0
        for number, state in enumerate(self.network.states(samples[None])):
            if number in LAYERS:
                total = total + state[0].float()
        return total / len(LAYERS)


def load_features(
    folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> FeatureExtractor:
    """Load the feature network from its folder: config.json and pytorch_model.bin or model.safetensors.

    Args:
        folder: as published; either spelling of weight norm, with or without the `wav2vec2.` prefix.
        device: where it runs.
        dtype: of the network; on a CPU half precision becomes float32, `precision` says so.

    Raises:
        ModelFileError: a file is missing or refused; names the value or tensor and the limit.
    """
    folder = Path(folder)
    sizes = read_sizes(folder / "config.json")
    if sizes.num_hidden_layers < max(LAYERS):
        raise ModelFileError(
            f"the feature network has {sizes.num_hidden_layers} blocks, at least {max(LAYERS)} are needed", _NEXT
        )
    path = next((folder / name for name in _WEIGHT_FILES if (folder / name).exists()), None)
    if path is None:
        raise ModelFileError(f"the feature network's folder has neither {' nor '.join(_WEIGHT_FILES)}", _NEXT)
    dtype, why = codec_precision(device, dtype)
    with torch.device("meta"):
        network = Wav2Vec2(sizes)
    expected = shapes_of(network)
    del network.encoder.layers[max(LAYERS) :]
    give_weights(network, read_weights(path, expected, set(shapes_of(network)), FILE_RULES), dtype, device)
    return FeatureExtractor(network, sizes.hidden_size, why)
