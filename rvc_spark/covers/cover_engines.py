"""The networks a cover may need besides voices: where their files are, which they are; the loaded ones stay warm."""

from __future__ import annotations

from pathlib import Path

from rvc_spark.assets import AssetStore, StoreOptions
from rvc_spark.covers import mdx_net, separation
from rvc_spark.covers.cover_voice import digest_of
from rvc_spark.covers.mdx_net import MODELS, MdxNet
from rvc_spark.covers.separation import ASSETS, QUALITIES, Separator, load_separator
from rvc_spark.covers.separation_model import read_bag
from rvc_spark.errors import AssetError, MissingPackageError
from rvc_spark.rvc_config import Choice, RVCConfig

GIVE_STEMS = "or give the stems: --vocals FILE --accompaniment FILE"


class CoverEngines:
    """Separation networks, found when asked about and loaded when used."""

    def __init__(self, config: RVCConfig, device: str) -> None:
        self._config, self._device = config, device
        self._assets = AssetStore(
            config.assets_dir, offline=True, options=StoreOptions(user_catalogue=config.catalogue)
        )
        self._separator: Separator | None = None
        self._nets: dict[str, MdxNet] = {}

    def separator_files(self, quality: str) -> tuple[Path, str, dict[str, str]]:
        """(folder, model, file -> sha256) of the separation network of a quality, all there and right.

        Raises AssetError when they are not there, SeparatorFileError for a list of networks that is none.
        """
        name = QUALITIES[quality]
        if self._config.demucs is not None:
            folder = self._config.demucs
            files = [folder / f"{name}.yaml", *(path for path, _ in read_bag(folder, name).files)]
            return folder, name, {path.name: digest_of(path) for path in files}
        paths = []
        for asset in ASSETS[name]:
            try:
                paths.append(self._assets.asset_path(asset))
            except AssetError as error:
                group = "demucs" if quality == "good" else "demucs-ft"
                raise type(error)(error.problem, f"Run: rvc-spark assets get {group}; {GIVE_STEMS}.") from error
        return paths[0].parent, name, {path.name: digest_of(path) for path in paths}

    def separator(self, quality: str) -> Separator:
        """The separator, loaded once. Raises what `separator_files` and `load_separator` raise."""
        folder, name, _ = self.separator_files(quality)
        if self._separator is None or self._separator.name != name:
            self._separator = load_separator(folder, name, self._device)
        return self._separator

    def mdx_file(self, use: str) -> tuple[Path | None, Choice]:
        """The file of a use ("lead", "dry"), or None; and why."""
        asset = MODELS[use].asset
        try:
            path = self._assets.asset_path(asset)
            mdx_net.require_onnxruntime(MODELS[use].part)
        except (AssetError, MissingPackageError) as error:
            return None, Choice("none", str(error))
        return path, Choice(path.name, "the catalogue's")

    def mdx_digest(self, use: str) -> str:
        """sha256 of the file of a use, which must be there."""
        path, _ = self.mdx_file(use)
        assert path is not None
        return digest_of(path)

    def mdx(self, use: str) -> MdxNet:
        """The network of a use, loaded once; its file must be there. Raises SeparatorFileError."""
        path, why = self.mdx_file(use)
        if path is None:
            raise AssetError(why.reason, "Fetch it, or leave that stage out.")
        if use not in self._nets or self._nets[use].path != path:
            self._nets[use] = MdxNet(path, MODELS[use], self._device)
        return self._nets[use]

    def unload(self) -> None:
        """Free the networks; they are loaded again when needed."""
        self._separator, self._nets = None, {}


VERSIONS = {"separation": separation.VERSION, "mdx": mdx_net.VERSION}
