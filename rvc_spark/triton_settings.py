"""How the Triton client is set up: where the server is, how patient the client is, how a text is to be spoken.

Knows no network: values, their ranges and what an address may look like.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from rvc_spark.errors import ConfigError
from rvc_spark.processing.pieces import PIECE_CHARS
from rvc_spark.processing.utils import MAX_SENTENCE_CHARS, MIN_SENTENCE_CHARS
from rvc_spark.rvc_config import RVCConfig

GENDERS = ("female", "male")
LEVELS = ("very_low", "low", "moderate", "high", "very_high")
"""Of pitch and speed of a voice made from attributes; section 7 of the published prompt format."""
_SCHEMES = {"grpc": False, "http": False, "grpcs": True, "https": True}  # scheme -> encrypted
_HOST = re.compile(r"(?=.{1,253}$)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})\.?)+")


@dataclass(frozen=True)
class TritonConnection:
    """Where a Triton server is and how it is talked to. Raises ConfigError naming the value.

    host: a name or address (IPv6 with or without brackets), also `host:port` or with a scheme: grpc:// and http:// are
    plain, grpcs:// and https:// encrypted. port: of gRPC. ca_file: PEM certificates to trust instead of the public
    ones. token: sent as `authorization: Bearer TOKEN`. model: the name the server gives the speaking model.
    """

    host: str = "localhost"
    port: int = 8001
    tls: bool = False
    ca_file: Path | None = None
    token: str | None = field(default=None, repr=False)
    model: str = "spark_tts"
    attempts: int = 4  # of one request, while none of its sound was delivered and the server did not answer
    backoff_seconds: float = 0.1  # before the second attempt, doubled from one to the next: 0.7 s in all
    max_in_flight: int = 64  # requests on the network at once, over all streams of a client
    probe_seconds: float = 5.0  # for questions about the server itself

    def __post_init__(self) -> None:
        host, port, tls = _parse_address(self.host, self.port)
        object.__setattr__(self, "host", host)
        object.__setattr__(self, "port", port)
        object.__setattr__(self, "tls", self.tls if tls is None else tls)
        if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65_535:
            raise ConfigError(f"the port of the Triton server is {port!r:.40}, not 1 to 65535", "Use 8001, for gRPC.")
        _check_range("Triton connection", self, _CONNECTION_RANGES)
        if not isinstance(self.model, str) or not re.fullmatch(r"[\w.-]{1,128}", self.model):
            raise ConfigError(f"{self.model!r:.80} cannot be the name of a model", "The usual one is spark_tts.")
        self._check_secrets()

    @classmethod
    def from_config(cls, config: RVCConfig) -> TritonConnection:
        """From TRITON_SERVER_ADDR, TRITON_SERVER_PORT and the other `triton_*` settings."""
        return cls(
            config.triton_host, config.triton_port, tls=config.triton_tls, token=config.triton_token,
            ca_file=config.ca_file if config.triton_tls or "s://" in config.triton_host else None,
        )  # fmt: skip

    @property
    def target(self) -> str:
        """As gRPC wants it: `[::1]:8001`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{'grpcs' if self.tls else 'grpc'}://{self.target}"

    @property
    def is_local(self) -> bool:
        """Whether the address is this machine's own, so that nothing sent there travels."""
        try:
            return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return self.host.lower().rstrip(".") == "localhost"

    def _check_secrets(self) -> None:
        if self.ca_file is not None and not self.tls:
            raise ConfigError("a certificate file is set and the connection is not encrypted", "Set triton_tls too.")
        if self.token is None:
            return
        if not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise ConfigError("the Triton token has characters a header cannot carry", "Set triton_token anew.")
        if not self.tls and not self.is_local:
            raise ConfigError(
                f"the token for {self} would travel unencrypted", "Set triton_tls, or reach the server over a tunnel."
            )


@dataclass(frozen=True)
class TritonSettings:
    """How one text is spoken by a Triton server. Out of range raises ConfigError naming value and range.

    What is None is left to the server. Everything down to `speed` only servers of this package understand; setting one
    of those for another server is an error of the call, never ignored.
    """

    seed: int | None = None  # same seed, same sound as in process; None: a new one for each text
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    max_tokens: int | None = None  # of one sentence; 50 are a second
    normalise_volume: bool | None = None  # of the reference
    chunk_seconds: float | None = None  # of the first chunk
    chunk_scale: float | None = None  # each chunk longer than the one before by this
    max_chunk_seconds: float | None = None
    context: int | Literal["exact"] | None = None  # tokens waited for behind a chunk before it is decoded
    gender: str | None = None  # a voice made from attributes instead of a reference: all three
    pitch: str | None = None
    speed: str | None = None
    max_chars: int = PIECE_CHARS  # longest piece of a text that is one request
    language: str | None = None  # for finding the ends of sentences
    pause_seconds: float = 0.2  # silence between pieces, as in process
    look_ahead: int = 2  # sentences requested beyond the one that is being delivered
    first_chunk_seconds: float = 60.0  # longest wait for the first sound of a sentence
    stall_seconds: float = 60.0  # longest wait for more of it: of a model process that dies Triton tells nobody
    sentence_seconds: float = 300.0  # longest a sentence may take from its request to its last sample
    whole_seconds: float | None = None  # the same for the whole call

    def __post_init__(self) -> None:
        _check_range("Triton speech", self, _SPEECH_RANGES)
        if self.context is not None and self.context != "exact":
            _check_number("Triton speech", "context", self.context, (0, 1_000), whole=True)
        if self.normalise_volume not in (None, True, False):
            raise ConfigError(f"normalise_volume is {self.normalise_volume!r:.40}", "Use True, False or None.")
        made = (self.gender, self.pitch, self.speed)
        for name, value, known in zip(("gender", "pitch", "speed"), made, (GENDERS, LEVELS, LEVELS), strict=True):
            if value is not None and value not in known:
                raise ConfigError(f"{name} is {value!r:.40}, known are {', '.join(known)}", f"Try {known[0]!r}.")
        if any(value is None for value in made) and any(value is not None for value in made):
            raise ConfigError("a voice made from attributes needs gender, pitch and speed", "Set all three, or none.")

    def parameters(self) -> dict[str, str | int | bool]:
        """What is sent along to a server of this package, by the names and types of its wire."""
        sent: dict[str, str | int | bool] = {}
        for name in SERVER_SETTINGS:
            value = getattr(self, name)
            if value is not None:
                sent[name] = value if isinstance(value, bool) or name in ("seed", "top_k", "max_tokens") else str(value)
        return sent


SERVER_SETTINGS = tuple(name.name for name in fields(TritonSettings)[:13])
"""Names of the settings that travel to the server."""

_Range = tuple[float, float]
_CONNECTION_RANGES: dict[str, tuple[_Range, bool]] = {
    "attempts": ((1, 20), True), "backoff_seconds": ((0.0, 10.0), False), "max_in_flight": ((1, 1_024), True),
    "probe_seconds": ((0.01, 600.0), False),
}  # fmt: skip
_SPEECH_RANGES: dict[str, tuple[_Range, bool]] = {  # name -> range, and whether only whole numbers are right
    "seed": ((0, 2**63 - 1), True), "temperature": ((0.0, 5.0), False), "top_k": ((1, 100_000), True),
    "top_p": ((0.01, 1.0), False), "max_tokens": ((1, 100_000), True), "chunk_seconds": ((0.1, 60.0), False),
    "chunk_scale": ((1.0, 100.0), False), "max_chunk_seconds": ((0.1, 60.0), False),
    "max_chars": ((MIN_SENTENCE_CHARS, MAX_SENTENCE_CHARS), True), "pause_seconds": ((0.0, 10.0), False),
    "look_ahead": ((0, 16), True), "first_chunk_seconds": ((0.01, 86_400.0), False),
    "stall_seconds": ((0.01, 86_400.0), False), "sentence_seconds": ((0.01, 86_400.0), False),
    "whole_seconds": ((0.01, 604_800.0), False),
}  # fmt: skip


def _check_range(what: str, owner: object, ranges: dict[str, tuple[_Range, bool]]) -> None:
    for name, (limits, whole) in ranges.items():
        value = getattr(owner, name)
        optional = type(owner).__dataclass_fields__[name].default is None
        if not (optional and value is None):
            _check_number(what, name, value, limits, whole=whole)


def _check_number(what: str, name: str, value: object, limits: _Range, *, whole: bool) -> None:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not limits[0] <= value <= limits[1]:
        kind = "whole number" if whole else "number"
        raise ConfigError(
            f"the {what} setting {name} is {value!r:.40}, it must be a {kind} from {limits[0]:g} to {limits[1]:g}",
            "Correct it, or leave it out.",
        )


def _parse_address(host: str, port: int) -> tuple[str, int, bool | None]:
    """Host without brackets, port, and what a scheme says about encryption (None: there is none)."""
    bad = ConfigError(f"{host!r:.200} is no address of a Triton server", "Write a name or address, such as localhost.")
    if not isinstance(host, str) or not (text := host.strip()):
        raise bad
    tls = None
    if "://" in text:
        scheme = text.partition("://")[0].lower()
        if scheme not in _SCHEMES:
            raise ConfigError(
                f"{host!r:.200} begins with {scheme[:20]}://, known are {', '.join(f'{key}://' for key in _SCHEMES)}",
                "Leave the scheme out.",
            )
        tls, text = _SCHEMES[scheme], text.partition("://")[2].removesuffix("/")
    address = _without_brackets(text)
    if _is_ip(address):
        return address, port, tls
    try:
        parts = urlsplit(f"//{text}")
        name, own_port = parts.hostname or "", parts.port
    except ValueError:
        raise bad from None
    if text != parts.netloc or "@" in text or not (_is_ip(name) or _HOST.fullmatch(name)):
        raise bad
    return name, port if own_port is None else own_port, tls


def _without_brackets(text: str) -> str:
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
