"""What happens to a reference recording before the codec: loading, loudness, the clip, wav2vec 2.0 features."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import Any

import numpy as np
import torch

from conformance_checks.record import Recorder
from conformance_checks.spark_folder import SparkRun
from conformance_checks.spark_limits import FLOAT32, FLOAT64, RESAMPLED, activation
from rvc_spark.audio import Audio
from rvc_spark.tts.bicodec_weights import shapes_of
from rvc_spark.tts.spark_clip import load_reference, normalise_volume, reference_clip
from rvc_spark.tts.spark_features import LAYERS, load_features
from rvc_spark.tts.wav2vec2 import Wav2Vec2, read_sizes

FULL_SCALE = np.float32(32_768)
TARGETS = {"out": 0.2, "out05": 0.05}


def check_volume(told: Any, run: SparkRun, record: Recorder) -> None:
    """Loudness, with the reference's way with quiet clips; where it has no defect ours is the same."""
    arrays = run.folder.arrays("volume")
    for name, dtype in told.items():
        given = arrays.given(f"in_{name}")
        for key, target in TARGETS.items():
            result = normalise_volume(given, target, exact_reference=True)
            record.against(arrays, f"{key}_{name}", result, FLOAT64 if dtype == "float64" else FLOAT32)
            record.same(f"{key}_{name}, type", str(result.dtype), dtype)
            if np.abs(given).max() >= 0.1:
                record.compare(f"{key}_{name}, ours", normalise_volume(given, target), result, FLOAT64)


def check_load_audio(told: Any, run: SparkRun, record: Recorder) -> None:
    """First channel, resampling, loudness."""
    arrays = run.folder.arrays("load_audio")
    for name, case in told.items():
        pcm = arrays.given(f"pcm_{name}")
        sound = Audio(np.ascontiguousarray(pcm.T.astype(np.float32) / FULL_SCALE), case["sr"])
        for key, normalise in (("raw", False), ("norm", True)):
            result = load_reference(sound, normalise=normalise)
            record.same(f"{key}_{name}, type", str(result.dtype), case["dtype"])
            record.against(arrays, f"{key}_{name}", result, RESAMPLED)
        whole = case.get("process_audio")
        if whole:
            record.same(f"clip of {name}", [1, *reference_clip(result).shape], whole["ref_shape"])
            record.same(f"clip of {name}, type", f"torch.{reference_clip(result).dtype}", whole["ref_dtype"])


def check_ref_clip(told: Any, run: SparkRun, record: Recorder) -> None:
    """Which samples make the clip of a voice."""
    for length, case in told["default"].items():
        clip = reference_clip(np.arange(int(length), dtype=np.float64)).astype("<i8")
        found = {
            "len": len(clip),
            "first": clip[:3].tolist(),
            "last": clip[-3:].tolist(),
            "wrap_count": int((clip == 0).sum()),
            "sha256": hashlib.sha256(clip.tobytes()).hexdigest(),
        }
        for key, value in case.items():
            record.same(f"{length}, {key}", found.get(key), value)
    for settings, length in told["lengths"].items():
        rate, seconds, hop = settings.split("/")
        record.same(settings, len(reference_clip(np.ones(9), int(rate), float(seconds), int(hop))), length)


def check_wav2vec2_mix(told: Any, run: SparkRun, record: Recorder) -> None:
    """Features of two recordings, each as if alone; and the reference's padded pair, from the bare network."""
    arrays = run.folder.arrays("wav2vec2_mix")
    folder = run.scratch / "wav2vec2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(told["config"]), encoding="utf-8")
    stored = run.folder.tensors("wav2vec2_tiny")
    record.holds("wav2vec2_tiny.safetensors", stored is not None, "is missing")
    shutil.copyfile(run.folder.root / "wav2vec2_tiny.safetensors", folder / "model.safetensors")
    extractor = load_features(folder, device=run.device)
    record.same("layers", list(LAYERS), told["layers"])
    waves = [arrays.given(f"wav{i}") for i in (1, 2)]
    for i, features in enumerate(extractor(waves), 1):
        record.against(arrays, f"feat{i}", features[None], activation(arrays.expected(f"feat{i}")))
    with torch.device("meta"):
        known = set(shapes_of(Wav2Vec2(read_sizes(folder / "config.json"))))
    folded = {key for key in stored or {} if not key.endswith(("weight_g", "weight_v"))}
    unknown = folded - known - {"masked_spec_embed", "encoder.layer_norm.weight", "encoder.layer_norm.bias"}
    record.same("tensors without a place", sorted(unknown), [])
    batch = arrays.expected("feat_batch")
    record.compare("feat_batch", padded_features(extractor, waves), batch, activation(batch))


def padded_features(extractor: Any, waves: list[np.ndarray]) -> torch.Tensor:
    """The reference's batched call: each normalised by itself, then padded with zeros that nothing masks."""
    rows = np.zeros((len(waves), max(map(len, waves))), np.float32)
    for row, wave in zip(rows, waves, strict=True):
        row[: len(wave)] = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
    with torch.inference_mode():
        states = list(extractor.network.states(torch.from_numpy(rows).to(extractor.device)))
    return sum(states[layer] for layer in LAYERS) / len(LAYERS)
