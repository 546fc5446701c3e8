"""The folder of a Spark-TTS checkpoint as it is published: what must be there, and its small settings file.

    config.yaml                 sample rate, length of the reference clip
    BiCodec/                    config.yaml, model.safetensors
    LLM/                        config.json, model.safetensors, tokenizer files
    wav2vec2-large-xlsr-53/     config.json, weights; only needed to clone with a transcript
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rvc_spark.errors import AssetError, ModelFileError

LICENCE = "CC-BY-NC-SA-4.0"
LICENCE_NOTE = "Spark-TTS-0.5B weights: CC BY-NC-SA 4.0, non-commercial use, credit SparkAudio, share alike"
GET = f"rvc-spark assets get spark --accept {LICENCE} --unpinned hub"  # nine small files have no published sha256
MAX_SETTINGS_BYTES = 64 << 10
SAMPLE_RATE = 16_000  # Hz; the networks know no other
_LIMITS = {"ref_segment_duration": (0.5, 60.0), "latent_hop_length": (1, 4_096)}
_FILES = ("config.yaml", "BiCodec/config.yaml", "BiCodec/model.safetensors", "LLM/config.json", "LLM/tokenizer.json")
_WAV2VEC2 = "wav2vec2-large-xlsr-53"
_LM_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_FEATURE_WEIGHTS = ("pytorch_model.bin", "model.safetensors")


@dataclass(frozen=True)
class SparkSettingsFile:
    """What inference reads of config.yaml. Seconds; samples at 16 kHz."""

    ref_segment_duration: float = 6.0
    latent_hop_length: int = 320
    volume_normalize: bool = True


@dataclass(frozen=True)
class SparkFolder:
    """A checkpoint folder. Making one touches no file."""

    path: Path

    @property
    def bicodec(self) -> Path:
        """The speech codec."""
        return self.path / "BiCodec"

    @property
    def llm(self) -> Path:
        """The language model and its tokenizer."""
        return self.path / "LLM"

    @property
    def wav2vec2(self) -> Path:
        """The feature network of reference recordings."""
        return self.path / _WAV2VEC2

    def missing(self) -> list[str]:
        """Names of files that are not there; without the feature network, which most voices do not need."""
        absent = [name for name in _FILES if not (self.path / name).is_file()]
        if not any((self.llm / name).is_file() for name in _LM_WEIGHTS):
            absent.append(f"LLM/{_LM_WEIGHTS[0]}")
        return absent

    @property
    def has_features(self) -> bool:
        """Whether a recording can be cloned with its transcript."""
        weights = any((self.wav2vec2 / name).is_file() for name in _FEATURE_WEIGHTS)
        return weights and (self.wav2vec2 / "config.json").is_file()

    def check(self) -> SparkFolder:
        """This folder, if it is complete. Raises AssetError naming what is missing and how to get it."""
        absent = self.missing()
        if absent:
            what = "no Spark-TTS checkpoint" if len(absent) > len(_FILES) else f"{', '.join(absent)} missing"
            raise AssetError(
                f"{what} at {self.path}",
                f"Run: {GET} (3.9 GB; {LICENCE_NOTE}), or set `spark: FOLDER` in rvc_spark.yaml.",
            )
        return self

    def settings(self) -> SparkSettingsFile:
        """config.yaml, with the file it may build on. Raises ModelFileError naming the value and its limit."""
        told = read_settings(self.path / "config.yaml", self.path)
        if told.get("sample_rate", SAMPLE_RATE) != SAMPLE_RATE:
            raise ModelFileError(
                f"config.yaml says sample_rate={told['sample_rate']!r:.40}, only {SAMPLE_RATE} is known",
                "Use the published checkpoint.",
            )
        values: dict[str, Any] = {}
        for name, (low, high) in _LIMITS.items():
            value = told.get(name, getattr(SparkSettingsFile, name))
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ModelFileError(
                    f"config.yaml says {name}={value!r:.40}, it must be {low:g} to {high:g}",
                    "Use the published checkpoint.",
                )
            values[name] = type(getattr(SparkSettingsFile, name))(value)
        volume = told.get("volume_normalize", True)
        if not isinstance(volume, bool):
            raise ModelFileError(f"config.yaml says volume_normalize={volume!r:.40}", "It must be true or false.")
        return SparkSettingsFile(**values, volume_normalize=volume)


def read_settings(path: Path, folder: Path) -> dict[str, Any]:
    """A settings file of a checkpoint merged over its `base_config`, which must lie in the same checkpoint folder.

    Raises ModelFileError: missing, too large, not a mapping, a base outside the folder or one that has a base itself.
    """
    told = _mapping(path)
    base = told.pop("base_config", None)
    if base is None:
        return told
    target = (path.parent / str(base)).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise ModelFileError(
            f"{path.name} builds on {str(base)[:80]!r}, outside its checkpoint folder", "Use the published checkpoint."
        )
    below = _mapping(target)
    if "base_config" in below:
        raise ModelFileError(f"{target.name} builds on yet another file", "Merge the two settings files into one.")
    return _merged(below, told)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_SETTINGS_BYTES:
            raise ModelFileError(
                f"{path.name} has {path.stat().st_size:,} bytes, the limit is {MAX_SETTINGS_BYTES:,}",
                "Check that this is the right file.",
            )
        text = path.read_text(encoding="utf-8")
        if "&" in text and "*" in text:  # aliases can multiply a small file into gigabytes
            raise ModelFileError(f"{path.name} uses YAML aliases", "Write its values out.")
        told = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ModelFileError(f"{path.name} cannot be read ({reason[:120]})", f"Get it again: {GET}.") from error
    if not isinstance(told, dict) or not all(isinstance(key, str) for key in told):
        raise ModelFileError(f"{path.name} is not a mapping of names to values", f"Get it again: {GET}.")
    return told


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
