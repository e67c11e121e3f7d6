"""What a sweep found, placed: on which side of each bound of eq. 9 a run ended, by what margin."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxstab import plots
from jaxstab.experiments import tables
from jaxstab.experiments.tables import Column, Table
from jaxstab.measurement import QUANTITIES, Measurement
from jaxstab.stability.criteria import Verdict, box, verdict

# A run that is stopped while it still oscillates at the edge, or while it leaves, can end this far
# outside a bound, relative. Further out, a minimum is a reason to look for an error; closer to a
# bound than this, linear theory cannot be asked for more than a tie.
SLACK = 0.05
CONVERGED = "converged"


def place(
    records: Sequence[Mapping[str, Any]],
    n: int,
    *,
    loss_kind: str = "squared",
    replacement: bool = False,
) -> pd.DataFrame:
    """Returns the records of a sweep with their bounds, margins, sides and verdicts added.

    For both q = sharpness and nonuniformity: `q_bound` is the bound of eq. 9 (infinite for s at
    B = n), `q_margin` = 1 − q / bound (positive inside, as a fraction of the bound), and `q_side`
    is "inside", "outside" or "undecided", told from the certified interval and not from the value.
    `side` sums both up; it, `verdict` and what that `rests_on` are empty for a run that ended at no
    minimum. `n` is kept.

    Args:
      records: one per run, as `jaxstab.sweep` returns them.
      n: number of training examples.
      loss_kind: "squared", "cross_entropy" or "kl"; see `jaxstab.verdict`.
      replacement: whether batches were drawn with replacement.
    """
    return pd.DataFrame([_place(record, n, loss_kind, replacement) for record in records])


def _place(record: Mapping[str, Any], n: int, loss_kind: str, replacement: bool) -> dict[str, Any]:
    eta, batch_size = record["learning_rate"], record["batch_size"]
    row = dict(record) | {"n": n}
    for name, bound in zip(QUANTITIES, box(eta, batch_size, n, replacement), strict=True):
        margin = 1 - row[name] / bound  # NaN where the run diverged
        row |= {f"{name}_bound": bound, f"{name}_margin": margin}
        row |= {f"{name}_side": _side(row, name, bound)}
    row |= {"side": ""} | dict.fromkeys(TOLD, "")
    sides = {row[f"{name}_side"] for name in QUANTITIES}
    if row["status"] == CONVERGED and "" not in sides:
        found = verdict(
            Measurement.from_record(row, n=n),
            learning_rate=eta,
            batch_size=batch_size,
            replacement=replacement,
            loss_kind=loss_kind,
        )
        worst = next(side for side in ("outside", "undecided", "inside") if side in sides)
        row |= {"side": worst} | told(found)
    return row


TOLD = ("verdict", "rests_on", "reasons")


def told(found: Verdict) -> dict[str, str]:
    """The columns of a verdict: what it is, which statement it rests on, and why."""
    rests_on = {"criterion": "eq. 9", "none": ""}.get(found.basis, found.basis)
    if found.statement:  # on the exact threshold; a "theorem" without one is a > 2/η
        certain = found.basis == "theorem"
        rests_on = "exact threshold" if certain else "exact threshold, not certified"
    return dict(zip(TOLD, (found.status, rests_on, "; ".join(found.reasons)), strict=True))


def _side(row: Mapping[str, Any], name: str, bound: float) -> str:
    if not math.isfinite(row[name]):
        return ""
    if row[f"{name}_lower"] > bound:
        return "outside"
    certain = row[f"{name}_upper"] <= bound and row[f"{name}_converged"]
    return "inside" if certain else "undecided"


def reached(rows: pd.DataFrame) -> pd.DataFrame:
    """The runs that ended at a minimum that was measured."""
    return rows[rows["side"] != ""]


def worst_margin(rows: pd.DataFrame) -> pd.Series:
    """The smaller of the two margins of each run: negative outside."""
    return rows[[f"{name}_margin" for name in QUANTITIES]].min(axis=1)


def summarize(
    rows: pd.DataFrame, *, by: Sequence[str], of: Sequence[str] = QUANTITIES
) -> pd.DataFrame:
    """One row per group: how many runs, how many at a minimum, mean and std over those.

    Returns:
      Columns `by`, runs, reached, blew_up, and q, q_std for each q in `of` (divided by the number
      of minima, not by one less); NaN where no run reached a minimum.
    """
    lines = []
    for key, group in rows.groupby(list(by)):
        found = reached(group)
        line = dict(zip(by, key, strict=True)) | {"runs": len(group), "reached": len(found)}
        line["blew_up"] = int((group["status"] == "diverged").sum())
        for name in of:
            line |= {name: found[name].mean(), f"{name}_std": found[name].std(ddof=0)}
        lines.append(line)
    return pd.DataFrame(lines)


def table(rows: pd.DataFrame, *, n: int) -> Table:
    """One line per run: where it ended, on which side of each bound, and by what margin."""
    columns = [
        tables.LEARNING_RATE,
        tables.batch_size(n),
        Column("init_scale", "scale", format=".3g"),
        tables.SEED,
        Column("status"),
        tables.STEPS,
        tables.LOSS,
    ]
    for symbol, name in zip("as", QUANTITIES, strict=True):
        columns += [
            Column(name, symbol, "1/step size"),
            Column(f"{name}_bound", "bound", "1/step size", infinite="none"),
            Column(f"{name}_margin", "margin", format="+.1%"),
            Column(f"{name}_side", "side", status=True),
        ]
    if "threshold_ratio" in rows:
        columns.append(Column("threshold_ratio", "η/η*_var", "1", format=".3g", spread="interval"))
    no_bound = ~np.isfinite(rows["nonuniformity_bound"])
    rows = rows.assign(nonuniformity_margin=rows["nonuniformity_margin"].mask(no_bound))
    columns += [Column("verdict", status=True), Column("rests_on")]
    return Table("minima", rows, columns)


def conclusion(rows: pd.DataFrame) -> list[str]:
    """How many minima are inside, how accurately that is known, and every one that is not."""
    found = reached(rows)
    inside = found["side"] == "inside"
    certified = found[[f"{name}_converged" for name in QUANTITIES]].all(axis=1)
    lines = [
        f"{len(rows)} runs: {len(found)} ended at a minimum, {len(rows) - len(found)} did not; "
        f"{certified.sum()} of {len(found)} have a and s certified",
    ]
    if len(found):
        lines.append(
            f"inside the region of eq. 9: {inside.sum()} of {len(found)} ({inside.mean():.1%})"
        )
    for row in found[~inside].assign(worst=worst_margin).to_dict("records"):
        of_s = row["nonuniformity_margin"]
        lines.append(
            f"  {row['side']}: eta {row['learning_rate']:g}, B {row['batch_size']}, scale "
            f"{row['init_scale']:g}, seed {row['seed']}: margin of a "
            f"{row['sharpness_margin']:+.2%}"
            + (f", of s {of_s:+.2%}" if math.isfinite(row["nonuniformity_bound"]) else "")
            + ("; MORE THAN 5 % OUTSIDE: look for an error" if row["worst"] < -SLACK else "")
        )
    return lines


def diagrams(
    rows: pd.DataFrame, *, n: int, title: str = "", name: str = "selection"
) -> dict[str, Figure]:
    """The (a, s) plane with the minima and the bounds, one figure for each learning rate."""
    figures = {}
    rates = sorted(rows["learning_rate"].unique())
    for eta in rates:
        here = rows[rows["learning_rate"] == eta]
        found = reached(here)
        columns = (*QUANTITIES, "batch_size", "init_scale")
        exact = [found.get(f"threshold_ratio{end}") for end in ("", "_lower", "_upper")]
        figures[name if len(rates) == 1 else f"{name}-{eta:g}"] = plots.selection(
            **{column: found[column] for column in columns},
            learning_rate=eta,
            boxes={size: box(eta, size, n) for size in sorted(here["batch_size"].unique())},
            n=n,
            threshold_ratio=None if exact[0] is None else exact,
            title=f"{title}, η = {eta:g}" if title else f"η = {eta:g}",
        )
    return figures
