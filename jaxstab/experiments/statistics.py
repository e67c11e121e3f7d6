"""Statistics of rows that are not independent: a number, its interval, and what it rests on.

Runs that share a seed share their initial parameters and their batches, so the independent units
are seeds (or starts, or draws of a problem), and every interval here is over those: `by` names the
columns that tell one unit from another. `by=None` says that each row is a unit.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

By = str | Sequence[str] | None


class Estimate(NamedTuple):
    """A number and its interval; NaN where there are too few units to tell.

    Attributes:
      value: the number.
      lower: lower end of the interval.
      upper: upper end.
      how: where the interval comes from: its level, and over how many of what.
    """

    value: float
    lower: float
    upper: float
    how: str = ""

    @classmethod
    def exact(cls, value: float) -> "Estimate":
        """A number without uncertainty."""
        return cls(float(value), float(value), float(value), "exact")

    def columns(self, name: str) -> dict[str, float]:
        """The entries of a table's row, for `tables.Column(name, spread="interval")`."""
        return {name: self.value, f"{name}_lower": self.lower, f"{name}_upper": self.upper}

    def map(self, function: Callable[[float], float]) -> "Estimate":
        """The estimate of an increasing function of the number."""
        ends = sorted([function(self.lower), function(self.upper)])
        return Estimate(function(self.value), ends[0], ends[1], self.how)


def mean_over(rows: pd.DataFrame, value: str, *, by: By = "seed") -> Estimate:
    """Mean over units of the mean within each, with its 95 % interval by Student's t.

    Args:
      rows: one row per run; rows where the value is NaN are left out.
      value: name of the column.
      by: columns that tell one unit from another.

    Returns:
      The interval is NaN for fewer than two units, all NaN for none.

    Example:
      >>> runs = pd.DataFrame({"seed": [0, 0, 1, 1, 2], "x": [0.0, 2.0, 2.0, 2.0, 3.0]})
      >>> found = mean_over(runs, "x")
      >>> tuple(round(float(x), 2) for x in found[:3]), found.how
      ((2.0, -0.48, 4.48), "95 %, Student's t over 3 seeds")
    """
    means = rows.dropna(subset=[value]).groupby(_units(rows, by))[value].mean()
    values, m = means.to_numpy(float), len(means)
    how = f"95 %, Student's t over {_count(m, by)}"
    if m < 2:
        return Estimate(float(values[0]) if m else math.nan, math.nan, math.nan, how)
    mean = float(values.mean())
    half = float(stats.t.ppf(0.975, m - 1) * values.std(ddof=1) / math.sqrt(m))
    return Estimate(mean, mean - half, mean + half, how)


def spread_over(rows: pd.DataFrame, by: Sequence[str], of: Sequence[str]) -> pd.DataFrame:
    """One row per group of `by`: `runs`, and q and q_std for each q in `of`.

    The standard deviation describes the runs themselves (divided by their number, not one less).

    Example:
      >>> rows = pd.DataFrame({"step": [0, 0, 1], "loss": [1.0, 3.0, 0.5]})
      >>> spread_over(rows, ["step"], ["loss"]).to_dict("list")
      {'step': [0, 1], 'runs': [2, 1], 'loss': [2.0, 0.5], 'loss_std': [1.0, 0.0]}
    """
    groups = rows.groupby(list(by))
    values = groups[list(of)]
    parts = [groups.size().rename("runs"), values.mean(), values.std(ddof=0).add_suffix("_std")]
    return pd.concat(parts, axis=1).reset_index()


def bootstrap(
    rows: pd.DataFrame,
    statistic: Callable[[pd.DataFrame], float],
    *,
    by: By = "seed",
    resamples: int = 2000,
) -> Estimate:
    """Any statistic with its 95 % interval: whole units are drawn with replacement.

    Percentiles, expanded as Hesterberg (2015, section 4.1.3) does for few units: without that, the
    interval is too short by √((m−1)/m) and by the difference of Student's t and normal quantiles.

    Args:
      rows: one row per run.
      statistic: function of such rows; NaN where it is not defined.
      by: columns that tell one unit from another.
      resamples: drawn with a fixed seed, so that a repeated call agrees.

    Returns:
      The interval is NaN for fewer than three units.

    Example:
      >>> runs = pd.DataFrame({"seed": range(20), "x": np.arange(20.0)})
      >>> found = bootstrap(runs, lambda drawn: drawn["x"].median())
      >>> found.value, found.how
      (9.5, '95 %, bootstrap over 20 seeds')
    """
    return _bootstrap(rows, lambda chosen: statistic(rows.iloc[chosen]), by, resamples)


def _bootstrap(
    rows: pd.DataFrame, statistic: Callable[[np.ndarray], float], by: By, resamples: int
) -> Estimate:
    """The same with a statistic of the positions of the rows."""
    units = list(rows.groupby(_units(rows, by)).indices.values())
    m = len(units)
    how = f"95 %, bootstrap over {_count(m, by)}"
    value = float(statistic(np.arange(len(rows)))) if m else math.nan
    if m < 3 or math.isnan(value):
        return Estimate(value, math.nan, math.nan, how)
    draws = np.random.default_rng(0).integers(m, size=(resamples, m))
    drawn = [float(statistic(np.concatenate([units[i] for i in draw]))) for draw in draws]
    tail = stats.norm.cdf(math.sqrt(m / (m - 1)) * stats.t.ppf(0.025, m - 1))
    known = np.array(drawn)[np.isfinite(drawn)]
    low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (math.nan, math.nan)
    return Estimate(value, float(low), float(high), how)


def correlation(
    rows: pd.DataFrame, x: str, y: str, *, by: By = "seed", ranks: bool = False
) -> Estimate:
    """Pearson's correlation of two columns, or Spearman's with `ranks`; 95 % bootstrap over units.

    Returns:
      NaN for fewer than three rows or where one of the two does not vary.

    Example:
      >>> points = pd.DataFrame({"x": [1, 2, 3, 4], "y": [1, 4, 9, 17]})
      >>> round(correlation(points, "x", "y", ranks=True, by=None).value, 3)
      1.0
    """
    known = rows[[*_names(by), x, y]].dropna()
    first, second = (known[name].to_numpy(float) for name in (x, y))
    return _bootstrap(
        known, lambda chosen: _correlate(first[chosen], second[chosen], ranks), by, 2000
    )


def trend(
    rows: pd.DataFrame,
    x: str,
    y: str,
    *,
    within: Sequence[str] = (),
    by: str | Sequence[str] = "seed",
) -> Estimate:
    """Spearman's correlation inside each unit and group, averaged per unit; Student's t over units.

    Inside groups, so that what differs between them is not mistaken for an effect of x.

    Args:
      rows: one row per run.
      x: name of the column that is varied.
      y: name of the column that may follow it.
      within: further columns whose values are held fixed.
      by: columns that tell one unit from another.

    Returns:
      Groups with fewer than three values of x show no trend and are left out.
    """
    known = rows[[*_names(by), *within, x, y]].dropna()
    values = [
        dict(zip([*_names(by), *within], key)) | {"trend": _correlate(group[x], group[y], True)}
        for key, group in known.groupby([*_names(by), *within])
        if group[x].nunique() >= 3
    ]
    return mean_over(pd.DataFrame(values, columns=[*_names(by), *within, "trend"]), "trend", by=by)


def exponents(rows: pd.DataFrame, x: str, y: str, *, by: Sequence[str]) -> pd.DataFrame:
    """Exponent d log y / d log x of each group, by least squares through its positive points.

    Returns:
      Columns `by` and slope; no row for a group of fewer than three such points.

    Example:
      >>> rows = pd.DataFrame({"seed": 0, "x": [1.0, 2.0, 4.0], "y": [3.0, 12.0, 48.0]})
      >>> float(exponents(rows, "x", "y", by=["seed"])["slope"].iloc[0].round(6))
      2.0
    """
    found = []
    for key, points in rows[(rows[x] > 0) & (rows[y] > 0)].groupby(list(by)):
        if len(points) >= 3:
            slope = np.polyfit(np.log(points[x]), np.log(points[y]), 1)[0]
            found.append(dict(zip(by, key, strict=True)) | {"slope": float(slope)})
    return pd.DataFrame(found, columns=[*by, "slope"])


def share(values: Sequence[Any], value: Any, *, undecided: Any = "undecided") -> Estimate:
    """Which share of these very values equals one, when some of them are undecided.

    No inference to others: the interval runs from "no undecided one is" to "all of them are".

    Example:
      >>> share(["inside", "inside", "undecided", "outside"], "inside")[:3]
      (0.5, 0.5, 0.75)
    """
    values = list(values)
    m = len(values)
    how = f"of these {m} alone, undecided ones counted either way"
    if m == 0:
        return Estimate(math.nan, math.nan, math.nan, how)
    sure, open_ = (sum(v == wanted for v in values) for wanted in (value, undecided))
    return Estimate(sure / m, sure / m, (sure + open_) / m, how)


def fraction(rows: pd.DataFrame, flag: str, *, by: By = "seed") -> Estimate:
    """How often a flag is true, with a 95 % Wilson interval of as many trials as the units allow.

    The number of trials is p(1−p) / Var(p̂), with the variance of the mean over units (Korn and
    Graubard 1998), at most the number of rows, at least that of units, which is also taken where
    all rows agree and nothing can be seen of the variance.

    Example:
      >>> runs = pd.DataFrame({"seed": range(60), "inside": [True] * 60})
      >>> round(fraction(runs, "inside").lower, 3)
      0.94
    """
    known = rows.dropna(subset=[flag])
    known = known.assign(**{flag: known[flag].astype(float)})
    flags, groups = known[flag], known.groupby(_units(known, by))[flag]
    sums, sizes = groups.sum().to_numpy(), groups.size().to_numpy()
    m, total = len(sums), len(known)
    how = f"95 %, Wilson over {_count(m, by)}"
    if total == 0:
        return Estimate(math.nan, math.nan, math.nan, how)
    p = float(flags.mean())
    trials = float(m)
    variance = m / max(m - 1, 1) * np.sum((sums - p * sizes) ** 2) / total**2
    if variance > 0 and 0 < p < 1 and m > 1:
        trials = min(max(p * (1 - p) / variance, m), total)
    z = stats.norm.ppf(0.975)
    center = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    return Estimate(p, float(max(center - half, 0.0)), float(min(center + half, 1.0)), how)


def _names(by: By) -> list[str]:
    return [] if by is None else [by] if isinstance(by, str) else list(by)


def _units(rows: pd.DataFrame, by: By) -> Any:
    """What pandas groups by."""
    return _names(by) if by is not None else np.arange(len(rows))


def _count(m: int, by: By) -> str:
    word = " × ".join(name.replace("_", " ") for name in _names(by)) or "row"
    return f"{m} {word}" + ("s" if m != 1 else "")


def _correlate(x: Any, y: Any, ranks: bool) -> float:
    """Correlation; NaN for fewer than three values or where one of the two does not vary."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    if ranks:
        x, y = stats.rankdata(x), stats.rankdata(y)
    return float(np.corrcoef(x, y)[0, 1])
