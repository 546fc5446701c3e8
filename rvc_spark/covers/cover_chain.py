"""Which stages a cover has, in order, each with its recipe; said once, for making a cover and for explaining it.

The chain is a generator. It yields a `Step` and is sent that step's artefact, or a `Skip` with the reason why a stage
does not take place. Whoever drives it may make the artefacts (`song_cover`), or only look which are there and send
`PENDING` for the others: then what depends on them is not known yet, and has no key.

    song -> stems -> lead (-> backing) -> dry -> melody -> lead voice -> voice --+
                 \\-> band -----------------------------------------------------+-> tracks
                  \\-> the other singer, where only some ranges are converted --+
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rvc_spark.covers import cover_work
from rvc_spark.covers.artefacts import Artefact, Draft
from rvc_spark.covers.cover_engines import VERSIONS, CoverEngines
from rvc_spark.covers.cover_settings import CoverSettings
from rvc_spark.covers.cover_sing import sing
from rvc_spark.covers.cover_sources import RATE, SongSource, Window, decode
from rvc_spark.covers.cover_voice import CoverVoice
from rvc_spark.covers.cover_work import FADE_FRAMES, Work
from rvc_spark.covers.key_proposal import KeyPlan, propose_keys
from rvc_spark.covers.recipe import Recipe
from rvc_spark.errors import ConfigError

SEPARATION_CONTEXT = 4.0
"""Seconds around a preview that the separation sees too."""


@dataclass(frozen=True)
class Step:
    """A stage that takes place. weight: seconds of work per second of song it may take, for the progress bar."""

    name: str
    recipe: Recipe
    work: Callable[[Draft], Work]
    weight: float


@dataclass(frozen=True)
class Skip:
    """A stage that does not take place, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Part:
    """A sound that is there or will be. digest: sha256 of its file; both are None while it is pending."""

    digest: str | None
    path: Path | None


@dataclass(frozen=True)
class TrackPart:
    """What goes into the mix."""

    name: str
    part: Part
    gain_db: float


@dataclass
class Job:
    """All a chain needs. notes: what was decided on the way, name -> (value, reason)."""

    settings: CoverSettings
    sources: Mapping[str, SongSource]  # of song, vocals, accompaniment: those that were given
    engines: CoverEngines
    lead_voice: CoverVoice
    backing_voice: CoverVoice
    notes: dict[str, tuple[str, str]] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)


Chain = Generator[Step | Skip, "Artefact | None", list[TrackPart]]
PENDING = None


def part_of(artefact: Artefact | None, name: str = "sound.wav") -> Part:
    """A file of an artefact, or nothing yet."""
    return Part(None, None) if artefact is None else Part(artefact.digests[name], artefact.files[name])


def chain(job: Job) -> Chain:
    """The stages of a cover, and the tracks of its mix."""
    vocals, band = yield from _stems(job)
    job.parts |= {"vocals": vocals, **({"accompaniment": band} if band else {})}
    lead, backing = yield from _lead(job, vocals)
    lead = yield from _dry(job, lead)
    spans = _spans(job)
    plan = yield from _keys(job, lead, spans)
    settings = job.settings
    sung = yield from _sung(job, "lead voice", lead, job.lead_voice, (plan and plan.voice_key, spans))
    voice = yield from _polished(job, "voice", sung, lead)
    job.parts |= {"lead": lead, "converted": sung, "voice": voice}
    tracks = [TrackPart("voice", voice, settings.voice_gain)]
    music_key = plan and plan.music_key
    if spans:
        digests = {"lead": lead.digest}
        recipe = Recipe("other singer", 1, digests, {"spans": spans})
        kept = yield Step("other singer", recipe, lambda draft: cover_work.keep_outside(lead.path, spans, draft), 0.02)
        kept_part = yield from _moved(job, "other singer's key", part_of(kept), music_key)
        tracks.append(TrackPart("other singer", kept_part, settings.voice_gain))
    if backing is not None:
        ready = yield from _backing(job, backing, plan, music_key)
        job.parts |= {"backing": ready}
        tracks.append(TrackPart("backing", ready, settings.backing_gain))
    if band is not None:
        band = yield from _moved(job, "band's key", band, music_key)
        job.parts |= {"band": band}
        tracks.append(TrackPart("accompaniment", band, settings.accompaniment_gain))
    return tracks


def _window(job: Job, context: float = 0.0) -> Window | None:
    settings = job.settings
    return None if settings.preview is None else Window(settings.preview, settings.preview_seconds, context)


def _decoded(job: Job, name: str, context: float = 0.0) -> Generator[Step | Skip, Artefact | None, Artefact | None]:
    source, window = job.sources[name], _window(job, context)
    recipe = Recipe("decoding", 1, {"sound": source.identity}, {"window": window and window.plain()})
    return (yield Step(name, recipe, lambda draft: decode(source, window, draft), 0.02))


def _stems(job: Job) -> Generator[Step | Skip, Artefact | None, tuple[Part, Part | None]]:
    """Vocals and accompaniment: given, found, or one from the other."""
    given = job.sources
    if "vocals" in given:
        vocals = part_of((yield from _decoded(job, "vocals")))
        if "song" in given:
            song = part_of((yield from _decoded(job, "song")))
            recipe = Recipe("subtraction", 1, {"song": song.digest, "vocals": vocals.digest})
            made = yield Step("stems", recipe, lambda draft: cover_work.subtract(song.path, vocals.path, draft), 0.02)
            return part_of(made, "vocals.wav"), part_of(made, "accompaniment.wav")
        yield Skip("stems", "the vocals are given")
        if "accompaniment" not in given:
            return vocals, None
        return vocals, part_of((yield from _decoded(job, "accompaniment")))
    _, _, files = job.engines.separator_files(job.settings.quality)
    artefact = yield from _decoded(job, "song", SEPARATION_CONTEXT)
    song, window = part_of(artefact), _window(job, SEPARATION_CONTEXT)
    frames = 0 if artefact is None else int(artefact.facts["frames"])
    first = 0 if window is None else round(window.lead * RATE)
    cut = (first, frames if window is None else min(frames, first + round(window.seconds * RATE)))
    recipe = Recipe("separation", VERSIONS["separation"], {"song": song.digest}, {"cut": list(cut)}, files)

    def work(draft: Draft) -> Work:
        yield from cover_work.separate(song.path, cut, job.engines.separator(job.settings.quality), draft)

    made = yield Step("stems", recipe, work, 1.0)
    vocals, band = part_of(made, "vocals.wav"), part_of(made, "accompaniment.wav")
    if "accompaniment" in given:
        band = part_of((yield from _decoded(job, "accompaniment")))
    return vocals, band


def _taken_apart(
    job: Job, sound: Part, use: str, names: tuple[str, str]
) -> Generator[Step | Skip, Artefact | None, tuple[Part, Part | None]]:
    """(rest, part) of a sound; (sound, None) where the network is missing or finds nothing."""
    path, why = job.engines.mdx_file(use)
    stage = {"lead": "backing", "dry": "room"}[use]
    if path is None:
        yield Skip(stage, why.reason)
        return sound, None
    digest = job.engines.mdx_digest(use)
    recipe = Recipe(f"taking apart: {use}", VERSIONS["mdx"], {"sound": sound.digest}, {}, {path.name: digest})

    def work(draft: Draft) -> Work:
        yield from cover_work.take_apart(sound.path, job.engines.mdx(use), names, draft)

    made = yield Step(stage, recipe, work, 0.5)
    if made is not None and made.facts["nothing"]:
        found = f"what was found is {made.facts['part_db']:g} dB against the rest"
        yield Skip(stage, f"there is none: {found}, less than {cover_work.NOTHING_DB:g}")
        return sound, None
    return part_of(made, f"{names[0]}.wav"), part_of(made, f"{names[1]}.wav")


def _lead(job: Job, vocals: Part) -> Generator[Step | Skip, Artefact | None, tuple[Part, Part | None]]:
    if job.settings.backing == "together":
        yield Skip("backing", "lead and backing stay together, as set")
        return vocals, None
    return (yield from _taken_apart(job, vocals, "lead", ("lead", "backing")))


def _dry(job: Job, lead: Part) -> Generator[Step | Skip, Artefact | None, Part]:
    if not job.settings.dereverb:
        yield Skip("room", "the room is left in the lead, as set")
        return lead
    return (yield from _taken_apart(job, lead, "dry", ("dry", "room")))[0]


def _spans(job: Job) -> list[tuple[int, int]]:
    """The ranges in frames of what is decoded. Raises ConfigError where none of them lies in the preview."""
    ranges, preview = job.settings.ranges, job.settings.preview
    if not ranges:
        return []
    begin = preview or 0.0
    end = float("inf") if preview is None else begin + job.settings.preview_seconds
    inside = [(max(start, begin), min(stop, end)) for start, stop in ranges if start < end and stop > begin]
    if not inside:
        raise ConfigError(
            f"None of the ranges lies between {begin:g} and {end:g} s", "Preview where something is converted."
        )
    # At the beginning and the end of what is made there is nothing to fade from or to.
    return [
        (
            round((start - begin) * RATE) if start > begin else -FADE_FRAMES,
            round((stop - begin) * RATE) if stop < end else round((end - begin) * RATE) + FADE_FRAMES,
        )
        for start, stop in inside
    ]


def _keys(
    job: Job, lead: Part, spans: list[tuple[int, int]]
) -> Generator[Step | Skip, Artefact | None, KeyPlan | None]:
    """The keys of voice and band; None while they depend on a melody that is not known yet."""
    settings, voice = job.settings, job.lead_voice
    given = {"voice_key": settings.key, "music_key": settings.accompaniment_key}
    if settings.key is not None or voice.range is None:
        why = "the key is set" if settings.key is not None else "the voice names no pitch range"
        yield Skip("melody", f"not needed: {why}")
        melody = np.zeros(0, np.float32)
    else:
        recipe = Recipe("melody", 1, {"lead": lead.digest}, {"spans": spans})
        made = yield Step("melody", recipe, lambda draft: cover_work.find_melody(lead.path, spans, draft), 0.02)
        if made is None:
            return None
        melody = cover_work.read_melody(made.files["melody.npy"])
        if not (melody > 0).any():
            melody = np.zeros(0, np.float32)
    plan = propose_keys(melody, voice.range if len(melody) else None, **given)
    beside = "; heard in the preview alone" if settings.preview is not None and settings.key is None else ""
    job.notes["key"] = (f"{plan.voice_key:+g}", plan.voice_reason + beside)
    job.notes["band's key"] = (f"{plan.music_key:+g}", plan.music_reason)
    if not plan.in_tune:
        job.notes["in tune"] = ("no", "voice and band are not a whole number of octaves apart")
    return plan


def _sung(
    job: Job, name: str, lead: Part, voice: CoverVoice, how: tuple[float | None, list[tuple[int, int]]]
) -> Generator[Step | Skip, Artefact | None, Part]:
    """A voice converted. how: key (None while unknown) and spans."""
    key, spans = how
    settings = replace(job.settings.conversion, key=key or 0.0, auto_key="off", resample_rate=RATE)
    model = voice.identity(settings)
    told = settings.as_dict() | {"spans": spans, "f0_method": model["pitch"], "f0_curve": model.get("f0_curve")}
    digests = {"lead": lead.digest, **({} if key is not None else {"key": None})}
    recipe = Recipe("conversion", 1, digests, told, model)
    made = yield Step(name, recipe, lambda draft: sing(lead.path, spans, voice.vc(), settings, draft), 0.5)
    if made is not None:
        facts: Mapping[str, Any] = made.facts
        job.notes |= {f"{name}: {part}": tuple(said) for part, said in facts["engines"].items() if part != "key"}
        if settings.index_rate > 0:
            job.notes[f"{name}: index"] = (Path(voice.index.value).name or "none", voice.index.reason)
        width = f"the lead's sides ({facts['side_db']:g} dB against its middle) are not carried on"
        centred = "its channels are equal" if facts["side_db"] < -60 else width
        job.notes[f"{name}: width"] = ("centred mono", f"RVC is mono; {centred}; the room effect is stereo")
    return part_of(made)


def _polished(job: Job, name: str, sung: Part, lead: Part) -> Generator[Step | Skip, Artefact | None, Part]:
    gate, effects = job.settings.gate, job.settings.effects
    told = {"gate": vars(gate), "effects": vars(effects)}
    recipe = Recipe("polish", 1, {"voice": sung.digest, "source": lead.digest}, told)
    made = yield Step(name, recipe, lambda draft: cover_work.polish(sung.path, lead.path, gate, effects, draft), 0.05)
    return part_of(made)


def _backing(
    job: Job, backing: Part, plan: KeyPlan | None, music_key: float | None
) -> Generator[Step | Skip, Artefact | None, Part]:
    settings = job.settings
    if settings.backing == "original":
        return (yield from _moved(job, "backing's key", backing, music_key))
    key = settings.backing_key if settings.backing_key is not None else plan and plan.voice_key
    sung = yield from _sung(job, "backing voice", backing, job.backing_voice, (key, []))
    return (yield from _polished(job, "backing", sung, backing))


def _moved(
    job: Job, name: str, part: Part, semitones: float | None
) -> Generator[Step | Skip, Artefact | None, Part]:
    """The same in another key; semitones are None while unknown."""
    if semitones == 0:
        yield Skip(name, "as recorded")
        return part
    digests = {"sound": part.digest, **({} if semitones is not None else {"key": None})}
    recipe = Recipe("key shift", 1, digests, {"semitones": semitones})
    made = yield Step(name, recipe, lambda draft: cover_work.move_key(part.path, semitones, draft), 0.3)
    return part_of(made)
