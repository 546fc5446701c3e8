"""What the tests of downloads share: a folder with a catalogue whose files a server on this machine has, a fetcher."""

from __future__ import annotations

import hashlib
import random
import threading
from pathlib import Path

import pytest
import yaml
from asset_server import AssetServer

from rvc_spark.assets import AssetStore, StoreOptions
from rvc_spark.download import Download, Expected
from rvc_spark.errors import DownloadError
from rvc_spark.part_file import Disk
from rvc_spark.transport import NetworkOptions, Transport

RANDOM = random.Random(2)
FILES = {f"file-{n}": RANDOM.randbytes(150_000 + n) for n in range(4)}
QUICK = NetworkOptions(stall_seconds=1.0, attempts=2, backoff_seconds=0.01, token_hosts=frozenset({"127.0.0.1"}))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


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


CONTENT = random.Random(1).randbytes(400_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
IMPATIENT = NetworkOptions(
    connect_seconds=5, stall_seconds=0.6, attempts=3, backoff_seconds=0.01, retry_after_cap=0.05,
    token_hosts=frozenset({"127.0.0.1"}),
)  # fmt: skip


class Fetcher:
    """Downloads to one `.part`, remembering what was reported."""

    def __init__(self, part: Path) -> None:
        self.part = part
        self.messages: list[str] = []
        self.cancel = threading.Event()

    def __call__(
        self, *urls: str, network: NetworkOptions = IMPATIENT, disk: Disk | None = None, **expected: object
    ) -> bytes:
        expected = {"sha256": SHA256, "bytes": len(CONTENT), **expected}
        with Transport(network, self.cancel) as transport:
            download = Download(transport, self.part, Expected("file", **expected), self.report, disk)
            for url in urls[:-1]:
                with pytest.raises(DownloadError):
                    download.run(url)
            self.received = download.run(urls[-1])
        assert self.received.sha256 == hashlib.sha256(self.part.read_bytes()).hexdigest()
        return self.part.read_bytes()

    def report(self, done: int, total: int | None, message: str) -> None:
        self.messages.append(message)
