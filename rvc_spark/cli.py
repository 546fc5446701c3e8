"""rvc-spark: the same verbs as in the notebook, from a terminal.

Results go to standard output (with --json, one JSON object per line and nothing else), progress and errors to standard
error. A refused input ends with the exit code of its kind of error; see `rvc_spark.errors`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.markup import escape

from rvc_spark import __version__
from rvc_spark.cli_output import errors, listing, progress_bar, say, screen
from rvc_spark.cli_speak import add_speech, command_engines, command_enroll, command_speak, refuse_terminal
from rvc_spark.errors import OutputError, RvcSparkError
from rvc_spark.infer.settings import ConversionSettings

STANDARD = "-"  # standard input or output
INTERRUPTED = 130  # what shells report for Ctrl-C


def engines_line(engines: dict[str, Any]) -> str:
    """`device=cpu (no CUDA device), pitch=pm (...)`."""
    return ", ".join(f"{name}={choice}" for name, choice in engines.items())


def conversion_lines(conversion: Any) -> list[str]:
    """What a person wants to know of a finished conversion."""
    place = conversion.path or "standard output"
    return [
        f"{place}: {conversion.seconds:.2f} s at {conversion.rate} Hz in {conversion.elapsed:.2f} s "
        f"(real-time factor {conversion.real_time_factor:.2f})",
        f"voice {conversion.voice}; {engines_line(conversion.engines)}",
        *([] if conversion.watermark is None else [f"watermark {conversion.watermark}"]),
    ]


def _auto_key(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def add_settings(parser: argparse.ArgumentParser) -> None:
    """One option per conversion setting, with the words and ranges of the settings themselves."""
    group = parser.add_argument_group("conversion")
    kinds = {"int": int, "float": float}
    for item in fields(ConversionSettings):
        low, high, unit = (item.metadata[name] for name in ("low", "high", "unit"))
        span = "" if low is None or high > 1e6 else f"; {low:g} to {high:g} {unit}".rstrip()
        group.add_argument(
            f"--{item.name.replace('_', '-')}",
            dest=item.name,
            type=_auto_key if item.name == "auto_key" else kinds.get(str(item.type), str),
            default=argparse.SUPPRESS,
            metavar=item.name.upper(),
            help=f"{item.metadata['help']}{span} (default: {item.default})".replace("%", "%%"),
        )


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The conversion settings the user gave."""
    return {name: value for name, value in vars(arguments).items() if name in ConversionSettings.names()}


def add_voice(parser: argparse.ArgumentParser) -> None:
    """Which voice and index, and on what it runs."""
    words = "name of a voice (see `rvc-spark voices`), path of a .pth; for speak also none: unconverted"
    parser.add_argument("--voice", default="demo", help=words)
    parser.add_argument("--index", default="auto", help="auto, none, or path of an .index file (default: auto)")
    parser.add_argument("--device", default=None, help="auto, cpu, cuda, cuda:N or mps (default: auto)")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where to and in what form."""
    parser.add_argument("-o", "--output", help="file to write, or - for standard output")
    parser.add_argument(
        "--format", choices=("wav", "flac", "ogg", "mp3", "m4a"), help="default: by the suffix of the output"
    )
    parser.add_argument("--sample-format", choices=("pcm16", "pcm24", "float32"), help="default: pcm16")
    add_watermark(parser)


def add_watermark(parser: argparse.ArgumentParser) -> None:
    """The mark that says a program made the sound."""
    words = "perth adds an inaudible mark that says a program made it (default: `watermark` of the settings, none)"
    parser.add_argument("--watermark", choices=("none", "perth"), help=words)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Every command can speak to machines."""
    parser.add_argument("--json", action="store_true", help="print one JSON object per result and nothing else")


def encode_options(arguments: argparse.Namespace) -> Any:
    """EncodeOptions from --format, --sample-format and --watermark."""
    from rvc_spark.audio import EncodeOptions

    names = ("format", "sample_format", "watermark")
    chosen = {name: getattr(arguments, name) for name in names}
    return EncodeOptions(**{name: value for name, value in chosen.items() if value})


def load_voice(arguments: argparse.Namespace) -> None:
    """Make the shared VC and load the voice the user named."""
    from rvc_spark.rvc_init import init_rvc, load_model

    init_rvc(**({"device": arguments.device} if arguments.device else {}))
    load_model(arguments.voice, index=None if arguments.index == "none" else arguments.index)


def write_standard(conversion: Any, options: Any) -> None:
    """Send the encoded sound to standard output."""
    from dataclasses import replace

    from rvc_spark.audio import encode_whole

    refuse_terminal()
    encoded = encode_whole(conversion.audio, replace(options, format=options.format or "wav"))
    conversion.watermark = encoded.watermark
    sys.stdout.buffer.write(encoded.data)
    sys.stdout.buffer.flush()


def deliver(conversion: Any, arguments: argparse.Namespace, options: Any, extra: dict[str, Any]) -> None:
    """Report a conversion, and write it when it goes to standard output."""
    if arguments.output == STANDARD:
        write_standard(conversion, options)
        errors.print(escape("\n".join(conversion_lines(conversion))), soft_wrap=True)
    else:
        say({**extra, **conversion.report()}, arguments.json, conversion_lines(conversion))


def command_convert(arguments: argparse.Namespace) -> int:
    """A file, a folder or standard input into the voice."""
    source = arguments.source
    if source != STANDARD and Path(source).is_dir():
        return _convert_folder(arguments)
    load_voice(arguments)
    from rvc_spark.rvc_init import convert_audio

    options = encode_options(arguments)
    if arguments.output is None:
        stem = "converted" if source == STANDARD else Path(source).stem
        arguments.output = f"{stem}_{Path(arguments.voice).stem}.{arguments.format or 'wav'}"
    target = None if arguments.output == STANDARD else arguments.output
    recording = sys.stdin.buffer if source == STANDARD else source
    with progress_bar(arguments.json) as bar:
        conversion = convert_audio(recording, target, options=options, on_progress=bar, **settings_of(arguments))
    deliver(conversion, arguments, options, {"source": source})
    return 0


def _convert_folder(arguments: argparse.Namespace) -> int:
    """Every sound of a folder; a file that fails is reported and the others go on."""
    if arguments.output in (None, STANDARD):
        raise OutputError(f"{arguments.source} is a folder", "Name a folder for the results with -o FOLDER.")
    load_voice(arguments)
    from rvc_spark.rvc_init import convert_folder

    failures = 0
    options = encode_options(arguments)
    items = convert_folder(
        arguments.source, arguments.output, format=arguments.format or "wav", options=options, **settings_of(arguments)
    )
    for item in items:
        if item.conversion is not None:
            report = {"source": str(item.source), **item.conversion.report()}
            say(report, arguments.json, conversion_lines(item.conversion)[:1])
        else:
            failures += 1
            say({"source": str(item.source), "error": str(item.error)}, arguments.json, [])
            errors.print(f"[red]{escape(str(item.source))}[/]: {escape(str(item.error))}", soft_wrap=True)
    return 1 if failures else 0


def command_voices(arguments: argparse.Namespace) -> int:
    """All voices, trained and enrolled, with what is known of them."""
    from rvc_spark.cli_profiles import list_profiles
    from rvc_spark.rvc_modules import VC

    vc = VC()
    table = listing(("voice", "rate", "version", "speakers", "pitch", "size"), ("index", "note"))
    for voice in vc.voices():
        report: dict[str, Any] = {"name": voice.name, "kind": "voice", "path": str(voice.path), "bytes": voice.size}
        size = f"{voice.size / 1e6:.1f} MB"
        if voice.info is None:
            report["error"] = voice.error
            table.add_row(escape(voice.name), *[""] * 4, size, "", escape(f"refused: {voice.error}"))
        else:
            info = voice.info
            try:
                index = vc.index_choice(voice.path, info)
                found = Path(index.value).name or f"none ({index.reason})"
            except RvcSparkError as error:
                found = str(error)
            report |= {
                "rate": info.sample_rate, "version": info.version, "speakers": info.speakers, "f0": info.has_f0,
                "vocoder": info.vocoder, "index": found, "licence": voice.card.licence, "warnings": list(info.warnings),
            }  # fmt: skip
            note = "; ".join([voice.card.description, *info.warnings]).strip("; ")
            columns = (voice.name, str(info.sample_rate), info.version, str(info.speakers))
            table.add_row(*map(escape, columns), "yes" if info.has_f0 else "no", size, escape(found), escape(note))
        if arguments.json:
            say(report, True, [])
    list_profiles(table, arguments.json)
    if not arguments.json:
        screen.print(table)
        screen.print(f"voices are looked for in {', '.join(map(str, vc.folders))}", soft_wrap=True)
    return 0


def command_demo(arguments: argparse.Namespace) -> int:
    """The main job: text in, the demo voice out, with picture and executed notebook."""
    from rvc_spark.demo import run_demo

    folder = None if arguments.output is None else Path(arguments.output)
    result = run_demo(arguments.text, folder, errors_say, watermark=arguments.watermark)
    say(result.report(), arguments.json, result.lines())
    return 0


def errors_say(message: str) -> None:
    """One line of progress on standard error."""
    errors.print(escape(message), soft_wrap=True)


def command_doctor(arguments: argparse.Namespace) -> int:
    """What works on this machine, and why not."""
    from rvc_spark.doctor import examine

    findings = examine()
    table = listing(("what", "state"), ("detail",))
    marks = {"ok": "[green]ok[/]", "optional": "[yellow]not here[/]", "broken": "[red]broken[/]"}
    for finding in findings:
        table.add_row(escape(finding.what), marks[finding.state], escape(finding.detail))
        if arguments.json:
            say(finding.report(), True, [])
    if not arguments.json:
        screen.print(table)
    return 1 if any(finding.state == "broken" for finding in findings) else 0


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from rvc_spark.cli_assets import add_assets
    from rvc_spark.cli_benchmark import add_benchmark
    from rvc_spark.cli_cover import add_cover
    from rvc_spark.cli_export import add_export
    from rvc_spark.cli_profiles import add_enrolment, add_profiles
    from rvc_spark.cli_triton import add_triton
    from rvc_spark.cli_watermark import add_watermark_commands

    top = argparse.ArgumentParser(prog="rvc-spark", description="Text or a recording in, the chosen voice out.")
    top.add_argument("--version", action="version", version=f"rvc-spark {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="speak a sentence in the demo voice and show everything about it")
    demo.add_argument("text", nargs="?", default=None, help="what to say")
    demo.add_argument("-o", "--output", help="folder for the results (default: TEMP/demo)")
    add_watermark(demo)
    demo.set_defaults(run=command_demo)

    speak = commands.add_parser("speak", help="text -> the chosen voice")
    speak.add_argument("text", help="what to say, or - for standard input")
    speak.add_argument("--stream", action="store_true", help="write sound as it is being made, sentence by sentence")
    add_speech(speak)
    speak.set_defaults(run=command_speak)

    enroll = commands.add_parser("enroll", help="recordings -> a profile, or a small file a speech engine speaks from")
    enroll.add_argument("recordings", nargs="+", help="one or more, for a profile also folders; 6 s or longer is best")
    enroll.add_argument("--engine", help="auto, triton, spark or espeak (default: auto)")
    enroll.add_argument("--transcript", help="what the one recording says, for Spark-TTS")
    enroll.add_argument("-o", "--output", help="where to put the file")
    add_enrolment(enroll)
    enroll.set_defaults(run=command_enroll)

    engines = commands.add_parser("engines", help="which speech engines could speak here, and which would")
    engines.set_defaults(run=command_engines)

    convert = commands.add_parser("convert", help="a recording, a folder of them, or standard input -> the voice")
    convert.add_argument("source", help="file, folder, or - for standard input")
    convert.set_defaults(run=command_convert)
    for command in (speak, convert):
        add_voice(command)
        add_output(command)
        add_settings(command)

    voices = commands.add_parser("voices", help="list the voices")
    voices.set_defaults(run=command_voices)
    doctor = commands.add_parser("doctor", help="what works on this machine and why not")
    doctor.set_defaults(run=command_doctor)
    for command in (demo, speak, enroll, engines, convert, voices, doctor):
        add_json(command)
    add_cover(commands)
    add_assets(commands)
    add_profiles(commands)
    add_benchmark(commands)
    add_export(commands)
    add_triton(commands)
    add_watermark_commands(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except RvcSparkError as error:
        if getattr(arguments, "json", False):
            say({"error": str(error), "kind": type(error).__name__}, True, [])
        errors.print(f"[red]{type(error).__name__}[/]: {escape(str(error))}", soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        errors.print("stopped")
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away; there is nobody left to tell
        return 1
