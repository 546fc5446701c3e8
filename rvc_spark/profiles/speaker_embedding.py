"""Who speaks, as 256 numbers: the GE2E speaker encoder (Wan et al. 2018) with the weights inside Resemblyzer 0.1.4.

    speech at -30 dBFS -> mel power [T, 40] -> windows of 1.6 s -> three LSTM layers -> linear, ReLU -> unit length

The network is ours and the package (Apache-2.0) is only the place of its file: importing it would need `webrtcvad`,
which has no wheel and must be compiled. Pauses are cut by Silero VAD instead, with the same result. An embedding is of
unit length and has no negative number, so a similarity lies in 0..1. Refuses to judge: thresholds are settings.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rvc_spark.errors import ModelFileError
from rvc_spark.profiles.bundled_weights import bundled_file, fill_network, read_weights
from rvc_spark.tts.bicodec_config import MelSizes
from rvc_spark.tts.bicodec_mel import mel_filters

SAMPLE_RATE = 16_000
HOP = 160  # samples: 10 ms
WINDOW_FRAMES = 160  # 1.6 s: what one embedding of the network hears, as in its training
WINDOW_SECONDS = WINDOW_FRAMES * HOP / SAMPLE_RATE
STEP_FRAMES = 40  # 0.4 s from one window to the next
WINDOWS_AT_ONCE = 64
TARGET_RMS = 10 ** (-30 / 20)
DIMENSIONS = 256
INSTALL = "pip install --no-deps resemblyzer"
WEIGHTS_FILE = "pretrained.pt"
_MEL = MelSizes(
    sample_rate=SAMPLE_RATE, n_fft=400, win_length=400, hop_length=HOP, mel_fmin=0.0, mel_fmax=8_000.0, num_mels=40
)


class SpeakerNetwork(nn.Module):
    """Mel power float32 [B, 160, 40] -> embeddings float32 [B, 256] of unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(_MEL.num_mels, 256, num_layers=3, batch_first=True)
        self.linear = nn.Linear(256, DIMENSIONS)

    def forward(self, mel: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(mel)
        raw = torch.relu(self.linear(hidden[-1]))
        return raw / raw.norm(dim=1, keepdim=True).clamp(min=1e-9)


class SpeakerEncoder:
    """Turns speech into embeddings. Pauses say nothing of a voice: see `join_speech`."""

    def __init__(self, network: SpeakerNetwork) -> None:
        self._network = network
        self._window = torch.hann_window(_MEL.win_length)
        self._filters = torch.from_numpy(mel_filters(_MEL))

    def windows(self, speech: np.ndarray, frames: int = WINDOW_FRAMES, step: int = STEP_FRAMES) -> np.ndarray:
        """Embeddings of overlapping windows: float32 [windows, 256] of speech [T] at 16 kHz without its pauses.

        frames: of 10 ms each window hears; step: from one to the next. Speech shorter than a window is followed by
        silence, as in the reference.
        """
        mel = self._mel(_at_training_level(speech))
        missing = frames - len(mel)
        if missing > 0:
            mel = torch.cat([mel, torch.zeros(missing, _MEL.num_mels)])
        views = mel.unfold(0, frames, step).transpose(1, 2)
        with torch.inference_mode():
            found = [self._network(views[at : at + WINDOWS_AT_ONCE]) for at in range(0, len(views), WINDOWS_AT_ONCE)]
        return torch.cat(found).numpy()

    def embed(self, samples: np.ndarray, speech: Sequence[tuple[float, float]] | None = None) -> np.ndarray:
        """float32 [256], unit length: the mean over `windows` of samples [T] at 16 kHz.

        speech: where somebody speaks, in seconds; None hears everything.
        """
        return mean_voice(self.windows(samples if not speech else join_speech(samples, speech)))

    def _mel(self, speech: np.ndarray) -> Tensor:
        samples = torch.from_numpy(np.ascontiguousarray(speech, np.float32))
        spectrum = torch.stft(samples, _MEL.n_fft, HOP, window=self._window, pad_mode="constant", return_complex=True)
        return (self._filters.T @ (spectrum.real.square() + spectrum.imag.square())).T


def join_speech(samples: np.ndarray, speech: Sequence[tuple[float, float]]) -> np.ndarray:
    """The stretches of speech, in seconds, one after the other: float32 [T] at 16 kHz."""
    cut = [samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)] for start, end in speech]
    return np.concatenate(cut) if cut else np.zeros(0, np.float32)


def _at_training_level(speech: np.ndarray) -> np.ndarray:
    """Raised to -30 dBFS where it is quieter; what is louder stays, as in the network's training."""
    rms = float(np.sqrt(np.mean(np.square(speech, dtype=np.float64)))) if len(speech) else 0.0
    return speech * np.float32(TARGET_RMS / rms) if 0 < rms < TARGET_RMS else speech


def mean_voice(embeddings: np.ndarray) -> np.ndarray:
    """float32 [256] of unit length: the direction of the mean of float32 [N, 256]."""
    mean = embeddings.mean(axis=0, dtype=np.float64)
    return (mean / max(float(np.linalg.norm(mean)), 1e-9)).astype(np.float32)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Cosine of two embeddings of unit length: 0..1."""
    return float(np.clip(np.dot(one.astype(np.float64), other.astype(np.float64)), 0.0, 1.0))


@functools.lru_cache(maxsize=1)
def bundled_speaker_encoder() -> SpeakerEncoder:
    """The encoder of the installed package, loaded once a process; errors as `load_speaker_encoder`."""
    return load_speaker_encoder()


def load_speaker_encoder(path: Path | None = None) -> SpeakerEncoder:
    """The speaker encoder from the installed package, or from a file of the same form.

    Raises:
        MissingPackageError: the package is not installed; names the command that installs it without a compiler.
        ModelFileError: the file is damaged or of another network.
    """
    path = path or bundled_file("resemblyzer", WEIGHTS_FILE, INSTALL, "voices cannot be compared")
    document = read_weights(path, "the speaker encoder")
    state = document.get("model_state", document)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelFileError(
            f"{path.name} does not hold the weights of the speaker encoder", f"Run: {INSTALL} --force-reinstall"
        )
    wanted = {name: value for name, value in state.items() if not name.startswith("similarity_")}  # of its training
    return SpeakerEncoder(fill_network(SpeakerNetwork(), wanted, "the speaker encoder", INSTALL))
