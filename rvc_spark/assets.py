"""Every downloadable file: known by name, fetched once, proven by its sha256, and found again without a network.

    store = AssetStore(root / "assets")
    store.fetch("rmvpe")                                  # -> Path, downloaded only if it is not there
    for step in store.fetch_iter(groups=["infer"]):       # several at once; the caller pulls the progress
        ...
    store.asset_path("rmvpe")                             # -> Path, or an error that says what to do; never a network

All state is in the store and in the folder; the library prints nothing and reads no environment.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rvc_spark import asset_sources, bundles, voice_download
from rvc_spark.asset_folder import AssetFolder, AssetStatus, Report
from rvc_spark.bundles import ImportReport
from rvc_spark.catalogue import BUILT_IN, Asset, Catalogue, Source, read_catalogue
from rvc_spark.download import Download, Expected
from rvc_spark.errors import (
    AssetError,
    ChecksumError,
    DiskSpaceError,
    DownloadError,
    MissingPackageError,
    OfflineError,
    RvcSparkError,
)
from rvc_spark.part_file import DISK_MARGIN, Disk, discard
from rvc_spark.transport import Cancelled, NetworkOptions, Transport
from rvc_spark.voice_download import VoiceFiles, VoiceRequest

MAX_PARALLEL = 16
QUEUED_STEPS = 256  # progress that waits to be pulled; more of it is dropped, results never are


@dataclass(frozen=True)
class Progress:
    """One step of a download. The last one of a file has its `path`, or the `error` that ended it."""

    asset_id: str
    done: int  # bytes
    total: int | None  # bytes, None while unknown
    message: str
    path: Path | None = None
    error: RvcSparkError | None = None


@dataclass(frozen=True)
class FetchOptions:
    """What the caller agrees to.

    `accept` names licences (as the catalogue spells them) for files that need it. `unpinned` says what to do with files
    whose sha256 nobody published: `refuse`, believe the digest the `hub` serves at the pinned commit and record it, or
    `accept` whatever comes and record that.
    """

    accept: Collection[str] = ()
    unpinned: Literal["refuse", "hub", "accept"] = "refuse"
    replace: bool = False  # a file that is there but wrong may be overwritten
    parallel: int = 4  # files at once

    def __post_init__(self) -> None:
        if not 1 <= self.parallel <= MAX_PARALLEL:
            raise AssetError(f"parallel is {self.parallel}, outside 1..{MAX_PARALLEL}", "Choose a number in between.")
        if self.unpinned not in ("refuse", "hub", "accept"):
            raise AssetError(f"unpinned is {self.unpinned!r:.40}", "Choose refuse, hub or accept.")
        if isinstance(self.accept, str):  # its letters would count as licences
            raise AssetError(f"accept is the text {self.accept!r:.40}", "Give a list of licences.")


@dataclass(frozen=True)
class StoreOptions:
    """Where else to look, and how to talk to the network."""

    user_catalogue: Path | None = None
    catalogue: Path = BUILT_IN
    hub_cache: Path | None = asset_sources.HUB_CACHE  # None: do not look there
    network: NetworkOptions = field(default_factory=NetworkOptions)
    disk: Disk = field(default_factory=Disk)


class AssetStore:
    """The files of a catalogue in one folder.

    Args:
        root: the assets folder; made when the first file comes.
        offline: never open a socket, not even to look up a name.
        token: for gated Hugging Face repositories; shown to huggingface.co alone.
    """

    def __init__(
        self, root: Path, *, offline: bool = False, token: str | None = None, options: StoreOptions | None = None
    ) -> None:
        self.options = options or StoreOptions()
        self.offline = offline
        self.folder = AssetFolder(Path(root), self.options.disk)
        self.catalogue: Catalogue = read_catalogue(self.options.catalogue, self.options.user_catalogue)
        network = self.options.network
        self.network = network if token is None else NetworkOptions(**{**vars(network), "token": token})

    def asset_path(self, asset_id: str) -> Path:
        """Where a file lies that is there and right; reads it through if that was never done.

        Raises AssetError when it is not there, ChecksumError when it is another file. Never uses the network.
        """
        asset = self.catalogue.get(asset_id)
        status = self.folder.check(asset)
        if status.state == "ready":
            return status.path
        if status.state in ("wrong", "unpinned"):
            raise _not_usable(status)
        step = f"Get it with `rvc-spark assets get {asset_id}`, or import it from another machine."
        raise AssetError(f"{asset_id} is not at {status.path} (needed for {asset.needed_by})", step)

    def status(self, ids: Iterable[str] = (), groups: Iterable[str] = ()) -> tuple[AssetStatus, ...]:
        """What is there, without reading files; everything when both arguments are empty."""
        return tuple(self.folder.status(asset) for asset in self.catalogue.select(ids, groups))

    def verify(
        self, ids: Iterable[str] = (), groups: Iterable[str] = (), *, progress: Callable[[Progress], None] | None = None
    ) -> tuple[AssetStatus, ...]:
        """Read every file that is there through again. `state` then says what was found; nothing is changed."""
        return tuple(
            self.folder.check(asset, again=True, report=_reporter(asset.id, progress))
            for asset in self.catalogue.select(ids, groups)
        )

    def fetch(
        self, asset_id: str, options: FetchOptions | None = None, *,
        progress: Callable[[Progress], None] | None = None, cancel: threading.Event | None = None,
    ) -> Path:  # fmt: skip
        """One file, downloaded if it is not there yet. `progress` is called in this thread.

        Raises OfflineError, DownloadError, ChecksumError or DiskSpaceError; what has arrived is kept for the next time.
        """
        asset = self.catalogue.get(asset_id)
        with Transport(self.network, cancel or threading.Event()) as transport:
            return self._fetch(asset, options or FetchOptions(), transport, _reporter(asset_id, progress))

    def fetch_iter(
        self, ids: Iterable[str] = (), groups: Iterable[str] = (), options: FetchOptions | None = None
    ) -> Iterator[Progress]:
        """Several files at once; everything in the catalogue when both arguments are empty.

        A file that fails does not stop the others: its last step has an `error`. Closing the iterator (or an interrupt
        while pulling) stops all of it, keeps what has arrived and ends the threads. Raises AssetError for unknown
        names and DiskSpaceError when all together do not fit, before anything starts.
        """
        options = options or FetchOptions()
        assets = self.catalogue.select(ids, groups)
        self._check_room(assets)
        return self._steps(assets, options)

    def fetch_many(
        self, ids: Iterable[str] = (), groups: Iterable[str] = (), options: FetchOptions | None = None, *,
        progress: Callable[[Progress], None] | None = None,
    ) -> dict[str, Path]:  # fmt: skip
        """`fetch_iter` for those who only want the paths. Raises when all is tried and some files did not come."""
        paths: dict[str, Path] = {}
        errors: dict[str, RvcSparkError] = {}
        for step in self.fetch_iter(ids, groups, options):
            if step.path is not None:
                paths[step.asset_id] = step.path
            if step.error is not None:
                errors[step.asset_id] = step.error
            if progress is not None:
                progress(step)
        if errors:
            raise _summed_up(errors, len(errors) + len(paths))
        return paths

    def import_file(self, asset_id: str, source: Path, *, unpinned: Literal["refuse", "accept"] = "refuse") -> Path:
        """Put a local file at the place of one asset, if it is that file. Raises ChecksumError if it is another."""
        return bundles.import_file(self.folder, self.catalogue.get(asset_id), Path(source), accept=unpinned == "accept")

    def import_bundle(self, source: Path, *, progress: Callable[[Progress], None] | None = None) -> ImportReport:
        """Find catalogued files in a file, folder, zip or tar, by their sha256 alone, and put them at their places."""
        every = [(asset, _reporter(asset.id, progress)) for asset in self.catalogue.assets.values()]
        return bundles.import_bundle(self.folder, every, Path(source))

    def export_bundle(
        self, target: Path, ids: Iterable[str] = (), groups: Iterable[str] = (), *,
        progress: Callable[[Progress], None] | None = None,
    ) -> tuple[str, ...]:  # fmt: skip
        """Write a zip of what is there and right, for `import_bundle` on a machine without a network; returns ids."""
        chosen = [(asset, _reporter(asset.id, progress)) for asset in self.catalogue.select(ids, groups)]
        return bundles.export_bundle(self.folder, chosen, Path(target))

    def fetch_voice(
        self, url: str, request: VoiceRequest | None = None, *,
        progress: Callable[[Progress], None] | None = None, cancel: threading.Event | None = None,
    ) -> VoiceFiles:  # fmt: skip
        """A user's own voice from any https address: its .pth and .index files into the weights folder.

        Raises OfflineError, DownloadError (also for addresses of this machine or its network), ArchiveError.
        """
        if self.offline:
            raise OfflineError("offline mode is on, so no voice can be fetched", "Turn it off, or copy the file.")
        request = request or VoiceRequest()
        folder = request.folder or self.folder.root / "weights"
        report = _reporter("voice", progress)
        return voice_download.fetch_voice(
            url, folder, request, voice_download.Means(self.network, self.options.disk, cancel, report)
        )

    def prune(self) -> int:
        """Remove `.part` files, finished with or not, except those being written now; returns the bytes freed."""
        freed = 0
        for asset in self.catalogue.assets.values():
            part = self.folder.part(asset)
            if part.exists():
                stop = threading.Event()
                stop.set()  # do not wait: whoever holds the lock is using the file
                try:
                    with self.folder.lock(asset, stop, _reporter(asset.id, None)):
                        freed += part.stat().st_size
                        discard(part)
                except Cancelled:
                    continue
        return freed

    def _steps(self, assets: tuple[Asset, ...], options: FetchOptions) -> Iterator[Progress]:
        steps: queue.Queue[Progress | None] = queue.Queue(QUEUED_STEPS)
        cancel = threading.Event()

        def fetch(asset: Asset, transport: Transport) -> None:
            last: Progress | None = None
            try:
                path = self._fetch(asset, options, transport, _reporter(asset.id, lambda step: _offer(steps, step)))
                last = Progress(asset.id, path.stat().st_size, path.stat().st_size, "ready", path=path)
            except RvcSparkError as error:
                last = Progress(asset.id, 0, asset.bytes, str(error), error=error)
            finally:
                for item in (last, None) if last is not None else (None,):  # None: done, whatever happened
                    while not cancel.is_set() and not _offer(steps, item, 0.25):
                        pass

        with Transport(self.network, cancel) as transport, ThreadPoolExecutor(options.parallel) as pool:
            work = [pool.submit(fetch, asset, transport) for asset in assets]
            try:
                left = len(work)
                while left:
                    try:
                        step = steps.get(timeout=0.5)  # with a time limit an interrupt is seen on every system
                    except queue.Empty:
                        continue
                    if step is None:
                        left -= 1
                    else:
                        yield step
            finally:
                cancel.set()
                pool.shutdown(wait=True, cancel_futures=True)
        for job in work:
            job.result()  # what is not an error of ours must not vanish in a thread

    def _check_room(self, assets: tuple[Asset, ...]) -> None:
        missing = [status for status in map(self.folder.status, assets) if status.state in ("missing", "partial")]
        needed = sum(max(0, (status.asset.bytes or 0) - status.bytes_here) for status in missing)
        existing = next(p for p in (self.folder.root.absolute(), *self.folder.root.absolute().parents) if p.is_dir())
        free = self.options.disk.free(existing)
        if missing and needed + DISK_MARGIN > free:
            raise DiskSpaceError(
                f"{len(missing)} files need {needed} bytes (and {DISK_MARGIN} to spare); {existing} has {free} free",
                "Free some space, or fetch fewer files.",
            )

    def _fetch(self, asset: Asset, options: FetchOptions, transport: Transport, report: Report) -> Path:
        if self.folder.status(asset).state == "ready":
            return self.folder.path(asset)
        with self.folder.lock(asset, transport.cancel, report):
            status = self.folder.check(asset, report=report)
            if status.state == "ready":  # another process was faster
                return status.path
            if status.state in ("wrong", "unpinned") and not options.replace:
                raise _not_usable(status)
            self._check_agreed(asset, options)
            copied = asset_sources.from_hub_cache(self.folder, asset, self.options.hub_cache, report)
            if copied is not None:
                return copied
            if self.offline:
                step = f"Turn it off, or run `rvc-spark assets import` with a file or bundle that has {asset.path}."
                raise OfflineError(f"{asset.id} is not here, and offline mode is on", step)
            self.folder.check_room(asset, max(0, (asset.bytes or 0) - status.bytes_here))
            return self._from_any_source(asset, options, transport, report)

    def _check_agreed(self, asset: Asset, options: FetchOptions) -> None:
        if asset.accept and asset.licence not in options.accept and self.folder.seen(asset) is None:
            raise AssetError(
                f"{asset.id} is under {asset.licence}, which must be accepted by name",
                f"Read the licence; if you agree: `rvc-spark assets get {asset.id} --accept {asset.licence}`.",
            )
        if self.folder.pin(asset) is None and options.unpinned == "refuse":
            raise AssetError(
                f"nobody published a sha256 of {asset.id}, so it cannot be checked by the catalogue",
                "Choose `--unpinned hub` to take the digest the hub serves at the pinned commit, and to record it.",
            )

    def _from_any_source(self, asset: Asset, options: FetchOptions, transport: Transport, report: Report) -> Path:
        expected = Expected(asset.id, self.folder.pin(asset), asset.bytes, hub_digest=options.unpinned == "hub")
        download = Download(transport, self.folder.part(asset), expected, report, self.options.disk)
        failures: list[tuple[Source, RvcSparkError]] = []
        for source in asset.sources:
            try:
                return self._from_source(asset, source, download, options)
            except (Cancelled, DiskSpaceError):
                raise
            except RvcSparkError as failed:
                failures.append((source, failed))
                report(0, asset.bytes, f"{source} failed: {failed.problem}")
        if len(failures) == 1 and isinstance(failures[0][1], MissingPackageError):
            raise failures[0][1]
        listed = "; ".join(f"{source}: {failed.problem}" for source, failed in failures)
        if all(isinstance(failed, ChecksumError) for _, failed in failures):
            raise ChecksumError(f"no source gives the right {asset.id}: {listed}", failures[0][1].next_step)
        raise DownloadError(f"{asset.id} could not be fetched: {listed}", failures[-1][1].next_step)

    def _from_source(self, asset: Asset, source: Source, download: Download, options: FetchOptions) -> Path:
        transport, report = download.transport, download.report
        if source.kind == "archive":

            def archive_path(archive_id: str) -> Path:
                return self._fetch(self.catalogue.get(archive_id), options, transport, report)

            return asset_sources.from_archive(self.folder, asset, source, archive_path, transport.cancel)
        if source.kind == "gdown":
            scratch = self.folder.part(asset).with_suffix(".drive")
            limit = asset.bytes or download.expected.max_bytes
            found = asset_sources.from_drive(
                source.reference, scratch, limit, transport.cancel, report, self.options.disk
            )
            if found != download.sha256:
                scratch.unlink(missing_ok=True)
                raise ChecksumError(
                    f"Google Drive's file has sha256 {found} instead of {download.sha256}", "Look for another source."
                )
            return self.folder.place(asset, scratch, found, "catalogue", str(source))
        received = download.run(source.url)
        return self.folder.place(asset, download.part, received.sha256, received.vouched_by, source.url)


def _reporter(asset_id: str, progress: Callable[[Progress], None] | None) -> Report:
    def report(done: int, total: int | None, message: str) -> None:
        if progress is not None:
            progress(Progress(asset_id, done, total, message))

    return report


def _offer(steps: queue.Queue[Progress | None], step: Progress | None, seconds: float | None = None) -> bool:
    try:
        steps.put(step, block=seconds is not None, timeout=seconds)
    except queue.Full:
        return False
    return True


def _not_usable(status: AssetStatus) -> AssetError:
    """A file is in the place, and it is another one, or nobody knows what it should be."""
    asset = status.asset
    if status.state == "unpinned":
        step = f"Vouch for it with `rvc-spark assets import {asset.id} {status.path} --unpinned accept`."
        return AssetError(f"{status.path} is there, but nothing says what {asset.id} should be", step)
    return ChecksumError(
        f"{status.path} is there ({status.bytes_here} bytes), but it is not the catalogue's {asset.id} "
        f"({asset.bytes} bytes, sha256 {asset.sha256})",
        "Move it away if you need it, or fetch with --replace to overwrite it.",
    )


def _summed_up(errors: dict[str, RvcSparkError], tried: int) -> RvcSparkError:
    first = next(iter(errors.values()))
    if len(errors) == 1:
        return first
    kind = type(first) if len({type(error) for error in errors.values()}) == 1 else DownloadError
    listed = "; ".join(f"{asset_id}: {error.problem}" for asset_id, error in errors.items())
    return kind(f"{len(errors)} of {tried} files did not come: {listed}"[:4000], first.next_step)
