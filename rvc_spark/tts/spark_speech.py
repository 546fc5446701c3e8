"""A text of any length in one Spark-TTS voice: pieces, their tokens, and sound as soon as it is final.

Works over two interfaces, a language model and a codec, so that the engine in this process and the front model of the
server are the same code. Imports no torch.

    text -> pieces -> prompt -> tokens ... -> windows -> samples, piece after piece, a pause between them
              \\-> the next piece's tokens are asked for as soon as this one can be heard
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from rvc_spark.errors import NothingSpokenError, SpeechError
from rvc_spark.tts.chunk_schedule import ChunkSchedule, Window
from rvc_spark.tts.spark_settings import SAMPLES_PER_TOKEN, SparkSettings
from rvc_spark.tts.spark_tokens import (
    ControlVoice,
    SparkTokenizer,
    check_words,
    clone_prompt,
    control_prompt,
    joined_transcript,
)
from rvc_spark.tts.spark_voice import GLOBAL_COUNT, SparkVoice

SPARK_RATE = 16_000  # Hz
STUCK_TOKENS = 150
"""The same token this often in a row, 3 s of a held sound, is a model that has lost the thread."""
STYLE_TOKENS = 24
"""Marks and values the model may write before the global tokens of a voice made to order."""
MIN_ROOM = 25
"""Semantic tokens that must fit behind a prompt, half a second."""


@dataclass(frozen=True)
class TokenCall:
    """What is asked of the language model. `limit` counts new tokens; `allowed`: what may be chosen."""

    prompt: tuple[int, ...]
    seed: int
    limit: int
    stop_ids: frozenset[int]
    allowed: tuple[range | int, ...]


class Tokens(Protocol):
    """New ids as they are made, without the one that stopped them. `close` ends the work at any time."""

    def __iter__(self) -> Iterator[int]: ...

    def __next__(self) -> int: ...

    def close(self) -> None:
        """Stop making tokens."""

    @property
    def finish(self) -> str | None:
        """ "stop", "length" or "cancelled" once it has ended."""


class LanguageModel(Protocol):
    """Makes tokens; several calls may be under way. `room`: prompt and new tokens together."""

    room: int

    def generate(self, call: TokenCall, settings: SparkSettings) -> Tokens:
        """Begin to make tokens."""


class Codec(Protocol):
    """Makes sound of tokens. `reach`: see `ChunkSchedule`; the sizes are those of its two codebooks."""

    reach: int
    semantic_size: int
    global_size: int

    def utterance(self, global_tokens: Sequence[int]) -> Callable[[Sequence[int], Window], np.ndarray]:
        """A decoder of one utterance: all tokens so far and a window -> float32 [320 * tokens kept]."""


@dataclass(frozen=True)
class SpeechParts:
    """What speaks."""

    tokenizer: SparkTokenizer
    language_model: LanguageModel
    codec: Codec


@dataclass
class SpeechNotes:
    """What happened while a text was spoken. `voice` is known once the first piece has begun."""

    seed: int
    pieces: int
    voice: SparkVoice | None = None
    tokens: int = 0
    retries: int = 0
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PartOfText:
    """Where a text stands in a longer one that is spoken by several calls, so that it sounds as if it were one.

    first: number of its first piece; voice_text: the first piece of the whole, of which a voice made to order is made.
    """

    first: int = 0
    voice_text: str | None = None


class SpokenText:
    """Iterator over the sound of a text, float32 [n] at 16 kHz; the joined pieces are the whole.

    voice: an enrolled one, or one made to order, whose tokens come with the first piece and are kept for the others.
    Raises TextError, SpeechError when made; NothingSpokenError while iterating. Closing or dropping it ends all work.
    """

    def __init__(
        self, parts: SpeechParts, text: str, voice: SparkVoice | ControlVoice, settings: SparkSettings,
        part: PartOfText | None = None,
    ) -> None:  # fmt: skip
        speaker = _Speaker(parts, text, voice, settings, part or PartOfText())  # not kept: see `sound`
        self.notes = speaker.notes
        self._sound = speaker.sound()

    def __iter__(self) -> SpokenText:
        return self

    def __next__(self) -> np.ndarray:
        return next(self._sound)

    def close(self) -> None:
        """End all work; tokens that were being made are not made any more."""
        self._sound.close()


class _Speaker:
    """The pieces of one text and the calls that are under way for them."""

    def __init__(
        self, parts: SpeechParts, text: str, voice: SparkVoice | ControlVoice, settings: SparkSettings,
        part: PartOfText,
    ) -> None:  # fmt: skip
        self._parts, self._settings, self._wanted, self._part = parts, settings, voice, part
        self._pieces = settings.pieces(check_words(text))
        seed = secrets.randbits(32) if settings.seed is None else settings.seed
        self.notes = SpeechNotes(seed, len(self._pieces))
        self._running: dict[int, Tokens] = {}
        if isinstance(voice, SparkVoice):
            self.notes.voice = voice.fits(parts.codec.semantic_size, parts.codec.global_size)
            check_words(voice.transcript or "", "the transcript of the voice")
            self._room(self._prompt(voice, self._pieces[0]))

    def sound(self) -> Iterator[np.ndarray]:
        """See `SpokenText`, which holds this generator and not the speaker: what is dropped then ends at once."""
        try:
            voice = self._wanted
            if isinstance(voice, ControlVoice):
                voice = self._made_to_order(voice)
            self.notes.voice = voice
            pause = np.zeros(round(self._settings.pause_seconds * SPARK_RATE), np.float32)
            for number in range(len(self._pieces)):
                if number and len(pause):
                    yield pause
                yield from self._piece(number, voice)
        finally:
            for tokens in self._running.values():
                tokens.close()
            self._running.clear()

    def _piece(self, number: int, voice: SparkVoice) -> Iterator[np.ndarray]:
        """One piece, tried again with another seed while nothing of it has been delivered."""
        problem = ""
        for attempt in range(self._settings.attempts):
            tokens = self._running.pop(number, None) if attempt == 0 else None
            tokens = tokens or self._begin(number, voice, attempt)
            self._running[number] = tokens
            heard = _Heard(self._parts, voice, self._settings)
            try:
                for window in heard.windows(tokens):
                    self._look_ahead(number, voice)
                    yield heard.decode(window)
            finally:
                tokens.close()
                self._running.pop(number, None)
            problem = heard.problem(tokens)
            wanted = bool(heard.semantic) and tokens.finish == "length" and self._settings.max_tokens is not None
            if not problem or heard.delivered or wanted:
                if problem:
                    self.notes.warnings.append(f"piece {number + 1} {problem} and was ended there")
                self._look_ahead(number, voice)
                self.notes.tokens += len(heard.semantic)
                for window in heard.rest():
                    yield heard.decode(window)
                return
            self.notes.retries += 1
        raise NothingSpokenError(
            f"Spark-TTS {problem} in each of {self._settings.attempts} attempts at {self._pieces[number][:60]!r}",
            "Try another seed or voice, or write the text in another way.",
        )

    def _look_ahead(self, number: int, voice: SparkVoice) -> None:
        """Pieces that come next begin as soon as this one can be heard."""
        for coming in range(number + 1, min(number + 1 + self._settings.lookahead, len(self._pieces))):
            if coming not in self._running:
                self._running[coming] = self._begin(coming, voice, 0)

    def _prompt(self, voice: SparkVoice, piece: str) -> tuple[int, ...]:
        transcript = None if voice.transcript is None else joined_transcript(voice.transcript)
        prompt = clone_prompt(piece, voice.global_tokens, transcript, voice.semantic_tokens)
        return tuple(self._parts.tokenizer.encode(prompt))

    def _room(self, prompt: Sequence[int]) -> int:
        room = self._parts.language_model.room - len(prompt)
        if room < MIN_ROOM:
            raise SpeechError(
                f"the prompt has {len(prompt):,} tokens, of {self._parts.language_model.room:,} that fit; "
                "most of them are the reference recording",
                "Enrol the voice from a shorter recording, or without its transcript.",
            )
        return room

    def _begin(self, number: int, voice: SparkVoice, attempt: int) -> Tokens:
        tokenizer = self._parts.tokenizer
        piece = self._pieces[number]
        prompt = self._prompt(voice, piece)
        begin = tokenizer.id_of("start_semantic_token")
        if attempt and voice.transcript is None:  # it would write this mark itself, or else end without a word
            prompt += (begin,)
        limit = min(self._settings.limit_for(piece) + 2, self._room(prompt))  # two marks stand around the speech
        seed = seed_of(self.notes.seed, self._part.first + number, attempt)
        call = TokenCall(prompt, seed, limit, tokenizer.speech_stops, tokenizer.speech_ids)
        return self._parts.language_model.generate(call, self._settings)

    def _made_to_order(self, wanted: ControlVoice) -> SparkVoice:
        """Let the model choose 32 global tokens for the first piece.

        It writes its style marks freely; where the global tokens belong it can write nothing else, so there are always
        32 of them and all are in the codebook.
        """
        tokenizer, model = self._parts.tokenizer, self._parts.language_model
        begin = tokenizer.id_of("start_global_token")
        words = self._pieces[0] if self._part.voice_text is None else check_words(self._part.voice_text)
        prompt = tuple(tokenizer.encode(control_prompt(words, wanted)))
        seed = seed_of(self.notes.seed, -1, 0)
        style = TokenCall(prompt, seed, STYLE_TOKENS, frozenset({begin}), tokenizer.style_ids)
        prompt += (*_drained(model.generate(style, self._settings)), begin)
        numbers = TokenCall(prompt, seed, GLOBAL_COUNT, frozenset(), (tokenizer.glob.ids,))
        found = tokenizer.globals_of(_drained(model.generate(numbers, self._settings)))
        if len(found) != GLOBAL_COUNT:
            raise SpeechError(f"Spark-TTS made {len(found)} of {GLOBAL_COUNT} tokens of a voice", "Try another seed.")
        voice = SparkVoice(tuple(found), notes={"made to order": str(wanted), "seed": str(self.notes.seed)})
        return voice.fits(self._parts.codec.semantic_size, self._parts.codec.global_size)


class _Heard:
    """One attempt at one piece: tokens in, windows out."""

    def __init__(self, parts: SpeechParts, voice: SparkVoice, settings: SparkSettings) -> None:
        self.semantic: list[int] = []
        self._family = parts.tokenizer.semantic
        self._decode = parts.codec.utterance(voice.global_tokens)
        self._schedule = ChunkSchedule(settings.chunks, parts.codec.reach)
        self._stuck = 0

    @property
    def delivered(self) -> bool:
        """Whether anything of it has been handed out."""
        return self._schedule.delivered > 0

    def windows(self, tokens: Tokens) -> Iterator[Window]:
        """Windows that can be decoded while tokens come; ends early when the model is stuck."""
        for number in tokens:
            if number not in self._family.ids:
                continue
            semantic = number - self._family.start
            repeats = bool(self.semantic) and self.semantic[-1] == semantic
            self._stuck = self._stuck + 1 if repeats else 1
            self.semantic.append(semantic)
            if self._stuck >= STUCK_TOKENS:
                return
            yield from self._schedule.push(1)

    def rest(self) -> list[Window]:
        """What is left when the tokens have ended."""
        behind = len(self.semantic) - self._schedule.known
        return self._schedule.push(behind) + self._schedule.finish()

    def decode(self, window: Window) -> np.ndarray:
        """Sound of a window's kept tokens, float32 [320 * n]."""
        sound = self._decode(self.semantic, window)
        expected = (window.keep_stop - window.keep_start) * SAMPLES_PER_TOKEN
        if sound.shape != (expected,) or not np.isfinite(sound).all():
            raise SpeechError(
                f"the codec returned {sound.shape} values for {expected:,} samples, or some that are not finite",
                "Verify the checkpoint: rvc-spark assets verify spark.",
            )
        return sound

    def problem(self, tokens: Tokens) -> str:
        """Why this attempt is not what was asked for, or nothing."""
        if not self.semantic:
            return "said nothing (no semantic token)"
        if self._stuck >= STUCK_TOKENS:
            return f"held one sound for {STUCK_TOKENS} tokens"
        if tokens.finish == "length":
            return f"did not end within {len(self.semantic):,} tokens"
        return ""


def seed_of(seed: int, piece: int, attempt: int) -> int:
    """An independent seed, 0 .. 2^63 - 1, for each attempt at each piece."""
    told = f"{seed}:{piece}:{attempt}".encode()
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest()) >> 1


def _drained(tokens: Tokens) -> list[int]:
    try:
        return list(tokens)
    finally:
        tokens.close()
