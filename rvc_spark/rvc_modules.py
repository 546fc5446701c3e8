"""VC: the encoders plus one loaded voice, and the conversion of anything that is sound.

This is where files meet networks. It chooses (device, encoder, pitch tracker, index), keeps the reason of every choice
and hands the sound to `rvc_spark.infer.pipeline`. It prints nothing and knows no notebook.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rvc_spark.audio import Audio, EncodeOptions
from rvc_spark.conversion import (
    BlockConversion,
    Conversion,
    ConversionJob,
    SoundSource,
    read_source,
    refuse_overwriting,
    watermarked,
)
from rvc_spark.conversion_many import converted_many
from rvc_spark.errors import AssetError, EncoderFileError, RvcSparkError, VoiceFileError
from rvc_spark.infer.checkpoint import VoiceInfo, read_checkpoint
from rvc_spark.infer.content import ContentEncoder, load_content_encoder
from rvc_spark.infer.index import RetrievalIndex, read_index
from rvc_spark.infer.index_device import DeviceIndex
from rvc_spark.infer.index_find import find_index
from rvc_spark.infer.lazy_encoder import LazyEncoder
from rvc_spark.infer.live import LiveConversion
from rvc_spark.infer.live_settings import LiveSettings
from rvc_spark.infer.pipeline import Engines, Progress, Rendering, drain
from rvc_spark.infer.pitch import PitchTracker, load_tracker
from rvc_spark.infer.pitch_edit import read_f0_curve
from rvc_spark.infer.segments import Cutting
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.infer.synthesizer import Synthesizer, load_synthesizer
from rvc_spark.infer.voice_files import VoiceCard, VoiceListing, find_voice, list_voices, read_card
from rvc_spark.loaded_voices import LoadedVoices
from rvc_spark.rvc_config import Choice, RVCConfig

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedVoice:
    """A voice ready to sing: what its file says, its index, and why that index."""

    name: str
    path: Path
    info: VoiceInfo
    card: VoiceCard
    index: RetrievalIndex | None
    index_choice: Choice


class VC:
    """Voice conversion with one voice at a time. Safe to share between threads.

    >>> vc = VC()
    >>> vc.load("demo")
    >>> vc.convert("me.wav", output="she.wav", key=9)
    """

    def __init__(self, config: RVCConfig | None = None) -> None:
        self.config = config or RVCConfig()
        self.device = self.config.device_choice()
        self.precision = self.config.precision_choice()
        self.voice: LoadedVoice | None = None
        self._synthesizer: Synthesizer | None = None
        self._encoder: tuple[Path, LazyEncoder] | None = None
        self._trackers: dict[tuple[str, int], PitchTracker] = {}
        self._index_asked: str | Path | None = "auto"
        self._kept = LoadedVoices(self.config.voice_memory << 20)
        self._lock = threading.RLock()

    @property
    def folders(self) -> list[Path]:
        """Where voices are looked for: the user's own, then the one that is shipped."""
        return [self.config.weights_dir, self.config.demo_dir]

    def voices(self) -> list[VoiceListing]:
        """Every voice there is with what is known of it; damaged files are listed with the reason."""
        return list_voices(self.folders)

    def index_choice(self, voice: Path, info: VoiceInfo) -> Choice:
        """The index that belongs to a voice, or an empty value and why there is none."""
        folders = [voice.parent, self.config.index_dir]
        found = find_index(voice, folders, info.content_dim)
        return Choice("" if found.path is None else str(found.path), found.reason)

    def encoder_path(self, voice: Path) -> Path:
        """The content encoder a voice is converted with: its own beside it, else the configuration's.

        Raises AssetError when it is not there.
        """
        own = voice.parent / "content_encoder"
        path = own if own.is_dir() else self.config.hubert_path
        if not path.exists():
            raise AssetError(
                f"voice {voice.name} needs the content encoder, which is not at {path}",
                "Run `rvc-spark assets get infer`, or set `hubert` in rvc_spark.yaml to where you have it.",
            )
        return path

    def load(self, voice: str | Path, *, index: str | Path | None = "auto") -> LoadedVoice:
        """Make a voice ready: a name of `voices()` or a path. A refused file leaves the loaded voice as it was.

        The voices used last stay in memory (`voice_memory` of the configuration), so going back to one reads nothing.
        Content encoder and pitch network are checked here, and read when the first sound is converted.

        Args:
            index: "auto" finds the one that belongs to the voice, None uses none, else a path.

        Raises VoiceNotFoundError, VoiceFileError, IndexFileError, EncoderFileError, AssetError.
        """
        path = Path(voice) if isinstance(voice, Path) else find_voice(voice, self.folders)
        with self._lock:
            synthesizer = self._synthesizer_for(path)
            card = read_card(path)
            info = synthesizer.info
            encoder = self._encoder_for(path, info)
            choice = self._chosen_index(path, info, index)
            loaded_index = self._index_for(Path(choice.value)) if choice.value else None
            if loaded_index is not None and loaded_index.dim != info.content_dim:
                raise VoiceFileError(
                    f"index {loaded_index.path.name} has {loaded_index.dim} dimensions, voice {path.name} "
                    f"({info.version}) works with {info.content_dim}",
                    "Choose the index trained with this voice, or index=None.",
                )
            self._synthesizer = synthesizer
            self._encoder = encoder
            self._index_asked = index
            self.voice = LoadedVoice(card.name or path.stem, path, info, card, loaded_index, choice)
            return self.voice

    @property
    def loaded(self) -> bool:
        """Whether the networks of the voice are in memory."""
        return self._synthesizer is not None

    def unload(self) -> bool:
        """Free the networks and the index but remember the voice: the next conversion loads them again by itself.

        Returns whether there was anything to free. Conversions that run keep what they hold until they end.
        """
        self._kept.clear()
        with self._lock:
            was_loaded = self.loaded
            self._synthesizer, self._encoder, self._trackers = None, None, {}
            if self.voice is not None:
                self.voice = replace(self.voice, index=None)
        if was_loaded and self.device.value.startswith("cuda"):
            torch.cuda.empty_cache()
        return was_loaded

    @property
    def encoder(self) -> ContentEncoder:
        """The content encoder of the loaded voice. Raises VoiceFileError when no voice was ever loaded."""
        if self._encoder is None:
            raise VoiceFileError("no voice is loaded", "Call load_model('demo') or VC.load(NAME) first.")
        return self._encoder[1].get()

    def sibling(self) -> VC:
        """A VC for a second voice at the same time: it shares configuration, encoder, trackers and what is kept."""
        other = VC(self.config)
        other._kept = self._kept
        with self._lock:
            other._encoder, other._trackers = self._encoder, self._trackers
        return other

    def _synthesizer_for(self, path: Path) -> Synthesizer:
        device, precision = self.device.value, self.precision.value

        def make() -> Synthesizer:
            return load_synthesizer(read_checkpoint(path), device, DTYPES[precision])

        return self._kept.get(path, (device, precision), make, _network_bytes)

    def _index_for(self, path: Path) -> RetrievalIndex:
        return self._kept.get(path, "index", lambda: read_index(path), _index_bytes)

    def _index_on_device(self, index: RetrievalIndex | None) -> RetrievalIndex | DeviceIndex | None:
        """The index as conversion searches it: on a GPU, where there is one."""
        device = self.device.value
        if index is None or not device.startswith("cuda"):
            return index
        return self._kept.get(
            index.path, ("index", device), lambda: DeviceIndex(index, device), lambda made: made.nbytes
        )

    def _chosen_index(self, voice: Path, info: VoiceInfo, index: str | Path | None) -> Choice:
        if index is None:
            return Choice("", "switched off")
        if index == "auto":
            return self.index_choice(voice, info)
        return Choice(str(index), "as set")

    def _encoder_for(self, voice: Path, info: VoiceInfo) -> tuple[Path, LazyEncoder]:
        path = self.encoder_path(voice)
        if self._encoder is not None and self._encoder[0] == path:
            encoder = self._encoder[1]
        else:
            device, dtype = self.device.value, DTYPES[self.precision.value]
            encoder = LazyEncoder(path, lambda: load_content_encoder(path, device, dtype))
        width = encoder.dims.get(info.version)
        if width != info.content_dim:
            raise EncoderFileError(
                f"content encoder {path} gives {width or 'no'} {info.version} features, voice {voice.name} needs "
                f"{info.content_dim}",
                "Use the encoder this voice was trained with.",
            )
        conflict = encoder.conflict_with(info.embedder)
        if conflict is not None:
            raise EncoderFileError(conflict, "Put that encoder into a folder content_encoder beside the voice.")
        return path, encoder

    def _tracker(self, settings: ConversionSettings) -> PitchTracker:
        key = (settings.f0_method, settings.filter_radius)
        if key not in self._trackers:
            self._trackers[key] = load_tracker(
                settings.f0_method,
                device=self.device.value,
                rmvpe_path=self.config.rmvpe_path,
                filter_radius=settings.filter_radius,
            )
        return self._trackers[key]

    def _engines(self, settings: ConversionSettings) -> tuple[LoadedVoice, Engines, dict[str, Choice]]:
        with self._lock:  # a load or unload meanwhile does not disturb this conversion
            if self.voice is not None and not self.loaded:
                self.load(self.voice.path, index=self._index_asked)
            voice, synthesizer, encoder = self.voice, self._synthesizer, self._encoder
        if voice is None or synthesizer is None or encoder is None:
            raise VoiceFileError("no voice is loaded", "Call load_model('demo') or VC.load(NAME) first.")
        info = voice.info
        if settings.speaker >= info.speakers:
            raise VoiceFileError(
                f"speaker={settings.speaker} is outside 0 to {info.speakers - 1} of voice {voice.name}",
                "Choose a speaker in that range.",
            )
        if settings.f0_curve:
            read_f0_curve(settings.f0_curve)  # a damaged curve is refused before any work
        tracker = self._tracker(settings) if info.has_f0 else None
        index = self._index_on_device(voice.index) if settings.index_rate > 0 else None
        choices = {
            "device": self.device,
            "precision": self.precision,
            "encoder": Choice(encoder[0].name, "beside the voice" if encoder[0].parent == voice.path.parent else "set"),
            "pitch": Choice("none", "the voice has no pitch input")
            if tracker is None
            else Choice(tracker.method, tracker.reason),
            "index": Choice("none", "index_rate is 0")
            if settings.index_rate == 0
            else Choice(Path(voice.index_choice.value).name or "none", voice.index_choice.reason),
        }
        return voice, Engines(encoder[1].get(), synthesizer, tracker, index, voice.card.pitch), choices

    def engines(self, settings: ConversionSettings | None = None) -> Engines:
        """The loaded networks as the pipeline takes them. Raises VoiceFileError, ConfigError, PitchError."""
        return self._engines(settings or ConversionSettings())[1]

    def convert_steps(
        self,
        source: SoundSource,
        settings: ConversionSettings | None = None,
        *,
        output: str | Path | None = None,
        options: EncodeOptions | None = None,
        cutting: Cutting | None = None,
    ) -> Generator[Progress, None, Conversion]:
        """`convert` as a generator that yields progress; closing it stops the work and frees what it held."""
        settings = settings or ConversionSettings()
        refuse_overwriting(source, output)
        options = watermarked(options, self.config.watermark)
        if output is not None:
            options.resolved(Path(output))  # a suffix or watermark that cannot be written is told before the work
        started = time.perf_counter()
        voice, engines, choices = self._engines(settings)
        yield Progress(0.0, "reading")
        recording = read_source(source)
        try:
            rendered = yield from Rendering(recording, engines, settings, cutting).steps()
        finally:
            recording.store.close()
        job = ConversionJob(voice.name, settings, choices, options.watermark)
        conversion = job.finished(rendered, recording, time.perf_counter() - started)
        if output is not None:
            conversion.save(output, options)
        return conversion

    def convert(
        self,
        source: SoundSource,
        settings: ConversionSettings | None = None,
        *,
        output: str | Path | None = None,
        options: EncodeOptions | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        **changes: Any,
    ) -> Conversion:
        """Convert a file, bytes, a stream or an Audio into the loaded voice.

        The result has exactly `round(T * rate_out / rate_in)` samples. Channels are averaged.

        Args:
            settings: how; `changes` replace single fields of it, as in `convert("a.wav", key=9)`.
            output: file to write; its suffix chooses the format.

        Raises AudioError, VoiceFileError, ConfigError, PitchError, OutputError.
        """
        settings = (settings or ConversionSettings()).changed(**changes)
        return drain(self.convert_steps(source, settings, output=output, options=options), on_progress)

    def convert_many(
        self, sources: Iterable[SoundSource], settings: ConversionSettings | None = None, **changes: Any
    ) -> Iterator[Conversion | RvcSparkError]:
        """`convert` of many sounds, in order; on a GPU those of equal length are converted at once.

        Where a sound cannot be read, its error takes the place of its result. `elapsed` of a result is its share.
        Raises what `convert` raises before any sound is read.
        """
        settings = (settings or ConversionSettings()).changed(**changes)
        voice, engines, choices = self._engines(settings)
        job = ConversionJob(voice.name, settings, choices, watermarked(None, self.config.watermark).watermark)
        return converted_many(sources, engines, job, together=self.device.value.startswith("cuda"))

    def convert_blocks(
        self, source: SoundSource, settings: ConversionSettings | None = None, **changes: Any
    ) -> BlockConversion:
        """`convert` as an iterator over the sound: each block leaves as soon as it is decoded, the first one early.

        The samples are those of `convert`, except where the result would exceed full scale: see `Rendering.blocks`.
        Raises what `convert` raises, partly when the first block is asked for.
        """
        settings = (settings or ConversionSettings()).changed(**changes)
        voice, engines, choices = self._engines(settings)
        recording = read_source(source)
        rate = settings.resample_rate or voice.info.sample_rate
        return BlockConversion(voice.name, recording, Rendering(recording, engines, settings), choices, rate)

    def stream(
        self,
        pieces: Iterable[Audio],
        settings: ConversionSettings | None = None,
        live: LiveSettings | None = None,
        **changes: Any,
    ) -> LiveConversion:
        """Convert sound that is still arriving: an iterator of Audio whose blocks leave with bounded delay.

        Together they have exactly the length `convert` gives for the joined pieces. Channels are averaged.

        Args:
            pieces: of any size, all of one rate; pulled when the next block is asked for.
            settings: how; `changes` replace single fields of it.
            live: delay against fidelity; its block is chosen by a measurement where it is not set.

        Raises VoiceFileError, ConfigError, PitchError; AudioError while iterating.
        """
        settings = (settings or ConversionSettings()).changed(**changes)
        _, engines, choices = self._engines(settings)
        return LiveConversion(pieces, engines, settings, live, choices)


def _network_bytes(synthesizer: Synthesizer) -> int:
    return sum(weight.nbytes for weight in synthesizer.network.state_dict().values()) + synthesizer.decoder.nbytes


def _index_bytes(index: RetrievalIndex) -> int:
    return index.content.vectors.nbytes
