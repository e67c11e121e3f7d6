"""The protocol as it was, for the experiments that are not ported yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxstab.experiments import protocol, statistics
from jaxstab.experiments.claims import KINDS, STATUSES, Claim, Status
from jaxstab.experiments.protocol import Context, Experiment, execute, silent
from jaxstab.experiments.settings import batch_sizes_for, parse_batch_size, seed_range, setting
from jaxstab.experiments.statistics import Estimate

__all__ = [
    "KINDS",
    "STATUSES",
    "Claim",
    "Context",
    "Estimate",
    "Experiment",
    "Outcome",
    "batch_sizes_for",
    "correlation",
    "execute",
    "fraction",
    "judge",
    "mean_interval",
    "parse_batch_size",
    "seed_range",
    "setting",
    "silent",
]


def judge(holds: Any) -> Status:
    """Returns the status of a claim from True, False or None (cannot be told)."""
    if holds is None:
        return "inconclusive"
    return "holds" if bool(holds) else "does not hold"


@dataclass(frozen=True)
class Outcome:
    """What a run of an old experiment found."""

    rows: Sequence[Mapping[str, Any]]
    claims: Sequence[Claim]
    figures: Sequence[Path] = ()
    text: str = ""

    def ported(self) -> Any:
        """The same in the types of the new protocol; figures are saved already."""
        return protocol.Outcome(pd.DataFrame(self.rows), self.claims, notes=[self.text])


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean of independent values."""
    return statistics.mean_over(pd.DataFrame({"x": np.array(values, float)}), "x", by=None)


def correlation(x: Sequence[float], y: Sequence[float], *, ranks: bool = False) -> Estimate:
    """Correlation of independent pairs."""
    rows = pd.DataFrame({"x": np.array(x, float), "y": np.array(y, float)})
    return statistics.correlation(rows, "x", "y", ranks=ranks, by=None)


def fraction(count: int, total: int) -> Estimate:
    """Fraction of independent trials."""
    return statistics.fraction(pd.DataFrame({"x": np.arange(total) < count}), "x", by=None)
