"""Fetch, list, check, import or export the downloadable files.

    python tools/download_all_assets.py                     everything that needs no decision of yours
    python tools/download_all_assets.py --group infer       what conversion needs
    python tools/download_all_assets.py --list              what there is, and what is here already

The library does the work; this only reads arguments and prints.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rvc_spark.asset_folder import AssetStatus
from rvc_spark.assets import AssetStore, FetchOptions, Progress, StoreOptions
from rvc_spark.errors import RvcSparkError
from rvc_spark.rvc_config import RVCConfig

MEBIBYTE = 1 << 20


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("ids", nargs="*", help="names of single files")
    parser.add_argument("--group", action="append", default=[], help="a group of files; may be given several times")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="show the files and whether they are here")
    action.add_argument("--verify", action="store_true", help="read through what is here and compare its sha256")
    action.add_argument("--import", dest="source", type=Path, help="take files from a folder, file, zip or tar")
    action.add_argument("--export", type=Path, help="write what is here into a zip for another machine")
    parser.add_argument("--accept", action="append", default=[], metavar="LICENCE", help="a licence you agree to")
    parser.add_argument(
        "--unpinned", choices=["refuse", "hub", "accept"], default="refuse",
        help="files without a published sha256: refuse them, believe the hub's own digest, or take what comes",
    )  # fmt: skip
    parser.add_argument("--replace", action="store_true", help="overwrite files that are there but wrong")
    parser.add_argument("--parallel", type=int, default=4, help="files at once, 1..16")
    parser.add_argument("--root", type=Path, help="the assets folder; from the settings by default")
    parser.add_argument("--catalogue", type=Path, help="your own catalogue: more files, sources and mirrors")
    parser.add_argument("--offline", action="store_true", help="never open a connection")
    parser.add_argument("--no-hub-cache", action="store_true", help="do not look into the Hugging Face cache")
    parser.add_argument("--json", action="store_true", help="one JSON object for each file and step")
    return parser.parse_args(arguments)


def open_store(options: argparse.Namespace) -> AssetStore:
    config = RVCConfig()
    chosen = StoreOptions(user_catalogue=options.catalogue)
    if options.no_hub_cache:
        chosen = StoreOptions(user_catalogue=options.catalogue, hub_cache=None)
    offline = options.offline or config.offline
    return AssetStore(options.root or config.assets_dir, offline=offline, token=config.hf_token, options=chosen)


def show_status(status: AssetStatus, as_json: bool) -> None:
    asset = status.asset
    if as_json:
        facts = {"id": asset.id, "state": status.state, "path": str(status.path), "bytes": asset.bytes}
        more = {"sha256": asset.sha256, "licence": asset.licence, "groups": asset.groups, "needed_by": asset.needed_by}
        print(json.dumps({**facts, **more}))
        return
    size = (
        "?"
        if not asset.bytes
        else f"{asset.bytes / MEBIBYTE:,.1f} MiB"
        if asset.bytes >= MEBIBYTE
        else f"{asset.bytes} B"
    )
    print(f"{status.state:9} {size:>13}  {asset.id:28} {asset.licence:16} {asset.needed_by}")


def show_step(step: Progress, as_json: bool) -> None:
    if as_json:
        facts = {"id": step.asset_id, "done": step.done, "total": step.total, "message": step.message}
        print(json.dumps({**facts, "path": step.path and str(step.path)}), flush=True)
    elif step.path is not None or step.error is not None or step.message != "downloading":
        print(f"{step.asset_id}: {step.message}", flush=True)


def fetch_all(store: AssetStore, options: argparse.Namespace) -> int:
    """Fetch what was named. When nothing was, what needs a decision (licence, no sha256) is listed and left out."""
    agreed = FetchOptions(options.accept, options.unpinned, options.replace, options.parallel)
    ids = options.ids
    if not ids and not options.group:
        undecided = [
            status.asset.id for status in store.status()
            if status.state != "ready"
            and ((status.asset.accept and status.asset.licence not in options.accept)
                 or (store.folder.pin(status.asset) is None and options.unpinned == "refuse"))
        ]  # fmt: skip
        if undecided and not options.json:
            print(f"left out, since they need --accept or --unpinned: {', '.join(undecided)}")
        ids = [asset.id for asset in store.catalogue.select() if asset.id not in undecided]
    worst = 0
    for step in store.fetch_iter(ids, options.group, agreed):
        show_step(step, options.json)
        worst = step.error.exit_code if step.error is not None else worst
    return worst


def run(options: argparse.Namespace) -> int:
    store = open_store(options)
    if options.source is not None:
        report = store.import_bundle(options.source)
        print(json.dumps(vars(report)) if options.json else f"placed: {', '.join(report.placed) or 'nothing'}")
        return 0 if report.placed or report.already else 9
    if options.export is not None:
        written = store.export_bundle(options.export, options.ids, options.group)
        print(json.dumps(written) if options.json else f"{options.export}: {', '.join(written)}")
        return 0
    if options.list or options.verify:
        look = store.verify if options.verify else store.status
        found = look(options.ids, options.group)
        for status in found:
            show_status(status, options.json)
        named = bool(options.ids or options.group)
        bad = [status for status in found if status.state == "wrong" or (named and status.state != "ready")]
        return 9 if options.verify and bad else 0
    return fetch_all(store, options)


def main() -> int:
    options = parse_arguments(sys.argv[1:])
    try:
        return run(options)
    except RvcSparkError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; what has arrived is kept and the next run goes on with it", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
