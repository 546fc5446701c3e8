"""The store: one catalogue, one folder, and every way a file may come into it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from asset_server import AssetServer, asset_server

from rvc_spark.assets import AssetStore, FetchOptions, Progress, StoreOptions
from rvc_spark.errors import (
    ArchiveError,
    AssetError,
    ChecksumError,
    DiskSpaceError,
    DownloadError,
    MissingPackageError,
    OfflineError,
)
from rvc_spark.part_file import Disk
from rvc_spark.transport import NetworkOptions

RANDOM = random.Random(2)
FILES = {f"file-{n}": RANDOM.randbytes(150_000 + n) for n in range(4)}
QUICK = NetworkOptions(stall_seconds=1.0, attempts=2, backoff_seconds=0.01, token_hosts=frozenset({"127.0.0.1"}))
ROOT = Path(__file__).resolve().parent.parent


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def server():
    with asset_server() as running:
        for name, content in FILES.items():
            running.add(name, content)
        yield running


def entry(server: AssetServer, name: str, content: bytes, **changes: object) -> dict:
    fields = {
        "id": name, "path": f"models/{name}.bin", "bytes": len(content), "sha256": sha256(content), "licence": "MIT",
        "groups": ["all"], "needed_by": "tests", "sources": [{"https": server.url(name)}],
    }  # fmt: skip
    return {**fields, **changes}


class Place:
    """A folder with a catalogue and stores over it."""

    def __init__(self, folder: Path, server: AssetServer) -> None:
        self.folder, self.server = folder, server
        self.catalogue = folder / "catalogue.yaml"
        self.root = folder / "assets"
        self.write([entry(server, name, content) for name, content in FILES.items()])

    def write(self, entries: list[dict]) -> None:
        self.catalogue.write_text(yaml.safe_dump({"version": 1, "assets": entries}))

    def only(self, name: str = "file-0", **changes: object) -> AssetStore:
        self.write([entry(self.server, name, FILES[name], **changes)])
        return self.store()

    def store(self, root: Path | None = None, offline: bool = False, **options: object) -> AssetStore:
        chosen = StoreOptions(**{"catalogue": self.catalogue, "hub_cache": None, "network": QUICK, **options})
        return AssetStore(root or self.root, offline=offline, options=chosen)

    def left_over(self) -> list[str]:
        kept = {"lock", "json"}
        return [p.name for p in self.root.rglob("*") if p.is_file() and p.name.rsplit(".")[-1] not in kept]


@pytest.fixture
def place(tmp_path: Path, server: AssetServer) -> Place:
    return Place(tmp_path, server)


def test_fetch_places_a_proven_file_once(place: Place, server: AssetServer) -> None:
    store = place.store()
    steps: list[Progress] = []
    path = store.fetch("file-0", progress=steps.append)
    assert path == place.root / "models/file-0.bin" and path.read_bytes() == FILES["file-0"]
    assert steps[-1].done == len(FILES["file-0"]) and place.left_over() == ["file-0.bin"]
    assert place.store().fetch("file-0") == path and len(server.asked("file-0")) == 1
    assert store.asset_path("file-0") == path
    assert [status.state for status in store.status()] == ["ready", "missing", "missing", "missing"]


def test_a_missing_file_says_how_to_get_it(place: Place) -> None:
    with pytest.raises(AssetError, match="assets get file-1"):
        place.store().asset_path("file-1")
    with pytest.raises(AssetError, match="file-1"):
        place.store().fetch("file-l")


def test_many_at_once_and_one_bad_file_does_not_stop_the_rest(place: Place, server: AssetServer) -> None:
    server.add("file-2", b"other")
    with pytest.raises(DownloadError, match="offers 5 bytes"):
        place.store().fetch_many(groups=["all"])
    assert [status.state for status in place.store().status()] == ["ready", "ready", "missing", "ready"]
    server.add("file-2", FILES["file-2"])
    steps = []
    paths = place.store().fetch_many(groups=["all"], progress=steps.append)
    assert {name: path.read_bytes() for name, path in paths.items()} == FILES
    assert {step.asset_id for step in steps if step.path} == set(FILES)
    server.files.clear()
    (place.root / "models/file-1.bin").unlink()
    (place.root / "models/file-2.bin").unlink()
    with pytest.raises(DownloadError, match="2 of 4 files"):
        place.store().fetch_many()


def test_closing_the_iterator_stops_everything_and_keeps_what_came(place: Place, server: AssetServer) -> None:
    for name in FILES:
        server.files[f"/{name}"].stall_after = [100_000]
    before = threading.active_count()
    steps = place.store().fetch_iter(options=FetchOptions(parallel=4))
    while not all((place.root / f"models/{name}.bin.part").exists() for name in FILES):
        next(steps)
    steps.close()
    assert sum(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate()) == 0
    server.released.set()
    assert threading.active_count() <= before + 4  # the server's own connections may still be closing
    assert {status.state for status in place.store().status()} == {"partial"}
    assert place.store().fetch_many() and all(
        [request.range is not None for request in server.asked(name)] == [False, True] for name in FILES
    )


def test_an_interrupt_in_the_progress_keeps_the_part(place: Place, server: AssetServer) -> None:
    server.files["/file-0"].pause = 0.06

    def interrupt(step: Progress) -> None:
        if step.done > 60_000:
            raise KeyboardInterrupt

    server.files["/file-0"].block = 30_000
    with pytest.raises(KeyboardInterrupt):
        place.store().fetch("file-0", progress=interrupt)
    assert place.store().status(["file-0"])[0].state == "partial"
    server.files["/file-0"].pause = 0
    assert place.store().fetch("file-0").read_bytes() == FILES["file-0"]


def test_mirrors_take_turns_and_every_reason_is_told(place: Place, server: AssetServer) -> None:
    server.add("wrong", bytes(len(FILES["file-0"])))
    sources = [{"https": server.url("gone")}, {"https": server.url("wrong")}, {"https": server.url("file-0")}]
    assert place.only(sources=sources).fetch("file-0").read_bytes() == FILES["file-0"]
    (place.root / "models/file-0.bin").unlink()
    with pytest.raises(DownloadError, match="404.*sha256"):
        place.only(sources=sources[:2]).fetch("file-0")
    with pytest.raises(ChecksumError, match="no source gives"):
        place.only(sources=sources[1:2]).fetch("file-0")
    assert place.left_over() == []


def test_a_wrong_file_in_its_place_is_neither_used_nor_lost(place: Place) -> None:
    target = place.root / "models/file-0.bin"
    target.parent.mkdir(parents=True)
    for content in (b"mine", bytes(len(FILES["file-0"]))):
        target.write_bytes(content)
        with pytest.raises(ChecksumError, match="is there"):
            place.store().asset_path("file-0")
        with pytest.raises(ChecksumError, match="--replace"):
            place.store().fetch("file-0")
        assert target.read_bytes() == content
    assert place.store().fetch("file-0", FetchOptions(replace=True)).read_bytes() == FILES["file-0"]


def test_a_file_is_read_through_once_and_again_when_it_changed(place: Place, server: AssetServer) -> None:
    target = place.root / "models/file-0.bin"
    target.parent.mkdir(parents=True)
    target.write_bytes(FILES["file-0"])
    store = place.store()
    assert store.status(["file-0"])[0].state == "unchecked"
    assert store.fetch("file-0") == target and store.status(["file-0"])[0].state == "ready" and not server.requests
    stamp = target.stat()
    target.write_bytes(bytes(len(FILES["file-0"])))
    os.utime(target, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as bit rot does: nothing shows outside
    assert store.status(["file-0"])[0].state == "ready"
    assert store.verify(["file-0"])[0].state == "wrong"
    assert store.status(["file-0"])[0].state == "wrong"
    with pytest.raises(ChecksumError):
        store.asset_path("file-0")


def test_offline_never_opens_a_socket(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.store().fetch("file-0")

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, forbidden)
    store = place.store(offline=True)
    assert store.fetch("file-0").read_bytes() == FILES["file-0"]
    with pytest.raises(OfflineError, match="file-1"):
        store.fetch("file-1")
    with pytest.raises(OfflineError):
        store.fetch_many(["file-1", "file-2"])
    with pytest.raises(OfflineError):
        store.fetch_voice("https://example.com/voice.zip")


def test_licences_that_need_it_are_accepted_by_name(place: Place, server: AssetServer) -> None:
    store = place.only(licence="CC-BY-NC-SA-4.0", accept=True)
    for options in (FetchOptions(), FetchOptions(accept=["MIT"])):
        with pytest.raises(AssetError, match="--accept CC-BY-NC-SA-4.0"):
            store.fetch("file-0", options)
    assert not server.requests
    store.fetch("file-0", FetchOptions(accept=["CC-BY-NC-SA-4.0"])).unlink()
    assert store.fetch("file-0").exists()  # what was accepted once is not asked again


def test_files_without_a_published_digest_need_a_decision(place: Place, server: AssetServer) -> None:
    server.add("file-0", redirect="/store", headers={"X-Linked-Etag": sha256(FILES["file-0"])})
    server.add("store", FILES["file-0"])
    store = place.only(sha256=None, bytes=None)
    with pytest.raises(AssetError, match="--unpinned hub"):
        store.fetch("file-0")
    path = store.fetch("file-0", FetchOptions(unpinned="hub"))
    assert json.loads((place.root / ".state/file-0.json").read_text())["vouched_by"] == "hub"
    path.unlink()
    server.add("file-0", bytes(150_000))
    with pytest.raises(ChecksumError):  # the recorded digest holds from now on
        store.fetch("file-0")


def test_accepting_an_unpinned_file_records_what_came(place: Place) -> None:
    store = place.only(sha256=None)
    path = store.fetch("file-0", FetchOptions(unpinned="accept"))
    assert json.loads((place.root / ".state/file-0.json").read_text())["vouched_by"] == "nobody"
    assert store.asset_path("file-0") == path
    path.write_bytes(b"tampered")
    with pytest.raises(ChecksumError):
        store.asset_path("file-0")


def test_disk_space_is_counted_before_anything_starts(place: Place, server: AssetServer) -> None:
    store = place.store(disk=Disk(free=lambda folder: (16 << 20) + 300_000))
    with pytest.raises(DiskSpaceError, match="4 files need 600006 bytes"):
        store.fetch_many()
    assert not server.requests and store.fetch("file-0")


RACER = """
import sys
from pathlib import Path
from rvc_spark.assets import AssetStore, StoreOptions
store = AssetStore(Path(sys.argv[1]), options=StoreOptions(catalogue=Path(sys.argv[2]), hub_cache=None))
print(store.fetch("file-0", progress=lambda step: print(step.message, flush=True)).stat().st_size)
"""


def start_process(place: Place) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", RACER, str(place.root), str(place.catalogue)]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_two_processes_do_one_download(place: Place, server: AssetServer) -> None:
    server.files["/file-0"].block, server.files["/file-0"].pause = 4000, 0.03
    racers = [start_process(place), start_process(place)]
    outputs = [racer.communicate(timeout=60)[0].split("\n") for racer in racers]
    assert [output[-2] for output in outputs] == ["150000", "150000"]
    assert len(server.asked("file-0")) == 1 and server.sent == 150_000
    assert sum("waiting for another process that fetches it" in output for output in outputs) == 1


def test_a_killed_process_leaves_a_part_and_no_lock(place: Place, server: AssetServer) -> None:
    server.files["/file-0"].stall_after = [100_000]
    victim = start_process(place)
    part = place.root / "models/file-0.bin.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size == 100_000) and time.monotonic() < deadline:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (place.root / "models/file-0.bin").exists()
    assert place.store().fetch("file-0").read_bytes() == FILES["file-0"]
    assert server.asked("file-0")[-1].range == "bytes=100000-"


def test_prune_frees_parts_that_nobody_writes(place: Place, server: AssetServer) -> None:
    server.files["/file-0"].break_after = [100_000, 0, 0]
    store = place.store()
    with pytest.raises(DownloadError):
        store.fetch("file-0")
    assert store.prune() == 100_000 and place.left_over() == [] and store.prune() == 0


def hub_source(place: Place, name: str = "file-0", **changes: object) -> tuple[AssetStore, Path]:
    cache = place.folder / "hub"
    place.only(name, sources=[{"hf": f"owner/name@{'a' * 40}:sub/{name}"}], **changes)
    blobs = cache / "models--owner--name/blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    return place.store(offline=True, hub_cache=cache), blobs


def test_the_hubs_cache_saves_a_download(place: Place) -> None:
    store, blobs = hub_source(place)
    (blobs / sha256(FILES["file-0"])).write_bytes(bytes(len(FILES["file-0"])))
    with pytest.raises(OfflineError):  # a damaged cache entry is no reason to believe it
        store.fetch("file-0")
    (blobs / sha256(FILES["file-0"])).write_bytes(FILES["file-0"])
    assert store.fetch("file-0").read_bytes() == FILES["file-0"]


def test_the_hubs_cache_proves_unpinned_files_by_its_own_names(place: Place) -> None:
    store, blobs = hub_source(place, sha256=None, bytes=None)
    snapshot = blobs.parent / "snapshots" / ("a" * 40) / "sub"
    snapshot.mkdir(parents=True)
    outside = place.folder / sha256(FILES["file-0"])
    outside.write_bytes(FILES["file-0"])
    (snapshot / "file-0").symlink_to(outside)
    with pytest.raises(OfflineError):  # a link out of the cache
        store.fetch("file-0", FetchOptions(unpinned="hub"))
    (snapshot / "file-0").unlink()
    (blobs / outside.name).write_bytes(FILES["file-0"])
    (snapshot / "file-0").symlink_to(blobs / outside.name)
    with pytest.raises(AssetError, match="unpinned"):
        store.fetch("file-0")
    assert store.fetch("file-0", FetchOptions(unpinned="hub")).read_bytes() == FILES["file-0"]


def test_an_archive_is_a_source(place: Place, server: AssetServer) -> None:
    packed = place.folder / "pack.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("mute/file-1", FILES["file-1"])
    server.add("pack", packed.read_bytes())
    pack = entry(server, "pack", packed.read_bytes())
    good = entry(server, "file-1", FILES["file-1"], sources=[{"archive": "pack:mute/file-1"}])
    bad = entry(server, "file-2", FILES["file-2"], sources=[{"archive": "pack:mute/gone"}])
    place.write([pack, good, bad])
    assert place.store().fetch("file-1").read_bytes() == FILES["file-1"]
    with pytest.raises(DownloadError, match="no member"):
        place.store().fetch("file-2")


def fake_gdown(monkeypatch: pytest.MonkeyPatch, content: bytes, error: Exception | None = None) -> None:
    """Stands in for gdown, whose server cannot be reached from a test: it writes to `output` as the real one does."""

    def download(*, id: str, output, quiet: bool, use_cookies: bool) -> None:
        for at in range(0, len(content), 1000):
            output.write(content[at : at + 1000])
        if error is not None:
            raise error

    exceptions = types.ModuleType("gdown.exceptions")
    exceptions.FileURLRetrievalError = type("FileURLRetrievalError", (Exception,), {})
    module = types.ModuleType("gdown")
    module.download, module.exceptions = download, exceptions
    monkeypatch.setitem(sys.modules, "gdown", module)
    monkeypatch.setitem(sys.modules, "gdown.exceptions", exceptions)


def test_google_drive_comes_through_gdown_and_is_proven(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = place.only(sources=[{"gdown": "1a2b3c4d5e6f7g8h9i0j"}])
    fake_gdown(monkeypatch, FILES["file-0"][:-1] + b"!")
    with pytest.raises(ChecksumError, match="Google Drive"):
        store.fetch("file-0")
    fake_gdown(monkeypatch, FILES["file-0"] + b"more")
    with pytest.raises(DownloadError, match="more than 150000"):
        store.fetch("file-0")
    fake_gdown(monkeypatch, FILES["file-0"][:5], OSError("quota exceeded"))
    with pytest.raises(DownloadError, match="quota"):
        store.fetch("file-0")
    assert place.left_over() == []
    fake_gdown(monkeypatch, FILES["file-0"])
    assert store.fetch("file-0").read_bytes() == FILES["file-0"]


def test_a_missing_gdown_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(MissingPackageError, match="pip install 'gdown"):
        place.only(sources=[{"gdown": "1a2b3c4d5e6f7g8h9i0j"}]).fetch("file-0")


def test_import_finds_files_by_what_they_are(place: Place) -> None:
    source = place.folder / "from"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "renamed").write_bytes(FILES["file-0"])
    (source / "file-1.bin").write_bytes(bytes(len(FILES["file-1"])))
    (source / "notes.txt").write_text("hello")
    (source / "loop").symlink_to(source)
    report = place.store(offline=True).import_bundle(source)
    assert (report.placed, report.already) == (("file-0",), ())
    assert set(report.unknown) == {"file-1.bin", "notes.txt"}
    assert place.store().asset_path("file-0").read_bytes() == FILES["file-0"]
    assert place.store().import_bundle(source / "deep" / "renamed").already == ("file-0",)
    assert place.left_over() == ["file-0.bin"]
    with pytest.raises(AssetError, match="neither a file nor a folder"):
        place.store().import_bundle(source / "gone")


def test_a_bundle_carries_files_to_a_machine_without_network(place: Place) -> None:
    place.store().fetch_many()
    bundle = place.folder / "bundle.zip"
    assert place.store().export_bundle(bundle, ["file-0", "file-3"]) == ("file-0", "file-3")
    first = bundle.read_bytes()
    place.store().export_bundle(bundle, ["file-0", "file-3"])
    assert bundle.read_bytes() == first  # the same files give the same bundle
    there = place.store(root=place.folder / "there", offline=True)
    assert there.import_bundle(bundle).placed == ("file-0", "file-3")
    assert there.asset_path("file-3").read_bytes() == FILES["file-3"]
    with pytest.raises(AssetError, match="none of the chosen"):
        there.export_bundle(bundle, ["file-1"])


def test_a_hostile_bundle_is_refused(place: Place) -> None:
    bundle = place.folder / "bundle.zip"
    with zipfile.ZipFile(bundle, "w") as archive:
        archive.writestr("models/file-0.bin", FILES["file-0"])
        archive.writestr("../../evil", b"evil")
    with pytest.raises(ArchiveError, match="outside"):
        place.store().import_bundle(bundle)
    assert place.left_over() == []


def test_import_of_one_file_by_name(place: Place) -> None:
    source = place.folder / "file"
    store = place.only(sha256=None, bytes=None)
    source.write_bytes(FILES["file-0"])
    with pytest.raises(AssetError, match="--unpinned accept"):
        store.import_file("file-0", source)
    assert store.import_file("file-0", source, unpinned="accept").read_bytes() == FILES["file-0"]
    store = place.only("file-1")
    with pytest.raises(ChecksumError, match="is not file-1"):
        store.import_file("file-1", source)
    source.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00")
    with pytest.raises(ChecksumError, match="LFS pointer"):
        store.import_file("file-1", source)
    assert store.status(["file-1"])[0].state == "missing"
    target = place.root / "models/file-1.bin"
    target.write_bytes(FILES["file-1"])
    assert store.import_file("file-1", target) == target


def test_a_folder_that_cannot_be_written_is_named(place: Place) -> None:
    place.root.write_text("a file where the folder should be")
    with pytest.raises(AssetError, match="cannot be written"):
        place.store().fetch("file-0")
    with pytest.raises(AssetError, match="cannot be written"):
        place.store().fetch_many(["file-0", "file-1"])


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(AssetError, match="parallel is 0"):
        FetchOptions(parallel=0)
    with pytest.raises(AssetError, match="unpinned"):
        replace(FetchOptions(), unpinned="maybe")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--list"], 0, "rmvpe"),
        (["--list", "--json", "--group", "infer"], 0, '"state": "missing"'),
        (["--offline", "rmvpe"], 9, "offline mode"),
        (["nonsense"], 9, "no asset"),
        (["--verify", "rmvpe"], 9, "missing"),
    ],
)
def test_the_tool(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    command = [sys.executable, str(ROOT / "tools/download_all_assets.py"), "--root", str(tmp_path), "--no-hub-cache"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, words in done.stdout + done.stderr) == (code, True), done.stdout + done.stderr
