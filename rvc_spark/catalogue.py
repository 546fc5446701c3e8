"""The list of downloadable files, read from `catalogue.yaml` and checked field by field.

A user's own catalogue may add files, add sources to known ones, and name mirrors; it can never change where a built-in
file goes or what its sha256 is. Knows nothing of networks or of what is on the disk.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import yaml

from rvc_spark.archives import safe_name
from rvc_spark.errors import ArchiveError, AssetError

BUILT_IN = Path(__file__).resolve().with_name("catalogue.yaml")
HUB = "https://huggingface.co"
MAX_CATALOGUE_BYTES = 256 << 10
MAX_DEPTH, MAX_EVENTS = 16, 30_000  # ten times what the built-in list needs
MAX_ASSET_BYTES = 64 << 30  # no single file of this field comes near
_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HF = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[\w.-]+):(?P<path>[^\s:?#]+)")
_DRIVE = re.compile(r"[\w-]{10,100}")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Source:
    """One place a file can come from.

    `kind` is `hf` (repo, revision, path), `https` (url), `gdown` (a Google Drive id) or `archive` (asset id, member).
    """

    kind: str
    url: str = ""
    repo: str = ""
    revision: str = ""
    path: str = ""  # inside the repository or the archive
    reference: str = ""  # Drive id, or the id of the archive asset

    def __str__(self) -> str:
        return self.url or f"{self.kind}: {self.reference}{':' if self.path else ''}{self.path}"


@dataclass(frozen=True)
class Asset:
    """One downloadable file. `bytes` and `sha256` are None where nobody published them."""

    id: str
    path: str  # relative to the assets folder, forward slashes
    sources: tuple[Source, ...]
    licence: str
    needed_by: str
    groups: tuple[str, ...] = ()
    bytes: int | None = None
    sha256: str | None = None
    accept: bool = False  # the licence must be accepted by name
    note: str = ""


@dataclass(frozen=True)
class Catalogue:
    """All assets by id, in the file's order."""

    assets: Mapping[str, Asset] = field(default_factory=dict)

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Group name -> ids of its files."""
        found: dict[str, list[str]] = {}
        for asset in self.assets.values():
            for group in asset.groups:
                found.setdefault(group, []).append(asset.id)
        return {group: tuple(ids) for group, ids in found.items()}

    def get(self, asset_id: str) -> Asset:
        """Raises AssetError naming the nearest ids when there is none of that name."""
        if asset_id in self.assets:
            return self.assets[asset_id]
        near = difflib.get_close_matches(asset_id, self.assets, n=3) or sorted(self.groups)
        raise AssetError(f"there is no asset {asset_id!r:.120}", f"Perhaps {', '.join(near)}; `assets list` shows all.")

    def select(self, names: Iterable[str] = (), groups: Iterable[str] = ()) -> tuple[Asset, ...]:
        """The assets of these ids and groups, each once, in the catalogue's order; everything when both are empty.

        Raises AssetError for an unknown id or group.
        """
        wanted = {self.get(name).id for name in names}
        known = self.groups
        groups = tuple(groups)
        for group in groups:
            if group not in known:
                raise AssetError(f"there is no asset group {group!r:.120}", f"Groups: {', '.join(sorted(known))}.")
            wanted.update(known[group])
        everything = not wanted and not groups
        return tuple(asset for asset in self.assets.values() if everything or asset.id in wanted)


class _PlainLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML without repeated keys, of which the last would silently win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key occurs twice", node.start_mark)
        return mapping


def _plain_yaml(text: str) -> Any:
    """Look at the structure first: aliases can make a small file grow without bound, and depth can break a parser."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=_PlainLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH or number > MAX_EVENTS:
            what = "aliases" if isinstance(event, yaml.AliasEvent) else f"{number} values {depth} deep"
            raise yaml.YAMLError(f"{what} in line {event.start_mark.line + 1} are too much for a catalogue")
    return yaml.load(text, Loader=_PlainLoader)  # a SafeLoader: builds nothing but plain values


class _Fields:
    """Takes checked values out of one mapping; `done` refuses what nobody asked for. `where` leads every message."""

    def __init__(self, values: Any, where: str) -> None:
        self.where = where
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise self.wrong(f"must be a mapping of names to values, not {type(values).__name__}")
        self.left = dict(values)

    def wrong(self, problem: str) -> AssetError:
        return AssetError(f"{self.where} {problem}", "Mend the catalogue file; rvc_spark/catalogue.yaml is the model.")

    def take(self, name: str, kind: type, default: Any = ...) -> Any:
        value = self.left.pop(name, None)
        if value is None:
            if default is ...:
                raise self.wrong(f"has no {name!r}")
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.wrong(f"has {name}: {value!r:.80}, which is not a {kind.__name__}")
        return value

    def text(self, name: str, pattern: re.Pattern[str] | None = None, default: Any = ...) -> Any:
        value = self.take(name, str, default)
        if value != default and pattern is not None and not pattern.fullmatch(value):
            raise self.wrong(f"has {name}: {value!r:.80}, which does not look like one ({pattern.pattern})")
        return value

    def done(self) -> None:
        if self.left:
            raise self.wrong(f"has unknown fields: {', '.join(sorted(self.left))[:200]}")


def read_catalogue(built_in: Path = BUILT_IN, user: Path | None = None) -> Catalogue:
    """The built-in list, widened by the user's own file if there is one.

    Raises AssetError naming the file, the entry and the field that is wrong.
    """
    assets = _assets(_load(built_in), built_in.name)
    if user is not None:
        assets = _widened(assets, user)
    for asset in assets.values():
        for source in asset.sources:
            origin = assets.get(source.reference)
            if source.kind == "archive" and (origin is None or any(s.kind == "archive" for s in origin.sources)):
                raise AssetError(f"{asset.id} comes from archive {source.reference!r}, which cannot be fetched", _MEND)
    return Catalogue(assets)


_MEND = "Mend the catalogue file; rvc_spark/catalogue.yaml is the model."


def _load(path: Path) -> _Fields:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CATALOGUE_BYTES + 1)
        if len(data) > MAX_CATALOGUE_BYTES:
            raise AssetError(f"{path.name} is larger than {MAX_CATALOGUE_BYTES} bytes", _MEND)
        document = _plain_yaml(data.decode("utf-8"))
    except OSError as failed:
        raise AssetError(f"the catalogue {path} cannot be read: {failed.strerror}", "Check the path.") from failed
    except (yaml.YAMLError, ValueError, RecursionError) as failed:
        raise AssetError(f"{path.name} is not plain YAML: {' '.join(str(failed).split())[:300]}", _MEND) from failed
    fields = _Fields(document, path.name)
    if fields.take("version", int) != 1:
        raise fields.wrong("has another version than 1; this package is older than the file")
    return fields


def _assets(fields: _Fields, where: str) -> dict[str, Asset]:
    assets: dict[str, Asset] = {}
    places: dict[str, str] = {}
    for number, entry in enumerate(fields.take("assets", list, [])):
        asset = _asset(_Fields(entry, f"{where}: assets[{number}]"))
        place = asset.path.casefold()
        if asset.id in assets or place in places:
            raise AssetError(f"{where}: {asset.id!r} or its path {asset.path!r} occurs twice", _MEND)
        assets[asset.id], places[place] = asset, asset.id
    fields.done()
    return assets


def _asset(entry: _Fields) -> Asset:
    asset_id = entry.text("id", _ID)
    entry.where += f" ({asset_id})"
    size = entry.take("bytes", int, None)
    if size is not None and not 0 < size <= MAX_ASSET_BYTES:
        raise entry.wrong(f"has bytes: {size}, outside 1..{MAX_ASSET_BYTES}")
    groups = entry.take("groups", list, [])
    if not all(isinstance(group, str) and _ID.fullmatch(group) for group in groups):
        raise entry.wrong(f"has groups: {groups!r:.80}, which are not names")
    asset = Asset(
        id=asset_id, path=_path(entry), sources=_sources(entry), licence=entry.text("licence"), bytes=size,
        sha256=entry.text("sha256", _SHA256, None), accept=entry.take("accept", bool, False), groups=tuple(groups),
        needed_by=entry.text("needed_by"), note=entry.text("note", None, ""),
    )  # fmt: skip
    entry.done()
    for source in asset.sources:
        if source.kind == "gdown" and asset.sha256 is None:
            raise entry.wrong("comes from Google Drive, so it must have a sha256")
        if source.kind == "hf" and asset.sha256 is None and not re.fullmatch(r"[0-9a-f]{40}", source.revision):
            raise entry.wrong(f"has neither a sha256 nor a commit as revision ({source.revision!r})")
    return asset


def _path(entry: _Fields) -> str:
    raw = entry.text("path")
    try:
        path = safe_name(raw)
    except ArchiveError:
        path = None
    if path is None or path.as_posix() != raw or path.parts[0].startswith("."):
        raise entry.wrong(f"has path: {raw!r:.80}, which is not a plain relative path")
    return raw


def _sources(entry: _Fields) -> tuple[Source, ...]:
    sources = entry.take("sources", list, [])
    if not sources:
        raise entry.wrong("has no sources")
    return tuple(_source(_Fields(value, f"{entry.where} sources[{n}]")) for n, value in enumerate(sources))


def _source(entry: _Fields) -> Source:
    if len(entry.left) != 1:
        raise entry.wrong("must have exactly one of hf, https, gdown, archive")
    (kind,) = entry.left
    value = entry.text(kind)
    if kind == "https":
        return Source("https", url=check_url(value, entry.where))
    if kind == "hf" and (found := _HF.fullmatch(value)) and ".." not in value:
        repo, revision, path = found["repo"], found["revision"], found["path"]
        return Source("hf", f"{HUB}/{repo}/resolve/{revision}/{quote(path)}", repo, revision, path)
    if kind == "gdown" and _DRIVE.fullmatch(value):
        return Source("gdown", reference=value)
    if kind == "archive" and (found := re.fullmatch(rf"({_ID.pattern}):(\S+)", value)):
        return Source("archive", reference=found[1], path=found[2])
    raise entry.wrong(f"has {kind}: {value!r:.120}, which cannot be understood")


def check_url(url: str, where: str = "the address") -> str:
    """An https URL without a password in it; plain http only to this very machine. Raises AssetError."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as wrong:
        raise AssetError(f"{where} {ascii(url[:120])} is not a URL: {wrong}", "Check the address.") from wrong
    plain = url.isascii() and url.isprintable() and " " not in url
    local = parts.scheme == "http" and host in _LOOPBACK
    if not (parts.scheme == "https" or local) or not host or not plain or parts.username is not None:
        raise AssetError(
            f"{where} {ascii(url[:120])} is refused: only https, without name and password, is fetched",
            "Give an https:// address (http:// works for localhost alone).",
        )
    return url


def _widened(assets: dict[str, Asset], user: Path) -> dict[str, Asset]:
    """Built-in assets plus the user's: new files, further sources for known ones, mirrors by prefix."""
    fields = _load(user)
    extra = fields.take("sources", dict, {})
    mirrors = fields.take("mirrors", list, [])
    for asset in _assets(fields, user.name).values():
        if asset.id in assets or asset.path.casefold() in {known.path.casefold() for known in assets.values()}:
            raise AssetError(
                f"{user.name}: {asset.id} is built in, or its place is", "List more places for it under `sources:`."
            )
        assets[asset.id] = asset
    for asset_id, listed in extra.items():
        entry = _Fields({"sources": listed}, f"{user.name}: sources of {asset_id}")
        known = Catalogue(assets).get(asset_id)
        assets[asset_id] = replace(known, sources=_sources(entry) + known.sources)
    for number, mirror in enumerate(mirrors):
        entry = _Fields(mirror, f"{user.name}: mirrors[{number}]")
        prefix = check_url(entry.text("prefix"), entry.where)
        instead = check_url(entry.text("use"), entry.where)
        entry.done()
        assets = {name: _mirrored(asset, prefix, instead) for name, asset in assets.items()}
    return assets


def _mirrored(asset: Asset, prefix: str, instead: str) -> Asset:
    """The mirror goes first; it is only as good as the sha256, so files without one do not use it."""
    if asset.sha256 is None:
        return asset
    new = [Source("https", instead + s.url.removeprefix(prefix)) for s in asset.sources if s.url.startswith(prefix)]
    return replace(asset, sources=(*new, *asset.sources))
