"""The loaded networks of a Spark-TTS checkpoint, and what they run on.

The language model and the decoding half of the codec are loaded when first spoken with; the half that listens, and the
feature network, only when a recording is enrolled.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rvc_spark.audio import Audio
from rvc_spark.errors import AssetError, AudioError, TextError
from rvc_spark.rvc_config import Choice, RVCConfig
from rvc_spark.tts.bicodec import BiCodec, load_bicodec
from rvc_spark.tts.spark_checkpoint import GET, LICENCE_NOTE, SparkFolder, SparkSettingsFile
from rvc_spark.tts.spark_clip import load_reference, normalise_volume, reference_clip
from rvc_spark.tts.spark_decode import WindowedCodec
from rvc_spark.tts.spark_features import FeatureExtractor, load_features
from rvc_spark.tts.spark_generate import Generator, GeneratorStats, TokenRequest, TokenStream
from rvc_spark.tts.spark_lm import lm_precision, load_lm
from rvc_spark.tts.spark_sampling import Sampling
from rvc_spark.tts.spark_settings import SparkSettings
from rvc_spark.tts.spark_speech import SPARK_RATE, SpeechParts, TokenCall
from rvc_spark.tts.spark_tokens import check_words, load_tokenizer
from rvc_spark.tts.spark_voice import MAX_TRANSCRIPT, SparkVoice

SLOTS = 4  # pieces whose tokens are made at once
ROOM = 4_096  # prompt and new tokens of one piece
TRANSCRIBED_SECONDS = 30.0  # longest reference with a transcript: all of it stays in the model's memory
SILENT = 1e-3  # peak, after the volume was normalised by up to 40 dB
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """What each half computes in: the codec in fp16 only on CUDA and when asked for, the language model never."""

    language_model: Choice
    codec: Choice


def choose_precision(config: RVCConfig, device: str) -> Precision:
    """By the setting `precision` and the device, with reasons. "auto" is bf16 for the language model on a GPU."""
    asked = config.precision
    if asked == "auto" and not device.startswith("cuda"):
        return Precision(Choice("fp32", "exact"), Choice("fp32", "exact"))
    if asked == "fp16" and device.startswith("cuda"):
        codec = Choice("fp16", "as set")
    else:
        exact = asked in ("auto", "exact", "fp32")
        codec = Choice("fp32", "exact" if exact else f"{asked} is for the language model")
    return Precision(lm_precision(asked, device), codec)


class TorchLanguageModel:
    """`spark_speech.LanguageModel` over a `Generator` in this process."""

    def __init__(self, generator: Generator, room: int) -> None:
        self._generator, self.room = generator, room

    def generate(self, call: TokenCall, settings: SparkSettings) -> TokenStream:
        """See `spark_speech.LanguageModel`."""
        sampling = Sampling(settings.temperature, settings.top_k, settings.top_p, call.seed)
        return self._generator.submit(
            TokenRequest(call.prompt, sampling, call.limit, call.stop_ids, call.allowed)
        )  # fmt: skip


class SparkNetworks:
    """The networks of a checkpoint folder. Nothing is read before it is needed; `close` frees everything.

    Raises AssetError when made without a complete checkpoint.
    """

    def __init__(self, config: RVCConfig, *, slots: int = SLOTS) -> None:
        self.folder = SparkFolder(config.spark_dir).check()
        self.device = config.device_choice()
        self.precision = choose_precision(config, self.device.value)
        self._slots = slots
        self._lock = threading.RLock()
        self._settings: SparkSettingsFile | None = None
        self._parts: SpeechParts | None = None
        self._generator: Generator | None = None
        self._listening: BiCodec | None = None
        self._features: FeatureExtractor | None = None

    @property
    def told(self) -> str:
        """On what it runs, for people."""
        codec = "" if self.precision.codec.value == "fp32" else f", codec {self.precision.codec}"
        return f"language model {self.precision.language_model} on {self.device}{codec}"

    def parts(self) -> SpeechParts:
        """What speaks. Loads it on first use; raises ModelFileError."""
        with self._lock:
            if self._parts is None:
                tokenizer = load_tokenizer(self.folder.llm)
                codec = load_bicodec(
                    self.folder.bicodec, device=self.device.value, dtype=DTYPES[self.precision.codec.value],
                    parts="decode",
                )  # fmt: skip
                precision = DTYPES[self.precision.language_model.value]
                model = load_lm(self.folder.llm, device=self.device.value, dtype=precision)
                room = min(ROOM, model.config.positions)
                self._generator = Generator(model, slots=self._slots, max_length=room)
                if self.device.value.startswith("cuda"):  # record its graphs now, not in the first sentence
                    self._generator.warm_up(
                        TokenRequest((tokenizer.eos,), Sampling(), 1, tokenizer.speech_stops, tokenizer.speech_ids)
                    )
                self._parts = SpeechParts(
                    tokenizer, TorchLanguageModel(self._generator, room), WindowedCodec(codec)
                )  # fmt: skip
            return self._parts

    def stats(self) -> GeneratorStats | None:
        """What the language model has done since it was loaded; None before that."""
        with self._lock:
            return None if self._generator is None else self._generator.stats()

    def voice_of(self, samples: Sequence[Path | Audio], transcript: str | None) -> SparkVoice:
        """The voice of recordings. Raises AudioError, TextError, AssetError, ModelFileError."""
        if transcript is not None:
            transcript = self._checked(transcript)
        normalise = self.settings().volume_normalize
        loaded = [load_reference(sample, normalise=normalise) for sample in samples]
        wave = np.concatenate(loaded)
        if np.abs(wave).max() < SILENT:
            raise AudioError("the recording is silent", "Choose one in which somebody speaks.")
        if normalise and len(loaded) > 1:
            wave = normalise_volume(wave)
        settings = self.settings()
        clip = reference_clip(wave, SPARK_RATE, settings.ref_segment_duration, settings.latent_hop_length)
        notes = {"licence": LICENCE_NOTE, "seconds": f"{len(wave) / SPARK_RATE:.2f}"}
        with self._lock, torch.inference_mode():
            codec = self._listener()
            heard = torch.from_numpy(clip)[None].to(self.device.value)
            numbers = tuple(int(number) for number in codec.global_tokens(heard).flatten())
            if transcript is None:
                return SparkVoice(numbers, notes=notes)
            if len(wave) > TRANSCRIBED_SECONDS * SPARK_RATE:
                raise AudioError(
                    f"the recording lasts {len(wave) / SPARK_RATE:.1f} s; with a transcript up to "
                    f"{TRANSCRIBED_SECONDS:g} s are taken, because the model keeps all of it in mind",
                    "Cut it (6 to 12 s are best), or enrol it without the transcript.",
                )
            features = self._extractor()([wave])[0][None]
            spoken = tuple(int(number) for number in codec.semantic_tokens(features).flatten())
        return SparkVoice(numbers, spoken, transcript, notes)

    def settings(self) -> SparkSettingsFile:
        """config.yaml of the checkpoint."""
        with self._lock:
            if self._settings is None:
                self._settings = self.folder.settings()
            return self._settings

    def close(self) -> None:
        """Free the networks and end the thread that makes tokens. Using them again loads them again."""
        with self._lock:
            if self._generator is not None:
                self._generator.close()
            self._parts = self._generator = self._listening = self._features = None

    def _listener(self) -> BiCodec:
        if self._listening is None:
            self._listening = load_bicodec(
                self.folder.bicodec, device=self.device.value, dtype=DTYPES[self.precision.codec.value], parts="encode"
            )
        return self._listening

    def _extractor(self) -> FeatureExtractor:
        if self._features is None:
            if not self.folder.has_features:
                raise AssetError(
                    f"a transcript needs the feature network, which is not at {self.folder.wav2vec2}",
                    f"Run: {GET}, or enrol without the transcript.",
                )
            precision = DTYPES[self.precision.codec.value]
            self._features = load_features(self.folder.wav2vec2, device=self.device.value, dtype=precision)
        return self._features

    @staticmethod
    def _checked(transcript: str) -> str:
        if len(transcript) > MAX_TRANSCRIPT:
            raise TextError(
                f"the transcript has {len(transcript):,} characters, the limit is {MAX_TRANSCRIPT:,}",
                "Use a recording of 6 to 12 s and its words.",
            )
        return check_words(transcript, "the transcript")
