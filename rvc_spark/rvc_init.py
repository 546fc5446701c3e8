"""The notebook's verbs, over one shared VC.

    load_model("demo")
    convert_audio("me.wav", "she.wav", key=9)
    speak("Good morning.", "hello.wav")

Everything can also be done with a `VC` of one's own; these functions only save the variable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rvc_spark.audio import Audio, EncodeOptions
from rvc_spark.errors import ConfigError, OutputError, RvcSparkError
from rvc_spark.infer.pipeline import Progress
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.processing.utils import split_text_and_validate
from rvc_spark.rvc_config import Choice, RVCConfig
from rvc_spark.rvc_modules import VC, Conversion, LoadedVoice, SoundSource
from rvc_spark.tts.espeak import EspeakEngine, EspeakSettings

SENTENCE_PAUSE = 0.25  # seconds of silence between spoken sentences
SOUND_SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .m4a .aac .aif .aiff .wma .mp4 .mkv .mov .webm .avi .w64 .caf .au".split()
)
DEFAULT_VOICE = "demo"
DEFAULT_SENTENCE = "The quick brown fox jumps over the lazy dog, and nobody was surprised."

_shared: VC | None = None


@dataclass(frozen=True)
class Speech:
    """A spoken and converted text: the sound, what the engine said before conversion, and the conversion's report."""

    text: str
    sentences: tuple[str, ...]
    source: Audio
    conversion: Conversion

    @property
    def audio(self) -> Audio:
        """The converted sound, float32 [T]."""
        return self.conversion.audio

    @property
    def path(self) -> Path | None:
        """Where it was written, if it was."""
        return self.conversion.path

    @property
    def engines(self) -> dict[str, Choice]:
        """Which engine did what, and why."""
        return self.conversion.engines


@dataclass(frozen=True)
class BatchItem:
    """One file of a folder: converted to `path`, or left with `error`."""

    source: Path
    path: Path | None
    conversion: Conversion | None
    error: RvcSparkError | None


def init_rvc(config: RVCConfig | None = None, **values: Any) -> VC:
    """Make (or make anew) the shared VC. `values` are fields of RVCConfig, as in `init_rvc(device="cpu")`."""
    global _shared
    if config is not None and values:
        raise ConfigError(f"both a config and {', '.join(values)} are given", "Give one or the other.")
    _shared = VC(config or RVCConfig(**values))
    return _shared


def get_vc() -> VC:
    """The shared VC, made on first use."""
    return _shared if _shared is not None else init_rvc()


def load_model(voice: str | Path = DEFAULT_VOICE, *, index: str | Path | None = "auto") -> LoadedVoice:
    """Load a voice into the shared VC: a name of `get_vc().voices()` or a path. See `VC.load`."""
    return get_vc().load(voice, index=index)


def _ready() -> VC:
    vc = get_vc()
    if vc.voice is None:
        vc.load(DEFAULT_VOICE)
    return vc


def convert_audio(
    source: SoundSource,
    output: str | Path | None = None,
    *,
    options: EncodeOptions | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Conversion:
    """Convert a recording into the loaded voice (the demo voice if none is). See `VC.convert` for the settings."""
    return _ready().convert(source, output=output, options=options, on_progress=on_progress, **settings)


def speak(
    text: str,
    output: str | Path | None = None,
    *,
    tts: dict[str, Any] | None = None,
    options: EncodeOptions | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Speech:
    """Speak a text with the embedded engine and convert it into the loaded voice.

    Args:
        tts: fields of EspeakSettings: voice, speed (words per minute), pitch.
        settings: fields of ConversionSettings. `auto_key` is "voice" unless a key or auto_key is given, because the
            embedded speaker is much lower than most voices.

    Raises TextError, SpeechError and whatever `VC.convert` raises.
    """
    vc = _ready()
    assert vc.voice is not None
    sentences = tuple(split_text_and_validate(text))
    if "key" not in settings and "auto_key" not in settings and vc.voice.card.median_f0_hz:
        settings["auto_key"] = "voice"
    ConversionSettings().changed(**settings)  # refuse a bad setting before anything is spoken
    engine = EspeakEngine(EspeakSettings(**(tts or {})))
    source = join_sentences([_spoken(engine, sentence) for sentence in sentences])
    conversion = vc.convert(source, output=output, options=options, on_progress=on_progress, **settings)
    conversion.engines = {"tts": engine.choice, **conversion.engines}
    return Speech(text, sentences, source, conversion)


def _spoken(engine: EspeakEngine, sentence: str) -> Audio:
    blocks = list(engine.stream(None, sentence))
    return Audio(np.concatenate([block.samples for block in blocks]), blocks[0].rate)


def join_sentences(spoken: Sequence[Audio]) -> Audio:
    """Sentences with a pause between them, at their common rate."""
    rate = spoken[0].rate
    pause = np.zeros(round(SENTENCE_PAUSE * rate), np.float32)
    pieces = [piece for sound in spoken for piece in (sound.samples, pause)][:-1]
    return Audio(np.concatenate(pieces), rate)


def batch_targets(sources: Sequence[Path], folder: Path, output: Path, suffix: str) -> list[Path]:
    """Where each source of a folder goes. `a.wav` and `a.mp3` become `a_wav.flac` and `a_mp3.flac`, not one file."""
    plain = [output / source.relative_to(folder).with_suffix(suffix) for source in sources]
    folded = [str(path).casefold() for path in plain]  # on a case-blind disk A.wav and a.wav are one name
    targets = [
        path if folded.count(key) == 1 else path.with_name(f"{source.stem}_{source.suffix[1:]}{suffix}")
        for source, path, key in zip(sources, plain, folded, strict=True)
    ]
    taken: set[str] = set()
    for number, target in enumerate(targets):
        count = 1
        while str(targets[number]).casefold() in taken:
            count += 1
            targets[number] = target.with_name(f"{target.stem}_{count}{suffix}")
        taken.add(str(targets[number]).casefold())
    return targets


def convert_folder(
    folder: str | Path,
    output: str | Path,
    *,
    format: str = "wav",
    options: EncodeOptions | None = None,
    **settings: Any,
) -> Iterator[BatchItem]:
    """Convert every sound below a folder, keeping its subfolders; yields one item per file as it is done.

    A file that fails is yielded with its error and spoils no other. Other kinds of file are left out.

    Raises OutputError when there is nothing to convert or the output cannot be a folder.
    """
    folder, output = Path(folder), Path(output)
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is not a folder", "Name a folder for the results.")
    sources = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SOUND_SUFFIXES and path.is_file()
        and not (output != folder and path.is_relative_to(output))
    )  # fmt: skip
    if not sources:
        raise OutputError(f"{folder} holds no sound files", f"Known suffixes: {' '.join(sorted(SOUND_SUFFIXES))}.")
    vc = _ready()
    checked = ConversionSettings().changed(**settings)
    for source, target in zip(sources, batch_targets(sources, folder, output, f".{format}"), strict=True):
        try:
            if target in sources:
                raise OutputError(f"{target} is one of the sources", "Name another folder for the results.")
            target.parent.mkdir(parents=True, exist_ok=True)
            conversion = vc.convert(source, checked, output=target, options=options)
        except RvcSparkError as error:
            yield BatchItem(source, None, None, error)
        else:
            yield BatchItem(source, target, conversion, None)
