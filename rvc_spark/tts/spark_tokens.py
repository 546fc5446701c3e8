"""Words and sound tokens of Spark-TTS: the tokenizer, the places of the codec's tokens in it, and the prompts.

A prompt is one string without separators; G are 32 global tokens, S the semantic tokens of a reference recording:

    cloning                 task_tts, start_content, TEXT, end_content, start_global, G, end_global
    cloning a transcript    ... TRANSCRIPT TEXT ... G, end_global, start_semantic, S       the model goes on with S
    a voice made to order   task_controllable_tts, start_content, TEXT, end_content, start_style, labels, end_style

Imports no torch: the server's front model builds prompts as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rvc_spark.errors import ConfigError, ModelFileError, TextError

GENDERS = {"female": 0, "male": 1}
LEVELS = {"very_low": 0, "low": 1, "moderate": 2, "high": 3, "very_high": 4}
MAX_TOKENIZER_BYTES = 64 << 20
END_OF_SEQUENCE = "<|im_end|>"

_MARK = re.compile(r"<\|[^<>|]{0,64}\|>")
_CODEC_TOKEN = re.compile(r"<\|bicodec_(semantic|global)_(\d{1,6})\|>")
_CONTROL = (
    "task_tts", "task_controllable_tts", "start_content", "end_content", "start_style_label", "end_style_label",
    "start_global_token", "end_global_token", "start_semantic_token", "end_semantic_token",
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """Consecutive ids: codec token n has id `start + n`."""

    start: int
    count: int

    @property
    def ids(self) -> range:
        """All ids."""
        return range(self.start, self.start + self.count)


@dataclass(frozen=True)
class ControlVoice:
    """A voice made to order. Raises ConfigError naming what is allowed."""

    gender: str = "female"
    pitch: str = "moderate"
    speed: str = "moderate"

    def __post_init__(self) -> None:
        for name, allowed in (("gender", GENDERS), ("pitch", LEVELS), ("speed", LEVELS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"the {name} of a voice made to order is {getattr(self, name)!r:.40}",
                    f"Choose one of {', '.join(allowed)}.",
                )

    def __str__(self) -> str:
        return f"{self.gender}, pitch {self.pitch}, speed {self.speed}"


class SparkTokenizer:
    """The published tokenizer and what it says of the codec's tokens.

    semantic, glob: the two families of codec tokens, checked to be whole and consecutive in this very tokenizer, since
    fine-tunes may place them elsewhere. eos: id that ends a sequence.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        self.semantic, self.glob = _families(vocabulary)
        absent = [name for name in (*_CONTROL, "im_end") if f"<|{name}|>" not in vocabulary]
        if absent:
            raise ModelFileError(
                f"the tokenizer lacks <|{absent[0]}|>, so it is not one of Spark-TTS", "Use the published LLM folder."
            )
        self._control = {name: vocabulary[f"<|{name}|>"] for name in _CONTROL}
        self.eos = vocabulary[END_OF_SEQUENCE]
        self.size = max(vocabulary.values()) + 1
        self._added = tuple(
            sorted(number for text, number in vocabulary.items() if _MARK.fullmatch(text) and number > self.eos)
        )

    def id_of(self, name: str) -> int:
        """Id of a control token such as "start_semantic_token"."""
        return self._control[name]

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt; marks such as <|task_tts|> become their token."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    @cached_property
    def speech_ids(self) -> tuple[range | int, ...]:
        """What may follow while speech is generated: semantic tokens and the marks around them."""
        return (self.semantic.ids, self.id_of("start_semantic_token"), *sorted(self.speech_stops))

    @property
    def speech_stops(self) -> frozenset[int]:
        """What ends speech. Nothing useful follows the end mark, so it saves a step."""
        return frozenset({self.eos, self.id_of("end_semantic_token")})

    @cached_property
    def style_ids(self) -> tuple[int, ...]:
        """What may follow a prompt for a voice made to order, up to its global tokens: marks and values."""
        codec = {*self.semantic.ids, *self.glob.ids}
        return tuple(number for number in self._added if number not in codec)

    def semantic_of(self, ids: Sequence[int]) -> list[int]:
        """Codec numbers of the semantic tokens among ids, in order; everything else is passed over."""
        return [number - self.semantic.start for number in ids if number in self.semantic.ids]

    def globals_of(self, ids: Sequence[int]) -> list[int]:
        """Codec numbers of the global tokens among ids, in order."""
        return [number - self.glob.start for number in ids if number in self.glob.ids]


def load_tokenizer(folder: Path) -> SparkTokenizer:
    """Read LLM/tokenizer.json. Raises ModelFileError: missing, too large, damaged, or not of Spark-TTS."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        size = path.stat().st_size
        if size > MAX_TOKENIZER_BYTES:
            raise ModelFileError(
                f"{path.name} has {size:,} bytes, the limit is {MAX_TOKENIZER_BYTES:,}", "Use the published LLM folder."
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path.name} cannot be read ({error})", "Use the published LLM folder.") from error
    try:
        tokenizer = Tokenizer.from_str(text)
    except BaseException as error:
        if type(error) is not Exception:  # what the package raises for a bad file is of no class of its own
            raise
        raise ModelFileError(
            f"{path.name} is not a tokenizer ({str(error)[:120]})", "Use the published LLM folder."
        ) from error
    return SparkTokenizer(tokenizer)


def clone_prompt(
    text: str, global_tokens: Sequence[int], transcript: str | None = None, semantic_tokens: Sequence[int] = ()
) -> str:
    """The prompt that speaks `text` as the speaker of the tokens.

    transcript: what the reference recording says; even an empty one opens the semantic block, and the model goes on.
    """
    glob = "".join(f"<|bicodec_global_{number}|>" for number in global_tokens)
    prompt = (
        f"<|task_tts|><|start_content|>{transcript or ''}{text}<|end_content|>"
        f"<|start_global_token|>{glob}<|end_global_token|>"
    )
    if transcript is None:
        return prompt
    return prompt + "<|start_semantic_token|>" + "".join(f"<|bicodec_semantic_{number}|>" for number in semantic_tokens)


def control_prompt(text: str, voice: ControlVoice) -> str:
    """The prompt for a voice made to order; the model answers with global tokens of its own."""
    return (
        f"<|task_controllable_tts|><|start_content|>{text}<|end_content|><|start_style_label|>"
        f"<|gender_{GENDERS[voice.gender]}|><|pitch_label_{LEVELS[voice.pitch]}|><|speed_label_{LEVELS[voice.speed]}|>"
        "<|end_style_label|>"
    )


def check_words(text: str, what: str = "the text") -> str:
    """The text, if it holds none of the model's marks. Raises TextError: a mark in a text would be obeyed."""
    if found := _MARK.search(text):
        raise TextError(
            f"{what} holds {found[0]!r:.80} at character {found.start() + 1}, which the model would obey as a command",
            "Remove it, or write it without the bars.",
        )
    return text


def joined_transcript(transcript: str) -> str:
    """A transcript that can stand before a text: with a space after it where the script separates words by spaces."""
    if not transcript or transcript[-1].isspace() or ord(transcript[-1]) >= 0x2E80:
        return transcript
    return transcript + " "


def _families(vocabulary: dict[str, int]) -> tuple[Family, Family]:
    numbers: dict[str, dict[int, int]] = {"semantic": {}, "global": {}}
    for text, place in vocabulary.items():
        if found := _CODEC_TOKEN.fullmatch(text):
            numbers[found[1]][int(found[2])] = place
    families = []
    for name in ("semantic", "global"):
        found = numbers[name]
        start = found.get(0)
        if start is None or any(found.get(number) != start + number for number in range(len(found))):
            raise ModelFileError(
                f"the tokenizer has {len(found):,} {name} tokens that are not consecutive from 0",
                "Use the LLM folder of a Spark-TTS checkpoint.",
            )
        families.append(Family(start, len(found)))
    return families[0], families[1]
