"""rvc-spark assets list|get|verify|import|export|voice: the downloadable files, from a terminal."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from rvc_spark.cli_output import errors, listing, say, screen

STATE_MARKS = {"ready": "green", "unchecked": "green", "partial": "yellow", "unpinned": "yellow", "wrong": "red"}
GOOD_STATES = ("ready", "missing", "partial")


def _store(arguments: argparse.Namespace) -> Any:
    from rvc_spark.assets import AssetStore, StoreOptions
    from rvc_spark.rvc_config import RVCConfig
    from rvc_spark.transport import NetworkOptions

    config = RVCConfig()
    network = NetworkOptions(proxy=config.proxy, ca_file=config.ca_file)
    options = StoreOptions(user_catalogue=config.catalogue, network=network)
    offline = config.offline or getattr(arguments, "offline", False)
    return AssetStore(config.assets_dir, offline=offline, token=config.hf_token, options=options)


def _selection(store: Any, names: list[str]) -> tuple[list[str], list[str]]:
    """Names of the command line as (ids, groups); a name may be either."""
    groups = [name for name in names if name in store.catalogue.groups]
    return [name for name in names if name not in groups], groups


def _status_report(status: Any) -> dict[str, Any]:
    asset = status.asset
    return {
        "id": asset.id, "state": status.state, "path": str(status.path), "bytes": asset.bytes, "sha256": asset.sha256,
        "licence": asset.licence, "accept": asset.accept, "groups": list(asset.groups), "needed_by": asset.needed_by,
        "sources": [str(source) for source in asset.sources],
    }  # fmt: skip


def _show(statuses: Any, as_json: bool) -> None:
    table = listing(("file", "state", "size"), ("groups", "licence", "needed for"))
    for status in statuses:
        if as_json:
            say(_status_report(status), True, [])
            continue
        asset = status.asset
        size = "unknown" if asset.bytes is None else decimal(asset.bytes)
        mark = STATE_MARKS.get(status.state, "dim")
        licence = f"{asset.licence} (must be accepted)" if asset.accept else asset.licence
        cells = (", ".join(asset.groups), licence, asset.needed_by)
        table.add_row(escape(asset.id), f"[{mark}]{status.state}[/]", size, *map(escape, cells))
    if not as_json:
        screen.print(table)


def command_list(arguments: argparse.Namespace) -> int:
    """What there is, and what of it is here."""
    store = _store(arguments)
    ids, groups = _selection(store, arguments.names)
    _show(store.status(ids, groups), arguments.json)
    return 0


def command_verify(arguments: argparse.Namespace) -> int:
    """Read what is here through again; exit code 1 if a file is not what it should be."""
    store = _store(arguments)
    ids, groups = _selection(store, arguments.names)
    statuses = store.verify(ids, groups)
    _show(statuses, arguments.json)
    return 0 if all(status.state in GOOD_STATES for status in statuses) else 1


def command_get(arguments: argparse.Namespace) -> int:
    """Download; a file that fails does not stop the others."""
    from rvc_spark.assets import FetchOptions

    store = _store(arguments)
    ids, groups = _selection(store, arguments.names)
    options = FetchOptions(
        accept=tuple(arguments.accept),
        unpinned=arguments.unpinned,
        replace=arguments.replace,
        parallel=arguments.parallel,
    )
    failed = False
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=errors, disable=arguments.json or not errors.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}
        for step in store.fetch_iter(ids, groups, options):
            if step.asset_id not in tasks:
                tasks[step.asset_id] = bars.add_task(step.asset_id, total=None)
            bars.update(tasks[step.asset_id], completed=step.done, total=step.total)
            if step.path is not None:
                say({"id": step.asset_id, "path": str(step.path)}, arguments.json, [f"{step.asset_id}: {step.path}"])
            if step.error is not None:
                failed = True
                if arguments.json:
                    say({"id": step.asset_id, "error": str(step.error)}, True, [])
                errors.print(f"[red]{escape(step.asset_id)}[/]: {escape(str(step.error))}", soft_wrap=True)
    return 9 if failed else 0


def command_import(arguments: argparse.Namespace) -> int:
    """Place files from another machine by their sha256, or one file under a name."""
    store = _store(arguments)
    if arguments.path is not None:
        path = store.import_file(arguments.source, arguments.path, unpinned=arguments.unpinned)
        say({"id": arguments.source, "path": str(path)}, arguments.json, [f"{arguments.source}: {path}"])
        return 0
    report = store.import_bundle(Path(arguments.source))
    lines = [
        f"placed: {', '.join(report.placed) or 'nothing'}",
        f"already here: {', '.join(report.already) or 'nothing'}",
        f"in no catalogue: {', '.join(report.unknown) or 'nothing'}",
    ]
    say(asdict(report), arguments.json, lines)
    return 0


def command_export(arguments: argparse.Namespace) -> int:
    """One zip of what is here, for a machine without a network."""
    store = _store(arguments)
    ids, groups = _selection(store, arguments.names)
    written = store.export_bundle(arguments.target, ids, groups)
    say(
        {"target": str(arguments.target), "ids": list(written)}, arguments.json, [f"{arguments.target}: {len(written)}"]
    )
    return 0


def command_voice(arguments: argparse.Namespace) -> int:
    """A voice of one's own from an https address, .pth or zip."""
    from rvc_spark.rvc_config import RVCConfig
    from rvc_spark.voice_download import VoiceRequest

    request = VoiceRequest(folder=RVCConfig().weights_dir, name=arguments.name, sha256=arguments.sha256)
    files = _store(arguments).fetch_voice(arguments.url, request)
    found = [str(path) for path in (*files.voices, *files.indexes)]
    say({"files": found, "sha256": files.sha256}, arguments.json, found)
    return 0


def add_assets(commands: Any) -> None:
    """The `assets` branch of the command line."""
    assets = commands.add_parser("assets", help="the downloadable files: list, get, verify, import, export, voice")
    actions = assets.add_subparsers(dest="action", required=True, metavar="ACTION")
    made = {}
    for name, run, help_text in (
        ("list", command_list, "what there is and what of it is here"),
        ("get", command_get, "download files or groups, verified and resumable"),
        ("verify", command_verify, "read what is here through again"),
        ("import", command_import, "take files from another machine: a folder, file, zip or tar"),
        ("export", command_export, "write what is here into one zip"),
        ("voice", command_voice, "fetch a voice of your own from an https address"),
    ):
        made[name] = actions.add_parser(name, help=help_text)
        made[name].add_argument("--json", action="store_true", help="print one JSON object per result")
        made[name].set_defaults(run=run)
    for name in ("list", "verify", "export"):
        made[name].add_argument("names", nargs="*", help="files or groups; all if none is named")
    made["get"].add_argument("names", nargs="+", help="files or groups, such as infer")
    made["get"].add_argument("--accept", action="append", default=[], metavar="LICENCE", help="a licence you agree to")
    made["get"].add_argument("--replace", action="store_true", help="overwrite files that are there but wrong")
    made["get"].add_argument("--parallel", type=int, default=4, help="files at once, 1 to 16")
    made["get"].add_argument("--offline", action="store_true", help="never open a connection")
    made["get"].add_argument("--unpinned", choices=("refuse", "hub", "accept"), default="refuse",
                             help="what to do without a published sha256")  # fmt: skip
    made["import"].add_argument("source", help="folder, file, zip or tar; or the id of one file, followed by its path")
    made["import"].add_argument("path", nargs="?", type=Path, help="the file to put at that id's place")
    made["import"].add_argument("--unpinned", choices=("refuse", "accept"), default="refuse")
    made["export"].add_argument("--target", type=Path, required=True, help="zip file to write")
    made["voice"].add_argument("url")
    made["voice"].add_argument("--name", help="what the voice shall be called")
    made["voice"].add_argument("--sha256", help="of the file at the address, if its giver says")
