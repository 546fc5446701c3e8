"""Where things are and on what they run. The only module that reads the environment and settings files.

A value comes from, first to last: an argument, the environment, `./rvc_spark.yaml`, `rvc_spark.yaml` in the user's
configuration folder, the default. Knows nothing of voices or sound.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import platformdirs
import yaml
from pydantic import AliasChoices, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from rvc_spark.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent
SETTINGS_FILE = "rvc_spark.yaml"
USER_SETTINGS = Path(platformdirs.user_config_dir("rvc_spark", appauthor=False)) / SETTINGS_FILE
MIN_CUDA_CAPABILITY = (5, 3)  # older devices cannot run the kernels the networks need
MIN_CUDA_BYTES = 4 << 30


@dataclass(frozen=True)
class Choice:
    """What was chosen among alternatives and why; shown wherever it mattered."""

    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.value} ({self.reason})"


def _default_root() -> Path:
    """The checkout this package is imported from, else the user's data folder."""
    checkout = PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "assets").is_dir():
        return checkout
    return Path(platformdirs.user_data_dir("rvc_spark", appauthor=False))


def _named(legacy: str, name: str) -> Any:
    """A field that is also read from the project's historic environment variable."""
    return Field(default=None, validation_alias=AliasChoices(legacy, f"RVC_SPARK_{name.upper()}"))


class RVCConfig(BaseSettings):
    """Paths, device and precision. Raises ConfigError naming the value and the place it came from is at fault."""

    model_config = SettingsConfigDict(
        env_prefix="RVC_SPARK_", yaml_file=[USER_SETTINGS, Path(SETTINGS_FILE)], extra="forbid", frozen=True,
        populate_by_name=True, hide_input_in_errors=False,
    )  # fmt: skip

    root: Path = Field(  # everything below hangs on it unless it is set on its own
        default_factory=_default_root, validation_alias=AliasChoices("RVC_ROOT", "RVC_SPARK_ROOT")
    )
    weights: Path | None = _named("weight_root", "weights")  # voices, *.pth
    indexes: Path | None = _named("index_root", "indexes")  # retrieval indexes and training runs
    rmvpe: Path | None = _named("rmvpe_root", "rmvpe")  # folder of rmvpe.pt
    hubert: Path | None = None  # content encoder: a folder, or a fairseq .pt
    temp: Path | None = None  # scratch and the demo's output
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    precision: Literal["auto", "exact", "fast", "fp32", "fp16", "bf16"] = "auto"  # see `precision_choice`
    voice_memory: int = Field(  # MiB of voices and indexes kept ready for a switch back; a usual voice takes 160
        default=512, ge=0, le=1 << 20
    )
    spark: Path | None = None  # folder of a Spark-TTS checkpoint, as published
    profiles: Path | None = None  # enrolled voices; private to their owner
    demucs: Path | None = None  # folder of a separation model: htdemucs.yaml and what it names
    covers: Path | None = None  # folder where the stages of covers are kept
    covers_gib: float = Field(default=10.0, ge=0, le=10_000)  # of them that may stay
    covers_days: float = Field(default=30.0, ge=0, le=10_000)  # since they were last used
    tts: Literal["auto", "triton", "spark", "espeak"] = "auto"  # who speaks
    watermark: Literal["none", "perth"] = "none"  # of everything that is written, where its own options do not say
    triton_host: str = Field(
        default="localhost", validation_alias=AliasChoices("TRITON_SERVER_ADDR", "RVC_SPARK_TRITON_HOST")
    )
    triton_port: int = Field(  # of gRPC
        default=8001, ge=1, le=65_535, validation_alias=AliasChoices("TRITON_SERVER_PORT", "RVC_SPARK_TRITON_PORT")
    )
    triton_tls: bool = False  # encrypt; with `ca_file` where the server's certificate is not a public one
    triton_token: str | None = Field(default=None, repr=False)  # sent as `authorization: Bearer TOKEN`
    model_unload_delay: float = Field(  # seconds without work after which workers give their models' memory back
        default=300.0, gt=0, le=86_400,
        validation_alias=AliasChoices("MODEL_UNLOAD_DELAY", "RVC_SPARK_MODEL_UNLOAD_DELAY"),
    )  # fmt: skip
    offline: bool = False  # never open a socket
    catalogue: Path | None = None  # a catalogue of one's own: more files, more sources, mirrors
    proxy: str | None = Field(default=None, validation_alias=AliasChoices("RVC_SPARK_PROXY", "HTTPS_PROXY"))
    ca_file: Path | None = Field(default=None, validation_alias=AliasChoices("RVC_SPARK_CA_FILE", "SSL_CERT_FILE"))
    hf_token: str | None = Field(default=None, repr=False, validation_alias=AliasChoices("HF_TOKEN"))

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"setting {name}={first.get('input')!r}: {first['msg']}",
                f"Correct it where it is set: argument, environment, ./{SETTINGS_FILE} or {USER_SETTINGS}.",
            ) from error
        except (yaml.YAMLError, SettingsError, UnicodeDecodeError, OSError, TypeError, ValueError) as error:
            raise ConfigError(
                f"a settings file cannot be read: {error}", f"Correct or remove ./{SETTINGS_FILE} or {USER_SETTINGS}."
            ) from error

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, **_unused: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:  # fmt: skip
        """Arguments, environment, then the settings files."""
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)

    @property
    def assets_dir(self) -> Path:
        """All downloads."""
        return self.root / "assets"

    @property
    def weights_dir(self) -> Path:
        """Voices (*.pth)."""
        return self.weights or self.assets_dir / "weights"

    @property
    def index_dir(self) -> Path:
        """Retrieval indexes and training runs, one folder per voice."""
        return self.indexes or self.root / "logs"

    @property
    def rmvpe_path(self) -> Path:
        """Weights of the RMVPE pitch tracker."""
        return (self.rmvpe or self.assets_dir / "rmvpe") / "rmvpe.pt"

    @property
    def hubert_path(self) -> Path:
        """The content encoder of community voices: the first that is there of three forms of the same network."""
        if self.hubert:
            return self.hubert
        usual, *others = (self.assets_dir / "hubert" / name for name in ("hubert_base", "contentvec", "hubert_base.pt"))
        return next((path for path in (usual, *others) if path.exists()), usual)

    @property
    def spark_dir(self) -> Path:
        """The Spark-TTS checkpoint folder."""
        return self.spark or self.assets_dir / "spark" / "Spark-TTS-0.5B"

    @property
    def covers_dir(self) -> Path:
        """Finished stages of covers, kept so that a change redoes little."""
        return self.covers or self.temp_dir / "covers"

    @property
    def profiles_dir(self) -> Path:
        """Enrolled voices, one folder each. Nobody but their owner may enter."""
        return self.profiles or self.assets_dir / "profiles"

    @property
    def triton_dir(self) -> Path:
        """The embedded Triton server: its environment, filled model repositories, logs and pid files."""
        return self.assets_dir / "triton"

    @property
    def demo_dir(self) -> Path:
        """The voice that comes with the package."""
        shipped = PACKAGE / "demo"
        return shipped if shipped.is_dir() else self.assets_dir / "demo"

    @property
    def temp_dir(self) -> Path:
        """Scratch and demo output."""
        return self.temp or self.root / "TEMP"

    def device_choice(self) -> Choice:
        """The torch device to use, with the reason. Raises ConfigError for a device this machine does not have."""
        import torch

        if self.device == "auto":
            return _best_device()
        try:
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ConfigError(
                f"device={self.device!r} cannot be used here: {str(error).splitlines()[0]}", "Use device='auto'."
            ) from error
        return Choice(self.device, "as set")

    def precision_choice(self) -> Choice:
        """fp32, fp16 or bf16, with the reason.

        `exact` is fp32, which gives the same sound on every machine and is what `auto` means; `fast` is the half
        precision that the device multiplies at full speed, or fp32 where it has none; or the type itself.
        """
        if self.precision in ("auto", "exact"):
            return Choice("fp32", "exact" if self.precision == "auto" else "exact, as set")
        device = self.device_choice().value
        half, why = _half_precision(device)
        if self.precision == "fast":
            return Choice(half, f"fast, as set: {why}") if half else Choice("fp32", f"exact: not faster here, {why}")
        if self.precision == "bf16" and device.startswith("cpu") and half != "bf16":
            return Choice("fp32", f"bf16 would be slower: {why}")
        if self.precision != "fp32" and not device.startswith("cuda") and self.precision != half:
            return Choice("fp32", f"{self.precision} is for CUDA devices")
        return Choice(self.precision, "as set")


def subprocess_environment(**changes: str | None) -> dict[str, str]:
    """The environment for a program this package starts: its own, with `changes` (None removes a name)."""
    merged: dict[str, str | None] = {**os.environ, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def has_bf16(device: str) -> bool:
    """Whether a device multiplies bfloat16 at full speed; others imitate it, slowly."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.startswith("cpu"):
        probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        layers = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        return layers and probe is not None and bool(probe())
    return False


def _half_precision(device: str) -> tuple[str, str]:
    """The half precision in which conversion is fast on a device, "" where there is none, and why."""
    import torch

    if device.startswith("cpu"):
        half = "bf16" if has_bf16(device) else ""
        return half, f"this processor has {'' if half else 'no '}bfloat16 products"
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
        quick = torch.cuda.get_device_capability(device) >= (7, 0) and "GTX 16" not in name
        return ("fp16", f"{name} has tensor cores") if quick else ("", f"{name} has no tensor cores")
    return "", f"half precision was never measured on {device}"


def _best_device() -> Choice:
    import torch

    if not torch.cuda.is_available():
        return Choice("cpu", "no CUDA device")
    device = torch.cuda.get_device_properties(0)
    if (device.major, device.minor) < MIN_CUDA_CAPABILITY:
        return Choice("cpu", f"{device.name} is too old: capability {device.major}.{device.minor} < 5.3")
    if device.total_memory < MIN_CUDA_BYTES:
        return Choice("cpu", f"{device.name} has {device.total_memory >> 20} MiB, less than 4 GiB")
    return Choice("cuda", device.name)
