"""Files that do not come by a plain download: the hub's cache, archives, Google Drive, imports and bundles."""

from __future__ import annotations

import sys
import types
import zipfile
from pathlib import Path

import pytest
from asset_place import FILES, Place, entry, sha256
from asset_server import AssetServer, asset_server

from rvc_spark.assets import AssetStore, FetchOptions
from rvc_spark.errors import (
    ArchiveError,
    AssetError,
    ChecksumError,
    DownloadError,
    MissingPackageError,
    OfflineError,
)


@pytest.fixture
def server():
    with asset_server() as running:
        for name, content in FILES.items():
            running.add(name, content)
        yield running


@pytest.fixture
def place(tmp_path: Path, server: AssetServer) -> Place:
    return Place(tmp_path, server)


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
