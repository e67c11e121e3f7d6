"""Statistics over seeds: correlation with an interval, a fraction with an interval."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Estimate(NamedTuple):
    """A number and its 95 % interval; NaN where there are too few values to tell."""

    value: float
    lower: float
    upper: float


def correlation(
    x: Sequence[float], y: Sequence[float], *, ranks: bool = False, resamples: int = 2000
) -> Estimate:
    """Pearson correlation, or Spearman's with `ranks`, with a 95 % bootstrap interval over points.

    Args:
      x: shape (m,).
      y: shape (m,).
      ranks: correlate ranks instead of values (ties share their mean rank).
      resamples: bootstrap resamples of the m pairs, seeded, so that a repeated call agrees.

    Returns:
      NaN for fewer than three points or where one of the two does not vary.

    Example:
      >>> round(correlation([1, 2, 3, 4], [1, 4, 9, 17], ranks=True).value, 3)
      1.0
    """
    pairs = np.stack([np.asarray(x, float), np.asarray(y, float)])
    m = pairs.shape[1]
    if m < 3:
        return Estimate(math.nan, math.nan, math.nan)
    chosen = np.random.default_rng(0).integers(m, size=(resamples, m))
    resampled = _correlate(np.swapaxes(pairs[:, chosen], 0, 1), ranks)
    known = resampled[np.isfinite(resampled)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (math.nan, math.nan)
    return Estimate(float(_correlate(pairs, ranks)), float(low), float(high))


def _correlate(pairs: np.ndarray, ranks: bool) -> np.ndarray:
    """Correlation of the two rows of (..., 2, m); NaN where one of them does not vary."""
    values = stats.rankdata(pairs, axis=-1) if ranks else pairs
    centered = values - values.mean(axis=-1, keepdims=True)
    norm = np.sqrt(np.prod(np.sum(centered**2, axis=-1), axis=-1))
    product = np.sum(centered[..., 0, :] * centered[..., 1, :], axis=-1)
    return np.where(norm > 0, product / np.where(norm > 0, norm, 1), np.nan)


def fraction(count: int, total: int) -> Estimate:
    """A fraction count / total with its 95 % Wilson interval.

    Example:
      >>> fraction(60, 60).value, round(fraction(60, 60).lower, 3)
      (1.0, 0.94)
    """
    if total == 0:
        return Estimate(math.nan, math.nan, math.nan)
    interval = stats.binomtest(count, total).proportion_ci(method="wilson")
    return Estimate(count / total, float(interval.low), float(interval.high))


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean of independent values (one per seed) with its 95 % interval by Student's t.

    Returns:
      The interval is NaN for fewer than two values, all NaN for none.

    Example:
      >>> tuple(round(float(x), 2) for x in mean_interval([1.0, 2.0, 3.0]))
      (2.0, -0.48, 4.48)
    """
    m = len(values)
    if m == 0:
        return Estimate(math.nan, math.nan, math.nan)
    mean = float(np.mean(values))
    if m == 1:
        return Estimate(mean, math.nan, math.nan)
    half = float(stats.t.ppf(0.975, m - 1) * np.std(values, ddof=1) / math.sqrt(m))
    return Estimate(mean, mean - half, mean + half)
