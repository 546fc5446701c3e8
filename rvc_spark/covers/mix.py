"""Voices and band become one file: summed in float32, brought to a loudness, held under a true peak, encoded, measured.

    tracks -> same rate and channels -> gains, sum --+--> scratch on disk ---------------------> gain, limiter -> file
                                                     +--> peak, energy per hop -> gain to use -->^              measure

The sum is made once and read once more, so memory does not grow with the song. What the report says was measured on
what was written: of a lossy format that is what a player will decode, which overshoots what was encoded.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from rvc_spark.audio import EncodeOptions, LoudnessMeter, TruePeakMeter, open_audio, open_writer
from rvc_spark.audio_encode import LOSSY, nearest_rate
from rvc_spark.covers.dynamics import decibels
from rvc_spark.covers.limiter import LimiterCurve, apply_gains, border_gains
from rvc_spark.covers.loudness_plan import GainPlan, MixCurves, plan_gain
from rvc_spark.covers.tracks import MIX_FRAMES, Track, lined_up
from rvc_spark.errors import AudioError, ConfigError
from rvc_spark.infer.pipeline import Progress, drain
from rvc_spark.infer.sample_store import SampleStore
from rvc_spark.infer.settings import check_ranges, setting

SHORTEST_SECONDS = 0.4
"""One gating block of BS.1770: a shorter sound has no integrated loudness."""
MARGIN_DB = 0.3
"""The limiter's own ceiling lies so far under the one asked for. Meters agree about music to a few hundredths of a dB,
but about white noise, whose peaks hang on what their filters do next to half the rate, only to 0.3 dB."""
LOSSY_MARGIN_DB = 0.7
"""The same where an encoder will move every sample; what it really moved is measured, and answered if need be."""
RETRY_DB = 0.1
"""Lower than by what a result went over its ceiling, when it is made again."""
GOOD_ENOUGH_LU = 0.1
ATTEMPTS = 4


@dataclass(frozen=True)
class MixSettings:
    """Loudness and ceiling of the result. Out of range raises ConfigError naming value and range."""

    target_lufs: float = setting(-14.0, "integrated loudness; streaming services play at -14", -40, -5, "LUFS")
    ceiling_dbtp: float = setting(-1.0, "no true peak above this; leaves room for players and codecs", -20, 0, "dBTP")
    look_ahead: float = setting(0.005, "the limiter begins so long before a peak", 0.001, 0.05, "s")
    release: float = setting(0.12, "in which it lets go; shorter is louder and rougher", 0.01, 2, "s")
    most_limiting_db: float = setting(
        24.0, "rather softer than the target than peaks turned down by more than this", 0, 60, "dB"
    )
    silence_dbtp: float = setting(
        -80.0, "a mix that never gets above this is silence and stays as it is", -140, -40, "dBTP"
    )

    def __post_init__(self) -> None:
        check_ranges(self)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All field names, in order."""
        return tuple(item.name for item in fields(cls))

    def changed(self, **changes: Any) -> MixSettings:
        """A copy with some fields replaced; an unknown name raises ConfigError listing the known ones."""
        unknown = sorted(set(changes) - set(self.names()))
        if unknown:
            raise ConfigError(
                f"the mix has no setting {', '.join(unknown)}", f"The settings are: {', '.join(self.names())}."
            )
        return replace(self, **changes)


@dataclass(frozen=True)
class MixReport:
    """What was written and measured.

    Attributes:
        path, rate, channels, frames: of the file.
        lufs: integrated loudness, -inf for silence.
        true_peak_dbtp: of a lossy format, or with a watermark, after decoding.
        gain_db: what the sum of the tracks was raised by before the limiter.
        limiter_db: the largest reduction the limiter made.
        reason: in words, why these.
    """

    path: Path
    rate: int
    channels: int
    frames: int
    lufs: float
    true_peak_dbtp: float
    gain_db: float
    limiter_db: float
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """For reports; the path as text."""
        return {**asdict(self), "path": str(self.path)}


def mix_song(
    tracks: Sequence[Track],
    path: str | os.PathLike[str],
    settings: MixSettings | None = None,
    *,
    rate: int | None = None,
    options: EncodeOptions | None = None,
    scratch: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> MixReport:
    """Mix tracks into a file.

    Args:
        tracks: what is summed; each is read once, block by block.
        path: its suffix decides the format unless the options name it.
        rate: Hz of the result; None takes the highest among the tracks, or the nearest the format has.
        options: format, quality and tags, see `EncodeOptions`.
        scratch: folder for the sum, 8 bytes per stereo frame; None is the system's.
        on_progress: called with each step.

    Raises:
        AudioError: no track, no samples, or what a track's blocks raise.
        ConfigError: a gain out of range. OutputError: the place or the format cannot take it.
    """
    return drain(mix_steps(tracks, path, settings, rate=rate, options=options, scratch=scratch), on_progress)


def mix_steps(
    tracks: Sequence[Track],
    path: str | os.PathLike[str],
    settings: MixSettings | None = None,
    *,
    rate: int | None = None,
    options: EncodeOptions | None = None,
    scratch: Path | None = None,
) -> Generator[Progress, None, MixReport]:
    """`mix_song` step by step: yields Progress, returns the MixReport. Closing it leaves no file and no scratch."""
    settings, path = settings or MixSettings(), Path(path)
    options = (options or EncodeOptions()).resolved(path)
    if not tracks:
        raise AudioError("There is nothing to mix", "Give at least one track.")
    wanted = max(track.rate for track in tracks) if rate is None else rate
    rate = nearest_rate(options.format, wanted) if rate is None else wanted
    channels = 1 if all(track.channels == 1 for track in tracks) else 2
    open_writer(path, rate, channels, options).abort()  # a place that takes no file is said now, not after the mixing
    curves, store = MixCurves(rate, channels, scratch), SampleStore(rate, scratch)
    try:
        longest = max((track.frames or 0) / track.rate for track in tracks) * rate
        for block in lined_up(tracks, rate, channels):
            store.append(block.T.reshape(-1))
            curves.push(block)
            yield Progress(0.5 * min(1.0, curves.frames / longest) if longest else 0.25, "mixing")
        if not curves.frames:
            raise AudioError("The tracks hold no samples", "Give tracks with sound in them.")
        curves.finish()
        note = "" if rate == wanted else f"; {options.format} has no {wanted} Hz, so {rate} Hz"
        return (yield from _written(_Mix(curves, store, channels, settings), path, options, note))
    finally:
        curves.close()
        store.close()


@dataclass(frozen=True)
class _Mix:
    """The sum and what is known of it."""

    curves: MixCurves
    store: SampleStore
    channels: int
    settings: MixSettings

    def blocks(self, plan: GainPlan, ceiling_db: float) -> Iterator[np.ndarray]:
        """The result, float32 [C, n]."""
        hop, frames = self.curves.hop, self.curves.frames
        curve = LimiterCurve(self.settings.look_ahead, self.settings.release, self.curves.rate)
        pieces = border_gains(self.curves.peaks_db(), plan.level_db, curve, ceiling_db)
        gains, level = np.zeros(0), 10 ** (plan.level_db / 20)
        for start in range(0, frames, MIX_FRAMES):
            stop = min(start + MIX_FRAMES, frames)
            hops = -(-(stop - start) // hop)
            while len(gains) < hops + 1:
                gains = np.concatenate([gains, next(pieces)])
            flat = self.store.read(start * self.channels, stop * self.channels)
            block = np.pad(flat.reshape(-1, self.channels).T, ((0, 0), (0, hops * hop - (stop - start))))
            yield apply_gains(block, gains[: hops + 1], hop, level)[:, : stop - start]
            gains = gains[hops:]


def _written(mix: _Mix, path: Path, options: EncodeOptions, note: str) -> Generator[Progress, None, MixReport]:
    """Plan, write, measure; again with what was learned where the result is not what was asked for."""
    ceiling = mix.settings.ceiling_dbtp
    target, inner = mix.settings.target_lufs, ceiling - (LOSSY_MARGIN_DB if _altered(options) else MARGIN_DB)
    for attempt in range(ATTEMPTS):
        plan, reason = _plan(mix, target, inner)
        words = f"gain {plan.level_db:+.1f} dB, limiter {plan.limiter_db:.1f} dB"
        share = 0.45 / 3**attempt  # of the way: what is left, should this not be the last time
        yield Progress(round(1 - share, 6), words)
        with _Candidate(path, mix, options) as candidate:
            for done in candidate.write(mix.blocks(plan, inner)):
                yield Progress(round(1 - share + share * 2 / 3 * done / mix.curves.frames, 6), words)
            lufs, peak = candidate.measured()
            off = mix.settings.target_lufs - lufs if plan.reached else 0.0
            if (peak <= ceiling and abs(off) <= GOOD_ENOUGH_LU) or attempt == ATTEMPTS - 1:
                candidate.keep()
                break
        inner -= peak - ceiling + RETRY_DB if peak > ceiling else 0.0
        target += off
    yield Progress(1.0, f"{lufs:.1f} LUFS, {peak:.1f} dBTP")
    if peak > ceiling:
        note += f"; {peak:.2f} dBTP is over the ceiling of {ceiling:g} after {ATTEMPTS} attempts"
    frames, rate = mix.curves.frames, mix.curves.rate
    return MixReport(path, rate, mix.channels, frames, lufs, peak, plan.level_db, plan.limiter_db, reason + note)


def _plan(mix: _Mix, target: float, ceiling_db: float) -> tuple[GainPlan, str]:
    """The gain and why it is that."""
    settings, curves = mix.settings, mix.curves
    peak_db = float(decibels(np.array(curves.peak)))
    seconds = curves.frames / curves.rate
    if peak_db < settings.silence_dbtp or seconds < SHORTEST_SECONDS:
        level = min(0.0, ceiling_db - peak_db)
        what = "silence" if peak_db < settings.silence_dbtp else f"{seconds:.2f} s, too short to have a loudness"
        turned = f"turned down to {settings.ceiling_dbtp:g} dBTP" if level else "left as it is"
        return GainPlan(level, 0.0, -math.inf, False), f"{what}: {turned}"
    plan = plan_gain(curves, target, ceiling_db, settings.most_limiting_db, (settings.look_ahead, settings.release))
    if not plan.reached:
        return plan, (
            f"as near to {settings.target_lufs:g} LUFS as limiting by {settings.most_limiting_db:g} dB allows: "
            "its peaks stand far above the rest"
        )
    held = f", peaks held by up to {plan.limiter_db:.1f} dB" if plan.limiter_db >= 0.05 else ", no limiting needed"
    return plan, f"{plan.level_db:+.1f} dB to {settings.target_lufs:g} LUFS{held}"


def _altered(options: EncodeOptions) -> bool:
    """Whether the file will hold other samples than those that are written to it."""
    return options.format in LOSSY or options.watermark != "none"


class _Candidate:
    """A file that is written and measured, and takes its name only when it is kept.

    Lossless formats are measured as they are written. What a lossy one holds, or one with a watermark, is known when it
    is complete: it is written under a hidden name beside its target, decoded, and renamed.
    """

    def __init__(self, path: Path, mix: _Mix, options: EncodeOptions) -> None:
        self._path, self._altered = path, _altered(options)
        self._meters = _Meters(mix.curves.rate, mix.channels)
        self._hidden = path.parent / f".{secrets.token_hex(8)}{path.suffix}" if self._altered else path
        self._writer = open_writer(self._hidden, mix.curves.rate, mix.channels, options)

    def write(self, blocks: Iterator[np.ndarray]) -> Iterator[int]:
        """Encode everything; yields the frames done."""
        for block in blocks:
            self._writer.write(block)
            if not self._altered:
                self._meters.push(block)
            yield self._writer.frames
        if self._altered:
            self._writer.close()
            with open_audio(self._hidden) as reader:
                for block in reader.blocks():
                    self._meters.push(block)

    def measured(self) -> tuple[float, float]:
        """LUFS and dBTP."""
        return self._meters.result()

    def keep(self) -> None:
        """Give it its name."""
        if self._altered:
            os.replace(self._hidden, self._path)
        else:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.abort()  # harmless once it is complete
        if self._altered:
            self._hidden.unlink(missing_ok=True)


class _Meters:
    """Loudness and true peak of what is written."""

    def __init__(self, rate: int, channels: int) -> None:
        self._loudness = LoudnessMeter(rate, channels)
        self._peak = TruePeakMeter(rate, channels)

    def push(self, block: np.ndarray) -> None:
        self._loudness.push(block)
        self._peak.push(block)

    def result(self) -> tuple[float, float]:
        return self._loudness.lufs(), self._peak.finish()
