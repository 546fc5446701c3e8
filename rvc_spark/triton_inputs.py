"""What is sent: the reference voice prepared once, and the request of one sentence.

A prepared voice keeps its bytes and their hash, so that naming it to a server that knows it costs nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from rvc_spark.audio import Audio, AudioSource, StreamResampler, open_audio
from rvc_spark.errors import AudioError, TextError

SAMPLE_RATE = 16_000
"""Hz, of the reference that goes and of the speech that comes."""
MIN_REFERENCE_SECONDS = 0.5
MAX_REFERENCE_SECONDS = 30.0
"""Longest reference that is sent. The first 6 s define the voice; with a transcript the rest is context."""
MAX_TRANSCRIPT_CHARS = 1_000

_TOKEN = re.compile(r"<\|[^|]*\|>")
_SILENCE = np.zeros(1, np.float32)


@dataclass(frozen=True, eq=False)
class Reference:
    """A voice ready to be sent: float32 [T] at 16 kHz, and what is said in it (None: unknown)."""

    samples: np.ndarray
    transcript: str | None = field(default=None)

    @cached_property
    def payload(self) -> bytes:
        """The samples as the wire wants them, float32 little endian."""
        return self.samples.astype("<f4").tobytes()

    @cached_property
    def voice(self) -> str:
        """The name under which a server of this package remembers it: the payload's sha256."""
        return hashlib.sha256(self.payload).hexdigest()


Voice = Reference | Audio | AudioSource
"""What may be given as a voice: a prepared one, a sound, or a file."""


def prepare_reference(source: Voice, transcript: str | None = None) -> Reference:
    """Read, cut and check a recording: channel 0, 16 kHz, at least 0.5 s, the first 30 s of longer ones.

    Only what is sent is ever decoded. A `Reference` keeps its transcript unless another is given.

    Raises AudioError: unreadable, too short, silent, or over 30 s with a transcript (cutting would part the two).
    Raises TextError: the transcript is not a str or over MAX_TRANSCRIPT_CHARS.
    """
    if isinstance(source, Reference):
        return source if transcript is None else Reference(source.samples, _check_transcript(transcript))
    transcript = _check_transcript(transcript)
    samples, whole = _first_seconds(source)
    seconds = len(samples) / SAMPLE_RATE
    if seconds < MIN_REFERENCE_SECONDS:
        raise AudioError(
            f"the reference voice is {seconds:.2f} s long, it must be at least {MIN_REFERENCE_SECONDS} s",
            "Give 3 to 10 seconds of clear speech.",
        )
    if not whole and transcript:
        raise AudioError(
            f"the reference voice is longer than {MAX_REFERENCE_SECONDS:g} s, so its transcript cannot be cut with it",
            "Cut the recording to its first 6 to 30 seconds and write down only what is said there.",
        )
    if not np.any(samples):
        raise AudioError("the reference voice is silent", "Give 3 to 10 seconds of clear speech.")
    return Reference(samples, transcript)


def _first_seconds(source: Audio | AudioSource) -> tuple[np.ndarray, bool]:
    """The first MAX_REFERENCE_SECONDS of channel 0, float32 [T] at 16 kHz, and whether that is all there is."""
    if isinstance(source, Audio):
        limit = round(MAX_REFERENCE_SECONDS * source.rate)
        channel = np.atleast_2d(source.samples)[0]
        converter = StreamResampler(source.rate, SAMPLE_RATE)
        parts = [converter.push(channel[:limit]).reshape(-1), converter.finish().reshape(-1)]
        return np.concatenate(parts), len(channel) <= limit
    with open_audio(source) as reader:
        converter = StreamResampler(reader.rate, SAMPLE_RATE)
        limit, taken = round(MAX_REFERENCE_SECONDS * reader.rate), 0
        parts = []
        whole = True
        for block in reader.blocks():
            kept = block[0, : limit - taken]
            parts.append(converter.push(kept).reshape(-1))
            taken += len(kept)
            if len(kept) < block.shape[1]:
                whole = False
                break
        parts.append(converter.finish().reshape(-1))
    return np.concatenate(parts), whole


def check_no_tokens(text: str, what: str) -> str:
    """The text, if no token of the model is spelt out in it: a server would obey it. Raises TextError."""
    if found := _TOKEN.search(text):
        raise TextError(
            f"{what} holds {found[0][:40]!r}, which the model takes for a command", "Leave out `<|` and `|>`."
        )
    return text


def _check_transcript(transcript: str | None) -> str | None:
    if transcript is None:
        return None
    if not isinstance(transcript, str):
        raise TextError(f"the transcript is of type {type(transcript).__name__}, not str", "Decode it first, as UTF-8.")
    if len(transcript) > MAX_TRANSCRIPT_CHARS:
        raise TextError(
            f"the transcript has {len(transcript):,} characters, 30 s of speech have at most {MAX_TRANSCRIPT_CHARS:,}",
            "Write down only what is said in the recording.",
        )
    if any("\ud800" <= char <= "\udfff" or char == "\0" for char in transcript):
        raise TextError("the transcript holds an unpaired surrogate or a NUL", "Decode it anew, as UTF-8.")
    return check_no_tokens(transcript, "the transcript").strip() or None


@dataclass(frozen=True)
class SentenceRequest:
    """One sentence, in which voice and how; `parameters` is None for servers that are not of this package."""

    model: str
    text: str
    reference: Reference | None
    parameters: Mapping[str, str | int | bool] | None
    ends_by_word: bool = False
    """Whether the model ends a request when another one asks for it (`end_word`)."""

    def end_word(self, request_id: str) -> Any:
        """A request to end the one with that id; it is answered with nothing but its end."""
        word = SentenceRequest(self.model, "", None, {"cancel": request_id}).build(f"{request_id}-end", name_voice=True)
        del word.parameters["triton_enable_empty_final_response"]  # so that no message comes that must be read
        return word

    def build(self, request_id: str, *, name_voice: bool) -> Any:
        """A ModelInferRequest. `name_voice` sends the voice's name instead of its sound."""
        from tritonclient.grpc import service_pb2

        request = service_pb2.ModelInferRequest(model_name=self.model, id=request_id)
        transcript = self.reference.transcript if self.reference else None
        sound = self.reference.payload if self.reference and not name_voice else _SILENCE.tobytes()
        count = len(sound) // 4
        length = np.array([count], "<i4").tobytes()
        for name, kind, shape, content in (
            ("reference_wav", "FP32", (1, count), sound),
            ("reference_wav_len", "INT32", (1, 1), length),
            ("reference_text", "BYTES", (1, 1), _string(transcript or "")),
            ("target_text", "BYTES", (1, 1), _string(self.text)),
        ):
            request.inputs.add(name=name, datatype=kind, shape=shape)
            request.raw_input_contents.append(content)
        request.outputs.add(name="waveform")
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        if self.parameters is not None:
            _set(request, "overlap_seconds", "0")  # chunks that simply follow one another
            for key, value in self.parameters.items():
                _set(request, key, value)
            if self.reference is not None:
                _set(request, "voice", self.reference.voice)
                if transcript is None:
                    _set(request, "no_transcript", True)
        return request


def _string(text: str) -> bytes:
    """A BYTES tensor of one element: its length, then itself as UTF-8."""
    encoded = text.encode("utf-8")
    return len(encoded).to_bytes(4, "little") + encoded


def _set(request: Any, key: str, value: str | int | bool) -> None:
    parameter = request.parameters[key]
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    else:
        parameter.string_param = value
