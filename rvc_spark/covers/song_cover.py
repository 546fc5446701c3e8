"""A song in another voice, stage by stage, each kept: a second run redoes only what a change reaches.

    cover = make_cover("song.mp3", "cover.flac", key=3)
    cover = make_cover("song.mp3", "cover.flac", key=3, voice_gain=-2)      mixes again, and nothing else
    explain_cover("song.mp3", key=5)                                       what would be done, and why

`cover_steps` is the same as a generator of Progress: closing it ends the work, and what was finished is kept. Which
stages there are is told by `cover_chain`; here they are found or made, mixed, and reported.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rvc_spark.audio import Audio, EncodeOptions, open_writer, read_audio
from rvc_spark.conversion import SoundSource, refuse_overwriting
from rvc_spark.covers.artefacts import GIB, ArtefactStore, Limits, Pruned
from rvc_spark.covers.cover_chain import PENDING, Job, Skip, Step, TrackPart, chain
from rvc_spark.covers.cover_engines import CoverEngines
from rvc_spark.covers.cover_mix import mix_recipe, mix_work, place, tagged
from rvc_spark.covers.cover_run import CoverRun, StageRow, foretold, told
from rvc_spark.covers.cover_settings import CoverSettings
from rvc_spark.covers.cover_sources import open_song
from rvc_spark.covers.cover_voice import CoverVoice
from rvc_spark.errors import ConfigError
from rvc_spark.infer.pipeline import Progress, drain
from rvc_spark.rvc_config import Choice, RVCConfig
from rvc_spark.rvc_init import get_vc
from rvc_spark.rvc_modules import VC

MIX_WEIGHT = 0.05


@dataclass(frozen=True)
class CoverInput:
    """What a cover is made from: a song, or its vocals (with or without an accompaniment), or a song and one of them.

    song and vocals give the accompaniment as their difference; song and accompaniment take the place of the song's own.
    """

    song: SoundSource | None = None
    vocals: SoundSource | None = None
    accompaniment: SoundSource | None = None

    def __post_init__(self) -> None:
        if self.song is None and self.vocals is None:
            raise ConfigError("neither a song nor vocals are given", "Give a song, or vocals with an accompaniment.")
        if None not in (self.song, self.vocals, self.accompaniment):
            raise ConfigError("a song and both its stems are given", "Leave the song out: the stems say it all.")

    def given(self) -> dict[str, SoundSource]:
        """Those that are there."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class Cover:
    """A finished cover and how it came about.

    stages: in order. mix: what was measured on the file, see MixReport. notes: what was decided, with reasons.
    stems: name ("vocals", "accompaniment", "lead", "converted", "voice", "band", ...) -> file of that stage, float WAV.
    """

    path: Path | None
    settings: CoverSettings
    stages: tuple[StageRow, ...]
    mix: Mapping[str, Any]
    notes: Mapping[str, Choice]
    stems: Mapping[str, Path]
    elapsed: float  # seconds of work
    _mixed: Path

    @property
    def audio(self) -> Audio:
        """The mix, float32 [2, T], read from disk."""
        return read_audio(self._mixed)

    @property
    def seconds(self) -> float:
        """Length of the mix."""
        return self.mix["frames"] / self.mix["rate"]

    def stem(self, name: str) -> Audio:
        """The sound of a stage as it went on. Raises ConfigError for a name that is not there."""
        if name not in self.stems:
            raise ConfigError(f"this cover has no stem {name!r:.40}", f"There are: {', '.join(self.stems)}.")
        return read_audio(self.stems[name])

    def save(self, path: str | Path) -> Path:
        """Copy the mix to another place; the suffix must be that of its format. Raises OutputError."""
        return place(self._mixed, Path(path))

    def report(self) -> dict[str, Any]:
        """Everything but the sound, ready for JSON."""
        return {
            "path": None if self.path is None else str(self.path), "seconds": round(self.seconds, 3),
            "elapsed": round(self.elapsed, 3), "stages": [vars(row) for row in self.stages],
            "mix": {name: value for name, value in self.mix.items() if name != "path"},
            "notes": {name: {"value": said.value, "reason": said.reason} for name, said in self.notes.items()},
            "stems": {name: str(path) for name, path in self.stems.items()}, "settings": self.settings.as_dict(),
        }  # fmt: skip


class CoverMaker:
    """Makes covers with a VC; the separation networks and further voices it has loaded stay warm.

    store: where stages are kept.
    """

    def __init__(self, vc: VC, store: ArtefactStore | None = None) -> None:
        self.vc = vc
        self.store = store or cover_store(vc.config)
        self.engines = CoverEngines(vc.config, vc.device.value)
        self._voices: dict[tuple[Any, ...], CoverVoice] = {}

    def voice(self, voice: str | Path | None, index: str | Path | None = "auto") -> CoverVoice:
        """A voice by name or path, made once; None is the VC's own of the moment, the demo voice if it has none."""
        found = CoverVoice(self.vc, voice, index)
        return self._voices.setdefault((found.path, found.index.value), found)

    def explain(self, given: CoverInput, settings: CoverSettings, output: Path | None = None,
                voice: CoverVoice | None = None) -> tuple[StageRow, ...]:  # fmt: skip
        """What `steps` would do, without doing any of it. Raises what it raises before its first stage."""
        with ExitStack() as open_things:
            job = self._job(given, settings, voice, open_things)
            rows: list[StageRow] = []
            stages, sent = chain(job), PENDING
            while True:
                try:
                    stage = stages.send(sent)
                except StopIteration as end:
                    tracks: list[TrackPart] = end.value
                    break
                if isinstance(stage, Skip):
                    row, sent = told(stage), None
                else:
                    row, sent = foretold(self.store, stage.name, stage.recipe)
                rows.append(row)
            recipe = mix_recipe(tracks, settings.mixing, tagged(None, output, job))
            rows.append(foretold(self.store, "mix", recipe)[0])
            return tuple(rows)

    def steps(
        self, given: CoverInput, settings: CoverSettings | None = None, *, output: str | Path | None = None,
        options: EncodeOptions | None = None, voice: CoverVoice | None = None,
    ) -> Generator[Progress, None, Cover]:  # fmt: skip
        """Make a cover: yields Progress, returns the Cover. Closing the generator keeps what was finished.

        Args:
            output: file to write; its suffix chooses the format (wav, flac, ogg, mp3, m4a). None keeps the mix only.
            options: of the file; a title and a comment that says it is an AI cover are added where they have none.

        Raises AudioError, ConfigError, AssetError, SeparatorFileError, MissingPackageError, OutputError and what the
        conversion raises.
        """
        settings, started = settings or CoverSettings(), time.perf_counter()
        target = None if output is None else Path(output)
        for source in given.given().values():
            refuse_overwriting(source, target)
        with ExitStack() as open_things:
            job = self._job(given, settings, voice, open_things)
            wanted = tagged(options, target, job)
            if target is not None:
                open_writer(target, 44_100, 2, wanted).abort()  # a place that takes no file is said before the work
            yield Progress(0.0, "looking what is there")
            self.store.prune()
            run = CoverRun(self.store, open_things.enter_context(self.store.run()), self._expected(job))
            tracks = yield from run.through(chain(job))
            recipe = mix_recipe(tracks, settings.mixing, wanted)
            step = Step("mix", recipe, lambda draft: mix_work(draft, tracks, settings.mixing, wanted), MIX_WEIGHT)
            mixed = yield from run.step(step)
            (path,) = mixed.files.values()
            if target is not None:
                place(path, target)
        notes = {name: Choice(*said) for name, said in job.notes.items()}
        notes["device"] = self.vc.device
        stems = {name: part.path for name, part in job.parts.items() if part.path is not None}
        yield Progress(1.0, "done")
        return Cover(
            target, settings, tuple(run.rows), mixed.facts, notes, stems, time.perf_counter() - started, path
        )

    def _job(
        self, given: CoverInput, settings: CoverSettings, voice: CoverVoice | None, open_things: ExitStack
    ) -> Job:
        if settings.conversion.f0_curve and (settings.preview is not None or settings.ranges):
            raise ConfigError("an f0 curve is of the whole song", "Leave it out of a preview and of ranges.")
        lead = voice or self.voice(None)
        backing = lead if settings.backing_voice is None else self.voice(settings.backing_voice)
        sources = {}
        for name, source in given.given().items():
            sources[name] = open_song(source)
            open_things.callback(sources[name].close)
        return Job(settings, sources, self.engines, lead, backing)

    def _expected(self, job: Job) -> float:
        """Weights of what will have to be made, for the progress bar; the job's notes are not touched."""
        asked, expected = chain(replace(job, notes={}, parts={})), MIX_WEIGHT
        sent = PENDING
        while True:
            try:
                stage = asked.send(sent)
            except StopIteration:
                return expected
            sent = None if isinstance(stage, Skip) else self.store.find(stage.recipe)
            expected += stage.weight if isinstance(stage, Step) and sent is None else 0.0


_makers: weakref.WeakKeyDictionary[VC, CoverMaker] = weakref.WeakKeyDictionary()  # what hangs on a VC, and goes with it


def get_cover_maker(vc: VC | None = None) -> CoverMaker:
    """The maker that belongs to a VC (the shared one), with its networks warm; made on first use."""
    vc = vc or get_vc()
    if vc not in _makers:
        _makers[vc] = CoverMaker(vc)
    return _makers[vc]


def cover_store(config: RVCConfig) -> ArtefactStore:
    """Where the configuration has the stages of covers kept. Raises OutputError."""
    return ArtefactStore(config.covers_dir, Limits(round(config.covers_gib * GIB), config.covers_days))


def prune_covers(config: RVCConfig | None = None, *, everything: bool = False) -> Pruned:
    """Remove stages by age and size as the configuration says, or all but those in use. Raises OutputError."""
    store = cover_store(config or RVCConfig())
    return store.prune(Limits(0, 0.0) if everything else None)


def cover_steps(
    song: SoundSource | None = None, output: str | Path | None = None, settings: CoverSettings | None = None,
    *, vocals: SoundSource | None = None, accompaniment: SoundSource | None = None, voice: str | Path | None = None,
    options: EncodeOptions | None = None,
) -> Generator[Progress, None, Cover]:  # fmt: skip
    """`make_cover` as a generator of Progress that returns the Cover."""
    maker = get_cover_maker()
    given = CoverInput(song, vocals, accompaniment)
    return maker.steps(given, settings, output=output, options=options, voice=maker.voice(voice))


def make_cover(
    song: SoundSource | None = None,
    output: str | Path | None = None,
    *,
    vocals: SoundSource | None = None,
    accompaniment: SoundSource | None = None,
    voice: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Cover:
    """A song into the loaded voice (the demo voice if none is), mixed, at -14 LUFS.

    Args:
        song: what to separate; not needed where the stems are given.
        output: file to write; None keeps the mix only.
        vocals, accompaniment: given stems, see `CoverInput`.
        voice: a name or a path, instead of the loaded voice.
        settings: fields of CoverSettings or of its stages: `key=3, reverb=0.2, ranges=[(10, 20)]`; `settings` itself
            is a CoverSettings, `options` an EncodeOptions.

    Raises AudioError, ConfigError, AssetError, SeparatorFileError, MissingPackageError, OutputError and what the
    conversion raises.
    """
    chosen, options = _chosen(settings)
    steps = cover_steps(
        song, output, chosen, vocals=vocals, accompaniment=accompaniment, voice=voice, options=options
    )
    return drain(steps, on_progress)


def explain_cover(
    song: SoundSource | None = None, output: str | Path | None = None, *, vocals: SoundSource | None = None,
    accompaniment: SoundSource | None = None, voice: str | Path | None = None, **settings: Any,
) -> tuple[StageRow, ...]:  # fmt: skip
    """What `make_cover` would do: every stage, whether it is kept, and why not. Arguments and errors as there."""
    chosen, _ = _chosen(settings)
    maker = get_cover_maker()
    target = None if output is None else Path(output)
    return maker.explain(CoverInput(song, vocals, accompaniment), chosen, target, maker.voice(voice))


def _chosen(settings: dict[str, Any]) -> tuple[CoverSettings, EncodeOptions | None]:
    options, chosen = settings.pop("options", None), settings.pop("settings", None) or CoverSettings()
    return chosen.changed(**settings), options
