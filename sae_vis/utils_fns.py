"""Small pure functions that both halves use: axis ticks and rounding."""

from __future__ import annotations

import math


def ticks(low: float, high: float, at_most: int = 7) -> list[float]:
    """Round numbers (steps of 1, 2 or 5 times a power of ten) within ``[low, high]``, never more than ``at_most``."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low] if math.isfinite(low) else []
    exponent = math.floor(math.log10(span / at_most))
    for power in range(exponent, exponent + 3):
        for multiple in (1, 2, 5):
            step = multiple * 10.0**power
            first, last = math.ceil(low / step), math.floor(high / step)
            if last - first < at_most:
                return [round_significant(index * step, 12) for index in range(first, last + 1)]
    return []


def round_significant(value: float, digits: int) -> float:
    """``value`` rounded to so many significant digits."""
    return float(f"{value:.{digits - 1}e}") if math.isfinite(value) else value
