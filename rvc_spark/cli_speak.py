"""rvc-spark speak and enroll: who speaks, in whose voice, converted or not, whole or while it is being made."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from rich.markup import escape

from rvc_spark.cli_output import errors, progress_bar, say, screen
from rvc_spark.errors import ConfigError, OutputError, SpeechError, TextError

STANDARD = "-"
NO_VOICE = "none"  # of --voice: the engine's own sound, unconverted
MAX_TEXT_BYTES = 4 << 20  # of a text file or standard input

# Options of the engines: command line name -> (name in the settings, type, engines, help)
_ENGINE_OPTIONS: dict[str, tuple[str, type, str, str]] = {
    "speaker-voice": ("voice", str, "espeak", "voice of the embedded engine, such as en-us, de or en-us+f3"),
    "speed": ("speed", str, "all", "espeak: words per minute; Spark-TTS voice made to order: very_low .. very_high"),
    "pitch": ("pitch", str, "all", "espeak: 0 to 100; Spark-TTS voice made to order: very_low .. very_high"),
    "gender": ("gender", str, "spark, triton", "of a voice made to order: female or male"),
    "temperature": ("temperature", float, "spark, triton", "of sampling; 0 takes the likeliest token"),
    "max-tokens": ("max_tokens", int, "spark, triton", "where a piece of text is ended, 50 are a second"),
    "first-chunk": ("first", float, "spark, triton", "seconds of the first streamed chunk"),
    "context": ("context", str, "spark, triton", "exact, or how many tokens a chunk waits for"),
}


def add_speech(parser: argparse.ArgumentParser) -> None:
    """Options of everything that speaks."""
    group = parser.add_argument_group("speech")
    group.add_argument("--engine", help="auto, triton, spark or espeak (default: auto, or `tts` of the settings)")
    group.add_argument("--reference", help="whose voice speaks: a recording, a profile, or a file of `enroll`")
    group.add_argument("--transcript", help="what the recording says: closer to it, if it fits word for word")
    for option, (_, kind, engines, words) in _ENGINE_OPTIONS.items():
        group.add_argument(f"--{option}", type=kind, help=f"{words} ({engines})", default=None)


def speech_of(arguments: argparse.Namespace, engine: str) -> dict[str, Any]:
    """Settings for the engine that was chosen, from the options that were given."""
    settings: dict[str, Any] = {}
    for option, (name, _, _, _) in _ENGINE_OPTIONS.items():
        value = getattr(arguments, option.replace("-", "_"))
        if value is None:
            continue
        if name in ("speed", "pitch") and engine == "espeak":
            value = _whole(option, value)
        if name == "context":
            value = value if value == "exact" else _whole(option, value)
        if name == "first":
            name = "chunk_seconds" if engine == "triton" else "first_seconds"
        settings[name] = value
    seed = getattr(arguments, "seed", None)
    if seed is not None and engine != "espeak":
        settings["seed"] = seed
    if engine == "triton" and arguments.reference is None:  # a voice made to order has all three attributes
        settings = {"gender": "female", "pitch": "moderate", "speed": "moderate", **settings}
    return settings


def _whole(option: str, value: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise ConfigError(f"--{option} is {value!r:.40}", "Give a whole number.") from error


def text_of(arguments: argparse.Namespace) -> str:
    """The text to speak: the argument, or standard input for `-`. Raises TextError."""
    if arguments.text != STANDARD:
        return arguments.text
    data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise TextError(f"standard input has more than {MAX_TEXT_BYTES:,} bytes", "Pass the text chapter by chapter.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"standard input is not UTF-8 at byte {error.start:,}", "Convert it to UTF-8.") from error


def command_speak(arguments: argparse.Namespace) -> int:
    """A text, spoken and converted; with --voice none only spoken; with --stream while it is being made."""
    from rvc_spark.cli import deliver, encode_options, load_voice, settings_of
    from rvc_spark.rvc_init import get_speakers, init_rvc, speak

    text = text_of(arguments)
    options = encode_options(arguments)
    arguments.output = arguments.output or f"speech.{arguments.format or 'wav'}"
    if arguments.voice == NO_VOICE:
        init_rvc(**({"device": arguments.device} if arguments.device else {}))
        return _stream(arguments, text, options) if arguments.stream else _say(arguments, text, options)
    load_voice(arguments)
    if arguments.stream:
        return _stream(arguments, text, options)
    engine = get_speakers().choose(arguments.engine).value
    target = None if arguments.output == STANDARD else arguments.output
    with progress_bar(arguments.json) as bar:
        speech = speak(
            text, target, **_who(arguments, engine), options=options, on_progress=bar, **settings_of(arguments)
        )
    deliver(speech.conversion, arguments, options, {"sentences": list(speech.sentences)})
    return 0


def command_enroll(arguments: argparse.Namespace) -> int:
    """Recordings become a small speaker file, or with a name a profile."""
    from rvc_spark.cli_profiles import command_enroll_profile, refuse_profile_options
    from rvc_spark.rvc_init import enroll, init_rvc

    if arguments.name is not None:
        return command_enroll_profile(arguments)
    refuse_profile_options(arguments)
    init_rvc()
    result = enroll(arguments.recordings, engine=arguments.engine, transcript=arguments.transcript)
    if not result.success or result.path is None:
        raise SpeechError(f"the voice cannot be enrolled: {result.error}".rstrip("."), "Choose another recording.")
    path = result.path
    if arguments.output:
        path = _moved(path, Path(arguments.output))
    say({"path": str(path), "recordings": result.sample_count}, arguments.json, [
        f"{path}: enrolled from {result.sample_count} recordings; speak with --reference {path}",
    ])  # fmt: skip
    return 0


def _moved(source: Path, target: Path) -> Path:
    import os
    import shutil

    try:
        temporary = target.with_name(f".{target.name}.part")
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written ({error})", "Check the folder and its permissions.") from error
    return target


def _who(arguments: argparse.Namespace, engine: str) -> dict[str, Any]:
    return {
        "engine": arguments.engine, "reference": arguments.reference, "transcript": arguments.transcript,
        "tts": speech_of(arguments, engine),
    }  # fmt: skip


def _say(arguments: argparse.Namespace, text: str, options: Any) -> int:
    from dataclasses import replace

    from rvc_spark.audio import encode_whole
    from rvc_spark.rvc_init import get_speakers, licensed
    from rvc_spark.rvc_init import say as speak_only

    began = time.perf_counter()
    engine = get_speakers().choose(arguments.engine).value
    target = None if arguments.output == STANDARD else arguments.output
    spoken = speak_only(text, target, **_who(arguments, engine), options=options)
    watermark = spoken.watermark
    if target is None:
        refuse_terminal()
        options = licensed(replace(options, format=options.format or "wav"), spoken.licence)
        encoded = encode_whole(spoken.audio, options)
        watermark = encoded.watermark
        sys.stdout.buffer.write(encoded.data)
        sys.stdout.buffer.flush()
    told = _Told(spoken.engine, spoken.audio.seconds, time.perf_counter() - began, None, watermark)
    _tell(arguments, told)
    return 0


def _stream(arguments: argparse.Namespace, text: str, options: Any) -> int:
    """Write sound as it is made: a file that grows under a temporary name, or wav of unknown length to the pipe."""
    from dataclasses import replace

    from rvc_spark.audio import open_pipe, open_writer
    from rvc_spark.cli import settings_of
    from rvc_spark.rvc_init import get_speakers, licensed, stream_speak, stream_speech

    began = time.perf_counter()
    engine = get_speakers().choose(arguments.engine).value
    if arguments.voice == NO_VOICE:
        pieces, why = stream_speech(text, **_who(arguments, engine))
    else:
        pieces = stream_speak(text, **_who(arguments, engine), **settings_of(arguments))
        why = pieces.engines["tts"]
    heard = _Heard(pieces, began, arguments.json)
    licence = get_speakers().engine(engine)[0].licence
    if arguments.output == STANDARD:
        refuse_terminal()
        if options.format not in (None, "wav"):
            raise OutputError(f"{options.format} cannot be streamed to a pipe", "Use wav, or name a file.")
        # 16 bits without dither: a pipe is heard at once and not worked on
        options = replace(licensed(options, licence), sample_format="pcm16", dither=False)
        first = next(heard)
        writer = open_pipe(sys.stdout.buffer, first.rate, 1, options)
        for piece in chain([first], heard):
            writer.write(piece.samples[None])
            sys.stdout.buffer.flush()
        writer.finish()
        sys.stdout.buffer.flush()
    else:
        first = next(heard)
        with open_writer(arguments.output, first.rate, 1, options=licensed(options, licence)) as writer:
            for piece in chain([first], heard):
                writer.write(piece.samples[None])
    _tell(arguments, _Told(why, heard.seconds, time.perf_counter() - began, heard.first, writer.watermark))
    return 0


class _Heard:
    """The pieces, with the time of the first and their length."""

    def __init__(self, pieces: Iterator[Any], began: float, quiet: bool) -> None:
        self._pieces, self._began, self._quiet = pieces, began, quiet
        self.first: float | None = None
        self.seconds = 0.0

    def __iter__(self) -> _Heard:
        return self

    def __next__(self) -> Any:
        piece = next(self._pieces)
        now = time.perf_counter() - self._began
        self.first = now if self.first is None else self.first
        self.seconds += piece.seconds
        if not self._quiet:
            errors.print(f"  {now:7.2f} s: {self.seconds:.2f} s of speech", highlight=False)
        return piece


@dataclass(frozen=True)
class _Told:
    """What is told of a spoken text: who spoke, seconds of sound, of work and until the first sound, and its mark."""

    engine: Any
    seconds: float
    elapsed: float
    first: float | None
    watermark: Any


def _tell(arguments: argparse.Namespace, told: _Told) -> None:
    report: dict[str, Any] = {
        "path": None if arguments.output == STANDARD else str(arguments.output), "seconds": round(told.seconds, 3),
        "elapsed": round(told.elapsed, 3),
        "engines": {"tts": {"value": told.engine.value, "reason": told.engine.reason}},
    }  # fmt: skip
    place = "standard output" if report["path"] is None else report["path"]
    heard = "" if told.first is None else f", first sound after {told.first:.2f} s"
    if told.first is not None:
        report["first_sound"] = round(told.first, 3)
    factor = told.elapsed / told.seconds
    lines = [
        f"{place}: {told.seconds:.2f} s of speech in {told.elapsed:.2f} s{heard} (real-time factor {factor:.2f})",
        f"tts={told.engine}",
    ]
    if told.watermark is not None:
        report["watermark"] = told.watermark.report()
        lines.append(f"watermark {told.watermark}")
    if report["path"] is None:
        errors.print(escape("\n".join(lines)), soft_wrap=True)
    else:
        say(report, arguments.json, lines)


def refuse_terminal() -> None:
    """Raises OutputError where sound would be written onto a screen."""
    if sys.stdout.isatty():
        raise OutputError("standard output is a terminal", "Redirect it to a file, or name one with -o FILE.")


def command_engines(arguments: argparse.Namespace) -> int:
    """Which engines could speak here, and which would."""
    from rvc_spark.rvc_init import get_speakers, init_rvc

    init_rvc()
    speakers = get_speakers()
    for name, state in speakers.survey().items():
        say({"engine": name, "state": state.value, "detail": state.reason}, arguments.json, [
            f"{name:<8}{state.value:<9}{state.reason}",
        ])  # fmt: skip
    chosen = speakers.choose()
    if not arguments.json:
        screen.print(f"[bold]{chosen.value}[/] would speak: {escape(chosen.reason)}", soft_wrap=True)
    return 0
