"""rvc-spark cover: a song in another voice, a preview of it, what would be redone, and clearing away what was kept."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.markup import escape

from rvc_spark.cli_output import errors, listing, progress_bar, say, screen
from rvc_spark.errors import ConfigError

OWN = (  # options of their own; every other setting is reached by --set
    "quality", "backing", "dereverb", "key", "accompaniment_key", "backing_key", "backing_voice", "voice_gain",
    "backing_gain", "accompaniment_gain", "preview", "preview_seconds",
)  # fmt: skip


def add_cover(commands: Any) -> None:
    """The `cover` branch of the command line."""
    from rvc_spark.cli_cover_options import add_cover_options

    cover = commands.add_parser("cover", help="a song -> the same song sung by the voice")
    add_cover_options(cover)
    cover.set_defaults(run=command_cover)


def command_cover(arguments: argparse.Namespace) -> int:
    """Make, explain or prune."""
    if arguments.prune is not None:
        return _prune(arguments)
    from rvc_spark.covers.song_cover import CoverInput, get_cover_maker
    from rvc_spark.rvc_init import init_rvc

    song, vocals = arguments.song, arguments.vocals
    if arguments.vocals_only:
        if song is None or vocals is not None:
            raise ConfigError("--vocals-only is about SONG", "Give SONG and no --vocals, or --vocals alone.")
        song, vocals = None, song
    given = CoverInput(song, vocals, arguments.accompaniment)
    settings = cover_settings(arguments)
    chosen = {"device": arguments.device, "watermark": arguments.watermark}
    vc = init_rvc(**{name: value for name, value in chosen.items() if value})
    maker = get_cover_maker(vc)
    voice = maker.voice(arguments.voice, None if arguments.index == "none" else arguments.index)
    output = _output(arguments)
    if arguments.explain:
        return _explain(maker.explain(given, settings, output, voice), arguments.json)
    from rvc_spark.infer.pipeline import drain

    with progress_bar(arguments.json) as bar:
        cover = drain(maker.steps(given, settings, output=output, voice=voice), bar)
    say(cover.report(), arguments.json, cover_lines(cover))
    return 0


def _output(arguments: argparse.Namespace) -> Path:
    if arguments.output is not None:
        return Path(arguments.output)
    named = Path(arguments.song or arguments.vocals).stem
    preview = "_preview" if hasattr(arguments, "preview") else ""
    return Path(f"{named}_{Path(arguments.voice).stem}{preview}.{arguments.format or 'flac'}")


def cover_settings(arguments: argparse.Namespace) -> Any:
    """The CoverSettings the user asked for. Raises ConfigError."""
    from rvc_spark.covers.cover_settings import CoverSettings

    given = {name: getattr(arguments, name) for name in OWN if hasattr(arguments, name)}
    if arguments.ranges:
        given["ranges"] = [_range(text) for texts in arguments.ranges for text in texts.split(",")]
    settings = CoverSettings()
    for text in arguments.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text!r} has no '='", "Write --set reverb=0.3 or --set gate.hold=0.2.")
        given[name.strip().replace("-", "_")] = _value(value.strip())
    return settings.changed(**given)


def _range(text: str) -> tuple[float, float]:
    """`12.5-30` or `1:05-1:20` in seconds."""
    start, dash, end = text.partition("-")
    try:
        if not dash:
            raise ValueError
        return _seconds(start), _seconds(end)
    except ValueError:
        problem = f"the range {text!r:.60} is not START-END"
        raise ConfigError(problem, "Write seconds or minutes: 12.5-30,1:05-1:20.") from None


def _seconds(text: str) -> float:
    total = 0.0
    for part in text.strip().split(":"):
        total = 60 * total + float(part)
    return total


def moment(text: str) -> float:
    """`83.5` or `1:23.5` as seconds, for argparse."""
    try:
        return _seconds(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write seconds, or minutes:seconds") from None


def _value(text: str) -> Any:
    """A number where it is one, else the word."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def cover_lines(cover: Any) -> list[str]:
    """What a person wants to know of a finished cover."""
    mix = cover.mix
    lufs = "silence" if mix["lufs"] is None else f"{mix['lufs']:.1f} LUFS, true peak {mix['true_peak_dbtp']:.1f} dBTP"
    done = sum(row.state == "made" for row in cover.stages)
    kept = sum(row.state == "kept" for row in cover.stages)
    lines = [
        f"{cover.path}: {cover.seconds:.2f} s, {lufs}, in {cover.elapsed:.2f} s; {done} stages made, {kept} kept",
    ]
    lines += [f"  {name}: {said}" for name, said in cover.notes.items()]
    lines += [f"  {row.name}: skipped, {row.reason}" for row in cover.stages if row.state == "skipped"]
    return lines


def _explain(rows: Any, as_json: bool) -> int:
    if as_json:
        say({"stages": [vars(row) for row in rows]}, True, [])
        return 0
    marks = {"kept": "[green]kept[/]", "to be made": "[yellow]to be made[/]", "skipped": "[dim]skipped[/]"}
    table = listing(("stage", "state"), ("why",))
    for row in rows:
        table.add_row(escape(row.name), marks.get(row.state, row.state), escape(row.reason))
    screen.print(table)
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    from rvc_spark.covers.song_cover import prune_covers

    if arguments.song is not None or arguments.vocals is not None:
        raise ConfigError("--prune clears away what was kept and makes no cover", "Run it without a song.")
    pruned = prune_covers(everything=arguments.prune == "all")
    words = f"{pruned.removed} removed, {pruned.freed / 1e6:.1f} MB freed; "
    words += f"{pruned.kept} kept, {pruned.bytes_left / 1e6:.1f} MB"
    say(vars(pruned), arguments.json, [words])
    if arguments.prune != "all" and not arguments.json and pruned.kept:
        errors.print("what is young enough stays; --prune all removes everything that no run uses", soft_wrap=True)
    return 0


def setting_fields() -> dict[str, Any]:
    """Name -> field of the settings that are options of their own."""
    from rvc_spark.covers.cover_settings import CoverSettings

    return {item.name: item for item in fields(CoverSettings) if item.name in OWN}
