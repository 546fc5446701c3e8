"""Downloads of the catalogue's files in a cell: one line that counts along, and a table of what came.

    show_downloads(["infer"])
    show_downloads(["spark"], accept=["CC-BY-NC-SA-4.0"], unpinned="hub")   # a licence is agreed to by name

What is fetched, checked and resumed is the store's business.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

from rvc_spark.assets import AssetStore, FetchOptions, Progress, StoreOptions
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.transport import NetworkOptions
from rvc_spark.widgets.progress import ProgressLine
from rvc_spark.widgets.tables import Table

MEGABYTE = 1_000_000
LINES_PER_SECOND = 4  # more updates of one line only make a notebook's page slow
HEAD = ("file", "size", "licence", "needed for")


@dataclass
class _Tally:
    """Bytes of several files that come at once; a step is passed on as often as a page can follow."""

    sizes: dict[str, int | None]
    line: ProgressLine = field(default_factory=ProgressLine)
    done: dict[str, int] = field(default_factory=dict)
    shown_at: float = float("-inf")

    def __call__(self, step: Progress) -> None:
        self.done[step.asset_id] = step.done
        if self.sizes.get(step.asset_id) is None:
            self.sizes[step.asset_id] = step.total
        finished = step.path is not None or step.error is not None
        if not finished and time.monotonic() - self.shown_at < 1 / LINES_PER_SECOND:
            return
        self.shown_at = time.monotonic()
        here, whole = sum(self.done.values()), sum(size or 0 for size in self.sizes.values())
        words = f"{here / MEGABYTE:,.0f} of {whole / MEGABYTE:,.0f} MB: {step.asset_id} ({step.message})"
        self.line(_Part(min(1.0, here / whole) if whole else 0.0, words))


@dataclass(frozen=True)
class _Part:
    """A step of the whole, as a progress line takes it."""

    fraction: float
    message: str


def open_store(config: RVCConfig | None = None) -> AssetStore:
    """The store of a configuration: its assets folder, its network settings."""
    config = config or RVCConfig()
    network = NetworkOptions(proxy=config.proxy, ca_file=config.ca_file)
    options = StoreOptions(user_catalogue=config.catalogue, network=network)
    return AssetStore(config.assets_dir, offline=config.offline, token=config.hf_token, options=options)


def show_downloads(
    groups: Iterable[str] = (), *, accept: Collection[str] = (),
    unpinned: Literal["refuse", "hub", "accept"] = "refuse", store: AssetStore | None = None,
) -> Table:  # fmt: skip
    """Fetch groups of the catalogue (`infer`, `spark`, …) and show how far it is. What is here already is not fetched.

    Args:
        groups: their names; without any, nothing is opened or fetched.
        accept: licences that are agreed to, as the catalogue spells them.
        unpinned: see `FetchOptions`.
        store: of the default configuration if None.

    Raises what `AssetStore.fetch_many` raises, when every file was tried; what came is kept.
    """
    names = tuple(groups)
    if not names:
        return Table(HEAD, (("nothing", "0 MB", "–", "nothing was asked for; what comes with the project is enough"),))
    store = store or open_store()
    assets = [status.asset for status in store.status(groups=names)]
    tally = _Tally({asset.id: asset.bytes for asset in assets})
    options = FetchOptions(accept=tuple(accept), unpinned=unpinned)
    paths = store.fetch_many(groups=names, options=options, progress=tally)
    rows = tuple(
        (asset.id, f"{paths[asset.id].stat().st_size / MEGABYTE:,.1f} MB", asset.licence, asset.needed_by)
        for asset in assets
    )
    return Table(HEAD, rows, f"in {store.folder.root}")
