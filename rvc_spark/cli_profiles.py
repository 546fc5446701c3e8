"""rvc-spark enroll --name and rvc-spark profiles: enrolled voices from a terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.markup import escape

from rvc_spark.cli_output import errors, listing, progress_bar, say, screen
from rvc_spark.errors import ConfigError, ConsentError

GRADE_MARKS = {"ok": "green", "warn": "yellow", "reject": "red"}
ONLY_PROFILES = ("consent", "who", "consent_recording", "keep_originals", "cut", "accept", "language", "yes")


def add_enrolment(parser: argparse.ArgumentParser) -> None:
    """The options of `enroll` that make a profile instead of a speaker file."""
    group = parser.add_argument_group("a profile", "with --name a profile is made, which needs consent")
    group.add_argument("--name", help="what the profile is called; then it is a --reference by that name")
    group.add_argument("--consent", metavar="STATEMENT", help="what the owner of the voice agreed to")
    group.add_argument("--who", help="whose voice it is, and who agreed for them if that is somebody else")
    group.add_argument("--consent-recording", metavar="FILE", help="the statement spoken by the same voice")
    group.add_argument("--yes", action="store_true", help="confirm the consent without being asked")
    group.add_argument("--language", help="of the recordings, such as en or de-AT")
    group.add_argument("--keep-originals", action="store_true", help="keep the files as they came, too")
    group.add_argument("--cut", action="store_true", help="take the offered pieces of recordings that are too long")
    group.add_argument("--accept", choices=("ok", "warn", "reject"), help="worst grade that is taken (default: warn)")


def command_enroll_profile(arguments: argparse.Namespace) -> int:
    """Recordings and a consent become a profile."""
    from rvc_spark.profile_verbs import create_profile, sounds_of
    from rvc_spark.profiles.profile_store import describe
    from rvc_spark.rvc_init import init_rvc

    if arguments.output:
        raise ConfigError("-o is for speaker files, and --name makes a profile", "Leave one of them out.")
    consent = _consent(arguments)
    init_rvc()
    recordings = sounds_of(arguments.recordings)
    told: dict[str, Any] = {"keep_originals": arguments.keep_originals, "cut": arguments.cut}
    told |= {"language": arguments.language} if arguments.language else {}
    told |= {"accept": arguments.accept} if arguments.accept else {}
    if arguments.consent_recording:
        told["consent_recording"] = Path(arguments.consent_recording)
    if arguments.transcript is not None:
        if len(recordings) != 1:
            raise ConfigError(
                f"--transcript is given with {len(recordings)} recordings", "Give the one recording it is of."
            )
        told["transcripts"] = [arguments.transcript]
    with progress_bar(arguments.json) as bar:
        profile = create_profile(
            recordings, arguments.name, consent, engine=arguments.engine, on_progress=bar, **told
        )  # fmt: skip
    report = profile.report()
    pitch = "" if profile.pitch is None else f", speaks around {profile.pitch.median:.0f} Hz"
    say({**describe(profile), "advice": list(report.sentences)}, arguments.json, [
        f"{profile.name}: enrolled as {profile.id} from {len(profile.samples)} recordings, {profile.seconds:.1f} s"
        f"{pitch}; graded {report.grade}",
        *report.sentences,
        f'speak with --reference "{profile.name}"',
    ])  # fmt: skip
    return 0


def refuse_profile_options(arguments: argparse.Namespace) -> None:
    """Raises ConfigError where an option of profiles is given and no name."""
    given = [name for name in ONLY_PROFILES if getattr(arguments, name)]
    if given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')} is for profiles, and no --name is given", "Name the profile with --name."
        )


def _consent(arguments: argparse.Namespace) -> Any:
    from rvc_spark.profiles.consent import STATEMENT, given_consent

    if not arguments.consent or not arguments.who:
        raise ConsentError(
            f"--{'consent' if not arguments.consent else 'who'} is missing, and no voice is enrolled without",
            f'Give --consent "{STATEMENT}" --who "Anna Example".',
        )
    method = "recording" if arguments.consent_recording else "checkbox"
    consent = given_consent(arguments.consent, arguments.who, method=method)
    if arguments.yes:
        return consent
    if not sys.stdin.isatty():
        raise ConsentError("nobody is there to confirm the consent", "Add --yes if it was given.")
    errors.print(escape(f"{consent.who}:\n  {consent.statement}"), soft_wrap=True)
    errors.print("Did they agree to this? Type yes: ", end="")
    if sys.stdin.readline().strip().lower() != "yes":
        raise ConsentError("the consent was not confirmed", "Nothing was enrolled.")
    return consent


def _store() -> Any:
    from rvc_spark.profiles.profile_store import ProfileStore

    return ProfileStore.of()


def command_list(arguments: argparse.Namespace) -> int:
    """Every profile; damaged ones with the reason. Exit code 1 if one is damaged."""
    from rvc_spark.profiles.profile_store import describe

    listings = _store().listings()
    table = listing(("profile", "samples", "length", "pitch", "grade"), ("id", "note"))
    for item in listings:
        if item.profile is None:
            say({"id": item.id, "error": item.error}, arguments.json, [])
            table.add_row("", "", "", "", "[red]damaged[/]", item.id, escape(item.error or ""))
            continue
        told = describe(item.profile)
        if arguments.json:
            say(told, True, [])
        pitch = "" if told["f0_hz"] is None else f"{told['f0_hz'][1]:.0f} Hz"
        mark = GRADE_MARKS[told["grade"]]
        cells = (str(told["samples"]), f"{told['seconds']:.1f} s", pitch, f"[{mark}]{told['grade']}[/]")
        table.add_row(escape(item.name), *cells, item.id, escape(_note(told)))
    if not arguments.json:
        screen.print(table)
    return 1 if any(item.profile is None for item in listings) else 0


def _note(told: dict[str, Any]) -> str:
    parts = [f"of {told['consent']['who']}", f"in {told['language']}" if told["language"] else ""]
    parts += ["with transcript" if told["transcript"] else "", f"RVC voice {told['voice']}" if told["voice"] else ""]
    return ", ".join(part for part in parts if part)


def command_show(arguments: argparse.Namespace) -> int:
    """One profile: consent, recordings, what was found of each."""
    from dataclasses import asdict

    from rvc_spark.profiles.profile_store import describe

    profile = _store().get(arguments.profile)
    record, report = profile.record, profile.report()
    told = describe(profile) | {
        "consent": asdict(record.consent), "recordings": [asdict(sample) for sample in record.samples],
        "reference": asdict(record.reference), "advice": list(report.sentences),
    }  # fmt: skip
    lines = [
        f"{profile.name} ({profile.id}), enrolled {record.created}, graded {record.grade}",
        f"consent: {record.consent.who}, {record.consent.when}, by {record.consent.method}: {record.consent.statement}",
    ]
    lines += [
        f"  {sample.file}: {sample.seconds:.1f} s at {sample.rate} Hz, gain {sample.gain_db:+.1f} dB"
        + (f', "{sample.transcript}"' if sample.transcript else "")
        for sample in record.samples
    ]
    own = record.reference
    lines.append(f"reference: {own.start:.1f} to {own.end:.1f} s of recording {own.sample + 1}: {own.reason}")
    if record.f0 is not None:
        f0 = record.f0
        lines.append(f"pitch: {f0.low_hz:.0f} to {f0.high_hz:.0f} Hz, median {f0.median_hz:.0f} Hz ({f0.method})")
    say(told, arguments.json, [*lines, *report.sentences])
    return 0


def command_delete(arguments: argparse.Namespace) -> int:
    """Erase profiles; only that they existed, and when they were deleted, stays."""
    store = _store()
    for reference in arguments.profile:
        if not arguments.yes:
            if not sys.stdin.isatty():
                raise ConfigError("nobody is there to confirm that the profile is erased", "Add --yes.")
            errors.print(escape(f"Erase {reference} for good? Type yes: "), end="")
            if sys.stdin.readline().strip().lower() != "yes":
                raise ConfigError("the deletion was not confirmed", "Nothing was deleted.")
        tombstone = store.delete(reference)
        say({"id": tombstone.id, "deleted": tombstone.deleted}, arguments.json, [f"{reference}: erased"])
    return 0


def command_export(arguments: argparse.Namespace) -> int:
    """One archive of one profile."""
    from rvc_spark.profiles.profile_archive import export_profile

    path = export_profile(_store().get(arguments.profile), arguments.output or Path.cwd())
    say({"path": str(path), "bytes": path.stat().st_size}, arguments.json, [
        f"{path}: {path.stat().st_size / 1e6:.1f} MB; whoever has it has the voice",
    ])  # fmt: skip
    return 0


def command_import(arguments: argparse.Namespace) -> int:
    """A profile from another machine."""
    from rvc_spark.profiles.profile_archive import import_profile
    from rvc_spark.profiles.profile_store import describe

    profile = import_profile(_store(), arguments.archive, name=arguments.name, restore=arguments.restore)
    say(describe(profile), arguments.json, [f"{profile.name}: imported as {profile.id}"])
    return 0


def command_check(arguments: argparse.Namespace) -> int:
    """Read profiles through, every byte. Exit code 15 if one is not what was enrolled."""
    from rvc_spark.errors import ProfileError, RvcSparkError

    store = _store()
    damaged = 0
    for item in store.listings():
        if arguments.profile and not {item.id, item.name} & set(arguments.profile):
            continue
        problem = item.error
        if item.profile is not None:
            try:
                item.profile.check()
            except RvcSparkError as error:
                problem = str(error)
        damaged += problem is not None
        say({"id": item.id, "name": item.name, "error": problem}, arguments.json, [
            f"{item.name}: {problem or 'as it was enrolled'}",
        ])  # fmt: skip
    return ProfileError.exit_code if damaged else 0


def list_profiles(table: Any, as_json: bool) -> None:
    """The profiles, among the voices of `rvc-spark voices`: rows of a table, or a JSON line each."""
    from rvc_spark.profiles.profile_store import describe

    for item in _store().listings():
        told: dict[str, Any] = {"name": item.name, "kind": "profile", "id": item.id}
        if item.profile is None:
            told["error"] = item.error
            table.add_row(escape(item.name), *[""] * 5, "", escape(f"profile, damaged: {item.error}"))
        else:
            told |= describe(item.profile)
            note = "enrolled voice: --reference, --auto-key profile:NAME"
            pitch = "" if told["f0_hz"] is None else f"{told['f0_hz'][1]:.0f} Hz"
            size = f"{told['seconds']:.1f} s"
            cells = (item.name, "", "profile", "1", pitch, size, told["voice"] or "", note)
            table.add_row(*map(escape, cells))
        if as_json:
            say(told, True, [])


def add_profiles(commands: Any) -> None:
    """The `profiles` branch of the command line."""
    profiles = commands.add_parser("profiles", help="enrolled voices: list, show, check, export, import, delete")
    actions = profiles.add_subparsers(dest="action", required=True, metavar="ACTION")
    made = {}
    for name, run, help_text in (
        ("list", command_list, "every profile"),
        ("show", command_show, "all that is known of one: consent, recordings, advice"),
        ("check", command_check, "read profiles through; all if none is named"),
        ("export", command_export, "write one into an archive, to take it to another machine"),
        ("import", command_import, "take one from an archive"),
        ("delete", command_delete, "erase profiles for good"),
    ):
        made[name] = actions.add_parser(name, help=help_text)
        made[name].add_argument("--json", action="store_true", help="print one JSON object per result")
        made[name].set_defaults(run=run)
    for name in ("show", "export"):
        made[name].add_argument("profile", help="name or id")
    made["check"].add_argument("profile", nargs="*", help="names or ids")
    made["delete"].add_argument("profile", nargs="+", help="names or ids")
    made["delete"].add_argument("--yes", action="store_true", help="do not ask")
    made["export"].add_argument("-o", "--output", type=Path, help="archive to write, or a folder for it")
    made["import"].add_argument("archive", type=Path)
    made["import"].add_argument("--name", help="what it shall be called here")
    made["import"].add_argument("--restore", action="store_true", help="although it was deleted here before")
