"""The files a benchmark converts with: full-size networks with random weights, made once in the real formats.

    FOLDER/voice.pth  other.pth  added_....index  hubert_base/  rmvpe.pt  speech_3.npy ...

Random weights cost what real ones cost, and nobody has to download or own anything. The speech is that of the demo
voice's examples, end to end and repeated.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rvc_spark.audio import read_audio
from rvc_spark.errors import BenchmarkError, OutputError
from rvc_spark.infer.index_build import build_index, standard_name
from rvc_spark.infer.random_encoders import EncoderRecipe, rmvpe_weights, write_encoder, write_tensors
from rvc_spark.infer.random_voice import FULL, TINY, VoiceRecipe, VoiceSizes, write_voice
from rvc_spark.infer.rmvpe_net import RMVPESizes
from rvc_spark.rvc_config import RVCConfig

RATE = 16_000  # Hz, of the speech
INDEX_VECTORS = 20_000  # of ten minutes of training speech, after the usual 20 ms a frame and silence removed
GAP_SECONDS = 0.4  # between two sentences
FORMAT = 1  # of what is in the folder; another number and it is made anew


@dataclass(frozen=True)
class ModelSizes:
    """How large to make everything; `name` keeps sets apart in one folder."""

    name: str
    voice: VoiceSizes
    speakers: int
    encoder: EncoderRecipe
    rmvpe: RMVPESizes
    vectors: int


FULL_SIZE = ModelSizes("full", FULL, 109, EncoderRecipe(), RMVPESizes(), INDEX_VECTORS)
TINY_SIZE = ModelSizes(  # for tests of the benchmark itself; as wide as it must be for v2 features
    "tiny", TINY, 2, EncoderRecipe(8, 768, 12, 32, 1, 8, 16, 4),
    RMVPESizes(levels=1, blocks=1, middle=1, channels=2, rnn_width=8), 120,
)  # fmt: skip
SIZES = {"full": FULL_SIZE, "tiny": TINY_SIZE}


@dataclass(frozen=True)
class ModelSet:
    """Where the files are."""

    voice: Path
    other: Path  # a second voice, to switch to
    index: Path
    hubert: Path
    rmvpe: Path  # the folder of rmvpe.pt

    def config(self) -> dict[str, Any]:
        """What RVCConfig needs to use them."""
        return {"hubert": str(self.hubert), "rmvpe": str(self.rmvpe), "weights": str(self.voice.parent)}


def default_folder() -> Path:
    """Where the files are kept between runs: under TEMP."""
    return RVCConfig().temp_dir / "benchmark"


def make_models(folder: Path, sizes: ModelSizes = FULL_SIZE) -> ModelSet:
    """Make what is not there yet; half a gigabyte at full size. Raises OutputError."""
    folder = folder / f"{sizes.name}_{FORMAT}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = ModelSet(
            voice=folder / "voice.pth", other=folder / "other.pth", hubert=folder / "hubert_base", rmvpe=folder,
            index=folder / standard_name("voice", "v2", sizes.vectors),
        )  # fmt: skip
        for seed, path in enumerate((files.voice, files.other)):
            if not path.is_file():
                write_voice(path, VoiceRecipe(speakers=sizes.speakers, sizes=sizes.voice, seed=seed))
        if not (files.hubert / "config.json").is_file():
            write_encoder(files.hubert, sizes.encoder)
        if not (folder / "rmvpe.pt").is_file():
            write_tensors(folder / "rmvpe.pt", rmvpe_weights(sizes.rmvpe))
        if not files.index.is_file():
            # as far apart as what the encoder gives, whose last layer norm leaves about one per number
            vectors = np.random.default_rng(0).standard_normal((sizes.vectors, 768)).astype(np.float32)
            build_index(vectors, files.index, version="v2")
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error}", "Choose another folder with --folder.") from error
    return files


def speech(seconds: float, folder: Path) -> Path:
    """A file with so many seconds of speech, float32 [N] at 16 kHz. Raises BenchmarkError without the demo's clips."""
    path = folder / f"speech_{seconds:g}.npy"
    if path.is_file():
        return path
    clips = sorted((RVCConfig().demo_dir / "examples").glob("source_*.wav"))
    if not clips:
        raise BenchmarkError("the demo voice's sentences are not there", "Install rvc-spark again.")
    parts = []
    for clip in clips:
        parts += [read_audio(clip, rate=RATE, mono=True).samples, np.zeros(round(GAP_SECONDS * RATE), np.float32)]
    sound = np.resize(np.concatenate(parts), round(seconds * RATE)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part.npy")
    np.save(temporary, sound)
    os.replace(temporary, path)
    return path
