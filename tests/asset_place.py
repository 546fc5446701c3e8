"""What the tests of the store share: a folder with a catalogue whose files a server on this machine has."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import yaml
from asset_server import AssetServer

from rvc_spark.assets import AssetStore, StoreOptions
from rvc_spark.transport import NetworkOptions

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
