"""What came out: one record per comparison, one line per group, and no way to leave a case without a verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import torch

from conformance_checks.folder import Arrays
from conformance_checks.limits import EXACT, HALF_PRECISION_SNR, Limit


@dataclass(frozen=True)
class Check:
    """One comparison. `load` is the error as a multiple of what is allowed, so different quantities can be ranked."""

    case: str
    quantity: str
    error: float
    limit: Limit
    load: float
    reason: str = ""  # empty when it holds


@dataclass
class Group:
    """All comparisons of one group."""

    name: str
    cases: int = 0
    checks: list[Check] = field(default_factory=list)

    @property
    def failures(self) -> list[Check]:
        """Comparisons that do not hold."""
        return [check for check in self.checks if check.reason]

    @property
    def worst(self) -> Check | None:
        """The comparison nearest to (or furthest beyond) its limit."""
        measured = [check for check in self.checks if not math.isnan(check.error)]
        return max(measured, key=lambda check: (check.load, check.error), default=None)


class Recorder:
    """Compares arrays on behalf of one case and files the result under its group.

    Entered as a context, it turns whatever stops the case into a failure of that case with the reason: the run goes
    on, and nothing is skipped.
    """

    def __init__(self, group: Group, case: str, half_precision: bool = False) -> None:
        self._group, self.case, self._half = group, case, half_precision

    def __enter__(self) -> Recorder:
        self._before = len(self._group.checks)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            if len(self._group.checks) == self._before:
                self.fail("case", "nothing was compared")
            return False
        if not isinstance(error, Exception):  # the user's Ctrl-C ends the run
            return False
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace is not None else ""
        self.fail("case", f"stopped by {type(error).__name__}: {error}{place}")
        return True

    def fail(self, quantity: str, reason: str) -> None:
        """File a failure that has no number."""
        self._group.checks.append(Check(self.case, quantity, math.nan, EXACT, math.inf, reason))

    def holds(self, quantity: str, condition: bool, reason: str) -> None:
        """File a yes-or-no check."""
        load, told = (0.0, "") if condition else (math.inf, reason)
        self._group.checks.append(Check(self.case, quantity, math.nan, EXACT, load, told))

    def same(self, quantity: str, actual: Any, expected: Any) -> None:
        """File a check of equality between two plain values."""
        self.holds(quantity, actual == expected, f"is {actual!r}, expected {expected!r}")

    def against(self, arrays: Arrays, key: str, actual: Any, limit: Limit, name: str = "") -> None:
        """Compare `actual` with the recorded array `key`."""
        self.compare(name or key, actual, arrays.expected(key), limit)

    def compare(self, quantity: str, actual: Any, expected: np.ndarray, limit: Limit) -> None:
        """Compare two arrays of one shape. Shapes that differ, or a value that is not finite, fail."""
        got, want = as_array(actual), as_array(expected)
        if got.shape != want.shape:
            self.fail(quantity, f"has shape {list(got.shape)}, expected {list(want.shape)}")
            return
        if not np.isfinite(got).all():
            self.fail(quantity, f"{int((~np.isfinite(got)).sum())} of {got.size} values are not finite")
            return
        if not np.isfinite(want).all():
            self.fail(quantity, "the recording itself holds values that are not finite, so nothing can be told")
            return
        difference = np.abs(got - want)
        error = float(difference.max(initial=0.0))
        if self._half and limit.network:
            load, reason = judge_snr(difference, want)
        else:
            load, reason = judge_absolute(difference, want, limit)
        self._group.checks.append(Check(self.case, quantity, error, limit, load, reason))


def as_array(value: Any) -> np.ndarray:
    """float64 for anything with numbers, so that differences are neither rounded nor wrapped around."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().numpy()
    return np.asarray(value).astype(np.float64)


def judge_absolute(difference: np.ndarray, want: np.ndarray, limit: Limit) -> tuple[float, str]:
    """(error as a multiple of the limit, reason to fail or "")."""
    allowed = limit.absolute + limit.relative * np.abs(want)
    over = difference > allowed
    tolerated = limit.share * difference.size
    if limit.share:  # rank by the worst of those that must hold
        kept = np.sort((difference / allowed).ravel())[: max(1, difference.size - int(tolerated))]
        load = float(kept[-1]) if kept.size else 0.0
    elif not difference.size:
        load = 0.0
    else:
        ratios = np.divide(difference, allowed, out=np.where(difference > 0, np.inf, 0.0), where=allowed > 0)
        load = float(ratios.max())
    if over.sum() <= tolerated:
        return load, ""
    worst = np.unravel_index(int(np.argmax(difference - allowed)), difference.shape)
    place = ", ".join(str(int(axis)) for axis in worst)
    return load, (
        f"{int(over.sum())} of {difference.size} values are off, the worst by {difference[worst]:.3g} at [{place}] "
        f"where {allowed[worst]:.3g} is allowed"
    )


def judge_snr(difference: np.ndarray, want: np.ndarray) -> tuple[float, str]:
    """The rule for half precision: signal over error in dB, as a multiple of the error allowed."""
    noise, signal = float((difference**2).sum()), float((want**2).sum())
    allowed = signal / 10 ** (HALF_PRECISION_SNR / 10)
    if noise <= allowed:
        return (math.sqrt(noise / allowed) if allowed else 0.0), ""
    decibels = 10 * math.log10(signal / noise) if signal else -math.inf
    return math.sqrt(noise / allowed) if allowed else math.inf, (
        f"signal to error is {decibels:.1f} dB, {HALF_PRECISION_SNR:g} dB wanted in half precision"
    )
