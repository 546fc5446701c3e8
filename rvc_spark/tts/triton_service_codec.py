"""The codec behind the models `audio_tokenizer` and `vocoder`: recordings to tokens, tokens to sound.

The public models resample nothing and normalise no volume, so that a clip gives other tokens there than from a file.
Here the volume is normalised as the checkpoint's config.yaml says, unless a request says otherwise; rows of one batch
keep their own lengths, so that no padding leaks into a shorter recording.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rvc_spark.errors import RvcSparkError
from rvc_spark.tts.triton_service_wire import SAMPLE_RATE, Refusal, check_reference, refusal_of, voice_of

if TYPE_CHECKING:
    from rvc_spark.tts.bicodec import BiCodec
    from rvc_spark.tts.spark_features import FeatureExtractor

REMEMBERED_VOICES = 256
MAX_TRANSCRIBED_SECONDS = 30.0
"""Longest recording that is cloned with its transcript: all of its tokens stand in the prompt."""
NO_TOKEN = -1  # fills rows of semantic tokens that are shorter than others of the same request


@dataclass(frozen=True)
class Recording:
    """What a request asks to be turned into tokens.

    samples: float32 [T], empty: the recording `voice` that was sent before. semantic: its semantic tokens as well.
    """

    samples: np.ndarray
    voice: str | None = None
    normalise: bool = True
    semantic: bool = True


@dataclass(frozen=True)
class VoiceTokens:
    """global_tokens int32 [32]; semantic_tokens int32 [T], None where nobody asked for them."""

    global_tokens: np.ndarray
    semantic_tokens: np.ndarray | None


class VoiceMemory:
    """Tokens of the recordings used last, by name and whether their volume was normalised. Safe in threads."""

    def __init__(self, size: int = REMEMBERED_VOICES) -> None:
        self._size = size
        self._voices: OrderedDict[tuple[str, bool], VoiceTokens] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, voice: str, recording: Recording) -> VoiceTokens | None:
        """Tokens that hold what the recording's request asks for, or None."""
        key = (voice, recording.normalise)
        with self._lock:
            found = self._voices.get(key)
            if found is None or (recording.semantic and found.semantic_tokens is None):
                return None
            self._voices.move_to_end(key)
            return found

    def keep(self, voice: str, recording: Recording, tokens: VoiceTokens) -> None:
        """Remember; the voice used least recently is forgotten."""
        with self._lock:
            self._voices[voice, recording.normalise] = tokens
            self._voices.move_to_end((voice, recording.normalise))
            while len(self._voices) > self._size:
                self._voices.popitem(last=False)


class TokenizerService:
    """Recordings to tokens; those heard before are answered from memory.

    features: gives the feature network when semantic tokens are first asked for, None when the server has none.
    seconds, hop: length of the clip that shapes the voice, and of the steps it is cut to, in samples.
    """

    def __init__(
        self, codec: BiCodec, features: Callable[[], FeatureExtractor | None], *, seconds: float = 6.0,
        hop: int = 320,
    ) -> None:
        self._codec, self._features, self._seconds, self._hop = codec, features, seconds, hop
        self.memory = VoiceMemory()

    def remembered(self, recording: Recording) -> VoiceTokens | None:
        """Tokens of a recording heard before, else None. Raises Refusal (UNKNOWN_VOICE) when only its name was sent."""
        if len(recording.samples):
            return self.memory.find(voice_of(recording.samples), recording)
        found = self.memory.find(recording.voice or "", recording)
        if found is None:
            raise Refusal("UNKNOWN_VOICE", "this recording was not sent before, or is forgotten. Send it once more.")
        return found

    def tokenise(self, recordings: Sequence[Recording]) -> list[VoiceTokens | Refusal]:
        """Tokens, or the refusal, of each; a bad recording does not spoil its neighbours' answers."""
        answers: list[VoiceTokens | Refusal | None] = [None] * len(recordings)
        clips: dict[int, np.ndarray] = {}
        for index, recording in enumerate(recordings):
            try:
                clips[index] = self._prepared(recording)
            except Refusal as refusal:
                answers[index] = refusal
        if clips:
            semantic = self._semantic({i: wave for i, wave in clips.items() if recordings[i].semantic})
            globals_ = self._globals(list(clips.values()))
            for (index, _), row in zip(clips.items(), globals_, strict=True):
                tokens = VoiceTokens(row, semantic.get(index))
                self.memory.keep(voice_of(recordings[index].samples), recordings[index], tokens)
                answers[index] = tokens
        return [answer for answer in answers if answer is not None]

    def _prepared(self, recording: Recording) -> np.ndarray:
        """The wave the networks hear, float64 [T]."""
        from rvc_spark.tts.spark_clip import normalise_volume

        samples = check_reference(recording.samples)
        if recording.semantic:
            if self._features() is None:
                raise Refusal(
                    "INVALID_REFERENCE",
                    "this server has no feature network, which a transcript needs. Send no_transcript.",
                )
            if len(samples) > MAX_TRANSCRIBED_SECONDS * SAMPLE_RATE:
                raise Refusal(
                    "INVALID_REFERENCE",
                    f"the reference lasts {len(samples) / SAMPLE_RATE:.1f} s, with a transcript it may last "
                    f"{MAX_TRANSCRIBED_SECONDS:g} s. Send a shorter one, or no_transcript.",
                )
        wave = samples.astype(np.float64)
        try:
            return normalise_volume(wave) if recording.normalise else wave
        except RvcSparkError as error:
            raise refusal_of(error) from error

    def _globals(self, waves: list[np.ndarray]) -> np.ndarray:
        """int32 [rows, 32]: the clips have one length, so they make one batch."""
        import torch

        from rvc_spark.tts.spark_clip import reference_clip

        clips = np.stack([reference_clip(wave, SAMPLE_RATE, self._seconds, self._hop) for wave in waves])
        parameter = next(self._codec.parameters())
        with torch.inference_mode():
            tokens = self._codec.global_tokens(torch.from_numpy(clips).to(parameter.device))
        return tokens.reshape(len(waves), -1).cpu().numpy().astype(np.int32)

    def _semantic(self, waves: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        import torch

        features = self._features() if waves else None
        if features is None:
            return {}
        found = {}
        with torch.inference_mode():
            for index, row in zip(waves, features(list(waves.values())), strict=True):
                tokens = self._codec.semantic_tokens(row.unsqueeze(0))
                found[index] = tokens.reshape(-1).cpu().numpy().astype(np.int32)
        return found


def token_rows(answers: Sequence[VoiceTokens]) -> dict[str, np.ndarray]:
    """global_tokens int32 [B, 32] and, where all have them, semantic_tokens int32 [B, T], filled up with NO_TOKEN."""
    rows = {"global_tokens": np.stack([answer.global_tokens for answer in answers])}
    semantic = [answer.semantic_tokens for answer in answers if answer.semantic_tokens is not None]
    if len(semantic) == len(answers):
        rows["semantic_tokens"] = np.full((len(semantic), max(map(len, semantic))), NO_TOKEN, np.int32)
        for row, tokens in zip(rows["semantic_tokens"], semantic, strict=True):
            row[: len(tokens)] = tokens
    return rows


class VocoderService:
    """Tokens to sound."""

    def __init__(self, codec: BiCodec) -> None:
        self._codec = codec

    def check(self, global_tokens: np.ndarray, semantic_tokens: np.ndarray) -> None:
        """Raises Refusal: no token, one out of range, or not as many as a voice has."""
        for name, tokens, size in (
            ("global_tokens", global_tokens, self._codec.global_size),
            ("semantic_tokens", semantic_tokens, self._codec.semantic_size),
        ):
            if tokens.ndim != 2 or not tokens.size or tokens.min() < 0 or tokens.max() >= size:
                raise Refusal(
                    "INVALID_PARAMETER",
                    f"{name} has the shape {list(tokens.shape)}; it must be [rows, tokens] with ids 0 to {size - 1:,}.",
                )
        if global_tokens.shape != (len(semantic_tokens), self._codec.token_count):
            raise Refusal(
                "INVALID_PARAMETER",
                f"global_tokens has the shape {list(global_tokens.shape)}, it must be "
                f"[{len(semantic_tokens)}, {self._codec.token_count}].",
            )

    def decode(self, global_tokens: np.ndarray, semantic_tokens: np.ndarray) -> np.ndarray:
        """float32 [B, 320 T] from int32 [B, 32] and int32 [B, T]. Raises Refusal as `check`."""
        import torch

        self.check(global_tokens, semantic_tokens)
        device = next(self._codec.parameters()).device
        semantic, voice = (
            torch.from_numpy(np.ascontiguousarray(ids, np.int64)).to(device)
            for ids in (semantic_tokens, global_tokens[:, None])
        )
        with torch.inference_mode():
            wave = self._codec.detokenise(semantic, voice)
        return wave.reshape(len(semantic_tokens), -1).float().cpu().numpy()
