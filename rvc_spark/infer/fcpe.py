"""FCPE (CNChTu 2024) with the weights inside the torchfcpe package: mel front end, conformer network, decoder.

The network is ours, so the package is only a file on disk: nothing of it is imported (it needs torchaudio) and its file
is read as tensors only (the package itself unpickles it unrestricted).

    samples → log mel [T, 128] → two convolutions → L × (optional Performer attention, convolution module) → 360 bins
            → weighted mean of the bins about the strongest → f0

Formulas: the package's network, restated; checked against it with random weights. Every size comes from the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvc_spark.errors import PitchModelError
from rvc_spark.infer.pitch_trackers import HOP, SAMPLE_RATE, package_file
from rvc_spark.safe_load import read_tensors

N_FFT = 1024
MELS = 128
LOG_FLOOR = 1e-5
THRESHOLD = 0.006  # RVC's; the package's own default for this file
HEAD_WIDTH = 64
NEIGHBOURS = 4  # bins on each side of the strongest that share in the mean
WEIGHTS_FILE = "assets/fcpe_c_v001.pt"
FILE_LIMIT = 1 << 30  # bytes; the bundled file has 43 MB


# ---- front end -------------------------------------------------------------------------------------------------------


def slaney_mel_filters() -> np.ndarray:
    """float32 [128, 513]: triangles on Slaney's Auditory Toolbox scale, 0..8000 Hz, each of unit area.

    The scale is linear up to 1000 Hz (200/3 Hz per step) and logarithmic above (27 steps per factor of 6.4).
    """
    knee_hz, knee, log_step = 1000.0, 15.0, math.log(6.4) / 27
    top = knee + math.log(SAMPLE_RATE / 2 / knee_hz) / log_step
    marks = np.linspace(0, top, MELS + 2)
    edges = np.where(marks < knee, marks * 200 / 3, knee_hz * np.exp(log_step * (marks - knee)))
    bins = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clip(min=0)
    return (triangles * 2 / (high - low)).astype(np.float32)


def log_mel(samples: Tensor, filters: Tensor) -> Tensor:
    """float32 [N // 160 + 1, 128] of samples [N]: natural log of mel magnitudes; frame t begins at 160·t - 432."""
    frames = len(samples) // HOP + 1
    left = (N_FFT - HOP) // 2
    right = max((N_FFT - HOP + 1) // 2, N_FFT - len(samples) - left)
    mode = "reflect" if right < len(samples) else "constant"
    padded = F.pad(samples[None], (left, right), mode=mode)
    window = torch.hann_window(N_FFT, device=samples.device)
    spectrum = torch.stft(padded, N_FFT, HOP, window=window, center=False, return_complex=True)[0]
    magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-9)
    mel = torch.log((filters @ magnitude).clamp(min=LOG_FLOOR)).T
    missing = frames - len(mel)
    return torch.cat([mel, mel[-1:].expand(missing, -1)]) if missing > 0 else mel[:frames]


# ---- network ---------------------------------------------------------------------------------------------------------


class PerformerAttention(nn.Module):
    """Self-attention whose softmax kernel is estimated by random features (Choromanski 2021): linear in T."""

    def __init__(self, width: int, heads: int, features: int, normalise: bool) -> None:
        super().__init__()
        self.heads, self.normalise = heads, normalise
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, heads * HEAD_WIDTH) for _ in range(3))
        self.to_out = nn.Linear(heads * HEAD_WIDTH, width)
        self.fast_attention = nn.Module()
        self.fast_attention.register_buffer("projection_matrix", torch.zeros(features, HEAD_WIDTH))

    def _features(self, x: Tensor, query: bool) -> Tensor:
        """[H, T, 64] → [H, T, R], positive, with E[φ(q)·φ(k)] = exp(q·k / √64) up to a factor the ratio cancels."""
        projection = self.fast_attention.projection_matrix
        projected = HEAD_WIDTH**-0.25 * x @ projection.T
        half_square = x.square().sum(-1, keepdim=True) / 2 * HEAD_WIDTH**-0.5
        if query:
            scaled = torch.exp(projected - half_square - projected.amax(-1, keepdim=True)) + 1e-4
        else:
            scaled = torch.exp(projected - half_square + 1e-4)
        return len(projection) ** -0.5 * scaled

    def forward(self, x: Tensor) -> Tensor:
        """float32 [T, W] → [T, W]."""
        projected = (project(x) for project in (self.to_q, self.to_k, self.to_v))
        q, k, v = (y.unflatten(-1, (self.heads, HEAD_WIDTH)).transpose(0, 1) for y in projected)
        if self.normalise:
            q, k = (y / (y.norm(dim=-1, keepdim=True) + 1e-8) for y in (q, k))
        q, k = self._features(q, query=True), self._features(k, query=False)
        mixed = q @ (k.transpose(1, 2) @ v) / (q @ k.sum(1)[..., None] + 1e-8)
        return self.to_out(mixed.transpose(0, 1).flatten(1))


class ConvolutionModule(nn.Module):
    """The conformer's convolution module: [T, W] → [T, W]; widens 4×, gates to 2×, filters each channel over 31 frames.

    `net` keeps the numbering of the file; the empty places are steps without parameters.
    """

    def __init__(self, width: int, inner: int, taps: int) -> None:
        super().__init__()
        depthwise = nn.Module()
        depthwise.conv = nn.Conv1d(inner, inner, taps, padding=taps // 2, groups=inner)
        self.net = nn.ModuleDict(
            {
                "0": nn.LayerNorm(width),
                "2": nn.Conv1d(width, 2 * inner, 1),
                "4": depthwise,
                "6": nn.Conv1d(inner, width, 1),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.glu(self.net["2"](self.net["0"](x).T), dim=0)
        return self.net["6"](F.silu(self.net["4"].conv(y[None])[0])).T


class ConformerLayer(nn.Module):
    """One encoder layer: attention where the file has it, then the convolution module, each added to its input."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, normalise: bool) -> None:
        super().__init__()
        inner, _, taps = weights[f"{prefix}conformer.net.4.conv.weight"].shape
        width = len(weights[f"{prefix}norm.weight"])
        self.norm = nn.LayerNorm(width)
        self.conformer = ConvolutionModule(width, inner, taps)
        self.attn = None
        if f"{prefix}attn.to_q.weight" in weights:
            heads = len(weights[f"{prefix}attn.to_q.weight"]) // HEAD_WIDTH
            features = len(weights[f"{prefix}attn.fast_attention.projection_matrix"])
            self.attn = PerformerAttention(width, heads, features, normalise)

    def forward(self, x: Tensor) -> Tensor:
        if self.attn is not None:
            x = x + self.attn(self.norm(x))
        return x + self.conformer(x)


class FcpeNetwork(nn.Module):
    """Log mel float32 [T, 128] → salience float32 [T, bins] in 0..1."""

    def __init__(self, weights: Mapping[str, Tensor], normalise: bool) -> None:
        super().__init__()
        weights = _canonical(weights)
        width, mels, _ = weights["input_stack.0.weight"].shape
        self.input_stack = nn.Sequential(
            nn.Conv1d(mels, width, 3, padding=1),
            nn.GroupNorm(4, width),
            nn.LeakyReLU(),
            nn.Conv1d(width, width, 3, padding=1),
        )
        self.harmonic_emb = None
        if "harmonic_emb.weight" in weights:
            self.harmonic_emb = nn.Embedding(*weights["harmonic_emb.weight"].shape)
        self.net = nn.Module()
        self.net.encoder_layers = nn.ModuleList()
        while f"net.encoder_layers.{len(self.net.encoder_layers)}.norm.weight" in weights:
            prefix = f"net.encoder_layers.{len(self.net.encoder_layers)}."
            self.net.encoder_layers.append(ConformerLayer(weights, prefix, normalise))
        self.norm = nn.LayerNorm(width)
        self.output_proj = nn.Linear(width, len(weights["output_proj.weight"]))
        self.register_buffer("cent_table", torch.zeros(len(weights["cent_table"])))
        self.load_state_dict(weights)
        self.requires_grad_(False).eval()

    def forward(self, mel: Tensor) -> Tensor:
        x = self.input_stack(mel.T[None])[0].T
        if self.harmonic_emb is not None:
            x = x + self.harmonic_emb.weight[0]
        for layer in self.net.encoder_layers:
            x = layer(x)
        return torch.sigmoid(self.output_proj(self.norm(x)))


def _canonical(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors in one spelling: no dropout wrapper, weight norm folded in fp32, no training-only buffer."""
    table = {name.replace(".conformer.0.", ".conformer."): value for name, value in weights.items()}
    table.pop("gaussian_blurred_cent_mask", None)
    for gain, direction in (
        ("output_proj.weight_g", "output_proj.weight_v"),
        ("output_proj.parametrizations.weight.original0", "output_proj.parametrizations.weight.original1"),
    ):
        if gain in table and direction in table:
            v = table.pop(direction).float()
            table["output_proj.weight"] = table.pop(gain).float() * v / v.norm(dim=1, keepdim=True)
    return table


# ---- decoder and door ------------------------------------------------------------------------------------------------


def decode_salience(salience: Tensor, cent_table: Tensor, f0_min: float, threshold: float = THRESHOLD) -> Tensor:
    """float32 Hz [T] of salience [T, bins]: weighted mean cents over ±4 bins about the strongest.

    Indices beyond an end repeat the end bin. A peak at or under `threshold`, or a result under f0_min, is unvoiced (0).
    """
    peak, strongest = salience.max(dim=1, keepdim=True)
    near = (strongest + torch.arange(-NEIGHBOURS, NEIGHBOURS + 1, device=salience.device)).clamp(0, len(cent_table) - 1)
    share = salience.gather(1, near)
    cents = (share * cent_table[near]).sum(1) / share.sum(1)
    hz = 10 * 2 ** (cents / 1200)
    return torch.where((peak[:, 0] > threshold) & (hz >= f0_min), hz, 0)


class Fcpe:
    """A loaded FCPE. `f0` is what the tracker gives; `mel` and `salience` are the steps before it."""

    def __init__(self, network: FcpeNetwork, f0_min: float, device: str = "cpu") -> None:
        self.network = network.to(device)
        self.filters = torch.from_numpy(slaney_mel_filters()).to(device)
        self.f0_min, self.device = f0_min, device

    @torch.inference_mode()
    def mel(self, samples: np.ndarray) -> Tensor:
        """float32 [N // 160 + 1, 128] of samples [N] at 16 kHz."""
        return log_mel(torch.from_numpy(np.array(samples, dtype=np.float32)).to(self.device), self.filters)

    @torch.inference_mode()
    def salience(self, mel: Tensor) -> Tensor:
        """float32 [T, 360] of a log mel [T, 128]."""
        return self.network(mel)

    @torch.inference_mode()
    def f0(self, samples: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
        """float64 Hz [N // 160 + 1] of samples [N] at 16 kHz, 0 = unvoiced; computed in float32."""
        salience = self.salience(self.mel(samples))
        hz = decode_salience(salience, self.network.cent_table, self.f0_min, threshold)
        return hz.double().cpu().numpy()


def load_fcpe(device: str = "cpu", path: Path | None = None) -> Fcpe:
    """FCPE from the torchfcpe package, or from a file of the same form.

    Raises MissingPackageError when the package is not installed, PitchModelError when the file is not FCPE's.
    """
    path = path or package_file("torchfcpe", WEIGHTS_FILE)
    refusal = f"{path} does not hold the weights of FCPE"
    advice = "Run: pip install --force-reinstall --no-deps torchfcpe, or choose another pitch method."
    document = read_tensors(path, max_bytes=FILE_LIMIT, what="pitch model", error=PitchModelError)
    weights, settings = _sections(document)
    if weights is None:
        raise PitchModelError(f"{refusal}: it lacks the sections model and config_dict", advice)
    if not all(torch.isfinite(value).all() for value in weights.values()):
        raise PitchModelError(f"{refusal}: some numbers in it are not finite", advice)
    try:
        network = FcpeNetwork(weights, bool(settings.get("use_fa_norm", False)))
        network(torch.zeros(1, MELS))
    except (RuntimeError, KeyError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise PitchModelError(f"{refusal}: names or shapes differ ({reason})", advice) from error
    f0_min = settings.get("f0_min", 32.7)
    if not isinstance(f0_min, int | float) or len(network.cent_table) != network.output_proj.out_features:
        raise PitchModelError(f"{refusal}: its table of cents or its f0_min does not fit", advice)
    return Fcpe(network, float(f0_min), device)


def _sections(document: object) -> tuple[dict[str, Tensor] | None, dict[str, object]]:
    """The tensors and the model settings of a checkpoint; None for the tensors when the form is another one."""
    if not isinstance(document, dict):
        return None, {}
    weights, config = document.get("model"), document.get("config_dict")
    settings = config.get("model") if isinstance(config, dict) else None
    if not isinstance(weights, dict) or not isinstance(settings, dict):
        return None, {}
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()):
        return None, {}
    return weights, settings
