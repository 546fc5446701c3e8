"""The store: one catalogue, one folder, and every way a file may come into it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from asset_place import FILES, Place, sha256
from asset_server import AssetServer, asset_server

from rvc_spark.assets import FetchOptions, Progress
from rvc_spark.errors import (
    AssetError,
    ChecksumError,
    DiskSpaceError,
    DownloadError,
    OfflineError,
)
from rvc_spark.part_file import Disk

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def server():
    with asset_server() as running:
        for name, content in FILES.items():
            running.add(name, content)
        yield running


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


def test_a_mistake_in_a_thread_is_neither_swallowed_nor_waited_for_ever(place: Place) -> None:
    def broken(*args: object, **options: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        place.store(disk=Disk(open=broken)).fetch_many()


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


def test_a_file_nobody_vouches_for_is_not_used(place: Place, server: AssetServer) -> None:
    store = place.only(sha256=None)
    target = place.root / "models/file-0.bin"
    target.parent.mkdir(parents=True)
    target.write_bytes(FILES["file-0"])
    assert store.status()[0].state == "unpinned"
    for use in (store.asset_path, store.fetch):
        with pytest.raises(AssetError, match="nothing says what file-0 should be"):
            use("file-0")
    assert store.import_file("file-0", target, unpinned="accept") == store.asset_path("file-0") == target
    assert not server.requests


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
    with pytest.raises(AssetError, match="list of licences"):
        FetchOptions(accept="MIT")


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
