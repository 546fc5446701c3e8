"""What a client may ask of the speech models, and the words in which they refuse.

Inputs have the public names; everything that is ours travels as optional request parameters. A refusal is one line that
starts with a code word, so that clients can act on it; it names the value and the limit, never a path of the server.
Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rvc_spark.errors import (
    AudioError,
    ConfigError,
    NothingSpokenError,
    RvcSparkError,
    TextError,
    VoiceTokensError,
)
from rvc_spark.tts.chunk_schedule import ChunkSettings
from rvc_spark.tts.spark_tokens import ControlVoice

MAX_REFERENCE_SECONDS = 600.0
"""Longest recording taken; 6 s shape the voice, so this only bounds what is copied about."""
MIN_REFERENCE_SAMPLES = 400
"""Shortest, one frame of the feature network. Both are those of a recording from a file."""
MAX_AMPLITUDE = 65_536.0
MAX_PIECES = 1_000_000
SAMPLE_RATE = 16_000
CODES = ("INVALID_TEXT", "NO_SPEECH", "UNKNOWN_VOICE", "INVALID_REFERENCE", "INVALID_PARAMETER", "INTERNAL")

_CODE_OF: tuple[tuple[type[RvcSparkError], str], ...] = (
    (TextError, "INVALID_TEXT"),
    (NothingSpokenError, "NO_SPEECH"),
    (AudioError, "INVALID_REFERENCE"),
    (VoiceTokensError, "INVALID_REFERENCE"),
    (ConfigError, "INVALID_PARAMETER"),
)
_CHUNK_NAMES = {  # parameter -> field of ChunkSettings
    "chunk_seconds": "first_seconds",
    "chunk_scale": "scale",
    "max_chunk_seconds": "max_seconds",
}
_VOICE = re.compile(r"[0-9a-f]{64}")


class Refusal(Exception):
    """The answer to a request is an error. `code` is one of CODES."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(f"{code}: {words}")
        self.code = code


def refusal_of(error: RvcSparkError) -> Refusal:
    """An error of the library in words for a client; what is not the client's doing is only told to the log."""
    for kind, code in _CODE_OF:
        if isinstance(error, kind):
            return Refusal(code, " ".join(str(error).split()))
    return internal_refusal(error)


def internal_refusal(error: BaseException) -> Refusal:
    """For what is the server's own fault: the kind of error, not its words, which may hold paths."""
    return Refusal("INTERNAL", f"the server failed at this request ({type(error).__name__}); its log says more.")


def forwarded_refusal(message: str) -> Refusal:
    """An error that another model of the server answered: as it is when it is one of ours, else INTERNAL."""
    code, colon, words = message.partition(":")
    if colon and code in CODES:
        return Refusal(code, words.strip())
    return Refusal("INTERNAL", "a model of the server failed at this request; its log says more.")


def voice_of(samples: np.ndarray) -> str:
    """Name of a recording: sha256 over its samples as little-endian float32 [T]."""
    return hashlib.sha256(np.ascontiguousarray(samples, "<f4").tobytes()).hexdigest()


@dataclass(frozen=True)
class SpeechRequest:
    """One text to speak, as a client asked for it. None: the server's own setting.

    reference: float32 [T] at 16 kHz, or empty where `voice` names a recording sent before or `control` makes the voice.
    transcript: of the reference; None speaks without it. overlap_seconds: shared by neighbouring chunks.
    temperature, top_k, top_p, seed, max_tokens: of the language model. piece, voice_text: `spark_speech.PartOfText`.
    """

    text: str
    reference: np.ndarray
    transcript: str | None = None
    voice: str | None = None
    control: ControlVoice | None = None
    normalise_volume: bool | None = None
    seed: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    chunks: ChunkSettings = ChunkSettings()
    overlap_seconds: float = 0.0
    piece: int = 0
    voice_text: str | None = None


def read_speech_request(
    inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any], chunks: ChunkSettings
) -> SpeechRequest:
    """A request of `spark_tts`.

    inputs: reference_wav float32 [1, N], reference_wav_len int32 [1, 1], reference_text and target_text bytes [1, 1].
    chunks: the server's own schedule, with the overlap public clients expect.

    Raises Refusal.
    """
    told = Parameters(parameters)
    text, transcript = (_text(inputs, name) for name in ("target_text", "reference_text"))
    voice = told.text("voice")
    if voice is not None and not _VOICE.fullmatch(voice):
        raise Refusal("INVALID_PARAMETER", "voice must be the sha256 of a recording, 64 lower-case hex digits.")
    control = _control(told)
    samples = true_samples(inputs)
    if control is not None or (voice is not None and len(samples) == 1):
        samples = samples[:0]
    else:
        check_reference(samples)
    piece = told.whole("piece") or 0
    if not 0 <= piece < MAX_PIECES:
        raise Refusal("INVALID_PARAMETER", f"piece is {piece}, it must be 0 to {MAX_PIECES - 1:,}.")
    given = {name: told.number(name) for name in (*_CHUNK_NAMES, "overlap_seconds")}
    context = told.text("context")
    overlap = chunks.overlap_seconds if given["overlap_seconds"] is None else given["overlap_seconds"]
    if not 0.0 <= overlap <= 5.0:
        raise Refusal("INVALID_PARAMETER", f"overlap_seconds is {overlap:g}, it must be 0 to 5.")
    shape: dict[str, Any] = {field: given[name] for name, field in _CHUNK_NAMES.items() if given[name] is not None}
    if context is not None:
        shape["context"] = int(context) if re.fullmatch(r"\d{1,6}", context) else context
    try:
        schedule = replace(chunks, overlap_seconds=0.0, **shape)  # the overlap is laid over the finished samples
    except RvcSparkError as error:
        raise refusal_of(error) from error
    request = SpeechRequest(
        text=text, reference=samples, voice=voice, control=control, chunks=schedule, overlap_seconds=overlap,
        transcript=None if told.flag("no_transcript") or control is not None else transcript,
        normalise_volume=told.flag("normalise_volume"), seed=told.whole("seed"), top_k=told.whole("top_k"),
        temperature=told.number("temperature"), top_p=told.number("top_p"), max_tokens=told.whole("max_tokens"),
        piece=piece, voice_text=told.text("voice_text"),
    )  # fmt: skip
    told.check_all_known()
    return request


def true_samples(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """reference_wav without its padding, float32 [T]. Raises Refusal: more than one row, or a length beyond the row."""
    wave, lengths = inputs["reference_wav"], inputs["reference_wav_len"].reshape(-1)
    if wave.ndim != 2 or wave.shape[0] != 1 or len(lengths) != 1:
        raise Refusal("INVALID_REFERENCE", f"reference_wav has the shape {list(wave.shape)}, it must be [1, samples].")
    length = int(lengths[0])
    if not 1 <= length <= wave.shape[1]:
        raise Refusal(
            "INVALID_REFERENCE", f"reference_wav_len is {length}, the wave has {wave.shape[1]:,} samples."
        )
    return np.ascontiguousarray(wave[0, :length], np.float32)


def check_reference(samples: np.ndarray) -> np.ndarray:
    """The samples, if they can be a voice. Raises Refusal: too short, too long, or not finite."""
    if not MIN_REFERENCE_SAMPLES <= len(samples) <= MAX_REFERENCE_SECONDS * SAMPLE_RATE:
        raise Refusal(
            "INVALID_REFERENCE",
            f"the reference lasts {len(samples) / SAMPLE_RATE:,.3f} s, it must be "
            f"{MIN_REFERENCE_SAMPLES / SAMPLE_RATE:g} to {MAX_REFERENCE_SECONDS:g} s; 6 s of clear speech are best.",
        )
    if not np.abs(samples).max() <= MAX_AMPLITUDE:  # also where it is not a number
        raise Refusal(
            "INVALID_REFERENCE", f"the reference holds samples that are not finite or beyond {MAX_AMPLITUDE:g}."
        )
    return samples


class Parameters:
    """Takes a request's parameters by name and kind; numbers may come as text, because gRPC knows no floats there.

    Raises Refusal (INVALID_PARAMETER) naming the value.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)
        self._known: set[str] = set()

    def text(self, name: str) -> str | None:
        """A string."""
        return self._taken(name, str, "a string")

    def flag(self, name: str) -> bool | None:
        """True or false."""
        return self._taken(name, _as_flag, "true or false")

    def whole(self, name: str) -> int | None:
        """A whole number of at most 64 bits."""
        return self._taken(name, _as_whole, "a whole number")

    def number(self, name: str) -> float | None:
        """A finite number."""
        return self._taken(name, _as_number, "a number")

    def check_all_known(self) -> None:
        """Raises Refusal for a parameter nobody took: a misspelt one must not be passed over in silence."""
        strange = sorted(
            name for name in self._values if name not in self._known and not name.startswith(("triton_", "binary_"))
        )
        if strange:
            raise Refusal(
                "INVALID_PARAMETER", f"{strange[0]!r:.60} is not known; known are {', '.join(sorted(self._known))}."
            )

    def _taken(self, name: str, convert: Callable[[Any], Any], what: str) -> Any:
        self._known.add(name)
        value = self._values.get(name)
        if value is None:
            return None
        try:
            if convert is str and not isinstance(value, str):
                raise ValueError
            return convert(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise Refusal("INVALID_PARAMETER", f"{name} is {value!r:.60}, it must be {what}.") from error


def read_parameters(told: str) -> dict[str, Any]:
    """A request's parameters as the server hands them over: JSON of names to numbers, texts and flags, or nothing."""
    values = json.loads(told) if told else {}
    return values if isinstance(values, dict) else {}


def _text(inputs: Mapping[str, np.ndarray], name: str) -> str:
    values = inputs[name].reshape(-1)
    if len(values) != 1:
        raise Refusal("INVALID_TEXT", f"{name} holds {len(values)} texts, it must hold one.")
    value = values[0]
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal("INVALID_TEXT", f"{name} is not UTF-8 at byte {error.start}.") from error


def _control(told: Parameters) -> ControlVoice | None:
    given = {name: told.text(name) for name in ("gender", "pitch", "speed")}
    named = {name: value for name, value in given.items() if value is not None}
    try:
        return ControlVoice(**named) if named else None
    except RvcSparkError as error:
        raise refusal_of(error) from error


def _as_flag(value: Any) -> bool:
    word = str(value).lower()
    if word not in ("true", "false", "1", "0"):
        raise ValueError(value)
    return word in ("true", "1")


def _as_whole(value: Any) -> int:
    number = int(value)
    if isinstance(value, bool) or number != float(value) or not -(2**63) <= number < 2**63:
        raise ValueError(value)
    return number


def _as_number(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not np.isfinite(number):
        raise ValueError(value)
    return number
