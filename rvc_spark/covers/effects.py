"""What a converted voice is given before it meets the band: high-pass, equaliser, de-esser, compressor, reverb.

    in -> high-pass -> low shelf -> body -> presence -> air -> de-esser -> compressor -+-----------------> + -> out
                                                                                      +-> room (stereo) -> +

The chain works on blocks of one fixed length counted from the first frame, whatever blocks it is given, so results do
not depend on how a sound is cut. Nothing in it delays: the result is as long as the input and in step with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from rvc_spark.audio_limits import check_channels, check_rate
from rvc_spark.covers.biquads import HIGHEST_SHARE, FilterChain, high_pass, high_shelf, low_shelf, peaking
from rvc_spark.covers.dynamics import Compressor, DeEsser
from rvc_spark.covers.reverb import Convolver, impulse_response
from rvc_spark.errors import AudioError, ConfigError
from rvc_spark.infer.settings import check_ranges, setting

CHAIN_FRAMES = 65_536
"""Frames worked on at a time: a power of two, so whole hops at every rate; 1.5 s at 44.1 kHz."""
OFF_VALUES = {
    "high_pass_hz": 0.0, "low_shelf_db": 0.0, "body_db": 0.0, "presence_db": 0.0, "air_db": 0.0,
    "de_ess_db": 0.0, "compressor_ratio": 1.0, "makeup_db": 0.0, "reverb": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class EffectSettings:
    """The voice's effects, made for a sung lead out of RVC. Out of range raises ConfigError naming value and range.

    A gain of 0 dB, a ratio of 1, a frequency or an amount of 0 switches that effect off; `off()` all of them. A band
    too near to half the sampling rate does not exist there and is left out.
    """

    high_pass_hz: float = setting(80.0, "rumble and breath pops below this go; 0 is off", 0, 500, "Hz")
    low_shelf_hz: float = setting(180.0, "where the low shelf turns", 40, 1000, "Hz")
    low_shelf_db: float = setting(0.0, "warmth below that; 0 is off", -18, 18, "dB")
    body_hz: float = setting(320.0, "centre of the body band", 80, 2000, "Hz")
    body_db: float = setting(-1.5, "converted voices are full here, where the band sits; 0 is off", -18, 18, "dB")
    body_q: float = setting(0.9, "its centre over its width", 0.2, 10)
    presence_hz: float = setting(3200.0, "centre of the presence band", 800, 8000, "Hz")
    presence_db: float = setting(1.5, "clear words above the band; 0 is off", -18, 18, "dB")
    presence_q: float = setting(0.8, "its centre over its width", 0.2, 10)
    air_hz: float = setting(9000.0, "where the high shelf turns", 3000, 16_000, "Hz")
    air_db: float = setting(1.5, "networks sing a little dull; 0 is off", -18, 18, "dB")
    de_ess_hz: float = setting(5500.0, "an s lives above this", 3000, 12_000, "Hz")
    de_ess_threshold_db: float = setting(-10.0, "share of the whole from which that counts as hiss", -30, -1, "dB")
    de_ess_db: float = setting(5.0, "most that is taken from a hiss; 0 is off", 0, 24, "dB")
    compressor_threshold_db: float = setting(-20.0, "level above which it holds back", -60, 0, "dBFS")
    compressor_ratio: float = setting(2.5, "dB in for a dB out above that; 1 is off", 1, 20)
    compressor_knee_db: float = setting(8.0, "width of the soft passage into it", 0, 24, "dB")
    compressor_attack: float = setting(0.008, "time to take hold; longer lets consonants through", 0, 0.2, "s")
    compressor_release: float = setting(0.12, "time to let go; shorter breathes audibly", 0.01, 2, "s")
    makeup_db: float = setting(0.0, "gain behind the compressor; the mix has its own", -24, 24, "dB")
    reverb: float = setting(0.16, "level of the room beside the dry voice; 0 is off", 0, 1)
    reverb_seconds: float = setting(1.3, "in which the room dies away by 60 dB", 0.1, 8, "s")
    reverb_predelay: float = setting(0.02, "before the room answers; keeps words clear", 0, 0.2, "s")
    reverb_damping_hz: float = setting(4500.0, "above this the room dies sooner", 500, 20_000, "Hz")
    seed: int = setting(0, "same seed, same room", 0, 2**63 - 1)

    def __post_init__(self) -> None:
        check_ranges(self)
        if 0 < self.high_pass_hz < 10:
            raise ConfigError(f"high_pass_hz={self.high_pass_hz!r} is neither 0 nor 10 to 500 Hz", "Use 0 for off.")

    @classmethod
    def off(cls) -> EffectSettings:
        """Nothing at all: the sound passes bit for bit."""
        return cls(**OFF_VALUES)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All field names, in order."""
        return tuple(item.name for item in fields(cls))

    def changed(self, **changes: Any) -> EffectSettings:
        """A copy with some fields replaced; an unknown name raises ConfigError listing the known ones."""
        unknown = sorted(set(changes) - set(self.names()))
        if unknown:
            raise ConfigError(
                f"there is no effect {', '.join(unknown)}", f"The effects are: {', '.join(self.names())}."
            )
        return replace(self, **changes)


class EffectChain:
    """The effects over a sound in blocks: `push` float32 [C, n], then `flush`; joined, as many frames as came in."""

    def __init__(self, settings: EffectSettings, rate: int, channels: int, channels_out: int | None = None) -> None:
        """channels_out: 2 where there is a room and `channels` where not, if left to the chain; a room may be forced
        into mono with 1. Raises AudioError for rates or channels out of range or that do not fit each other.
        """
        self.rate = check_rate(rate)
        self.channels = check_channels(channels)
        wet = settings.reverb > 0
        self.channels_out = (max(2, channels) if wet else channels) if channels_out is None else channels_out
        if channels_out not in (None, channels, *((2,) if channels == 1 else ())):
            raise AudioError(
                f"Effects on {channels} channels cannot give {channels_out}", "Ask for as many, or 2 of a mono sound."
            )
        self._equaliser = FilterChain(_rows(settings, rate), channels)
        self._dynamics: list[DeEsser | Compressor] = []
        if settings.de_ess_db > 0 and settings.de_ess_hz < HIGHEST_SHARE * rate:
            self._dynamics.append(
                DeEsser(settings.de_ess_hz, settings.de_ess_threshold_db, settings.de_ess_db, channels, rate)
            )
        if settings.compressor_ratio > 1 or settings.makeup_db != 0:
            self._dynamics.append(_compressor(settings, rate))
        self._wet = np.float32(settings.reverb)
        self._room = _room(settings, rate, min(2, self.channels_out)) if wet else None
        self._waiting: list[np.ndarray] = []
        self._frames = 0

    def push(self, block: np.ndarray) -> np.ndarray:
        """Feed float32 [C, n] (or [n] for one channel); get float32 [channels_out, m], maybe of no frames.

        Raises AudioError for another channel count.
        """
        block = np.atleast_2d(np.asarray(block, np.float32))
        if len(block) != self.channels:
            raise AudioError(
                f"A block of {len(block)} channels came to effects for {self.channels}", "Push arrays of shape [C, n]."
            )
        self._waiting.append(block)
        self._frames += block.shape[1]
        if self._frames < CHAIN_FRAMES:
            return np.zeros((self.channels_out, 0), np.float32)
        joined = np.concatenate(self._waiting, axis=1)
        whole = joined.shape[1] - joined.shape[1] % CHAIN_FRAMES
        self._waiting, self._frames = [joined[:, whole:]], joined.shape[1] - whole
        pieces = [self._treated(joined[:, start : start + CHAIN_FRAMES]) for start in range(0, whole, CHAIN_FRAMES)]
        return np.concatenate(pieces, axis=1)

    def flush(self) -> np.ndarray:
        """The rest, float32 [channels_out, m]. For what a room has to say after the end, push silence before."""
        rest = np.concatenate([*self._waiting, np.zeros((self.channels, 0), np.float32)], axis=1)
        self._waiting, self._frames = [], 0
        if not rest.shape[1]:
            return np.zeros((self.channels_out, 0), np.float32)
        return self._treated(np.pad(rest, ((0, 0), (0, CHAIN_FRAMES - rest.shape[1]))))[:, : rest.shape[1]]

    def _treated(self, block: np.ndarray) -> np.ndarray:
        """One block of CHAIN_FRAMES."""
        block = self._equaliser.push(block)
        for effect in self._dynamics:
            block = effect.push(block)
        dry = block if len(block) == self.channels_out else np.repeat(block, self.channels_out, axis=0)
        if self._room is None:
            return dry
        wet = self._room.push(block.mean(axis=0, dtype=np.float32))
        if self.channels_out <= 2:
            return dry + self._wet * wet
        result = dry.copy()
        result[:2] += self._wet * wet  # of surround, the front pair carries the room
        return result


def _rows(settings: EffectSettings, rate: int) -> list[np.ndarray]:
    """The filters that are on and exist at this rate, in order."""
    s = settings
    rows = [
        (s.high_pass_hz > 0, s.high_pass_hz, lambda: high_pass(s.high_pass_hz, rate)),
        (s.low_shelf_db != 0, s.low_shelf_hz, lambda: low_shelf(s.low_shelf_hz, s.low_shelf_db, rate)),
        (s.body_db != 0, s.body_hz, lambda: peaking(s.body_hz, s.body_db, s.body_q, rate)),
        (s.presence_db != 0, s.presence_hz, lambda: peaking(s.presence_hz, s.presence_db, s.presence_q, rate)),
        (s.air_db != 0, s.air_hz, lambda: high_shelf(s.air_hz, s.air_db, rate)),
    ]
    return [make() for on, hz, make in rows if on and hz < HIGHEST_SHARE * rate]


def _compressor(settings: EffectSettings, rate: int) -> Compressor:
    return Compressor(
        settings.compressor_threshold_db,
        settings.compressor_ratio,
        settings.compressor_knee_db,
        (settings.compressor_attack, settings.compressor_release),
        settings.makeup_db,
        rate,
    )


def _room(settings: EffectSettings, rate: int, sides: int) -> Convolver:
    response = impulse_response(
        settings.reverb_seconds, settings.reverb_predelay, settings.reverb_damping_hz, rate, settings.seed
    )
    return Convolver(response[:sides], CHAIN_FRAMES)


def apply_effects(
    blocks: Iterable[np.ndarray],
    settings: EffectSettings,
    rate: int,
    channels: int,
    channels_out: int | None = None,
) -> Iterator[np.ndarray]:
    """The effects over an iterator of float32 [C, n]; yields float32 [channels_out, m], as many frames in all."""
    chain = EffectChain(settings, rate, channels, channels_out)
    for block in blocks:
        treated = chain.push(block)
        if treated.shape[1]:
            yield treated
    rest = chain.flush()
    if rest.shape[1]:
        yield rest
